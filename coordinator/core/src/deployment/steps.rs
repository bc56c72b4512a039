//! How traffic goes up: the steps of a deployment, where it is in them, and what is left.
//!
//! A step is done when its weight is held everywhere and its hold (and, on the leader, evidence) is
//! over. `rolling` has batches in their place. An initial or a fast deployment has one step of 100 %.

use tidegate_shared::spec::{FinalizeMode, Hold, Step};
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::weight::Weight;

use super::phase;
use crate::state::{Deployment, Status, StepProgress, Traffic};
use crate::strategy::is_batched;

/// Whether there is no version before it in its scope; settled at `CREATING`.
pub const fn is_initial(deployment: &Deployment) -> bool {
    deployment.replaces.is_none()
}

/// The steps of traffic that it goes through; empty for `rolling`.
pub fn steps(deployment: &Deployment) -> Vec<Step> {
    if is_batched(deployment) {
        Vec::new()
    } else if deployment.origin.fast || is_initial(deployment) {
        vec![Step {
            weight: Weight::FULL,
            hold: Hold::For(Span::ZERO),
        }]
    } else {
        deployment.origin.strategy.steps.clone()
    }
}

/// Instances that a batch takes; 0 only of none.
pub fn batch(deployment: &Deployment) -> u32 {
    let size = deployment.origin.strategy.batch.max_unavailable;
    size.of(deployment.traffic.total)
}

/// Whether no step follows: the last weight is wished, or everything is replaced.
pub fn at_last(deployment: &Deployment) -> bool {
    let Some(step) = deployment.traffic.step else {
        return false;
    };
    if is_batched(deployment) {
        deployment.traffic.replaced >= deployment.traffic.total
    } else {
        step.index as usize + 1 >= steps(deployment).len()
    }
}

/// Whether the last step's weight is held everywhere: what a finalize needs.
pub fn last_is_reached(deployment: &Deployment) -> bool {
    let reached = deployment.traffic.step.and_then(|step| step.reached_at);
    at_last(deployment) && reached.is_some() && deployment.traffic.manual.is_none()
}

/// How long the present step stays; nothing before the first.
pub fn hold(deployment: &Deployment) -> Hold {
    let none = Hold::For(Span::ZERO);
    let Some(step) = deployment.traffic.step else {
        return none;
    };
    if step.promoted {
        none
    } else {
        hold_of(deployment, step.index)
    }
}

fn hold_of(deployment: &Deployment, index: u32) -> Hold {
    if !is_batched(deployment) {
        return steps(deployment)
            .get(index as usize)
            .map_or(Hold::For(Span::ZERO), |step| step.hold);
    }
    Hold::For(if deployment.origin.fast {
        Span::ZERO
    } else {
        deployment.origin.strategy.batch.hold
    })
}

/// Time at the last step, after its hold, before finalizing.
pub fn bake(deployment: &Deployment) -> Span {
    if deployment.origin.fast {
        Span::ZERO
    } else {
        deployment.origin.strategy.bake
    }
}

/// Whether a person has to end the bake.
pub fn finalize_mode(deployment: &Deployment) -> FinalizeMode {
    if deployment.origin.fast {
        FinalizeMode::Auto
    } else {
        deployment.origin.strategy.finalize
    }
}

/// How long the end of the present step may wait for evidence; nothing without rules.
pub fn evidence_wait(deployment: &Deployment) -> Span {
    let strategy = &deployment.origin.strategy;
    if deployment.origin.fast || strategy.rules.is_empty() {
        return Span::ZERO;
    }
    match (strategy.on_no_data.wait, hold(deployment)) {
        (Some(wait), _) => wait,
        (None, Hold::For(hold)) => hold.times(2),
        (None, Hold::Manual) => Span::ZERO,
    }
}

/// The holds of the present and the later steps; those that wait for a person count nothing.
pub fn remaining(deployment: &Deployment) -> Span {
    let length = |hold| match hold {
        Hold::For(span) => span,
        Hold::Manual => Span::ZERO,
    };
    let present = length(hold(deployment));
    if is_batched(deployment) {
        let left =
            deployment.traffic.total - deployment.traffic.replaced.min(deployment.traffic.total);
        let batches = left.div_ceil(batch(deployment).max(1));
        return present + length(hold_of(deployment, 0)).times(u64::from(batches));
    }
    let next = deployment
        .traffic
        .step
        .map_or(0, |step| step.index as usize + 1);
    steps(deployment)
        .iter()
        .skip(next)
        .fold(present, |sum, step| sum + length(step.hold))
}

/// When the present step's hold began, moved on by the time that did not count; none: not reached.
/// A pause or halt that still lasts is not taken off.
pub fn reached_less_stops(deployment: &Deployment) -> Option<Timestamp> {
    let step = deployment.traffic.step?;
    step.reached_at.map(|reached| reached + step.not_counted)
}

/// How long the present step's weight has been held at `now`, pauses and halts not counted; none:
/// it is not reached.
pub fn held_for(deployment: &Deployment, now: Timestamp) -> Option<Span> {
    let reached = reached_less_stops(deployment)?;
    let until = phase::stopped_since(deployment).map_or(now, |stopped| stopped.min(now));
    Some(until.since(reached))
}

/// `RUNNING`: since when it waits for a person at a manual hold or a manual finalize; may lie in
/// the future.
pub fn waits_for_person_since(deployment: &Deployment) -> Option<Timestamp> {
    let reached = reached_less_stops(deployment)?;
    match hold(deployment) {
        Hold::Manual => Some(reached),
        Hold::For(hold)
            if at_last(deployment) && finalize_mode(deployment) == FinalizeMode::Manual =>
        {
            Some(reached + hold + bake(deployment))
        }
        Hold::For(_) => None,
    }
}

/// Entering `WAITING_FOR_INSTANCES`: how many instances of the new version come up; for `rolling`
/// the first batch, else all.
pub fn enter_waiting(deployment: &mut Deployment) {
    let total = deployment.traffic.total;
    if is_batched(deployment) {
        set_replaced(deployment, batch(deployment));
    } else {
        deployment.traffic.replaced = total;
    }
}

/// Entering `RUNNING`: at 100 % if there is nothing to compare with or it is fast, at the first
/// batch's share if it is rolling, else at 0 % before the first step.
pub fn enter_running(deployment: &mut Deployment, at: Timestamp) {
    if is_batched(deployment) {
        begin(&mut deployment.traffic, 0, Weight::ZERO, at);
        reached(deployment, at);
    } else if deployment.origin.fast || is_initial(deployment) {
        begin(&mut deployment.traffic, 0, Weight::FULL, at);
    }
}

/// Goes on to the next step or batch; the clock of `RUNNING` begins again. Nothing at the last.
pub fn next(deployment: &mut Deployment, at: Timestamp) {
    let next = deployment.traffic.step.map_or(0, |step| step.index + 1);
    to_index(deployment, next, at);
}

/// Goes to the last step at once, its hold over. For `rolling`: everything is replaced at once.
pub fn to_last(deployment: &mut Deployment, at: Timestamp) {
    let last = steps(deployment).len().saturating_sub(1) as u32;
    if is_batched(deployment) {
        set_replaced(deployment, deployment.traffic.total);
        let next = deployment.traffic.step.map_or(0, |step| step.index + 1);
        let weight = deployment.traffic.desired;
        begin(&mut deployment.traffic, next, weight, at);
        deployment.clock_since = at;
    } else {
        to_index(deployment, last, at);
    }
    if let Some(step) = &mut deployment.traffic.step {
        step.promoted = true;
    }
}

/// After a person's own weight: on to the first step above it, or to the last.
pub fn above_manual(deployment: &mut Deployment, at: Timestamp) {
    let Some(weight) = deployment.traffic.manual.take() else {
        return;
    };
    let steps = steps(deployment);
    let index = steps
        .iter()
        .position(|step| step.weight > weight)
        .unwrap_or_else(|| steps.len().saturating_sub(1));
    to_index(deployment, index as u32, at);
}

/// A person's own weight; the steps stand still until somebody lets them go on.
pub fn set_manual(deployment: &mut Deployment, weight: Weight, at: Timestamp) {
    let traffic = &mut deployment.traffic;
    traffic.manual = Some(weight);
    traffic.desired = weight;
    traffic.got_traffic |= weight > Weight::ZERO;
    if let Some(step) = &mut traffic.step {
        step.started_at = at;
        step.reached_at = None;
        step.not_counted = Span::ZERO;
    }
}

fn to_index(deployment: &mut Deployment, index: u32, at: Timestamp) {
    if is_batched(deployment) {
        let replaced = deployment
            .traffic
            .replaced
            .saturating_add(batch(deployment));
        set_replaced(deployment, replaced.min(deployment.traffic.total));
        let weight = deployment.traffic.desired;
        begin(&mut deployment.traffic, index, weight, at);
        deployment.clock_since = at;
    } else if let Some(step) = steps(deployment).get(index as usize) {
        begin(&mut deployment.traffic, index, step.weight, at);
        deployment.clock_since = at;
    }
}

fn begin(traffic: &mut Traffic, index: u32, weight: Weight, at: Timestamp) {
    traffic.desired = weight;
    traffic.got_traffic |= weight > Weight::ZERO;
    traffic.step = Some(StepProgress {
        index,
        started_at: at,
        reached_at: None,
        not_counted: Span::ZERO,
        promoted: false,
    });
}

/// The present step's weight is held everywhere, or its batch is replaced: its hold begins.
pub fn reached(deployment: &mut Deployment, at: Timestamp) {
    if is_batched(deployment) {
        settle_batch(&mut deployment.traffic);
    }
    if let Some(step) = &mut deployment.traffic.step {
        step.reached_at = Some(at);
        step.not_counted = Span::ZERO;
    }
}

/// `rolling`: the present batch is replaced, so the traffic follows.
pub fn settle_batch(traffic: &mut Traffic) {
    traffic.desired = share_replaced(traffic);
    traffic.got_traffic |= traffic.desired > Weight::ZERO;
}

/// `rolling`: the next batch. With `overlap` the traffic follows when it is replaced; without, the
/// old instances stop first and the traffic follows at once.
pub fn set_replaced(deployment: &mut Deployment, replaced: u32) {
    deployment.traffic.replaced = replaced;
    if !deployment.origin.strategy.batch.overlap {
        settle_batch(&mut deployment.traffic);
    }
}

/// The share of a `rolling` deployment that is replaced; nothing of nothing.
pub fn share_replaced(traffic: &Traffic) -> Weight {
    if traffic.replaced == 0 {
        Weight::ZERO
    } else {
        Weight::share(u64::from(traffic.replaced), u64::from(traffic.total))
    }
}

/// The number of instances changed under way: what is replaced keeps its share, rounded up.
pub fn rescale(deployment: &mut Deployment, total: u32) {
    let before = deployment.traffic.total;
    if before == total {
        return;
    }
    let rolling = is_batched(deployment);
    let traffic = &mut deployment.traffic;
    // From `FINALIZING` on all traffic is wished, even if no instance is left to hold it.
    let moves = deployment.status != Status::Finalizing && traffic.step.is_some();
    let settled = rolling && moves && traffic.desired == share_replaced(traffic);
    traffic.total = total;
    if traffic.replaced >= before {
        traffic.replaced = if before == 0 { 0 } else { total };
    } else {
        let scaled = u64::from(traffic.replaced) * u64::from(total);
        // At most `total`, because replaced < before.
        traffic.replaced = scaled.div_ceil(u64::from(before)) as u32;
    }
    if settled {
        traffic.desired = share_replaced(traffic);
    }
}
