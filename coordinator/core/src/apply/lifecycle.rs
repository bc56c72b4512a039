//! Moves that several commands share: a deployment taken back, counted anew, left over.

use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name};

use super::end;
use super::tx::Tx;
use crate::deployment::{phase, rollback, steps};
use crate::rejection::Rejection;
use crate::state::{Deployment, EndCause, Status};
use crate::strategy::rolling;

/// How messages name a deployment.
pub(super) fn title(deployment: &Deployment) -> String {
    let origin = &deployment.origin;
    format!(
        "deployment {} ({} {} to {})",
        deployment.short, origin.application, origin.version, origin.scope
    )
}

/// A person's reason as the end of a sentence; nothing if none was given.
pub(super) fn because(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    }
}

/// Enters a status.
///
/// # Errors
/// The table does not lead there: `WRONG_STATUS`, which callers avoid by asking the table first.
pub(super) fn enter(tx: &Tx<'_>, deployment: &mut Deployment, to: Status) -> Result<(), Rejection> {
    phase::enter(deployment, to, tx.at).map_err(|(from, to)| {
        Rejection::new(
            Reason::WrongStatus,
            format!("{} is {from} and cannot become {to}", title(deployment)),
        )
    })
}

/// Counts instances anew after participants or instances per agent changed.
pub(super) fn recount(tx: &Tx<'_>, deployment: &mut Deployment) {
    if !phase::is_under_way(deployment.status) {
        return;
    }
    if let Some(scope) = tx.state.scopes.get(&deployment.origin.scope) {
        let total = rolling::total(deployment, scope);
        steps::rescale(deployment, total);
    }
}

/// Takes a deployment back for a cause, wherever it is: before `CREATING` it ends at once; from
/// there to `RUNNING` it turns back; `FINALIZING` is waited out; an end, or what turns back
/// already, stays as it is.
pub(super) fn take_back(
    tx: &mut Tx<'_>,
    mut deployment: Deployment,
    cause: EndCause,
    reason: &str,
    message: String,
) -> Result<(), Rejection> {
    let to = match deployment.status {
        Status::CreatingApproval | Status::Pending => Some(Status::Cancelled),
        Status::Finalizing => {
            return_later(tx, deployment, cause, message);
            return Ok(());
        }
        Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::CreatingApprovalDenied
        | Status::Finalized
        | Status::Cancelling
        | Status::Cancelled
        | Status::RollingBack
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => rollback::leads_to(&deployment, cause),
    };
    let Some(to) = to else {
        return Ok(());
    };
    deployment.end_cause = Some(cause);
    reason.clone_into(&mut deployment.reason);
    deployment.message = message;
    if to.is_end() {
        // Where it was started nothing is gone yet: it has just been told to go.
        let left = deployment.participants.clone();
        rollback::begin_return(&mut deployment);
        return end::end(tx, deployment, to, left);
    }
    enter(tx, &mut deployment, to)?;
    deployment.paused = None;
    deployment.halted = None;
    rollback::begin_return(&mut deployment);
    let message = format!("{} is {to}: {}", title(&deployment), deployment.message);
    tx.note_deployment(to.as_str().to_lowercase(), &deployment, message);
    tx.put_deployment(deployment);
    Ok(())
}

/// `FINALIZING` cannot be turned back: what is asked for now happens at `FINALIZED`.
fn return_later(tx: &mut Tx<'_>, mut deployment: Deployment, cause: EndCause, message: String) {
    if deployment.return_at_finalized.is_some() {
        return;
    }
    deployment.return_at_finalized = Some(cause);
    let then = if steps::is_initial(&deployment) {
        "there is no version before it, so this is only noted"
    } else {
        "it is finalizing, so a fast rollback follows when it is FINALIZED"
    };
    let line = format!("{}: {message}; {then}", title(&deployment));
    deployment.message = format!("{message}; {then}");
    tx.note_deployment("return_noted", &deployment, line);
    tx.put_deployment(deployment);
}

/// Takes a deployment off its scope's `retired` once nothing of it is left anywhere.
pub(super) fn drop_settled_leftovers(tx: &mut Tx<'_>, id: DeploymentId) -> Result<(), Rejection> {
    let deployment = tx.state.deployment(id)?;
    if !deployment.leftovers.is_empty() {
        return Ok(());
    }
    let name = deployment.origin.scope.clone();
    let Some(scope) = tx.state.scopes.get(&name) else {
        return Ok(());
    };
    if scope.retired.contains(&id) {
        let mut scope = scope.clone();
        scope.retired.retain(|other| *other != id);
        tx.put_scope(&name, scope);
    }
    Ok(())
}

/// Agents in order of name, each once, only those that are in the cluster.
pub(super) fn known_agents(tx: &Tx<'_>, mut agents: Vec<Name>) -> Vec<Name> {
    agents.retain(|name| tx.state.agents.contains_key(name));
    agents.sort();
    agents.dedup();
    agents
}
