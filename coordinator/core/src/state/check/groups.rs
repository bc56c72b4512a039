//! Invariants of deployment groups.

use std::collections::BTreeSet;

use super::Findings;
use crate::state::{Counts, Group, KEPT_GROUPS, State};

/// Every broken invariant of groups.
pub(super) fn check(state: &State, findings: &mut Findings) {
    groups_are_open_or_ended(state, findings);
    few_ended_groups_stay(state, findings);
    names_lead_to_groups(state, findings);
    for group in state.groups.values() {
        members_stand_in_their_scopes(group, findings);
        present_members_know_their_group(state, group, findings);
        ends_are_those_of_members(state, group, findings);
        orders_are_whole(group, findings);
        waves_start_in_turn(group, findings);
        tallies_agree(group, findings);
        closed_groups_have_ended(group, findings);
        halts_are_open(group, findings);
    }
}

/// A group is under way, or it has ended; each index names just these.
fn groups_are_open_or_ended(state: &State, findings: &mut Findings) {
    for group in state.groups.values() {
        let open = state.open_groups.contains_key(&group.id);
        let ended = state.ended_groups.values().any(|id| *id == group.id);
        if open == group.closed.is_some() || ended != group.closed.is_some() {
            findings.push(format!("{}: its indexes disagree", group.title()));
        }
    }
    if state.open_groups.len() + state.ended_groups.len() != state.groups.len() {
        findings.push("the indexes of groups lead nowhere".to_owned());
    }
}

/// Of each application the newest few that ended.
fn few_ended_groups_stay(state: &State, findings: &mut Findings) {
    let applications: BTreeSet<_> = state.ended_groups.keys().map(|(name, _)| name).collect();
    for name in applications {
        let of = state.ended_groups.keys().filter(|(of, _)| of == name);
        if of.count() > KEPT_GROUPS {
            findings.push(format!("application {name} holds too many ended groups"));
        }
    }
}

/// Names lead to groups of that name, and every name leads somewhere.
fn names_lead_to_groups(state: &State, findings: &mut Findings) {
    for (name, id) in &state.group_names {
        let found = state.groups.get(id).and_then(|group| group.name.as_ref());
        if found != Some(name) {
            findings.push(format!("group name {name} leads nowhere"));
        }
    }
    let named = state.groups.values().filter(|group| group.name.is_some());
    if named.count() != state.group_names.len() {
        findings.push("a name of a group is not known".to_owned());
    }
}

/// Members are numbered from 0 without gaps, one for each scope.
fn members_stand_in_their_scopes(group: &Group, findings: &mut Findings) {
    let numbered = group
        .members
        .keys()
        .copied()
        .eq(0..group.members.len() as u32);
    let placed = |(scope, number): (&_, &u32)| {
        let member = group.members.get(number);
        member.is_some_and(|member| member.scope == *scope)
    };
    let whole = group.scopes.len() == group.members.len() && group.scopes.iter().all(placed);
    if !numbered || !whole || group.members.is_empty() {
        findings.push(format!("{}: members and scopes disagree", group.title()));
    }
}

/// The deployments of a group under way, as far as they are in the state, are of its release and know
/// where they belong; those that have not ended are in the state.
fn present_members_know_their_group(state: &State, group: &Group, findings: &mut Findings) {
    if group.closed.is_some() {
        return;
    }
    for member in group.members.values() {
        let Some(deployment) = state.deployments.get(&member.deployment) else {
            if member.ended.is_none() {
                let scope = &member.scope;
                findings.push(format!("{}: {scope} has no deployment", group.title()));
            }
            continue;
        };
        let origin = &deployment.origin;
        let fits = deployment.group == Some(group.id)
            && (&origin.scope, &origin.application, &origin.version)
                == (&member.scope, &group.application, &group.version);
        if !fits {
            findings.push(format!(
                "{}: a stranger stands for {}",
                group.title(),
                member.scope
            ));
        }
    }
}

/// A member that has not ended moves, and one that has does not.
fn ends_are_those_of_members(state: &State, group: &Group, findings: &mut Findings) {
    if group.closed.is_some() {
        return;
    }
    for member in group.members.values() {
        let Some(deployment) = state.deployments.get(&member.deployment) else {
            continue;
        };
        let is_over = deployment.ended_at.is_some();
        if is_over != member.ended.is_some() {
            findings.push(format!(
                "{}: {} is {}, which its group does not know",
                group.title(),
                member.scope,
                deployment.status
            ));
        }
    }
    for (id, back) in &group.returns {
        let moves = state
            .deployments
            .get(id)
            .is_some_and(|d| !d.status.is_end());
        if moves != back.ended.is_none() {
            findings.push(format!("{}: the return {id} differs", group.title()));
        }
    }
}

/// Once the rollout has begun every member has one position, and waves take each member once.
fn orders_are_whole(group: &Group, findings: &mut Findings) {
    let Some(_) = group.begun_at else {
        let bare = group
            .members
            .values()
            .all(|m| m.position.is_none() && m.wave.is_none());
        if !group.order.is_empty() || !group.waves.is_empty() || !bare {
            findings.push(format!("{}: an order before its time", group.title()));
        }
        return;
    };
    let placed = |(position, number): (&u32, &u32)| {
        let member = group.members.get(number);
        member.is_some_and(|member| member.position == Some(*position))
    };
    if group.order.len() != group.members.len() || !group.order.iter().all(placed) {
        findings.push(format!("{}: its order has gaps", group.title()));
    }
    for (index, wave) in (0_u32..).zip(&group.waves) {
        let members = group.members.values().filter(|m| m.wave == Some(index));
        if members.count() != wave.members as usize {
            findings.push(format!("{}: wave {index} is miscounted", group.title()));
        }
    }
}

/// Nobody has started whose wave is not open.
fn waves_start_in_turn(group: &Group, findings: &mut Findings) {
    for member in group.members.values() {
        let early = member.wave.is_some_and(|wave| wave > group.open_wave);
        let started = member.started_at.is_some();
        if started && (early || group.begun_at.is_none()) {
            findings.push(format!("{}: {} started early", group.title(), member.scope));
        }
    }
}

/// The counts are those of the members.
fn tallies_agree(group: &Group, findings: &mut Findings) {
    let mut counted = Counts {
        excused: group.tally.excused,
        ..Counts::default()
    };
    for end in group.members.values().filter_map(|m| m.ended.as_ref()) {
        counted.count(end.fate, false);
    }
    if counted != group.tally {
        findings.push(format!("{}: its members are miscounted", group.title()));
    }
}

/// A fixed status is an end, and everything of the group is at one.
fn closed_groups_have_ended(group: &Group, findings: &mut Findings) {
    let Some(closed) = &group.closed else {
        return;
    };
    let over = group.members.values().all(|member| member.is_over())
        && group.returns.values().all(|back| back.ended.is_some());
    if !over || !closed.status.is_end() {
        findings.push(format!("{} ended before its time", group.title()));
    }
}

/// Nothing is halted or paused that has ended or is taken back.
fn halts_are_open(group: &Group, findings: &mut Findings) {
    let stopped = group.halted.is_some() || group.paused.is_some();
    if stopped && (group.closed.is_some() || group.given.is_some()) {
        findings.push(format!("{} is stopped and at its end", group.title()));
    }
}
