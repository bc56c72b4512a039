//! Commands: the closed set of intentions that the log carries, and their answers.

use serde::{Deserialize, Serialize};
use tidegate_shared::assignment::Facts;
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{ClusterId, DeploymentId, Name, RequestId, TokenId, Version};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{Kind, ObjectSpec, ReleaseSpec, ReleaseStatus, StrategySpec};
use tidegate_shared::time::Timestamp;
use tidegate_shared::weight::Weight;

use crate::event::Event;
use crate::rejection::Rejection;
use crate::state::{Addresses, CaRecord, InstanceCause, NodeId, Verdicts};

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
    /// What.
    pub command: Command,
}

/// Who asked for a command.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// The leader's planner, or a node itself.
    System,
    /// A person, by the name in its certificate.
    User(Name),
    /// An agent, by the name in its certificate.
    Agent(Name),
    /// A coordinator, by the name in its certificate.
    Coordinator(Name),
    /// A newcomer that holds the token.
    Token(TokenId),
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::System => f.pad("system"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Agent(name) => write!(f, "agent:{name}"),
            Self::Coordinator(name) => write!(f, "coordinator:{name}"),
            Self::Token(id) => write!(f, "token:{id}"),
        }
    }
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
    /// The planner's next move of a deployment.
    Advance(Advance),
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
    /// To these scopes; 1 to 1,000.
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

/// See [`Command::Advance`]. Carries the answers that it rests on; `apply` checks only the revision,
/// the status and what is structural.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advance {
    /// Which deployment.
    pub deployment: DeploymentId,
    /// The revision that the planner saw; mismatch is `STALE`.
    pub revision: u64,
    /// The move.
    pub action: Action,
}

/// A move of a deployment that the planner found due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// `PENDING` → `CREATING_APPROVAL`: these policies ask for approval.
    RequireApproval {
        /// Names of the policies with how many grants each needs.
        policies: Vec<(Name, u32)>,
        /// When decisions stop to count.
        expires_at: Timestamp,
    },
    /// `CREATING_APPROVAL` → `PENDING`.
    ApprovalSatisfied,
    /// `CREATING_APPROVAL` → `CREATING_APPROVAL_DENIED`.
    ApprovalDenied {
        /// `denied` or `expired`.
        expired: bool,
    },
    /// `PENDING` → `CREATING` with the participants that match now.
    Start {
        /// Agents, in order of name.
        participants: Vec<Name>,
    },
    /// `CREATING` → `WAITING_FOR_INSTANCES`: staged on every participant that counts.
    Staged,
    /// Fewer instances outstanding than ever before: the clock without progress begins again.
    Progress {
        /// Instances still outstanding.
        outstanding: u32,
    },
    /// `WAITING_FOR_INSTANCES` → `RUNNING`.
    InstancesReady,
    /// The data plane holds the step's weight everywhere: its hold begins.
    StepReached,
    /// The step's hold and evidence are over: the next one. Before the first step (`RUNNING` begins
    /// at 0 %) it opens the first; not allowed at the last, whose end is `Finalize`.
    StepDone {
        /// The step ended without enough evidence.
        unverified: bool,
    },
    /// `rolling`: the present batch is replaced (in `RUNNING` its hold begins, as with
    /// `StepReached`), or, in `CANCELLING` and `ROLLING_BACK`, is back: the next batch goes.
    /// Proposed when the instances that the batch starts are healthy everywhere; it sets
    /// `traffic.desired` to the share that `traffic.replaced` was of all, so that traffic follows
    /// and what was replaced may stop (see [`crate::strategy::rolling`]).
    BatchDone,
    /// `RUNNING` → `FINALIZING`.
    Finalize {
        /// Finalized without evidence.
        unverified: bool,
    },
    /// The loser holds no traffic and is drained everywhere: it may go. The loser is the old version
    /// in `FINALIZING` and the deployment itself in `CANCELLING`, `ROLLING_BACK`, `DELETING`.
    Drained,
    /// `FINALIZING` → `FINALIZED`, `CANCELLING` → its end, `ROLLING_BACK` → its end, `DELETING` →
    /// `DELETED`: everything observed, or only excused agents are left.
    Settled {
        /// Agents where the loser is not yet observed gone.
        leftovers: Vec<Name>,
    },
    /// A rule, a deadline or permanent errors take it back, or end an initial one.
    TakeBack {
        /// Why.
        cause: Cause,
        /// The verdicts that it rests on.
        evidence: Verdicts,
    },
    /// The state's deadline passed and its declared outcome is an end: of `CREATING_APPROVAL`,
    /// `PENDING`, `CREATING`, `FINALIZING`, `CANCELLING`, `ROLLING_BACK`, `DELETING`.
    Expire {
        /// Agents where the loser is not yet observed gone; ignored where nothing was started.
        leftovers: Vec<Name>,
    },
    /// Stops the rollout where it is until people decide or `halt_max` is over.
    Halt {
        /// Why.
        cause: Cause,
        /// The verdicts that it rests on.
        evidence: Verdicts,
    },
    /// What made it halt is over by itself (lost agents came back).
    Unhalt,
    /// Participants are lost, or back.
    MarkLost {
        /// Those that are lost now, all of them.
        lost: Vec<Name>,
    },
    /// Permanent errors of participants.
    NoteErrors {
        /// The first cause per instance.
        causes: Vec<InstanceCause>,
    },
    /// Notable verdicts while it runs (dry runs, a rule met during `FINALIZING`).
    NoteEvidence {
        /// The verdicts.
        evidence: Verdicts,
    },
    /// After the end: the place of this deployment, one of its scope's `retired`, is observed gone
    /// on these agents.
    LeftoversGone {
        /// Those agents.
        agents: Vec<Name>,
    },
}

/// Why a deployment is taken back or halted, other than by a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cause {
    /// Stable word: `rule`, `progress_deadline`, `staging_deadline`, `stall`, `halt_max`,
    /// `pause_max`, `no_data`, `lost_agents`, `permanent_errors`.
    pub kind: String,
    /// One line with the figures.
    pub message: String,
}

/// What a command came to, on every node alike.
pub type Outcome = Result<Reply, Rejection>;

/// The good answer of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// An object, with its revision now; `changed` is false if it was so already.
    Object {
        /// Its revision now.
        revision: u64,
        /// It was not there before.
        created: bool,
        /// It was otherwise before.
        changed: bool,
    },
    /// Deployments that were made or acted on.
    Deployments(Vec<DeploymentId>),
    /// A newcomer is in.
    Joined {
        /// Its name.
        name: Name,
        /// What it became.
        kind: TokenKind,
        /// Coordinators: its node id.
        node: Option<NodeId>,
    },
}

/// What one item of an entry came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The answer for whoever asked.
    pub outcome: Outcome,
    /// What happened, in order.
    pub events: Vec<Event>,
}

impl Command {
    /// For audit lines: the stable name of the command, the kind of its object, and the object.
    pub fn subject(&self) -> (&'static str, &'static str, String) {
        match self {
            Self::InitCluster(c) => ("init_cluster", "cluster", c.cluster.to_string()),
            Self::PutObject(c) => ("put_object", c.spec.kind().as_str(), c.name.to_string()),
            Self::DeleteObject(c) => ("delete_object", c.kind.as_str(), c.name.to_string()),
            Self::CreateRelease(c) => (
                "create_release",
                "release",
                format!("{} {}", c.application, c.version),
            ),
            Self::SetReleaseStatus(c) => (
                "set_release_status",
                "release",
                format!("{} {}", c.application, c.version),
            ),
            Self::CreateDeployments(c) => (
                "create_deployments",
                "release",
                format!("{} {}", c.application, c.version),
            ),
            Self::ActOnDeployment(c) => (c.verb.as_str(), "deployment", c.deployment.to_string()),
            Self::Decide(c) => ("decide", "deployment", c.deployment.to_string()),
            Self::StopScope(c) => ("stop_scope", "scope", c.name.to_string()),
            Self::StartScope(c) => ("start_scope", "scope", c.name.to_string()),
            Self::RestartScope(c) => ("restart_scope", "scope", c.name.to_string()),
            Self::RollbackScope(c) => ("rollback_scope", "scope", c.name.to_string()),
            Self::CreateToken(c) => ("create_token", "token", c.id.to_string()),
            Self::DeleteToken(c) => ("delete_token", "token", c.id.to_string()),
            Self::Join(c) => ("join", "token", c.token.to_string()),
            Self::UpdateAgent(c) => ("update_agent", "agent", c.name.to_string()),
            Self::RemoveAgent(c) => ("remove_agent", "agent", c.name.to_string()),
            Self::UpdateMember(c) => ("update_member", "member", c.node.to_string()),
            Self::RemoveMember(c) => ("remove_member", "member", c.node.to_string()),
            Self::RaiseLevel(c) => ("raise_level", "cluster", c.level.to_string()),
            Self::Advance(c) => (c.action.as_str(), "deployment", c.deployment.to_string()),
        }
    }
}

impl Verb {
    /// The word on the wire, without its argument.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote => "promote",
            Self::PromoteFull => "promote_full",
            Self::Traffic(_) => "traffic",
            Self::Finalize => "finalize",
            Self::Cancel => "cancel",
            Self::Rollback => "rollback",
            Self::Retry => "retry",
        }
    }
}

impl Action {
    /// A stable word, without its fields.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::RequireApproval { .. } => "require_approval",
            Self::ApprovalSatisfied => "approval_satisfied",
            Self::ApprovalDenied { .. } => "approval_denied",
            Self::Start { .. } => "start",
            Self::Staged => "staged",
            Self::Progress { .. } => "progress",
            Self::InstancesReady => "instances_ready",
            Self::StepReached => "step_reached",
            Self::StepDone { .. } => "step_done",
            Self::BatchDone => "batch_done",
            Self::Finalize { .. } => "finalize",
            Self::Drained => "drained",
            Self::Settled { .. } => "settled",
            Self::TakeBack { .. } => "take_back",
            Self::Expire { .. } => "expire",
            Self::Halt { .. } => "halt",
            Self::Unhalt => "unhalt",
            Self::MarkLost { .. } => "mark_lost",
            Self::NoteErrors { .. } => "note_errors",
            Self::NoteEvidence { .. } => "note_evidence",
            Self::LeftoversGone { .. } => "leftovers_gone",
        }
    }
}
