//! Policies: rules of whether and when.

use serde::{Deserialize, Serialize};

use super::FieldErrors;
use crate::time::Span;

/// A selector and rules; all rules of all matching policies must allow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySpec {
    /// Which deployments it is about. For now comparisons `application.name`, `environment.name`,
    /// `scope.name` `== "…"` joined by `&&`; empty: every deployment.
    pub selector: String,
    /// Switched off without being deleted.
    pub enabled: bool,
    /// Only the order of display.
    pub priority: i32,
    /// People must agree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalRule>,
}

/// So many different people must grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRule {
    /// How many; 1 to 100.
    pub required: u32,
    /// How long after the creation of the deployment decisions count.
    #[serde(default = "default_expiry")]
    pub expires: Span,
}

const fn default_expiry() -> Span {
    Span::from_hours(72)
}

impl Default for PolicySpec {
    fn default() -> Self {
        Self {
            selector: String::new(),
            enabled: true,
            priority: 0,
            approval: None,
        }
    }
}

impl PolicySpec {
    /// What is wrong with it; the selector is checked where it is evaluated.
    pub fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        match &self.approval {
            Some(approval) => {
                errors.require(
                    (1..=100).contains(&approval.required),
                    "approval.required",
                    "want 1 to 100",
                );
                errors.require(
                    approval.expires >= Span::from_secs(1),
                    "approval.expires",
                    "want at least 1s",
                );
            }
            None => errors.add("approval", "a policy needs a rule; for now: approval"),
        }
        errors
    }
}
