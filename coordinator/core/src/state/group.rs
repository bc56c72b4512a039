//! A deployment group as it is replicated: one release, many scopes, one handle (product.md §3).
//!
//! What each member does stands in its deployment; here stand the order, what was said to the group
//! as a whole, and how members ended, so that nothing has to be counted again at each entry.

use serde::{Deserialize, Serialize};
use tidegate_shared::id::{DeploymentId, GroupId, Name, ShortId, Version};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{RolloutSpec, StrategySpec};
use tidegate_shared::time::Timestamp;

use super::{EndCause, Halted, Lean, Meta, Paused, Status, Table};
use crate::command::{Actor, OnConflict};

/// Ended groups of an application that stay in the state; older ones leave it.
pub const KEPT_GROUPS: usize = 20;

/// Members of a group.
pub const MOST_MEMBERS: usize = 10_000;

/// Statuses of a group (product.md §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum GroupStatus {
    /// Every member waits for approval.
    CreatingApproval,
    /// End: every member was denied.
    CreatingApprovalDenied,
    /// No member has reached `CREATING`.
    Pending,
    /// Some member is not at an end.
    Running,
    /// Members finalize, and all others are at an end.
    Finalizing,
    /// End: every member is at one; the outcome says how they fared.
    Finalized,
    /// The group was cancelled and a member still moves.
    Cancelling,
    /// End: cancelled as a group, or member by member.
    Cancelled,
    /// The group was rolled back and a member, or a return, still moves.
    RollingBack,
    /// End: rolled back as a group.
    RolledBack,
}

impl GroupStatus {
    /// Every status.
    pub const ALL: [Self; 10] = [
        Self::CreatingApproval,
        Self::CreatingApprovalDenied,
        Self::Pending,
        Self::Running,
        Self::Finalizing,
        Self::Finalized,
        Self::Cancelling,
        Self::Cancelled,
        Self::RollingBack,
        Self::RolledBack,
    ];

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CreatingApproval => "CREATING_APPROVAL",
            Self::CreatingApprovalDenied => "CREATING_APPROVAL_DENIED",
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Finalizing => "FINALIZING",
            Self::Finalized => "FINALIZED",
            Self::Cancelling => "CANCELLING",
            Self::Cancelled => "CANCELLED",
            Self::RollingBack => "ROLLING_BACK",
            Self::RolledBack => "ROLLED_BACK",
        }
    }

    /// Whether it is an end.
    pub const fn is_end(self) -> bool {
        match self {
            Self::CreatingApprovalDenied | Self::Finalized | Self::Cancelled | Self::RolledBack => {
                true
            }
            Self::CreatingApproval
            | Self::Pending
            | Self::Running
            | Self::Finalizing
            | Self::Cancelling
            | Self::RollingBack => false,
        }
    }
}

impl std::fmt::Display for GroupStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a finalized group fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupOutcome {
    /// Every member is finalized.
    Succeeded,
    /// Some are.
    Mixed,
    /// None is.
    Failed,
}

impl GroupOutcome {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Mixed => "mixed",
            Self::Failed => "failed",
        }
    }
}

/// One release published to many scopes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its identity.
    pub id: GroupId,
    /// What people call it by where it has no name.
    pub short: ShortId,
    /// Unique among the groups in the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// What every object carries. The revision is that of the group itself: what members do does not
    /// raise it.
    pub meta: Meta,
    /// The application.
    pub application: Name,
    /// The release.
    pub version: Version,
    /// What members that are added later are made with.
    pub template: Template,
    /// How it rolls out, as resolved at creation.
    pub rollout: RolloutSpec,
    /// By number: 0, 1 … in the order in which they were listed and added.
    pub members: Table<u32, GroupMember>,
    /// Numbers of the members by scope.
    pub scopes: Lean<Name, u32>,
    /// When order and waves were fixed; none: not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_at: Option<Timestamp>,
    /// Numbers of the members by position; empty before the rollout begins.
    #[serde(default, skip_serializing_if = "Lean::is_empty")]
    pub order: Lean<u32, u32>,
    /// Waves in order, and at the end one more for what no wave took; empty for other kinds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<Wave>,
    /// Members up to and with this wave may start.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub open_wave: u32,
    /// A person, or an exceeded budget, takes the whole group back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Given>,
    /// Fast rollbacks for finalized members, with how they ended.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub returns: Table<DeploymentId, Return>,
    /// Why nobody starts until people decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<Halted>,
    /// A person stopped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Paused>,
    /// Halts and pauses that are over: the clock of the rollout stood meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stops: Vec<Stopped>,
    /// How members fared so far.
    #[serde(default)]
    pub tally: Counts,
    /// Raised whenever what the starts of other members rest on becomes worse, and with each start
    /// that others have to keep a distance from. A start carries the one it was decided on.
    #[serde(default)]
    pub gates_revision: u64,
    /// Its status for good, once every member is at an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<Closed>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands out references"
)]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What members are made with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// None: the default strategy's fields.
    pub strategy: Option<Name>,
    /// Fields that differ for these deployments only.
    pub overrides: StrategySpec,
    /// For selection.
    pub labels: Labels,
    /// What they do about others under way.
    pub on_conflict: OnConflict,
}

/// One scope of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupMember {
    /// Where.
    pub scope: Name,
    /// Its present deployment; a retry takes the place of one that ended badly.
    pub deployment: DeploymentId,
    /// Those before it, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<DeploymentId>,
    /// From 0; none before the rollout begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u32>,
    /// Index of its wave; none: there are no waves, or the rollout has not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<u32>,
    /// When it, or the last one before it, entered `CREATING`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// How it ended; what its scope does afterwards changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<MemberEnd>,
}

/// How a member ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberEnd {
    /// When.
    pub at: Timestamp,
    /// An end.
    pub status: Status,
    /// Its label, as `promoted`.
    pub outcome: String,
    /// Why it was taken back; none: it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<EndCause>,
    /// What it means to the group.
    pub fate: Fate,
}

/// What the end of a member means to its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Finalized.
    Good,
    /// Finalized without evidence.
    Unverified,
    /// It failed before any traffic moved: another try may follow.
    Undecided,
    /// It counts against the failure budget.
    Failed,
    /// A person's cancel, a denial, or a newer release: it counts for nothing.
    Neutral,
}

/// One wave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wave {
    /// As written; empty for what no wave took.
    pub name: String,
    /// How many members it has.
    pub members: u32,
    /// When its members were let start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened_at: Option<Timestamp>,
}

/// What was said to the group as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// Which of the two.
    pub verb: GivenVerb,
    /// Who.
    pub by: Actor,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
}

/// How a whole group is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GivenVerb {
    /// Cancelled while every member was running.
    Cancel,
    /// Rolled back.
    Rollback,
}

/// A fast rollback that a group made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Return {
    /// Where.
    pub scope: Name,
    /// How it ended; none: it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Status>,
}

/// A span in which the clock of the rollout stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stopped {
    /// From here on.
    pub from: Timestamp,
    /// It ran again here.
    pub until: Timestamp,
}

/// How members fared so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Members at an end, whichever; those whose end is undecided are not among them.
    pub ended: u32,
    /// Those of them that count as executed: finalized or failed.
    pub executed: u32,
    /// Those of them that count against the budget.
    pub failures: u32,
    /// Failures beyond the budget that people have let pass.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub excused: u32,
}

/// A status that is fixed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closed {
    /// An end.
    pub status: GroupStatus,
    /// Of `FINALIZED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<GroupOutcome>,
    /// When.
    pub at: Timestamp,
    /// One line for a person.
    pub message: String,
}
