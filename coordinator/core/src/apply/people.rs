//! People, their roles, teams and role bindings. Structural: that a selector can be understood is
//! checked by the front.
//!
//! One rule is held by every way to change them: the cluster is never left without an
//! administrator.

use std::collections::BTreeSet;

use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::spec::{FieldErrors, Kind, Role, RoleBindingSpec, TeamSpec, validate_labels};

use super::governance;
use super::tx::{Tx, expect_revision};
use crate::command::{Outcome, RemovePerson, Reply, UpdatePerson};
use crate::people::{self, ROLES_LEVEL};
use crate::rejection::Rejection;
use crate::state::{Meta, Person, State, Token};

/// In order, each once.
fn sorted(roles: &[Role]) -> Vec<Role> {
    let set: BTreeSet<Role> = roles.iter().copied().collect();
    set.into_iter().collect()
}

fn told(roles: &[Role]) -> String {
    match roles {
        [] => "no role".to_owned(),
        roles => {
            let words: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
            words.join(", ")
        }
    }
}

/// What waits for approval may rest on what somebody was.
fn standings_changed(tx: &mut Tx<'_>) {
    if !tx.state.policies.is_empty() {
        governance::gates_changed(tx);
    }
}

/// Refuses what would leave a cluster that has administrators without one.
pub(super) fn keep_an_admin(tx: &Tx<'_>, before: &State) -> Result<(), Rejection> {
    if !people::in_force(&tx.state) || !people::administrators(&tx.state).is_empty() {
        return Ok(());
    }
    let last = people::administrators(before);
    let names: Vec<&str> = last.iter().map(Name::as_str).collect();
    match names.as_slice() {
        [] => Ok(()),
        names => Err(Rejection::new(
            Reason::LastAdmin,
            format!(
                "{} would not be administrator any more, and nobody else is one everywhere",
                names.join(", ")
            ),
        )),
    }
}

/// The first administrator of a new cluster.
pub(super) fn first(meta: Meta, level: u32) -> Person {
    let roles = match level >= ROLES_LEVEL {
        true => vec![Role::Admin],
        false => Vec::new(),
    };
    Person { meta, roles }
}

/// From now on people have roles, if the cluster's level allows it and they had none: everybody
/// may do what everybody could before.
pub(super) fn begin(tx: &mut Tx<'_>, before: u32, level: u32) {
    if before >= ROLES_LEVEL || level < ROLES_LEVEL {
        return;
    }
    let names: Vec<Name> = tx.state.people.keys().cloned().collect();
    for name in &names {
        let revision = tx.next_revision();
        if let Some(person) = tx.state.people.get_mut(name) {
            person.roles = vec![Role::Admin];
            person.meta.revision = revision;
        }
    }
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    let line = format!(
        "people have roles now; administrators, as before: {}",
        names.join(", ")
    );
    tx.note("roles_begun", "cluster", level, line);
}

/// A person joins by a token, or again: roles of the token are added to those that are there.
pub(super) fn admit(tx: &mut Tx<'_>, name: &Name, token: &Token) {
    let present = tx.state.people.get(name).cloned();
    let again = present.is_some();
    let mut person = present.unwrap_or_else(|| {
        let mut meta = tx.new_meta(token.labels.clone());
        meta.created_by = token.created_by.clone();
        Person {
            meta,
            roles: Vec::new(),
        }
    });
    let mut roles = person.roles.clone();
    roles.extend(&token.roles);
    if !again && roles.is_empty() && people::in_force(&tx.state) {
        roles.push(Role::Viewer);
    }
    let roles = sorted(&roles);
    let changed = roles != person.roles;
    person.roles = roles;
    if changed && again {
        person.meta.revision = tx.next_revision();
    }
    let word = if again { " again" } else { "" };
    let mut line = format!("{name} may log in{word}, invited by {}", token.created_by);
    if people::in_force(&tx.state) {
        line.push_str(&format!("; roles: {}", told(&person.roles)));
    }
    let details = match people::in_force(&tx.state) {
        true => vec![("roles", told(&person.roles))],
        false => Vec::new(),
    };
    tx.state.people.insert(name.clone(), person);
    if changed && again {
        standings_changed(tx);
    }
    tx.note_with("person_joined", "person", name, line, &details);
}

fn find<'a>(tx: &'a Tx<'_>, name: &Name) -> Result<&'a Person, Rejection> {
    let found = tx.state.people.get(name);
    found.ok_or_else(|| Rejection::new(Reason::NotFound, format!("there is no user \"{name}\"")))
}

/// Changes a person's own roles and labels; what stands there already raises no revision.
pub(super) fn update(tx: &mut Tx<'_>, command: &UpdatePerson) -> Outcome {
    let UpdatePerson {
        name,
        roles,
        labels,
        expected_revision,
    } = command;
    let what = format!("user \"{name}\"");
    let mut person = find(tx, name)?.clone();
    expect_revision(&what, *expected_revision, person.meta.revision)?;
    validate_labels(labels)
        .into_result()
        .map_err(|errors| Rejection::fields(&what, errors))?;
    let roles = sorted(roles);
    if person.roles == roles && person.meta.labels == *labels {
        return Ok(Reply::Object {
            revision: person.meta.revision,
            created: false,
            changed: false,
        });
    }
    let before = tx.state.clone();
    let had = told(&person.roles);
    let line = match person.roles == roles {
        true => format!("the labels of {name} were changed"),
        false => format!("{name} has {} everywhere now, before {had}", told(&roles)),
    };
    let details = [("before", had), ("roles", told(&roles))];
    person.roles = roles;
    person.meta.labels.clone_from(labels);
    person.meta.revision = tx.next_revision();
    let revision = person.meta.revision;
    tx.state.people.insert(name.clone(), person);
    keep_an_admin(tx, &before)?;
    standings_changed(tx);
    tx.note_with("person_changed", "person", name, line, &details);
    Ok(Reply::Object {
        revision,
        created: false,
        changed: true,
    })
}

/// Takes a person out of the cluster: the certificate is worth nothing any more, and no team or
/// binding names the person, so that nobody of that name gets anything by it later.
pub(super) fn remove(tx: &mut Tx<'_>, command: &RemovePerson) -> Outcome {
    let name = &command.name;
    let what = format!("user \"{name}\"");
    let revision = find(tx, name)?.meta.revision;
    expect_revision(&what, command.expected_revision, revision)?;
    let before = tx.state.clone();
    tx.state.people.remove(name);
    for (team, object) in &before.teams {
        if object.spec.members.contains(name) {
            leave_team(tx, team, name);
        }
    }
    for (binding, object) in &before.role_bindings {
        if object.spec.users.contains(name) {
            leave_binding(tx, binding, name);
        }
    }
    keep_an_admin(tx, &before)?;
    standings_changed(tx);
    let line = format!("{name} is not in the cluster any more");
    tx.note("person_removed", "person", name, line);
    Ok(Reply::Done)
}

fn leave_team(tx: &mut Tx<'_>, team: &Name, name: &Name) {
    let revision = tx.next_revision();
    if let Some(object) = tx.state.teams.get_mut(team) {
        object.spec.members.remove(name);
        object.meta.revision = revision;
    }
    let line = format!("{name} left team \"{team}\" with the cluster");
    tx.note("team_changed", "team", team, line);
}

fn leave_binding(tx: &mut Tx<'_>, binding: &Name, name: &Name) {
    let revision = tx.next_revision();
    let Some(object) = tx.state.role_bindings.get_mut(binding) else {
        return;
    };
    object.spec.users.remove(name);
    object.meta.revision = revision;
    let is_empty = object.spec.users.is_empty() && object.spec.teams.is_empty();
    if is_empty {
        tx.state.role_bindings.remove(binding);
        let line = format!("role binding \"{binding}\" was deleted: {name} was the last in it");
        tx.note("role_binding_deleted", "role_binding", binding, line);
    } else {
        let line = format!("{name} left role binding \"{binding}\" with the cluster");
        tx.note("role_binding_changed", "role_binding", binding, line);
    }
}

fn unknown(what: &str, field: &str, kind: &str, name: &Name) -> Rejection {
    let mut errors = FieldErrors::default();
    errors.add(field, format!("there is no {kind} \"{name}\""));
    Rejection {
        reason: Reason::NotFound,
        ..Rejection::fields(what, errors)
    }
}

/// Every member of a team is in the cluster.
pub(super) fn check_team(tx: &Tx<'_>, what: &str, spec: &TeamSpec) -> Result<(), Rejection> {
    known_people(tx, what, "members", &spec.members)
}

/// Everybody whom a binding names is in the cluster.
pub(super) fn check_binding(
    tx: &Tx<'_>,
    what: &str,
    spec: &RoleBindingSpec,
) -> Result<(), Rejection> {
    known_people(tx, what, "users", &spec.users)?;
    let mut teams = spec.teams.iter();
    match teams.find(|team| !tx.state.teams.contains_key(*team)) {
        Some(team) => Err(unknown(what, "teams", Kind::Team.as_str(), team)),
        None => Ok(()),
    }
}

fn known_people(
    tx: &Tx<'_>,
    what: &str,
    field: &str,
    names: &BTreeSet<Name>,
) -> Result<(), Rejection> {
    let mut names = names.iter();
    match names.find(|name| !tx.state.people.contains_key(*name)) {
        Some(name) => Err(unknown(what, field, "user", name)),
        None => Ok(()),
    }
}

/// After a team or a binding was written.
pub(super) fn written(tx: &mut Tx<'_>, before: &State, reply: &Reply) -> Result<(), Rejection> {
    match reply {
        Reply::Object { changed: true, .. } => changed(tx, before),
        Reply::Object { .. }
        | Reply::Done
        | Reply::Deployments(_)
        | Reply::Named(_)
        | Reply::Joined { .. }
        | Reply::Group { .. }
        | Reply::GroupActed { .. } => Ok(()),
    }
}

/// After a team or a binding was deleted.
pub(super) fn changed(tx: &mut Tx<'_>, before: &State) -> Result<(), Rejection> {
    keep_an_admin(tx, before)?;
    standings_changed(tx);
    Ok(())
}

/// What still names a team, in words.
pub(super) fn referrer(state: &State, team: &Name) -> Option<String> {
    let mut bindings = state.role_bindings.iter();
    if let Some((binding, _)) = bindings.find(|(_, object)| object.spec.teams.contains(team)) {
        return Some(format!("role binding \"{binding}\" names it"));
    }
    let asks = |policy: &tidegate_shared::spec::PolicySpec| {
        let rule = policy.approval.as_ref();
        rule.is_some_and(|rule| {
            let team = tidegate_shared::spec::Approver::Team(team.clone());
            rule.from.0.contains(&team)
        })
    };
    let mut policies = state.policies.iter();
    let found = policies.find(|(_, object)| asks(&object.spec));
    found.map(|(policy, _)| format!("policy \"{policy}\" asks it for approval"))
}
