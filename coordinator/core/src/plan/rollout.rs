//! `CREATING` and `WAITING_FOR_INSTANCES`: staging, then instances that come up healthy.

use super::Next;
use super::view::View;
use crate::command::{Action, Cause};

/// Why permanent errors take a deployment back.
pub(super) fn permanent(view: &View<'_>) -> Option<Next> {
    let message = view.permanent()?;
    let action = Action::TakeBack {
        cause: Cause {
            kind: "permanent_errors".to_owned(),
            message: message.clone(),
        },
        evidence: Vec::new(),
    };
    Some(Next::act(action, message))
}

/// What a person's pause makes it wait for.
pub(super) fn paused(view: &View<'_>) -> Option<Next> {
    let paused = view.deployment.paused.as_ref()?;
    let why = format!("paused by {}: `resume` lets it go on", paused.by);
    Some(Next::wait(why, None))
}

/// `CREATING`.
pub(super) fn creating(view: &View<'_>) -> Next {
    if let Some(failed) = permanent(view) {
        return failed;
    }
    if let Some(paused) = paused(view) {
        return paused;
    }
    let missing = view
        .counting()
        .filter(|p| p.lost || !p.place.is_some_and(|place| place.staged));
    let missing = missing.count();
    if missing == 0 && !view.participants.is_empty() {
        return Next::act(Action::Staged, "staged everywhere");
    }
    let all = view.participants.len();
    Next::wait(
        with_troubles(
            view,
            format!("{missing} of {all} agents have yet to stage the release"),
        ),
        None,
    )
}

/// `WAITING_FOR_INSTANCES`.
pub(super) fn waiting_for_instances(view: &View<'_>) -> Next {
    if let Some(failed) = permanent(view) {
        return failed;
    }
    let outstanding = view.outstanding();
    let paused = paused(view);
    if outstanding == 0 && paused.is_none() && view.any_healthy() {
        return Next::act(Action::InstancesReady, "every instance is healthy");
    }
    let everywhere = view.outstanding_everywhere();
    let fewest = view.deployment.fewest_outstanding;
    if everywhere > 0 && everywhere < fewest.unwrap_or_else(|| view.wanted()) {
        let action = Action::Progress {
            outstanding: everywhere,
        };
        let line = match everywhere {
            1 => "1 instance is outstanding".to_owned(),
            more => format!("{more} instances are outstanding"),
        };
        return Next::act(action, line);
    }
    if let Some(paused) = paused {
        return paused;
    }
    let wanted = view.wanted();
    Next::wait(
        with_troubles(
            view,
            format!("{outstanding} of {wanted} instances have yet to become healthy"),
        ),
        None,
    )
}

/// A line with what is known of why.
pub(super) fn with_troubles(view: &View<'_>, line: String) -> String {
    match view.troubles().as_str() {
        "" => line,
        troubles => format!("{line}: {troubles}"),
    }
}
