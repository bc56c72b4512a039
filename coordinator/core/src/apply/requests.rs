//! Requests are done at most once: what each came to is remembered and answered again.
//!
//! A client's id is remembered for 24 h after it was minted and refused afterwards. The planner's
//! are exempt from age; their good outcomes are remembered for ten minutes, after which the
//! revision that they carry is long gone; of very many only the newest, because a move that comes
//! again after so many others is stale by its revision anyway. Its refusals are not remembered: what
//! stood in the way may go while the deployment stays as it is.

use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::time::Span;

use crate::command::{Item, Outcome, RequestKey};
use crate::event::canonical_digest;
use crate::rejection::Rejection;
use crate::state::{PACKED_LEVEL, Remembered, State};

/// A client's id older than this is refused.
const CLIENT_MEMORY: Span = Span::from_hours(24);

/// A client's id may be this far ahead of the cluster's time.
const AHEAD: Span = Span::from_hours(1);

/// The planner's good outcomes.
const PLANNER_MEMORY: Span = Span::from_mins(10);

/// From [`PACKED_LEVEL`] on no more of the planner's good outcomes are remembered.
const PLANNER_MOST: usize = 10_000;

/// At most this many are forgotten for each new one, so that an entry's work is bounded.
const FORGET_PER_ITEM: usize = 4;

/// What is known of a request.
pub(super) enum Recall {
    /// It was done: this is what it came to.
    Known(Outcome),
    /// Its id cannot be accepted.
    Refused(Rejection),
    /// It is new; the digest of its command.
    New(Digest),
}

/// Looks a request up.
pub(super) fn recall(state: &State, item: &Item) -> Recall {
    let digest = canonical_digest(&item.command);
    if let RequestKey::Client(id) = item.request {
        let minted = id.minted_at();
        if minted + CLIENT_MEMORY < state.at {
            return Recall::Refused(Rejection::new(
                Reason::TooOld,
                format!(
                    "request {id} was made at {minted}, more than 24 h before now ({})",
                    state.at
                ),
            ));
        }
        if minted > state.at + AHEAD {
            return Recall::Refused(Rejection::new(
                Reason::FromTheFuture,
                format!(
                    "request {id} is dated {minted}, more than 1 h after the cluster's time ({})",
                    state.at
                ),
            ));
        }
    }
    match state.requests.get(&item.request) {
        None => Recall::New(digest),
        // The planner's key says all that matters; words and figures beside it may differ.
        Some(known)
            if known.command == digest || matches!(item.request, RequestKey::Planner(_)) =>
        {
            Recall::Known(known.outcome.clone())
        }
        Some(known) => Recall::Refused(Rejection::new(
            Reason::RequestIdReused,
            format!(
                "this request id was used at {} for another command",
                known.at
            ),
        )),
    }
}

/// Keeps what a request came to.
pub(super) fn remember(
    state: &mut State,
    position: (u64, u32),
    item: &Item,
    command: Digest,
    outcome: &Outcome,
) {
    match item.request {
        RequestKey::Client(_) => {}
        RequestKey::Planner(_) if outcome.is_ok() => {
            state.planner_requests.insert(position, item.request);
        }
        RequestKey::Planner(_) => return,
    }
    let remembered = Remembered {
        at: state.at,
        command,
        outcome: outcome.clone(),
    };
    state.requests.insert(item.request, remembered);
}

/// Forgets what is out of date, a bounded number for each new request.
pub(super) fn forget(state: &mut State, items: usize) {
    let budget = items.max(1).saturating_mul(FORGET_PER_ITEM);
    for _ in 0..budget {
        // Clients' keys come first in the table, the oldest first.
        match state.requests.get_min() {
            Some((RequestKey::Client(id), _)) if id.minted_at() + CLIENT_MEMORY < state.at => {
                let key = RequestKey::Client(*id);
                state.requests.remove(&key);
            }
            Some(_) | None => break,
        }
    }
    let most = match state.is_at(PACKED_LEVEL) {
        true => PLANNER_MOST,
        false => usize::MAX,
    };
    for _ in 0..budget {
        let Some((position, key)) = state.planner_requests.get_min().copied() else {
            break;
        };
        let beyond = state.planner_requests.len() > most;
        let old = beyond
            || state
                .requests
                .get(&key)
                .is_none_or(|known| known.at + PLANNER_MEMORY < state.at);
        if !old {
            break;
        }
        state.planner_requests.remove(&position);
        state.requests.remove(&key);
    }
}
