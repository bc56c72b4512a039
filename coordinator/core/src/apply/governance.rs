//! Skips and freezes: people's word over rules. Structural alone; which deployments a freeze is
//! about is the planner's to say.

use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::time::Timestamp;

use super::token::person;
use super::tx::Tx;
use crate::command::{CreateFreeze, CreateSkip, Outcome, Reply};
use crate::deployment::phase::FREEZE_MAX;
use crate::policy::{self, skip::covers};
use crate::rejection::Rejection;
use crate::state::{Freeze, ScopeTerm, Skip, State};

/// Skips and freezes that a cluster keeps; those that are over are forgotten first.
const MOST: usize = 1_000;

/// What the gates of waiting deployments rest on has changed: starts that were decided before are
/// stale.
pub(super) fn gates_changed(tx: &mut Tx<'_>) {
    tx.state.gates_revision = tx.state.gates_revision.saturating_add(1);
}

fn invalid(field: &str, message: impl Into<String>) -> Rejection {
    let mut errors = tidegate_shared::spec::FieldErrors::default();
    errors.add(field, message);
    Rejection::fields("input", errors)
}

fn by_person(tx: &Tx<'_>, reason: &str, what: &str) -> Result<(), Rejection> {
    if person(tx.actor).is_none() {
        let message = format!("{} is no person: only people {what}", tx.actor);
        return Err(Rejection::new(Reason::PermissionDenied, message));
    }
    match reason.trim() {
        "" => Err(invalid("reason", "say why: everybody will read it")),
        reason if reason.len() > 1_000 => Err(invalid("reason", "want at most 1000 bytes")),
        _ => Ok(()),
    }
}

fn named(kind: &str, revision: u64) -> Result<Name, Rejection> {
    Name::new(format!("{kind}-{revision}"))
        .map_err(|error| Rejection::new(Reason::InvalidRequest, error.to_string()))
}

pub(super) fn skip(tx: &mut Tx<'_>, command: &CreateSkip) -> Outcome {
    by_person(tx, &command.reason, "skip rules")?;
    let (policy, rest) = match command.rule.split_once('/') {
        Some((policy, rest)) => (policy, Some(rest)),
        None => (command.rule.as_str(), None),
    };
    let spec = Name::new(policy)
        .ok()
        .and_then(|name| tx.state.policies.get(&name));
    let Some(spec) = spec.map(|object| &object.spec) else {
        let message = format!("there is no policy \"{policy}\"");
        return Err(Rejection {
            reason: Reason::NotFound,
            ..invalid("rule", message)
        });
    };
    let rules = spec.rule_names();
    if rest.is_some_and(|rest| !rules.iter().any(|rule| covers(rest, rule))) {
        let message = format!(
            "policy {policy} has no rule \"{}\": want {policy} or {policy}/{}",
            command.rule,
            rules.join(&format!(", {policy}/"))
        );
        return Err(invalid("rule", message));
    }
    if command.version.is_some() && command.application.is_none() {
        return Err(invalid("application", "a version needs its application"));
    }
    if command.expires_at.is_some_and(|end| end <= tx.at) {
        return Err(invalid("expires", "is over already"));
    }
    let at = tx.at;
    let counts = |skip: &Skip| skip.expires_at.is_none_or(|end| at < end);
    tx.state.skips.retain(|_, skip| counts(skip));
    if tx.state.skips.len() >= MOST {
        return Err(invalid(
            "rule",
            format!("there are {MOST} skips: delete some"),
        ));
    }
    let meta = tx.new_meta(std::collections::BTreeMap::new());
    let name = named("skip", meta.revision)?;
    let until = command
        .expires_at
        .map_or("until it is deleted".to_owned(), |end| {
            format!("until {end}")
        });
    let line = format!(
        "rule {} is skipped for {} {until}: {}",
        command.rule,
        about(command),
        command.reason
    );
    let skip = Skip {
        meta,
        rule: command.rule.clone(),
        application: command.application.clone(),
        version: command.version.clone(),
        scope: command.scope.clone(),
        reason: command.reason.clone(),
        expires_at: command.expires_at,
    };
    tx.state.skips.insert(name.clone(), skip);
    gates_changed(tx);
    super::auto::rules_changed(tx);
    tx.note("rule_skipped", "skip", &name, line);
    Ok(Reply::Named(name))
}

fn about(command: &CreateSkip) -> String {
    let application = command.application.as_ref().map(Name::to_string);
    let version = command.version.as_ref().map(ToString::to_string);
    let scope = command
        .scope
        .as_ref()
        .map(|scope| format!("in scope {scope}"));
    let parts: Vec<String> = [application, version, scope]
        .into_iter()
        .flatten()
        .collect();
    match parts.is_empty() {
        true => "all".to_owned(),
        false => parts.join(" "),
    }
}

pub(super) fn delete_skip(tx: &mut Tx<'_>, name: &Name) -> Outcome {
    let Some(skip) = tx.state.skips.remove(name) else {
        let message = format!("there is no skip \"{name}\"");
        return Err(Rejection::new(Reason::NotFound, message));
    };
    gates_changed(tx);
    let line = format!("rule {} counts again: {name} was deleted", skip.rule);
    tx.note("skip_deleted", "skip", name, line);
    Ok(Reply::Done)
}

pub(super) fn freeze(tx: &mut Tx<'_>, command: &CreateFreeze) -> Outcome {
    by_person(tx, &command.reason, "freeze")?;
    if command.until <= tx.at || command.until > tx.at + FREEZE_MAX {
        return Err(invalid("for", "want a time from now to 366d"));
    }
    let at = tx.at;
    let over = tx
        .state
        .freezes
        .values()
        .filter(|freeze| freeze.until <= at);
    for freeze in over.cloned().collect::<Vec<_>>() {
        remember_freeze(tx, freeze);
    }
    tx.state.freezes.retain(|_, freeze| at < freeze.until);
    if tx.state.freezes.len() >= MOST {
        return Err(invalid(
            "selector",
            format!("there are {MOST} freezes: thaw some"),
        ));
    }
    let meta = tx.new_meta(std::collections::BTreeMap::new());
    let name = named("freeze", meta.revision)?;
    let about = match command.selector.trim() {
        "" => "everything".to_owned(),
        selector => format!("what matches {selector}"),
    };
    let line = format!(
        "{about} is frozen until {}: {}",
        command.until, command.reason
    );
    let freeze = Freeze {
        meta,
        selector: command.selector.clone(),
        reason: command.reason.clone(),
        until: command.until,
        let_run: command.let_run,
    };
    tx.state.freezes.insert(name.clone(), freeze);
    gates_changed(tx);
    tx.note("frozen", "freeze", &name, line);
    Ok(Reply::Named(name))
}

pub(super) fn thaw(tx: &mut Tx<'_>, name: &Name) -> Outcome {
    let Some(freeze) = tx.state.freezes.remove(name) else {
        let message = format!("there is no freeze \"{name}\"");
        return Err(Rejection::new(Reason::NotFound, message));
    };
    gates_changed(tx);
    let line = format!("{name} has ended before its time, {}", freeze.until);
    tx.note("thawed", "freeze", name, line);
    let until = freeze.until.min(tx.at);
    let freeze = Freeze {
        until,
        ..(*freeze).clone()
    };
    remember_freeze(tx, freeze);
    Ok(Reply::Done)
}

/// The clocks of groups and of deployments under way stood meanwhile, and what waits was planned to
/// start after it.
fn remember_freeze(tx: &mut Tx<'_>, freeze: Freeze) {
    let is_for_all = tx.state.is_at(policy::REFERENCES_LEVEL);
    if is_for_all || !tx.state.open_groups.is_empty() {
        tx.state.past_freezes.insert(freeze.meta.revision, freeze);
    }
    if is_for_all {
        forget_freezes(tx);
    }
    while tx.state.past_freezes.len() > MOST_PAST {
        let Some((oldest, _)) = tx.state.past_freezes.get_min() else {
            break;
        };
        let oldest = *oldest;
        tx.state.past_freezes.remove(&oldest);
    }
}

/// Freezes that ended before any group under way was made, and before any deployment came to where it
/// waits or runs, stop no clock.
pub(super) fn forget_freezes(tx: &mut Tx<'_>) {
    if tx.state.past_freezes.is_empty() {
        return;
    }
    let open = tx.state.open_groups.keys();
    let made = open.filter_map(|id| tx.state.groups.get(id));
    let made = made.map(|group| group.meta.created_at);
    let first = made.chain(first_held_up(&tx.state)).min();
    let past = tx.state.past_freezes.iter();
    let over = past.filter(|(_, freeze)| first.is_none_or(|first| first >= freeze.until));
    for key in over.map(|(key, _)| *key).collect::<Vec<_>>() {
        tx.state.past_freezes.remove(&key);
    }
}

/// Since when the first deployment waits, or is in its state; below its level nobody asks.
fn first_held_up(state: &State) -> Option<Timestamp> {
    if !state.is_at(policy::REFERENCES_LEVEL) {
        return None;
    }
    let waiting = state
        .unfinished_scopes()
        .flat_map(|(_, scope)| &scope.waiting)
        .filter_map(|id| state.deployments.get(id))
        .map(|deployment| deployment.meta.created_at);
    let busy = state
        .scopes
        .rows_of(&ScopeTerm::UnderWay)
        .filter_map(|(_, scope)| state.candidate_of(scope))
        .map(|deployment| deployment.status_since);
    waiting.chain(busy).min()
}

/// Past freezes that are remembered for what waits or is under way.
const MOST_PAST: usize = 1_000;
