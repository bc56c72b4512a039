//! What a deployment was made with: fixed when it is made, and never changed.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{Name, Version};
use tidegate_shared::secret::Sealed;
use tidegate_shared::spec::{
    AssetSpec, FileSpec, HealthCheck, OnRollback, ParameterTarget, ScopeSpec, Strategy,
};

use super::{Link, Table};
use crate::command::{Actor, OnConflict};

/// What a deployment was made with. Parts that many deployments have in common are held once; on the
/// wire each stands there in full (`state/packed.rs` writes snapshots).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The application.
    pub application: Name,
    /// The release.
    pub version: Version,
    /// Digest of the release.
    pub release_digest: Digest,
    /// The scope.
    pub scope: Name,
    /// The scope's fields as they were; `instances_per_agent` is read live.
    pub scope_spec: Arc<ScopeSpec>,
    /// The asset that the scope takes.
    pub asset: Arc<AssetSpec>,
    /// The check that counts: the scope's, else the asset's, else "the process runs".
    pub health_check: Arc<HealthCheck>,
    /// Name of the strategy; none: defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy_name: Option<Name>,
    /// The strategy as resolved at creation.
    pub strategy: Arc<Strategy>,
    /// The parameters as resolved at creation.
    pub parameters: Table<String, ResolvedParameter>,
    /// What it does about another one under way.
    pub on_conflict: OnConflict,
    /// Skips steps, analysis and bake, and finalizes by itself. Needs no approval.
    pub fast: bool,
    /// A return to a rejected release that a person forced, or that happens by itself.
    pub forced: bool,
    /// The deployment that it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    /// It made itself (`auto_deploy`): who made the release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto: Option<Actor>,
}

impl Origin {
    /// The same, holding every part that equals the other's together with it.
    #[must_use]
    pub fn sharing(mut self, other: &Self) -> Self {
        fn share<T: PartialEq>(own: &mut Arc<T>, other: &Arc<T>) {
            if !Arc::ptr_eq(own, other) && own == other {
                *own = Arc::clone(other);
            }
        }
        share(&mut self.scope_spec, &other.scope_spec);
        share(&mut self.asset, &other.asset);
        share(&mut self.health_check, &other.health_check);
        share(&mut self.strategy, &other.strategy);
        if self.parameters == other.parameters {
            self.parameters = other.parameters.clone();
        }
        self
    }
}

/// A value with where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedParameter {
    /// The value; empty for a secret.
    pub value: String,
    /// The level that won.
    pub source: Source,
    /// It is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<ResolvedSecret>,
    /// It is a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSpec>,
}

/// A secret as a deployment holds it: still sealed, with what the seal is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedSecret {
    /// The value, encrypted under the cluster key.
    pub sealed: Sealed,
    /// The parameter's name.
    pub parameter: Name,
    /// What the parameter is a value of.
    pub target: ParameterTarget,
    /// Which value a return takes.
    #[serde(default)]
    pub on_rollback: OnRollback,
}

/// Levels of parameters, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Default of the release.
    Release,
    /// Of the application.
    Application,
    /// Of the environment.
    Environment,
    /// Of dimensions.
    Dimension,
    /// Of the scope.
    Scope,
}
