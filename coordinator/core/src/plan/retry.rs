//! Another try for a deployment that failed before any traffic moved (product.md §5.11): whether one
//! follows, and when.
//!
//! All matching rules must allow: the fewest tries count, and the longest pause.

use tidegate_shared::spec::{ReleaseStatus, RetryOn};
use tidegate_shared::time::Timestamp;

use super::Next;
use crate::command::Action;
use crate::group::status::fate;
use crate::policy::retry::{Ended, next_try};
use crate::policy::{guardrail, rules, subject};
use crate::state::{Deployment, Fate, ScopeStatus, State, Status};

/// Another try.
pub(crate) struct Due {
    /// When it is made.
    pub(crate) at: Timestamp,
    /// By which rule, and which one it is.
    pub(crate) why: String,
    /// The release is not ready: it waits for that.
    pub(crate) held: bool,
    /// A guardrail does not let it be made: it never is.
    refused: Option<String>,
}

/// Whether some policy asks for further tries at all.
pub(crate) fn is_asked_for(state: &State) -> bool {
    let mut policies = state.policies.values();
    policies.any(|policy| policy.spec.enabled && policy.spec.retry.is_some())
}

/// The next try of a deployment that ended; none: there is none.
pub(crate) fn due(state: &State, now: Timestamp, deployment: &Deployment) -> Option<Due> {
    next_of(state, now, deployment).filter(|due| due.refused.is_none())
}

/// What people are told of a try that a rule asks for and a guardrail does not let be made.
pub(crate) fn refusal(state: &State, now: Timestamp, deployment: &Deployment) -> Option<String> {
    let due = next_of(state, now, deployment)?;
    due.refused
        .map(|why| format!("{}: not made: {why}", due.why))
}

fn next_of(state: &State, now: Timestamp, deployment: &Deployment) -> Option<Due> {
    let ended_at = deployment.ended_at?;
    let failed = deployment.status == Status::Failed && fate(deployment) == Fate::Undecided;
    if !failed || deployment.origin.fast || !is_last_word(state, deployment) {
        return None;
    }
    let ended = Ended {
        at: ended_at,
        failed,
        got_traffic: deployment.traffic.got_traffic,
        retries: deployment.tries,
    };
    let mut facts = None;
    let mut found: Option<Due> = None;
    for (name, policy) in &state.policies {
        let Some(rule) = policy.spec.retry.as_ref().filter(|_| policy.spec.enabled) else {
            continue;
        };
        let facts = facts.get_or_insert_with(|| subject::facts(state, deployment, now));
        let about = rule.on.contains(&RetryOn::Failed)
            && rules::matches(&policy.spec, facts).unwrap_or(false);
        if !about {
            continue;
        }
        let at = next_try(rule, ended)?;
        if found.as_ref().is_none_or(|found| found.at < at) {
            let why = format!(
                "policy {name}/retry: try {} of {} more",
                deployment.tries + 1,
                rule.max
            );
            found = Some(Due {
                at,
                why,
                held: false,
                refused: None,
            });
        }
    }
    let mut found = found?;
    let origin = &deployment.origin;
    let key = (origin.application.clone(), origin.version.clone());
    match state.releases.get(&key).map(|release| release.status) {
        Some(ReleaseStatus::Ready) => {}
        Some(ReleaseStatus::Building | ReleaseStatus::Paused) => found.held = true,
        Some(ReleaseStatus::Rejected | ReleaseStatus::Collected) | None => return None,
    }
    // A try that never may be made is none.
    let limit = found.at + origin.strategy.deadlines.pending;
    if now >= limit {
        return None;
    }
    // It is made of the same snapshot. Asked of the instant at which it is due, so that the answer does
    // not hang on when the planner looks.
    let refused = guardrail::check_all(state, deployment, found.at);
    found.refused = refused.err().map(|refused| refused.message);
    Some(found)
}

/// Whether nobody wanted anything else of its scope since, nor takes its group back.
fn is_last_word(state: &State, deployment: &Deployment) -> bool {
    let name = &deployment.origin.scope;
    let Some(scope) = state.scopes.get(name) else {
        return false;
    };
    let newest = state.history_of(name).next_back();
    let group = deployment.group.and_then(|id| state.groups.get(&id));
    let stays = match scope.status {
        ScopeStatus::Creating | ScopeStatus::Ready | ScopeStatus::Stopped => true,
        ScopeStatus::Stopping | ScopeStatus::Deleted => false,
    };
    stays
        && newest.is_some_and(|newest| newest.id == deployment.id)
        && scope.candidate.is_none()
        && scope.waiting.is_empty()
        && group.is_none_or(|group| group.given.is_none())
}

/// The next try as a move, or when it comes.
pub(super) fn next(state: &State, now: Timestamp, deployment: &Deployment) -> Next {
    match due(state, now, deployment) {
        None => Next::wait("", None),
        Some(due) if due.at > now => Next::wait(line(&due), Some(due.at)),
        Some(due) if due.held => {
            let limit = due.at + deployment.origin.strategy.deadlines.pending;
            Next::wait(line(&due), Some(limit))
        }
        Some(due) => Next::act(
            Action::Retry {
                why: due.why.clone(),
            },
            due.why,
        ),
    }
}

/// What people are told of a try that is to come.
pub(crate) fn line(due: &Due) -> String {
    if due.held {
        return format!("{}: waits until its release is ready", due.why);
    }
    format!("{}: at {}", due.why, due.at)
}
