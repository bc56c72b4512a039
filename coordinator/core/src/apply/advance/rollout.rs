//! From `CREATING` to `FINALIZING`: staged, up, step by step, batch by batch.

use tidegate_shared::spec::OnStall;
use tidegate_shared::weight::Weight;

use super::{Moved, check_going, check_peopled, moved, refuse};
use crate::apply::lifecycle;
use crate::apply::tx::Tx;
use crate::apply::verb::enter_finalizing;
use crate::deployment::{phase, rollback, steps};
use crate::state::{Deployment, Status};
use crate::strategy::is_batched;

pub(super) fn staged(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    check_going(&deployment)?;
    check_peopled(&deployment)?;
    lifecycle::enter(tx, &mut deployment, Status::WaitingForInstances)?;
    steps::enter_waiting(&mut deployment);
    let line = format!(
        "is staged everywhere and starts {} instances",
        deployment.traffic.replaced
    );
    moved(tx, deployment, "waiting_for_instances", &line)
}

pub(super) fn progress(tx: &mut Tx<'_>, mut deployment: Deployment, outstanding: u32) -> Moved {
    if deployment
        .fewest_outstanding
        .is_some_and(|fewest| outstanding >= fewest)
    {
        return refuse(&deployment, "that is no progress");
    }
    deployment.fewest_outstanding = Some(outstanding);
    deployment.clock_since = match phase::stopped_since(&deployment) {
        // The clock stands; what is counted from there on begins anew.
        Some(stopped) => stopped,
        None => tx.at,
    };
    let line = format!("has {outstanding} instances outstanding");
    moved(tx, deployment, "progress", &line)
}

pub(super) fn instances_ready(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    check_going(&deployment)?;
    check_peopled(&deployment)?;
    lifecycle::enter(tx, &mut deployment, Status::Running)?;
    steps::enter_running(&mut deployment, tx.at);
    let line = format!(
        "is RUNNING with {} of the traffic",
        deployment.traffic.desired
    );
    moved(tx, deployment, "running", &line)
}

pub(super) fn step_reached(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    let open = deployment
        .traffic
        .step
        .filter(|step| step.reached_at.is_none());
    if open.is_none() || deployment.traffic.manual.is_some() {
        return refuse(&deployment, "no step waits to be reached");
    }
    phase::count_time(&mut deployment, tx.at);
    steps::reached(&mut deployment, tx.at);
    let line = format!(
        "holds {} of the traffic everywhere",
        deployment.traffic.desired
    );
    moved(tx, deployment, "step_reached", &line)
}

pub(super) fn step_done(tx: &mut Tx<'_>, mut deployment: Deployment, unverified: bool) -> Moved {
    check_going(&deployment)?;
    if steps::at_last(&deployment) {
        return refuse(&deployment, "it is at its last step");
    }
    let step = deployment.traffic.step;
    if step.is_some_and(|step| step.reached_at.is_none()) {
        return refuse(&deployment, "its step is not reached yet");
    }
    phase::count_time(&mut deployment, tx.at);
    deployment.unverified |= unverified;
    steps::next(&mut deployment, tx.at);
    let line = if is_batched(&deployment) {
        format!(
            "replaces its next batch: {} of {} instances",
            deployment.traffic.replaced, deployment.traffic.total
        )
    } else {
        format!("goes on to {} of the traffic", deployment.traffic.desired)
    };
    moved(tx, deployment, "step", &line)
}

pub(super) fn batch_done(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    if !is_batched(&deployment) {
        return refuse(&deployment, "it moves in no batches");
    }
    if deployment.status == Status::Running {
        return step_reached(tx, deployment);
    }
    let traffic = &deployment.traffic;
    if traffic.replaced == 0 && traffic.desired == Weight::ZERO {
        return refuse(&deployment, "every batch is back");
    }
    rollback::next_batch(&mut deployment);
    deployment.clock_since = tx.at;
    let line = format!(
        "has a batch back: {} of {} instances are still the new version's",
        deployment.traffic.replaced, deployment.traffic.total
    );
    moved(tx, deployment, "batch_back", &line)
}

pub(super) fn finalize(tx: &mut Tx<'_>, mut deployment: Deployment, unverified: bool) -> Moved {
    check_going(&deployment)?;
    check_peopled(&deployment)?;
    let stalled = deployment.origin.strategy.on_stall == OnStall::Finalize;
    if !steps::last_is_reached(&deployment) && !stalled {
        return refuse(&deployment, "its last step is not reached");
    }
    deployment.unverified |= unverified;
    enter_finalizing(tx, &mut deployment)?;
    moved(
        tx,
        deployment,
        "finalizing",
        "is FINALIZING: the old version drains and goes",
    )
}
