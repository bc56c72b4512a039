//! What an agent should make true: the wish as levels, derived from replicated state alone.
//!
//! Pure and total. `apply` compares [`scope_items`] before and after a command to know whose
//! generation it raises (equal generation means equal content); the sessions of agents send
//! [`desired`]. The order in which an agent gets there is the agent's own (agent.md §2): here is
//! only said what should hold in the end, so a loser is simply `absent` and the agent moves the
//! traffic, drains and stops in that order.

use std::collections::BTreeSet;

use tidegate_shared::assignment::{
    AssetWish, Assignment, Assignments, ParameterContent, ParameterWish, Role, Scrape, WishedState,
};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::spec::{AppMetric, HealthCheck};
use tidegate_shared::time::Span;
use tidegate_shared::weight::Weight;

use crate::state::{Agent, Deployment, ResolvedParameter, Scope, State, Status};
use crate::strategy::{self, rolling};
use crate::verification::wishes;

/// Reports come at least this often while a deployment concerns an agent.
const SLOWEST_REPORT: Span = Span::from_secs(1);

/// Reports come at most this often, whatever a rule's window.
const FASTEST_REPORT: Span = Span::from_millis(250);

/// The complete wish for an agent; nothing for one that is not in the cluster.
pub fn desired(state: &State, agent: &Name) -> Assignments {
    let Some(known) = state.agents.get(agent) else {
        return Assignments::default();
    };
    let mut items = Vec::new();
    let mut interval = None;
    for name in state.scopes_of_agent(agent, &known.meta.labels) {
        let Some(scope) = state.scopes.get(name) else {
            continue;
        };
        items.extend(items_of(state, name, scope, agent, known));
        interval = faster(interval, interval_of(state, scope, agent, known));
    }
    Assignments {
        generation: known.generation,
        items,
        report_interval: interval,
    }
}

/// The part of [`desired`] that one scope is responsible for, and the report interval that it asks
/// for: an agent's assignments change exactly when this changes for some scope.
pub fn scope_items(state: &State, scope: &Name, agent: &Name) -> (Vec<Assignment>, Option<Span>) {
    match (state.scopes.get(scope), state.agents.get(agent)) {
        (Some(found), Some(known)) => (
            items_of(state, scope, found, agent, known),
            interval_of(state, found, agent, known),
        ),
        (None, _) | (_, None) => (Vec::new(), None),
    }
}

/// Whether an agent acts for a deployment: a participant, or one whose labels match since.
pub fn concerns(deployment: &Deployment, agent: &Name, known: &Agent) -> bool {
    is_participant(deployment, agent)
        || deployment
            .origin
            .scope_spec
            .agents
            .matches(&known.meta.labels)
}

/// Whether an agent was fixed as a participant; they stand in order of name.
pub fn is_participant(deployment: &Deployment, agent: &Name) -> bool {
    deployment.participants.binary_search(agent).is_ok()
}

/// What is wished of one version on one agent; none: nothing is said about it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Which part it plays.
    pub role: Role,
    /// Instances.
    pub count: u32,
    /// How far it should be.
    pub state: WishedState,
    /// Share of the scope's traffic on this agent.
    pub weight: Weight,
    /// The old one may stop before the new one starts.
    pub may_interrupt: bool,
}

impl Wish {
    fn running(role: Role, count: u32, weight: Weight) -> Self {
        Self {
            role,
            count,
            state: WishedState::Running,
            weight,
            may_interrupt: false,
        }
    }

    fn idle(role: Role, state: WishedState, count: u32) -> Self {
        Self {
            role,
            count,
            state,
            weight: Weight::ZERO,
            may_interrupt: false,
        }
    }
}

/// The candidate of a scope, unless its place is none of the agents' business yet.
fn candidate<'a>(state: &'a State, scope: &Scope) -> Option<&'a Deployment> {
    scope.candidate.and_then(|id| state.deployments.get(&id))
}

/// What is wished of a scope's active version on an agent.
pub fn active_wish(state: &State, scope: &Scope, agent: &Name, known: &Agent) -> Option<Wish> {
    let active = state.deployments.get(&scope.active?)?;
    if !concerns(active, agent, known) {
        return None;
    }
    let per_agent = scope.spec.instances_per_agent;
    if active.status == Status::Deleting {
        return Some(Wish::idle(Role::Active, WishedState::Absent, per_agent));
    }
    let full = Wish::running(Role::Active, per_agent, Weight::FULL);
    let Some(candidate) = candidate(state, scope) else {
        return Some(full);
    };
    if leaves(candidate, agent, known) {
        // Neither a participant nor a newcomer: the scope moves away from this agent.
        return Some(leaving(candidate, per_agent));
    }
    if !is_participant(candidate, agent) {
        return Some(full);
    }
    Some(match candidate.status {
        Status::Finalizing => leaving(candidate, per_agent),
        Status::WaitingForInstances
        | Status::Running
        | Status::Cancelling
        | Status::RollingBack
            if strategy::is_batched(candidate) =>
        {
            batched_active(candidate, scope, agent).unwrap_or(full)
        }
        Status::Running => Wish {
            weight: candidate_weight(candidate).complement(),
            ..full
        },
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Finalized
        | Status::Cancelling
        | Status::Cancelled
        | Status::RollingBack
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => full,
    })
}

/// The candidate is final and will not run on this agent.
fn leaves(candidate: &Deployment, agent: &Name, known: &Agent) -> bool {
    candidate.status == Status::Finalizing && !concerns(candidate, agent, known)
}

/// `FINALIZING`: the old version drains, then goes. Where it was replaced in place it is gone
/// already and must not come up again to drain.
fn leaving(candidate: &Deployment, per_agent: u32) -> Wish {
    let state = if candidate.drained || strategy::is_batched(candidate) {
        WishedState::Absent
    } else {
        WishedState::Drained
    };
    Wish::idle(Role::Active, state, per_agent)
}

fn batched_active(candidate: &Deployment, scope: &Scope, agent: &Name) -> Option<Wish> {
    let local = rolling::local(candidate, scope, agent)?;
    let may_interrupt = !candidate.origin.strategy.batch.overlap;
    let wish = if local.old == 0 {
        Wish::idle(Role::Active, WishedState::Absent, 0)
    } else {
        Wish::running(Role::Active, local.old, local.weight.complement())
    };
    Some(Wish {
        may_interrupt,
        ..wish
    })
}

/// Share of the traffic that is wished for a candidate that is not batched.
fn candidate_weight(candidate: &Deployment) -> Weight {
    if candidate.replaces.is_none() {
        Weight::FULL
    } else {
        candidate.traffic.desired
    }
}

/// What is wished of a scope's candidate on an agent.
pub fn candidate_wish(state: &State, scope: &Scope, agent: &Name) -> Option<Wish> {
    let candidate = candidate(state, scope)?;
    if !is_participant(candidate, agent) {
        return None;
    }
    let per_agent = scope.spec.instances_per_agent;
    let absent = Wish::idle(Role::Candidate, WishedState::Absent, per_agent);
    Some(match candidate.status {
        Status::Creating => Wish::idle(Role::Candidate, WishedState::Staged, per_agent),
        Status::WaitingForInstances | Status::Running if strategy::is_batched(candidate) => {
            batched_candidate(candidate, scope, agent, WishedState::Staged)?
        }
        Status::Cancelling | Status::RollingBack if strategy::is_batched(candidate) => {
            batched_candidate(candidate, scope, agent, WishedState::Absent)?
        }
        Status::WaitingForInstances => Wish::running(Role::Candidate, per_agent, Weight::ZERO),
        Status::Running => Wish::running(Role::Candidate, per_agent, candidate_weight(candidate)),
        Status::Finalizing => Wish::running(Role::Candidate, per_agent, Weight::FULL),
        Status::Cancelling | Status::RollingBack => absent,
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Finalized
        | Status::Cancelled
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => return None,
    })
}

fn batched_candidate(
    candidate: &Deployment,
    scope: &Scope,
    agent: &Name,
    without: WishedState,
) -> Option<Wish> {
    let local = rolling::local(candidate, scope, agent)?;
    let may_interrupt = !candidate.origin.strategy.batch.overlap;
    let wish = if local.new == 0 {
        Wish::idle(Role::Candidate, without, 0)
    } else {
        Wish::running(Role::Candidate, local.new, local.weight)
    };
    Some(Wish {
        may_interrupt,
        ..wish
    })
}

fn items_of(
    state: &State,
    name: &Name,
    scope: &Scope,
    agent: &Name,
    known: &Agent,
) -> Vec<Assignment> {
    let mut items = Vec::new();
    // Whoever goes, the old version or the candidate itself, drains as the exchange under way says.
    let exchange = candidate(state, scope)
        .filter(|found| is_participant(found, agent) || leaves(found, agent, known));
    let drain = exchange.map(|candidate| candidate.origin.strategy.drain);
    let mut add = |id: DeploymentId, wish: Option<Wish>| {
        if let (Some(deployment), Some(wish)) = (state.deployments.get(&id), wish) {
            let mut item = item(name, deployment, wish);
            item.drain = drain.unwrap_or(item.drain);
            items.push(item);
        }
    };
    if let Some(id) = scope.active {
        add(id, active_wish(state, scope, agent, known));
    }
    if let Some(id) = scope.candidate {
        add(id, candidate_wish(state, scope, agent));
    }
    for id in &scope.retired {
        let left = state
            .deployments
            .get(id)
            .is_some_and(|retired| retired.leftovers.contains(agent));
        if left && scope.active != Some(*id) && scope.candidate != Some(*id) {
            add(*id, Some(Wish::idle(Role::Retired, WishedState::Absent, 0)));
        }
    }
    items.sort_by_key(|item| item.deployment);
    items
}

fn item(scope: &Name, deployment: &Deployment, wish: Wish) -> Assignment {
    let origin = &deployment.origin;
    let mut run = origin.asset.run.clone();
    run.health_check = None;
    run.limits = origin.scope_spec.limits.or(&run.limits);
    let mut parameters = Vec::new();
    for (variable, parameter) in &origin.parameters {
        if parameter.secret.is_none() && parameter.file.is_none() {
            run.env.insert(variable.clone(), parameter.value.clone());
        } else {
            run.env.remove(variable);
            parameters.push(parameter_wish(variable, parameter));
        }
    }
    Assignment {
        scope: scope.clone(),
        deployment: deployment.id,
        role: wish.role,
        count: wish.count,
        application: origin.application.clone(),
        release: origin.version.clone(),
        asset: AssetWish {
            name: origin.asset.name.clone(),
            kind: origin.asset.kind,
            sha256: origin.asset.sha256,
            size: origin.asset.size,
            sources: origin.asset.source.texts(),
        },
        run,
        parameters,
        port: origin.scope_spec.port,
        traffic: origin.scope_spec.traffic(),
        health_check: HealthCheck::clone(&origin.health_check),
        state: wish.state,
        weight: wish.weight,
        may_interrupt: wish.may_interrupt,
        drain: origin.strategy.drain,
        max_restarts: origin.scope_spec.max_restarts,
        keep_releases: origin.strategy.keep_releases,
        guard: None,
        scrape: scrape(deployment),
        checks: if wish.role == Role::Candidate && wish.state == WishedState::Running {
            wishes(deployment)
        } else {
            Vec::new()
        },
    }
}

fn parameter_wish(variable: &str, parameter: &ResolvedParameter) -> ParameterWish {
    ParameterWish {
        variable: variable.to_owned(),
        content: match &parameter.secret {
            Some(secret) => ParameterContent::Secret(Digest::of(secret.sealed.as_bytes())),
            None => ParameterContent::Plain(parameter.value.clone()),
        },
        file: parameter.file.clone(),
    }
}

/// Most series that an agent is asked for.
const MOST_SERIES: usize = 64;

/// The series of the application that the rules of a deployment name.
fn scrape(deployment: &Deployment) -> Option<Scrape> {
    let rules = deployment.origin.strategy.rules.iter();
    let series: BTreeSet<String> = rules
        .filter_map(|rule| rule.metric.app())
        .flat_map(AppMetric::series)
        .map(|selector| selector.to_string())
        .collect();
    if series.is_empty() {
        return None;
    }
    let metrics = deployment
        .origin
        .scope_spec
        .metrics
        .clone()
        .unwrap_or_default();
    Some(Scrape {
        path: metrics.path,
        port: metrics.port,
        series: series.into_iter().take(MOST_SERIES).collect(),
    })
}

/// How often a scope wants to hear from an agent: a quarter of the smallest window of a rule while
/// a deployment is under way there.
fn interval_of(state: &State, scope: &Scope, agent: &Name, known: &Agent) -> Option<Span> {
    let deleting = scope.active.and_then(|id| state.deployments.get(&id));
    let deleting = deleting
        .filter(|active| active.status == Status::Deleting && concerns(active, agent, known));
    let rolled_out = candidate(state, scope).filter(|candidate| is_participant(candidate, agent));
    let deployment = rolled_out.or(deleting)?;
    let rules = deployment.origin.strategy.rules.iter();
    let wanted = rules
        .map(|rule| Span::from_millis(rule.window.millis() / 4))
        .min()
        .unwrap_or(SLOWEST_REPORT);
    Some(wanted.clamp(FASTEST_REPORT, SLOWEST_REPORT))
}

fn faster(one: Option<Span>, other: Option<Span>) -> Option<Span> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, None) => one,
        (None, other) => other,
    }
}
