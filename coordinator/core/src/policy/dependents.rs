//! Who would miss the release that a person goes back from: the other side of `dependency`, asked at
//! a return to an older release (product.md §5.6).

use tidegate_shared::id::Name;
use tidegate_shared::spec::{DependencyRule, DependencyWhere, PolicySpec};
use tidegate_shared::time::Timestamp;

use super::dependency::Requirement;
use super::{Answer, rules, subject};
use crate::state::{Deployment, Scope, State};

/// Whether every application that needs this one has what it needs after a return. Rules that cannot
/// be evaluated hold up their own application and not this one.
pub fn answer(state: &State, back: &Deployment, now: Timestamp) -> Answer {
    let application = &back.origin.application;
    let mut missing = Vec::new();
    for (name, policy) in &state.policies {
        let spec = &policy.spec;
        let rules = spec.dependencies.iter().enumerate();
        for (index, rule) in rules.filter(|(_, rule)| rule.application == *application) {
            if !spec.enabled || accepts(state, rule, back, now) {
                continue;
            }
            let named = format!("{name}/dependencies[{index}]");
            missing.extend(who(state, back, now, (&named, spec, rule)));
        }
    }
    if missing.is_empty() {
        return Answer::allowed("nothing depends on the release that is left");
    }
    missing.sort();
    missing.dedup();
    Answer::pending(
        missing.join("; "),
        None,
        "another version there, or `tidegate rollback --force` with a reason",
    )
}

fn accepts(state: &State, rule: &DependencyRule, other: &Deployment, now: Timestamp) -> bool {
    let Ok(requirement) = Requirement::parse(&rule.version) else {
        return true;
    };
    let release = subject::origin_facts(state, &other.origin, None, now).release;
    release.is_some_and(|release| requirement.accepts(&release) == Ok(true))
}

/// Scopes whose active deployment would miss it, each in one line.
fn who(
    state: &State,
    back: &Deployment,
    now: Timestamp,
    (named, spec, rule): (&str, &PolicySpec, &DependencyRule),
) -> Vec<String> {
    let here = &back.origin.scope_spec;
    let counts = |scope: &Scope| match rule.place {
        DependencyWhere::Anywhere => !is_elsewhere(state, back, rule, now),
        DependencyWhere::Environment => scope.spec.environment == here.environment,
        DependencyWhere::SameDimensions => {
            scope.spec.environment == here.environment && scope.spec.dimensions == here.dimensions
        }
    };
    let others = state.scopes.iter();
    let others = others.filter(|(_, scope)| scope.spec.application != rule.application);
    let mut found = Vec::new();
    for (name, scope) in others {
        let Some(active) = state.active_of(scope) else {
            continue;
        };
        let facts = subject::facts(state, active, now);
        let needs = rules::matches(spec, &facts).unwrap_or(false)
            && rules::skipped(state, active, named, now).is_none()
            && counts(scope);
        if needs {
            found.push(line(name, active, rule));
        }
    }
    found
}

fn line(scope: &Name, active: &Deployment, rule: &DependencyRule) -> String {
    let origin = &active.origin;
    format!(
        "{} {} in {scope} needs {} {}",
        origin.application, origin.version, rule.application, rule.version
    )
}

/// Whether another scope has what is needed, which is enough for `anywhere`.
fn is_elsewhere(state: &State, back: &Deployment, rule: &DependencyRule, now: Timestamp) -> bool {
    let scopes = state.scopes.iter();
    let mut scopes = scopes.filter(|(name, scope)| {
        **name != back.origin.scope && scope.spec.application == rule.application
    });
    scopes.any(|(_, scope)| {
        let active = state.active_of(scope);
        active.is_some_and(|active| accepts(state, rule, active, now))
    })
}
