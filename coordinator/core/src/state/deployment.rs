//! A deployment as it is replicated: what it was made with, and how far it is.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, GroupId, Name, ShortId};
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::weight::Weight;

use super::{CheckRecord, Meta, Origin};
use crate::command::Actor;

/// Statuses (product.md §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// An approval rule applies and is not yet satisfied.
    CreatingApproval,
    /// End: denied, or nobody answered in time.
    CreatingApprovalDenied,
    /// Gates are not all open.
    Pending,
    /// Plan and participants fixed; assets are staged.
    Creating,
    /// New instances start.
    WaitingForInstances,
    /// The new version is up; traffic moves.
    Running,
    /// The old version drains and stops.
    Finalizing,
    /// End, good.
    Finalized,
    /// A person takes it back.
    Cancelling,
    /// End: never had traffic, or an initial one that was taken back.
    Cancelled,
    /// Traffic turns back.
    RollingBack,
    /// End: back on the version before.
    RolledBack,
    /// End.
    Failed,
    /// The scope is being stopped.
    Deleting,
    /// End: the scope was stopped.
    Deleted,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 15] = [
        Self::CreatingApproval,
        Self::CreatingApprovalDenied,
        Self::Pending,
        Self::Creating,
        Self::WaitingForInstances,
        Self::Running,
        Self::Finalizing,
        Self::Finalized,
        Self::Cancelling,
        Self::Cancelled,
        Self::RollingBack,
        Self::RolledBack,
        Self::Failed,
        Self::Deleting,
        Self::Deleted,
    ];

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CreatingApproval => "CREATING_APPROVAL",
            Self::CreatingApprovalDenied => "CREATING_APPROVAL_DENIED",
            Self::Pending => "PENDING",
            Self::Creating => "CREATING",
            Self::WaitingForInstances => "WAITING_FOR_INSTANCES",
            Self::Running => "RUNNING",
            Self::Finalizing => "FINALIZING",
            Self::Finalized => "FINALIZED",
            Self::Cancelling => "CANCELLING",
            Self::Cancelled => "CANCELLED",
            Self::RollingBack => "ROLLING_BACK",
            Self::RolledBack => "ROLLED_BACK",
            Self::Failed => "FAILED",
            Self::Deleting => "DELETING",
            Self::Deleted => "DELETED",
        }
    }

    /// An end, `FINALIZED` included.
    pub const fn is_end(self) -> bool {
        match self {
            Self::CreatingApprovalDenied
            | Self::Finalized
            | Self::Cancelled
            | Self::RolledBack
            | Self::Failed
            | Self::Deleted => true,
            Self::CreatingApproval
            | Self::Pending
            | Self::Creating
            | Self::WaitingForInstances
            | Self::Running
            | Self::Finalizing
            | Self::Cancelling
            | Self::RollingBack
            | Self::Deleting => false,
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// One release published to one scope. `O`: how it holds what it was made with; only in a snapshot
/// otherwise than shared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment<O = Arc<Origin>> {
    /// Its identity; the key of its place.
    pub id: DeploymentId,
    /// Part of unit and folder names; unique in the cluster.
    pub short: ShortId,
    /// What every object carries.
    pub meta: Meta,
    /// What it was made with; never changes, so it is shared by every copy of the record.
    pub origin: O,
    /// Where it is.
    pub status: Status,
    /// Since when.
    pub status_since: Timestamp,
    /// The active deployment that it replaces; settled at `CREATING`. None: initial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<DeploymentId>,
    /// Fixed at `CREATING`.
    pub participants: Vec<Name>,
    /// Participants that are lost now.
    pub lost: Vec<Name>,
    /// Approval rules that apply, with their decisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<Required>,
    /// The present state's clock began here; moves on with progress (`RUNNING`: with each step) and
    /// by the time of pauses and halts.
    pub clock_since: Timestamp,
    /// Up to here its time is counted into `durations`.
    pub counted_to: Timestamp,
    /// Fewest instances outstanding so far in `WAITING_FOR_INSTANCES`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fewest_outstanding: Option<u32>,
    /// Traffic and steps.
    pub traffic: Traffic,
    /// A person stopped the clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Paused>,
    /// A rule, deadline, budget or lost agents stopped the rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<Halted>,
    /// `FINALIZING`: the old version may go.
    pub drained: bool,
    /// A cancel, rollback or rule met while `FINALIZING`: what happens at `FINALIZED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_at_finalized: Option<EndCause>,
    /// Why it is being, or was, taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_cause: Option<EndCause>,
    /// Stable word for what ended it otherwise than well; empty while nothing is wrong.
    pub reason: String,
    /// One line for a person.
    pub message: String,
    /// The label, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Finalized without evidence.
    pub unverified: bool,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// How its time was spent.
    pub durations: Durations,
    /// First cause per instance.
    pub causes: Vec<InstanceCause>,
    /// Verdicts that decided something, and notable ones; at most 64, newest last.
    pub evidence: Verdicts,
    /// Agents where the place of this deployment has to go and is not yet observed gone. It stands
    /// in its scope's `retired` as long as there are any.
    pub leftovers: Vec<Name>,
    /// A person promoted through all steps at once: the label becomes `fast_promoted`.
    pub promoted_full: bool,
    /// What the checks of its strategy came to; at most 64, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckRecord>,
    /// The group that it is, or was, a member of, or for which it returns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupId>,
    /// Tries of the same deployment that a retry rule made before this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tries: u32,
}

impl<O> Deployment<O> {
    /// The same with what it was made with held otherwise.
    #[must_use]
    pub fn with_origin<P>(self, origin: impl FnOnce(O) -> P) -> Deployment<P> {
        Deployment {
            id: self.id,
            short: self.short,
            meta: self.meta,
            origin: origin(self.origin),
            status: self.status,
            status_since: self.status_since,
            replaces: self.replaces,
            participants: self.participants,
            lost: self.lost,
            required: self.required,
            clock_since: self.clock_since,
            counted_to: self.counted_to,
            fewest_outstanding: self.fewest_outstanding,
            traffic: self.traffic,
            paused: self.paused,
            halted: self.halted,
            drained: self.drained,
            return_at_finalized: self.return_at_finalized,
            end_cause: self.end_cause,
            reason: self.reason,
            message: self.message,
            outcome: self.outcome,
            unverified: self.unverified,
            ended_at: self.ended_at,
            durations: self.durations,
            causes: self.causes,
            evidence: self.evidence,
            leftovers: self.leftovers,
            promoted_full: self.promoted_full,
            checks: self.checks,
            group: self.group,
            tries: self.tries,
        }
    }
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands out references"
)]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Where a deployment comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// In which way.
    pub kind: LinkKind,
    /// From which.
    pub of: DeploymentId,
}

/// In which way a deployment comes from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// Tries it again.
    Retry,
    /// Returns from it.
    Rollback,
    /// Starts a stopped scope.
    Start,
    /// Restarts the same release.
    Restart,
}

/// Approval rules that apply to a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Required {
    /// Names of the policies with how many grants each needs.
    pub policies: Vec<(Name, u32)>,
    /// Decisions at or after this do not count.
    pub expires_at: Timestamp,
    /// In order of time; one per person.
    pub decisions: Vec<Decision>,
}

/// A person's answer to an approval rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// Who.
    pub by: Actor,
    /// Granted or denied.
    pub granted: bool,
    /// When.
    pub at: Timestamp,
    /// For people.
    pub reason: String,
    /// Release digest, parameters and strategy that it is bound to.
    pub binding: Digest,
}

/// Traffic and steps of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// Share of the new version that is wished. `rolling`: the share replaced; with `overlap` it
    /// follows `replaced` at `InstancesReady` and `BatchDone`, when what started is healthy; without,
    /// at once.
    pub desired: Weight,
    /// It was ever > 0.
    pub got_traffic: bool,
    /// Where in the steps (`rolling`: batches) it is; none before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepProgress>,
    /// `rolling`: instances that are replaced once the present batch is done, over all participants
    /// in order of name. On the way back it lies one batch below what `desired` stands for.
    pub replaced: u32,
    /// Instances of a version over all participants, as last counted.
    pub total: u32,
    /// `rolling` on its way back: batches that went well in a row.
    pub good_batches: u32,
    /// A person set this weight; `resume` goes on with the first step above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manual: Option<Weight>,
}

/// Progress in the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepProgress {
    /// Index of the step, from 0.
    pub index: u32,
    /// When its weight was wished.
    pub started_at: Timestamp,
    /// When the data plane held it everywhere: the hold runs from here, less pauses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached_at: Option<Timestamp>,
    /// Time since `reached_at` that did not count; a pause or halt that still lasts comes on top.
    pub not_counted: Span,
    /// A person ended its hold; only at the last step, where no other follows.
    pub promoted: bool,
}

/// A person stopped the clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paused {
    /// Since when.
    pub since: Timestamp,
    /// Who.
    pub by: Actor,
    /// Why, as the person put it; empty: they gave no reason.
    pub reason: String,
}

/// Something other than a person stopped the rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halted {
    /// Since when.
    pub since: Timestamp,
    /// Stable word.
    pub kind: String,
    /// One line for a person.
    pub message: String,
}

/// Why a deployment is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// A person cancelled.
    Cancel,
    /// A person rolled back.
    Rollback,
    /// A rule was met.
    Rule,
    /// A deadline passed.
    Deadline,
    /// Permanent errors or used-up restarts.
    Errors,
    /// A newer deployment takes its place.
    Superseded,
    /// Its release was rejected.
    Rejected,
    /// The scope is being stopped.
    ScopeStopped,
}

/// How a deployment's time was spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Durations {
    /// Moving.
    pub progression: Span,
    /// Paused by a person, or waiting for one.
    pub manual_pause: Span,
    /// Waiting for gates.
    pub waiting: Span,
}

/// The first thing that went wrong with an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceCause {
    /// On which agent.
    pub agent: Name,
    /// Which instance; empty: the place as a whole.
    pub instance: String,
    /// Stable word, as `DISK_FULL`.
    pub kind: String,
    /// One line for a person.
    pub message: String,
}

/// Verdicts with the numbers that they were taken from.
pub type Verdicts = Vec<tidegate_shared::verdict::threshold::Evidence>;
