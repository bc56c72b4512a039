//! Roles of people, teams, and who has which role where (security.md §6).
//!
//! The shape alone: selectors are texts here, and are checked by the coordinators when a binding is
//! written. Which role a request needs is settled by their `authz`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::FieldErrors;
use crate::id::Name;

/// What a person may do, where the role was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Role {
    /// Sees.
    Viewer,
    /// Deploys.
    Deployer,
    /// Approves.
    Approver,
    /// Operates.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [
        Self::Viewer,
        Self::Deployer,
        Self::Approver,
        Self::Operator,
        Self::Admin,
    ];

    /// The word in manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Deployer => "deployer",
            Self::Approver => "approver",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// Whether who has this role may do all that the other one allows. Approving is nobody's but
    /// the approvers' and the administrators': who deploys shall not approve it by the same role.
    pub const fn includes(self, other: Self) -> bool {
        match self {
            Self::Admin => true,
            Self::Operator => matches!(other, Self::Operator | Self::Deployer | Self::Viewer),
            Self::Approver => matches!(other, Self::Approver | Self::Viewer),
            Self::Deployer => matches!(other, Self::Deployer | Self::Viewer),
            Self::Viewer => matches!(other, Self::Viewer),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::ALL.into_iter();
        all.find(|role| role.as_str() == text).ok_or_else(|| {
            format!("\"{text}\" is no role: want viewer, deployer, approver, operator or admin")
        })
    }
}

/// Most members of a team, and people and teams of one binding.
const MOST: usize = 1_000;

/// People who have something in common.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TeamSpec {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Who is in it; at most 1,000.
    pub members: BTreeSet<Name>,
}

impl TeamSpec {
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let count = self.members.len();
        errors.require(count <= MOST, "members", "want at most 1000");
        errors.require(
            self.description.len() <= 4_096,
            "description",
            "is longer than 4,096 bytes",
        );
        errors
    }
}

/// A role for people and teams, everywhere or where a selector holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RoleBindingSpec {
    /// Which.
    pub role: Role,
    /// People who have it; with teams at least one, each at most 1,000.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub users: BTreeSet<Name>,
    /// Teams whose members have it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub teams: BTreeSet<Name>,
    /// Where: CEL over `application`, `environment` and `scope`; empty: everywhere.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
}

impl RoleBindingSpec {
    /// Whether it holds everywhere, in the cluster itself too.
    pub fn is_everywhere(&self) -> bool {
        self.selector.trim().is_empty()
    }

    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(
            !self.users.is_empty() || !self.teams.is_empty(),
            "users",
            "a binding needs somebody: name users or teams",
        );
        errors.require(self.users.len() <= MOST, "users", "want at most 1000");
        errors.require(self.teams.len() <= MOST, "teams", "want at most 1000");
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_roles_include() {
        let included = |role: Role| -> Vec<&str> {
            let all = Role::ALL.into_iter();
            all.filter(|other| role.includes(*other))
                .map(Role::as_str)
                .collect()
        };
        assert_eq!(included(Role::Viewer), ["viewer"]);
        assert_eq!(included(Role::Deployer), ["viewer", "deployer"]);
        assert_eq!(included(Role::Approver), ["viewer", "approver"]);
        assert_eq!(included(Role::Operator), ["viewer", "deployer", "operator"]);
        assert_eq!(included(Role::Admin).len(), Role::ALL.len());
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().unwrap_err().contains("want viewer"));
    }
}
