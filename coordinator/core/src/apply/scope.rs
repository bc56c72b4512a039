//! Verbs on scopes: stop, start, restart, back to an earlier release.

use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::spec::ReleaseStatus;

use super::create::{self, Wanted, check_conflicts, check_ready};
use super::end;
use super::lifecycle::{self, because, title};
use super::parameters;
use super::tx::Tx;
use super::verb;
use crate::command::{OnConflict, Outcome, Reply, RollbackScope, StopScope};
use crate::rejection::Rejection;
use crate::state::{Deployment, EndCause, LinkKind, Scope, ScopeStatus, Status};

fn wrong_status(name: &Name, scope: &Scope, message: &str) -> Rejection {
    Rejection::new(
        Reason::ScopeStatus,
        format!("scope \"{name}\" is {}: {message}", scope.status.as_str()),
    )
}

/// Names the deployment in the way, and what can be done.
fn busy(tx: &Tx<'_>, name: &Name, other: DeploymentId, next: &str) -> Result<Rejection, Rejection> {
    let other = tx.state.deployment(other)?;
    Ok(Rejection::new(
        Reason::Conflict,
        format!(
            "scope \"{name}\" is busy: deployment {} of {} {} by {} is {}; {next}",
            other.id,
            other.origin.application,
            other.origin.version,
            other.meta.created_by,
            other.status
        ),
    ))
}

/// Stops a scope: its active deployment is deleted. What is under way is in the way, or cancelled
/// first; `FINALIZING` is waited out. A scope that is stopped, or stopping, stays so.
pub(super) fn stop(tx: &mut Tx<'_>, command: &StopScope) -> Outcome {
    let name = &command.name;
    let scope = tx.state.scope(name)?.clone();
    if matches!(scope.status, ScopeStatus::Stopping | ScopeStatus::Stopped)
        && scope.candidate.is_none()
        && scope.waiting.is_empty()
    {
        let line = format!("scope {name} is {} already", scope.status.as_str());
        tx.note("scope_stop", "scope", name, line);
        return Ok(Reply::Done);
    }
    let under_way: Vec<DeploymentId> = scope
        .candidate
        .iter()
        .chain(&scope.waiting)
        .copied()
        .collect();
    if scope.active.is_none() && under_way.is_empty() {
        return Err(wrong_status(name, &scope, "nothing runs there"));
    }
    if !command.cancel
        && let Some(first) = under_way.first()
    {
        let next = "stop with --cancel to take it back first";
        return Err(busy(tx, name, *first, next)?);
    }
    let mut stopping = scope.clone();
    stopping.status = ScopeStatus::Stopping;
    tx.put_scope(name, stopping);
    let line = format!("scope {name} is being stopped by {}", tx.actor);
    tx.note("scope_stopping", "scope", name, line);
    for id in scope.waiting.iter().chain(&scope.candidate) {
        let deployment = tx.state.deployment(*id)?.clone();
        if deployment.status != Status::Finalizing {
            let message = format!("scope {name} is being stopped");
            let cause = EndCause::ScopeStopped;
            lifecycle::take_back(tx, deployment, cause, "scope_stopped", message)?;
        }
    }
    let now = tx.state.scope(name)?;
    if now.status == ScopeStatus::Stopping && now.candidate.is_none() {
        end::delete_active(tx, name)?;
    }
    Ok(Reply::Done)
}

/// An initial deployment of the last active release with its frozen parameters.
pub(super) fn start(tx: &mut Tx<'_>, name: &Name) -> Outcome {
    let scope = tx.state.scope(name)?.clone();
    if scope.status != ScopeStatus::Stopped {
        return Err(wrong_status(
            name,
            &scope,
            "only a stopped scope is started",
        ));
    }
    let Some(last) = scope.last_active else {
        return Err(wrong_status(name, &scope, "no release ever ran there"));
    };
    check_conflicts(tx, std::slice::from_ref(name))?;
    let last = tx.state.deployment(last)?.clone();
    let release = tx
        .state
        .release(&last.origin.application, &last.origin.version)?;
    check_ready(release, &last.origin.application, &last.origin.version)?;
    let wanted = Wanted {
        parameters: Some(parameters::returning(&tx.state, &last.origin.parameters)),
        ..Wanted::again(&last, LinkKind::Start)
    };
    Ok(Reply::Deployments(vec![create::make(tx, wanted)?]))
}

/// The same release goes through the steps again, with the parameters as they stand now.
pub(super) fn restart(tx: &mut Tx<'_>, name: &Name) -> Outcome {
    let scope = tx.state.scope(name)?.clone();
    check_conflicts(tx, std::slice::from_ref(name))?;
    let active = tx.state.active_of(&scope).cloned();
    let Some(active) = active.filter(|_| scope.status == ScopeStatus::Ready) else {
        // A first deployment, or that of a start, is what there will be to restart.
        return Err(match scope.waiting.first() {
            Some(waiting) => busy(tx, name, *waiting, "restart when it has ended")?,
            None => wrong_status(name, &scope, "nothing runs there to restart"),
        });
    };
    let release = tx
        .state
        .release(&active.origin.application, &active.origin.version)?;
    check_ready(release, &active.origin.application, &active.origin.version)?;
    let wanted = Wanted::again(&active, LinkKind::Restart);
    Ok(Reply::Deployments(vec![create::make(tx, wanted)?]))
}

/// Back to an earlier release. With a deployment under way and no other release named it is that
/// deployment that goes back; else it gives way to a fast rollback.
pub(super) fn rollback(tx: &mut Tx<'_>, command: &RollbackScope) -> Outcome {
    let name = &command.name;
    let scope = tx.state.scope(name)?.clone();
    if command.force && command.reason.is_empty() {
        return Err(Rejection::new(
            Reason::InvalidRequest,
            "a forced rollback needs a reason",
        ));
    }
    if let Some(candidate) = tx.state.candidate_of(&scope).cloned() {
        let before = candidate
            .replaces
            .and_then(|id| tx.state.deployments.get(&id));
        let same = before.map(|before| &before.origin.version) == command.version.as_ref();
        if command.version.is_none() || same {
            return verb::roll_back(tx, candidate, &command.reason);
        }
    }
    leave_active(tx, command)
}

/// A fast rollback from the active deployment; one under way gives way to it.
pub(super) fn leave_active(tx: &mut Tx<'_>, command: &RollbackScope) -> Outcome {
    let name = &command.name;
    let scope = tx.state.scope(name)?.clone();
    let Some(active) = tx.state.active_of(&scope).cloned() else {
        return Err(match scope.status {
            ScopeStatus::Stopped | ScopeStatus::Stopping => {
                wrong_status(name, &scope, "start it first")
            }
            ScopeStatus::Creating | ScopeStatus::Ready | ScopeStatus::Deleted => Rejection::new(
                Reason::NothingToReturnTo,
                format!("scope \"{name}\" has no version to return from"),
            ),
        });
    };
    if scope.status != ScopeStatus::Ready {
        return Err(wrong_status(name, &scope, "it cannot return now"));
    }
    let target = target(tx, command, &scope, &active)?;
    let id = create::fast(tx, &active, &target, command.force, OnConflict::Supersede)?;
    let line = format!(
        "scope {name} returns from {} to {} on the word of {}{}",
        active.origin.version,
        target.origin.version,
        tx.actor,
        because(&command.reason)
    );
    tx.note("scope_rollback", "scope", name, line);
    Ok(Reply::Deployments(vec![id]))
}

/// The kept deployment to return to: of the named release, else the first after the active one
/// whose release is not rejected.
fn target(
    tx: &Tx<'_>,
    command: &RollbackScope,
    scope: &Scope,
    active: &Deployment,
) -> Result<Deployment, Rejection> {
    let kept: Vec<&Deployment> = scope
        .kept
        .iter()
        .filter(|id| **id != active.id)
        .filter_map(|id| tx.state.deployments.get(id))
        .collect();
    let status = |deployment: &Deployment| {
        let origin = &deployment.origin;
        let release = tx.state.release(&origin.application, &origin.version);
        release.map(|release| release.status)
    };
    let Some(version) = &command.version else {
        let good = kept
            .iter()
            .find(|d| command.force || status(d) != Ok(ReleaseStatus::Rejected));
        return good.map(|d| (*d).clone()).ok_or_else(|| {
            Rejection::new(
                Reason::NothingToReturnTo,
                format!(
                    "scope \"{}\" runs {} and has no earlier good release",
                    command.name, active.origin.version
                ),
            )
        });
    };
    let Some(found) = kept.iter().find(|d| d.origin.version == *version) else {
        if active.origin.version == *version {
            return Err(Rejection::new(
                Reason::NothingToReturnTo,
                format!("scope \"{}\" runs {version} already", command.name),
            ));
        }
        let names: Vec<&str> = kept.iter().map(|d| d.origin.version.as_str()).collect();
        let list = if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        };
        return Err(Rejection::new(
            Reason::NotKept,
            format!(
                "release {version} is not kept on the hosts of scope \"{}\"; kept are: {list}",
                command.name
            ),
        ));
    };
    if status(found)? == ReleaseStatus::Rejected && !command.force {
        return Err(Rejection::new(
            Reason::ReleaseRejected,
            format!(
                "{} ran release {version}, which was rejected since; return with --force and a reason if it has to be",
                title(found)
            ),
        ));
    }
    Ok((*found).clone())
}
