//! Objects deleted: only those that nothing refers to.

use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::spec::{Kind, ScopeSpec};

use super::tx::{Tx, expect_revision};
use super::{auto, governance, people};
use crate::command::{DeleteObject, Outcome, Reply};
use crate::policy;
use crate::rejection::Rejection;
use crate::state::{Place, ScopeTerm, State, TargetTerm};

/// Deletes an object. Releases belong to their application and go with it.
pub(super) fn delete(tx: &mut Tx<'_>, command: &DeleteObject) -> Outcome {
    let DeleteObject { kind, name, .. } = command;
    let what = format!("{kind} \"{name}\"");
    let Some(revision) = revision(&tx.state, *kind, name) else {
        return Err(Rejection::new(
            Reason::NotFound,
            format!("there is no {what}"),
        ));
    };
    expect_revision(&what, command.expected_revision, revision)?;
    if let Some(referrer) = referrer(&tx.state, *kind, name) {
        return Err(Rejection::new(
            Reason::InUse,
            format!("{what} is in use: {referrer}"),
        ));
    }
    let before = tx.state.clone();
    match kind {
        Kind::Application => {
            tx.state.applications.remove(name);
            let gone: Vec<_> = tx
                .state
                .releases
                .keys()
                .filter(|(a, _)| a == name)
                .cloned()
                .collect();
            for key in gone {
                tx.state.releases.remove(&key);
            }
        }
        Kind::Environment => {
            tx.state.environments.remove(name);
        }
        Kind::Strategy => {
            tx.state.strategies.remove(name);
        }
        Kind::Policy => {
            tx.state.policies.remove(name);
            governance::gates_changed(tx);
            auto::rules_changed(tx);
        }
        Kind::Parameter => {
            tx.state.parameters.remove(name);
        }
        Kind::Scope => tx.remove_scope(name),
        Kind::Team => {
            tx.state.teams.remove(name);
            people::changed(tx, &before)?;
        }
        Kind::RoleBinding => {
            tx.state.role_bindings.remove(name);
            people::changed(tx, &before)?;
        }
    }
    tx.note(
        format!("{kind}_deleted"),
        kind.as_str(),
        name,
        format!("{what} was deleted"),
    );
    Ok(Reply::Done)
}

fn revision(state: &State, kind: Kind, name: &Name) -> Option<u64> {
    let meta = match kind {
        Kind::Application => state.applications.get(name).map(|o| &o.meta),
        Kind::Environment => state.environments.get(name).map(|o| &o.meta),
        Kind::Strategy => state.strategies.get(name).map(|o| &o.meta),
        Kind::Policy => state.policies.get(name).map(|o| &o.meta),
        Kind::Parameter => state.parameters.get(name).map(|o| &o.meta),
        Kind::Scope => state.scopes.get(name).map(|o| &o.meta),
        Kind::Team => state.teams.get(name).map(|o| &o.meta),
        Kind::RoleBinding => state.role_bindings.get(name).map(|o| &o.meta),
    };
    meta.map(|meta| meta.revision)
}

/// What still needs an object, in words.
fn referrer(state: &State, kind: Kind, name: &Name) -> Option<String> {
    match kind {
        Kind::Application => scope_of(state, &ScopeTerm::Application(name.clone()))
            .or_else(|| parameter_of(state, Place::Application(name.clone())))
            .or_else(|| dependency_on(state, name)),
        Kind::Environment => scope_of(state, &ScopeTerm::Environment(name.clone()))
            .or_else(|| parameter_of(state, Place::Environment(name.clone()))),
        Kind::Scope => {
            busy(state, name).or_else(|| parameter_of(state, Place::Scope(name.clone())))
        }
        Kind::Strategy => {
            let names = |spec: &ScopeSpec| {
                let auto = spec.auto_deploy.as_ref();
                auto.and_then(|auto| auto.strategy.as_ref()) == Some(name)
            };
            let mut scopes = state.scopes.iter();
            let found = scopes.find(|(_, scope)| names(&scope.spec));
            found.map(|(scope, _)| format!("auto_deploy of scope \"{scope}\" names it"))
        }
        // Deployments hold a snapshot of their strategy and parameters; a policy is looked up anew.
        Kind::Policy | Kind::Parameter | Kind::RoleBinding => None,
        Kind::Team => people::referrer(state, name),
    }
}

fn scope_of(state: &State, term: &ScopeTerm) -> Option<String> {
    let found = state.scopes.keys_of(term).next();
    found.map(|scope| format!("scope \"{scope}\" belongs to it"))
}

/// The dependency rule that names an application.
fn dependency_on(state: &State, name: &Name) -> Option<String> {
    if !state.is_at(policy::REFERENCES_LEVEL) {
        return None;
    }
    let found = state.policies.iter().find_map(|(policy, object)| {
        let mut rules = object.spec.dependencies.iter();
        let index = rules.position(|rule| rule.application == *name)?;
        Some((policy, index))
    });
    found.map(|(policy, index)| format!("dependencies[{index}] of policy \"{policy}\" names it"))
}

fn parameter_of(state: &State, place: Place) -> Option<String> {
    let found = state.parameters.keys_of(&TargetTerm::Named(place)).next();
    found.map(|parameter| format!("parameter \"{parameter}\" is a value of it"))
}

/// What still runs, waits or is left over in a scope.
fn busy(state: &State, name: &Name) -> Option<String> {
    let scope = state.scopes.get(name)?;
    if let Some(candidate) = state.candidate_of(scope) {
        return Some(format!(
            "deployment {} of {} is {}; cancel it first",
            candidate.id, candidate.origin.version, candidate.status
        ));
    }
    if let Some(active) = state.active_of(scope) {
        return Some(format!(
            "{} {} runs there; stop the scope first",
            active.origin.application, active.origin.version
        ));
    }
    if let Some(waiting) = scope.waiting.first() {
        return Some(format!(
            "deployment {waiting} waits for it; cancel it first"
        ));
    }
    let left = scope
        .retired
        .iter()
        .filter_map(|id| state.deployments.get(id));
    let agents: Vec<&str> = left
        .flat_map(|d| d.leftovers.iter().map(Name::as_str))
        .collect();
    (!scope.retired.is_empty()).then(|| {
        format!(
            "something of it is left on {}; wait until it is gone, or remove the agent",
            agents.join(", ")
        )
    })
}
