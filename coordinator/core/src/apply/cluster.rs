//! The cluster as such: its first entry, its members, its level.

use std::sync::Arc;

use tidegate_shared::error::Reason;

use super::people;
use super::tx::Tx;
use crate::command::{InitCluster, Outcome, Reply, UpdateMember};
use crate::rejection::Rejection;
use crate::state::{Cluster, Member, NodeId, State, Table};

/// The first entry of a cluster; refused on anything but an empty state.
pub(super) fn init(tx: &mut Tx<'_>, command: &InitCluster) -> Outcome {
    let empty = State {
        at: tx.state.at,
        events: tx.state.events.clone(),
        last_hash: tx.state.last_hash,
        requests: tx.state.requests.clone(),
        planner_requests: tx.state.planner_requests.clone(),
        ..State::default()
    };
    if tx.state != empty {
        return Err(Rejection::new(
            Reason::AlreadyExists,
            match &tx.state.cluster {
                Some(cluster) => format!("this is cluster {} already", cluster.id),
                None => "this state belongs to another cluster".to_owned(),
            },
        ));
    }
    let host = command.trust_domain.as_str();
    let fits = (1..=253).contains(&host.len())
        && host
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
    if !fits {
        return Err(Rejection::new(
            Reason::InvalidRequest,
            format!("trust domain \"{host}\" is not 1 to 253 lower-case letters, digits, - and ."),
        ));
    }
    let first = Member {
        name: command.name.clone(),
        addresses: command.addresses.clone(),
        version: String::new(),
        level: command.level,
        joined_at: tx.at,
    };
    tx.state.cluster = Some(Arc::new(Cluster {
        id: command.cluster,
        trust_domain: command.trust_domain.clone(),
        level: command.level,
        epoch: 0,
        next_node: 2,
        members: Table::unit(1, first),
        former: Table::new(),
        ca: command.ca.clone(),
    }));
    tx.begin_archive(command.level);
    let meta = tx.new_meta(std::collections::BTreeMap::new());
    let admin = people::first(meta, command.level);
    tx.state.people.insert(command.admin.clone(), admin);
    tx.note(
        "cluster_initialised",
        "cluster",
        command.cluster,
        format!(
            "cluster {} was made with member {} and administrator {}",
            command.cluster, command.name, command.admin
        ),
    );
    Ok(Reply::Done)
}

/// The record of the cluster; there before any command but the first runs.
fn cluster<'a>(tx: &'a mut Tx<'_>) -> Result<&'a mut Cluster, Rejection> {
    tx.state
        .cluster
        .as_mut()
        .map(Arc::make_mut)
        .ok_or_else(|| Rejection::new(Reason::InvalidRequest, "this cluster is not initialised"))
}

fn no_member(node: NodeId) -> Rejection {
    Rejection::new(
        Reason::NotFound,
        format!("there is no coordinator with node id {node}"),
    )
}

/// A member tells its addresses and what it supports.
pub(super) fn update_member(tx: &mut Tx<'_>, command: &UpdateMember) -> Outcome {
    let cluster = cluster(tx)?;
    let level = cluster.level;
    let member = cluster
        .members
        .get_mut(&command.node)
        .ok_or_else(|| no_member(command.node))?;
    if command.level < level {
        return Err(Rejection::new(
            Reason::InvalidRequest,
            format!(
                "{} supports cluster level {} only; the cluster is at {level}: upgrade its program",
                member.name, command.level
            ),
        ));
    }
    member.addresses = command.addresses.clone();
    member.version.clone_from(&command.version);
    member.level = command.level;
    let message = format!(
        "coordinator {} runs version {} (level {}) at {}",
        member.name, member.version, member.level, member.addresses.control
    );
    tx.note("member_updated", "member", command.node, message);
    Ok(Reply::Done)
}

/// Takes a coordinator out of the table; its node id is never given again.
pub(super) fn remove_member(tx: &mut Tx<'_>, node: NodeId) -> Outcome {
    let cluster = cluster(tx)?;
    if !cluster.members.contains_key(&node) {
        return Err(no_member(node));
    }
    if cluster.members.len() == 1 {
        return Err(Rejection::new(
            Reason::InUse,
            format!("node {node} is the cluster's last coordinator"),
        ));
    }
    let mut name = String::new();
    if let Some(member) = cluster.members.remove(&node) {
        name = member.name.to_string();
        cluster.former.insert(node, Arc::unwrap_or_clone(member));
    }
    let message = format!("coordinator {name} (node {node}) left the cluster");
    tx.note("member_removed", "member", node, message);
    Ok(Reply::Done)
}

/// Only up, and only to what every member supports.
pub(super) fn raise_level(tx: &mut Tx<'_>, level: u32) -> Outcome {
    let cluster = cluster(tx)?;
    let present = cluster.level;
    if level <= present {
        return Err(Rejection::new(
            Reason::InvalidRequest,
            format!("the cluster is at level {present} and only goes up"),
        ));
    }
    let behind = cluster.members.values().find(|m| m.level < level);
    if let Some(member) = behind {
        return Err(Rejection::new(
            Reason::InvalidRequest,
            format!(
                "coordinator {} supports level {} only: upgrade it first",
                member.name, member.level
            ),
        ));
    }
    cluster.level = level;
    tx.begin_archive(level);
    tx.note(
        "cluster_level_raised",
        "cluster",
        level,
        format!("the cluster is at level {level}, before at {present}"),
    );
    people::begin(tx, present, level);
    Ok(Reply::Done)
}
