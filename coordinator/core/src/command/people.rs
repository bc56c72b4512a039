//! Commands about people.

use serde::{Deserialize, Serialize};
use tidegate_shared::id::Name;
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::Role;

/// See [`super::Command::UpdatePerson`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdatePerson {
    /// Who.
    pub name: Name,
    /// Roles that the person has everywhere; all of them.
    pub roles: Vec<Role>,
    /// For selection; all of them.
    pub labels: Labels,
    /// Refused on mismatch.
    pub expected_revision: Option<u64>,
}

/// See [`super::Command::RemovePerson`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemovePerson {
    /// Who.
    pub name: Name,
    /// Refused on mismatch.
    pub expected_revision: Option<u64>,
}
