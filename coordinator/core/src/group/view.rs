//! A group as people see it: every member with what it waits for, and what stands in the way of the
//! group as a whole.
//!
//! Pure, on any node that has the leader's [`Observed`]. Decides nothing.

use std::collections::BTreeMap;

use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::time::Timestamp;

use crate::deployment::phase;
use crate::observed::Observed;
use crate::plan;
use crate::plan::group::{Standing, Turn};
use crate::plan::view::View;
use crate::state::{Fate, Group, GroupMember, GroupOutcome, GroupStatus, State, Status};

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
    /// What is in the way, in one line: of the group as a whole, else of its first member that is not
    /// at an end; empty at an end.
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

/// Members whose time of start is worked out; that of later ones is not worth the look.
const MOST_DUE: usize = 1_000;

/// A group as people see it now.
pub fn view(state: &State, observed: &Observed, now: Timestamp, group: &Group) -> GroupView {
    let standing = Standing::new(state, observed, now, group);
    let mut asked = 0;
    let members: Vec<MemberView> = group
        .in_order()
        .map(|(number, member)| {
            let turn = Turn {
                standing: &standing,
                number,
            };
            let (waiting_for, due) = waits(turn, member, &mut asked);
            let found = member.state(state);
            MemberView {
                scope: member.scope.clone(),
                deployment: member.deployment,
                tries: u32::try_from(member.former.len()).unwrap_or(u32::MAX),
                status: found.status,
                outcome: member.ended.as_ref().map(|end| end.outcome.clone()),
                position: member.position,
                wave: member
                    .wave
                    .and_then(|wave| group.waves.get(wave as usize))
                    .map_or(String::new(), |wave| wave.name.clone()),
                due,
                waiting_for,
            }
        })
        .collect();
    let status = group.status(state);
    let total = group.members.len() as u64;
    let next = (!status.is_end()).then(|| plan::group::next(&standing));
    GroupView {
        status,
        outcome: group.outcome(state),
        why: if status.is_end() {
            String::new()
        } else {
            why(
                &standing,
                &members,
                next.as_ref().map(|next| next.waiting_for.as_str()),
            )
        },
        next_start: members.iter().filter_map(|member| member.due).min(),
        budget: group.budget().map(|budget| BudgetView {
            allowed: budget.max_failures.of(total),
            min_executed: budget.min_executed.of(total),
            excused: group.tally.excused,
            exceeded: group.is_over_budget(),
        }),
        failures: group.tally.failures,
        executed: group.tally.executed,
        waves: waves(&standing),
        members,
    }
}

/// What a member waits for, and when it may start.
fn waits(turn: Turn<'_>, member: &GroupMember, asked: &mut usize) -> (String, Option<Timestamp>) {
    let (state, now) = (turn.standing.state, turn.standing.now);
    let Some(deployment) = state.deployments.get(&member.deployment) else {
        return (String::new(), None);
    };
    if let Some(end) = &member.ended {
        let again = plan::retry_due(state, now, deployment);
        let line = match (end.fate, again) {
            (Fate::Undecided, Some(due)) => plan::retry_line(&due),
            (Fate::Undecided, None) => "no other try follows".to_owned(),
            (Fate::Good | Fate::Unverified | Fate::Failed | Fate::Neutral, _) => String::new(),
        };
        return (line, None);
    }
    let Some(scope) = state.scopes.get(&member.scope) else {
        return (String::new(), None);
    };
    if !phase::is_waiting(deployment.status) {
        let view = View::new(state, turn.standing.observed, now, scope, deployment);
        return (plan::next(&view).waiting_for, None);
    }
    let next = plan::waiting_next(state, now, &member.scope, scope, deployment, Some(turn));
    *asked += 1;
    let due = if *asked <= MOST_DUE && turn.standing.stopped().is_none() {
        turn.due(deployment)
    } else {
        None
    };
    (next.waiting_for, due)
}

/// The first thing in the way: what stops the group, what its waves wait for, else what the first
/// member in the order does that is not at an end.
fn why(standing: &Standing<'_>, members: &[MemberView], group: Option<&str>) -> String {
    if let Some(stopped) = standing.stopped() {
        return stopped.why.clone();
    }
    let first = members.iter().find(|member| !member.waiting_for.is_empty());
    let first = first.map(|member| format!("{}: {}", member.scope, member.waiting_for));
    match (group, first) {
        (Some(group), Some(first)) if !group.is_empty() => format!("{group}; {first}"),
        (_, Some(first)) => first,
        (Some(group), None) if !group.is_empty() => group.to_owned(),
        (_, None) => "every member is at an end".to_owned(),
    }
}

fn waves(standing: &Standing<'_>) -> Vec<WaveView> {
    let group = standing.group;
    let mut ended: BTreeMap<u32, u32> = BTreeMap::new();
    for member in group.members.values().filter(|member| member.is_over()) {
        if let Some(wave) = member.wave {
            *ended.entry(wave).or_default() += 1;
        }
    }
    let waves = (0_u32..).zip(&group.waves);
    let views = waves.map(|(index, wave)| {
        let next = standing.settled(index + 1);
        WaveView {
            name: wave.name.clone(),
            members: wave.members,
            ended: ended.get(&index).copied().unwrap_or(0),
            open: wave.opened_at.is_some(),
            baking_until: next.filter(|at| index == group.open_wave && *at > standing.now),
        }
    });
    views.collect()
}
