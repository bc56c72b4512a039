//! Agents as one would wish them: connected, sound, and as quick as stated.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_shared::assignment::{
    Assignment, Counters, Generation, InstanceState, ObservedInstance, ObservedPlace, Report, Role,
    WishedState,
};
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::weight::Weight;

use super::Pace;
use crate::desired::scope_items;
use crate::observed::Observed;
use crate::state::{Scope, State, Status};

/// What stands, or comes up, of one deployment on one agent.
#[derive(Debug, Clone, Default)]
struct Place {
    staged_at: Timestamp,
    /// Of each instance.
    healthy_at: Vec<Timestamp>,
}

/// See the module.
pub(super) struct World {
    /// What the planner is shown.
    pub(super) observed: Observed,
    /// Of versions that come while it is followed; what is there at the beginning stands.
    pace: Pace,
    started: bool,
    sequence: u64,
    places: BTreeMap<(Name, DeploymentId), Place>,
    /// The wish that each agent last told of.
    told: BTreeMap<Name, Generation>,
    /// When an agent has something new to tell without a new wish.
    due: BTreeSet<(Timestamp, Name)>,
    /// Agents of scopes in motion, as long as the same deployments are.
    acting: BTreeMap<Name, (Vec<DeploymentId>, BTreeSet<Name>)>,
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
            sequence: 0,
            places: BTreeMap::new(),
            told: BTreeMap::new(),
            due: BTreeSet::new(),
            acting: BTreeMap::new(),
        }
    }

    /// When an agent next has something to tell by itself.
    pub(super) fn next_event(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Lets every agent that has a new wish, or has got further, tell how far it is.
    pub(super) fn look(&mut self, state: &State, now: Timestamp) {
        let mut ready = BTreeSet::new();
        while let Some((at, agent)) = self.due.first().cloned() {
            if at > now {
                break;
            }
            self.due.remove(&(at, agent.clone()));
            ready.insert(agent);
        }
        for (agent, known) in &state.agents {
            if self.told.get(agent) != Some(&known.generation) {
                ready.insert(agent.clone());
            }
        }
        if ready.is_empty() {
            return;
        }
        let moving = self.moving(state, &ready);
        for agent in ready {
            let Some(known) = state.agents.get(&agent) else {
                continue;
            };
            let scopes = moving.get(&agent).map_or(&[][..], Vec::as_slice);
            let places = self.places_of(state, &agent, scopes, now);
            self.sequence += 1;
            let report = Report {
                start: 1,
                sequence: self.sequence,
                applied: known.generation,
                places,
                ..Report::default()
            };
            self.told.insert(agent.clone(), known.generation);
            self.observed.absorb(&agent, &agent, report, now);
        }
        self.started = true;
    }

    /// For each of these agents the scopes in motion that it acts for: nothing else is asked of it.
    fn moving(&mut self, state: &State, ready: &BTreeSet<Name>) -> BTreeMap<Name, Vec<Name>> {
        let mut found: BTreeMap<Name, Vec<Name>> = BTreeMap::new();
        for (name, scope) in &state.scopes {
            let Some(moving) = in_motion(state, scope) else {
                self.acting.remove(name);
                continue;
            };
            let known = self.acting.get(name).filter(|(ids, _)| *ids == moving);
            if known.is_none() {
                let agents = state.agents_of_scope(name);
                self.acting.insert(name.clone(), (moving, agents));
            }
            let agents = self.acting.get(name).map(|(_, agents)| agents);
            for agent in agents.into_iter().flatten() {
                if ready.contains(agent) {
                    found.entry(agent.clone()).or_default().push(name.clone());
                }
            }
        }
        found
    }

    fn places_of(
        &mut self,
        state: &State,
        agent: &Name,
        scopes: &[Name],
        now: Timestamp,
    ) -> Vec<ObservedPlace> {
        let mut places = Vec::new();
        for scope in scopes {
            for item in scope_items(state, scope, agent).0 {
                places.extend(self.place(agent, &item, now));
            }
        }
        places
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
            self.due.insert((at, agent.clone()));
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
/// way asks for those of its members that have ended well too.
fn in_motion(state: &State, scope: &Scope) -> Option<Vec<DeploymentId>> {
    let asked = scope.active.filter(|id| {
        let active = state.deployments.get(id);
        active.is_some_and(|active| {
            let group = active.group.as_ref();
            active.status == Status::Deleting
                || group.is_some_and(|group| state.open_groups.get(group).is_some())
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
