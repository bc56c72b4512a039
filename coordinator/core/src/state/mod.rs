//! The replicated state: ordered persistent tables, cheap to clone.

mod access;
mod auto;
mod check;
mod checks;
mod cluster;
mod deployment;
mod governance;
mod group;
mod indexed;
mod origin;
mod packed;
mod scope;
mod table;
mod terms;

pub use auto::Auto;
pub use checks::CheckRecord;
pub use cluster::{
    Addresses, Agent, CaRecord, Cluster, Member, NodeId, Person, Remembered, SealedKey, Token,
};
pub use deployment::{
    Decision, Deployment, Durations, EndCause, Halted, InstanceCause, Link, LinkKind, Paused,
    Required, Status, StepProgress, Traffic, Verdicts,
};
pub use governance::{Finished, Freeze, Skip, Started, Track};
pub use group::{
    Closed, Counts, Fate, Given, GivenVerb, Group, GroupMember, GroupOutcome, GroupStatus,
    KEPT_GROUPS, MOST_MEMBERS, MemberEnd, Return, Stopped, Template, Wave,
};
pub use indexed::{Indexed, Listed};
pub use origin::{Origin, ResolvedParameter, ResolvedSecret, Source};
pub use packed::{Assembly, PACKED_LEVEL, Piece, Unpackable, is_packed, pieces};
pub use scope::{Scope, ScopeStatus};
pub use table::{Lean, Table};
pub use terms::{AutoTerm, Label, Place, PlaceTerm, ScopeTerm, TargetTerm};

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, GroupId, Name, ShortId, TokenId, Version};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{
    ApplicationSpec, EnvironmentSpec, ParameterSpec, PolicySpec, ReleaseSpec, ReleaseStatus,
    RoleBindingSpec, StrategySpec, TeamSpec,
};
use tidegate_shared::time::Timestamp;

use crate::command::{Actor, RequestKey};
use crate::event::Event;

/// Everything that is replicated. Equal on every node at an equal index.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Time of the last entry.
    pub at: Timestamp,
    /// Last revision that was given; never used again.
    pub last_revision: u64,
    /// Identity, members, certificate authority; none before `init`.
    pub cluster: Option<Arc<Cluster>>,
    /// By name.
    pub applications: Table<Name, Object<ApplicationSpec>>,
    /// By name.
    pub environments: Table<Name, Object<EnvironmentSpec>>,
    /// By name.
    pub strategies: Table<Name, Object<StrategySpec>>,
    /// By name.
    pub policies: Table<Name, Object<PolicySpec>>,
    /// By name.
    pub parameters: Indexed<Name, Object<ParameterSpec>>,
    /// By name.
    pub scopes: Indexed<Name, Scope>,
    /// By application and version.
    pub releases: Table<(Name, Version), Release>,
    /// By name.
    pub agents: Indexed<Name, Agent>,
    /// When each agent that is out was taken out. Only an agent that stands here is told to drain:
    /// one that the cluster never knew, or forgot by a restore, goes on serving.
    #[serde(default)]
    pub removed_agents: Lean<Name, Timestamp>,
    /// By name.
    pub people: Table<Name, Person>,
    /// By name.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub teams: Table<Name, Object<TeamSpec>>,
    /// Who has which role where, by name.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub role_bindings: Table<Name, Object<RoleBindingSpec>>,
    /// By id.
    pub tokens: Table<TokenId, Token>,
    /// Every deployment that has not left for the history ([`crate::archive`]): all that have not
    /// ended, of the ended ones those that decisions read and each scope's newest few.
    pub deployments: Indexed<DeploymentId, Deployment>,
    /// Short ids of these.
    pub short_ids: Lean<ShortId, DeploymentId>,
    /// These by scope and the revision that they were made with: oldest first.
    pub history: Lean<(Name, u64), DeploymentId>,
    /// Outcomes of requests: a client's for 24 h after it was minted, the planner's good ones for
    /// ten minutes.
    pub requests: Table<RequestKey, Remembered>,
    /// The planner's remembered requests by log position, so that they can be forgotten in order.
    pub planner_requests: Lean<(u64, u32), RequestKey>,
    /// The audit log by (index, ordinal), until rows leave for the history; then empty.
    pub events: Table<(u64, u32), Event>,
    /// Hash of the last event, wherever it is.
    pub last_hash: Option<Digest>,
    /// How releases fared, by scope.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub tracks: Table<Name, Track>,
    /// Scopes that take releases by themselves, by name: exactly those with `auto_deploy`.
    #[serde(default, skip_serializing_if = "no_rows")]
    pub auto: Indexed<Name, Auto>,
    /// Rules that people let be passed over, by name.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub skips: Table<Name, Skip>,
    /// What people froze, by name.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub freezes: Table<Name, Freeze>,
    /// Freezes that ended, as long as a group that was made before that is under way, its clock
    /// stood meanwhile, or a deployment waits that was planned to start after it. By the revision that they were made with; `until` is when they ended.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub past_freezes: Table<u64, Freeze>,
    /// Groups under way, and of each application the newest few that ended.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub groups: Table<GroupId, Group>,
    /// Those of them that have a name.
    #[serde(default, skip_serializing_if = "Lean::is_empty")]
    pub group_names: Lean<Name, GroupId>,
    /// Those of them that are under way: all that the planner looks at.
    #[serde(default, skip_serializing_if = "Lean::is_empty")]
    pub open_groups: Lean<GroupId, ()>,
    /// Those of them that have ended, by application and the revision that they ended with.
    #[serde(default, skip_serializing_if = "Lean::is_empty")]
    pub ended_groups: Lean<(Name, u64), GroupId>,
    /// Raised whenever what the gates of other deployments rest on changes: a policy, a skip, a
    /// freeze, or a start that counts. A start carries the one it was decided on.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gates_revision: u64,
    /// What has left for the history; none before [`crate::archive::ARCHIVE_LEVEL`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands out references"
)]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn no_rows<K: Ord + Clone, V: Listed>(table: &Indexed<K, V>) -> bool {
    table.is_empty()
}

/// How much has left the state for the history of every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Lines of the audit log: all of them.
    pub events: u64,
    /// Deployments; the next one that leaves gets the number after.
    pub deployments: u64,
}

/// What every object carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// For selection.
    pub labels: Labels,
    /// Time of the entry that made it.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: Actor,
    /// Raised with each change.
    pub revision: u64,
}

/// An object whose state is its spec alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object<S> {
    /// What every object carries.
    pub meta: Meta,
    /// The wish.
    pub spec: S,
}

/// One immutable version of an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// What every object carries.
    pub meta: Meta,
    /// Assets, parameters, notes.
    pub spec: ReleaseSpec,
    /// Digest over the spec.
    pub digest: Digest,
    /// Whether it may be deployed.
    pub status: ReleaseStatus,
    /// Why it was paused or rejected.
    pub reason: String,
    /// Since when no scope runs it, waits for it or could return to it, as last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Timestamp>,
}
