//! When a deployment that waits was to start at first, as far as time alone says: what the deadline of
//! `PENDING` is counted from (product.md §2).
//!
//! It must not move while the deployment waits, or the wait would never end: it is the first opening after
//! the entry, not the next one.

use tidegate_shared::time::{Span, Timestamp};

use crate::group::open_time::Openings;
use crate::policy::Verdict;
use crate::policy::clock::{Clock, clock};
use crate::policy::rules::{self, Told};
use crate::state::{Deployment, State};

/// See the module; none: nobody knows, or its gates are not about time.
pub(super) fn first_start(
    state: &State,
    deployment: &Deployment,
    now: Timestamp,
) -> Option<Timestamp> {
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
