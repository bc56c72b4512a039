//! Policies: rules of whether and when.
//!
//! The shape alone: expressions, recurrence rules and time zones are texts here, and are checked by
//! the coordinators when a policy is written (`policy::check` in their core).

mod approval;
mod rollout;
mod rules;
mod window;

pub use approval::{ApprovalRule, Approver, Approvers, OnTrue};
pub use rollout::Backoff;
pub use rollout::{ConcurrencyRule, GradualRolloutRule, GradualType, RetryOn, RetryRule};
pub use rules::{
    CooldownRule, DependencyRule, DependencyWhere, GuardrailRule, Matching, OnEmpty,
    ProgressionRule, ReleaseSelectorRule,
};
pub use window::{FirstDeployment, WindowKind, WindowOutcome, WindowRule};

use serde::{Deserialize, Serialize};

use super::FieldErrors;
use crate::time::Span;

/// A selector and rules; all rules of all matching policies must allow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct PolicySpec {
    /// Which deployments it is about: CEL over `application`, `release`, `scope`, `environment`,
    /// `user` and `now`; empty: every deployment.
    pub selector: String,
    /// Switched off without being deleted.
    pub enabled: bool,
    /// Only the order of display.
    pub priority: i32,
    /// People must agree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalRule>,
    /// When deployments may start; every one has to be open.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<WindowRule>,
    /// Time between releases.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cooldown: Option<CooldownRule>,
    /// Environments that come first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progression: Option<ProgressionRule>,
    /// The pace of a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradual_rollout: Option<GradualRolloutRule>,
    /// Releases of other applications that have to be there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<DependencyRule>,
    /// Which releases may go there at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_selector: Option<ReleaseSelectorRule>,
    /// How many at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<ConcurrencyRule>,
    /// Another try after a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryRule>,
    /// What a deployment must look like to be created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guardrail: Option<GuardrailRule>,
}

impl Default for PolicySpec {
    fn default() -> Self {
        Self {
            selector: String::new(),
            enabled: true,
            priority: 0,
            approval: None,
            windows: Vec::new(),
            cooldown: None,
            progression: None,
            gradual_rollout: None,
            dependencies: Vec::new(),
            release_selector: None,
            concurrency: None,
            retry: None,
            guardrail: None,
        }
    }
}

/// Most windows and dependencies of one policy.
const MOST_RULES: usize = 32;

impl PolicySpec {
    /// How many rules it has.
    pub fn rules(&self) -> usize {
        usize::from(self.approval.is_some())
            + self.windows.len()
            + usize::from(self.cooldown.is_some())
            + usize::from(self.progression.is_some())
            + usize::from(self.gradual_rollout.is_some())
            + self.dependencies.len()
            + usize::from(self.release_selector.is_some())
            + usize::from(self.concurrency.is_some())
            + usize::from(self.retry.is_some())
            + usize::from(self.guardrail.is_some())
    }

    /// Its rules as people name them behind the policy: `approval`, `windows[0]` …
    pub fn rule_names(&self) -> Vec<String> {
        let single = [
            ("approval", self.approval.is_some()),
            ("cooldown", self.cooldown.is_some()),
            ("progression", self.progression.is_some()),
            ("gradual_rollout", self.gradual_rollout.is_some()),
            ("release_selector", self.release_selector.is_some()),
            ("concurrency", self.concurrency.is_some()),
            ("retry", self.retry.is_some()),
            ("guardrail", self.guardrail.is_some()),
        ];
        let single = single.into_iter().filter(|(_, there)| *there);
        let windows = (0..self.windows.len()).map(|index| format!("windows[{index}]"));
        let dependencies = (0..self.dependencies.len()).map(|i| format!("dependencies[{i}]"));
        let single = single.map(|(name, _)| name.to_owned());
        single.chain(windows).chain(dependencies).collect()
    }

    /// What is wrong with its shape; texts that have to be understood are checked where they are.
    pub fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(
            self.rules() > 0,
            "approval",
            "a policy needs a rule: approval, windows, cooldown, progression, gradual_rollout, dependencies, release_selector, concurrency, retry or guardrail",
        );
        let mut nest = |prefix: &str, inner: Option<FieldErrors>| {
            if let Some(inner) = inner {
                errors.nest(prefix, inner);
            }
        };
        nest(
            "approval",
            self.approval.as_ref().map(ApprovalRule::validate),
        );
        nest(
            "cooldown",
            self.cooldown.as_ref().map(CooldownRule::validate),
        );
        nest(
            "progression",
            self.progression.as_ref().map(ProgressionRule::validate),
        );
        nest(
            "gradual_rollout",
            self.gradual_rollout
                .as_ref()
                .map(GradualRolloutRule::validate),
        );
        nest(
            "concurrency",
            self.concurrency.as_ref().map(ConcurrencyRule::validate),
        );
        nest("retry", self.retry.as_ref().map(RetryRule::validate));
        nest(
            "guardrail",
            self.guardrail.as_ref().map(GuardrailRule::validate),
        );
        nest(
            "release_selector",
            self.release_selector
                .as_ref()
                .map(ReleaseSelectorRule::validate),
        );
        for (index, window) in self.windows.iter().enumerate() {
            nest(&format!("windows[{index}]"), Some(window.validate()));
        }
        for (index, rule) in self.dependencies.iter().enumerate() {
            nest(&format!("dependencies[{index}]"), Some(rule.validate()));
        }
        for (field, count) in [
            ("windows", self.windows.len()),
            ("dependencies", self.dependencies.len()),
        ] {
            errors.require(
                count <= MOST_RULES,
                field,
                format!("want at most {MOST_RULES}"),
            );
        }
        errors
    }
}

/// Whether a span is 1 s to 366 d.
fn reasonable(span: Span) -> bool {
    (Span::from_secs(1)..=Span::from_days(366)).contains(&span)
}
