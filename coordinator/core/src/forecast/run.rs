//! The rehearsal: planner and `apply` in turn on a copy of the state, from one instant to the next.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::time::{Span, Timestamp};

use super::looks::{Looks, News};
use super::remarks;
use super::world::World;
use super::{Cut, Forecast, HORIZON, Member, Question, moments};
use crate::apply::apply;
use crate::command::{Action, Command, Entry, Item, Outcome, Reply, RequestKey};
use crate::deployment::phase;
use crate::plan::{asked, sooner};
use crate::policy::guardrail;
use crate::rejection::Rejection;
use crate::state::{Deployment, State, Status};

/// Log index of the rehearsal: above every real one, with room behind it.
const REHEARSAL: u64 = u64::MAX / 2;

/// More rounds at one instant, and for each member, are a planner that never rests.
const MOST_ROUNDS: usize = 500;

/// Commands and questions to the planner in all: minutes of work, where nobody's patience ends
/// sooner.
const MOST_WORK: u64 = 4_000_000;

/// How often patience is asked for: after so much work.
const LOOKS_UP: u64 = 250;

/// A member with what its record was when last looked at.
pub(super) struct Tracked {
    pub(super) member: Member,
    last: Option<Deployment>,
    /// It has rules that would be judged.
    pub(super) judged: bool,
    /// Windows that were open at its start, with when they close.
    pub(super) closing: Vec<(String, Timestamp)>,
}

/// See the module.
pub(super) struct Run<'a> {
    pub(super) question: &'a Question,
    /// Whether somebody still waits for the answer.
    goes_on: &'a dyn Fn() -> bool,
    pub(super) state: State,
    /// As it was when the planner looked last.
    seen: Option<State>,
    pub(super) world: World,
    pub(super) looks: Looks,
    pub(super) now: Timestamp,
    index: u64,
    /// The work after which patience is asked for.
    looks_up: u64,
    pub(super) members: Vec<Tracked>,
    /// Members that have not ended.
    open: usize,
    /// Positions in `members`.
    pub(super) by_scope: BTreeMap<Name, usize>,
    /// Deployments that waited in the members' scopes before.
    pub(super) older: BTreeMap<Name, Vec<DeploymentId>>,
    /// When people have to do something for a member, by position.
    pub(super) appointments: BTreeSet<(Timestamp, usize)>,
    /// Scopes to be asked again though none of their rows changed.
    pub(super) stirred: BTreeSet<Name>,
    /// Members that were asked and went on waiting since all was at rest.
    pub(super) asked: BTreeSet<usize>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        state: &State,
        question: &'a Question,
        goes_on: &'a dyn Fn() -> bool,
    ) -> Self {
        let now = question.now.max(state.at);
        Self {
            question,
            goes_on,
            state: state.clone(),
            seen: None,
            world: World::new(now, question.pace),
            looks: Looks::default(),
            now,
            index: REHEARSAL,
            looks_up: 0,
            members: Vec::new(),
            open: 0,
            by_scope: BTreeMap::new(),
            older: BTreeMap::new(),
            appointments: BTreeSet::new(),
            stirred: BTreeSet::new(),
            asked: BTreeSet::new(),
        }
    }

    pub(super) fn follow(mut self, lost: &[Name]) -> Result<Forecast, Rejection> {
        let at = self.question.at.max(self.now);
        let mut cut = None;
        if at > self.now {
            cut = self.until(at).err();
            self.now = at;
        }
        self.ask()?;
        if cut.is_none() {
            cut = match self.until(at + HORIZON) {
                Ok(()) if self.is_over() => None,
                Ok(()) => Some(Cut::Horizon),
                Err(cut) => Some(cut),
            };
        }
        let remarks = remarks::remarks(&self, cut, lost);
        let effort = self.effort();
        let (state, followed_to) = (self.state, self.now);
        let mut members: Vec<Member> = self
            .members
            .into_iter()
            .map(|tracked| finished(tracked, &state))
            .collect();
        members.sort_by_key(|member| member.starts_at.unwrap_or(Timestamp::from_millis(u64::MAX)));
        let ends = members.iter().map(|member| member.ends_at);
        Ok(Forecast {
            at,
            ends_at: ends
                .collect::<Option<Vec<_>>>()
                .and_then(|all| all.into_iter().max()),
            members,
            followed_to,
            cut,
            remarks,
            effort,
        })
    }

    /// Gives the command, and asks the guardrails as the front does.
    fn ask(&mut self) -> Result<(), Rejection> {
        let before = self.state.clone();
        let reply = self.enter(Item {
            actor: self.question.actor.clone(),
            request: self.key("the command"),
            command: Box::new(self.question.command.clone()),
        })?;
        let ids = match reply {
            Reply::Deployments(ids)
            | Reply::Group {
                deployments: ids, ..
            } => ids,
            Reply::Done
            | Reply::Named(_)
            | Reply::Object { .. }
            | Reply::GroupActed { .. }
            | Reply::Joined { .. } => {
                return Err(Rejection::new(
                    Reason::InvalidRequest,
                    "only what makes deployments can be planned",
                ));
            }
        };
        for id in ids {
            let Some(made) = self.state.deployments.get(&id).cloned() else {
                continue;
            };
            guardrail::check_all(&self.state, &made, self.now)?;
            let name = made.origin.scope.clone();
            let waiting = before.scopes.get(&name).map(|scope| scope.waiting.clone());
            self.older.insert(name.clone(), waiting.unwrap_or_default());
            self.open += 1;
            self.by_scope.insert(name.clone(), self.members.len());
            self.members.push(Tracked {
                member: Member {
                    scope: name,
                    deployment: id,
                    replaces: None,
                    agents: 0,
                    approval: None,
                    waits: Vec::new(),
                    moments: moments(None, &made, self.now),
                    starts_at: None,
                    ends_at: None,
                    status: made.status,
                    message: String::new(),
                },
                judged: !(made.origin.strategy.rules.is_empty()
                    && made.origin.strategy.verification.is_empty()),
                last: Some(made),
                closing: Vec::new(),
            });
        }
        Ok(())
    }

    /// Whether it may go on.
    fn look_up(&mut self) -> Result<(), Cut> {
        let effort = self.effort();
        if effort > MOST_WORK {
            return Err(Cut::Work);
        }
        if effort >= self.looks_up {
            self.looks_up = effort + LOOKS_UP;
            if !(self.goes_on)() {
                return Err(Cut::Patience);
            }
        }
        Ok(())
    }

    fn effort(&self) -> u64 {
        self.looks.work + (self.index - REHEARSAL)
    }

    fn is_over(&self) -> bool {
        !self.members.is_empty() && self.open == 0
    }

    /// Goes on until an instant, or until every member has ended.
    fn until(&mut self, end: Timestamp) -> Result<(), Cut> {
        loop {
            let wake = sooner(self.settle()?, self.world.next_event());
            let appointment = self.appointments.first().map(|(at, _)| *at);
            let wake = sooner(wake, appointment);
            if self.is_over() {
                return Ok(());
            }
            match wake.filter(|at| *at <= end) {
                Some(at) => self.now = at.max(self.now + Span::from_millis(1)),
                None => {
                    self.now = end;
                    return Ok(());
                }
            }
        }
    }

    /// Looks and acts at one instant until nothing is due; when to look again.
    fn settle(&mut self) -> Result<Option<Timestamp>, Cut> {
        for _ in 0..MOST_ROUNDS.saturating_mul(self.members.len() + 1) {
            self.look_up()?;
            let mut news = self.news();
            self.let_rules_pass(&news.scopes);
            let agents = self.agents();
            let heard = self
                .world
                .look(&self.state, self.now, &agents, &news.scopes);
            news.heard.extend(heard);
            let seen = self.seen.replace(self.state.clone());
            let look = self.looks.look(
                seen.as_ref(),
                &self.state,
                &self.world.observed,
                self.now,
                &news,
            );
            #[cfg(test)]
            self.compare(&look.commands);
            for id in look.waiting {
                let found = self.state.deployments.get(&id);
                let position = found.and_then(|found| self.by_scope.get(&found.origin.scope));
                self.asked.extend(position);
            }
            let touched = news.scopes.iter().chain(&news.heard).cloned().collect();
            let mut moved = self.let_people_act(&touched);
            for item in look.commands {
                moved |= self.enter(item).is_ok();
                self.look_up()?;
            }
            if !moved {
                self.note_waits();
                return Ok(self.looks.next_wakeup());
            }
        }
        Err(Cut::Restless)
    }

    /// The planner itself, asked about everything, has the same answer.
    #[cfg(test)]
    fn compare(&self, commands: &[Item]) {
        const FEW: usize = 40;
        if self.members.len() > FEW {
            return;
        }
        let all = crate::plan::plan(&self.state, &self.world.observed, self.now);
        assert_eq!(commands, all.commands, "at {}", self.now);
    }

    /// What changed since the last look.
    fn news(&mut self) -> News {
        let mut news = News {
            scopes: std::mem::take(&mut self.stirred),
            ..News::default()
        };
        let Some(seen) = &self.seen else {
            let members = self.state.open_groups.keys();
            let members = members.filter_map(|id| self.state.groups.get(id));
            let members = members.flat_map(|group| group.scopes.keys());
            news.scopes
                .extend(members.cloned().chain(asked(&self.state)));
            return news;
        };
        let changed = seen.scopes.changed(&self.state.scopes);
        news.scopes.extend(changed.cloned());
        for id in seen.deployments.changed(&self.state.deployments) {
            let before = seen.deployments.get(id);
            let now = self.state.deployments.get(id);
            let rows = before.into_iter().chain(now);
            news.scopes.extend(rows.map(|row| row.origin.scope.clone()));
            let ended = |row: Option<&Deployment>| row.is_some_and(|row| row.status.is_end());
            if let Some(now) = now
                && ended(Some(now))
                && !ended(before)
            {
                news.ended.insert(now.origin.application.clone());
            }
        }
        news
    }

    /// Agents whose wish changed since the last look.
    fn agents(&self) -> BTreeSet<Name> {
        match &self.seen {
            Some(seen) => seen.agents.changed(&self.state.agents).cloned().collect(),
            None => self.state.agents.keys().cloned().collect(),
        }
    }

    pub(super) fn key(&self, what: &str) -> RequestKey {
        let text = format!("rehearsal {} {what}", self.index);
        RequestKey::Planner(Digest::of(text.as_bytes()))
    }

    pub(super) fn enter(&mut self, item: Item) -> Outcome {
        self.index += 1;
        if let Command::Advance(advance) = &*item.command
            && matches!(advance.action, Action::Start { .. })
        {
            self.note_windows(advance.deployment);
        }
        let about = if let Command::Advance(advance) = &*item.command {
            Some(advance.deployment)
        } else if let Command::ActOnDeployment(act) = &*item.command {
            Some(act.deployment)
        } else {
            None
        };
        let about = about.and_then(|deployment| self.scope_of(deployment));
        let entry = Entry {
            at: self.now,
            items: vec![item],
        };
        let mut applied = apply(&mut self.state, self.index, &entry);
        match about {
            Some(scope) => {
                if let Some(position) = self.by_scope.get(&scope) {
                    self.see(*position);
                }
            }
            None => (0..self.members.len()).for_each(|position| self.see(position)),
        }
        let nothing = || Rejection::new(Reason::Internal, "a command has no outcome");
        applied
            .pop()
            .map_or_else(|| Err(nothing()), |one| one.outcome)
    }

    fn scope_of(&self, id: DeploymentId) -> Option<Name> {
        let found = self.state.deployments.get(&id);
        found.map(|found| found.origin.scope.clone())
    }

    /// Notes what changed in a member's record.
    fn see(&mut self, position: usize) {
        let Some(tracked) = self.members.get_mut(position) else {
            return;
        };
        let Some(now) = self.state.deployments.get(&tracked.member.deployment) else {
            return;
        };
        if tracked
            .last
            .as_ref()
            .is_some_and(|last| last.meta.revision == now.meta.revision)
        {
            return;
        }
        let member = &mut tracked.member;
        member
            .moments
            .extend(moments(tracked.last.as_ref(), now, self.now));
        member.status = now.status;
        if !phase::is_waiting(now.status)
            && let Some(wait) = member.waits.last_mut()
        {
            wait.until = wait.until.or(Some(self.now));
        }
        if now.status == Status::Creating && member.starts_at.is_none() {
            member.starts_at = Some(self.now);
            member.agents = now.participants.len();
            let replaced = now.replaces.and_then(|id| self.state.deployments.get(&id));
            member.replaces = replaced.map(|old| old.origin.version.clone());
        }
        if now.status.is_end() && member.ends_at.is_none() {
            member.ends_at = Some(self.now);
            self.open = self.open.saturating_sub(1);
            member.message.clone_from(&now.message);
        }
        tracked.last = Some(now.clone());
    }
}

/// A member as it is told.
fn finished(tracked: Tracked, state: &State) -> Member {
    let mut member = tracked.member;
    if !member.status.is_end()
        && let Some(found) = state.deployments.get(&member.deployment)
    {
        member.message.clone_from(&found.message);
    }
    member
}
