//! Deployments that make themselves: the planner's decision, and what makes a scope look again.

use std::sync::Arc;

use tidegate_shared::error::Reason;
use tidegate_shared::id::{Name, Version};
use tidegate_shared::spec::{ScopeSpec, StrategySpec};

use super::create::{self, Wanted, check_ready};
use super::lifecycle;
use super::tx::Tx;
use crate::command::{AutoDeploy, OnConflict, Outcome, Reply};
use crate::rejection::Rejection;
use crate::state::{Auto, AutoTerm, Deployment, EndCause, ScopeTerm};

/// Makes the deployments that the planner decided on.
pub(super) fn deploy(tx: &mut Tx<'_>, command: &AutoDeploy) -> Outcome {
    let name = &command.scope;
    let spec = tx.state.scope(name)?.spec.clone();
    let known = tx.state.auto.get(name).cloned();
    let (Some(rule), Some(mut auto)) = (spec.auto_deploy.clone(), known) else {
        let message = format!("scope \"{name}\" deploys nothing by itself");
        return Err(Rejection::new(Reason::Stale, message));
    };
    if auto.revision != command.revision {
        let message = format!(
            "scope \"{name}\" has something new to look at: the decision was for {}, it is at {}",
            command.revision, auto.revision
        );
        return Err(Rejection::new(Reason::Stale, message));
    }
    auto.due = false;
    auto.refused = command.refused;
    auto.revision = tx.next_revision();
    tx.state.auto.insert(name.clone(), auto);
    for id in &command.supersede {
        let found = tx.state.deployment(*id)?.clone();
        let waits = tx.state.scope(name)?.waiting.contains(id);
        if waits && found.origin.auto.is_some() {
            let message = "a newer release takes its place".to_owned();
            lifecycle::take_back(tx, found, EndCause::Superseded, "superseded", message)?;
        }
    }
    let base = create::named_strategy(tx, rule.strategy.as_ref())?;
    let mut made = Vec::new();
    for version in &command.deploy {
        let release = tx.state.release(&spec.application, version)?;
        check_ready(release, &spec.application, version)?;
        let author = release.meta.created_by.clone();
        let strategy = create::strategy_for(&base, &StrategySpec::default(), name, &spec)?;
        made.push(create::make(
            tx,
            Wanted {
                scope: name.clone(),
                version: version.clone(),
                strategy_name: rule.strategy.clone(),
                strategy: Arc::new(strategy),
                parameters: None,
                labels: Default::default(),
                on_conflict: OnConflict::Queue,
                fast: false,
                forced: false,
                link: None,
                required: None,
                auto: Some(author),
                group: None,
                tries: 0,
                by: None,
            },
        )?);
    }
    let looked = match command.looked.as_slice() {
        [] => "no release is new".to_owned(),
        lines => lines.join("; "),
    };
    let line = format!("scope {name} looked at new releases: {looked}");
    tx.note("scope_looked", "scope", name, line);
    Ok(Reply::Deployments(made))
}

fn change(tx: &mut Tx<'_>, scope: &Name, change: impl FnOnce(&mut Auto)) {
    if let Some(mut auto) = tx.state.auto.get(scope).cloned() {
        change(&mut auto);
        auto.revision = tx.next_revision();
        tx.state.auto.insert(scope.clone(), auto);
    }
}

/// A scope was written: it begins or ceases to take releases by itself, or looks at them anew.
pub(super) fn scope_written(tx: &mut Tx<'_>, name: &Name, before: Option<&ScopeSpec>) {
    let Ok(scope) = tx.state.scope(name) else {
        return;
    };
    let spec = scope.spec.clone();
    if spec.auto_deploy.is_none() {
        tx.state.auto.remove(name);
        return;
    }
    if tx.state.auto.contains_key(name) {
        let same = before.is_some_and(|before| *before == *spec);
        change(tx, name, |auto| auto.due |= !same);
        return;
    }
    let here = scope.active.iter().chain(&scope.candidate);
    let here = here.chain(&scope.waiting).copied();
    let versions: Vec<Version> = here
        .filter_map(|id| tx.state.deployments.get(&id))
        .map(|found| found.origin.version.clone())
        .collect();
    let mut auto = Auto::new(tx.at, tx.next_revision());
    versions.iter().for_each(|version| auto.try_it(version));
    tx.state.auto.insert(name.clone(), auto);
}

/// A release was made, or has another status: scopes of its application look.
pub(super) fn release_changed(tx: &mut Tx<'_>, application: &Name) {
    let state = &tx.state;
    let scopes = state
        .scopes
        .keys_of(&ScopeTerm::Application(application.clone()));
    let concerned = scopes.filter(|name| state.auto.contains_key(*name));
    for name in concerned.cloned().collect::<Vec<_>>() {
        change(tx, &name, |auto| auto.due = true);
    }
}

/// What had refused a release may allow it now.
pub(super) fn rules_changed(tx: &mut Tx<'_>) {
    let names: Vec<Name> = tx.state.auto.keys_of(&AutoTerm::Refused).cloned().collect();
    for name in names {
        change(tx, &name, |auto| auto.due = true);
    }
}

/// A version is deployed to a scope, by whomever.
pub(super) fn made(tx: &mut Tx<'_>, scope: &Name, version: &Version) {
    change(tx, scope, |auto| auto.try_it(version));
}

/// A deployment ended. One that only gave way to another never showed what it is worth.
pub(super) fn ended(tx: &mut Tx<'_>, deployment: &Deployment) {
    if deployment.end_cause == Some(EndCause::Superseded) {
        let version = deployment.origin.version.clone();
        change(tx, &deployment.origin.scope, |auto| {
            auto.tried.retain(|known| *known != version);
        });
    }
}
