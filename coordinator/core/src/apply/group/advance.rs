//! The planner's moves of a group: structural facts are checked here, the answers of clocks,
//! selectors and observations are taken as they come.

use tidegate_shared::error::Reason;
use tidegate_shared::id::GroupId;
use tidegate_shared::spec::{OnBreach, RolloutKind};

use super::act::turn_back;
use super::acted;
use crate::apply::tx::Tx;
use crate::apply::{governance, lifecycle};
use crate::command::{AdvanceGroup, GroupAction, Outcome};
use crate::deployment::phase;
use crate::rejection::Rejection;
use crate::state::{Closed, EndCause, Fate, Group, GroupStatus, Halted, KEPT_GROUPS, Lean, Wave};

/// The stable word of a halt by the failure budget.
const BUDGET: &str = "budget";

type Moved = Result<(), Rejection>;

/// Moves a group, or says which fact does not hold (any more).
pub(in crate::apply) fn advance(tx: &mut Tx<'_>, command: &AdvanceGroup) -> Outcome {
    let group = tx.state.group(command.group)?.clone();
    if group.meta.revision != command.revision {
        return Err(Rejection::new(
            Reason::Stale,
            format!(
                "{} is at revision {}, the move was for {}",
                group.title(),
                group.meta.revision,
                command.revision
            ),
        ));
    }
    if group.closed.is_some() {
        return refuse(&group, "it has ended").map(|()| acted(group.id, Vec::new(), Vec::new()));
    }
    let id = group.id;
    match &command.action {
        GroupAction::Begin { order, waves } => begin(tx, group, order, waves),
        GroupAction::OpenWave { wave, why } => open_wave(tx, group, *wave, why),
        GroupAction::Failed { members } => failed(tx, group, members),
        GroupAction::Breach => breach(tx, group),
        GroupAction::GiveUp => give_up(tx, group),
        GroupAction::End => end(tx, group),
    }?;
    Ok(acted(id, Vec::new(), Vec::new()))
}

/// A structural fact that the move needs does not hold.
fn refuse(group: &Group, message: impl std::fmt::Display) -> Moved {
    Err(Rejection::new(
        Reason::WrongStatus,
        format!("{}: {message}", group.title()),
    ))
}

fn begin(tx: &mut Tx<'_>, mut group: Group, order: &[u32], waves: &[u32]) -> Moved {
    if group.begun_at.is_some() {
        return refuse(&group, "its rollout has begun");
    }
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    if !sorted.iter().eq(group.members.keys()) {
        return refuse(&group, "its order does not name every member once");
    }
    let by_waves = group.rollout.kind == RolloutKind::Waves;
    let wanted = if by_waves {
        group.rollout.waves.len() + 1
    } else {
        0
    };
    let total: u64 = waves.iter().map(|count| u64::from(*count)).sum();
    if waves.len() != wanted || (by_waves && total != order.len() as u64) {
        return refuse(&group, "its waves do not take every member once");
    }
    group.begun_at = Some(tx.at);
    let names = group.rollout.waves.iter().map(|wave| wave.name.to_string());
    let names = names.chain([String::new()]);
    group.waves = waves
        .iter()
        .zip(names)
        .map(|(members, name)| Wave {
            name,
            members: *members,
            opened_at: None,
        })
        .collect();
    let first = group.waves.iter().position(|wave| wave.members > 0);
    if let Some(wave) = first.and_then(|first| group.waves.get_mut(first)) {
        wave.opened_at = Some(tx.at);
    }
    group.open_wave = first.and_then(|wave| u32::try_from(wave).ok()).unwrap_or(0);
    let wave_of = wave_of(waves);
    let mut fixed = Lean::new();
    for (position, number) in order.iter().enumerate() {
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        fixed.insert(position, *number);
        if let Some(member) = group.members.get_mut(number) {
            member.position = Some(position);
            member.wave = wave_of.get(position as usize).copied();
        }
    }
    group.order = fixed;
    let line = format!("{} begins its rollout: {}", group.title(), paced(&group));
    tx.note_group("begun", &group, line);
    tx.put_group(group);
    Ok(())
}

/// The wave of each position.
fn wave_of(waves: &[u32]) -> Vec<u32> {
    let mut all = Vec::new();
    for (wave, count) in (0_u32..).zip(waves) {
        all.extend(std::iter::repeat_n(wave, *count as usize));
    }
    all
}

fn paced(group: &Group) -> String {
    let rollout = &group.rollout;
    match (rollout.kind, rollout.interval) {
        (RolloutKind::Waves, _) => format!("{} waves", group.rollout.waves.len()),
        (kind, Some(interval)) => format!("{} by {interval}", kind.as_str()),
        (kind, None) => kind.as_str().to_owned(),
    }
}

fn check_going(group: &Group) -> Moved {
    if group.begun_at.is_none() {
        return refuse(group, "its rollout has not begun");
    }
    if group.given.is_some() {
        return refuse(group, "it is taken back");
    }
    if group.paused.is_some() || group.halted.is_some() {
        return refuse(group, "it is paused or halted");
    }
    if group.is_over_budget() {
        return refuse(group, "its failure budget is exceeded");
    }
    Ok(())
}

fn open_wave(tx: &mut Tx<'_>, mut group: Group, wave: u32, why: &str) -> Moved {
    check_going(&group)?;
    let there = group.waves.get(wave as usize);
    let there = there.is_some_and(|wave| wave.members > 0);
    if wave <= group.open_wave || !there {
        return refuse(&group, format_args!("wave {wave} is not the next one"));
    }
    let earlier = |of: Option<u32>| of.is_some_and(|of| of < wave);
    let mut members = group.members.values();
    let open = members.find(|m| earlier(m.wave) && !m.is_over());
    let open = open.map(|member| member.scope.clone());
    drop(members);
    if let Some(scope) = open {
        return refuse(
            &group,
            format_args!("scope {scope} of an earlier wave is not at an end"),
        );
    }
    group.open_wave = wave;
    if let Some(opened) = group.waves.get_mut(wave as usize) {
        opened.opened_at = Some(tx.at);
    }
    let line = format!(
        "{} opens {}: {why}",
        group.title(),
        crate::group::wave_name(&group, wave)
    );
    tx.note_group("wave_opened", &group, line);
    tx.put_group(group);
    Ok(())
}

fn failed(tx: &mut Tx<'_>, mut group: Group, members: &[u32]) -> Moved {
    let mut scopes = Vec::new();
    for number in members {
        let Some(member) = group.members.get_mut(number) else {
            return refuse(&group, format_args!("there is no member {number}"));
        };
        match &mut member.ended {
            Some(end) if end.fate == Fate::Undecided => end.fate = Fate::Failed,
            Some(_) | None => {
                return refuse(&group, format_args!("member {number} is not undecided"));
            }
        }
        scopes.push(member.scope.clone());
        group.tally.count(Fate::Failed, false);
    }
    group.gates_revision = group.gates_revision.saturating_add(1);
    let line = format!(
        "{} counts {} failures of {} members; no other try follows in {}",
        group.title(),
        group.tally.failures,
        group.members.len(),
        super::list(&scopes)
    );
    tx.note_group("members_failed", &group, line);
    tx.put_group(group);
    Ok(())
}

fn breach(tx: &mut Tx<'_>, mut group: Group) -> Moved {
    if group.given.is_some() || group.halted.is_some() {
        return refuse(&group, "it is stopped already");
    }
    let Some(budget) = group.rollout.budget().filter(|_| group.is_over_budget()) else {
        return refuse(&group, "its failure budget is not exceeded");
    };
    let message = format!(
        "{} of {} members failed, and it bears {}",
        group.tally.failures,
        group.members.len(),
        budget.max_failures
    );
    let line = format!("{} exceeds its failure budget: {message}", group.title());
    tx.note_group("budget_exceeded", &group, line);
    match budget.on_breach {
        OnBreach::Halt => {
            group.halted = Some(Halted {
                since: tx.at,
                kind: BUDGET.to_owned(),
                message,
            });
            group.gates_revision = group.gates_revision.saturating_add(1);
            tx.put_group(group);
            Ok(())
        }
        OnBreach::Rollback => turn_back(tx, group, &message).map(drop),
    }
}

fn give_up(tx: &mut Tx<'_>, group: Group) -> Moved {
    let Some(halted) = group.halted.clone() else {
        return refuse(&group, "it is not halted");
    };
    let mut scopes = Vec::new();
    for member in group.members.values() {
        let deployment = tx.state.deployments.get(&member.deployment).cloned();
        let Some(deployment) = deployment.filter(|d| phase::is_waiting(d.status)) else {
            continue;
        };
        scopes.push(member.scope.clone());
        let message = format!("its group was halted for too long: {}", halted.message);
        lifecycle::take_back(tx, deployment, EndCause::Deadline, "halt_max", message)?;
    }
    if scopes.is_empty() {
        return refuse(&group, "no member waits");
    }
    let line = format!(
        "{} was halted since {}: members that waited are given up: {}",
        group.title(),
        halted.since,
        super::list(&scopes)
    );
    tx.note_group("given_up", &group, line);
    let now = tx.state.group(group.id)?.clone();
    tx.put_group(now);
    Ok(())
}

fn end(tx: &mut Tx<'_>, mut group: Group) -> Moved {
    if let Some(member) = group.members.values().find(|m| !m.is_over()) {
        let scope = &member.scope;
        return refuse(&group, format_args!("scope {scope} is not at an end"));
    }
    let status = group.status(&tx.state);
    if !status.is_end() {
        return refuse(&group, format_args!("it is {status}"));
    }
    let outcome = group.outcome(&tx.state);
    let message = end_message(&group, status);
    let label = outcome.map_or(String::new(), |outcome| format!(" ({})", outcome.as_str()));
    let line = format!("{} is {status}{label}: {message}", group.title());
    group.halted = None;
    group.paused = None;
    group.closed = Some(Closed {
        status,
        outcome,
        at: tx.at,
        message,
    });
    for member in group.members.values() {
        tx.touch_scope(&member.scope);
    }
    let (id, application) = (group.id, group.application.clone());
    tx.note_group(status.as_str().to_lowercase(), &group, line);
    tx.put_group(group);
    let revision = tx.state.last_revision;
    tx.state.open_groups.remove(&id);
    tx.state
        .ended_groups
        .insert((application.clone(), revision), id);
    forget_old(tx, &application);
    governance::forget_freezes(tx);
    Ok(())
}

fn end_message(group: &Group, status: GroupStatus) -> String {
    let count = |of: &dyn Fn(Fate) -> bool| {
        let members = group.members.values();
        let ended = members.filter_map(|member| member.ended.as_ref());
        ended.filter(|end| of(end.fate)).count()
    };
    let good = count(&Fate::is_good);
    let failed = count(&|fate| fate == Fate::Failed);
    let rest = group.members.len() - good - failed;
    let returns = match (status, group.returns.len()) {
        (GroupStatus::RolledBack, returns) => format!(", {returns} returned"),
        (_, _) => String::new(),
    };
    format!("{good} finalized, {failed} failed, {rest} otherwise{returns}")
}

/// Of each application the newest few that ended stay.
fn forget_old(tx: &mut Tx<'_>, application: &tidegate_shared::id::Name) {
    let of = (application.clone(), 0)..=(application.clone(), u64::MAX);
    let ended = tx.state.ended_groups.range(of);
    let ended: Vec<((_, u64), GroupId)> = ended.map(|(key, id)| (key.clone(), *id)).collect();
    let surplus = ended.len().saturating_sub(KEPT_GROUPS);
    for (key, id) in ended.into_iter().take(surplus) {
        tx.state.ended_groups.remove(&key);
        if let Some(name) = tx
            .state
            .groups
            .remove(&id)
            .and_then(|group| group.name.clone())
        {
            tx.state.group_names.remove(&name);
        }
    }
}
