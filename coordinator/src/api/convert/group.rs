//! Groups on the wire: what a request says of a rollout, and what is shown of a group.

use std::collections::BTreeMap;

use tidegate_coordinator_core::explain::explain;
use tidegate_coordinator_core::group::view::{self, GroupView, MemberView, WaveState};
use tidegate_coordinator_core::observed::Observed;
use tidegate_coordinator_core::plan::GateAnswer;
use tidegate_coordinator_core::policy::expression::{Expression, Subject};
use tidegate_coordinator_core::state::{
    GivenVerb, Group, GroupOutcome, GroupStatus, Halted, Member, Paused, Status as MemberStatus,
};
use tidegate_proto::control::v1 as pb;
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::spec::{FieldErrors, RolloutSpec};
use tidegate_shared::time::{Span, Timestamp};
use tonic::Status;

use super::deployment::{self, Picture};
use crate::api::status;

/// A rollout in its manifest form, checked with the conditions of its waves; empty: none.
///
/// # Errors
/// Every wrong field, as `rollout.waves[1].selector`.
pub fn rollout(json: &str) -> Result<Option<RolloutSpec>, Status> {
    if json.trim().is_empty() {
        return Ok(None);
    }
    let spec: RolloutSpec = serde_json::from_str(json)
        .map_err(|error| status::wrong_field("rollout", error.to_string()))?;
    let mut errors = FieldErrors::default();
    errors.nest("rollout", spec.validate());
    for (index, wave) in spec.waves.iter().enumerate() {
        let text = wave.selector.as_deref().unwrap_or_default();
        if let Err(mistake) = Expression::compile(text, Subject::Deployment) {
            errors.add(
                format!("rollout.waves[{index}].selector"),
                mistake.to_string(),
            );
        }
    }
    match errors.into_result() {
        Ok(()) => Ok(Some(spec)),
        Err(errors) => Err(status::wrong_fields("group", errors)),
    }
}

/// The word of a status on the wire.
#[must_use]
pub const fn group_status(status: GroupStatus) -> pb::group::Status {
    use pb::group::Status as Wire;
    match status {
        GroupStatus::CreatingApproval => Wire::CreatingApproval,
        GroupStatus::CreatingApprovalDenied => Wire::CreatingApprovalDenied,
        GroupStatus::Pending => Wire::Pending,
        GroupStatus::Running => Wire::Running,
        GroupStatus::Finalizing => Wire::Finalizing,
        GroupStatus::Finalized => Wire::Finalized,
        GroupStatus::Cancelling => Wire::Cancelling,
        GroupStatus::Cancelled => Wire::Cancelled,
        GroupStatus::RollingBack => Wire::RollingBack,
        GroupStatus::RolledBack => Wire::RolledBack,
    }
}
