//! What the rules of a strategy make of a deployment: taken back, halted, noted, or verified.

use tidegate_shared::spec::RuleAction;
use tidegate_shared::verdict::threshold::{Evidence, Verdict};

use super::Next;
use super::view::View;
use crate::command::{Action, Cause};
use crate::state::Status;

/// What the rules say now; nothing for a fast rollback, which skips analysis.
pub(super) fn verdicts(view: &View<'_>) -> Vec<Evidence> {
    if view.deployment.origin.fast {
        return Vec::new();
    }
    view.observed.telemetry.judge(view.deployment, view.now)
}

/// The move that rules which are met ask for.
pub(super) fn met(view: &View<'_>, verdicts: &[Evidence]) -> Option<Next> {
    let is_met = |e: &&Evidence| e.verdict == Verdict::Fail && !e.dry_run;
    let turns_back = |e: &&Evidence| is_met(e) && e.action == RuleAction::Rollback;
    let halts = |e: &&Evidence| is_met(e) && e.action == RuleAction::Halt;
    let deployment = view.deployment;
    if deployment.status == Status::Finalizing {
        return met_too_late(view, verdicts.iter().find(turns_back), verdicts);
    }
    if let Some(first) = verdicts.iter().find(turns_back) {
        let action = Action::TakeBack {
            cause: cause(view, first),
            evidence: verdicts.to_vec(),
        };
        return Some(Next::act(action, line(view, first)));
    }
    if let Some(first) = verdicts
        .iter()
        .find(halts)
        .filter(|_| deployment.halted.is_none())
    {
        let action = Action::Halt {
            cause: cause(view, first),
            evidence: verdicts.to_vec(),
        };
        return Some(Next::act(action, line(view, first)));
    }
    note(view, verdicts.iter().filter(|e| e.dry_run))
}

/// `FINALIZING` cannot be turned back: a rule met now becomes a fast rollback at `FINALIZED`, an
/// initial one is only flagged.
fn met_too_late(view: &View<'_>, first: Option<&Evidence>, all: &[Evidence]) -> Option<Next> {
    let replacing = view.deployment.replaces.is_some();
    if let Some(first) = first
        && replacing
        && view.deployment.return_at_finalized.is_none()
    {
        let action = Action::TakeBack {
            cause: cause(view, first),
            evidence: all.to_vec(),
        };
        return Some(Next::act(action, line(view, first)));
    }
    note(view, all.iter())
}

/// Verdicts that are met and not yet noted in this step.
fn note<'a>(view: &View<'_>, verdicts: impl Iterator<Item = &'a Evidence>) -> Option<Next> {
    let noted = &view.deployment.evidence;
    let known = |e: &Evidence| {
        noted.iter().any(|n| {
            n.verdict == Verdict::Fail
                && (&n.metric, n.comparison, n.window, n.dry_run, n.step)
                    == (&e.metric, e.comparison, e.window, e.dry_run, e.step)
                && n.threshold == e.threshold
        })
    };
    let new = verdicts.filter(|e| e.verdict == Verdict::Fail && !known(e));
    let evidence = new.cloned().collect::<Vec<_>>();
    let why = line(view, evidence.first()?);
    Some(Next::act(Action::NoteEvidence { evidence }, why))
}

fn cause(view: &View<'_>, evidence: &Evidence) -> Cause {
    Cause {
        kind: "rule".to_owned(),
        message: line(view, evidence),
    }
}

fn line(view: &View<'_>, evidence: &Evidence) -> String {
    evidence.line(Some(view.deployment.traffic.desired))
}

/// Rules without a verdict: too few samples, none at all, or a comparison that does not hold for
/// long enough yet.
pub(super) fn undecided(verdicts: &[Evidence]) -> Vec<Evidence> {
    let open = verdicts.iter().filter(|e| match e.verdict {
        Verdict::Inconclusive | Verdict::NoData => !e.dry_run,
        Verdict::Pass | Verdict::Fail => false,
    });
    open.cloned().collect()
}

/// Whether some rule has no verdict now.
pub(super) fn is_missing(view: &View<'_>) -> bool {
    !undecided(&verdicts(view)).is_empty()
}

/// Whether it halted in this step for want of data before, so that a person has let it go on.
pub(super) fn was_waved_on(view: &View<'_>) -> bool {
    let step = view.deployment.traffic.step.map_or(0, |step| step.index);
    let open = |e: &Evidence| match e.verdict {
        Verdict::Inconclusive | Verdict::NoData => e.step == step,
        Verdict::Pass | Verdict::Fail => false,
    };
    view.deployment.evidence.iter().any(open)
}
