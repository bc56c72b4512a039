//! Objects whose state is their spec: created and changed.

use std::sync::Arc;

use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{
    Kind, ObjectSpec, ParameterSpec, PolicySpec, ScopeSpec, validate_labels,
};

use super::tx::{Tx, expect_revision};
use super::{auto, governance, lifecycle, parameters, people};
use crate::command::{Command, Outcome, PutObject, Reply};
use crate::policy;
use crate::rejection::Rejection;
use crate::state::{Indexed, Listed, Meta, Object, Scope, ScopeStatus, State, Table};

/// Creates or changes an object; writing what stands there already raises no revision.
pub(super) fn put(tx: &mut Tx<'_>, command: &PutObject) -> Outcome {
    let what = format!("{} \"{}\"", command.spec.kind(), command.name);
    check(&what, &command.labels, &command.spec)?;
    match &command.spec {
        ObjectSpec::Application(spec) => {
            put_plain(tx, command, spec.clone(), |state| &mut state.applications)
        }
        ObjectSpec::Environment(spec) => {
            put_plain(tx, command, spec.clone(), |state| &mut state.environments)
        }
        ObjectSpec::Strategy(spec) => {
            let outcome = put_plain(tx, command, spec.clone(), |state| &mut state.strategies);
            if let Ok(Reply::Object { changed: true, .. }) = outcome {
                auto::rules_changed(tx);
            }
            outcome
        }
        ObjectSpec::Policy(spec) => {
            // What a policy's texts mean is checked by the front: see `policy::check`.
            check_dependencies(tx, &what, spec)?;
            let outcome = put_plain(tx, command, spec.clone(), |state| &mut state.policies);
            if let Ok(Reply::Object { changed: true, .. }) = outcome {
                governance::gates_changed(tx);
                auto::rules_changed(tx);
            }
            outcome
        }
        ObjectSpec::Parameter(spec) => {
            check_target(tx, &what, spec)?;
            let spec = parameters::stored(&tx.state, command, spec)?;
            put_plain(tx, command, spec, |state| &mut state.parameters)
        }
        ObjectSpec::Scope(spec) => put_scope(tx, command, spec),
        ObjectSpec::Team(spec) => {
            people::check_team(tx, &what, spec)?;
            let before = tx.state.clone();
            let reply = put_plain(tx, command, spec.clone(), |state| &mut state.teams)?;
            people::written(tx, &before, &reply)?;
            Ok(reply)
        }
        ObjectSpec::RoleBinding(spec) => {
            people::check_binding(tx, &what, spec)?;
            let before = tx.state.clone();
            let reply = put_plain(tx, command, spec.clone(), |state| &mut state.role_bindings)?;
            people::written(tx, &before, &reply)?;
            Ok(reply)
        }
    }
}

/// Whether [`put`] finds out everything that speaks against this command before it changes anything,
/// and then touches neither scopes nor agents.
pub(super) const fn refuses_first(command: &Command) -> bool {
    let Command::PutObject(command) = command else {
        return false;
    };
    match command.spec {
        ObjectSpec::Application(_) | ObjectSpec::Environment(_) | ObjectSpec::Parameter(_) => true,
        ObjectSpec::Strategy(_)
        | ObjectSpec::Policy(_)
        | ObjectSpec::Scope(_)
        | ObjectSpec::Team(_)
        | ObjectSpec::RoleBinding(_) => false,
    }
}

fn check(what: &str, labels: &Labels, spec: &ObjectSpec) -> Result<(), Rejection> {
    let mut errors = spec.validate();
    errors.0.extend(validate_labels(labels).0);
    errors
        .into_result()
        .map_err(|errors| Rejection::fields(what, errors))
}

fn invalid(what: &str, field: &str, message: &str) -> Rejection {
    let mut errors = tidegate_shared::spec::FieldErrors::default();
    errors.add(field, message);
    Rejection::fields(what, errors)
}

fn missing(what: &str, field: &str, kind: Kind, name: &Name) -> Rejection {
    let rejection = invalid(what, field, &format!("there is no {kind} \"{name}\""));
    Rejection {
        reason: Reason::NotFound,
        ..rejection
    }
}

fn check_target(tx: &Tx<'_>, what: &str, spec: &ParameterSpec) -> Result<(), Rejection> {
    let target = &spec.target;
    let unknown = |name: &&Name, there: bool| (!there).then(|| (*name).clone());
    let application = target.application.iter();
    let environment = target.environment.iter();
    let scope = target.scope.iter();
    let found = application
        .filter_map(|n| unknown(&n, tx.state.applications.contains_key(n)))
        .map(|n| missing(what, "target.application", Kind::Application, &n))
        .chain(
            environment
                .filter_map(|n| unknown(&n, tx.state.environments.contains_key(n)))
                .map(|n| missing(what, "target.environment", Kind::Environment, &n)),
        )
        .chain(
            scope
                .filter_map(|n| unknown(&n, tx.state.scopes.contains_key(n)))
                .map(|n| missing(what, "target.scope", Kind::Scope, &n)),
        )
        .next();
    found.map_or(Ok(()), Err)
}

/// The applications that the dependency rules of a policy name.
fn check_dependencies(tx: &Tx<'_>, what: &str, spec: &PolicySpec) -> Result<(), Rejection> {
    if !tx.state.is_at(policy::REFERENCES_LEVEL) {
        return Ok(());
    }
    let mut rules = spec.dependencies.iter().enumerate();
    let unknown = rules.find(|(_, rule)| !tx.state.applications.contains_key(&rule.application));
    unknown.map_or(Ok(()), |(index, rule)| {
        let field = format!("dependencies[{index}].application");
        Err(missing(what, &field, Kind::Application, &rule.application))
    })
}

/// What a write meets: nothing, or an object of this revision.
fn expect(command: &PutObject, present: Option<u64>) -> Result<(), Rejection> {
    let what = format!("{} \"{}\"", command.spec.kind(), command.name);
    match present {
        Some(_) if command.must_not_exist => Err(Rejection::new(
            Reason::AlreadyExists,
            format!("{what} exists already"),
        )),
        Some(revision) => expect_revision(&what, command.expected_revision, revision),
        None => match command.expected_revision {
            Some(_) => Err(Rejection::new(
                Reason::NotFound,
                format!("there is no {what} any more; it was expected at a revision"),
            )),
            None => Ok(()),
        },
    }
}

/// A table of objects, whether it is indexed or not.
trait Objects<S> {
    fn present(&self, name: &Name) -> Option<&Object<S>>;
    fn put(&mut self, name: Name, object: Object<S>);
}

impl<S> Objects<S> for Table<Name, Object<S>> {
    fn present(&self, name: &Name) -> Option<&Object<S>> {
        self.get(name)
    }

    fn put(&mut self, name: Name, object: Object<S>) {
        self.insert(name, object);
    }
}

impl<S> Objects<S> for Indexed<Name, Object<S>>
where
    Object<S>: Listed,
{
    fn present(&self, name: &Name) -> Option<&Object<S>> {
        self.get(name)
    }

    fn put(&mut self, name: Name, object: Object<S>) {
        self.insert(name, object);
    }
}

fn put_plain<S: PartialEq, T: Objects<S>>(
    tx: &mut Tx<'_>,
    command: &PutObject,
    spec: S,
    table: fn(&mut State) -> &mut T,
) -> Outcome {
    let present = table(&mut tx.state).present(&command.name);
    expect(command, present.map(|object| object.meta.revision))?;
    let created = present.is_none();
    if let Some(object) = present
        && object.spec == spec
        && object.meta.labels == command.labels
    {
        return Ok(unchanged(&object.meta));
    }
    let present = present.map(|object| object.meta.clone());
    let meta = meta_of(tx, command, present);
    let revision = meta.revision;
    let object = Object { meta, spec };
    table(&mut tx.state).put(command.name.clone(), object);
    Ok(written(tx, command, revision, created))
}

fn unchanged(meta: &Meta) -> Reply {
    Reply::Object {
        revision: meta.revision,
        created: false,
        changed: false,
    }
}

fn meta_of(tx: &mut Tx<'_>, command: &PutObject, present: Option<Meta>) -> Meta {
    match present {
        Some(meta) => Meta {
            labels: command.labels.clone(),
            revision: tx.next_revision(),
            ..meta
        },
        None => tx.new_meta(command.labels.clone()),
    }
}

fn written(tx: &mut Tx<'_>, command: &PutObject, revision: u64, created: bool) -> Reply {
    let kind = command.spec.kind().as_str();
    let done = if created { "created" } else { "changed" };
    tx.note_with(
        format!("{kind}_{done}"),
        kind,
        &command.name,
        format!("{kind} \"{}\" was {done}", command.name),
        &[("revision", revision.to_string())],
    );
    Reply::Object {
        revision,
        created,
        changed: true,
    }
}

fn put_scope(tx: &mut Tx<'_>, command: &PutObject, spec: &ScopeSpec) -> Outcome {
    let what = format!("scope \"{}\"", command.name);
    if !tx.state.applications.contains_key(&spec.application) {
        return Err(missing(
            &what,
            "application",
            Kind::Application,
            &spec.application,
        ));
    }
    if !tx.state.environments.contains_key(&spec.environment) {
        return Err(missing(
            &what,
            "environment",
            Kind::Environment,
            &spec.environment,
        ));
    }
    let strategy = spec
        .auto_deploy
        .as_ref()
        .and_then(|auto| auto.strategy.as_ref());
    if let Some(name) = strategy.filter(|name| !tx.state.strategies.contains_key(*name)) {
        return Err(missing(&what, "auto_deploy.strategy", Kind::Strategy, name));
    }
    let present = tx.state.scopes.get(&command.name).cloned();
    expect(command, present.as_ref().map(|scope| scope.meta.revision))?;
    let Some(mut scope) = present else {
        let scope = Scope {
            meta: tx.new_meta(command.labels.clone()),
            spec: Arc::new(spec.clone()),
            status: ScopeStatus::Creating,
            active: None,
            candidate: None,
            waiting: Vec::new(),
            retired: Vec::new(),
            kept: Vec::new(),
            last_active: None,
        };
        tx.put_scope(&command.name, scope);
        let revision = tx.state.last_revision;
        auto::scope_written(tx, &command.name, None);
        return Ok(written(tx, command, revision, true));
    };
    check_immutable(&what, &scope.spec, spec)?;
    if *scope.spec == *spec && scope.meta.labels == command.labels {
        return Ok(unchanged(&scope.meta));
    }
    let before = std::mem::replace(&mut scope.spec, Arc::new(spec.clone()));
    scope.meta.labels.clone_from(&command.labels);
    let under_way = scope.candidate;
    tx.put_scope(&command.name, scope);
    let revision = tx.state.last_revision;
    auto::scope_written(tx, &command.name, Some(&before));
    if let Some(id) = under_way {
        let mut candidate = tx.state.deployment(id)?.clone();
        let before = candidate.traffic;
        lifecycle::recount(tx, &mut candidate);
        if candidate.traffic != before {
            tx.put_deployment(candidate);
        }
    }
    Ok(written(tx, command, revision, false))
}

fn check_immutable(what: &str, before: &ScopeSpec, after: &ScopeSpec) -> Result<(), Rejection> {
    let field = if before.application != after.application {
        Some(("application", &before.application))
    } else if before.environment != after.environment {
        Some(("environment", &before.environment))
    } else {
        None
    };
    match field {
        None => Ok(()),
        Some((field, value)) => {
            let message = format!("is \"{value}\" and cannot be changed; make a new scope");
            Err(Rejection {
                reason: Reason::Immutable,
                ..invalid(what, field, &message)
            })
        }
    }
}
