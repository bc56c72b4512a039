//! `all_in`: both versions up, then one step of 100 % (less `bake_share`): an instant cut-over.

use tidegate_shared::spec::Strategy;

use super::PlannedStep;

/// The one step, with the hold that resolution gave it.
pub fn steps(strategy: &Strategy) -> Vec<PlannedStep> {
    let last = strategy.steps.last();
    last.map(|step| PlannedStep {
        weight: step.weight,
        hold: step.hold,
    })
    .into_iter()
    .collect()
}
