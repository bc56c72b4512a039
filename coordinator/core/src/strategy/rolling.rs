//! `rolling`: instances are replaced batch by batch, over the participants in order of name,
//! instance by instance.
//!
//! Two numbers of a deployment say where it is: `traffic.replaced` is how many instances are
//! replaced once the present batch is done, `traffic.desired` the share that is replaced already.
//! With `overlap` a batch has two halves. First what starts: new instances up to the greater of the
//! two, old ones down to what the smaller leaves, traffic at `desired`. When what started is
//! healthy, `BatchDone` makes both equal: traffic follows and what was replaced stops. On the way
//! back `replaced` lies below `desired`, and the same rule starts the old instances first. Without
//! `overlap` only `replaced` counts: what stops goes first.

use tidegate_shared::id::Name;
use tidegate_shared::spec::Hold;
use tidegate_shared::weight::Weight;

use super::PlannedStep;
use crate::state::{Deployment, Scope};

/// What `rolling` wishes on one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// Instances of the new version.
    pub new: u32,
    /// Instances of the old version.
    pub old: u32,
    /// Share of the new version in this agent's traffic.
    pub weight: Weight,
}

/// Instances of a version over all participants.
pub fn total(deployment: &Deployment, scope: &Scope) -> u32 {
    let participants = u32::try_from(deployment.participants.len()).unwrap_or(u32::MAX);
    participants.saturating_mul(scope.spec.instances_per_agent)
}

/// Instances that the present batch begins from: the count behind `traffic.desired`. Exact up to
/// 10,000 instances, above that to a basis point.
pub fn done(deployment: &Deployment, scope: &Scope) -> u32 {
    let total = u64::from(total(deployment, scope));
    let share = u64::from(deployment.traffic.desired.basis_points());
    // A share of a u32 fits a u32.
    (share * total).div_ceil(10_000) as u32
}

/// Whether the present batch has been replaced, so that only its hold is left.
pub fn is_settled(deployment: &Deployment, scope: &Scope) -> bool {
    let wished = deployment.traffic.replaced.min(total(deployment, scope));
    !deployment.origin.strategy.batch.overlap || done(deployment, scope) == wished
}

/// What one participant should run; none: the agent takes no part.
pub fn local(deployment: &Deployment, scope: &Scope, agent: &Name) -> Option<Local> {
    let position = deployment.participants.binary_search(agent).ok()?;
    Some(local_at(deployment, scope, position))
}

/// What the participant at a position of the order should run.
pub fn local_at(deployment: &Deployment, scope: &Scope, position: usize) -> Local {
    let per_agent = scope.spec.instances_per_agent;
    let before = u32::try_from(position)
        .unwrap_or(u32::MAX)
        .saturating_mul(per_agent);
    let here = |count: u32| count.saturating_sub(before).min(per_agent);
    let replaced = here(deployment.traffic.replaced);
    let done = if deployment.origin.strategy.batch.overlap {
        here(done(deployment, scope))
    } else {
        replaced
    };
    let weight = match done {
        0 => Weight::ZERO,
        done => Weight::share(u64::from(done), u64::from(per_agent)),
    };
    Local {
        new: replaced.max(done),
        old: per_agent - replaced.min(done),
        weight,
    }
}

/// One step per batch, each with the share that is replaced after it.
pub fn steps(deployment: &Deployment, scope: &Scope) -> Vec<PlannedStep> {
    let total = total(deployment, scope);
    let batch = &deployment.origin.strategy.batch;
    let size = batch.max_unavailable.of(total).max(1);
    let hold = Hold::For(if deployment.origin.fast {
        tidegate_shared::time::Span::ZERO
    } else {
        batch.hold
    });
    (1..=total.div_ceil(size))
        .map(|count| PlannedStep {
            weight: Weight::share(
                u64::from(count.saturating_mul(size).min(total)),
                u64::from(total),
            ),
            hold,
        })
        .collect()
}
