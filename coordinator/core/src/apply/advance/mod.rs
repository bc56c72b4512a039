//! The planner's moves. Each rests on a revision and on structural facts that are checked here; the
//! answers of policies, clocks and observations it carries are taken as they are.

mod ending;
mod notes;
mod rollout;
mod waiting;

use tidegate_shared::error::Reason;

use super::lifecycle::title;
use super::tx::Tx;
use crate::command::{Action, Advance, Outcome, Reply};
use crate::deployment::phase;
use crate::rejection::Rejection;
use crate::state::Deployment;

type Moved = Result<(), Rejection>;

/// Moves a deployment, or says which fact does not hold (any more).
pub(super) fn advance(tx: &mut Tx<'_>, command: &Advance) -> Outcome {
    let deployment = tx.state.deployment(command.deployment)?.clone();
    if deployment.meta.revision != command.revision {
        return Err(Rejection::new(
            Reason::Stale,
            format!(
                "{} is at revision {}, the move was for {}",
                title(&deployment),
                deployment.meta.revision,
                command.revision
            ),
        ));
    }
    if !phase::action(deployment.status, &command.action) {
        return Err(Rejection::new(
            Reason::WrongStatus,
            format!(
                "{} is {} and takes no {}",
                title(&deployment),
                deployment.status,
                command.action.as_str()
            ),
        ));
    }
    let id = deployment.id;
    run(tx, deployment, &command.action)?;
    Ok(Reply::Deployments(vec![id]))
}

fn run(tx: &mut Tx<'_>, deployment: Deployment, action: &Action) -> Moved {
    match action {
        Action::RequireApproval {
            policies,
            expires_at,
            withdrawn,
        } => waiting::require_approval(tx, deployment, policies, *expires_at, withdrawn),
        Action::ApprovalSatisfied => waiting::approval_satisfied(tx, deployment),
        Action::ApprovalDenied { expired } => waiting::deny(tx, deployment, *expired),
        Action::Start {
            participants,
            gates,
        } => waiting::start(tx, deployment, participants, gates.as_ref()),
        Action::Deny { message } => waiting::refuse_start(tx, deployment, message),
        Action::Staged => rollout::staged(tx, deployment),
        Action::Progress { outstanding } => rollout::progress(tx, deployment, *outstanding),
        Action::InstancesReady => rollout::instances_ready(tx, deployment),
        Action::StepReached => rollout::step_reached(tx, deployment),
        Action::StepDone { unverified } => rollout::step_done(tx, deployment, *unverified),
        Action::BatchDone => rollout::batch_done(tx, deployment),
        Action::Finalize { unverified } => rollout::finalize(tx, deployment, *unverified),
        Action::Drained => ending::drained(tx, deployment),
        Action::Settled { leftovers } => ending::settled(tx, deployment, leftovers),
        Action::TakeBack { cause, evidence } => ending::take_back(tx, deployment, cause, evidence),
        Action::Expire { leftovers } => ending::expire(tx, deployment, leftovers),
        Action::Halt { cause, evidence } => notes::halt(tx, deployment, cause, evidence),
        Action::Unhalt => notes::unhalt(tx, deployment),
        Action::MarkLost { lost } => notes::mark_lost(tx, deployment, lost),
        Action::NoteErrors { causes } => notes::note_errors(tx, deployment, causes),
        Action::NoteEvidence { evidence } => notes::note_evidence(tx, deployment, evidence),
        Action::NoteChecks { checks } => notes::note_checks(tx, deployment, checks),
        Action::LeftoversGone { agents } => ending::leftovers_gone(tx, deployment, agents),
        Action::Retry { why } => ending::retry(tx, &deployment, why),
    }
}

/// A structural fact that the move needs does not hold.
fn refuse(deployment: &Deployment, message: impl std::fmt::Display) -> Moved {
    Err(Rejection::new(
        Reason::WrongStatus,
        format!("{}: {message}", title(deployment)),
    ))
}

fn moved(tx: &mut Tx<'_>, deployment: Deployment, kind: &str, line: &str) -> Moved {
    let line = format!("{} {line}", title(&deployment));
    tx.note_deployment(kind, &deployment, line);
    tx.put_deployment(deployment);
    Ok(())
}

fn check_going(deployment: &Deployment) -> Moved {
    if let Some(paused) = &deployment.paused {
        return refuse(deployment, format_args!("it is paused by {}", paused.by));
    }
    if let Some(halted) = &deployment.halted {
        return refuse(deployment, format_args!("it is halted: {}", halted.message));
    }
    Ok(())
}

fn check_peopled(deployment: &Deployment) -> Moved {
    if deployment.participants.is_empty() {
        return refuse(deployment, "none of its agents is left in the cluster");
    }
    Ok(())
}
