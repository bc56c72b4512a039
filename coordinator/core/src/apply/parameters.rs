//! Parameters as a deployment gets them, resolved when it is created.
//!
//! Precedence: scope > dimension > environment > application > release default. A parameter is of
//! the highest level that its target names. Within a level the more specific target wins: the one
//! that names more dimensions, then the one that also names an environment, then the one that also
//! names the application; among equals the one whose object's name comes first. The scope's own
//! `parameters` stand above everything.

use tidegate_shared::id::Name;
use tidegate_shared::spec::{ParameterTarget, ReleaseSpec, ScopeSpec};

use crate::state::{ResolvedParameter, Source, State, Table};

/// How specific a target is: the level, then the count of dimensions, environment, application.
type Rank = (Source, usize, bool, bool);

fn rank(target: &ParameterTarget, name: &Name, scope: &ScopeSpec) -> Option<Rank> {
    let fits = target.scope.as_ref().is_none_or(|wanted| wanted == name)
        && target
            .application
            .as_ref()
            .is_none_or(|wanted| *wanted == scope.application)
        && target
            .environment
            .as_ref()
            .is_none_or(|wanted| *wanted == scope.environment)
        && target
            .dimensions
            .iter()
            .all(|(key, value)| scope.dimensions.get(key) == Some(value));
    let level = if target.scope.is_some() {
        Source::Scope
    } else if !target.dimensions.is_empty() {
        Source::Dimension
    } else if target.environment.is_some() {
        Source::Environment
    } else {
        Source::Application
    };
    fits.then_some((
        level,
        target.dimensions.len(),
        target.environment.is_some(),
        target.application.is_some(),
    ))
}

/// The parameters of a release in a scope as they stand now, by variable.
pub fn resolve(
    state: &State,
    name: &Name,
    scope: &ScopeSpec,
    release: &ReleaseSpec,
) -> Table<String, ResolvedParameter> {
    let own = |values: &std::collections::BTreeMap<String, String>, source| {
        values
            .iter()
            .map(|(variable, value)| {
                let value = value.clone();
                (variable.clone(), ResolvedParameter { value, source })
            })
            .collect::<Vec<_>>()
    };
    let mut resolved: Table<String, ResolvedParameter> = own(&release.parameters, Source::Release)
        .into_iter()
        .collect();
    let mut winners: Table<String, Rank> = Table::new();
    for object in state.parameters.values() {
        let spec = &object.spec;
        let Some(rank) = rank(&spec.target, name, scope) else {
            continue;
        };
        if winners.get(&spec.variable).is_some_and(|won| *won >= rank) {
            continue;
        }
        winners.insert(spec.variable.clone(), rank);
        let value = spec.value.clone();
        resolved.insert(
            spec.variable.clone(),
            ResolvedParameter {
                value,
                source: rank.0,
            },
        );
    }
    for (variable, parameter) in own(&scope.parameters, Source::Scope) {
        resolved.insert(variable, parameter);
    }
    resolved
}
