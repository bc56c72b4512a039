//! Rules about releases: cooldown, progression, dependency, release selector, guardrail
//! (product.md §5.3, §5.4, §5.6, §5.7, §5.12).

use serde::{Deserialize, Serialize};

use super::reasonable;
use crate::id::Name;
use crate::spec::FieldErrors;
use crate::time::Span;

/// A newer release starts only so long after the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CooldownRule {
    /// From one entry into `CREATING` to the next; 0 s to 366 d.
    pub interval: Span,
}

/// A release has to succeed in other environments first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ProgressionRule {
    /// CEL over `environment`: which environments come first.
    pub after: String,
    /// Share of their scopes that has to succeed, 1 to 100.
    #[serde(default = "everything")]
    pub min_success_percentage: u32,
    /// How long it has to be good there.
    #[serde(default, skip_serializing_if = "Span::is_zero")]
    pub soak: Span,
    /// How old the latest success may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// Whether a success without evidence does not count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_verification: bool,
    /// All those environments, or any.
    #[serde(default, rename = "match")]
    pub matching: Matching,
    /// What an environment without a scope of the application means.
    #[serde(default)]
    pub on_empty: OnEmpty,
}

const fn everything() -> u32 {
    100
}

/// All or any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Matching {
    /// Every one.
    #[default]
    All,
    /// One is enough.
    Any,
}

/// What nothing to succeed in means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnEmpty {
    /// It blocks.
    #[default]
    Block,
    /// It allows.
    Allow,
}

/// Another application has to be there in a certain version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DependencyRule {
    /// Which application.
    pub application: Name,
    /// A range of semantic versions as `>=2.1, <3`, or CEL over its `release`.
    pub version: String,
    /// Where it has to be active.
    #[serde(default, rename = "where")]
    pub place: DependencyWhere,
}

/// Where the other application has to be active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DependencyWhere {
    /// In scopes of the same environment with the same dimensions.
    SameDimensions,
    /// In the same environment.
    #[default]
    Environment,
    /// In any scope.
    Anywhere,
}

/// Which releases may go there at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ReleaseSelectorRule {
    /// CEL over `release`, and the rest.
    pub condition: String,
}

/// What a deployment must look like to be created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GuardrailRule {
    /// CEL over `strategy`, and the rest; false: it is refused.
    pub condition: String,
    /// What the person who is refused reads.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl CooldownRule {
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(
            self.interval <= Span::from_days(366),
            "interval",
            "want 0s to 366d",
        );
        errors
    }
}

impl ProgressionRule {
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(
            (1..=100).contains(&self.min_success_percentage),
            "min_success_percentage",
            "want 1 to 100",
        );
        errors.require(self.soak <= Span::from_days(366), "soak", "want 0s to 366d");
        errors.require(
            self.max_age.is_none_or(reasonable),
            "max_age",
            "want 1s to 366d",
        );
        errors.require(
            self.max_age.is_none_or(|age| age >= self.soak),
            "max_age",
            "is shorter than soak: nothing would ever be allowed",
        );
        present(&mut errors, "after", &self.after);
        errors
    }
}

impl DependencyRule {
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        present(&mut errors, "version", &self.version);
        errors
    }
}

impl ReleaseSelectorRule {
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        present(&mut errors, "condition", &self.condition);
        errors
    }
}

impl GuardrailRule {
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        present(&mut errors, "condition", &self.condition);
        errors.require(
            self.message.len() <= 500,
            "message",
            "want at most 500 bytes",
        );
        errors
    }
}

fn present(errors: &mut FieldErrors, field: &str, text: &str) {
    errors.require(!text.trim().is_empty(), field, "is missing");
}
