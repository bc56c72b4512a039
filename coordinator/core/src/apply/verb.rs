//! A person's verbs on a deployment.
//!
//! The table in `deployment::phase` says where each is allowed; here is what else it needs and what
//! it does.

use tidegate_shared::error::Reason;
use tidegate_shared::id::DeploymentId;
use tidegate_shared::weight::Weight;

use super::approval;
use super::create::{self, Wanted, check_conflicts, check_ready};
use super::group;
use super::lifecycle::{self, because, title};
use super::parameters;
use super::scope;
use super::tx::{Tx, expect_revision};
use crate::command::{ActOnDeployment, Actor, Outcome, Reply, RollbackScope, Verb};
use crate::deployment::phase::{self, Answer};
use crate::deployment::steps;
use crate::rejection::Rejection;
use crate::state::{Deployment, EndCause, LinkKind, Paused, Status};
use crate::strategy::is_batched;

/// Does a verb, or says why not.
pub(super) fn act(tx: &mut Tx<'_>, command: &ActOnDeployment) -> Outcome {
    let deployment = tx.state.deployment(command.deployment)?.clone();
    let what = title(&deployment);
    expect_revision(&what, command.expected_revision, deployment.meta.revision)?;
    match phase::verb(deployment.status, &command.verb) {
        Answer::Acts => {}
        Answer::NoChange => return Ok(no_change(tx, &deployment, command.verb)),
        Answer::Refused => return Err(refused(&deployment, command.verb)),
    }
    let reason = command.reason.as_str();
    match command.verb {
        Verb::Pause => Ok(pause(tx, deployment, reason)),
        Verb::Resume => Ok(resume(tx, deployment, reason)),
        Verb::Promote => promote(tx, deployment, reason),
        Verb::PromoteFull => promote_full(tx, deployment, reason),
        Verb::Traffic(weight) => traffic(tx, deployment, weight, reason),
        Verb::Finalize => finalize(tx, deployment, reason),
        Verb::Cancel => cancel(tx, deployment, reason),
        Verb::Rollback => roll_back(tx, deployment, reason),
        Verb::Retry => retry(tx, &deployment),
    }
}

fn refused(deployment: &Deployment, verb: Verb) -> Rejection {
    let status = deployment.status;
    let when = match verb {
        Verb::Pause | Verb::Resume => "it is possible from PENDING to RUNNING",
        Verb::Promote | Verb::PromoteFull | Verb::Traffic(_) | Verb::Finalize => {
            "it is possible in RUNNING"
        }
        Verb::Cancel => "it is possible before FINALIZING",
        Verb::Rollback if phase::is_waiting(status) => "it has not started: cancel it",
        Verb::Rollback => "it is possible while it rolls out, and on the scope's active deployment",
        Verb::Retry => "it is possible after a bad end",
    };
    Rejection::new(
        Reason::WrongStatus,
        format!(
            "{} is {status} and takes no {}: {when}",
            title(deployment),
            verb.as_str()
        ),
    )
}

fn not_offered(deployment: &Deployment, message: &str) -> Rejection {
    Rejection::new(
        Reason::NotOffered,
        format!("{}: {message}", title(deployment)),
    )
}

fn no_change(tx: &mut Tx<'_>, deployment: &Deployment, verb: Verb) -> Reply {
    let line = format!(
        "{} is {}; {} changes nothing",
        title(deployment),
        deployment.status,
        verb.as_str()
    );
    tx.note_deployment(format!("{}_unchanged", verb.as_str()), deployment, line);
    Reply::Deployments(vec![deployment.id])
}

/// Notes what was done, stores the deployment, answers with it.
fn done(tx: &mut Tx<'_>, deployment: Deployment, kind: &str, line: String) -> Reply {
    let id = deployment.id;
    let line = format!("{} {line}", title(&deployment));
    tx.note_deployment(kind, &deployment, line);
    tx.put_deployment(deployment);
    Reply::Deployments(vec![id])
}

fn pause(tx: &mut Tx<'_>, mut deployment: Deployment, reason: &str) -> Reply {
    if deployment.paused.is_some() {
        return no_change(tx, &deployment, Verb::Pause);
    }
    set_paused(tx, &mut deployment, reason);
    let line = format!("was paused by {}{}", tx.actor, because(reason));
    done(tx, deployment, "paused", line)
}

fn set_paused(tx: &Tx<'_>, deployment: &mut Deployment, reason: &str) {
    phase::count_time(deployment, tx.at);
    if deployment.paused.is_none() {
        deployment.paused = Some(Paused {
            since: tx.at,
            by: tx.actor.clone(),
            reason: reason.to_owned(),
        });
    }
}

fn resume(tx: &mut Tx<'_>, mut deployment: Deployment, reason: &str) -> Reply {
    if phase::stopped_since(&deployment).is_none() {
        return no_change(tx, &deployment, Verb::Resume);
    }
    phase::lift(&mut deployment, true, true, tx.at);
    steps::above_manual(&mut deployment, tx.at);
    let line = format!("goes on, by {}{}", tx.actor, because(reason));
    done(tx, deployment, "resumed", line)
}

/// Ends the present step: its hold and gates do not matter any more. At the last step it ends the
/// hold, and the bake begins.
fn promote(tx: &mut Tx<'_>, mut deployment: Deployment, reason: &str) -> Outcome {
    if deployment.traffic.manual.is_some() {
        phase::lift(&mut deployment, true, true, tx.at);
        steps::above_manual(&mut deployment, tx.at);
    } else {
        check_promotable(&deployment)?;
        phase::lift(&mut deployment, true, true, tx.at);
        phase::count_time(&mut deployment, tx.at);
        if steps::at_last(&deployment) {
            if let Some(step) = &mut deployment.traffic.step {
                step.promoted = true;
            }
        } else {
            steps::next(&mut deployment, tx.at);
        }
    }
    let line = format!(
        "was promoted to {} by {}{}",
        wished(&deployment),
        tx.actor,
        because(reason)
    );
    Ok(done(tx, deployment, "promoted", line))
}

fn check_promotable(deployment: &Deployment) -> Result<(), Rejection> {
    let step = deployment.traffic.step;
    if is_batched(deployment) && step.is_some_and(|step| step.reached_at.is_none()) {
        return Err(not_offered(
            deployment,
            "its present batch is not replaced yet; the next one cannot begin",
        ));
    }
    if steps::at_last(deployment) && step.is_some_and(|step| step.promoted) {
        return Err(not_offered(
            deployment,
            "it is past its last step; finalize ends the bake",
        ));
    }
    Ok(())
}

/// What share it has, or will have when the present batch is replaced.
fn wished(deployment: &Deployment) -> Weight {
    if is_batched(deployment) {
        steps::share_replaced(&deployment.traffic)
    } else {
        deployment.traffic.desired
    }
}

fn promote_full(tx: &mut Tx<'_>, mut deployment: Deployment, reason: &str) -> Outcome {
    phase::lift(&mut deployment, true, true, tx.at);
    phase::count_time(&mut deployment, tx.at);
    deployment.traffic.manual = None;
    if !steps::last_is_reached(&deployment) {
        steps::to_last(&mut deployment, tx.at);
    }
    if let Some(step) = &mut deployment.traffic.step {
        step.promoted = true;
    }
    deployment.promoted_full = true;
    let line = format!(
        "was promoted through all steps to {} by {}{}",
        wished(&deployment),
        tx.actor,
        because(reason)
    );
    Ok(done(tx, deployment, "promoted_full", line))
}

fn traffic(tx: &mut Tx<'_>, mut deployment: Deployment, weight: Weight, reason: &str) -> Outcome {
    if is_batched(&deployment) {
        return Err(not_offered(
            &deployment,
            "it is rolling: its traffic follows the batches",
        ));
    }
    if steps::is_initial(&deployment) {
        return Err(not_offered(
            &deployment,
            "there is no other version to share the traffic with",
        ));
    }
    set_paused(tx, &mut deployment, reason);
    steps::set_manual(&mut deployment, weight, tx.at);
    let line = format!(
        "has its traffic set to {weight} and is paused, by {}{}",
        tx.actor,
        because(reason)
    );
    Ok(done(tx, deployment, "traffic_set", line))
}

fn finalize(tx: &mut Tx<'_>, mut deployment: Deployment, reason: &str) -> Outcome {
    if !steps::last_is_reached(&deployment) || deployment.participants.is_empty() {
        return Err(not_offered(
            &deployment,
            "its last step is not held everywhere yet; promote it first",
        ));
    }
    phase::lift(&mut deployment, true, true, tx.at);
    let line = format!("is FINALIZING, by {}{}", tx.actor, because(reason));
    enter_finalizing(tx, &mut deployment)?;
    Ok(done(tx, deployment, "finalizing", line))
}

/// `RUNNING` → `FINALIZING`: what was left on the old version moves over.
pub(super) fn enter_finalizing(tx: &Tx<'_>, deployment: &mut Deployment) -> Result<(), Rejection> {
    lifecycle::enter(tx, deployment, Status::Finalizing)?;
    deployment.traffic.manual = None;
    deployment.traffic.desired = Weight::FULL;
    deployment.traffic.got_traffic = true;
    deployment.traffic.replaced = deployment.traffic.total;
    deployment.paused = None;
    deployment.halted = None;
    Ok(())
}

fn cancel(tx: &mut Tx<'_>, deployment: Deployment, reason: &str) -> Outcome {
    take_back(tx, deployment, EndCause::Cancel, "cancelled", reason)
}

/// Back to the active version; on the active version itself, to the one before it.
pub(super) fn roll_back(tx: &mut Tx<'_>, deployment: Deployment, reason: &str) -> Outcome {
    match phase::verb(deployment.status, &Verb::Rollback) {
        Answer::Acts => {}
        Answer::NoChange => return Ok(no_change(tx, &deployment, Verb::Rollback)),
        Answer::Refused => return Err(refused(&deployment, Verb::Rollback)),
    }
    let name = deployment.origin.scope.clone();
    if deployment.status == Status::Finalized {
        let active = tx.state.scopes.get(&name).and_then(|scope| scope.active);
        if active != Some(deployment.id) {
            return Err(Rejection::new(
                Reason::WrongStatus,
                format!(
                    "{} is not the active one of its scope any more; name the release: `tidegate rollback {name} --to {}`",
                    title(&deployment),
                    deployment.origin.version
                ),
            ));
        }
        let command = RollbackScope {
            name,
            version: None,
            force: false,
            reason: reason.to_owned(),
        };
        return scope::leave_active(tx, &command);
    }
    if steps::is_initial(&deployment) && deployment.status != Status::Finalizing {
        return Err(Rejection::new(
            Reason::NothingToReturnTo,
            format!(
                "{} is the first in scope {name}: there is nothing to return to; cancel it",
                title(&deployment)
            ),
        ));
    }
    // In `CREATING` nothing was touched yet: there it is a cancel.
    let cause = if deployment.status == Status::Creating {
        EndCause::Cancel
    } else {
        EndCause::Rollback
    };
    take_back(tx, deployment, cause, "rolled_back", reason)
}

fn take_back(
    tx: &mut Tx<'_>,
    deployment: Deployment,
    cause: EndCause,
    word: &str,
    reason: &str,
) -> Outcome {
    let id = deployment.id;
    let (verb, done) = if word == "cancelled" {
        (Verb::Cancel, "cancelled")
    } else {
        (Verb::Rollback, "rolled back")
    };
    if deployment.return_at_finalized.is_some() {
        return Ok(no_change(tx, &deployment, verb));
    }
    let message = format!("{done} by {}{}", tx.actor, because(reason));
    lifecycle::take_back(tx, deployment, cause, word, message)?;
    Ok(Reply::Deployments(vec![id]))
}

/// A linked new deployment: the same release and strategy, parameters as they stand now (a return
/// keeps the ones that it goes back to).
fn retry(tx: &mut Tx<'_>, deployment: &Deployment) -> Outcome {
    let id = try_again(tx, deployment, 0, None)?;
    Ok(Reply::Deployments(vec![id]))
}

/// See [`retry`]; `tries` are those that a rule made before this one, `by` who asked for the first.
/// In a group under way it takes the place of the one that ended.
pub(super) fn try_again(
    tx: &mut Tx<'_>,
    deployment: &Deployment,
    tries: u32,
    by: Option<Actor>,
) -> Result<DeploymentId, Rejection> {
    let origin = &deployment.origin;
    check_conflicts(tx, std::slice::from_ref(&origin.scope))?;
    let release = tx.state.release(&origin.application, &origin.version)?;
    if !(origin.fast && origin.forced) {
        check_ready(release, &origin.application, &origin.version)?;
    }
    let expires_at = deployment
        .required
        .as_ref()
        .map_or(tx.at, |required| required.expires_at);
    let wanted = Wanted {
        fast: origin.fast,
        forced: origin.forced,
        parameters: origin
            .fast
            .then(|| parameters::returning(&tx.state, &origin.parameters)),
        required: approval::carried(deployment, expires_at),
        tries,
        by,
        ..Wanted::again(deployment, LinkKind::Retry)
    };
    let id = create::make(tx, wanted)?;
    drop_foreign_grants(tx, id)?;
    group::retried(tx, deployment, id)?;
    Ok(id)
}

/// Grants count only for what they were given for; a parameter may have changed since.
fn drop_foreign_grants(tx: &mut Tx<'_>, id: DeploymentId) -> Result<(), Rejection> {
    let mut deployment = tx.state.deployment(id)?.clone();
    let bound = super::binding(&deployment.origin);
    let Some(required) = &mut deployment.required else {
        return Ok(());
    };
    required.decisions.retain(|d| d.binding == bound);
    if required.decisions.is_empty() {
        deployment.required = None;
    }
    tx.put_deployment(deployment);
    Ok(())
}
