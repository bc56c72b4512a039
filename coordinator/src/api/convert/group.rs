//! Groups on the wire: what a request says of a rollout, and what is shown of a group.

use std::collections::BTreeSet;

use tidegate_coordinator_core::command::Actor;
use tidegate_coordinator_core::group::explain::{acknowledged, explain};
use tidegate_coordinator_core::group::view::{GroupView, MemberView, WaveView, view};
use tidegate_coordinator_core::observed::Observed;
use tidegate_coordinator_core::policy::expression::{Expression, Subject};
use tidegate_coordinator_core::state::{
    GivenVerb, Group, GroupOutcome, GroupStatus, Status as MemberStatus,
};
use tidegate_coordinator_core::verification::check_rollout;
use tidegate_proto::control::v1 as pb;
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::spec::{FieldErrors, RolloutSpec, StrategySpec};
use tidegate_shared::time::Timestamp;
use tonic::Status;

use super::deployment::{Picture, gate, status as member_status};
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
    let mut errors = spec.validate();
    errors.0.extend(conditions(&spec).0);
    errors.0.extend(check_rollout(&spec).0);
    let mut placed = FieldErrors::default();
    placed.nest("rollout", errors);
    match placed.into_result() {
        Ok(()) => Ok(Some(spec)),
        Err(errors) => Err(status::wrong_fields("group", errors)),
    }
}

/// What is wrong with the conditions of a rollout's waves and checks; the log takes them as they are.
#[must_use]
pub fn conditions(spec: &RolloutSpec) -> FieldErrors {
    let mut errors = FieldErrors::default();
    for (index, wave) in spec.waves.iter().enumerate() {
        let text = wave.selector.as_deref().unwrap_or_default();
        if let Err(mistake) = Expression::compile(text, Subject::Deployment) {
            errors.add(format!("waves[{index}].selector"), mistake.to_string());
        }
    }
    errors.0.extend(check_rollout(spec).0);
    errors
}

/// The same of a strategy's rollout, if it has one.
///
/// # Errors
/// Every wrong field, as `rollout.waves[1].selector`.
pub fn check_strategy(what: &str, strategy: &StrategySpec) -> Result<(), Status> {
    let mut errors = FieldErrors::default();
    if let Some(rollout) = &strategy.rollout {
        errors.nest("rollout", conditions(rollout));
    }
    errors
        .into_result()
        .map_err(|errors| status::wrong_fields(what, errors))
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

/// What people call a group: its name, else one of what it publishes and its short id.
#[must_use]
pub fn called(group: &Group) -> String {
    match &group.name {
        Some(name) => name.to_string(),
        None => format!("{}-{}-{}", group.application, group.version, group.short),
    }
}

impl Picture<'_> {
    /// Everything about a group.
    #[must_use]
    pub fn group(&self, group: &Group) -> pb::Group {
        let silent = Observed::new(self.now);
        let observed = self.observed.unwrap_or(&silent);
        let seen = view(self.state, observed, self.now, group);
        let members = seen.members.iter().enumerate();
        let members = members
            .map(|(position, member)| self.member(observed, group, position, member))
            .collect();
        pb::Group {
            members,
            ..self.shown(group, &seen)
        }
    }

    /// What a list shows of a group.
    #[must_use]
    pub fn group_summary(&self, group: &Group) -> pb::Group {
        let silent = Observed::new(self.now);
        let observed = self.observed.unwrap_or(&silent);
        self.shown(group, &view(self.state, observed, self.now, group))
    }

    fn shown(&self, group: &Group, seen: &GroupView) -> pb::Group {
        let closed = group.closed.as_ref();
        let given = group.given.as_ref();
        pb::Group {
            id: group.id.to_string(),
            short_id: group.short.to_string(),
            metadata: Some(super::metadata(&called(group), &group.meta)),
            application: group.application.to_string(),
            version: group.version.to_string(),
            status: group_status(seen.status).into(),
            outcome: seen.outcome.map_or_else(String::new, |outcome| {
                GroupOutcome::as_str(outcome).to_owned()
            }),
            reason: given.map_or_else(String::new, |given| given.reason.clone()),
            message: closed.map_or_else(String::new, |closed| closed.message.clone()),
            ended_at_ms: closed.map_or(0, |closed| closed.at.millis()),
            strategy_name: group
                .template
                .strategy
                .as_ref()
                .map(Name::to_string)
                .unwrap_or_default(),
            rollout: serde_json::to_string(&group.rollout).unwrap_or_default(),
            members: Vec::new(),
            counts: Some(counts(group, &seen.members)),
            budget: Some(budget(group, seen)),
            waves: waves(group, seen),
            begun: group.begun_at.is_some(),
            paused: group.paused.as_ref().map(|paused| pb::Hold {
                since_ms: paused.since.millis(),
                by: paused.by.to_string(),
                reason: paused.reason.clone(),
                until_ms: 0,
            }),
            halted: group.halted.as_ref().map(|halted| pb::Hold {
                since_ms: halted.since.millis(),
                by: halted.kind.clone(),
                reason: halted.message.clone(),
                until_ms: 0,
            }),
            verb: given.map_or_else(String::new, |given| {
                match given.verb {
                    GivenVerb::Cancel => "cancel",
                    GivenVerb::Rollback => "rollback",
                }
                .to_owned()
            }),
            verb_by: given.map_or_else(String::new, |given| Actor::to_string(&given.by)),
            verb_at_ms: given.map_or(0, |given| given.at.millis()),
            next_start_ms: seen.next_start.map_or(0, Timestamp::millis),
            why: seen.why.clone(),
        }
    }

    fn member(
        &self,
        observed: &Observed,
        group: &Group,
        position: usize,
        seen: &MemberView,
    ) -> pb::GroupMember {
        let member = group
            .scopes
            .get(&seen.scope)
            .and_then(|number| group.members.get(number));
        let record = self.state.deployments.get(&seen.deployment);
        let moving = record.filter(|_| is_moving(seen.status));
        let actual = moving.map(|found| acknowledged(self.state, observed, self.now, found.id));
        let back = group
            .returns
            .iter()
            .find(|(_, back)| back.scope == seen.scope);
        pb::GroupMember {
            scope: seen.scope.to_string(),
            deployment: seen.deployment.to_string(),
            short_id: seen.deployment.short().to_string(),
            status: member_status(seen.status).into(),
            position: u32::try_from(position).unwrap_or(u32::MAX),
            wave: member
                .and_then(|m| m.wave)
                .map_or_else(String::new, |wave| {
                    wave_name(group.waves.get(wave as usize).map_or("", |w| &w.name))
                }),
            wave_number: member.and_then(|m| m.wave).map_or(0, |wave| wave + 1),
            due_ms: seen.due.map_or(0, Timestamp::millis),
            why: match (seen.waiting_for.as_str(), record) {
                ("", Some(found)) => found.message.clone(),
                (line, _) => line.to_owned(),
            },
            status_since_ms: record.map_or(0, |found| found.status_since.millis()),
            outcome: seen.outcome.clone().unwrap_or_default(),
            traffic: record.map(|found| pb::Traffic {
                desired: u32::from(found.traffic.desired.basis_points()),
                actual: actual.map_or(0, |weight| u32::from(weight.basis_points())),
                observed_share: 0,
            }),
            former: member.map_or_else(Vec::new, |member| {
                member.former.iter().map(DeploymentId::to_string).collect()
            }),
            rollback: back.map_or_else(String::new, |(id, _)| id.to_string()),
            rollback_status: back.map_or(0, |(id, back)| {
                let present = self.state.deployments.get(id).map(|found| found.status);
                let told = back.ended.or(present);
                told.map_or(0, |status| member_status(status).into())
            }),
        }
    }

    /// What is in the way of a group, and of each of its members.
    #[must_use]
    pub fn group_explanation(&self, group: &Group) -> pb::GroupExplanation {
        let shown = self.group(group);
        let silent = Observed::new(self.now);
        let observed = self.observed.unwrap_or(&silent);
        let told = explain(self.state, observed, self.now, group);
        let members = told.members.iter().enumerate();
        let members = members.map(|(position, member)| pb::ExplainedMember {
            scope: member.scope.to_string(),
            deployment: member.deployment.to_string(),
            position: u32::try_from(position).unwrap_or(u32::MAX),
            status: member_status(member.status).into(),
            gate: member.gate.as_ref().map(gate),
            waiting_for: shown
                .members
                .get(position)
                .map_or_else(String::new, |row| row.why.clone()),
        });
        pb::GroupExplanation {
            gates: told.own.iter().map(gate).collect(),
            members: members.collect(),
            group: Some(shown),
        }
    }
}

/// Whether agents act on it.
const fn is_moving(status: MemberStatus) -> bool {
    match status {
        MemberStatus::Creating
        | MemberStatus::WaitingForInstances
        | MemberStatus::Running
        | MemberStatus::Finalizing
        | MemberStatus::Cancelling
        | MemberStatus::RollingBack
        | MemberStatus::Deleting => true,
        MemberStatus::CreatingApproval
        | MemberStatus::CreatingApprovalDenied
        | MemberStatus::Pending
        | MemberStatus::Finalized
        | MemberStatus::Cancelled
        | MemberStatus::RolledBack
        | MemberStatus::Failed
        | MemberStatus::Deleted => false,
    }
}

/// Members that were finalized and then returned do not count as finalized.
fn counts(group: &Group, members: &[MemberView]) -> pb::GroupCounts {
    let returned: BTreeSet<&Name> = group.returns.values().map(|back| &back.scope).collect();
    let mut counts = pb::GroupCounts {
        members: u32::try_from(members.len()).unwrap_or(u32::MAX),
        ..pb::GroupCounts::default()
    };
    for member in members {
        let slot = match member.status {
            MemberStatus::CreatingApproval | MemberStatus::Pending => &mut counts.waiting,
            MemberStatus::Finalized if returned.contains(&member.scope) => &mut counts.other_ends,
            MemberStatus::Finalized => &mut counts.finalized,
            MemberStatus::Creating
            | MemberStatus::WaitingForInstances
            | MemberStatus::Running
            | MemberStatus::Finalizing
            | MemberStatus::Cancelling
            | MemberStatus::RollingBack
            | MemberStatus::Deleting => &mut counts.under_way,
            MemberStatus::CreatingApprovalDenied
            | MemberStatus::Cancelled
            | MemberStatus::RolledBack
            | MemberStatus::Failed
            | MemberStatus::Deleted => &mut counts.other_ends,
        };
        *slot += 1;
    }
    counts
}

fn budget(group: &Group, seen: &GroupView) -> pb::GroupBudget {
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let on_breach = group.rollout.budget().unwrap_or_default().on_breach;
    let known = pb::GroupBudget {
        unlimited: seen.budget.is_none(),
        failures: seen.failures,
        executed: seen.executed,
        on_breach: on_breach.as_str().to_owned(),
        ..pb::GroupBudget::default()
    };
    match seen.budget {
        None => known,
        Some(budget) => pb::GroupBudget {
            allowed: small(budget.allowed),
            min_executed: small(budget.min_executed),
            exceeded: budget.exceeded,
            excused: budget.excused,
            ..known
        },
    }
}

/// The name of a wave; the members that none took are in the last one.
fn wave_name(name: &str) -> String {
    match name {
        "" => "the rest".to_owned(),
        name => name.to_owned(),
    }
}

fn waves(group: &Group, seen: &GroupView) -> Vec<pb::Wave> {
    use pb::wave::State;
    let bake_of = |name: &str| {
        let written = group.rollout.waves.iter();
        let written = written.clone().find(|wave| wave.name.as_str() == name);
        written.map_or(0, |wave| wave.bake.millis())
    };
    if seen.waves.is_empty() {
        let written = group.rollout.waves.iter().map(|wave| pb::Wave {
            name: wave.name.to_string(),
            state: State::ToCome.into(),
            bake_ms: wave.bake.millis(),
            ..pb::Wave::default()
        });
        return written.collect();
    }
    let state = |wave: &WaveView| match (wave.baking_until, wave.open) {
        (Some(_), _) => State::Baking,
        (None, false) => State::ToCome,
        (None, true) if wave.ended >= wave.members => State::Done,
        (None, true) => State::Current,
    };
    // What no wave took is nobody, as a rule.
    let shown = seen
        .waves
        .iter()
        .filter(|wave| !wave.name.is_empty() || wave.members > 0);
    shown
        .map(|wave| pb::Wave {
            name: wave_name(&wave.name),
            state: state(wave).into(),
            bake_ms: bake_of(&wave.name),
            until_ms: wave.baking_until.map_or(0, Timestamp::millis),
            members: wave.members,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollouts_are_checked_with_the_conditions_of_their_waves() {
        assert!(rollout("").unwrap().is_none());
        let good = r#"{"kind": "linear", "interval": "1m"}"#;
        assert!(rollout(good).unwrap().is_some());
        for (json, part) in [
            (r#"{"kind": "linear"}"#, "rollout.interval"),
            (r#"{"knd": "linear"}"#, "rollout: "),
            (
                r#"{"kind": "linear", "interval": "1m", "gate": "verified", "verification": [{"name": "a", "http": {"path": "/"}, "success": "result.stat == 1"}]}"#,
                "rollout.verification[0].success: at character 7",
            ),
            (
                r#"{"kind": "waves", "waves": [{"name": "a", "count": 1}, {"name": "b", "selector": "scope.nam == 1"}]}"#,
                "rollout.waves[1].selector: at character 6",
            ),
        ] {
            let refused = rollout(json).unwrap_err();
            assert_eq!(
                status::reason_of(&refused).as_deref(),
                Some("INVALID_FIELD")
            );
            assert!(refused.message().contains(part), "{refused}");
        }
    }
}
