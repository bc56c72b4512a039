//! Commands: the closed set of intentions that the log carries, and their answers.

mod action;
mod auto;
mod governance;
mod group;
mod people;
mod reply;
mod subject;

pub use governance::{CreateFreeze, CreateSkip, Named};
pub use group::{ActOnGroup, AddToGroup, AdvanceGroup, CreateGroup, DecideGroup, GroupAction};

pub use action::{Action, Advance, Cause, GateEvidence, GroupTurn};
pub use auto::AutoDeploy;
pub use people::{RemovePerson, UpdatePerson};
pub use reply::{Applied, Outcome, Reply};
pub use tidegate_shared::audit::Actor;

use serde::{Deserialize, Serialize};
use tidegate_shared::assignment::Facts;
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{ClusterId, DeploymentId, Name, RequestId, TokenId, Version};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{Kind, ObjectSpec, ReleaseSpec, ReleaseStatus, Role, StrategySpec};
use tidegate_shared::time::Timestamp;
use tidegate_shared::weight::Weight;

use crate::state::{Addresses, CaRecord, NodeId};

/// One Raft entry: 1…n commands at one instant. A command's position is (index, ordinal).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// max(last `at`, the leader's clock).
    pub at: Timestamp,
    /// In order.
    pub items: Vec<Item>,
}

/// One command with who asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Who.
    pub actor: Actor,
    /// Remembered so that a retry answers the same.
    pub request: RequestKey,
    /// What. Behind a pointer, since entries of many commands are moved about a lot and commands
    /// are of very different sizes.
    pub command: Box<Command>,
}

/// What a retry is recognised by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKey {
    /// A client's, remembered 24 h; older ones are refused.
    Client(RequestId),
    /// The planner's: hash of (deployment, revision, action) without the figures and times that the
    /// action carries for people; exempt from age. The same key again is the same move.
    Planner(Digest),
}

/// An intention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// The first entry of a cluster.
    InitCluster(InitCluster),
    /// Creates or changes an object.
    PutObject(PutObject),
    /// Deletes an object that nothing refers to.
    DeleteObject(DeleteObject),
    /// Makes a release; `ready` at once if all its blobs are stored.
    CreateRelease(CreateRelease),
    /// `ready`, `paused`, `rejected`.
    SetReleaseStatus(SetReleaseStatus),
    /// Which releases are out of use, and which have been for so long that their assets may go.
    ReviewReleases(ReviewReleases),
    /// One deployment per scope, all or none.
    CreateDeployments(CreateDeployments),
    /// A person's verb on a deployment.
    ActOnDeployment(ActOnDeployment),
    /// A person's answer to an approval rule.
    Decide(Decide),
    /// Stops a scope: its active deployment is deleted.
    StopScope(StopScope),
    /// Starts a stopped scope again.
    StartScope(ScopeName),
    /// Goes through the steps again with the same release and present parameters.
    RestartScope(ScopeName),
    /// Back to an earlier finalized release.
    RollbackScope(RollbackScope),
    /// Makes a join token.
    CreateToken(CreateToken),
    /// Takes a join token back.
    DeleteToken(DeleteToken),
    /// A newcomer uses a token.
    Join(Join),
    /// Facts of an agent, told at its connection, when they changed.
    UpdateAgent(UpdateAgent),
    /// Takes an agent out of the cluster.
    RemoveAgent(AgentName),
    /// A member tells its addresses and what it supports, when they changed.
    UpdateMember(UpdateMember),
    /// Takes a coordinator out of the member table.
    RemoveMember(MemberId),
    /// Every member supports it: newer commands and fields may be used.
    RaiseLevel(RaiseLevel),
    /// Lets a rule be passed over.
    CreateSkip(CreateSkip),
    /// Takes a skip back.
    DeleteSkip(Named),
    /// Nothing new starts for a while.
    Freeze(CreateFreeze),
    /// Ends a freeze before its time.
    Thaw(Named),
    /// Changes a person's own roles and labels.
    UpdatePerson(UpdatePerson),
    /// Takes a person out of the cluster, its teams and bindings.
    RemovePerson(RemovePerson),
    /// The planner's next move of a deployment.
    Advance(Advance),
    /// What the planner makes of new releases for a scope that takes them by itself.
    AutoDeploy(AutoDeploy),
    /// One release to many scopes, with one handle; all or none.
    CreateGroup(CreateGroup),
    /// A person's verb on a group.
    ActOnGroup(ActOnGroup),
    /// More scopes for a group.
    AddToGroup(AddToGroup),
    /// A person's answer to the approval rules of every member that waits for it.
    DecideGroup(DecideGroup),
    /// The planner's next move of a group.
    AdvanceGroup(AdvanceGroup),
}

/// See [`Command::InitCluster`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitCluster {
    /// Minted at `init`.
    pub cluster: ClusterId,
    /// Fixed for ever: the host part of every identity.
    pub trust_domain: String,
    /// Name of the first node, which becomes node 1.
    pub name: Name,
    /// Where the first node listens.
    pub addresses: Addresses,
    /// The certificate authority.
    pub ca: CaRecord,
    /// The first administrator.
    pub admin: Name,
    /// The cluster level to begin with.
    pub level: u32,
}

/// See [`Command::PutObject`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutObject {
    /// Unique among its kind.
    pub name: Name,
    /// For selection.
    pub labels: Labels,
    /// The wish.
    pub spec: ObjectSpec,
    /// Refused on mismatch.
    pub expected_revision: Option<u64>,
    /// Refused if it is there.
    pub must_not_exist: bool,
}

/// See [`Command::DeleteObject`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteObject {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
    /// Refused on mismatch.
    pub expected_revision: Option<u64>,
}

/// See [`Command::CreateRelease`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateRelease {
    /// Of this application.
    pub application: Name,
    /// Its name.
    pub version: Version,
    /// For selection.
    pub labels: Labels,
    /// Assets, parameters, notes.
    pub spec: ReleaseSpec,
    /// The front has seen every blob on a majority: `ready` at once, else `building`.
    pub stored: bool,
}

/// See [`Command::SetReleaseStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetReleaseStatus {
    /// Of this application.
    pub application: Name,
    /// Which.
    pub version: Version,
    /// The new status.
    pub status: ReleaseStatus,
    /// For people.
    pub reason: String,
    /// Refused on mismatch.
    pub expected_revision: Option<u64>,
}

/// See [`Command::ReviewReleases`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReviewReleases {
    /// Out of use since now.
    pub idle: Vec<(Name, Version)>,
    /// Out of use for long enough: their assets may go.
    pub collected: Vec<(Name, Version)>,
}

/// What a new deployment does about another one that is past `PENDING`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// Refuses, naming it and its owner.
    #[default]
    Fail,
    /// Waits in `PENDING`.
    Queue,
    /// Rolls it back first; waits out `FINALIZING`.
    Supersede,
}

/// See [`Command::CreateDeployments`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateDeployments {
    /// Of this application.
    pub application: Name,
    /// This release.
    pub version: Version,
    /// To these scopes; 1 to 1,000, in a group 10,000.
    pub scopes: Vec<Name>,
    /// None: the default strategy's fields.
    pub strategy: Option<Name>,
    /// Fields that differ for these deployments only.
    pub overrides: StrategySpec,
    /// For selection.
    pub labels: Labels,
    /// See [`OnConflict`].
    pub on_conflict: OnConflict,
}

/// A person's verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Stops the state's clock.
    Pause,
    /// Goes on.
    Resume,
    /// Ends this step.
    Promote,
    /// Ends all steps.
    PromoteFull,
    /// Sets the weight, and pauses.
    Traffic(Weight),
    /// Ends the bake.
    Finalize,
    /// Takes it back.
    Cancel,
    /// Turns back to the active version.
    Rollback,
    /// A linked new deployment after a bad end.
    Retry,
}

/// See [`Command::ActOnDeployment`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActOnDeployment {
    /// Which.
    pub deployment: DeploymentId,
    /// What.
    pub verb: Verb,
    /// Refused on mismatch.
    pub expected_revision: Option<u64>,
    /// For people.
    pub reason: String,
}

/// See [`Command::Decide`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decide {
    /// Which.
    pub deployment: DeploymentId,
    /// Granted or denied.
    pub granted: bool,
    /// For people.
    pub reason: String,
}

/// See [`Command::StopScope`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopScope {
    /// Which.
    pub name: Name,
    /// Cancels a deployment under way first.
    pub cancel: bool,
}

/// Which scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScopeName {
    /// Its name.
    pub name: Name,
}

/// See [`Command::RollbackScope`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackScope {
    /// Which.
    pub name: Name,
    /// None: the release before the active one.
    pub version: Option<Version>,
    /// Even to a rejected release.
    pub force: bool,
    /// For people; required with `force`.
    pub reason: String,
}

/// What a token lets its holder become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// An agent.
    Agent,
    /// A person.
    User,
    /// A coordinator.
    Coordinator,
}

/// See [`Command::CreateToken`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Minted by the front.
    pub id: TokenId,
    /// What its holder becomes.
    pub kind: TokenKind,
    /// SHA-256 of its secret.
    pub secret_hash: Digest,
    /// Bound to the joiner.
    pub labels: Labels,
    /// Refused afterwards.
    pub expires_at: Timestamp,
    /// 1 to 10,000.
    pub uses: u32,
    /// The name that the joiner must take.
    pub name: Option<Name>,
    /// People: roles that the joiner gets everywhere; empty: viewer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Role>,
}

/// See [`Command::DeleteToken`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteToken {
    /// Which.
    pub id: TokenId,
}

/// See [`Command::Join`]. The certificate is signed by the front after this is applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// Which token.
    pub token: TokenId,
    /// SHA-256 of the secret that was shown.
    pub secret_hash: Digest,
    /// The name that the joiner wants.
    pub name: Name,
    /// Agents: facts about the host.
    pub facts: Facts,
    /// Coordinators: where the new node listens.
    pub addresses: Option<Addresses>,
}

/// See [`Command::UpdateAgent`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateAgent {
    /// Which.
    pub name: Name,
    /// Version of its program.
    pub version: String,
    /// Facts about the host.
    pub facts: Facts,
}

/// Which agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentName {
    /// Its name.
    pub name: Name,
}

/// See [`Command::UpdateMember`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateMember {
    /// Which.
    pub node: NodeId,
    /// Where it listens.
    pub addresses: Addresses,
    /// Version of its program.
    pub version: String,
    /// Highest cluster level that it supports.
    pub level: u32,
}

/// Which coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberId {
    /// Its node id.
    pub node: NodeId,
}

/// See [`Command::RaiseLevel`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaiseLevel {
    /// The new level.
    pub level: u32,
}
