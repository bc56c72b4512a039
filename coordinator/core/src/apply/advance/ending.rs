//! Taken back, settled, expired, and what is left over after the end.

use tidegate_shared::id::Name;
use tidegate_shared::weight::Weight;

use super::notes::keep_evidence;
use super::waiting::deny;
use super::{Moved, moved, refuse};
use crate::apply::end;
use crate::apply::lifecycle::{self, known_agents};
use crate::apply::tx::Tx;
use crate::apply::verb;
use crate::command::Cause;
use crate::deployment::{rollback, steps};
use crate::state::{Deployment, EndCause, Status, Verdicts};
use crate::strategy::is_batched;

pub(super) fn drained(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    if deployment.drained {
        return refuse(&deployment, "that is known already");
    }
    deployment.drained = true;
    moved(
        tx,
        deployment,
        "drained",
        "has the loser drained everywhere",
    )
}

pub(super) fn settled(tx: &mut Tx<'_>, mut deployment: Deployment, leftovers: &[Name]) -> Moved {
    let to = match deployment.status {
        Status::Finalizing => {
            if !deployment.drained && !steps::is_initial(&deployment) {
                return refuse(&deployment, "the old version is not drained yet");
            }
            Status::Finalized
        }
        Status::Cancelling => rollback::end_of_cancelling(&deployment),
        Status::RollingBack => Status::RolledBack,
        Status::Deleting => Status::Deleted,
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalized
        | Status::Cancelled
        | Status::RolledBack
        | Status::Failed
        | Status::Deleted => return refuse(&deployment, "nothing settles in this status"),
    };
    if to != Status::Finalized {
        if is_batched(&deployment) && deployment.traffic.replaced > 0 {
            return refuse(&deployment, "batches of it are not back yet");
        }
        deployment.traffic.desired = Weight::ZERO;
    }
    let leftovers = known_agents(tx, leftovers.to_vec());
    end::end(tx, deployment, to, leftovers)
}

fn end_cause(cause: &Cause) -> Option<EndCause> {
    match cause.kind.as_str() {
        "rule" | "no_data" | "verification" => Some(EndCause::Rule),
        "permanent_errors" => Some(EndCause::Errors),
        "progress_deadline" | "staging_deadline" | "stall" | "halt_max" | "pause_max"
        | "lost_agents" => Some(EndCause::Deadline),
        _ => None,
    }
}

pub(super) fn take_back(
    tx: &mut Tx<'_>,
    mut deployment: Deployment,
    cause: &Cause,
    evidence: &Verdicts,
) -> Moved {
    let Some(end_cause) = end_cause(cause) else {
        return refuse(&deployment, format_args!("\"{}\" is no cause", cause.kind));
    };
    if deployment.return_at_finalized.is_some() {
        return refuse(&deployment, "its return is noted already");
    }
    keep_evidence(&mut deployment, evidence);
    let message = cause.message.clone();
    lifecycle::take_back(tx, deployment, end_cause, &cause.kind, message)
}

pub(super) fn expire(tx: &mut Tx<'_>, mut deployment: Deployment, leftovers: &[Name]) -> Moved {
    let paused = deployment.paused.is_some();
    let reason = |word: &str| if paused { "pause_max" } else { word }.to_owned();
    let limits = deployment.origin.strategy.deadlines;
    let (to, reason, message) = match deployment.status {
        Status::CreatingApproval => return deny(tx, deployment, true),
        Status::Pending => {
            let message = if paused {
                format!("paused for {}", limits.pause_max)
            } else {
                format!("its gates were not all open in {}", limits.pending)
            };
            (Status::Cancelled, reason("expired"), message)
        }
        Status::Creating => {
            let message = if paused {
                format!("paused for {}", limits.pause_max)
            } else {
                format!("not staged everywhere in {}", limits.staging)
            };
            rollback::begin_return(&mut deployment);
            (Status::Failed, reason("staging_deadline"), message)
        }
        Status::Finalizing => (Status::Finalized, String::new(), String::new()),
        Status::Cancelling | Status::RollingBack => {
            deployment.traffic.desired = Weight::ZERO;
            deployment.traffic.replaced = 0;
            let message = format!(
                "{}; no progress in {}",
                deployment.message, limits.returning
            );
            (Status::Failed, deployment.reason.clone(), message)
        }
        Status::Deleting => (Status::Deleted, String::new(), String::new()),
        Status::CreatingApprovalDenied
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalized
        | Status::Cancelled
        | Status::RolledBack
        | Status::Failed
        | Status::Deleted => return refuse(&deployment, "nothing expires in this status"),
    };
    if to == Status::Cancelled || to == Status::Failed {
        deployment.end_cause = Some(deployment.end_cause.unwrap_or(EndCause::Deadline));
        deployment.reason = reason;
        deployment.message = message;
    }
    let leftovers = if deployment.status == Status::Pending {
        Vec::new()
    } else {
        known_agents(tx, leftovers.to_vec())
    };
    end::end(tx, deployment, to, leftovers)
}

/// A rule asks for another try of what failed before any traffic moved. Whoever deployed to the scope
/// since then wants something else.
pub(super) fn retry(tx: &mut Tx<'_>, deployment: &Deployment, why: &str) -> Moved {
    if deployment.traffic.got_traffic {
        return refuse(deployment, "traffic had moved");
    }
    let scope = tx.state.scope(&deployment.origin.scope)?;
    let newest = tx.state.history_of(&deployment.origin.scope).next_back();
    let is_newest = newest.is_some_and(|newest| newest.id == deployment.id);
    if !is_newest || !scope.waiting.is_empty() || scope.candidate.is_some() {
        return refuse(deployment, "something newer was deployed there");
    }
    let by = deployment.meta.created_by.clone();
    let tries = deployment.tries.saturating_add(1);
    let line = format!("{} is tried again: {why}", lifecycle::title(deployment));
    tx.note_deployment("retried", deployment, line);
    verb::try_again(tx, deployment, tries, Some(by)).map(drop)
}

pub(super) fn leftovers_gone(
    tx: &mut Tx<'_>,
    mut deployment: Deployment,
    agents: &[Name],
) -> Moved {
    let before = deployment.leftovers.len();
    deployment.leftovers.retain(|name| !agents.contains(name));
    if deployment.leftovers.len() == before {
        return refuse(&deployment, "nothing of it is left on these agents");
    }
    let id = deployment.id;
    let left = deployment.leftovers.len();
    let line = match left {
        0 => "is gone from every agent".to_owned(),
        left => format!("is gone from more agents; {left} are left"),
    };
    moved(tx, deployment, "leftovers_gone", &line)?;
    lifecycle::drop_settled_leftovers(tx, id)
}
