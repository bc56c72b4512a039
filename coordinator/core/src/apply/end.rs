//! Ends of deployments, and what follows from them in their scope.

use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::weight::Weight;

use super::auto;
use super::create;
use super::group;
use super::lifecycle::{self, enter, known_agents, title};
use super::tx::Tx;
use crate::deployment::rollback;
use crate::rejection::Rejection;
use crate::state::{Deployment, EndCause, LinkKind, Scope, ScopeStatus, Status};

/// Ends a deployment. `leftovers`: agents where the loser's place (at `FINALIZED` the replaced
/// version's, else its own) is not yet observed gone; it stays in the scope's `retired` until then.
pub(super) fn end(
    tx: &mut Tx<'_>,
    mut deployment: Deployment,
    to: Status,
    leftovers: Vec<Name>,
) -> Result<(), Rejection> {
    enter(tx, &mut deployment, to)?;
    deployment.paused = None;
    deployment.halted = None;
    deployment.ended_at = Some(tx.at);
    deployment.outcome = Some(rollback::label(&deployment, to).to_owned());
    let name = deployment.origin.scope.clone();
    let mut scope = tx.state.scope(&name)?.clone();
    scope.waiting.retain(|id| *id != deployment.id);
    if scope.candidate == Some(deployment.id) {
        scope.candidate = None;
    }
    let leftovers = known_agents(tx, leftovers);
    let line = end_line(&deployment, &leftovers);
    tx.note_deployment(to.as_str().to_lowercase(), &deployment, line);
    if to == Status::Finalized {
        promote(tx, &mut scope, &mut deployment, leftovers)?;
    } else {
        if to == Status::Deleted {
            scope.active = None;
            scope.last_active = Some(deployment.id);
            scope.status = ScopeStatus::Stopped;
        }
        retire(&mut scope, &mut deployment, leftovers);
    }
    let wanted = deployment
        .return_at_finalized
        .filter(|_| to == Status::Finalized);
    let id = deployment.id;
    auto::ended(tx, &deployment);
    group::ended(tx, &deployment);
    tx.put_deployment(deployment);
    tx.put_scope(&name, scope);
    follow_up(tx, &name, id, wanted)
}

fn end_line(deployment: &Deployment, leftovers: &[Name]) -> String {
    let why = match deployment.message.as_str() {
        "" => String::new(),
        message => format!(": {message}"),
    };
    let left = if leftovers.is_empty() {
        String::new()
    } else {
        let names: Vec<&str> = leftovers.iter().map(Name::as_str).collect();
        format!("; left over on {}", names.join(", "))
    };
    let spent = &deployment.durations;
    format!(
        "{} is {} after {} of progression, {} of pauses, {} of waiting{why}{left}",
        title(deployment),
        deployment.status,
        spent.progression,
        spent.manual_pause,
        spent.waiting
    )
}

/// The newest finalized deployment is the active one; what it replaced has to go.
fn promote(
    tx: &mut Tx<'_>,
    scope: &mut Scope,
    deployment: &mut Deployment,
    leftovers: Vec<Name>,
) -> Result<(), Rejection> {
    deployment.traffic.desired = Weight::FULL;
    deployment.traffic.manual = None;
    if let Some(old) = scope.active.filter(|old| *old != deployment.id) {
        let mut old = tx.state.deployment(old)?.clone();
        retire(scope, &mut old, leftovers);
        tx.put_deployment(old);
    }
    scope.active = Some(deployment.id);
    remember(tx, deployment);
    if scope.status != ScopeStatus::Stopping {
        scope.status = ScopeStatus::Ready;
    }
    let state = &tx.state;
    scope.kept = rollback::keep(&scope.kept, deployment, |id| {
        state.deployments.get(&id).is_some_and(|kept| {
            kept.origin.version == deployment.origin.version
                && kept.origin.parameters == deployment.origin.parameters
        })
    });
    Ok(())
}

/// How the release fared in the scope, for rules about other environments.
fn remember(tx: &mut Tx<'_>, deployment: &Deployment) {
    let origin = &deployment.origin;
    let mut track = tx
        .state
        .tracks
        .get(&origin.scope)
        .cloned()
        .unwrap_or_default();
    let link = origin
        .link
        .as_ref()
        .filter(|link| link.kind == LinkKind::Rollback);
    let left = link.and_then(|link| tx.state.deployments.get(&link.of));
    if let Some(left) = left.filter(|left| left.origin.version != origin.version) {
        track.went_back(&left.origin.version, tx.at);
    }
    track.finalized(&origin.version, tx.at, !deployment.unverified);
    tx.state.tracks.insert(origin.scope.clone(), track);
}

fn retire(scope: &mut Scope, deployment: &mut Deployment, leftovers: Vec<Name>) {
    deployment.leftovers = leftovers;
    if !deployment.leftovers.is_empty() && !scope.retired.contains(&deployment.id) {
        scope.retired.push(deployment.id);
    }
}

/// A scope that is being stopped goes on with it; a return that was asked for while finalizing is
/// made.
fn follow_up(
    tx: &mut Tx<'_>,
    name: &Name,
    ended: DeploymentId,
    wanted: Option<EndCause>,
) -> Result<(), Rejection> {
    let scope = tx.state.scope(name)?.clone();
    if scope.status == ScopeStatus::Stopping {
        return if scope.candidate.is_none() {
            delete_active(tx, name)
        } else {
            Ok(())
        };
    }
    let Some(cause) = wanted else {
        return Ok(());
    };
    let deployment = tx.state.deployment(ended)?.clone();
    match deployment.replaces {
        Some(target) => {
            let back = create::return_to(tx, &deployment, target, cause)?;
            group::returned(tx, &deployment, back)
        }
        None => Ok(()),
    }
}

/// Begins to delete the active deployment of a scope that is being stopped; without one the scope
/// is back where it was before its first.
pub(super) fn delete_active(tx: &mut Tx<'_>, name: &Name) -> Result<(), Rejection> {
    let mut scope = tx.state.scope(name)?.clone();
    let Some(active) = scope.active else {
        scope.status = if scope.last_active.is_some() {
            ScopeStatus::Stopped
        } else {
            ScopeStatus::Creating
        };
        tx.put_scope(name, scope);
        return Ok(());
    };
    let mut active = tx.state.deployment(active)?.clone();
    if active.status != Status::Finalized {
        return Ok(());
    }
    lifecycle::enter(tx, &mut active, Status::Deleting)?;
    active.traffic.desired = Weight::ZERO;
    let line = format!(
        "{} is DELETING: scope {name} is being stopped",
        title(&active)
    );
    tx.note_deployment("deleting", &active, line);
    tx.put_deployment(active);
    Ok(())
}
