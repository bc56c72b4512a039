//! Why is this waiting? The planner's own evaluators, told to a person; what API and CLI show.
//!
//! Pure, on any node that has the leader's [`Observed`]. Decides nothing.

use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::spec::Hold;
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::verdict::threshold::Evidence;
use tidegate_shared::weight::Weight;

use crate::deployment::{phase, steps};
use crate::observed::{Observed, healthy};
use crate::plan::group::{Standing, Turn};
use crate::plan::view::{Participant, View};
use crate::plan::{self, sooner};
pub use crate::plan::{Gate, GateAnswer};
use crate::state::{Deployment, Scope, State, Status};
use crate::strategy::{self, PlannedStep};
use crate::verification::{CheckView, look};

/// What a deployment waits for, and how far it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Explanation {
    /// Everything that must allow the start, in order; empty once it has started.
    pub gates: Vec<Gate>,
    /// One line; empty only for a deployment that has ended and is not tried again.
    pub waiting_for: String,
    /// When the present state ends by itself.
    pub deadline: Option<Timestamp>,
    /// Steps of traffic, or batches.
    pub steps: Vec<StepView>,
    /// The share of the new version that is acknowledged, the worst agent counting.
    pub actual: Weight,
    /// In order of name.
    pub participants: Vec<ParticipantView>,
    /// What the rules say now; empty before `RUNNING` and after `FINALIZING`.
    pub verdicts: Vec<Evidence>,
    /// The checks of the present moment.
    pub checks: Vec<CheckView>,
    /// When the planner looks again without news.
    pub next_wakeup: Option<Timestamp>,
}

/// One step or batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepView {
    /// Share of the new version.
    pub weight: Weight,
    /// How long it stays; none: a person ends it.
    pub hold: Option<Span>,
    /// Where the deployment is with it.
    pub state: StepState,
    /// When its weight was wished; only of the present one.
    pub started_at: Option<Timestamp>,
    /// When its hold ends if nothing stops it; only of the present one, once it is reached.
    pub ends_at: Option<Timestamp>,
}

/// Where a deployment is with a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepState {
    /// Later.
    ToCome,
    /// Now.
    Current,
    /// Over, or skipped.
    Done,
}

/// One participant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParticipantView {
    /// The agent.
    pub agent: Name,
    /// Nothing was heard of it for too long: the rest is what it said last.
    pub lost: bool,
    /// Instances that should be up.
    pub wanted: u32,
    /// Instances that are found healthy.
    pub healthy: u32,
    /// The release is unpacked there.
    pub staged: bool,
    /// What its data plane holds for the new version; none: not known.
    pub weight: Option<Weight>,
    /// Requests under way on the new version.
    pub open_requests: u64,
    /// What is wrong there; empty: nothing that is known.
    pub error: String,
}

/// Explains one deployment; nothing for an id that is not there.
pub fn explain(
    state: &State,
    observed: &Observed,
    now: Timestamp,
    deployment: DeploymentId,
) -> Explanation {
    let Some(record) = state.deployments.get(&deployment) else {
        return Explanation::default();
    };
    let name = &record.origin.scope;
    let Some(scope) = state.scopes.get(name) else {
        return Explanation::default();
    };
    let view = View::new(state, observed, now, scope, record);
    let waits = phase::is_waiting(record.status);
    let member = state.membership(record).filter(|_| waits);
    let standing = member.map(|(group, _)| Standing::new(state, observed, now, group));
    let turn = standing.as_ref().zip(member);
    let turn = turn.map(|(standing, (_, number))| Turn { standing, number });
    let next = if waits {
        plan::waiting_next(state, now, name, scope, record, turn)
    } else {
        plan::next(&view)
    };
    let again = plan::retry_due(state, now, record);
    let judged = match record.status {
        Status::Running | Status::Finalizing => observed.telemetry.judge(record, now),
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Finalized
        | Status::Cancelling
        | Status::Cancelled
        | Status::RollingBack
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => Vec::new(),
    };
    let deadline = match waits {
        true => plan::waiting_deadline(state, now, record, turn),
        false => plan::ends_at(&view),
    };
    Explanation {
        gates: if waits {
            plan::gates(state, now, name, scope, record, turn)
        } else {
            Vec::new()
        },
        waiting_for: match &again {
            Some(due) => plan::retry_line(due),
            None => plan::retry_refusal(state, now, record).unwrap_or(next.waiting_for),
        },
        deadline,
        steps: step_views(record, scope),
        actual: view.actual(),
        participants: view.participants.iter().map(participant).collect(),
        verdicts: judged,
        checks: look(&view),
        next_wakeup: sooner(
            sooner(next.wake, deadline.filter(|at| *at > now)),
            again.map(|due| due.at).filter(|at| *at > now),
        ),
    }
}

fn participant(participant: &Participant<'_>) -> ParticipantView {
    let place = participant.place;
    ParticipantView {
        agent: participant.name.clone(),
        lost: participant.lost,
        wanted: participant.wanted(),
        healthy: place.map_or(0, healthy),
        staged: place.is_some_and(|place| place.staged),
        weight: place.and_then(|place| place.weight),
        open_requests: place.map_or(0, |place| place.open_requests),
        error: participant.trouble().unwrap_or_default(),
    }
}

fn step_views(deployment: &Deployment, scope: &Scope) -> Vec<StepView> {
    let planned = strategy::steps(deployment, scope);
    let progress = deployment.traffic.step;
    let over = match deployment.status {
        Status::Finalizing | Status::Finalized | Status::Deleting | Status::Deleted => true,
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::Cancelling
        | Status::Cancelled
        | Status::RollingBack
        | Status::RolledBack
        | Status::Failed => false,
    };
    let view = |(position, step): (usize, PlannedStep)| {
        let at = progress.map(|progress| progress.index as usize);
        let state = match at {
            _ if over => StepState::Done,
            Some(at) if position < at => StepState::Done,
            Some(at) if position == at => StepState::Current,
            Some(_) | None => StepState::ToCome,
        };
        let current = progress.filter(|_| state == StepState::Current);
        let hold = match step.hold {
            Hold::For(hold) => Some(hold),
            Hold::Manual => None,
        };
        let reached = current.and_then(|_| steps::reached_less_stops(deployment));
        StepView {
            weight: step.weight,
            hold,
            state,
            started_at: current.map(|progress| progress.started_at),
            ends_at: reached.and_then(|reached| hold.map(|hold| reached + hold)),
        }
    };
    planned.into_iter().enumerate().map(view).collect()
}
