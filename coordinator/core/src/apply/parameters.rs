//! Parameters as a deployment gets them, resolved when it is created.
//!
//! Precedence: scope > dimension > environment > application > release default. A parameter is of
//! the highest level that its target names. Within a level the more specific target wins: the one
//! that names more dimensions, then the one that also names an environment, then the one that also
//! names the application; among equals the one whose object's name comes first. The scope's own
//! `parameters` stand above everything.
//!
//! Secrets stay sealed: a deployment's snapshot holds the sealed value, so that configuration goes
//! back with code, unless the secret says `on_rollback: latest`.

use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::spec::{
    OnRollback, ParameterKind, ParameterSpec, ParameterTarget, ReleaseSpec, ScopeSpec,
};

use crate::command::PutObject;
use crate::rejection::Rejection;
use crate::state::{ResolvedParameter, ResolvedSecret, Source, State, Table};

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
                let plain = ResolvedParameter {
                    value: value.clone(),
                    source,
                    secret: None,
                    file: None,
                };
                (variable.clone(), plain)
            })
            .collect::<Vec<_>>()
    };
    let mut resolved: Table<String, ResolvedParameter> = own(&release.parameters, Source::Release)
        .into_iter()
        .collect();
    let mut winners: Table<String, Rank> = Table::new();
    for (parameter, object) in state.parameters_near(name, scope) {
        let spec = &object.spec;
        let Some(rank) = rank(&spec.target, name, scope) else {
            continue;
        };
        if winners.get(&spec.variable).is_some_and(|won| *won >= rank) {
            continue;
        }
        winners.insert(spec.variable.clone(), rank);
        resolved.insert(spec.variable.clone(), resolved_as(parameter, spec, rank.0));
    }
    for (variable, parameter) in own(&scope.parameters, Source::Scope) {
        resolved.insert(variable, parameter);
    }
    resolved
}

fn resolved_as(parameter: &Name, spec: &ParameterSpec, source: Source) -> ResolvedParameter {
    let secret = spec.sealed.as_ref().map(|sealed| ResolvedSecret {
        sealed: sealed.clone(),
        parameter: parameter.clone(),
        target: spec.target.clone(),
        on_rollback: spec.on_rollback,
    });
    ResolvedParameter {
        value: spec.value.clone().unwrap_or_default(),
        source,
        secret,
        file: spec.file.clone(),
    }
}

/// The frozen parameters of a deployment that is returned to: as they were, but a secret whose
/// parameter says now `on_rollback: latest` with its present value. A parameter that is gone since
/// stays as it was.
pub(super) fn returning(
    state: &State,
    frozen: &Table<String, ResolvedParameter>,
) -> Table<String, ResolvedParameter> {
    let mut parameters = frozen.clone();
    for (variable, parameter) in frozen {
        let Some(secret) = &parameter.secret else {
            continue;
        };
        let Some(now) = state.parameters.get(&secret.parameter) else {
            continue;
        };
        if now.spec.on_rollback == OnRollback::Latest
            && now.spec.variable == *variable
            && now.spec.kind == ParameterKind::Secret
        {
            let latest = resolved_as(&secret.parameter, &now.spec, parameter.source);
            parameters.insert(variable.clone(), latest);
        }
    }
    parameters
}

/// Refuses parameters of which two would be the same file, or one a folder of the other.
pub(super) fn check_files(
    scope: &Name,
    parameters: &Table<String, ResolvedParameter>,
) -> Result<(), Rejection> {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (variable, parameter) in parameters {
        let Some(file) = &parameter.file else {
            continue;
        };
        let path = file.path.as_str();
        let inside = |outer: &str, inner: &str| {
            inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let twin = seen
            .iter()
            .find(|(_, other)| inside(other, path) || inside(path, other));
        if let Some((other, taken)) = twin {
            return Err(Rejection::new(
                Reason::InvalidField,
                format!(
                    "scope \"{scope}\": the parameters {other} and {variable} cannot both be files: \"{taken}\" and \"{path}\" are the same place"
                ),
            ));
        }
        seen.push((variable, path));
    }
    Ok(())
}

/// A parameter as it is stored: a secret without a new value keeps the one that it has. The seal is
/// bound to the parameter's target, so that nobody can point a secret at another place and read it
/// there without knowing it.
pub(super) fn stored(
    state: &State,
    command: &PutObject,
    spec: &ParameterSpec,
) -> Result<ParameterSpec, Rejection> {
    let mut spec = spec.clone();
    spec.value_from = None;
    if spec.kind == ParameterKind::Plain {
        spec.sealed = None;
        return match spec.value {
            Some(_) => Ok(spec),
            None => Err(Rejection::new(
                Reason::InvalidField,
                format!("parameter \"{}\": value: is missing", command.name),
            )),
        };
    }
    spec.value = None;
    if spec.sealed.is_some() {
        return Ok(spec);
    }
    let present = state.parameters.get(&command.name).map(|o| &o.spec);
    let needs = |why: &str| {
        Err(Rejection::new(
            Reason::SecretValueNeeded,
            format!("parameter \"{}\": {why}", command.name),
        ))
    };
    match present {
        Some(held) if held.kind != ParameterKind::Secret => {
            needs("it becomes a secret, so its value has to be given again")
        }
        Some(held) if held.target != spec.target => needs(
            "its target changes; the value of a secret is bound to its target and has to be given again",
        ),
        Some(held) => {
            spec.sealed.clone_from(&held.sealed);
            Ok(spec)
        }
        None => needs("it is a new secret without a value"),
    }
}
