//! Log entries become state: the one place where replicated state changes.
//!
//! Deterministic and total on every node and every version of the program: structural facts only
//! (revision, status, one deployment per scope, counts), no policy evaluation, no clock, no float.
//! A cheap clone of the state as it was comes back if a command is refused, so that nothing is ever
//! half done; the few that refuse before they change anything need none. One file per family of
//! commands.

mod advance;
mod agent;
mod approval;
mod archive;
mod auto;
mod binding;
mod cluster;
mod create;
mod delete;
mod end;
mod fits;
mod governance;
mod group;
mod lifecycle;
mod object;
mod parameters;
mod people;
mod release;
mod requests;
mod scope;
#[cfg(test)]
mod tests;
mod token;
mod tx;
mod verb;

pub use approval::unmet as unmet_approvals;
pub use binding::binding;
pub use parameters::resolve as resolve_parameters;

use tidegate_shared::error::Reason;

use crate::command::{Applied, Command, Entry, Item, Outcome};
use crate::rejection::Rejection;
use crate::state::State;
use requests::Recall;
use tx::Tx;

/// Applies one committed entry: one answer per item, in order. Never panics, whatever the input;
/// what cannot be done is a [`Rejection`] and changes nothing but the audit log.
pub fn apply(state: &mut State, index: u64, entry: &Entry) -> Vec<Applied> {
    state.at = state.at.max(entry.at);
    requests::forget(state, entry.items.len());
    let mut ordinal = 0;
    let mut applied = Vec::with_capacity(entry.items.len());
    for (position, item) in entry.items.iter().enumerate() {
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        let done = apply_item(state, index, position, ordinal, item);
        ordinal += u32::try_from(done.events.len()).unwrap_or(u32::MAX);
        applied.push(done);
    }
    applied
}

fn apply_item(state: &mut State, index: u64, position: u32, ordinal: u32, item: &Item) -> Applied {
    let digest = match requests::recall(state, item) {
        Recall::Known(outcome) => {
            return Applied {
                outcome,
                ..Applied::default()
            };
        }
        Recall::Refused(rejection) => {
            return refuse(state, index, ordinal, item, rejection);
        }
        Recall::New(digest) => digest,
    };
    // An entry may hold hundreds of commands. With the state as it was kept for each, every one of
    // them copies the nodes that it changes; without, the first one does.
    let refuses_first = object::refuses_first(&item.command);
    let before = (!refuses_first || cfg!(debug_assertions)).then(|| state.clone());
    let mut tx = Tx::new(std::mem::take(state), index, position, &item.actor);
    let applied = match run(&mut tx, &item.command) {
        Ok(reply) => {
            let done = tx.commit(before.as_ref(), ordinal, &item.command);
            *state = done.state;
            Applied {
                outcome: Ok(reply),
                events: done.events,
                archived: done.archived,
                events_leave: state.archive.is_some(),
            }
        }
        Err(rejection) => {
            debug_assert!(!refuses_first || before.as_ref() == Some(&tx.state));
            *state = before.unwrap_or(tx.state);
            refuse(state, index, ordinal, item, rejection)
        }
    };
    requests::remember(state, (index, position), item, digest, &applied.outcome);
    applied
}

/// A refusal is a line of the audit log too. Only the planner's `STALE` is not: nobody asked for
/// it, it says only that the planner has to look again.
fn refuse(
    state: &mut State,
    index: u64,
    ordinal: u32,
    item: &Item,
    rejection: Rejection,
) -> Applied {
    let planned = matches!(
        *item.command,
        Command::Advance(_) | Command::AdvanceGroup(_)
    );
    let silent = planned && rejection.reason == Reason::Stale;
    let events = if silent {
        Vec::new()
    } else {
        vec![tx::append_refusal(state, index, ordinal, item, &rejection)]
    };
    Applied {
        outcome: Err(rejection),
        events,
        archived: Vec::new(),
        events_leave: state.archive.is_some(),
    }
}

fn run(tx: &mut Tx<'_>, command: &Command) -> Outcome {
    if let Command::InitCluster(command) = command {
        return cluster::init(tx, command);
    }
    if tx.state.cluster.is_none() {
        return Err(Rejection::new(
            Reason::InvalidRequest,
            "this cluster is not initialised yet: run `tidegate-coordinator init` on its first node",
        ));
    }
    match command {
        Command::InitCluster(command) => cluster::init(tx, command),
        Command::PutObject(command) => object::put(tx, command),
        Command::DeleteObject(command) => delete::delete(tx, command),
        Command::CreateRelease(command) => release::create(tx, command),
        Command::SetReleaseStatus(command) => release::set_status(tx, command),
        Command::ReviewReleases(command) => release::review(tx, command),
        Command::CreateDeployments(command) => create::create(tx, command),
        Command::ActOnDeployment(command) => verb::act(tx, command),
        Command::Decide(command) => approval::decide(tx, command),
        Command::StopScope(command) => scope::stop(tx, command),
        Command::StartScope(command) => scope::start(tx, &command.name),
        Command::RestartScope(command) => scope::restart(tx, &command.name),
        Command::RollbackScope(command) => scope::rollback(tx, command),
        Command::CreateToken(command) => token::create(tx, command),
        Command::DeleteToken(command) => token::delete(tx, command.id),
        Command::Join(command) => token::join(tx, command),
        Command::UpdateAgent(command) => agent::update(tx, command),
        Command::RemoveAgent(command) => agent::remove(tx, &command.name),
        Command::UpdateMember(command) => cluster::update_member(tx, command),
        Command::RemoveMember(command) => cluster::remove_member(tx, command.node),
        Command::RaiseLevel(command) => cluster::raise_level(tx, command.level),
        Command::CreateSkip(command) => governance::skip(tx, command),
        Command::DeleteSkip(command) => governance::delete_skip(tx, &command.name),
        Command::Freeze(command) => governance::freeze(tx, command),
        Command::Thaw(command) => governance::thaw(tx, &command.name),
        Command::UpdatePerson(command) => people::update(tx, command),
        Command::RemovePerson(command) => people::remove(tx, command),
        Command::Advance(command) => advance::advance(tx, command),
        Command::AutoDeploy(command) => auto::deploy(tx, command),
        Command::CreateGroup(command) => group::create(tx, command),
        Command::ActOnGroup(command) => group::act(tx, command),
        Command::AddToGroup(command) => group::add(tx, command),
        Command::DecideGroup(command) => group::decide(tx, command),
        Command::AdvanceGroup(command) => group::advance(tx, command),
    }
}
