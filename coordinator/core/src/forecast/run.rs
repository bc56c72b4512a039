//! The rehearsal: planner and `apply` in turn on a copy of the state, from one instant to the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::spec::{FinalizeMode, Hold};
use tidegate_shared::time::{Span, Timestamp};

use super::remarks::{self, Cut};
use super::world::World;
use super::{Approval, Forecast, HORIZON, Member, Moment, MomentEvent, Question, moments};
use crate::apply::apply;
use crate::command::{
    ActOnDeployment, Action, Command, Entry, Item, Outcome, Reply, RequestKey, Verb,
};
use crate::deployment::{phase, steps};
use crate::observed::Observed;
use crate::plan::{plan, sooner};
use crate::policy::approval;
use crate::policy::guardrail;
use crate::rejection::Rejection;
use crate::state::{Deployment, Meta, ScopeTerm, Skip, State, Status};

/// Log index of the rehearsal: above every real one, with room behind it.
const REHEARSAL: u64 = u64::MAX / 2;

/// More rounds at one instant are a planner that never rests.
const MOST_ROUNDS: u32 = 500;

/// Scopes that the planner is shown in all, each look counted: seconds of work.
const MOST_LOOKS: u64 = 400_000;

/// A member with what its record was when last looked at.
pub(super) struct Tracked {
    pub(super) member: Member,
    last: Option<Deployment>,
    /// It has rules that would be judged.
    pub(super) judged: bool,
    /// What is in its way rests on time alone until then; none: on other things too.
    pub(super) next_look: Option<Timestamp>,
    /// Windows that were open at its start, with when they close.
    pub(super) closing: Vec<(String, Timestamp)>,
}

/// See the module.
pub(super) struct Run<'a> {
    question: &'a Question,
    pub(super) state: State,
    pub(super) world: World,
    pub(super) now: Timestamp,
    index: u64,
    looks: u64,
    pub(super) members: Vec<Tracked>,
    /// Positions in `members`.
    pub(super) by_scope: BTreeMap<Name, usize>,
    /// Deployments that waited in the members' scopes before.
    pub(super) older: Vec<DeploymentId>,
}

impl<'a> Run<'a> {
    pub(super) fn new(state: &State, question: &'a Question) -> Self {
        let now = question.now.max(state.at);
        Self {
            question,
            state: state.clone(),
            world: World::new(now, question.pace),
            now,
            index: REHEARSAL,
            looks: 0,
            members: Vec::new(),
            by_scope: BTreeMap::new(),
            older: Vec::new(),
        }
    }

    pub(super) fn follow(mut self, observed: Option<&Observed>) -> Result<Forecast, Rejection> {
        let at = self.question.at.max(self.now);
        let mut cut = None;
        if at > self.now {
            cut = self.until(at).err();
            self.now = at;
        }
        let lost = observed.map(|observed| remarks::lost(self.question.now, &self.state, observed));
        self.ask()?;
        if cut.is_none() {
            cut = match self.until(at + HORIZON) {
                Ok(()) if self.is_over() => None,
                Ok(()) => Some(Cut::Horizon),
                Err(cut) => Some(cut),
            };
        }
        let remarks = remarks::remarks(&self, cut, &lost.unwrap_or_default());
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
            remarks,
        })
    }

    /// Gives the command, and asks the guardrails as the front does.
    fn ask(&mut self) -> Result<(), Rejection> {
        let before = self.state.clone();
        let reply = self.enter(Item {
            actor: self.question.actor.clone(),
            request: self.key("the command"),
            command: self.question.command.clone(),
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
            let waiting = before.scopes.get(&name).map(|scope| &scope.waiting);
            self.older.extend(waiting.into_iter().flatten());
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
                next_look: None,
                closing: Vec::new(),
            });
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let mut members = self.members.iter();
        !self.members.is_empty() && members.all(|tracked| tracked.member.status.is_end())
    }

    /// Goes on until an instant, or until every member has ended.
    fn until(&mut self, end: Timestamp) -> Result<(), Cut> {
        loop {
            let wake = sooner(self.settle()?, self.world.next_event());
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
        for _ in 0..MOST_ROUNDS {
            self.let_rules_pass();
            self.world.look(&self.state, self.now);
            let mut moved = self.let_people_act();
            let planned = plan(&self.state, &self.world.observed, self.now);
            self.looks += self.state.unfinished_scopes().count() as u64;
            for item in planned.commands {
                moved |= self.enter(item).is_ok();
            }
            if self.looks > MOST_LOOKS {
                return Err(Cut::Work);
            }
            if !moved {
                self.note_waits();
                return Ok(planned.next_wakeup);
            }
        }
        Err(Cut::Restless)
    }

    fn key(&self, what: &str) -> RequestKey {
        let text = format!("rehearsal {} {what}", self.index);
        RequestKey::Planner(Digest::of(text.as_bytes()))
    }

    fn enter(&mut self, item: Item) -> Outcome {
        self.index += 1;
        let about = match &item.command {
            Command::Advance(advance) => {
                if matches!(advance.action, Action::Start { .. }) {
                    self.note_windows(advance.deployment);
                }
                let found = self.state.deployments.get(&advance.deployment);
                found.map(|found| found.origin.scope.clone())
            }
            _ => None,
        };
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
            member.message.clone_from(&now.message);
        }
        tracked.last = Some(now.clone());
    }

    /// Rules of deployments under way are taken to be passed: there is no telemetry to judge.
    fn let_rules_pass(&mut self) {
        let under_way = self.state.scopes.rows_of(&ScopeTerm::UnderWay);
        let candidates = under_way.filter_map(|(_, scope)| scope.candidate);
        let judged: Vec<DeploymentId> = candidates
            .filter(|id| {
                let found = self.state.deployments.get(id);
                found.is_some_and(|found| {
                    let strategy = &found.origin.strategy;
                    !(strategy.rules.is_empty() && strategy.verification.is_empty())
                })
            })
            .collect();
        for id in judged {
            self.state.deployments.change(&id, |found| {
                let strategy = Arc::make_mut(&mut Arc::make_mut(&mut found.origin).strategy);
                strategy.rules.clear();
                strategy.verification.clear();
            });
        }
    }

    /// People do at once what the members need of them; whether anybody did something.
    fn let_people_act(&mut self) -> bool {
        let mut acted = false;
        for position in 0..self.members.len() {
            let Some(tracked) = self.members.get(position) else {
                continue;
            };
            let status = tracked.member.status;
            if !matches!(status, Status::CreatingApproval | Status::Running) {
                continue;
            }
            let Some(found) = self.state.deployments.get(&tracked.member.deployment) else {
                continue;
            };
            match found.status {
                Status::CreatingApproval if tracked.member.approval.is_none() => {
                    acted |= self.approve(position);
                }
                Status::Running => {
                    if let Some(verb) = asked_of_people(found, self.now) {
                        acted |= self.say(position, verb);
                    }
                }
                Status::CreatingApproval
                | Status::CreatingApprovalDenied
                | Status::Pending
                | Status::Creating
                | Status::WaitingForInstances
                | Status::Finalizing
                | Status::Finalized
                | Status::Cancelling
                | Status::Cancelled
                | Status::RollingBack
                | Status::RolledBack
                | Status::Failed
                | Status::Deleting
                | Status::Deleted => {}
            }
        }
        acted
    }

    /// The approvals that a member waits for are given. Who may give them is not known here, so the
    /// rules are passed over for this release in this scope, which comes to the same.
    fn approve(&mut self, position: usize) -> bool {
        let Some(tracked) = self.members.get_mut(position) else {
            return false;
        };
        let found = self.state.deployments.get(&tracked.member.deployment);
        let Some((origin, required)) =
            found.and_then(|found| Some((&found.origin, found.required.as_ref()?)))
        else {
            return false;
        };
        for (policy, _) in &required.policies {
            let number = self.state.skips.len();
            let Ok(name) = Name::new(format!("rehearsal-{position}-{number}")) else {
                continue;
            };
            let skip = Skip {
                meta: Meta {
                    labels: Default::default(),
                    created_at: self.now,
                    created_by: self.question.actor.clone(),
                    revision: 0,
                },
                rule: approval::rule_name(policy),
                application: Some(origin.application.clone()),
                version: Some(origin.version.clone()),
                scope: Some(origin.scope.clone()),
                reason: "taken as approved".to_owned(),
                expires_at: None,
            };
            self.state.skips.insert(name, skip);
        }
        tracked.member.approval = Some(Approval {
            policies: required.policies.clone(),
            at: self.now,
            expires_at: required.expires_at,
        });
        true
    }

    fn say(&mut self, position: usize, verb: Verb) -> bool {
        let Some(tracked) = self.members.get_mut(position) else {
            return false;
        };
        let event = MomentEvent::Person(verb.as_str());
        tracked.member.moments.push(Moment {
            at: self.now,
            event,
        });
        let command = Command::ActOnDeployment(ActOnDeployment {
            deployment: tracked.member.deployment,
            verb,
            expected_revision: None,
            reason: String::new(),
        });
        let item = Item {
            actor: self.question.actor.clone(),
            request: self.key(verb.as_str()),
            command,
        };
        self.enter(item).is_ok()
    }
}

/// What a running deployment waits for a person to do now.
fn asked_of_people(deployment: &Deployment, now: Timestamp) -> Option<Verb> {
    if deployment.paused.is_some() || deployment.halted.is_some() {
        return None;
    }
    let since = steps::waits_for_person_since(deployment)?;
    if since > now {
        return None;
    }
    match steps::hold(deployment) {
        Hold::Manual => Some(Verb::Promote),
        Hold::For(_) if steps::finalize_mode(deployment) == FinalizeMode::Manual => {
            Some(Verb::Finalize)
        }
        Hold::For(_) => None,
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
