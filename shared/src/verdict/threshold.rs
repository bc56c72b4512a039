//! Raw threshold rules: the literal comparison of a metric over a window (verdict.md §2).
//!
//! No data is neither pass nor fail.

use serde::{Deserialize, Serialize};

use crate::spec::{Comparison, Metric, RuleAction};
use crate::time::{Span, Timestamp};

/// What a rule says of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The comparison does not hold.
    Pass,
    /// The comparison holds, for long enough.
    Fail,
    /// Fewer samples than the rule asks for.
    Inconclusive,
    /// Nothing was measured.
    NoData,
}

impl Verdict {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
            Self::NoData => "no_data",
        }
    }
}

/// A verdict with the numbers that it was taken from. Decimal texts: no float is replicated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// What was measured.
    pub metric: Metric,
    /// How it was compared.
    pub comparison: Comparison,
    /// With what.
    pub threshold: String,
    /// What came out.
    pub verdict: Verdict,
    /// The value, in the metric's unit; empty without data.
    pub value: String,
    /// Requests (or samples) in the window.
    pub samples: u64,
    /// Of them errors, for rates.
    pub errors: u64,
    /// The window.
    pub window: Span,
    /// When it was judged.
    pub at: Timestamp,
    /// What the rule does when met.
    pub action: RuleAction,
    /// It only reports.
    pub dry_run: bool,
    /// The step that it was judged in, from 0.
    pub step: u32,
}
