//! The only table of transitions: which status leads to which, which verb and which action is
//! allowed where, and when the present state's deadline falls (product.md §2).
//!
//! No policy and no observation is looked at here. `apply` refuses by these tables, `plan` asks
//! them when to wake up, the API shows them.

use tidegate_shared::spec::{FinalizeMode, Hold, OnStall};
use tidegate_shared::time::{Span, Timestamp};

use super::{checks, steps};
use crate::command::{Action, Verb};
use crate::state::{Deployment, Status};

/// The word of a halt by a freeze, which ends by itself: `halt_max` does not run meanwhile.
pub const FREEZE: &str = "freeze";
/// No freeze is longer.
pub const FREEZE_MAX: Span = Span::from_days(366);

/// The statuses that a status can lead to.
pub const fn leads_to(status: Status) -> &'static [Status] {
    match status {
        Status::CreatingApproval => &[
            Status::Pending,
            Status::CreatingApprovalDenied,
            Status::Cancelled,
        ],
        Status::Pending => &[
            Status::Creating,
            Status::Cancelled,
            Status::CreatingApproval,
            Status::CreatingApprovalDenied,
        ],
        Status::Creating => &[
            Status::WaitingForInstances,
            Status::Cancelling,
            Status::Failed,
        ],
        Status::WaitingForInstances => &[
            Status::Running,
            Status::Cancelling,
            Status::RollingBack,
            Status::Failed,
        ],
        Status::Running => &[
            Status::Finalizing,
            Status::Cancelling,
            Status::RollingBack,
            Status::Failed,
        ],
        Status::Finalizing => &[Status::Finalized],
        Status::Finalized => &[Status::Deleting],
        Status::Cancelling => &[Status::Cancelled, Status::RolledBack, Status::Failed],
        Status::RollingBack => &[Status::RolledBack, Status::Failed],
        Status::Deleting => &[Status::Deleted],
        Status::CreatingApprovalDenied
        | Status::Cancelled
        | Status::RolledBack
        | Status::Failed
        | Status::Deleted => &[],
    }
}

/// Whether a deployment before `CREATING`: nothing of it exists anywhere yet.
pub const fn is_waiting(status: Status) -> bool {
    matches!(status, Status::CreatingApproval | Status::Pending)
}

/// Whether a deployment holds its scope: from `CREATING` until its end.
pub const fn is_under_way(status: Status) -> bool {
    matches!(
        status,
        Status::Creating
            | Status::WaitingForInstances
            | Status::Running
            | Status::Finalizing
            | Status::Cancelling
            | Status::RollingBack
    )
}

/// Whether a deployment is on its way back already.
const fn turns_back(status: Status) -> bool {
    matches!(status, Status::Cancelling | Status::RollingBack)
}

/// What a status answers to a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It acts, if what else the verb needs is there (a version to return to, a last step …).
    Acts,
    /// Accepted, and nothing changes.
    NoChange,
    /// Refused.
    Refused,
}

/// What a status answers to a verb.
pub const fn verb(status: Status, verb: &Verb) -> Answer {
    let acts = match verb {
        Verb::Pause | Verb::Resume => matches!(
            status,
            Status::Pending | Status::Creating | Status::WaitingForInstances | Status::Running
        ),
        Verb::Promote | Verb::PromoteFull | Verb::Traffic(_) | Verb::Finalize => {
            matches!(status, Status::Running)
        }
        Verb::Cancel => matches!(
            status,
            Status::CreatingApproval
                | Status::Pending
                | Status::Creating
                | Status::WaitingForInstances
                | Status::Running
                | Status::Finalizing
        ),
        Verb::Rollback => matches!(
            status,
            Status::Creating
                | Status::WaitingForInstances
                | Status::Running
                | Status::Finalizing
                | Status::Finalized
        ),
        Verb::Retry => matches!(
            status,
            Status::CreatingApprovalDenied
                | Status::Cancelled
                | Status::RolledBack
                | Status::Failed
        ),
    };
    if acts {
        Answer::Acts
    } else if turns_back(status) && matches!(verb, Verb::Cancel | Verb::Rollback) {
        Answer::NoChange
    } else {
        Answer::Refused
    }
}

/// Whether a status takes an action of the planner.
pub const fn action(status: Status, action: &Action) -> bool {
    match action {
        Action::RequireApproval { .. } | Action::Deny { .. } => is_waiting(status),
        Action::ApprovalSatisfied | Action::ApprovalDenied { .. } => {
            matches!(status, Status::CreatingApproval)
        }
        Action::Start { .. } => matches!(status, Status::Pending),
        Action::Staged => matches!(status, Status::Creating),
        Action::InstancesReady => matches!(status, Status::WaitingForInstances),
        Action::Progress { .. } => {
            turns_back(status) || matches!(status, Status::WaitingForInstances)
        }
        Action::StepReached
        | Action::StepDone { .. }
        | Action::Finalize { .. }
        | Action::Halt { .. }
        | Action::Unhalt => matches!(status, Status::Running),
        Action::BatchDone => turns_back(status) || matches!(status, Status::Running),
        Action::Drained | Action::Settled { .. } => {
            turns_back(status) || matches!(status, Status::Finalizing | Status::Deleting)
        }
        Action::TakeBack { .. } => matches!(
            status,
            Status::Creating | Status::WaitingForInstances | Status::Running | Status::Finalizing
        ),
        Action::Expire { .. } => {
            is_waiting(status)
                || turns_back(status)
                || matches!(
                    status,
                    Status::Creating | Status::Finalizing | Status::Deleting
                )
        }
        Action::MarkLost { .. } | Action::NoteErrors { .. } => {
            is_under_way(status) || matches!(status, Status::Deleting)
        }
        Action::NoteChecks { .. } => matches!(status, Status::Running),
        Action::NoteEvidence { .. } => matches!(status, Status::Running | Status::Finalizing),
        Action::Retry { .. } => matches!(status, Status::Failed),
        Action::LeftoversGone { .. } => matches!(
            status,
            Status::Finalized
                | Status::Cancelled
                | Status::RolledBack
                | Status::Failed
                | Status::Deleted
        ),
    }
}

/// When the present state ends by itself, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// At this time.
    pub at: Timestamp,
    /// By this move.
    pub expiry: Expiry,
}

/// The move that a deadline declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// `Action::Expire`.
    Expire,
    /// `Action::TakeBack` with a cause of this kind.
    TakeBack(&'static str),
    /// `Action::Finalize`.
    Finalize,
    /// `Action::Halt` with a cause of this kind.
    Halt(&'static str),
}

/// When the present state's deadline falls, pauses and halts not counted; none at an end.
pub fn deadline(deployment: &Deployment) -> Option<Timestamp> {
    due(deployment).map(|deadline| deadline.at)
}

/// The present state's deadline with its declared outcome; none at an end.
pub fn due(deployment: &Deployment) -> Option<Deadline> {
    let limits = &deployment.origin.strategy.deadlines;
    let since = deployment.clock_since;
    let expire = |at| {
        Some(Deadline {
            at,
            expiry: Expiry::Expire,
        })
    };
    let paused = deployment
        .paused
        .as_ref()
        .map(|paused| paused.since + limits.pause_max);
    match deployment.status {
        Status::CreatingApproval => {
            let own = since + limits.approval;
            let asked = deployment.required.as_ref().map(|r| r.expires_at);
            expire(asked.map_or(own, |asked| asked.min(own)))
        }
        Status::Pending => expire(paused.unwrap_or(since + limits.pending)),
        Status::Creating => expire(paused.unwrap_or(since + limits.staging)),
        Status::WaitingForInstances => Some(match paused {
            Some(at) => Deadline {
                at,
                expiry: Expiry::TakeBack("pause_max"),
            },
            None => Deadline {
                at: since + limits.progress,
                expiry: Expiry::TakeBack("progress_deadline"),
            },
        }),
        Status::Running => Some(running(deployment)),
        Status::Finalizing => expire(since + limits.finalizing),
        Status::Cancelling | Status::RollingBack => expire(since + limits.returning),
        Status::Deleting => expire(since + limits.deleting),
        Status::CreatingApprovalDenied
        | Status::Finalized
        | Status::Cancelled
        | Status::RolledBack
        | Status::Failed
        | Status::Deleted => None,
    }
}

/// `RUNNING`: a pause, a halt, a hold that waits for a person and a manual finalize each have a
/// limit of their own; otherwise it stalls some time past its planned end.
fn running(deployment: &Deployment) -> Deadline {
    let strategy = &deployment.origin.strategy;
    let limits = &strategy.deadlines;
    let pause = deployment.paused.as_ref().map(|paused| Deadline {
        at: paused.since + limits.pause_max,
        expiry: Expiry::TakeBack("pause_max"),
    });
    let halt = deployment.halted.as_ref().map(|halted| Deadline {
        at: halted.since
            + match halted.kind.as_str() {
                FREEZE => FREEZE_MAX,
                _ => limits.halt_max,
            },
        expiry: Expiry::TakeBack("halt_max"),
    });
    if let Some(stopped) = pause.into_iter().chain(halt).min_by_key(|stop| stop.at) {
        return stopped;
    }
    if let Some(reached) = steps::reached_less_stops(deployment) {
        match steps::hold(deployment) {
            Hold::Manual => {
                return Deadline {
                    at: reached + limits.pause_max,
                    expiry: Expiry::TakeBack("pause_max"),
                };
            }
            Hold::For(hold)
                if steps::at_last(deployment)
                    && steps::finalize_mode(deployment) == FinalizeMode::Manual =>
            {
                return Deadline {
                    at: reached + hold + steps::bake(deployment) + limits.finalize_max,
                    expiry: Expiry::Finalize,
                };
            }
            Hold::For(_) => {}
        }
    }
    Deadline {
        at: planned_end(deployment) + limits.stall,
        expiry: match strategy.on_stall {
            OnStall::Rollback => Expiry::TakeBack("stall"),
            OnStall::Finalize => Expiry::Finalize,
            OnStall::Halt => Expiry::Halt("stall"),
        },
    }
}

/// `RUNNING`: when it would be over if every step from the present one on went as planned. Holds
/// that wait for a person count nothing; the wait for evidence and checks at the present step counts.
pub fn planned_end(deployment: &Deployment) -> Timestamp {
    deployment.clock_since
        + steps::evidence_wait(deployment).max(checks::extra(deployment))
        + steps::remaining(deployment)
        + steps::bake(deployment)
}

/// Moves a record to another status: the clock begins anew and the time so far is counted.
///
/// # Errors
/// The table does not lead there: the statuses, for the caller's refusal.
pub fn enter(
    deployment: &mut Deployment,
    to: Status,
    at: Timestamp,
) -> Result<(), (Status, Status)> {
    let from = deployment.status;
    if !leads_to(from).contains(&to) {
        return Err((from, to));
    }
    count_time(deployment, at);
    deployment.status = to;
    deployment.status_since = at;
    deployment.clock_since = at;
    deployment.counted_to = at;
    deployment.fewest_outstanding = None;
    deployment.drained = false;
    Ok(())
}

/// Counts the time since it was last counted as moving, as a person's pause, or as waiting.
pub fn count_time(deployment: &mut Deployment, at: Timestamp) {
    let from = deployment.counted_to;
    let span = at.since(from);
    deployment.counted_to = from.max(at);
    let status = deployment.status;
    if status.is_end() {
        return;
    }
    let waits_for_person = if deployment.paused.is_some() || deployment.halted.is_some() {
        span
    } else if status == Status::Running {
        steps::waits_for_person_since(deployment)
            .map_or(Span::ZERO, |since| at.since(since.max(from)))
    } else {
        Span::ZERO
    };
    let rest = span.saturating_sub(waits_for_person);
    let durations = &mut deployment.durations;
    durations.manual_pause = durations.manual_pause + waits_for_person;
    if is_waiting(status) {
        durations.waiting = durations.waiting + rest;
    } else {
        durations.progression = durations.progression + rest;
    }
}

/// Since when a person, or something else, has stopped the clock; none: it runs.
pub fn stopped_since(deployment: &Deployment) -> Option<Timestamp> {
    let paused = deployment.paused.as_ref().map(|paused| paused.since);
    let halted = deployment.halted.as_ref().map(|halted| halted.since);
    paused.into_iter().chain(halted).min()
}

/// Lifts a person's pause, what halted it, or both: the clock goes on where it stood.
pub fn lift(deployment: &mut Deployment, pause: bool, halt: bool, at: Timestamp) {
    let Some(before) = stopped_since(deployment) else {
        return;
    };
    count_time(deployment, at);
    if pause {
        deployment.paused = None;
    }
    let mut stalled = false;
    if halt {
        stalled = deployment
            .halted
            .take()
            .is_some_and(|halted| halted.kind == "stall");
    }
    let after = stopped_since(deployment).unwrap_or(at);
    deployment.clock_since = deployment.clock_since + after.since(before);
    if stalled {
        // Its time was up; whoever lets it go on gives it the whole time again.
        deployment.clock_since = deployment.clock_since.max(at);
    }
    if let Some(step) = &mut deployment.traffic.step
        && let Some(reached) = step.reached_at
    {
        step.not_counted = step.not_counted + after.since(before.max(reached));
    }
}
