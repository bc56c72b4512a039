//! Commands about deployment groups.

use serde::{Deserialize, Serialize};
use tidegate_shared::id::{GroupId, Name};
use tidegate_shared::spec::RolloutSpec;

use super::{CreateDeployments, Verb};

/// See [`super::Command::CreateGroup`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateGroup {
    /// Unique among the groups that are there; none: people use its short id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// Its members; 1 to 10,000 scopes, in the order listed.
    pub deployments: CreateDeployments,
    /// None: as the strategy has it, else all at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSpec>,
}

/// See [`super::Command::ActOnGroup`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActOnGroup {
    /// Which.
    pub group: GroupId,
    /// What; not `retry`, which is a member's.
    pub verb: Verb,
    /// Refused on mismatch with the group's revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_revision: Option<u64>,
    /// For people.
    pub reason: String,
}

/// See [`super::Command::AddToGroup`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddToGroup {
    /// Which.
    pub group: GroupId,
    /// New members, at the end of the order.
    pub scopes: Vec<Name>,
    /// Refused on mismatch with the group's revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_revision: Option<u64>,
}

/// See [`super::Command::DecideGroup`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecideGroup {
    /// Which.
    pub group: GroupId,
    /// Granted or denied.
    pub granted: bool,
    /// For people.
    pub reason: String,
    /// Refused on mismatch with the group's revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_revision: Option<u64>,
}

/// See [`super::Command::AdvanceGroup`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdvanceGroup {
    /// Which.
    pub group: GroupId,
    /// The revision that the planner saw; mismatch is `STALE`.
    pub revision: u64,
    /// The move.
    pub action: GroupAction,
}

/// A move of a group that the planner found due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GroupAction {
    /// The rollout begins: its order and its waves are fixed.
    Begin {
        /// Numbers of the members by position, wave after wave.
        order: Vec<u32>,
        /// Members of each wave, and of what no wave took; empty for kinds without waves.
        waves: Vec<u32>,
    },
    /// The waves before this one are done and baked, and their gate is open.
    OpenWave {
        /// Its index.
        wave: u32,
        /// What that rests on, in one line.
        why: String,
    },
    /// No other try follows for these members, by number: they count as failures.
    Failed {
        /// Numbers, in order.
        members: Vec<u32>,
    },
    /// The failure budget is exceeded: halts the group or rolls it back.
    Breach,
    /// It was halted for so long that members that wait are given up.
    GiveUp,
    /// Every member is at an end, tries and returns too: the status is fixed.
    End,
}

impl GroupAction {
    /// A stable word, without its fields.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Begin { .. } => "group_begin",
            Self::OpenWave { .. } => "group_open_wave",
            Self::Failed { .. } => "group_failed",
            Self::Breach => "group_breach",
            Self::GiveUp => "group_give_up",
            Self::End => "group_end",
        }
    }
}
