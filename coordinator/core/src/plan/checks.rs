//! What the checks of a strategy make of a deployment: noted, held up, taken back, gone on without.
//!
//! Nothing follows from a measurement but a record in the log, and everything else from the
//! record: a leader that comes later decides the same.

use tidegate_shared::spec::NoDataAction;
use tidegate_shared::verdict::check::Outcome;

use super::Next;
use super::running::{go_on, until};
use super::view::View;
use crate::command::{Action, Cause};
use crate::deployment::checks;
use crate::state::CheckRecord;
use crate::verification::{CheckView, ViewState, look};

/// The word of a halt for want of an answer: the same as of rules without data.
const NO_DATA: &str = "no_data";

/// Checks of the present moment that have not succeeded.
pub(super) fn open(view: &View<'_>) -> Vec<CheckView> {
    let mut all = look(view);
    all.retain(|check| check.recorded != Some(Outcome::Success));
    all
}

/// What follows from answers: one that is new is noted, a bad one that is noted takes it back.
pub(super) fn settled(view: &View<'_>) -> Option<Next> {
    let moment = checks::moment(view.deployment)?;
    let mut records = view.deployment.checks.iter();
    let failed =
        |record: &&CheckRecord| record.run == moment.run && record.outcome == Outcome::Failure;
    if let Some(record) = records.find(failed) {
        let place = checks::told(view.deployment, record.step);
        let message = format!("{}, {place}", record.message);
        let cause = Cause {
            kind: "verification".to_owned(),
            message: message.clone(),
        };
        let evidence = Vec::new();
        return Some(Next::act(Action::TakeBack { cause, evidence }, message));
    }
    let open = open(view);
    let answered = open.iter().filter_map(|check| match check.state {
        ViewState::Success => Some(check.record(Outcome::Success, view.now)),
        ViewState::Failure => Some(check.record(Outcome::Failure, view.now)),
        ViewState::Running | ViewState::Inconclusive => None,
    });
    let answered: Vec<CheckRecord> = answered.collect();
    if !answered.is_empty() {
        return Some(note(answered));
    }
    // Noted while it is halted for want of an answer, so that whoever lets it go on is taken at
    // their word.
    let halted = view.deployment.halted.as_ref();
    let waits = halted.is_some_and(|halted| halted.kind == NO_DATA) && is_over(view);
    let unnoted = unnoted(view, &open);
    (waits && !unnoted.is_empty()).then(|| note(unnoted))
}

/// Whether the time in which checks could have answered is over.
fn is_over(view: &View<'_>) -> bool {
    checks::lasted(view.deployment, view.now) >= checks::patience(view.deployment)
}

fn note(checks: Vec<CheckRecord>) -> Next {
    let why: Vec<&str> = checks.iter().map(|check| check.message.as_str()).collect();
    let why = why.join("; ");
    Next::act(Action::NoteChecks { checks }, why)
}

/// Records of the checks that are without an answer and not noted as such.
fn unnoted(view: &View<'_>, open: &[CheckView]) -> Vec<CheckRecord> {
    let unnoted = open.iter().filter(|check| check.recorded.is_none());
    unnoted
        .map(|check| check.record(Outcome::Inconclusive, view.now))
        .collect()
}

/// Before the first step of traffic: what the checks of that moment make it wait for.
pub(super) fn before_traffic(view: &View<'_>) -> Option<Next> {
    hold_up(view, false)
}

/// What the checks of a moment that is otherwise over make it wait for, or do when their time is
/// over too; none when all have succeeded.
pub(super) fn hold_up(view: &View<'_>, last: bool) -> Option<Next> {
    let open = open(view);
    let first = open.first()?;
    if !is_over(view) {
        let lasted = checks::lasted(view.deployment, view.now);
        let rest = checks::patience(view.deployment).saturating_sub(lasted);
        return Some(until(&first.line(), Some(view.now + rest)));
    }
    let unnoted = unnoted(view, &open);
    let message = first.record(Outcome::Inconclusive, view.now).message;
    let cause = Cause {
        kind: NO_DATA.to_owned(),
        message: message.clone(),
    };
    let evidence = Vec::new();
    Some(match view.deployment.origin.strategy.on_no_data.then {
        NoDataAction::Halt if !unnoted.is_empty() => {
            Next::act(Action::Halt { cause, evidence }, message)
        }
        NoDataAction::Proceed | NoDataAction::Rollback if !unnoted.is_empty() => note(unnoted),
        NoDataAction::Rollback => Next::act(Action::TakeBack { cause, evidence }, message),
        // Halted before, and a person has let it go on.
        NoDataAction::Halt | NoDataAction::Proceed => go_on(last, true),
    })
}
