//! Rules about pace: gradual rollout, concurrency, retry (product.md §5.5, §5.8, §5.11).

use serde::{Deserialize, Serialize};

use super::reasonable;
use crate::spec::{FieldErrors, RolloutOrder};
use crate::time::Span;

/// In what rhythm the members of a group start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GradualRolloutRule {
    /// How `interval` is meant.
    #[serde(rename = "type")]
    pub kind: GradualType,
    /// `linear`: between members; `linear_normalized`: of the whole rollout. 0 s to 366 d.
    #[serde(alias = "time_scale_interval")]
    pub interval: Span,
    /// In what order the members that the policy matches are counted; left out: the group's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<RolloutOrder>,
}

/// How the interval of a gradual rollout is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum GradualType {
    /// So long from one member to the next.
    Linear,
    /// So long for all of them together.
    LinearNormalized,
}

/// At most so many deployments at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ConcurrencyRule {
    /// Between `CREATING` and their end, among the scopes that the policy is about; 1 to 10,000.
    pub max: u32,
}

/// Another try for deployments that failed before any traffic moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RetryRule {
    /// How many tries more, 1 to 100.
    pub max: u32,
    /// After which ends.
    #[serde(default = "failed")]
    pub on: Vec<RetryOn>,
    /// How the pauses grow.
    #[serde(default)]
    pub backoff: Backoff,
    /// The first pause.
    #[serde(default = "ten_seconds")]
    pub initial: Span,
    /// The longest pause.
    #[serde(default = "ten_minutes", rename = "max_pause")]
    pub longest: Span,
}

/// An end that another try may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    /// `FAILED`.
    Failed,
}

/// How pauses grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Backoff {
    /// n times the first one.
    Linear,
    /// Twice the one before.
    #[default]
    Exponential,
}

fn failed() -> Vec<RetryOn> {
    vec![RetryOn::Failed]
}

const fn ten_seconds() -> Span {
    Span::from_secs(10)
}

const fn ten_minutes() -> Span {
    Span::from_mins(10)
}

impl GradualRolloutRule {
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(
            self.interval <= Span::from_days(366),
            "interval",
            "want 0s to 366d",
        );
        if let Some(order) = &self.order {
            order.validate(&mut errors);
        }
        errors
    }
}

impl ConcurrencyRule {
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require((1..=10_000).contains(&self.max), "max", "want 1 to 10000");
        errors
    }
}

impl RetryRule {
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require((1..=100).contains(&self.max), "max", "want 1 to 100");
        errors.require(!self.on.is_empty(), "on", "want failed");
        errors.require(reasonable(self.initial), "initial", "want 1s to 366d");
        errors.require(
            reasonable(self.longest) && self.longest >= self.initial,
            "max_pause",
            "want 1s to 366d, and at least initial",
        );
        errors
    }
}
