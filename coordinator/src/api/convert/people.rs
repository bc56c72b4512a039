//! People and their roles on the wire.

use tidegate_coordinator_core::State;
use tidegate_coordinator_core::people::{self, Via};
use tidegate_coordinator_core::state::Person;
use tidegate_proto::control::v1 as pb;
use tidegate_shared::id::Name;
use tidegate_shared::spec::Role;
use tonic::Status;

use super::metadata;
use crate::api::status;

/// Roles by their words.
///
/// # Errors
/// The one that is none.
pub fn roles(field: &str, words: &[String]) -> Result<Vec<Role>, Status> {
    let read = |(position, word): (usize, &String)| {
        let role: Result<Role, String> = word.parse();
        role.map_err(|error| status::wrong_field(&format!("{field}[{position}]"), error))
    };
    words.iter().enumerate().map(read).collect()
}

/// Every role of a person.
#[must_use]
pub fn grants(state: &State, user: &Name) -> Vec<pb::RoleGrant> {
    let grants = people::grants(state, user).into_iter();
    let shown = grants.map(|grant| pb::RoleGrant {
        role: grant.role.to_string(),
        selector: grant.selector.to_owned(),
        via: match grant.via {
            Via::Own => "own".to_owned(),
            Via::Binding(name) => format!("binding {name}"),
            Via::Team { binding, team } => format!("team {team} by binding {binding}"),
        },
    });
    shown.collect()
}

/// The teams of a person.
#[must_use]
pub fn teams(state: &State, user: &Name) -> Vec<String> {
    let teams = people::teams_of(state, user);
    teams.iter().map(Name::to_string).collect()
}

/// A person.
#[must_use]
pub fn person(state: &State, name: &Name, found: &Person) -> pb::Person {
    pb::Person {
        metadata: Some(metadata(name.as_str(), &found.meta)),
        roles: found.roles.iter().map(ToString::to_string).collect(),
        grants: grants(state, name),
        teams: teams(state, name),
    }
}
