//! What checks came to, as it is replicated: answers, not measurements.

use serde::{Deserialize, Serialize};
use tidegate_shared::id::Name;
use tidegate_shared::time::Timestamp;
use tidegate_shared::verdict::check::Outcome;

/// The answer of a check at one moment of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRecord {
    /// Which check.
    pub name: Name,
    /// Which run of it: the start of its step.
    pub run: Timestamp,
    /// Index of the step, from 0; none: before traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// An inconclusive one may still be followed by a success or a failure.
    pub outcome: Outcome,
    /// Measurements of whoever settled it.
    pub measurements: u32,
    /// Of them bad.
    pub failures: u32,
    /// When the leader took it.
    pub at: Timestamp,
    /// One line for a person.
    pub message: String,
}

impl CheckRecord {
    /// Whether nothing follows.
    pub const fn is_final(&self) -> bool {
        match self.outcome {
            Outcome::Success | Outcome::Failure => true,
            Outcome::Inconclusive => false,
        }
    }
}
