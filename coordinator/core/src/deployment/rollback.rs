//! How a deployment goes back, and what its end is called.
//!
//! Going back is one move, not a rollout backwards: all traffic to the active version at once. Only
//! `rolling` returns batch by batch, since the old instances were replaced in place.

use tidegate_shared::id::DeploymentId;
use tidegate_shared::weight::Weight;

use super::steps;
use crate::state::{Deployment, EndCause, LinkKind, Status};
use crate::strategy::is_batched;

/// Turns the wish back: 0 % at once, or the first batch of a `rolling` one, whose traffic follows
/// when the batch is back.
pub fn begin_return(deployment: &mut Deployment) {
    let rolling = is_batched(deployment);
    let traffic = &mut deployment.traffic;
    traffic.manual = None;
    traffic.good_batches = 0;
    if rolling && traffic.desired > Weight::ZERO {
        take_batch(deployment);
    } else {
        traffic.replaced = 0;
        traffic.desired = Weight::ZERO;
    }
}

/// `rolling`: a batch is back, so the traffic follows, and the next one goes. Batches double after
/// each two that went well.
pub fn next_batch(deployment: &mut Deployment) {
    let traffic = &mut deployment.traffic;
    traffic.desired = steps::share_replaced(traffic);
    traffic.good_batches = traffic.good_batches.saturating_add(1);
    take_batch(deployment);
}

fn take_batch(deployment: &mut Deployment) {
    let base = steps::batch(deployment).max(1);
    let traffic = &deployment.traffic;
    let factor = 1_u32.checked_shl(traffic.good_batches / 2);
    let size = base.saturating_mul(factor.unwrap_or(u32::MAX));
    steps::set_replaced(deployment, traffic.replaced.saturating_sub(size));
}

/// Where being taken back for a cause leads from a status; none: it cannot be taken back there.
///
/// A person's cancel and a stop of the scope lead to `CANCELLING`; a person's rollback, a newer
/// deployment and a rejected release to `ROLLING_BACK`, but to `CANCELLING` in `CREATING` or
/// without a version before; rules, deadlines and errors to `ROLLING_BACK`, but to `FAILED` in
/// `CREATING` or without a version before.
pub fn leads_to(deployment: &Deployment, cause: EndCause) -> Option<Status> {
    let nothing_before = deployment.status == Status::Creating || steps::is_initial(deployment);
    match deployment.status {
        Status::Creating | Status::WaitingForInstances | Status::Running => {}
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Finalizing
        | Status::Finalized
        | Status::Cancelling
        | Status::Cancelled
        | Status::RollingBack
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => return None,
    }
    Some(match cause {
        EndCause::Cancel | EndCause::ScopeStopped => Status::Cancelling,
        EndCause::Rollback | EndCause::Superseded | EndCause::Rejected => {
            if nothing_before {
                Status::Cancelling
            } else {
                Status::RollingBack
            }
        }
        EndCause::Rule | EndCause::Deadline | EndCause::Errors => {
            if nothing_before {
                Status::Failed
            } else {
                Status::RollingBack
            }
        }
    })
}

/// The good end of `CANCELLING`: `CANCELLED` if it never got traffic and replaced nothing in place,
/// or if there was nothing before it (`rolling` without
/// `overlap` has traffic as soon as something stopped for it).
pub fn end_of_cancelling(deployment: &Deployment) -> Status {
    if steps::is_initial(deployment) || !deployment.traffic.got_traffic {
        Status::Cancelled
    } else {
        Status::RolledBack
    }
}

/// The label of an ended deployment; empty for a status that is no end.
pub fn label(deployment: &Deployment, end: Status) -> &'static str {
    match end {
        Status::CreatingApprovalDenied => "denied",
        Status::Cancelled | Status::RolledBack => match deployment.end_cause {
            Some(EndCause::Superseded) => "superseded",
            Some(EndCause::Cancel | EndCause::ScopeStopped) => "cancelled",
            Some(
                EndCause::Rollback
                | EndCause::Rule
                | EndCause::Deadline
                | EndCause::Errors
                | EndCause::Rejected,
            )
            | None => {
                if end == Status::RolledBack {
                    "rolled_back"
                } else {
                    "cancelled"
                }
            }
        },
        Status::Failed => "failed",
        Status::Finalized => {
            if deployment.origin.fast {
                "fast_rolled_back"
            } else if deployment.promoted_full {
                "fast_promoted"
            } else {
                "promoted"
            }
        }
        Status::Deleted => "deleted",
        Status::CreatingApproval
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalizing
        | Status::Cancelling
        | Status::RollingBack
        | Status::Deleting => "",
    }
}

/// The list of kept deployments after `new` was finalized: it comes first; a twin (same release and
/// parameters) gives way to it; after a return, those that were returned from go to the end.
pub fn keep(
    kept: &[DeploymentId],
    new: &Deployment,
    is_twin: impl Fn(DeploymentId) -> bool,
) -> Vec<DeploymentId> {
    let returned = new.origin.fast
        || new
            .origin
            .link
            .as_ref()
            .is_some_and(|link| link.kind == LinkKind::Rollback);
    let twin = kept.iter().position(|id| is_twin(*id));
    let mut list = vec![new.id];
    match twin {
        Some(twin) if returned => {
            list.extend(&kept[twin + 1..]);
            list.extend(&kept[..twin]);
        }
        Some(_) | None => list.extend(kept.iter().filter(|id| !is_twin(**id))),
    }
    list.truncate(new.origin.strategy.keep_releases.max(1) as usize);
    list
}
