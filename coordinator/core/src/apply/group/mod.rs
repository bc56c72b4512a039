//! Deployment groups: made, grown, decided about (product.md §3). What people say to a group as a
//! whole stands in `act`, the planner's moves in `advance`, what deployments tell their group in
//! `members`.

mod act;
mod advance;
mod members;

pub(super) use act::act;
pub(super) use advance::advance;
pub(super) use members::{check_turn, ended, retried, returned, started};

use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, GroupId, Name};
use tidegate_shared::spec::{RolloutSpec, validate_labels};

use super::approval;
use super::create;
use super::lifecycle::because;
use super::tx::{Tx, expect_revision};
use crate::command::{AddToGroup, CreateDeployments, CreateGroup, Decide, DecideGroup};
use crate::command::{Outcome, Reply};
use crate::rejection::{MOST_NAMED, Rejection};
use crate::state::{Counts, Group, GroupMember, Lean, MOST_MEMBERS, Status, Table, Template};

/// A member that is left as it is, with the reason.
type Left = (Name, String);

/// One deployment per scope, all or none, and the group over them.
pub(super) fn create(tx: &mut Tx<'_>, command: &CreateGroup) -> Outcome {
    let wanted = &command.deployments;
    if let Some(name) = &command.name
        && tx.state.group_names.contains_key(name)
    {
        return Err(Rejection::new(
            Reason::AlreadyExists,
            format!("there is a group \"{name}\" already"),
        ));
    }
    validate_labels(&wanted.labels)
        .into_result()
        .map_err(|errors| Rejection::fields("group", errors))?;
    let rollout = rollout(tx, command);
    rollout
        .validate()
        .into_result()
        .map_err(|errors| Rejection::fields("rollout", errors))?;
    let id = tx.new_group_id();
    let checked = with_checks(tx, wanted, &rollout);
    let made = create::create_all(tx, &checked, MOST_MEMBERS, Some(id))?;
    let mut group = Group {
        id,
        short: id.short(),
        name: command.name.clone(),
        meta: tx.new_meta(wanted.labels.clone()),
        application: wanted.application.clone(),
        version: wanted.version.clone(),
        template: Template {
            strategy: wanted.strategy.clone(),
            overrides: wanted.overrides.clone(),
            labels: wanted.labels.clone(),
            on_conflict: wanted.on_conflict,
        },
        rollout,
        members: Table::new(),
        scopes: Lean::new(),
        begun_at: None,
        order: Lean::new(),
        waves: Vec::new(),
        open_wave: 0,
        given: None,
        returns: Table::new(),
        halted: None,
        paused: None,
        stops: Vec::new(),
        tally: Counts::default(),
        gates_revision: 0,
        closed: None,
    };
    join(&mut group, &wanted.scopes, &made);
    let line = format!("{} was made by {}", group.title(), tx.actor);
    tx.note_group("created", &group, line);
    if let Some(name) = &command.name {
        tx.state.group_names.insert(name.clone(), id);
    }
    tx.state.open_groups.insert(id, ());
    tx.put_group(group);
    Ok(Reply::Group {
        group: id,
        deployments: made,
    })
}

/// As the request has it, else the deployments' strategy, else all at once.
fn rollout(tx: &Tx<'_>, command: &CreateGroup) -> RolloutSpec {
    let wanted = &command.deployments;
    let named = wanted.strategy.as_ref();
    let named = named.and_then(|name| tx.state.strategies.get(name));
    command
        .rollout
        .clone()
        .or_else(|| wanted.overrides.rollout.clone())
        .or_else(|| named.and_then(|strategy| strategy.spec.rollout.clone()))
        .unwrap_or_default()
}

/// The deployments with the rollout's checks added to those of their strategy: each member proves
/// itself before the gate `verified` lets the next ones start.
fn with_checks(
    tx: &Tx<'_>,
    wanted: &CreateDeployments,
    rollout: &RolloutSpec,
) -> CreateDeployments {
    let mut wanted = wanted.clone();
    if rollout.verification.is_empty() {
        return wanted;
    }
    let named = wanted.strategy.as_ref();
    let named = named.and_then(|name| tx.state.strategies.get(name));
    let own = wanted.overrides.verification.clone();
    let own = own.or_else(|| named.and_then(|strategy| strategy.spec.verification.clone()));
    let all = rollout.checks_of_member(&own.unwrap_or_default());
    wanted.overrides.verification = Some(all);
    wanted
}

/// Appends members: at the end of the order and of the last wave, if these are fixed.
fn join(group: &mut Group, scopes: &[Name], made: &[DeploymentId]) {
    for (scope, deployment) in scopes.iter().zip(made) {
        let number = u32::try_from(group.members.len()).unwrap_or(u32::MAX);
        let begun = group.begun_at.is_some();
        let wave = group.waves.len().checked_sub(1);
        if let Some(last) = group.waves.last_mut() {
            last.members = last.members.saturating_add(1);
        }
        if begun {
            group.order.insert(number, number);
        }
        group.scopes.insert(scope.clone(), number);
        group.members.insert(
            number,
            GroupMember {
                scope: scope.clone(),
                deployment: *deployment,
                former: Vec::new(),
                // Positions are numbers as far as the order is fixed: whoever joins comes last.
                position: begun.then_some(number),
                wave: wave.and_then(|wave| u32::try_from(wave).ok()),
                started_at: None,
                ended: None,
            },
        );
    }
}

/// More scopes: they come last.
pub(super) fn add(tx: &mut Tx<'_>, command: &AddToGroup) -> Outcome {
    let mut group = tx.state.group(command.group)?.clone();
    let (expected, present) = (command.expected_revision, group.meta.revision);
    expect_revision(&group.title(), expected, present)?;
    refuse_closed(&group)?;
    let refuse = |reason: Reason, message: String| {
        let title = group.title();
        Err(Rejection::new(reason, format!("{title}: {message}")))
    };
    if let Some(given) = &group.given {
        return refuse(
            Reason::GroupTakenBack,
            format!("{} takes it back since {}", given.by, given.at),
        );
    }
    if let Some(scope) = command
        .scopes
        .iter()
        .find(|s| group.scopes.contains_key(*s))
    {
        return refuse(
            Reason::AlreadyExists,
            format!("scope \"{scope}\" is a member already"),
        );
    }
    if group.members.len() + command.scopes.len() > MOST_MEMBERS {
        return refuse(
            Reason::InvalidRequest,
            format!("a group has at most {MOST_MEMBERS} members"),
        );
    }
    let wanted = CreateDeployments {
        application: group.application.clone(),
        version: group.version.clone(),
        scopes: command.scopes.clone(),
        strategy: group.template.strategy.clone(),
        overrides: group.template.overrides.clone(),
        labels: group.template.labels.clone(),
        on_conflict: group.template.on_conflict,
    };
    let checked = with_checks(tx, &wanted, &group.rollout);
    let made = create::create_all(tx, &checked, MOST_MEMBERS, Some(group.id))?;
    join(&mut group, &command.scopes, &made);
    let line = format!(
        "{} got {} more, by {}: {}",
        group.title(),
        made.len(),
        tx.actor,
        list(&command.scopes)
    );
    let id = group.id;
    tx.note_group("grown", &group, line);
    tx.put_group(group);
    Ok(Reply::Group {
        group: id,
        deployments: made,
    })
}

/// One decision for every member that waits for it and that the person may decide about.
pub(super) fn decide(tx: &mut Tx<'_>, command: &DecideGroup) -> Outcome {
    let group = tx.state.group(command.group)?.clone();
    let (expected, present) = (command.expected_revision, group.meta.revision);
    expect_revision(&group.title(), expected, present)?;
    refuse_closed(&group)?;
    let (mut done, mut left, mut first) = (Vec::new(), Vec::new(), None);
    for member in group.members.values() {
        let status = member.state(&tx.state).status;
        if status != Status::CreatingApproval {
            left.push((
                member.scope.clone(),
                format!("is {status} and waits for no approval"),
            ));
            continue;
        }
        let asked = Decide {
            deployment: member.deployment,
            granted: command.granted,
            reason: command.reason.clone(),
        };
        match tx.attempt(|tx| approval::decide(tx, &asked)) {
            Ok(_) => done.push(member.deployment),
            Err(rejection) => {
                first = first.or(Some(rejection.reason));
                left.push((member.scope.clone(), rejection.message));
            }
        }
    }
    if done.is_empty() {
        let message = match first {
            Some(_) => "no member takes your decision",
            None => "no member waits for approval",
        };
        return Err(Rejection::of_scopes(
            first.unwrap_or(Reason::NoApprovalPending),
            format!("{}: {message}", group.title()),
            &left,
        ));
    }
    let word = if command.granted { "granted" } else { "denied" };
    let line = format!(
        "{}: {} of {} were {word} by {}{}",
        group.title(),
        done.len(),
        group.members.len(),
        tx.actor,
        because(&command.reason)
    );
    tx.note_group(word, &group, line);
    Ok(acted(group.id, done, left))
}

fn acted(group: GroupId, done: Vec<DeploymentId>, left: Vec<Left>) -> Reply {
    Reply::GroupActed { group, done, left }
}

fn refuse_closed(group: &Group) -> Result<(), Rejection> {
    match &group.closed {
        Some(closed) => Err(Rejection::new(
            Reason::GroupEnded,
            format!("{} is {} since {}", group.title(), closed.status, closed.at),
        )),
        None => Ok(()),
    }
}

/// Names of scopes, the first few of many.
fn list(names: &[Name]) -> String {
    let told: Vec<&str> = names.iter().take(MOST_NAMED).map(Name::as_str).collect();
    match names.len().saturating_sub(MOST_NAMED) {
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}

/// Members that were left, each with its reason; the first few of many.
fn list_left(left: &[Left]) -> String {
    let told = left.iter().take(MOST_NAMED);
    let told: Vec<String> = told.map(|(scope, why)| format!("{scope}: {why}")).collect();
    match left.len().saturating_sub(MOST_NAMED) {
        0 => told.join("; "),
        more => format!("{}; and {more} more", told.join("; ")),
    }
}
