//! How far a deployment goes next: steps of traffic (`blue_green`, `all_in`) and batches (`rolling`).
//!
//! Answers questions about a deployment as it stands; nothing here changes one. `desired` and the
//! planner read it, `apply` may.

pub mod all_in;
pub mod blue_green;
pub mod rolling;

use tidegate_shared::spec::{Hold, StrategyKind};
use tidegate_shared::time::Span;
use tidegate_shared::weight::Weight;

use crate::state::{Deployment, Scope};

/// Whether it moves batch by batch. Initial deployments have nothing to replace and start
/// everywhere at once; fast rollbacks skip batches, unless two versions may not run side by side.
pub fn is_batched(deployment: &Deployment) -> bool {
    let strategy = &deployment.origin.strategy;
    strategy.kind == StrategyKind::Rolling
        && deployment.replaces.is_some()
        && (!deployment.origin.fast || !strategy.batch.overlap)
}

/// A step of a deployment as it concerns this one: an initial or fast one has a single step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedStep {
    /// Share of the new version.
    pub weight: Weight,
    /// How long it stays.
    pub hold: Hold,
}

/// All steps, in order; never empty.
pub fn steps(deployment: &Deployment, scope: &Scope) -> Vec<PlannedStep> {
    let strategy = &deployment.origin.strategy;
    let mut steps = if is_batched(deployment) {
        rolling::steps(deployment, scope)
    } else if deployment.replaces.is_none() || deployment.origin.fast {
        Vec::new()
    } else {
        match strategy.kind {
            StrategyKind::BlueGreen => blue_green::steps(strategy),
            StrategyKind::AllIn => all_in::steps(strategy),
            StrategyKind::Rolling => Vec::new(),
        }
    };
    if steps.is_empty() {
        steps.push(PlannedStep {
            weight: Weight::FULL,
            hold: Hold::For(Span::ZERO),
        });
    }
    steps
}
