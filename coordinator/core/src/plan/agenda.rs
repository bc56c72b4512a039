//! The planner's memory between its looks, so that a look costs what changed since the last one.
//!
//! [`plan`](super::plan) walks every scope where something goes on, waits or is left over. An agenda
//! answers the same, but asks a scope again only if its own rows changed, an agent that it rests on
//! was heard, what its gates read changed, or its time came. What rests on what is known here alone;
//! who adds a table to the state is made to decide about it by [`rests`].
//!
//! While a group is under way, or a policy asks for further tries, what one scope does rests on many
//! others: then it is the whole plan that is remembered, made anew at each look.
//!
//! Derived: a leader begins with an empty one. [`Agenda::sweep`] asks scopes again for no reason, a
//! few at a time, so that a reason that was overlooked delays a rollout and does not end it.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_shared::id::Name;
use tidegate_shared::time::Timestamp;

use super::{Plan, plan_scope};
use crate::auto;
use crate::command::Item;
use crate::observed::Observed;
use crate::state::{Scope, State};

/// See the module.
#[derive(Debug, Default)]
pub struct Agenda {
    /// The state that was looked at last; none: nothing was.
    seen: Option<State>,
    scopes: BTreeMap<Name, Known>,
    wakes: BTreeSet<(Timestamp, Name)>,
    /// Scopes that rest on what an agent says.
    by_agent: BTreeMap<Name, BTreeSet<Name>>,
    due: BTreeMap<Name, Vec<Item>>,
    /// Scopes that have releases to look at.
    auto: Vec<Item>,
    /// Everything, while scopes rest on each other.
    whole: Option<Plan>,
    /// To be asked with the next look for no reason.
    swept: BTreeSet<Name>,
    /// The last one that was swept.
    cursor: Option<Name>,
}

/// What is remembered of a scope that was asked.
#[derive(Debug, Default)]
struct Known {
    wake: Option<Timestamp>,
    agents: BTreeSet<Name>,
}

impl Agenda {
    /// Brings the agenda up to this state and these observations. `heard`: every agent of which
    /// anything was learnt since the last look. Answers how many scopes it asked.
    pub fn look(
        &mut self,
        state: &State,
        observed: &Observed,
        heard: &BTreeSet<Name>,
        now: Timestamp,
    ) -> usize {
        if !state.open_groups.is_empty() || super::retry::is_asked_for(state) {
            *self = Self {
                whole: Some(super::plan(state, observed, now)),
                ..Self::default()
            };
            return state.unfinished_scopes().count();
        }
        self.whole = None;
        let stale = self.stale(state, heard, now);
        self.swept.clear();
        for name in &stale {
            self.ask(state, observed, now, name);
        }
        self.auto = auto::due(state, now);
        self.seen = Some(state.clone());
        stale.len()
    }

    /// What should be proposed, as [`plan`](super::plan) puts it.
    pub fn due(&self) -> impl Iterator<Item = &Item> {
        let mut counted = false;
        let scopes = self.due.values().flatten();
        let scopes = scopes.filter(move |item| super::group::is_admitted(&mut counted, item));
        let whole = self.whole.iter().flat_map(|plan| &plan.commands);
        scopes.chain(&self.auto).chain(whole)
    }

    /// The earliest instant at which the answer could differ without new input.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        let scopes = self.wakes.first().map(|(at, _)| *at);
        let whole = self.whole.as_ref().and_then(|plan| plan.next_wakeup);
        super::sooner(scopes, whole)
    }

    /// Has the next look ask so many scopes again, the next ones each time.
    pub fn sweep(&mut self, count: usize) {
        let after = match self.cursor.take() {
            Some(cursor) => (
                std::ops::Bound::Excluded(cursor),
                std::ops::Bound::Unbounded,
            ),
            None => (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded),
        };
        let names = self.scopes.range(after).map(|(name, _)| name);
        self.swept.extend(names.take(count).cloned());
        if self.swept.len() >= count {
            self.cursor = self.swept.last().cloned();
        }
    }

    /// Scopes whose answer may differ from what is remembered.
    fn stale(&self, state: &State, heard: &BTreeSet<Name>, now: Timestamp) -> BTreeSet<Name> {
        let Some(seen) = &self.seen else {
            return self.all(state);
        };
        if rests(seen, state) || agents_came_or_went(seen, state) {
            return self.all(state);
        }
        let mut stale: BTreeSet<Name> = seen.scopes.changed(&state.scopes).cloned().collect();
        for id in seen.deployments.changed(&state.deployments) {
            let rows = [state.deployments.get(id), seen.deployments.get(id)];
            let scopes = rows.into_iter().flatten().map(|d| &d.origin.scope);
            stale.extend(scopes.cloned());
        }
        if !stale.is_empty() && gates_read_others(state) {
            let waiting = state.unfinished_scopes();
            let waiting = waiting.filter(|(_, scope)| !scope.waiting.is_empty());
            stale.extend(waiting.map(|(name, _)| name.clone()));
        }
        let wished = seen.agents.changed(&state.agents);
        for agent in wished.chain(heard) {
            stale.extend(self.by_agent.get(agent).into_iter().flatten().cloned());
        }
        let due = self.wakes.iter().take_while(|(at, _)| *at <= now);
        stale.extend(due.map(|(_, name)| name.clone()));
        stale.extend(self.swept.iter().cloned());
        stale
    }

    fn all(&self, state: &State) -> BTreeSet<Name> {
        let unfinished = state.unfinished_scopes().map(|(name, _)| name);
        unfinished.chain(self.scopes.keys()).cloned().collect()
    }

    fn ask(&mut self, state: &State, observed: &Observed, now: Timestamp, name: &Name) {
        self.forget(name);
        let Some(scope) = state.scopes.get(name).filter(|s| s.is_unfinished()) else {
            return;
        };
        let plan = plan_scope(state, observed, now, name);
        let known = Known {
            wake: plan.next_wakeup,
            agents: rests_on_agents(state, name, scope),
        };
        self.wakes.extend(known.wake.map(|at| (at, name.clone())));
        for agent in &known.agents {
            let scopes = self.by_agent.entry(agent.clone()).or_default();
            scopes.insert(name.clone());
        }
        if !plan.commands.is_empty() {
            self.due.insert(name.clone(), plan.commands);
        }
        self.scopes.insert(name.clone(), known);
    }

    fn forget(&mut self, name: &Name) {
        self.due.remove(name);
        let Some(known) = self.scopes.remove(name) else {
            return;
        };
        if let Some(at) = known.wake {
            self.wakes.remove(&(at, name.clone()));
        }
        for agent in known.agents {
            if let Some(scopes) = self.by_agent.get_mut(&agent) {
                scopes.remove(name);
                if scopes.is_empty() {
                    self.by_agent.remove(&agent);
                }
            }
        }
    }
}

/// The agents whose words decide what comes next in a scope. What only waits asks none.
fn rests_on_agents(state: &State, name: &Name, scope: &Scope) -> BTreeSet<Name> {
    let only_waits = scope.candidate.is_none() && scope.retired.is_empty() && !scope.is_stopping();
    if only_waits {
        return BTreeSet::new();
    }
    state.agents_of_scope(name)
}

/// Whether anything differs that many scopes may rest on. Every table of the state is decided about
/// here.
fn rests(seen: &State, state: &State) -> bool {
    let State {
        // Nothing is planned by them.
        at: _,
        last_revision: _,
        cluster: _,
        strategies: _,
        parameters: _,
        removed_agents: _,
        tokens: _,
        short_ids: _,
        history: _,
        requests: _,
        planner_requests: _,
        events: _,
        last_hash: _,
        archive: _,
        // Looked at row by row.
        scopes: _,
        agents: _,
        deployments: _,
        // Read by rules alone; a change comes with one of a scope. See `gates_read_others`.
        tracks: _,
        gates_revision: _,
        // Asked at each look.
        auto: _,
        // Of groups: while one is under way the whole plan is made.
        past_freezes: _,
        groups: _,
        group_names: _,
        open_groups: _,
        ended_groups: _,
        applications,
        environments,
        policies,
        releases,
        people,
        skips,
        freezes,
    } = state;
    !(applications.ptr_eq(&seen.applications)
        && environments.ptr_eq(&seen.environments)
        && policies.ptr_eq(&seen.policies)
        && releases.ptr_eq(&seen.releases)
        && people.ptr_eq(&seen.people)
        && skips.ptr_eq(&seen.skips)
        && freezes.ptr_eq(&seen.freezes))
}

/// Whether the gates of a waiting deployment may read what goes on in other scopes.
fn gates_read_others(state: &State) -> bool {
    !state.policies.is_empty() || !state.freezes.is_empty()
}

/// Whether a selector may match otherwise than before.
fn agents_came_or_went(seen: &State, state: &State) -> bool {
    seen.agents.changed(&state.agents).any(|name| {
        let (before, after) = (seen.agents.get(name), state.agents.get(name));
        before.map(|agent| &agent.meta.labels) != after.map(|agent| &agent.meta.labels)
    })
}
