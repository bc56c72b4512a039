//! A scope with the roles of its deployments.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_shared::id::DeploymentId;
use tidegate_shared::spec::ScopeSpec;

use super::Meta;

/// A place where one application runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// What every object carries.
    pub meta: Meta,
    /// The wish.
    pub spec: Arc<ScopeSpec>,
    /// Where it is in its life.
    pub status: ScopeStatus,
    /// The newest finalized deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<DeploymentId>,
    /// The one deployment from `CREATING` to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<DeploymentId>,
    /// Those before `CREATING`, oldest first.
    pub waiting: Vec<DeploymentId>,
    /// Ended ones whose place is not yet observed gone everywhere.
    pub retired: Vec<DeploymentId>,
    /// Finalized ones in the order in which a return takes them, at most `keep_releases`: the active
    /// one first, then those before it, then those that were returned from. One entry per release
    /// and parameters. A return to one is fast.
    pub kept: Vec<DeploymentId>,
    /// The last one that was active before the scope was stopped: what a start brings back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_active: Option<DeploymentId>,
}

/// Where a scope is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScopeStatus {
    /// Nothing was ever finalized here.
    Creating,
    /// It has an active deployment.
    Ready,
    /// Its active deployment is being deleted, or waits for a candidate to end first.
    Stopping,
    /// Its active deployment was deleted.
    Stopped,
    /// Gone for good.
    Deleted,
}

impl ScopeStatus {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }
}
