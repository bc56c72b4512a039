//! Deployment windows (product.md §5.2).

use serde::{Deserialize, Serialize};

use super::reasonable;
use crate::spec::FieldErrors;
use crate::time::Span;

/// When deployments may start: [start, start + duration) of each start of the recurrence rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WindowRule {
    /// Whether they may inside, or may not.
    #[serde(default)]
    pub kind: WindowKind,
    /// RFC 5545, as `FREQ=WEEKLY;BYDAY=MO,TU;BYHOUR=9;BYMINUTE=0;BYSECOND=0`; a union.
    pub rrules: Vec<String>,
    /// Where the rules are counted from, on the wall clock: `2026-01-05T09:00:00`. Needed with
    /// INTERVAL and COUNT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtstart: Option<String>,
    /// How long each lasts, in elapsed time; 1 s to 366 d.
    pub duration: Span,
    /// As `Europe/Berlin`.
    #[serde(default = "utc")]
    pub time_zone: String,
    /// What happens to deployments while it is closed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub outcome: WindowOutcome,
    /// Whether the first deployment to a scope obeys.
    #[serde(default, skip_serializing_if = "is_default")]
    pub first_deployment: FirstDeployment,
}

/// What is inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WindowKind {
    /// The time in which deployments may start.
    #[default]
    Allow,
    /// The time in which they may not.
    Deny,
}

/// What a closed window means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WindowOutcome {
    /// Deployments wait.
    #[default]
    Wait,
    /// They are denied.
    Deny,
}

/// Whether the first deployment to a scope obeys a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FirstDeployment {
    /// Like every other.
    #[default]
    Obey,
    /// It starts at once.
    Exempt,
}

fn utc() -> String {
    "UTC".to_owned()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl WindowRule {
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(
            (1..=16).contains(&self.rrules.len()),
            "rrules",
            "want 1 to 16 recurrence rules",
        );
        errors.require(reasonable(self.duration), "duration", "want 1s to 366d");
        errors
    }
}
