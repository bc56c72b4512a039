//! Whether a deployment that is a member of a group has proved itself: the gate `verified`
//! (product.md §3).

use tidegate_shared::id::Name;
use tidegate_shared::verdict::check::Outcome;

use crate::deployment::checks;
use crate::state::{Deployment, Status};

/// What a group's gate `verified` is told of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// It is `FINALIZED` with its evidence: its checks succeeded and its rules had data.
    Yes,
    /// It is on its way there.
    NotYet,
    /// It will not be, and why, in one line.
    No(String),
}

/// Whether a member is verified. Pure, over replicated facts alone. A member without rules and
/// checks is verified when it is `FINALIZED`: nothing was asked of it.
pub fn verified(deployment: &Deployment) -> Verified {
    match deployment.status {
        Status::CreatingApproval
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalizing => Verified::NotYet,
        Status::Finalized | Status::Deleting | Status::Deleted => at_its_end(deployment),
        Status::CreatingApprovalDenied
        | Status::Cancelling
        | Status::Cancelled
        | Status::RollingBack
        | Status::RolledBack
        | Status::Failed => Verified::No(format!(
            "{} is {}",
            deployment.origin.scope, deployment.status
        )),
    }
}

fn at_its_end(deployment: &Deployment) -> Verified {
    let scope = &deployment.origin.scope;
    if deployment.origin.fast {
        return Verified::Yes;
    }
    if deployment.unverified {
        let mut records = deployment.checks.iter().rev();
        let open = records.find(|record| record.outcome == Outcome::Inconclusive);
        return Verified::No(match open {
            Some(record) => format!("{scope}: {}", record.message),
            None => format!("{scope} was finalized without evidence"),
        });
    }
    let step = deployment.traffic.step.map(|step| step.index);
    let succeeded = |name: &Name| {
        let mut records = deployment.checks.iter();
        records.any(|record| {
            record.name == *name && record.step == step && record.outcome == Outcome::Success
        })
    };
    let missing = checks::at_the_last(deployment).find(|spec| !succeeded(&spec.name));
    match missing {
        // A person finalized it before.
        Some(spec) => Verified::No(format!("{scope}: check {} did not succeed", spec.name)),
        None => Verified::Yes,
    }
}
