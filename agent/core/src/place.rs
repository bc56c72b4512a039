//! Keys: which version of which scope, and which instance of it.
//!
//! A place is keyed by its deployment and never renamed, so names of folders, units and processes
//! stay what they are while roles change.

use std::fmt;

use serde::{Deserialize, Serialize};
use tidegate_shared::assignment::Assignment;
use tidegate_shared::id::{DeploymentId, Name};

/// One version of one scope on this agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PlaceKey {
    /// The scope.
    pub scope: Name,
    /// The deployment that brought the version.
    pub deployment: DeploymentId,
}

impl PlaceKey {
    /// The place of an assignment.
    pub fn of(item: &Assignment) -> Self {
        Self {
            scope: item.scope.clone(),
            deployment: item.deployment,
        }
    }

    /// `<scope>-<short deployment id>`: the name of its folder.
    pub fn folder(&self) -> String {
        format!("{}-{}", self.scope, self.deployment.short())
    }
}

impl fmt::Display for PlaceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.scope, self.deployment.short())
    }
}

/// One instance of a place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceKey {
    /// Its place.
    pub place: PlaceKey,
    /// 0 to `count` − 1.
    pub ordinal: u32,
}

impl InstanceKey {
    /// The id that reports, units and the data plane use.
    pub fn id(&self) -> String {
        format!("tidegate-{}-{}", self.place.folder(), self.ordinal)
    }
}

impl fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id())
    }
}
