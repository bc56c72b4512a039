//! The planner's memory between its looks, so that a look costs what changed since the last one.
//!
//! [`plan`](super::plan) asks every group under way and every scope where something goes on, waits or
//! is left over. An agenda answers the same, but asks again only where the answer may differ: the
//! scope's own rows changed, an agent that it rests on was heard, or its time came. What rests on what
//! is known here alone; who adds a table to the state is made to decide about it by
//! `is_ground_shaken`.
//!
//! A scope whose gates read what goes on elsewhere (rules, a group, another try) is not asked alone:
//! those and the groups are asked together, after any change of what they read, and not while
//! nothing moves. As long as nobody wrote rules that is little: the groups' own rows, their members
//! that wait, and where a group has a gate those that started. So a member of a large group that
//! moves costs what it touches.
//!
//! Derived: a leader begins with an empty one. [`Agenda::sweep`] asks scopes again for no reason, a
//! few at a time, so that a reason that was overlooked delays a rollout and does not end it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use tidegate_shared::id::Name;
use tidegate_shared::spec::RolloutGate;
use tidegate_shared::time::Timestamp;

use super::{Plan, asked, plan_over, plan_scope, retry, sooner};
use crate::auto;
use crate::command::Item;
use crate::observed::Observed;
use crate::state::{Scope, State, Status};

/// See the module.
#[derive(Debug, Default)]
pub struct Agenda {
    /// The state that was looked at last; none: nothing was.
    seen: Option<State>,
    scopes: BTreeMap<Name, Known>,
    wakes: BTreeSet<(Timestamp, Name)>,
    /// Scopes that rest on what an agent says.
    by_agent: BTreeMap<Name, BTreeSet<Name>>,
    /// What is due in scopes that are asked alone.
    due: BTreeMap<Name, Vec<Item>>,
    /// Scopes that are asked together.
    together: BTreeSet<Name>,
    /// What is due in these and in groups.
    shared: Plan,
    /// Scopes that have releases to look at.
    auto: Vec<Item>,
    /// To be asked with the next look for no reason.
    swept: BTreeSet<Name>,
    /// The last one that was swept.
    cursor: Option<Name>,
}

/// What is remembered of a scope.
#[derive(Debug, Default)]
struct Known {
    wake: Option<Timestamp>,
    agents: BTreeSet<Name>,
}

/// What has to be asked again.
struct Stale {
    scopes: BTreeSet<Name>,
    /// What is asked together.
    shared: bool,
}

impl Agenda {
    /// Brings the agenda up to this state and these observations. `heard`: every agent of which
    /// anything was learnt since the last look. Answers how many scopes were asked alone.
    pub fn look(
        &mut self,
        state: &State,
        observed: &Observed,
        heard: &BTreeSet<Name>,
        now: Timestamp,
    ) -> usize {
        let Stale { scopes, mut shared } = self.stale(state, heard, now);
        self.swept.clear();
        let retries = retry::is_asked_for(state);
        for name in &scopes {
            shared |= self.ask(state, observed, now, name, retries);
        }
        if shared {
            self.shared = match self.together.is_empty() && state.open_groups.is_empty() {
                true => Plan::default(),
                false => plan_over(state, observed, now, &self.together),
            };
        }
        self.auto = auto::due(state, now);
        self.seen = Some(state.clone());
        scopes.len()
    }

    /// What should be proposed; at most one per deployment.
    pub fn due(&self) -> impl Iterator<Item = &Item> {
        self.shared
            .commands
            .iter()
            .chain(self.due.values().flatten())
            .chain(&self.auto)
    }

    /// The earliest instant at which the answer could differ without new input.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        let alone = self.wakes.first().map(|(at, _)| *at);
        sooner(alone, self.shared.next_wakeup)
    }

    /// Has the next look ask so many scopes again, the next ones each time.
    pub fn sweep(&mut self, count: usize) {
        let after = match self.cursor.take() {
            Some(cursor) => Bound::Excluded(cursor),
            None => Bound::Unbounded,
        };
        let names = self.scopes.range((after, Bound::Unbounded));
        let names: Vec<Name> = names.map(|(name, _)| name).take(count).cloned().collect();
        if names.len() == count {
            self.cursor = names.last().cloned();
        }
        self.swept.extend(names);
    }

    fn stale(&self, state: &State, heard: &BTreeSet<Name>, now: Timestamp) -> Stale {
        let everything = |agenda: &Self| Stale {
            scopes: agenda.scopes.keys().cloned().chain(asked(state)).collect(),
            shared: true,
        };
        let Some(seen) = &self.seen else {
            return everything(self);
        };
        if is_ground_shaken(seen, state) || have_agents_come_or_gone(seen, state) {
            return everything(self);
        }
        let mut scopes: BTreeSet<Name> = seen.scopes.changed(&state.scopes).cloned().collect();
        for id in seen.deployments.changed(&state.deployments) {
            let rows = [state.deployments.get(id), seen.deployments.get(id)];
            let changed = rows.into_iter().flatten().map(|d| &d.origin.scope);
            scopes.extend(changed.cloned());
        }
        let due = self.shared.next_wakeup.is_some_and(|at| at <= now);
        let mut shared = due
            || scopes.iter().any(|name| is_read_by_others(state, name))
            || state.gates_revision != seen.gates_revision
            || !state.groups.ptr_eq(&seen.groups)
            || !state.past_freezes.ptr_eq(&seen.past_freezes)
            || (!heard.is_empty() && do_groups_watch_agents(state));
        let wished = seen.agents.changed(&state.agents);
        for agent in wished.chain(heard) {
            scopes.extend(self.by_agent.get(agent).into_iter().flatten().cloned());
        }
        let due = self.wakes.iter().take_while(|(at, _)| *at <= now);
        scopes.extend(due.map(|(_, name)| name.clone()));
        scopes.extend(self.swept.iter().cloned());
        shared |= scopes.iter().any(|name| self.together.contains(name));
        Stale { scopes, shared }
    }

    /// Asks a scope, or puts it among those that are asked together; whether it did that.
    fn ask(
        &mut self,
        state: &State,
        observed: &Observed,
        now: Timestamp,
        name: &Name,
        retries: bool,
    ) -> bool {
        let was_shared = self.forget(name);
        let Some(scope) = state.scopes.get(name) else {
            return was_shared;
        };
        let is_shared = reads_others(state, name, scope, retries);
        if !is_shared && !scope.is_unfinished() {
            return was_shared;
        }
        let mut known = Known {
            wake: None,
            agents: agents_below(state, name, scope),
        };
        if is_shared {
            self.together.insert(name.clone());
        } else {
            let plan = plan_scope(state, observed, now, name);
            known.wake = plan.next_wakeup;
            self.wakes.extend(known.wake.map(|at| (at, name.clone())));
            if !plan.commands.is_empty() {
                self.due.insert(name.clone(), plan.commands);
            }
        }
        for agent in &known.agents {
            let scopes = self.by_agent.entry(agent.clone()).or_default();
            scopes.insert(name.clone());
        }
        self.scopes.insert(name.clone(), known);
        was_shared || is_shared
    }

    /// Whether it was asked together with others.
    fn forget(&mut self, name: &Name) -> bool {
        self.due.remove(name);
        let Some(known) = self.scopes.remove(name) else {
            return false;
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
        self.together.remove(name)
    }
}

/// Whether what comes next in a scope may rest on what goes on in others.
fn reads_others(state: &State, name: &Name, scope: &Scope, retries: bool) -> bool {
    let has_rules = !state.policies.is_empty() || !state.freezes.is_empty();
    let mut waiting = scope.waiting.iter();
    let member = |id| {
        let deployment = state.deployments.get(id);
        deployment.is_some_and(|d| state.membership(d).is_some())
    };
    if !scope.waiting.is_empty() && (has_rules || waiting.any(member)) {
        return true;
    }
    let newest = || state.history_of(name).next_back();
    retries && newest().is_some_and(|newest| newest.status == Status::Failed)
}

/// Whether what comes next elsewhere may rest on what goes on in a scope that is asked alone: rules
/// may read anything, the gate of a group what its members have come to.
fn is_read_by_others(state: &State, name: &Name) -> bool {
    if !state.policies.is_empty() || !state.freezes.is_empty() {
        return true;
    }
    let groups = state.open_groups.keys();
    let mut groups = groups.filter_map(|id| state.groups.get(id));
    groups.any(|group| group.rollout.gate != RolloutGate::None && group.scopes.contains_key(name))
}

/// The agents whose words decide what comes next in a scope. What only waits asks none.
fn agents_below(state: &State, name: &Name, scope: &Scope) -> BTreeSet<Name> {
    let moves = scope.candidate.is_some() || !scope.retired.is_empty() || scope.is_stopping();
    match moves {
        true => state.agents_of_scope(name),
        false => BTreeSet::new(),
    }
}

/// Whether anything differs that every scope may rest on. Each table of the state is decided about
/// here.
fn is_ground_shaken(seen: &State, state: &State) -> bool {
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
        // Read by scopes that are asked together; a change of them comes with one of a scope where
        // there are rules, or is looked for.
        tracks: _,
        gates_revision: _,
        // Asked at each look.
        auto: _,
        // Of groups, as above.
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
        teams,
        role_bindings,
        skips,
        freezes,
    } = state;
    !(applications.ptr_eq(&seen.applications)
        && environments.ptr_eq(&seen.environments)
        && policies.ptr_eq(&seen.policies)
        && releases.ptr_eq(&seen.releases)
        && teams.ptr_eq(&seen.teams)
        && role_bindings.ptr_eq(&seen.role_bindings)
        && people.ptr_eq(&seen.people)
        && skips.ptr_eq(&seen.skips)
        && freezes.ptr_eq(&seen.freezes))
}

/// Whether some group under way asks how its members fare right now.
fn do_groups_watch_agents(state: &State) -> bool {
    let mut groups = state
        .open_groups
        .keys()
        .filter_map(|id| state.groups.get(id));
    groups.any(|group| group.rollout.gate == RolloutGate::Healthy)
}

/// Whether a selector may match otherwise than before.
fn have_agents_come_or_gone(seen: &State, state: &State) -> bool {
    seen.agents.changed(&state.agents).any(|name| {
        let (before, after) = (seen.agents.get(name), state.agents.get(name));
        before.map(|agent| &agent.meta.labels) != after.map(|agent| &agent.meta.labels)
    })
}
