//! Who may do what where: the roles of people, from the state alone.
//!
//! A person has roles of its own, which hold everywhere, and those of role bindings that name it or
//! a team of it, each where the binding's selector holds. [`Rights`] answers for the API front and
//! [`standing`] for approval rules; both evaluate selectors, which `apply` may not: it asks
//! [`possible`]. What a request needs is the front's to say.

mod place;
mod rights;

pub use place::{Place, Reach};
pub use rights::Rights;

use std::collections::BTreeSet;

use tidegate_shared::id::Name;
use tidegate_shared::spec::Role;

use crate::policy::expression::{Expression, Facts, Subject};
use crate::state::State;

/// From this cluster level on people have roles. Below it some member could not keep them, and
/// everybody may do everything.
pub const ROLES_LEVEL: u32 = 3;

/// Whether people have roles.
pub fn in_force(state: &State) -> bool {
    let cluster = state.cluster.as_ref();
    cluster.is_some_and(|cluster| cluster.level >= ROLES_LEVEL)
}

/// Where a role comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via<'a> {
    /// It is the person's own.
    Own,
    /// A binding names the person.
    Binding(&'a Name),
    /// A binding names a team of the person.
    Team {
        /// The binding.
        binding: &'a Name,
        /// The team.
        team: &'a Name,
    },
}

/// A role that a person has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant<'a> {
    /// Which.
    pub role: Role,
    /// Where; empty: everywhere.
    pub selector: &'a str,
    /// Where it comes from.
    pub via: Via<'a>,
}

impl Grant<'_> {
    /// Whether it holds everywhere, in the cluster itself too.
    pub fn is_everywhere(&self) -> bool {
        self.selector.trim().is_empty()
    }
}

/// Every role of a person, its own first, then by name of the binding. Nobody who is not in the
/// cluster has one.
pub fn grants<'a>(state: &'a State, user: &Name) -> Vec<Grant<'a>> {
    if !in_force(state) {
        return vec![Grant {
            role: Role::Admin,
            selector: "",
            via: Via::Own,
        }];
    }
    let Some(person) = state.people.get(user) else {
        return Vec::new();
    };
    let own = person.roles.iter().map(|role| Grant {
        role: *role,
        selector: "",
        via: Via::Own,
    });
    let mut grants: Vec<Grant<'a>> = own.collect();
    for (name, binding) in &state.role_bindings {
        let spec = &binding.spec;
        let via = if spec.users.contains(user) {
            Some(Via::Binding(name))
        } else {
            let mut teams = spec.teams.iter();
            let team = teams.find(|team| is_member(state, team, user));
            team.map(|team| Via::Team {
                binding: name,
                team,
            })
        };
        grants.extend(via.map(|via| Grant {
            role: spec.role,
            selector: spec.selector.as_str(),
            via,
        }));
    }
    grants
}

fn is_member(state: &State, team: &Name, user: &Name) -> bool {
    let team = state.teams.get(team);
    team.is_some_and(|team| team.spec.members.contains(user))
}

/// The teams of a person, in order of name.
pub fn teams_of(state: &State, user: &Name) -> Vec<Name> {
    if !state.people.contains_key(user) {
        return Vec::new();
    }
    let teams = state.teams.iter();
    teams
        .filter(|(_, team)| team.spec.members.contains(user))
        .map(|(name, _)| name.clone())
        .collect()
}

/// Those who may do everything everywhere, in order of name.
pub fn administrators(state: &State) -> Vec<Name> {
    let people = state.people.keys();
    people
        .filter(|name| {
            let grants = grants(state, name);
            let mut grants = grants.iter();
            grants.any(|grant| grant.role == Role::Admin && grant.is_everywhere())
        })
        .cloned()
        .collect()
}

/// What is known of a person where something happens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Whether the person is in the cluster.
    pub is_known: bool,
    /// Roles there, with all that they include, in order.
    pub roles: BTreeSet<Role>,
    /// Teams, in order of name.
    pub teams: Vec<Name>,
}

/// What a person is where the facts are of. A selector that cannot be evaluated gives no role.
pub fn standing(state: &State, user: &Name, facts: &Facts) -> Standing {
    standing_where(state, user, |grant| {
        let selector = Expression::compile(grant.selector, Subject::Place);
        selector.is_ok_and(|selector| selector.holds(facts).unwrap_or(false))
    })
}

/// What a person may be anywhere: no more than this. Structural, for `apply`.
pub fn possible(state: &State, user: &Name) -> Standing {
    standing_where(state, user, |_| true)
}

fn standing_where(state: &State, user: &Name, holds: impl Fn(&Grant<'_>) -> bool) -> Standing {
    let mut roles = BTreeSet::new();
    for grant in grants(state, user) {
        let fresh = !roles.contains(&grant.role);
        if fresh && (grant.is_everywhere() || holds(&grant)) {
            let all = Role::ALL.into_iter();
            roles.extend(all.filter(|role| grant.role.includes(*role)));
        }
    }
    Standing {
        is_known: !in_force(state) || state.people.contains_key(user),
        roles,
        teams: teams_of(state, user),
    }
}

#[cfg(test)]
mod tests;
