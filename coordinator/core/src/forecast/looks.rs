//! Whom the planner is asked about at each look of the rehearsal: those whose answer may differ.
//!
//! `plan` asks everything at every look, which for a group of thousands is work by the square of it.
//! Here a scope is asked when its rows changed, its agents had news, or its time came. A deployment
//! that waits rests on what is in its way: on time, on its group (a closed gate or wave), or on a rule
//! about what goes on elsewhere. Those that rest on the same thing stand in the order in which the
//! planner would ask them, and as long as the first one is held up, so are the others. That nothing
//! is overlooked is held by tests: at every look the commands are those of `plan`.
//!
//! More is taken for granted than a leader may: nobody edits anything, so policies, labels and
//! agents stay what they are.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_shared::id::{DeploymentId, GroupId, Name};
use tidegate_shared::time::Timestamp;

use super::followed::Followed;
use super::rests::{Key, Line, Rest, member_key};
use crate::auto;
use crate::command::Item;
use crate::observed::Observed;
use crate::plan::group::{Round, Standing};
use crate::plan::{Plan, add_scope, sooner};
use crate::state::{Deployment, Group, Scope, State};

/// What happened since the last look.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Scopes with rows that changed.
    pub(super) scopes: BTreeSet<Name>,
    /// Others where an agent or a measurement had something to tell.
    pub(super) heard: BTreeSet<Name>,
    /// Applications of which a deployment ended.
    pub(super) ended: BTreeSet<Name>,
}

impl News {
    fn is_empty(&self) -> bool {
        self.scopes.is_empty() && self.heard.is_empty()
    }
}

/// What is found at one look.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// As `plan` tells them.
    pub(super) commands: Vec<Item>,
    /// Deployments that were asked and go on waiting.
    pub(super) waiting: Vec<DeploymentId>,
}

/// What is known of a scope that was asked.
#[derive(Debug, Default)]
struct Known {
    wake: Option<Timestamp>,
    lines: Vec<(Line, Key)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Looks {
    scopes: BTreeMap<Name, Known>,
    wakes: BTreeSet<(Timestamp, Name)>,
    lines: BTreeMap<Line, BTreeSet<Key>>,
    /// Lines whose first one was only put off.
    again: BTreeSet<Line>,
    /// Scopes that had something to do, which may have been refused.
    unsettled: BTreeSet<Name>,
    groups: BTreeMap<GroupId, Followed>,
    /// How much was asked so far.
    pub(super) work: u64,
}

/// One look under way.
struct Asking<'a> {
    round: Round<'a>,
    found: Look,
    /// Lines whose first one is still to be asked.
    open: BTreeSet<Line>,
    /// Scopes that are asked.
    scopes: BTreeSet<Name>,
    /// What deployments that were asked as members go on waiting for.
    rests: BTreeMap<DeploymentId, Option<Line>>,
}

impl Looks {
    /// When to look again at the latest.
    pub(super) fn next_wakeup(&self) -> Option<Timestamp> {
        let groups = self.groups.values().filter_map(|group| group.wake);
        sooner(self.wakes.first().map(|(at, _)| *at), groups.min())
    }

    /// Looks at a scope no later than that.
    pub(super) fn wake(&mut self, scope: &Name, at: Timestamp) {
        let known = self.scopes.entry(scope.clone()).or_default();
        if let Some(before) = known.wake {
            self.wakes.remove(&(before, scope.clone()));
        }
        let at = known.wake.map_or(at, |before| before.min(at));
        known.wake = Some(at);
        self.wakes.insert((at, scope.clone()));
    }

    /// Where a group stands.
    pub(super) fn standing<'a>(
        &self,
        state: &'a State,
        observed: &'a Observed,
        now: Timestamp,
        group: &'a Group,
    ) -> Option<Standing<'a>> {
        let kept = &self.groups.get(&group.id)?.kept;
        Some(Standing::of(state, observed, now, group, kept))
    }

    /// What is due. `seen`: the state of the last look, none at the first.
    pub(super) fn look(
        &mut self,
        seen: Option<&State>,
        state: &State,
        observed: &Observed,
        now: Timestamp,
        news: &News,
    ) -> Look {
        let mut awake = self.awake(now, news, seen.is_none());
        awake.extend(self.begun(seen, state));
        for name in &awake {
            self.forget(name);
        }
        let standings = self.follow(seen, state, observed, now, news);
        let mut asking = Asking {
            round: Round::with(state, observed, now, standings),
            found: Look::default(),
            open: self.open(news, seen.is_none()),
            scopes: awake,
            rests: BTreeMap::new(),
        };
        self.ask_groups(&mut asking, now, seen.is_none());
        self.ask_members(&mut asking);
        self.ask_scopes(&mut asking);
        let mut found = asking.found;
        found.commands.extend(auto::due(state, now));
        found
    }

    /// Scopes that are to be asked.
    fn awake(&mut self, now: Timestamp, news: &News, first: bool) -> BTreeSet<Name> {
        let mut awake = std::mem::take(&mut self.unsettled);
        awake.extend(news.scopes.iter().chain(&news.heard).cloned());
        let due = self.wakes.iter().take_while(|(at, _)| *at <= now);
        awake.extend(due.map(|(_, name)| name.clone()));
        if first || news.is_empty() {
            return awake;
        }
        for (line, keys) in &self.lines {
            let stirs = match line {
                Line::Group(_) | Line::Rule(..) => false,
                Line::Elsewhere(own) => news.ended.iter().any(|ended| ended != own),
                Line::Any => true,
            };
            if stirs {
                awake.extend(keys.iter().map(|key| key.scope().clone()));
            }
        }
        awake
    }

    /// Members of groups whose rollout has begun just now: each is asked once what people have to
    /// say to it, whenever its turn comes.
    fn begun(&self, seen: Option<&State>, state: &State) -> BTreeSet<Name> {
        let open = state.open_groups.keys();
        let begun = open.filter(|id| {
            let begun = |state: &State| state.groups.get(id).is_some_and(|g| g.begun_at.is_some());
            begun(state) && seen.is_some_and(|seen| !begun(seen))
        });
        let lines = begun.filter_map(|id| self.lines.get(&Line::Group(*id)));
        lines.flatten().map(|key| key.scope().clone()).collect()
    }

    /// Lines whose first one may have come free.
    fn open(&mut self, news: &News, first: bool) -> BTreeSet<Line> {
        let again = std::mem::take(&mut self.again);
        let ended = first || !news.ended.is_empty();
        let lines = self.lines.keys().filter(|line| match line {
            Line::Group(_) => true,
            Line::Rule(..) => ended || again.contains(line),
            Line::Elsewhere(_) | Line::Any => false,
        });
        lines.cloned().collect()
    }

    fn forget(&mut self, name: &Name) {
        let Some(known) = self.scopes.remove(name) else {
            return;
        };
        if let Some(at) = known.wake {
            self.wakes.remove(&(at, name.clone()));
        }
        for (line, key) in known.lines {
            if let Some(keys) = self.lines.get_mut(&line) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.lines.remove(&line);
                }
            }
        }
    }

    /// Brings what is known of the groups under way up to date; where they stand.
    fn follow<'a>(
        &mut self,
        seen: Option<&State>,
        state: &'a State,
        observed: &'a Observed,
        now: Timestamp,
        news: &News,
    ) -> BTreeMap<GroupId, Standing<'a>> {
        let open = &state.open_groups;
        self.groups.retain(|id, _| open.contains_key(id));
        let groups = open.keys().filter_map(|id| state.groups.get(id));
        let mut standings = BTreeMap::new();
        for group in groups {
            let before = seen.and_then(|seen| seen.groups.get(&group.id));
            let followed = self.groups.entry(group.id).or_default();
            followed.learn(state, observed, now, before, group, news);
            let standing = Standing::of(state, observed, now, group, &followed.kept).silent();
            standings.insert(group.id, standing);
        }
        standings
    }

    fn ask_groups(&mut self, asking: &mut Asking<'_>, now: Timestamp, first: bool) {
        for (id, followed) in &mut self.groups {
            let is_due = followed.is_due || followed.wake.is_some_and(|at| at <= now);
            if !(is_due || first) {
                continue;
            }
            self.work += 1;
            let Some((next, item)) = asking.round.of_group(*id) else {
                continue;
            };
            followed.wake = next.wake;
            followed.is_due = item.is_some();
            asking.found.commands.extend(item);
        }
    }

    /// Asks members of groups in their order, whichever scopes they are in.
    fn ask_members(&mut self, asking: &mut Asking<'_>) {
        let state = asking.round.state;
        let awake = asking.scopes.iter();
        let mut queue: BTreeSet<Key> = awake.filter_map(|name| member_key(state, name)).collect();
        while let Some((line, key)) =
            self.first(&queue, asking, &|key| matches!(key, Key::Member(..)))
        {
            if let Some(line) = &line
                && asking.is_shut(line, &key)
            {
                asking.open.remove(line);
                continue;
            }
            queue.remove(&key);
            let name = key.scope().clone();
            self.forget(&name);
            asking.scopes.insert(name.clone());
            let Some(scope) = state.scopes.get(&name) else {
                continue;
            };
            let newest = scope.waiting.last();
            if let Some(newest) = newest.and_then(|id| state.deployments.get(id)) {
                let rest = self.ask(asking, &name, scope, newest);
                asking.close(line, rest.as_ref());
            }
        }
    }

    /// The first one to be asked: of those that are awake, or of a line.
    fn first(
        &self,
        queue: &BTreeSet<Key>,
        asking: &Asking<'_>,
        of: &dyn Fn(&Key) -> bool,
    ) -> Option<(Option<Line>, Key)> {
        let mut first = queue.first().map(|key| (None, key));
        for line in &asking.open {
            // Members come first, and are asked first.
            let keys = self.lines.get(line).and_then(BTreeSet::first);
            let Some(key) = keys.filter(|key| of(key)) else {
                continue;
            };
            if first.as_ref().is_none_or(|(_, first)| key < *first) {
                first = Some((Some(line.clone()), key));
            }
        }
        first.map(|(line, key)| (line, key.clone()))
    }

    /// Asks a deployment that waits; what it rests on, if it goes on waiting.
    fn ask(
        &mut self,
        asking: &mut Asking<'_>,
        name: &Name,
        scope: &Scope,
        deployment: &Deployment,
    ) -> Option<Line> {
        self.work += 1;
        let next = asking.round.ask(name, scope, deployment);
        if next.action.is_some() {
            asking.rests.insert(deployment.id, None);
            return None;
        }
        asking.found.waiting.push(deployment.id);
        let rest = Rest::of(&asking.round, name, scope, deployment);
        if let Rest::PutOff(line) = &rest {
            self.again.insert(line.clone());
        }
        let line = rest.line();
        asking.rests.insert(deployment.id, line.clone());
        line
    }

    /// Asks every scope that is awake, in order of name.
    fn ask_scopes(&mut self, asking: &mut Asking<'_>) {
        let state = asking.round.state;
        let scopes = std::mem::take(&mut asking.scopes);
        let mut queue: BTreeSet<Key> = scopes.into_iter().map(Key::Other).collect();
        while let Some((line, key)) =
            self.first(&queue, asking, &|key| matches!(key, Key::Other(_)))
        {
            queue.remove(&key);
            let name = key.scope().clone();
            self.forget(&name);
            let Some(scope) = state.scopes.get(&name) else {
                continue;
            };
            let mut known = Known::default();
            for id in scope.waiting.iter().rev() {
                let Some(waiting) = state.deployments.get(id) else {
                    continue;
                };
                let rest = match asking.rests.remove(id) {
                    Some(rest) => rest,
                    None => self.ask(asking, &name, scope, waiting),
                };
                asking.close(line.clone(), rest.as_ref());
                let key = member_key(state, &name).filter(|_| scope.waiting.last() == Some(id));
                let key = key.unwrap_or_else(|| Key::Other(name.clone()));
                known.lines.extend(rest.map(|rest| (rest, key)));
            }
            self.work += 1;
            let mut plan = Plan::default();
            add_scope(&mut plan, &mut asking.round, &name, scope);
            if !plan.commands.is_empty() {
                self.unsettled.insert(name.clone());
            }
            asking.found.commands.extend(plan.commands);
            known.wake = plan.next_wakeup;
            self.keep(name, known);
        }
    }

    fn keep(&mut self, name: Name, known: Known) {
        self.wakes.extend(known.wake.map(|at| (at, name.clone())));
        for (line, key) in &known.lines {
            let keys = self.lines.entry(line.clone()).or_default();
            keys.insert(key.clone());
        }
        self.scopes.insert(name, known);
    }
}

impl Asking<'_> {
    /// Whether a line of a group is held up as a whole, so that none of it needs to be asked.
    fn is_shut(&self, line: &Line, key: &Key) -> bool {
        let Line::Group(id) = line else {
            return false;
        };
        let standing = self.round.standing(*id);
        standing.is_some_and(|standing| {
            let number = standing.group.scopes.get(key.scope());
            number.is_some_and(|number| standing.shut(*number).is_some())
        })
    }

    /// A line whose first one goes on resting on it is held up.
    fn close(&mut self, line: Option<Line>, rest: Option<&Line>) {
        if let Some(line) = line
            && rest == Some(&line)
        {
            self.open.remove(&line);
        }
    }
}
