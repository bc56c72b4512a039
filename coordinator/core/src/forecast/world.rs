//! Agents as one would wish them: connected, sound, and as quick as stated.
//!
//! Only what changed is gone through: the scopes whose rows did, and the agents that have got further
//! by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_shared::assignment::{
    Assignment, Counters, InstanceState, ObservedInstance, ObservedPlace, Report, Role, WishedState,
};
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::spec::RolloutGate;
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::weight::Weight;

use super::Pace;
use super::measuring::Measuring;
use crate::desired::scope_items;
use crate::observed::{Observed, ObservedAgent};
use crate::plan::sooner;
use crate::state::{Scope, State, Status};

/// What stands, or comes up, of one deployment on one agent.
#[derive(Debug, Clone, Default)]
struct Place {
    staged_at: Timestamp,
    /// Of each instance.
    healthy_at: Vec<Timestamp>,
}

/// A scope where something moves: its deployments that agents are asked about, and these agents.
type Acting = (Vec<DeploymentId>, BTreeSet<Name>);

/// See the module.
pub(super) struct World {
    /// What the planner is shown.
    pub(super) observed: Observed,
    /// Of versions that come while it is followed; what is there at the beginning stands.
    pace: Pace,
    started: bool,
    places: BTreeMap<(Name, DeploymentId), Place>,
    /// When an agent has something new to tell of a scope without a new wish.
    due: BTreeSet<(Timestamp, Name, Name)>,
    /// Scopes in motion, as long as the same deployments are.
    acting: BTreeMap<Name, Acting>,
    measuring: Measuring,
}

impl World {
    pub(super) fn new(now: Timestamp, pace: Pace) -> Self {
        let mut observed = Observed::new(now);
        // Agents are heard all the time.
        observed.lost_after = Span::from_millis(u64::MAX);
        Self {
            observed,
            pace,
            started: false,
            places: BTreeMap::new(),
            due: BTreeSet::new(),
            acting: BTreeMap::new(),
            measuring: Measuring::default(),
        }
    }

    /// When an agent next has something to tell by itself, or a measurement is due.
    pub(super) fn next_event(&self) -> Option<Timestamp> {
        let due = self.due.first().map(|(at, ..)| *at);
        sooner(due, self.measuring.next_event())
    }

    /// Lets every agent that has a new wish, or has got further, tell how far it is. `agents`:
    /// whose wish changed; `scopes`: whose rows did. Answers of which other scopes there is news.
    pub(super) fn look(
        &mut self,
        state: &State,
        now: Timestamp,
        agents: &BTreeSet<Name>,
        scopes: &BTreeSet<Name>,
    ) -> BTreeSet<Name> {
        let mut news = BTreeSet::new();
        while let Some((at, agent, scope)) = self.due.pop_first() {
            if at > now {
                self.due.insert((at, agent, scope));
                break;
            }
            if !scopes.contains(&scope) {
                self.tell(state, &agent, &scope, now);
                news.insert(scope);
            }
        }
        for scope in scopes {
            self.move_on(state, scope, now);
        }
        for agent in agents {
            if let Some(known) = state.agents.get(agent) {
                self.report(agent, now, |report| report.applied = known.generation);
            }
        }
        self.started = true;
        let measured = self.measuring.look(state, &mut self.observed, now, scopes);
        news.extend(measured);
        news
    }

    /// A scope's rows changed: everybody who acts for it tells.
    fn move_on(&mut self, state: &State, name: &Name, now: Timestamp) {
        let moving = state.scopes.get(name).and_then(|scope| {
            let moving = in_motion(state, scope)?;
            let known = self.acting.get(name).filter(|(ids, _)| *ids == moving);
            let agents = known.map(|(_, agents)| agents.clone());
            let agents = agents.unwrap_or_else(|| state.agents_of_scope(name));
            Some((moving, agents))
        });
        let before = match moving {
            Some(moving) => self.acting.insert(name.clone(), moving),
            None => self.acting.remove(name),
        };
        let acting = self.acting.get(name).map(|(_, agents)| agents.clone());
        let acting = acting.unwrap_or_default();
        if let Some((_, before)) = before {
            for agent in before.difference(&acting) {
                self.report(agent, now, |report| {
                    report.places.retain(|place| place.scope != *name);
                });
            }
        }
        for agent in &acting {
            self.tell(state, agent, name, now);
        }
    }

    /// An agent tells of one scope.
    fn tell(&mut self, state: &State, agent: &Name, scope: &Name, now: Timestamp) {
        let mut places = Vec::new();
        if self.acting.contains_key(scope) {
            for item in scope_items(state, scope, agent).0 {
                places.extend(self.place(agent, &item, now));
            }
        }
        self.report(agent, now, |report| {
            report.places.retain(|place| place.scope != *scope);
            report.places.extend(places);
        });
    }

    /// Changes what an agent last told.
    fn report(&mut self, agent: &Name, now: Timestamp, change: impl FnOnce(&mut Report)) {
        let agents = &mut self.observed.agents;
        if !agents.contains_key(agent) {
            agents.insert(agent.clone(), ObservedAgent::default());
        }
        if let Some(known) = agents.get_mut(agent) {
            known.last_contact = now;
            change(Arc::make_mut(known.report.get_or_insert_default()));
        }
    }

    fn place(&mut self, agent: &Name, item: &Assignment, now: Timestamp) -> Option<ObservedPlace> {
        let key = (agent.clone(), item.deployment);
        let count = match item.state {
            WishedState::Staged => 0,
            WishedState::Running | WishedState::Drained => item.count,
            WishedState::Absent => {
                self.places.remove(&key);
                return None;
            }
        };
        let stands = item.role != Role::Candidate || !self.started;
        let pace = if stands { Pace::default() } else { self.pace };
        let place = self.places.entry(key).or_insert_with(|| Place {
            staged_at: now + pace.staging,
            healthy_at: Vec::new(),
        });
        let up = now.max(place.staged_at) + pace.startup;
        place.healthy_at.resize(count as usize, up);
        let later = place.healthy_at.iter().copied().chain([place.staged_at]);
        if let Some(at) = later.filter(|at| *at > now).min() {
            self.due.insert((at, agent.clone(), item.scope.clone()));
        }
        let is_up = place.healthy_at.iter().any(|at| *at <= now);
        let ordinals = 0..count;
        Some(ObservedPlace {
            scope: item.scope.clone(),
            deployment: item.deployment,
            staged: place.staged_at <= now,
            instances: ordinals
                .zip(&place.healthy_at)
                .map(|(ordinal, at)| instance(item, ordinal, *at <= now))
                .collect(),
            weight: Some(if is_up { item.weight } else { Weight::ZERO }),
            open_requests: 0,
            drained: item.weight == Weight::ZERO,
            permanent_error: None,
            transient_error: None,
            checks: Vec::new(),
        })
    }
}

/// The deployments of a scope that agents are asked about; none: nothing moves there. A group under
/// way with the gate `healthy` asks for those of its members that have ended well too.
fn in_motion(state: &State, scope: &Scope) -> Option<Vec<DeploymentId>> {
    let asked = scope.active.filter(|id| {
        let active = state.deployments.get(id);
        active.is_some_and(|active| {
            let group = active.group.filter(|id| state.open_groups.contains_key(id));
            let group = group.and_then(|id| state.groups.get(&id));
            active.status == Status::Deleting
                || group.is_some_and(|group| group.rollout.gate == RolloutGate::Healthy)
        })
    });
    if scope.candidate.is_none() && scope.retired.is_empty() && asked.is_none() {
        return None;
    }
    let ids = scope.candidate.iter().chain(&scope.active);
    Some(ids.chain(&scope.retired).copied().collect())
}

fn instance(item: &Assignment, ordinal: u32, is_up: bool) -> ObservedInstance {
    ObservedInstance {
        id: format!("{}-{ordinal}", item.deployment.short()),
        ordinal,
        state: match is_up {
            true => InstanceState::Healthy,
            false => InstanceState::Starting,
        },
        restarts: 0,
        port: 0,
        pid: 0,
        start_stamp: Timestamp::ZERO,
        counters: Counters::default(),
        last_exit: None,
        cpu_basis_points: 0,
        memory_bytes: 0,
        app: Vec::new(),
    }
}
