//! `RUNNING`: rules, checks, lost agents, steps and batches, the bake, and the end of it.

use tidegate_shared::spec::{FinalizeMode, Hold, NoDataAction};
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::verdict::threshold::Evidence;

use super::rollout::{paused, permanent, with_troubles};
use super::view::View;
use super::{Next, checks, evidence};
use crate::command::{Action, Cause};
use crate::deployment::{phase, steps};
use crate::policy::rules;
use crate::state::Status;
use crate::strategy::{is_batched, rolling};

/// How often rules are judged without a report: windows slide, and `for` runs on.
const LOOK_AGAIN: Span = Span::from_millis(250);

/// The word of a halt because of lost agents.
const LOST_AGENTS: &str = "lost_agents";

/// `RUNNING`.
pub(super) fn next(view: &View<'_>) -> Next {
    let verdicts = evidence::verdicts(view);
    let mut next = frozen(view, decide(view, &verdicts));
    if !verdicts.is_empty() {
        next.wake = super::sooner(next.wake, Some(view.now + LOOK_AGAIN));
    }
    next
}

fn decide(view: &View<'_>, verdicts: &[Evidence]) -> Next {
    let first = evidence::met(view, verdicts)
        .or_else(|| checks::settled(view))
        .or_else(|| permanent(view))
        .or_else(|| lost_agents(view));
    if let Some(first) = first {
        return first;
    }
    if view.participants.is_empty() {
        return Next::wait("an agent: none of its agents is left in the cluster", None);
    }
    let deployment = view.deployment;
    if is_batched(deployment) && !rolling::is_settled(deployment, view.scope) {
        return stopped(view).unwrap_or_else(|| batch(view));
    }
    let by_steps = deployment.traffic.step.is_some() && deployment.traffic.manual.is_none();
    if let Some(reach) = reach(view).filter(|_| by_steps) {
        return reach;
    }
    if let Some(stopped) = stopped(view) {
        return stopped;
    }
    match deployment.traffic.step {
        None => checks::before_traffic(view).unwrap_or_else(|| {
            Next::act(
                Action::StepDone { unverified: false },
                "the first step of traffic",
            )
        }),
        Some(_) => step(view, verdicts),
    }
}

/// When the present state ends by itself. Neither what stalls nor what is halted runs out while a freeze
/// holds; its pauses, and what waits for a person, do.
pub(super) fn due(view: &View<'_>) -> Option<phase::Deadline> {
    let (deployment, now) = (view.deployment, view.now);
    let due = phase::due(deployment)?;
    if deployment.status != Status::Running || deployment.paused.is_some() {
        return Some(due);
    }
    let since = match (&deployment.halted, deployment.traffic.step) {
        (Some(halted), _) if halted.kind == phase::FREEZE => return Some(due),
        (Some(halted), _) => halted.since,
        (None, _) if due.expiry == phase::Expiry::TakeBack("pause_max") => return Some(due),
        // At the end of a step a freeze halts it; what it stopped before that is not in this step.
        (None, Some(step)) => step.started_at,
        (None, None) => deployment.status_since,
    };
    let frozen = rules::frozen_for(view.state, deployment, since, now);
    let at = due.at + frozen;
    Some(match rules::frozen(view.state, deployment, now) {
        Some((_, until)) => phase::Deadline {
            at: until + at.since(now),
            ..due
        },
        None => phase::Deadline { at, ..due },
    })
}

/// Too many lost agents halt it; it goes on by itself when enough are back.
fn lost_agents(view: &View<'_>) -> Option<Next> {
    let lost = view.lost();
    let halted = view.deployment.halted.as_ref();
    let by_lost = halted.is_some_and(|halted| halted.kind == LOST_AGENTS);
    if lost.is_empty() || view.within_max_lost() {
        return by_lost.then(|| Next::act(Action::Unhalt, "enough agents are back"));
    }
    if halted.is_some() {
        return None;
    }
    let names = lost.iter().map(|name| name.as_str()).collect::<Vec<_>>();
    let message = format!(
        "{} of {} agents are lost ({}), {} may be",
        lost.len(),
        view.participants.len(),
        names.join(", "),
        view.max_lost()
    );
    let action = Action::Halt {
        cause: Cause {
            kind: LOST_AGENTS.to_owned(),
            message: message.clone(),
        },
        evidence: Vec::new(),
    };
    Some(Next::act(action, message))
}

/// A freeze halts at the next step; entering `FINALIZING` counts as one. When it is over, it goes on.
fn frozen(view: &View<'_>, next: Next) -> Next {
    let halted = view.deployment.halted.as_ref();
    let by_freeze = halted.is_some_and(|halted| halted.kind == phase::FREEZE);
    let freeze = rules::frozen(view.state, view.deployment, view.now);
    let goes_on = matches!(
        next.action,
        Some(Action::StepDone { .. } | Action::Finalize { .. })
    );
    match freeze {
        None if by_freeze && next.action.is_none() => {
            Next::act(Action::Unhalt, "the freeze is over")
        }
        Some((why, until)) if goes_on && halted.is_none() => {
            let cause = Cause {
                kind: phase::FREEZE.to_owned(),
                message: why.clone(),
            };
            let evidence = Vec::new();
            Next {
                wake: Some(until),
                ..Next::act(Action::Halt { cause, evidence }, why)
            }
        }
        Some((_, until)) if by_freeze => Next {
            wake: super::sooner(next.wake, Some(until)),
            ..next
        },
        Some(_) | None => next,
    }
}

fn stopped(view: &View<'_>) -> Option<Next> {
    let halted = view.deployment.halted.as_ref().map(|halted| {
        Next::wait(
            format!("halted ({}): {}", halted.kind, halted.message),
            None,
        )
    });
    paused(view).or(halted)
}

/// `rolling`: what the batch starts must be healthy before what it stops goes.
fn batch(view: &View<'_>) -> Next {
    match view.outstanding() {
        0 if view.any_healthy() => Next::act(Action::BatchDone, "the batch is healthy"),
        left => Next::wait(
            with_troubles(
                view,
                format!("{left} instances of the batch have yet to become healthy"),
            ),
            None,
        ),
    }
}

/// Until the data plane holds the step's weight everywhere.
fn reach(view: &View<'_>) -> Option<Next> {
    let step = view.deployment.traffic.step?;
    let held = view.is_weight_held();
    let (actual, desired) = (view.actual(), view.deployment.traffic.desired);
    match (step.reached_at, held) {
        (None, true) => Some(Next::act(
            Action::StepReached,
            format!("every agent holds {desired}"),
        )),
        (None, false) => {
            let line = format!("the agents hold {actual} of the {desired} that are wished");
            Some(stopped(view).unwrap_or_else(|| Next::wait(with_troubles(view, line), None)))
        }
        (Some(_), _) => None,
    }
}

/// The hold, the bake, the evidence, and what comes then.
fn step(view: &View<'_>, verdicts: &[Evidence]) -> Next {
    let deployment = view.deployment;
    let last = steps::at_last(deployment);
    let Some(held) = steps::held_for(deployment, view.now) else {
        return Next::wait("`resume` lets it go on with the next step", None);
    };
    let hold = match steps::hold(deployment) {
        Hold::For(hold) => hold,
        Hold::Manual => return Next::wait("a person: `promote` ends this step", None),
    };
    let whole = if last {
        hold + steps::bake(deployment)
    } else {
        hold
    };
    let at = |span: Span| Some(view.now + span.saturating_sub(held));
    let step = deployment.traffic.step.map_or(0, |step| step.index) + 1;
    if held < whole {
        let what = if last && held >= hold {
            "the bake".to_owned()
        } else {
            format!("the hold of step {step}")
        };
        return until(&what, at(whole));
    }
    if !view.is_weight_held() || view.outstanding() > 0 {
        let line = format!(
            "the agents hold {} of the {} that are wished, {} instances are not healthy",
            view.actual(),
            deployment.traffic.desired,
            view.outstanding()
        );
        return Next::wait(with_troubles(view, line), None);
    }
    if last && steps::finalize_mode(deployment) == FinalizeMode::Manual {
        return Next::wait("a person: `finalize` ends the bake", None);
    }
    let open = evidence::undecided(verdicts);
    let cap = whole + steps::evidence_wait(deployment);
    if let Some(first) = open.first().filter(|_| held < cap) {
        let line = format!("evidence for step {step} ({})", first.message());
        return until(&line, at(cap));
    }
    match checks::hold_up(view, last) {
        Some(held_up) => held_up,
        None if open.is_empty() => go_on(last, false),
        None => without_evidence(view, last, open),
    }
}

pub(super) fn until(what: &str, at: Option<Timestamp>) -> Next {
    let line = match at {
        Some(at) => format!("{what}, until {at}"),
        None => what.to_owned(),
    };
    Next::wait(line, at)
}

pub(super) fn go_on(last: bool, unverified: bool) -> Next {
    if last {
        Next::act(Action::Finalize { unverified }, "the bake is over")
    } else {
        Next::act(Action::StepDone { unverified }, "the step is over")
    }
}

/// The declared outcome of a step whose wait for evidence is over.
fn without_evidence(view: &View<'_>, last: bool, open: Vec<Evidence>) -> Next {
    let message = format!("no evidence: {}", open[0].message());
    let cause = Cause {
        kind: "no_data".to_owned(),
        message: message.clone(),
    };
    match view.deployment.origin.strategy.on_no_data.then {
        NoDataAction::Proceed => go_on(last, true),
        NoDataAction::Halt if evidence::was_waved_on(view) => go_on(last, true),
        NoDataAction::Halt => Next::act(
            Action::Halt {
                cause,
                evidence: open,
            },
            message,
        ),
        NoDataAction::Rollback => Next::act(
            Action::TakeBack {
                cause,
                evidence: open,
            },
            message,
        ),
    }
}
