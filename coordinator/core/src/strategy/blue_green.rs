//! `blue_green`: both versions up, traffic moves by the steps of the strategy.

use tidegate_shared::spec::Strategy;

use super::PlannedStep;

/// The steps as resolved; the last one is 100 − `bake_share`.
pub fn steps(strategy: &Strategy) -> Vec<PlannedStep> {
    strategy
        .steps
        .iter()
        .map(|step| PlannedStep {
            weight: step.weight,
            hold: step.hold,
        })
        .collect()
}
