//! A person's verbs on a whole group, and its rollback by an exceeded budget.

use tidegate_shared::error::Reason;

use super::{Left, acted, list_left, members, refuse_closed};
use crate::apply::lifecycle::because;
use crate::apply::tx::{Tx, expect_revision};
use crate::apply::verb;
use crate::command::{ActOnDeployment, ActOnGroup, Outcome, Reply, Verb};
use crate::deployment::phase;
use crate::rejection::Rejection;
use crate::state::{Given, GivenVerb, Group, GroupMember, GroupStatus, Paused, Status, Stopped};
use tidegate_shared::id::DeploymentId;
use tidegate_shared::time::Timestamp;

/// Halts and pauses that a group remembers one by one.
const STOPS: usize = 256;

/// Does a verb on a group, or says why not.
pub(in crate::apply) fn act(tx: &mut Tx<'_>, command: &ActOnGroup) -> Outcome {
    let group = tx.state.group(command.group)?.clone();
    expect_revision(
        &group.title(),
        command.expected_revision,
        group.meta.revision,
    )?;
    let reason = command.reason.as_str();
    match command.verb {
        Verb::Cancel => cancel(tx, group, reason),
        Verb::Rollback => roll_back(tx, group, reason),
        Verb::Pause
        | Verb::Resume
        | Verb::Promote
        | Verb::PromoteFull
        | Verb::Traffic(_)
        | Verb::Finalize => on_members(tx, group, command.verb, reason),
        Verb::Retry => Err(Rejection::new(
            Reason::NotOffered,
            format!(
                "{}: a retry is one of its deployments': it takes the place of the one that failed",
                group.title()
            ),
        )),
    }
}

/// Verbs that each member takes or refuses for itself. A pause holds back those that have not
/// started too, a resume lifts what halted the group.
fn on_members(tx: &mut Tx<'_>, mut group: Group, verb: Verb, reason: &str) -> Outcome {
    refuse_closed(&group)?;
    let (mut done, mut left) = (Vec::new(), Vec::new());
    for member in group.members.values() {
        match on_member(tx, member, verb, reason) {
            Ok(ids) => done.extend(ids),
            Err(why) => left.push((member.scope.clone(), why)),
        }
    }
    let changed = match verb {
        Verb::Pause => pause(tx, &mut group, reason),
        Verb::Resume => resume(tx, &mut group),
        Verb::Promote
        | Verb::PromoteFull
        | Verb::Traffic(_)
        | Verb::Finalize
        | Verb::Cancel
        | Verb::Rollback
        | Verb::Retry => false,
    };
    if done.is_empty() && !changed {
        return Err(Rejection::of_scopes(
            Reason::GroupNothingToDo,
            format!("{}: no member takes {}", group.title(), verb.as_str()),
            &left,
        ));
    }
    let line = format!(
        "{}: {} for {} members by {}{}{}",
        group.title(),
        verb.as_str(),
        done.len(),
        tx.actor,
        because(reason),
        left_line(&left)
    );
    let id = group.id;
    tx.note_group(verb.as_str(), &group, line);
    // Members may have ended by it, and told their group so.
    merge(tx, group, |now, said| {
        now.paused = said.paused;
        now.halted = said.halted;
        now.stops = said.stops;
        now.tally.excused = said.tally.excused;
    })?;
    Ok(acted(id, done, left))
}

/// Stores what was said to a group over what its members told it meanwhile.
fn merge(
    tx: &mut Tx<'_>,
    said: Group,
    take: impl FnOnce(&mut Group, Group),
) -> Result<(), Rejection> {
    let mut now = tx.state.group(said.id)?.clone();
    take(&mut now, said);
    // What was decided before this was said does not hold any more.
    now.gates_revision = now.gates_revision.saturating_add(1);
    tx.put_group(now);
    Ok(())
}

fn left_line(left: &[Left]) -> String {
    match left.len() {
        0 => String::new(),
        count => format!("; {count} left: {}", list_left(left)),
    }
}

/// One verb on one member: the deployments that it was done to, or why it was left.
fn on_member(
    tx: &mut Tx<'_>,
    member: &GroupMember,
    verb: Verb,
    reason: &str,
) -> Result<Vec<DeploymentId>, String> {
    if let Some(end) = &member.ended
        && verb != Verb::Rollback
    {
        return Err(format!("is {} since {}", end.status, end.at));
    }
    let command = ActOnDeployment {
        deployment: member.deployment,
        verb,
        expected_revision: None,
        reason: reason.to_owned(),
    };
    match tx.attempt(|tx| verb::act(tx, &command)) {
        Ok(Reply::Deployments(ids)) => Ok(ids),
        Ok(
            Reply::Done
            | Reply::Object { .. }
            | Reply::Group { .. }
            | Reply::GroupActed { .. }
            | Reply::Named(_)
            | Reply::Joined { .. },
        ) => Ok(vec![member.deployment]),
        Err(rejection) => Err(rejection.message),
    }
}

/// A group that is taken back starts nobody, so there is nothing of it to pause; members that it left
/// as they are have paused for themselves.
fn pause(tx: &Tx<'_>, group: &mut Group, reason: &str) -> bool {
    if group.paused.is_some() || group.given.is_some() {
        return false;
    }
    group.paused = Some(Paused {
        since: tx.at,
        by: tx.actor.clone(),
        reason: reason.to_owned(),
    });
    true
}

/// Lifts a pause and a halt. Failures so far are let pass; the next one halts it again.
fn resume(tx: &Tx<'_>, group: &mut Group) -> bool {
    let paused = group.paused.take().map(|paused| paused.since);
    let halted = group.halted.take().map(|halted| halted.since);
    let Some(since) = paused.into_iter().chain(halted).min() else {
        return false;
    };
    remember_stop(group, since, tx.at);
    if let Some(budget) = group.budget() {
        let allowed = budget.max_failures.of(group.members.len() as u64);
        let allowed = u32::try_from(allowed).unwrap_or(u32::MAX);
        let beyond = group.tally.failures.saturating_sub(allowed);
        group.tally.excused = group.tally.excused.max(beyond);
    }
    true
}

/// The clock stood; of very many stops the oldest two become one, which only makes members later.
fn remember_stop(group: &mut Group, from: Timestamp, until: Timestamp) {
    if from < until {
        group.stops.push(Stopped { from, until });
    }
    while group.stops.len() > STOPS {
        let first = group.stops.remove(0);
        if let Some(next) = group.stops.first_mut() {
            next.from = first.from;
        }
    }
}

/// Only while every member is still `RUNNING`.
fn cancel(tx: &mut Tx<'_>, group: Group, reason: &str) -> Outcome {
    refuse_closed(&group)?;
    if group.given.is_some() {
        return Ok(unchanged(tx, &group, Verb::Cancel));
    }
    let way = group.members.values().filter_map(|member| {
        let status = member.state(&tx.state).status;
        let in_the_way = status != Status::Running;
        in_the_way.then(|| (member.scope.clone(), format!("is {status}")))
    });
    let way: Vec<Left> = way.collect();
    if !way.is_empty() {
        return Err(Rejection::of_scopes(
            Reason::GroupNotRunning,
            format!(
                "{} is cancelled only while every member is RUNNING; {} of {} are in the way",
                group.title(),
                way.len(),
                group.members.len()
            ),
            &way,
        ));
    }
    let (mut done, mut left) = (Vec::new(), Vec::new());
    for member in group.members.values() {
        match on_member(tx, member, Verb::Cancel, reason) {
            Ok(ids) => done.extend(ids),
            Err(why) => left.push((member.scope.clone(), why)),
        }
    }
    let line = format!(
        "{} is CANCELLING, by {}{}",
        group.title(),
        tx.actor,
        because(reason)
    );
    let id = group.id;
    tx.note_group("cancelling", &group, line);
    give(tx, group, GivenVerb::Cancel, reason)?;
    Ok(acted(id, done, left))
}

fn unchanged(tx: &mut Tx<'_>, group: &Group, verb: Verb) -> Reply {
    let status = group.status(&tx.state);
    let line = format!(
        "{} is {status}; {} changes nothing",
        group.title(),
        verb.as_str()
    );
    tx.note_group(format!("{}_unchanged", verb.as_str()), group, line);
    acted(group.id, Vec::new(), Vec::new())
}

/// Notes that the whole group is taken back; halts and pauses of it are over.
fn give(tx: &mut Tx<'_>, group: Group, verb: GivenVerb, reason: &str) -> Result<(), Rejection> {
    let given = Given {
        verb,
        by: tx.actor.clone(),
        at: tx.at,
        reason: reason.to_owned(),
    };
    merge(tx, group, |now, said| {
        now.returns = said.returns;
        now.given = Some(given);
        now.paused = None;
        now.halted = None;
    })
}

/// Unless it is `FINALIZING`. Breaks the fixed status of a `FINALIZED` group.
fn roll_back(tx: &mut Tx<'_>, group: Group, reason: &str) -> Outcome {
    match group.status(&tx.state) {
        GroupStatus::Finalizing => {
            return Err(Rejection::new(
                Reason::GroupFinalizing,
                format!("{} is FINALIZING, which is not turned back", group.title()),
            ));
        }
        GroupStatus::RollingBack | GroupStatus::RolledBack | GroupStatus::Cancelling => {
            return Ok(unchanged(tx, &group, Verb::Rollback));
        }
        GroupStatus::CreatingApproval
        | GroupStatus::CreatingApprovalDenied
        | GroupStatus::Pending
        | GroupStatus::Running
        | GroupStatus::Finalized
        | GroupStatus::Cancelled => {}
    }
    let (id, title) = (group.id, group.title());
    let (done, left) = turn_back(tx, group, reason)?;
    if done.is_empty() {
        return Err(Rejection::of_scopes(
            Reason::GroupNothingToDo,
            format!("{title}: there is nothing to roll back"),
            &left,
        ));
    }
    Ok(acted(id, done, left))
}

/// Every member goes back as far as it can: those that run turn back, those that wait are cancelled,
/// finalized ones get a linked fast rollback.
pub(super) fn turn_back(
    tx: &mut Tx<'_>,
    mut group: Group,
    reason: &str,
) -> Result<(Vec<DeploymentId>, Vec<Left>), Rejection> {
    reopen(tx, &mut group);
    let (mut done, mut left) = (Vec::new(), Vec::new());
    for member in group.members.clone().values() {
        match member_back(tx, &mut group, member, reason) {
            Ok(ids) => done.extend(ids),
            Err(why) => left.push((member.scope.clone(), why)),
        }
    }
    let line = format!(
        "{} is ROLLING_BACK, by {}{}{}",
        group.title(),
        tx.actor,
        because(reason),
        left_line(&left)
    );
    tx.note_group("rolling_back", &group, line);
    give(tx, group, GivenVerb::Rollback, reason)?;
    Ok((done, left))
}

/// A group whose status was fixed is under way again.
fn reopen(tx: &mut Tx<'_>, group: &mut Group) {
    if group.closed.take().is_none() {
        return;
    }
    let ended = tx.state.ended_groups.iter();
    let key = ended
        .filter(|(_, id)| **id == group.id)
        .map(|(key, _)| key.clone());
    let key = key.collect::<Vec<_>>();
    for key in key {
        tx.state.ended_groups.remove(&key);
    }
    tx.state.open_groups.insert(group.id, ());
    tx.set_group(group.clone());
}

fn member_back(
    tx: &mut Tx<'_>,
    group: &mut Group,
    member: &GroupMember,
    reason: &str,
) -> Result<Vec<DeploymentId>, String> {
    let Some(deployment) = tx.state.deployments.get(&member.deployment).cloned() else {
        return Err("its deployment is history".to_owned());
    };
    let status = deployment.status;
    if phase::is_waiting(status) {
        return on_member(tx, member, Verb::Cancel, reason);
    }
    match status {
        Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalizing
        | Status::Cancelling
        | Status::RollingBack => on_member(tx, member, Verb::Rollback, reason),
        Status::Finalized => {
            let scope = tx.state.scopes.get(&member.scope);
            let active = scope.and_then(|scope| tx.state.active_of(scope));
            match active {
                Some(active) if active.id == deployment.id => {}
                Some(active) => {
                    return Err(format!(
                        "runs {} by deployment {} now",
                        active.origin.version, active.short
                    ));
                }
                None => return Err("runs nothing now".to_owned()),
            }
            let made = on_member(tx, member, Verb::Rollback, reason)?;
            for id in &made {
                let noted = tx.attempt(|tx| members::note_return(tx, group, *id));
                noted.map_err(|rejection| rejection.message)?;
            }
            Ok(made)
        }
        Status::CreatingApproval
        | Status::Pending
        | Status::CreatingApprovalDenied
        | Status::Cancelled
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => Err(format!("is {status}: nothing of it is to be turned back")),
    }
}
