//! Agents: admitted, told about, removed.

use std::collections::BTreeSet;

use tidegate_shared::assignment::{Facts, Generation};
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::selector::Labels;
use tidegate_shared::time::Span;

use super::lifecycle;
use super::token::check_name;
use super::tx::Tx;
use crate::command::{Join, Outcome, Reply, UpdateAgent};
use crate::rejection::Rejection;
use crate::state::{Agent, PlaceTerm};

/// How long a removal is remembered: longer than any certificate of an agent lives.
const REMEMBERED: Span = Span::from_hours(400 * 24);

/// Facts beyond these bounds are refused: they are replicated.
fn check_facts(facts: &Facts) -> Result<(), Rejection> {
    let bytes: usize = facts.iter().map(|(k, v)| k.len() + v.len()).sum();
    if facts.len() > 128 || bytes > 16 * 1024 {
        return Err(Rejection::new(
            Reason::TooLarge,
            format!(
                "{} facts of {bytes} bytes: at most 128 of 16 KiB in all are kept",
                facts.len()
            ),
        ));
    }
    Ok(())
}

/// A newcomer, or one that comes back under a token made for its name. Its labels are the token's.
pub(super) fn admit(
    tx: &mut Tx<'_>,
    command: &Join,
    labels: &Labels,
    bound: bool,
) -> Result<(), Rejection> {
    check_facts(&command.facts)?;
    let name = &command.name;
    let known = tx.state.agents.get(name).cloned();
    check_name("agent", name, known.is_some(), bound)?;
    let again = if known.is_some() { " again" } else { "" };
    let agent = match known {
        Some(mut agent) => {
            agent.meta.labels.clone_from(labels);
            agent.meta.revision = tx.next_revision();
            agent.facts = command.facts.clone();
            agent
        }
        None => Agent {
            meta: tx.new_meta(labels.clone()),
            facts: command.facts.clone(),
            version: String::new(),
            generation: Generation::default(),
        },
    };
    tx.state.agents.insert(name.clone(), agent);
    tx.touch_agent(name);
    tx.note(
        "agent_joined",
        "agent",
        name,
        format!("agent {name} joined{again}"),
    );
    Ok(())
}

/// Facts and version, told at its connection.
pub(super) fn update(tx: &mut Tx<'_>, command: &UpdateAgent) -> Outcome {
    check_facts(&command.facts)?;
    let mut agent = find(tx, &command.name)?;
    let changed = agent.facts != command.facts || agent.version != command.version;
    if changed {
        agent.facts = command.facts.clone();
        agent.version.clone_from(&command.version);
        agent.meta.revision = tx.next_revision();
        tx.note(
            "agent_updated",
            "agent",
            &command.name,
            format!("agent {} runs version {}", command.name, command.version),
        );
    }
    let revision = agent.meta.revision;
    tx.state.agents.insert(command.name.clone(), agent);
    Ok(Reply::Object {
        revision,
        created: false,
        changed,
    })
}

fn find(tx: &Tx<'_>, name: &Name) -> Result<Agent, Rejection> {
    tx.state
        .agents
        .get(name)
        .cloned()
        .ok_or_else(|| Rejection::new(Reason::NotFound, format!("there is no agent \"{name}\"")))
}

/// Takes an agent out: its places are excused everywhere.
pub(super) fn remove(tx: &mut Tx<'_>, name: &Name) -> Outcome {
    find(tx, name)?;
    let mut excused = Vec::new();
    let scopes: BTreeSet<Name> = tx
        .state
        .deployments
        .rows_of(&PlaceTerm::Agent(name.clone()))
        .map(|(_, deployment)| deployment.origin.scope.clone())
        .collect();
    for scope in scopes {
        let Some(scope) = tx.state.scopes.get(&scope).cloned() else {
            continue;
        };
        let places = scope
            .active
            .iter()
            .chain(&scope.candidate)
            .chain(&scope.retired);
        for id in places {
            if excuse(tx, *id, name) {
                excused.push(*id);
            }
        }
    }
    tx.state.agents.remove(name);
    remember_removal(tx, name);
    for id in &excused {
        lifecycle::drop_settled_leftovers(tx, *id)?;
    }
    tx.note(
        "agent_removed",
        "agent",
        name,
        format!(
            "agent {name} was taken out of the cluster; it took part in {} deployments",
            excused.len()
        ),
    );
    Ok(Reply::Done)
}

/// An agent that calls in within [`REMEMBERED`] hears that it is out, and drains. Its certificate
/// ends long before, so nobody waits in vain for an answer that was forgotten.
fn remember_removal(tx: &mut Tx<'_>, name: &Name) {
    let now = tx.state.at;
    let forgotten: Vec<Name> = tx
        .state
        .removed_agents
        .iter()
        .filter(|(_, at)| now.since(**at) >= REMEMBERED)
        .map(|(name, _)| name.clone())
        .collect();
    for name in forgotten {
        tx.state.removed_agents.remove(&name);
    }
    tx.state.removed_agents.insert(name.clone(), now);
}

fn excuse(tx: &mut Tx<'_>, id: DeploymentId, name: &Name) -> bool {
    let Some(found) = tx.state.deployments.get(&id) else {
        return false;
    };
    let lists = [&found.participants, &found.lost, &found.leftovers];
    if !lists.iter().any(|list| list.contains(name)) {
        return false;
    }
    let mut deployment = found.clone();
    deployment.participants.retain(|other| other != name);
    deployment.lost.retain(|other| other != name);
    deployment.leftovers.retain(|other| other != name);
    lifecycle::recount(tx, &mut deployment);
    tx.put_deployment(deployment);
    true
}
