//! What the planner found of the releases that a scope takes by itself.

use serde::{Deserialize, Serialize};
use tidegate_shared::id::{DeploymentId, Name, Version};

/// See [`super::Command::AutoDeploy`]. Conditions, rules and guardrails were evaluated by the planner;
/// `apply` checks the revision and what is structural.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoDeploy {
    /// The scope.
    pub scope: Name,
    /// Of the scope's [`crate::state::Auto`], as the planner saw it; mismatch is `STALE`.
    pub revision: u64,
    /// Releases to deploy, oldest first; empty: none.
    pub deploy: Vec<Version>,
    /// Deployments made by themselves that wait and are not wanted any more.
    pub supersede: Vec<DeploymentId>,
    /// A release was left out because rules or a missing part refused it.
    pub refused: bool,
    /// What was found of each release that was looked at, in one line each.
    pub looked: Vec<String>,
}
