//! The planner's moves of a deployment.

use serde::{Deserialize, Serialize};
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::time::Timestamp;

use crate::state::{CheckRecord, InstanceCause, Verdicts};

/// See [`super::Command::Advance`]. Carries the answers that it rests on; `apply` checks only the revision,
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
        /// Those who granted and are not asked any more: their grants are withdrawn.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        withdrawn: Vec<Name>,
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
        /// What the rules answered; none where no policy is about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gates: Option<GateEvidence>,
    },
    /// `CREATING_APPROVAL`, `PENDING` → `CREATING_APPROVAL_DENIED`: a rule denies it.
    Deny {
        /// Why, in one line.
        message: String,
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
    /// What checks came to.
    NoteChecks {
        /// One record of each.
        checks: Vec<CheckRecord>,
    },
    /// After the end: the place of this deployment, one of its scope's `retired`, is observed gone
    /// on these agents.
    LeftoversGone {
        /// Those agents.
        agents: Vec<Name>,
    },
    /// After `FAILED` before any traffic moved: a rule asks for another try.
    Retry {
        /// Which rule, and which try it is, in one line.
        why: String,
    },
}

/// What the rules answered when a start was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateEvidence {
    /// `gates_revision` of the state that was looked at; a mismatch is `STALE`.
    pub revision: u64,
    /// The start counts for a rule about concurrency: starts that were decided on the same
    /// revision become stale.
    pub counts: bool,
    /// Each rule with its answer, in one line.
    pub rules: Vec<String>,
    /// Of a member of a group: that its turn has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupTurn>,
}

/// What the turn of a member in its group rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupTurn {
    /// `gates_revision` of the group that was looked at; a mismatch is `STALE`.
    pub revision: u64,
    /// Others have to keep their distance from this start: those that were decided on the same
    /// revision become stale.
    pub paced: bool,
}

/// Why a deployment is taken back or halted, other than by a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cause {
    /// Stable word: `rule`, `progress_deadline`, `staging_deadline`, `stall`, `halt_max`,
    /// `pause_max`, `no_data`, `lost_agents`, `permanent_errors`, `verification`.
    pub kind: String,
    /// One line with the figures.
    pub message: String,
}

impl Action {
    /// A stable word, without its fields.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::RequireApproval { .. } => "require_approval",
            Self::ApprovalSatisfied => "approval_satisfied",
            Self::ApprovalDenied { .. } => "approval_denied",
            Self::Start { .. } => "start",
            Self::Deny { .. } => "deny",
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
            Self::NoteChecks { .. } => "note_checks",
            Self::LeftoversGone { .. } => "leftovers_gone",
            Self::Retry { .. } => "retry",
        }
    }
}
