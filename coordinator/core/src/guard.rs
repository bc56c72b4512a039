//! Policies that refuse at once, before a command reaches the log: whatever makes a deployment makes it
//! on a copy of the state first. Guardrails look at what it would be (product.md §5.12); at a return
//! to a finalized release, which is exempt from every other policy, who depends is asked (§5.6).
//!
//! Asked by the fronts for people's commands; what the planner makes by itself it asks about where it
//! decides (`auto`, `plan::retry`). Never by `apply`, which may not evaluate them.

use tidegate_shared::error::Reason;
use tidegate_shared::id::DeploymentId;
use tidegate_shared::time::Timestamp;

use crate::apply::apply;
use crate::command::{Command, Entry, Item, Reply, Verb};
use crate::policy::{guardrail, rules};
use crate::rejection::Rejection;
use crate::state::{Deployment, State};

/// Whether a command may be given now; `index`: any that is above the state's.
///
/// # Errors
/// The first guardrail that does not hold for a deployment that the command would make, or who would
/// miss what a return leaves.
pub fn guard(state: &State, index: u64, now: Timestamp, item: &Item) -> Result<(), Rejection> {
    if !makes_deployments(&item.command) || !(guardrail::is_any(state) || has_dependencies(state)) {
        return Ok(());
    }
    let mut copy = state.clone();
    let at = state.at.max(now);
    let entry = Entry {
        at,
        items: vec![item.clone()],
    };
    for one in apply(&mut copy, index, &entry) {
        // A refusal is told by the log, where it is remembered.
        let Ok(reply) = one.outcome else {
            continue;
        };
        // A request that is repeated has made them before.
        let made = made_by(&reply)
            .iter()
            .filter(|id| !state.deployments.contains_key(id));
        for id in made {
            match copy.deployments.get(id) {
                Some(back) if back.origin.fast => check_return(&copy, back, at)?,
                Some(found) => guardrail::check_all(&copy, found, at)?,
                None => {}
            }
        }
    }
    Ok(())
}

fn has_dependencies(state: &State) -> bool {
    let mut policies = state.policies.values();
    policies.any(|policy| policy.spec.enabled && !policy.spec.dependencies.is_empty())
}

/// Nothing but dependencies is asked of a return, and of one that is forced nothing.
fn check_return(state: &State, back: &Deployment, at: Timestamp) -> Result<(), Rejection> {
    let told = rules::answers(state, back, at);
    let missing = told.iter().filter(|told| !told.answer.is_allowed());
    let missing: Vec<&str> = missing.map(|told| told.answer.why.as_str()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let origin = &back.origin;
    let head = format!(
        "scope \"{}\" cannot go back to {} {}",
        origin.scope, origin.application, origin.version
    );
    let message = format!("{head}: {}", missing.join("; "));
    Err(Rejection::new(Reason::StillNeeded, message))
}

/// The deployments that the answer of a command names: those that it made, or acted on.
pub fn made_by(reply: &Reply) -> &[DeploymentId] {
    match reply {
        Reply::Deployments(ids) => ids,
        Reply::Group { deployments, .. } => deployments,
        Reply::Done
        | Reply::Named(_)
        | Reply::Object { .. }
        | Reply::Joined { .. }
        | Reply::GroupActed { .. } => &[],
    }
}

/// Whether a command makes deployments, a return among them, so that somebody has to be asked.
pub fn makes_deployments(command: &Command) -> bool {
    match command {
        Command::CreateDeployments(_)
        | Command::CreateGroup(_)
        | Command::AddToGroup(_)
        | Command::StartScope(_)
        | Command::RestartScope(_) => true,
        Command::RollbackScope(_) => true,
        Command::ActOnDeployment(act) => matches!(act.verb, Verb::Retry | Verb::Rollback),
        Command::ActOnGroup(_)
        | Command::PutObject(_)
        | Command::DeleteObject(_)
        | Command::CreateRelease(_)
        | Command::SetReleaseStatus(_)
        | Command::ReviewReleases(_)
        | Command::Decide(_)
        | Command::StopScope(_)
        | Command::CreateToken(_)
        | Command::DeleteToken(_)
        | Command::Join(_)
        | Command::UpdateAgent(_)
        | Command::RemoveAgent(_)
        | Command::InitCluster(_)
        | Command::UpdateMember(_)
        | Command::RemoveMember(_)
        | Command::RaiseLevel(_)
        | Command::CreateSkip(_)
        | Command::DeleteSkip(_)
        | Command::Freeze(_)
        | Command::Thaw(_)
        | Command::UpdatePerson(_)
        | Command::RemovePerson(_)
        | Command::DecideGroup(_)
        | Command::AutoDeploy(_)
        | Command::AdvanceGroup(_)
        | Command::Advance(_) => false,
    }
}
