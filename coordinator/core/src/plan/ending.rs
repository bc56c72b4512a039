//! From `FINALIZING`, `CANCELLING`, `ROLLING_BACK` and `DELETING` to the end, and what is left after
//! it: the loser drains and goes, the winner holds all traffic.
//!
//! Lost agents are excused here at once; what is not known to be gone there becomes a leftover.

use tidegate_shared::id::Name;
use tidegate_shared::weight::Weight;

use super::view::{View, is_gone, not_gone};
use super::{Next, evidence};
use crate::command::Action;
use crate::desired;
use crate::observed::{Observed, healthy, place_in};
use crate::state::{Agent, Deployment, State, Status};
use crate::strategy::{is_batched, rolling};

/// `FINALIZING`.
pub(super) fn finalizing(view: &View<'_>) -> Next {
    let verdicts = evidence::verdicts(view);
    if let Some(met) = evidence::met(view, &verdicts) {
        return met;
    }
    let behind = view
        .participants
        .iter()
        .find(|p| !p.lost && !p.holds_wish());
    if let Some(behind) = behind {
        let what = format!("{} has yet to hold 100 % of the new version", behind.name);
        return Next::wait(what, None);
    }
    let Some(old) = old_version(view) else {
        return settled(Vec::new(), "every agent holds 100 % of the new version");
    };
    if !view.deployment.drained {
        return drained(view, old);
    }
    gone(view, old)
}

/// The version that a deployment replaces, as long as it is recorded.
fn old_version<'a>(view: &View<'a>) -> Option<&'a Deployment> {
    view.state.deployments.get(&view.deployment.replaces?)
}

fn drained(view: &View<'_>, old: &Deployment) -> Next {
    let holds = |name: &Name| {
        let present = view.observed.present_report(view.state, name);
        let place = present.map(|report| place_in(report, old.id));
        !place.is_some_and(|place| place.is_none_or(|place| place.drained))
    };
    let mut agents = view.state.agents_concerned(old).into_iter();
    let draining = agents.find(|(name, agent)| {
        !is_newcomer(view, name, agent) && holds(name) && !view.observed.is_lost(name, view.now)
    });
    match draining {
        Some((name, _)) => Next::wait(format!("{name} drains the old version"), None),
        None => Next::act(Action::Drained, "the old version is drained everywhere"),
    }
}

/// Joined after the start: it follows at `FINALIZED` and holds nothing up.
fn is_newcomer(view: &View<'_>, name: &Name, agent: &Agent) -> bool {
    !desired::is_participant(view.deployment, name)
        && desired::concerns(view.deployment, name, agent)
}

/// Waits until a loser is gone wherever anybody answers.
fn gone(view: &View<'_>, loser: &Deployment) -> Next {
    let left = not_gone(view.state, view.observed, loser);
    let replaced = loser.id != view.deployment.id;
    let waited_for = left.iter().find(|name| {
        let newcomer = replaced
            && view
                .state
                .agents
                .get(*name)
                .is_some_and(|agent| is_newcomer(view, name, agent));
        !newcomer && !view.observed.is_lost(name, view.now)
    });
    match waited_for {
        Some(name) => Next::wait(
            format!("{name} stops version {}", loser.origin.version),
            None,
        ),
        None => settled(left, "the loser is gone everywhere"),
    }
}

fn settled(leftovers: Vec<Name>, why: &str) -> Next {
    Next::act(Action::Settled { leftovers }, why)
}

/// `CANCELLING` and `ROLLING_BACK`.
pub(super) fn returning(view: &View<'_>) -> Next {
    let next = turn_back(view);
    if next.action.is_some() {
        return next;
    }
    let outstanding = still_to_do(view);
    let fewer = view
        .deployment
        .fewest_outstanding
        .is_none_or(|fewest| outstanding < fewest);
    if fewer && outstanding > 0 {
        return Next {
            action: Some(Action::Progress { outstanding }),
            ..next
        };
    }
    next
}

fn turn_back(view: &View<'_>) -> Next {
    if is_batched(view.deployment) {
        let traffic = &view.deployment.traffic;
        if traffic.replaced > 0 || traffic.desired > Weight::ZERO {
            return batch_back(view);
        }
        // Without overlap the last batch's share is back before its instances are.
        let overlap = view.deployment.origin.strategy.batch.overlap;
        let missing = if overlap || !traffic.got_traffic {
            0
        } else {
            missing(view)
        };
        if missing > 0 {
            return not_back(missing);
        }
    }
    let behind = view.participants.iter().find(|p| {
        let wish = desired::active_wish(view.state, view.scope, p.name, p.agent);
        let active = wish.and(view.scope.active);
        active.is_some_and(|active| {
            let place = p.present.and_then(|report| place_in(report, active));
            !p.lost && place.and_then(|place| place.weight) != Some(Weight::FULL)
        })
    });
    match behind {
        Some(behind) => Next::wait(
            format!(
                "{} has yet to hold 100 % of the active version",
                behind.name
            ),
            None,
        ),
        None => gone(view, view.deployment),
    }
}

/// `rolling` on its way back: the old instances of the batch are up before traffic returns to them.
fn batch_back(view: &View<'_>) -> Next {
    if view.scope.active.is_none() {
        return Next::act(Action::BatchDone, "there is no version to wait for");
    }
    match missing(view) {
        0 => Next::act(Action::BatchDone, "the batch is back"),
        missing => not_back(missing),
    }
}

fn not_back(missing: u32) -> Next {
    Next::wait(
        format!("{missing} instances of the old version have yet to become healthy"),
        None,
    )
}

/// Instances of the old version that should be up by now and are not found healthy.
fn missing(view: &View<'_>) -> u32 {
    let Some(active) = view.scope.active else {
        return 0;
    };
    let here = view.participants.iter().filter(|p| !p.lost);
    let missing = here.map(|participant| {
        let local = rolling::local(view.deployment, view.scope, participant.name);
        let up = participant
            .present
            .and_then(|report| place_in(report, active))
            .map_or(0, healthy);
        local.map_or(0, |local| local.old).saturating_sub(up)
    });
    missing.sum()
}

/// Instances of the loser that still run, and agents that have yet to turn back.
fn still_to_do(view: &View<'_>) -> u32 {
    let left = view.participants.iter().filter(|p| !p.lost).map(|p| {
        let running = p.place.map_or(0, |place| place.instances.len());
        let here = !is_gone(view.state, view.observed, p.name, view.deployment);
        running + usize::from(here)
    });
    u32::try_from(left.sum::<usize>()).unwrap_or(u32::MAX)
}

/// `DELETING`.
pub(super) fn deleting(view: &View<'_>) -> Next {
    gone(view, view.deployment)
}

/// Agents where the loser is not known to be gone, for an end that does not wait for them.
pub(super) fn leftovers(view: &View<'_>) -> Vec<Name> {
    let loser = match view.deployment.status {
        Status::Finalizing => old_version(view),
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalized
        | Status::Cancelling
        | Status::Cancelled
        | Status::RollingBack
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => Some(view.deployment),
    };
    loser.map_or_else(Vec::new, |loser| not_gone(view.state, view.observed, loser))
}

/// After the end: where the place is gone meanwhile, or the agent itself.
pub(super) fn leftovers_gone(
    state: &State,
    observed: &Observed,
    retired: &Deployment,
) -> Option<Action> {
    let left = retired.leftovers.iter();
    let agents = left
        .filter(|name| !state.agents.contains_key(*name) || is_gone(state, observed, name, retired))
        .cloned()
        .collect::<Vec<_>>();
    (!agents.is_empty()).then_some(Action::LeftoversGone { agents })
}
