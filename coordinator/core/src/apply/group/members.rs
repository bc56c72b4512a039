//! What deployments tell their group: that they started, ended, were tried again, or returned. And
//! the structural part of a member's turn.

use tidegate_shared::error::Reason;
use tidegate_shared::id::DeploymentId;

use crate::apply::lifecycle::title;
use crate::apply::tx::Tx;
use crate::command::GroupTurn;
use crate::group::status::fate;
use crate::rejection::Rejection;
use crate::state::{Deployment, GivenVerb, Group, MemberEnd, Return, Status};

/// Whether the start of a deployment is structurally its turn; always so for one that is no present
/// member of a group under way.
pub(in crate::apply) fn check_turn(
    tx: &Tx<'_>,
    deployment: &Deployment,
    turn: Option<&GroupTurn>,
) -> Result<(), Rejection> {
    let Some((group, number)) = tx.state.membership(deployment) else {
        return Ok(());
    };
    let now = group.gates_revision;
    if turn.is_none_or(|turn| turn.revision != now) {
        return Err(Rejection::new(
            Reason::Stale,
            format!(
                "{}: its turn in {} was not asked at revision {now}",
                title(deployment),
                group.title()
            ),
        ));
    }
    let wave = group.members.get(&number).and_then(|member| member.wave);
    let why = if group.begun_at.is_none() {
        "the rollout has not begun"
    } else if group.given.is_some() {
        "it is taken back"
    } else if group.paused.is_some() {
        "it is paused"
    } else if group.halted.is_some() {
        "it is halted"
    } else if group.is_over_budget() {
        "its failure budget is exceeded"
    } else if wave.is_some_and(|wave| wave > group.open_wave) {
        "its wave is not open"
    } else {
        return Ok(());
    };
    Err(Rejection::new(
        Reason::WrongStatus,
        format!("{}: {}: {why}", title(deployment), group.title()),
    ))
}

/// A member entered `CREATING`.
pub(in crate::apply) fn started(
    tx: &mut Tx<'_>,
    deployment: &Deployment,
    turn: Option<&GroupTurn>,
) {
    let at = tx.at;
    let Some((group, number)) = tx.state.membership(deployment) else {
        return;
    };
    let mut group = group.clone();
    if let Some(member) = group.members.get_mut(&number) {
        member.started_at = Some(at);
    }
    if turn.is_some_and(|turn| turn.paced) {
        group.gates_revision = group.gates_revision.saturating_add(1);
    }
    tx.set_group(group);
}

/// A deployment ended: as a member its end counts, as a return the group may be done.
pub(in crate::apply) fn ended(tx: &mut Tx<'_>, deployment: &Deployment) {
    let group = deployment.group.and_then(|id| tx.state.groups.get(&id));
    let Some(mut group) = group.filter(|group| group.closed.is_none()).cloned() else {
        return;
    };
    if let Some(back) = group.returns.get_mut(&deployment.id) {
        back.ended = Some(deployment.status);
        tx.set_group(group);
        return;
    }
    let Some(number) = group.number_of(deployment) else {
        return;
    };
    let Some(member) = group.members.get_mut(&number) else {
        return;
    };
    if member.ended.is_some() {
        return;
    }
    let fate = fate(deployment);
    member.ended = Some(MemberEnd {
        at: tx.at,
        status: deployment.status,
        outcome: deployment.outcome.clone().unwrap_or_default(),
        cause: deployment.end_cause,
        fate,
    });
    group.tally.count(fate, false);
    if !fate.is_good() {
        group.gates_revision = group.gates_revision.saturating_add(1);
    }
    tx.set_group(group);
}

/// The group in which another try takes the place of a member that ended badly; none: it is none of
/// a group under way, or the group is taken back.
pub(in crate::apply) fn place_of(tx: &Tx<'_>, deployment: &Deployment) -> Option<Group> {
    let (group, _) = tx.state.membership(deployment)?;
    group.given.is_none().then(|| group.clone())
}

/// Another try was made of a deployment.
pub(in crate::apply) fn retried(
    tx: &mut Tx<'_>,
    old: &Deployment,
    new: DeploymentId,
) -> Result<(), Rejection> {
    let Some(mut group) = place_of(tx, old) else {
        return Ok(());
    };
    let Some(number) = group.number_of(old) else {
        return Ok(());
    };
    let mut tally = group.tally;
    if let Some(member) = group.members.get_mut(&number) {
        if let Some(end) = member.ended.take() {
            tally.count(end.fate, true);
        }
        member.former.push(member.deployment);
        let surplus = member.former.len().saturating_sub(FORMER);
        member.former.drain(..surplus);
        member.deployment = new;
    }
    group.tally = tally;
    belongs(tx, &group, new)?;
    tx.set_group(group);
    Ok(())
}

/// Tries that a member remembers.
const FORMER: usize = 100;

/// A fast rollback was made from a member of a group that is rolled back.
pub(in crate::apply) fn returned(
    tx: &mut Tx<'_>,
    member: &Deployment,
    new: DeploymentId,
) -> Result<(), Rejection> {
    let Some((group, _)) = tx.state.membership(member) else {
        return Ok(());
    };
    let rolls_back = group
        .given
        .as_ref()
        .is_some_and(|given| given.verb == GivenVerb::Rollback);
    if !rolls_back {
        return Ok(());
    }
    let mut group = group.clone();
    note_return(tx, &mut group, new)?;
    tx.set_group(group);
    Ok(())
}

/// See [`returned`].
pub(super) fn note_return(
    tx: &mut Tx<'_>,
    group: &mut Group,
    new: DeploymentId,
) -> Result<(), Rejection> {
    let back = tx.state.deployment(new)?;
    let scope = back.origin.scope.clone();
    let ended: Option<Status> = back.status.is_end().then_some(back.status);
    group.returns.insert(new, Return { scope, ended });
    belongs(tx, group, new)
}

/// Notes in a deployment which group it is part of.
fn belongs(tx: &mut Tx<'_>, group: &Group, id: DeploymentId) -> Result<(), Rejection> {
    let mut deployment = tx.state.deployment(id)?.clone();
    deployment.group = Some(group.id);
    tx.put_deployment(deployment);
    Ok(())
}
