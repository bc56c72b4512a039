//! Approval: so many different people must grant (product.md §5.1).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::Name;
use crate::spec::{FieldErrors, Role};
use crate::time::Span;

/// So many different people must grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ApprovalRule {
    /// How many, up to 100; 0 is a veto: satisfied unless somebody denies first. Left out: 1, or 0
    /// with `on_true: deny`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<u32>,
    /// Whose decisions count; left out: everybody's with the role approver where it goes.
    #[serde(default, skip_serializing_if = "Approvers::is_everybody")]
    pub from: Approvers,
    /// Whether the person who asked for the deployment has no say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_requester: bool,
    /// CEL; empty: always true.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub condition: String,
    /// What the rule does where the condition holds.
    #[serde(default, skip_serializing_if = "OnTrue::is_require")]
    pub on_true: OnTrue,
    /// How long after the creation of the deployment decisions count.
    #[serde(default = "default_expiry")]
    pub expires: Span,
}

/// What an approval rule does where its condition holds; elsewhere `require` asks nobody, and
/// `approve` and `deny` ask for `required`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnTrue {
    /// People have to agree.
    #[default]
    Require,
    /// Nobody has to.
    Approve,
    /// It is denied.
    Deny,
}

impl OnTrue {
    #[allow(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde hands out references"
    )]
    const fn is_require(&self) -> bool {
        matches!(self, Self::Require)
    }
}

/// Somebody whose decisions count: `role:approver`, `team:sre` or `user:ann`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Approver {
    /// Everybody with this role where the deployment goes.
    Role(Role),
    /// Every member of this team.
    Team(Name),
    /// This person.
    User(Name),
}

impl fmt::Display for Approver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Role(role) => write!(f, "role:{}", role.as_str()),
            Self::Team(team) => write!(f, "team:{team}"),
            Self::User(user) => write!(f, "user:{user}"),
        }
    }
}

impl FromStr for Approver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("\"{text}\" names nobody: want role:approver, team:NAME or user:NAME");
        let (kind, name) = text.split_once(':').ok_or_else(wrong)?;
        match kind {
            "role" => name.parse().map(Self::Role),
            "team" => Name::new(name).map(Self::Team).map_err(|_| wrong()),
            "user" => Name::new(name).map(Self::User).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Approver {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Approver> for String {
    fn from(approver: Approver) -> Self {
        approver.to_string()
    }
}

/// People whose decisions count, written as one or as a list; anyone who is one of them may decide.
/// Empty: every approver.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Approvers(pub Vec<Approver>);

impl Approvers {
    /// Whether everybody may decide.
    pub fn is_everybody(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Approvers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everybody() {
            return f.pad("anyone");
        }
        let all: Vec<String> = self.0.iter().map(Approver::to_string).collect();
        f.pad(&all.join(" or "))
    }
}

impl<'de> Deserialize<'de> for Approvers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> serde::de::Visitor<'de> for OneOrMany {
            type Value = Approvers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("role:approver, team:NAME or user:NAME, or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Approvers, E> {
                let one = text.parse().map_err(E::custom)?;
                Ok(Approvers(vec![one]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> Result<Approvers, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = list.next_element()? {
                    all.push(one);
                }
                Ok(Approvers(all))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

const fn default_expiry() -> Span {
    Span::from_hours(72)
}

impl Default for ApprovalRule {
    fn default() -> Self {
        Self {
            required: None,
            from: Approvers::default(),
            not_requester: false,
            condition: String::new(),
            on_true: OnTrue::Require,
            expires: default_expiry(),
        }
    }
}

impl ApprovalRule {
    /// How many grants it asks for where it asks people.
    pub fn needed(&self) -> u32 {
        self.required.unwrap_or(match self.on_true {
            OnTrue::Require | OnTrue::Approve => 1,
            OnTrue::Deny => 0,
        })
    }

    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(
            self.required.is_none_or(|required| required <= 100),
            "required",
            "want 0 to 100",
        );
        errors.require(
            self.expires >= Span::from_secs(1),
            "expires",
            "want at least 1s",
        );
        errors.require(self.from.0.len() <= 100, "from", "want at most 100");
        errors.require(
            self.on_true == OnTrue::Require || !self.condition.trim().is_empty(),
            "on_true",
            "approve and deny need a condition",
        );
        errors
    }
}
