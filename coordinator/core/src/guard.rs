//! Guardrails before a command reaches the log (product.md §5.12): whatever makes a deployment makes it
//! on a copy of the state first, and the guardrails look at what it would be.
//!
//! Asked by the fronts for people's commands; what the planner makes by itself it asks about where it
//! decides (`auto`, `plan::retry`). Never by `apply`, which may not evaluate them. A return to a
//! finalized release is exempt from every policy.

use tidegate_shared::id::DeploymentId;
use tidegate_shared::time::Timestamp;

use crate::apply::apply;
use crate::command::{Command, Entry, Item, Reply, Verb};
use crate::policy::guardrail;
use crate::rejection::Rejection;
use crate::state::State;

/// Whether a command may be given now, as far as guardrails say; `index`: any that is above the
/// state's.
///
/// # Errors
/// The first guardrail that does not hold for a deployment that the command would make.
pub fn guard(state: &State, index: u64, now: Timestamp, item: &Item) -> Result<(), Rejection> {
    if !makes_deployments(&item.command) || !guardrail::is_any(state) {
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
            let Some(found) = copy.deployments.get(id).filter(|made| !made.origin.fast) else {
                continue;
            };
            guardrail::check_all(&copy, found, at)?;
        }
    }
    Ok(())
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

/// Whether a command makes deployments other than returns, so that guardrails have a say.
pub fn makes_deployments(command: &Command) -> bool {
    match command {
        Command::CreateDeployments(_)
        | Command::CreateGroup(_)
        | Command::AddToGroup(_)
        | Command::StartScope(_)
        | Command::RestartScope(_) => true,
        Command::ActOnDeployment(act) => act.verb == Verb::Retry,
        Command::ActOnGroup(_)
        | Command::RollbackScope(_)
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
