//! What a strategy says of its checks' moments, and how many instances the new version gets.

use serde::{Deserialize, Serialize};

use super::StrategyKind;
use crate::spec::{FieldErrors, VerificationSpec, When, validate_checks};

/// How many instances the new version gets while both are up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Capacity {
    /// As many as the old one.
    #[default]
    Full,
    /// As its share of the traffic asks for; `kubernetes` scopes alone.
    Proportional,
}

impl Capacity {
    #[allow(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde hands out references"
    )]
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What is wrong with the checks of a strategy that has so many steps of traffic.
pub(super) fn validate(
    checks: &[VerificationSpec],
    kind: StrategyKind,
    steps: usize,
) -> FieldErrors {
    let mut errors = validate_checks(checks);
    for (position, check) in checks.iter().enumerate() {
        for (at, when) in check.when.iter().enumerate() {
            let field = format!("verification[{position}].when[{at}]");
            match when {
                When::BeforeTraffic => errors.require(
                    kind != StrategyKind::Rolling,
                    field,
                    "rolling has no moment before traffic: its first batch takes part at once",
                ),
                When::Step(number) => errors.require(
                    kind == StrategyKind::Rolling || *number as usize <= steps,
                    field,
                    format!("there is no step {number}: the strategy has {steps}"),
                ),
                When::EveryStep | When::Last => {}
            }
        }
    }
    errors
}
