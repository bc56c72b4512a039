//! A group as people see it: every member with what it waits for, and what stands in the way of the
//! group as a whole.
//!
//! Pure, on any node that has the leader's [`Observed`]. Decides nothing.

use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::time::Timestamp;

use crate::observed::Observed;
use crate::state::{Group, GroupOutcome, GroupStatus, State, Status};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupView {
    /// Where it is.
    pub status: GroupStatus,
    /// How it fared; only of one that is `FINALIZED`.
    pub outcome: Option<GroupOutcome>,
    /// In the order in which they start; as listed, as long as that is not fixed.
    pub members: Vec<MemberView>,
    /// None: any number may fail.
    pub budget: Option<BudgetView>,
    /// Failures so far, the budget aside.
    pub failures: u32,
    /// Members that were finalized or failed so far.
    pub executed: u32,
    /// In order; empty for kinds without waves.
    pub waves: Vec<WaveView>,
    /// When the next member may start, as far as that is known.
    pub next_start: Option<Timestamp>,
    /// The first thing in the way, in one line; empty at an end.
    pub why: String,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// Where.
    pub scope: Name,
    /// Its present deployment.
    pub deployment: DeploymentId,
    /// Tries before it.
    pub tries: u32,
    /// Where it is, or how it ended.
    pub status: Status,
    /// Its label, once it has ended.
    pub outcome: Option<String>,
    /// From 0; none before the rollout begins.
    pub position: Option<u32>,
    /// Name of its wave; empty: there is none.
    pub wave: String,
    /// When it may start at the earliest, as far as that is known; none once it has started.
    pub due: Option<Timestamp>,
    /// What it waits for, in one line; empty at an end.
    pub waiting_for: String,
}

/// The failure budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetView {
    /// More failures than these exceed it.
    pub allowed: u64,
    /// It is not judged before so many members were executed.
    pub min_executed: u64,
    /// Failures that people have let pass.
    pub excused: u32,
    /// Nobody starts any more.
    pub exceeded: bool,
}

/// One wave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaveView {
    /// Its name; empty for what no wave took.
    pub name: String,
    /// How many members it has.
    pub members: u32,
    /// How many of them are at an end.
    pub ended: u32,
    /// Its members may start, or have started.
    pub open: bool,
    /// It is done, and the next one waits until then.
    pub baking_until: Option<Timestamp>,
}

/// A group as people see it now.
pub fn view(state: &State, _observed: &Observed, _now: Timestamp, group: &Group) -> GroupView {
    let members = group.in_order().map(|(_, member)| {
        let now = member.state(state);
        MemberView {
            scope: member.scope.clone(),
            deployment: member.deployment,
            tries: u32::try_from(member.former.len()).unwrap_or(u32::MAX),
            status: now.status,
            outcome: member.ended.as_ref().map(|end| end.outcome.clone()),
            position: member.position,
            wave: member
                .wave
                .map_or(String::new(), |wave| super::wave_name(group, wave)),
            due: None,
            waiting_for: String::new(),
        }
    });
    GroupView {
        status: group.status(state),
        outcome: group.outcome(state),
        members: members.collect(),
        budget: group.budget().map(|budget| BudgetView {
            allowed: budget.max_failures.of(group.members.len() as u64),
            min_executed: budget.min_executed.of(group.members.len() as u64),
            excused: group.tally.excused,
            exceeded: group.is_over_budget(),
        }),
        failures: group.tally.failures,
        executed: group.tally.executed,
        waves: Vec::new(),
        next_start: None,
        why: String::new(),
    }
}
