//! When a deployment that waits ends by itself, and when it was to start at first, as far as time alone
//! says: what the deadline of `PENDING` is counted from (product.md §2).
//!
//! The planned start must not move while the deployment waits, or the wait would never end: it is the
//! first opening after the entry, not the next one.

use tidegate_shared::time::{Span, Timestamp};

use super::group::Turn;
use crate::deployment::phase;
use crate::group::open_time::Openings;
use crate::policy::Verdict;
use crate::policy::clock::{Clock, clock};
use crate::policy::rules::{self, Told};
use crate::state::{Deployment, State, Status};

/// How far a deadline is worked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exact {
    /// No later than the true one, which costs more: that is asked for when this one has come.
    AtTheEnd,
    /// For people.
    Yes,
}

/// When it ends by itself, as people are told.
pub(crate) fn told_deadline(
    state: &State,
    now: Timestamp,
    deployment: &Deployment,
    turn: Option<Turn<'_>>,
) -> Option<Timestamp> {
    deadline(state, now, deployment, turn, Exact::Yes)
}

/// When it ends by itself: from its planned start on it has its time. None: its turn waits for others,
/// which have deadlines of their own.
pub(super) fn deadline(
    state: &State,
    now: Timestamp,
    deployment: &Deployment,
    turn: Option<Turn<'_>>,
    exact: Exact,
) -> Option<Timestamp> {
    let own = phase::deadline(deployment)?;
    if deployment.paused.is_some() {
        return Some(own);
    }
    let limits = &deployment.origin.strategy.deadlines;
    match (deployment.status, turn) {
        (Status::CreatingApproval, Some(turn)) => {
            let asked = deployment.required.as_ref().map(|asked| asked.expires_at);
            let late = turn.standing.group.planned_start(turn.number) + limits.approval;
            Some(asked.map_or(own, |asked| asked.min(own.max(late))))
        }
        (Status::Pending, Some(turn)) => {
            // The halt of a group has a limit of its own.
            if turn.standing.group.halted.is_some() {
                return None;
            }
            let exact = exact == Exact::Yes;
            let planned = turn.standing.planned(turn.number, deployment, exact)?;
            Some(own.max(planned + limits.pending))
        }
        (Status::Pending, None) if exact == Exact::Yes || own <= now => {
            let planned = first_start(state, deployment, now);
            Some(planned.map_or(own, |planned| own.max(planned + limits.pending)))
        }
        (
            Status::CreatingApproval
            | Status::Pending
            | Status::CreatingApprovalDenied
            | Status::Creating
            | Status::WaitingForInstances
            | Status::Running
            | Status::Finalizing
            | Status::Finalized
            | Status::Cancelling
            | Status::Cancelled
            | Status::RollingBack
            | Status::RolledBack
            | Status::Failed
            | Status::Deleting
            | Status::Deleted,
            _,
        ) => Some(own),
    }
}

/// See the module; none: nobody knows, or its gates are not about time.
fn first_start(state: &State, deployment: &Deployment, now: Timestamp) -> Option<Timestamp> {
    let nothing = state.policies.is_empty() && state.freezes.is_empty();
    if deployment.origin.fast || nothing && state.past_freezes.is_empty() {
        return None;
    }
    let since = deployment.clock_since;
    first_opening(
        state,
        deployment,
        &clock(state, deployment, since, now),
        (since, now),
    )
}

/// The first instant from `since` on at which progressions and cooldowns are over and everything of the
/// clock is open.
pub(super) fn first_opening(
    state: &State,
    deployment: &Deployment,
    clock: &Clock,
    (since, now): (Timestamp, Timestamp),
) -> Option<Timestamp> {
    let mut base = since.max(clock.skipped_at.unwrap_or(since));
    for told in rules::answers(state, deployment, now) {
        if matches!(told.kind, "progression" | "cooldown") {
            base = base.max(satisfied(&told, since)?);
        }
    }
    let open = Openings {
        windows: &clock.windows,
        stops: &clock.stops,
    };
    open.reach(base, Span::ZERO)
}

/// Since when a rule allows, or when it will by itself.
fn satisfied(told: &Told, since: Timestamp) -> Option<Timestamp> {
    match &told.answer.verdict {
        Verdict::Allowed => Some(told.answer.satisfied_at.unwrap_or(since)),
        Verdict::Pending { until, .. } => *until,
        Verdict::Denied => None,
    }
}
