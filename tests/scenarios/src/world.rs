//! The virtual cluster of a scenario: one state, one leader, hosts, and a clock that jumps.
//!
//! A round is: deliver assignments, let agents work, take their reports, plan, apply. Rounds go on at
//! one instant until nothing changes; then the clock jumps to the next instant at which the planner
//! or a host has something to do.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_agent_core::testing::AgentModel;
use tidegate_coordinator_core::apply::apply;
use tidegate_coordinator_core::command::{
    ActOnDeployment, CreateDeployments, CreateRelease, CreateToken, Decide, Join, OnConflict,
    SetReleaseStatus, TokenKind, Verb,
};
use tidegate_coordinator_core::desired::desired;
use tidegate_coordinator_core::explain::explain;
use tidegate_coordinator_core::plan::{Agenda, Plan, plan};
use tidegate_coordinator_core::state::{State, Status};
use tidegate_coordinator_core::{
    Actor, Command, Entry, Item, Observed, Outcome, Reply, RequestKey,
};
use tidegate_shared::assignment::Facts;
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name, RequestId, TokenId, Version};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{ReleaseStatus, StrategySpec};
use tidegate_shared::time::{Span, Timestamp};

use crate::checks::Checks;
use crate::conduct::conduct;
use crate::groups::{Groups, Saying};
use crate::invariants;
use crate::manage;
use crate::script::{Behaviour, Line, Nth, Statement, Wait};
use crate::told::{is_deployed, knows, put, release_spec, scope_command, scope_json};
use crate::trace::{self, Names, Trace};

mod faults;
mod people;

/// Every story begins then.
const BEGIN: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// A wait that takes longer than this will not end.
const PATIENCE: Span = Span::from_days(30);

/// More rounds at one instant are a planner that never rests.
const MAX_ROUNDS: u32 = 500;

/// A host with its agent, and how the network treats it.
pub struct Host {
    /// The agent and what it runs.
    pub model: AgentModel,
    /// It has a session.
    pub connected: bool,
    /// Versions whose instances a fault ended: they may hold traffic without being healthy.
    pub excused: BTreeSet<DeploymentId>,
    shown: BTreeMap<DeploymentId, String>,
}

/// See the module.
pub struct World {
    now: Timestamp,
    index: u64,
    serial: u64,
    state: State,
    observed: Observed,
    hosts: BTreeMap<Name, Host>,
    conduct: BTreeMap<(Version, Option<Name>), Vec<Behaviour>>,
    names: Names,
    groups: Groups,
    trace: Trace,
    guard: invariants::Guard,
    planner_wakes: Option<Timestamp>,
    checks: Checks,
    /// What a leader remembers between its looks, with the agents that it heard since.
    agenda: Agenda,
    heard: BTreeSet<Name>,
    /// Scopes that get requests: what is counted there is reported at every interval.
    loaded: BTreeSet<Name>,
}

impl World {
    /// A cluster of one coordinator's name, without agents.
    ///
    /// # Panics
    /// If the cluster's own first entries are refused.
    pub fn new() -> Self {
        let mut world = Self {
            now: BEGIN,
            index: 0,
            serial: 0,
            state: State::default(),
            observed: Observed::new(BEGIN),
            hosts: BTreeMap::new(),
            conduct: BTreeMap::new(),
            names: Names::default(),
            groups: Groups::default(),
            trace: Trace::new(BEGIN),
            guard: invariants::Guard::default(),
            planner_wakes: None,
            checks: Checks::default(),
            agenda: Agenda::default(),
            heard: BTreeSet::new(),
            loaded: BTreeSet::new(),
        };
        let first = manage::init(BEGIN).and_then(|init| {
            world.must(Actor::System, init)?;
            world.object("application", &name("shop")?, "{}")?;
            world.object("environment", &name("production")?, "{}")
        });
        assert_eq!(first, Ok(()), "the cluster cannot be founded");
        world
    }

    /// The lines so far.
    pub fn into_trace(self) -> String {
        self.trace.into_text()
    }

    fn say(&mut self, line: &str) {
        self.trace.line(self.now, line);
    }

    /// Executes a statement.
    ///
    /// # Errors
    /// A wait that does not end, a rule that was broken, or a script that makes no sense.
    pub fn execute(&mut self, line: &Line) -> Result<(), String> {
        match &line.statement {
            Statement::Agents(names) => names.iter().try_for_each(|name| self.join(name)),
            Statement::Object { kind, name, json } => {
                let known = knows(&self.state, kind, name);
                if known {
                    self.say(&format!("> {}", line.text));
                }
                self.object_as_told(kind, name, json, known)
            }
            Statement::Release {
                version,
                on,
                behaviours,
            } => self.release(version, on.as_ref(), behaviours, &line.text),
            Statement::Wait(wait) => self.wait(wait),
            Statement::Show => {
                self.say("> show");
                self.show();
                Ok(())
            }
            Statement::Person(name, roles) => {
                self.say(&format!("> {}", line.text));
                self.person(name, roles)
            }
            Statement::Explain(nth) => {
                self.say(&format!("> {}", line.text));
                self.explain(*nth)
            }
            Statement::Fault(fault) => {
                self.say(&format!("> {}", line.text));
                self.fault(fault)
            }
            Statement::Group(saying) => {
                self.say(&format!("> {}", line.text));
                self.group(saying)
            }
            Statement::Manage(manage) => {
                self.say(&format!("> {}", line.text));
                let mut commands = manage.commands().into_iter();
                commands.try_for_each(|command| self.ask(admin()?, command))
            }
            Statement::Measure(measure) => {
                self.say(&format!("> {}", line.text));
                self.checks.told(measure);
                Ok(())
            }
            Statement::Deploy { .. }
            | Statement::Publish { .. }
            | Statement::Verb { .. }
            | Statement::Decide { .. }
            | Statement::Scope { .. }
            | Statement::Word(_)
            | Statement::Status { .. } => {
                self.say(&format!("> {}", line.text));
                let (actor, command) = self.command(&line.statement)?;
                self.ask(actor, command)
            }
        }
    }

    // ---- the log ----

    /// Applies a command as an entry of its own and writes what changed.
    fn enter(
        &mut self,
        actor: Actor,
        request: RequestKey,
        command: Command,
    ) -> Result<Outcome, String> {
        let item = Item {
            actor,
            request,
            command: Box::new(command),
        };
        if let Err(refused) = manage::checked(&self.state, self.now, &item) {
            return Ok(Err(refused));
        }
        self.index += 1;
        let before = self.state.clone();
        let entry = Entry {
            at: self.now,
            items: vec![item],
        };
        let mut applied = apply(&mut self.state, self.index, &entry);
        self.names.learn(&self.state);
        let mut lines = trace::states(&before, &self.state, &self.names);
        lines.extend(self.groups.changes(&before, &self.state));
        for line in lines {
            self.trace.line(self.now, &line);
        }
        let broken = self.guard.state(&before, &self.state);
        if !broken.is_empty() {
            return Err(self.names.in_text(&broken.join("\n")));
        }
        match applied.pop() {
            Some(one) if applied.is_empty() => Ok(one.outcome),
            Some(_) | None => Err("an entry of one command has not one outcome".to_owned()),
        }
    }

    fn mint(&mut self) -> RequestId {
        self.serial += 1;
        RequestId::derived(self.now, "scenario", self.serial, 0)
    }

    fn ask(&mut self, actor: Actor, command: Command) -> Result<(), String> {
        let request = RequestKey::Client(self.mint());
        if let Err(rejection) = self.enter(actor, request, command)? {
            let text = format!("{} {rejection}", rejection.reason.code());
            let text = self.groups.in_text(&self.state, &self.names.in_text(&text));
            let line = format!("refused: {text}");
            self.say(&line);
        }
        Ok(())
    }

    /// A command that the script needs and that must succeed.
    fn must(&mut self, actor: Actor, command: Command) -> Result<(), String> {
        let request = RequestKey::Client(self.mint());
        self.enter(actor, request, command)?
            .map(|_| ())
            .map_err(|rejection| format!("{} {rejection}", rejection.reason.code()))
    }

    // ---- what a story is made of ----

    fn join(&mut self, agent: &Name) -> Result<(), String> {
        self.serial += 1;
        let id = TokenId::derived(self.now, "scenario", self.serial, 1);
        let secret_hash = Digest::of(agent.as_str().as_bytes());
        let token = Command::CreateToken(CreateToken {
            id,
            kind: TokenKind::Agent,
            secret_hash,
            labels: Labels::new(),
            expires_at: self.now + Span::from_hours(1),
            uses: 1,
            name: None,
            roles: Vec::new(),
        });
        self.must(admin()?, token)?;
        let join = Command::Join(Join {
            token: id,
            secret_hash,
            name: agent.clone(),
            facts: Facts::new(),
            addresses: None,
        });
        self.must(Actor::Token(id), join)?;
        let host = Host {
            model: AgentModel::new(self.now),
            connected: true,
            excused: BTreeSet::new(),
            shown: BTreeMap::new(),
        };
        self.hosts.insert(agent.clone(), host);
        Ok(())
    }

    fn object(&mut self, kind: &str, name: &Name, json: &str) -> Result<(), String> {
        let command = put(kind, name, json)?;
        self.must(admin()?, command)
    }

    fn object_as_told(
        &mut self,
        kind: &str,
        name: &Name,
        json: &str,
        aloud: bool,
    ) -> Result<(), String> {
        let json = if kind == "scope" {
            scope_json(json)?
        } else {
            json.to_owned()
        };
        let command = put(kind, name, &json)?;
        if aloud {
            self.ask(admin()?, command)
        } else {
            let request = RequestKey::Client(self.mint());
            if let Err(rejection) = self.enter(admin()?, request, command)? {
                self.say(&format!("> {kind} {name}"));
                self.say(&format!("refused: {} {rejection}", rejection.reason.code()));
            }
            Ok(())
        }
    }

    fn release(
        &mut self,
        version: &Version,
        on: Option<&Name>,
        behaviours: &[Behaviour],
        text: &str,
    ) -> Result<(), String> {
        let shop = name("shop")?;
        let known = self
            .state
            .releases
            .contains_key(&(shop.clone(), version.clone()));
        if known && (on.is_none() || is_deployed(&self.state, version)) {
            self.say(&format!("> {text}"));
        }
        if !known {
            let command = Command::CreateRelease(CreateRelease {
                application: shop,
                version: version.clone(),
                labels: Labels::new(),
                spec: release_spec(version)?,
                stored: true,
            });
            self.must(admin()?, command)?;
        }
        self.conduct
            .insert((version.clone(), on.cloned()), behaviours.to_vec());
        let hosts: Vec<Name> = self.hosts.keys().cloned().collect();
        for host in hosts {
            if on.is_none_or(|on| *on == host) {
                let own = (version.clone(), Some(host.clone()));
                let common = (version.clone(), None);
                let behaviours = self.conduct.get(&own).or_else(|| self.conduct.get(&common));
                let conduct = conduct(behaviours.map_or(&[][..], Vec::as_slice))?;
                if let Some(host) = self.hosts.get_mut(&host) {
                    host.model.host.behave(version.as_str(), conduct);
                }
            }
        }
        Ok(())
    }

    fn id(&self, nth: Nth) -> Result<DeploymentId, String> {
        self.names
            .id(nth)
            .ok_or_else(|| format!("there is no {nth} yet"))
    }

    fn command(&self, statement: &Statement) -> Result<(Actor, Command), String> {
        let command = match statement {
            Statement::Publish {
                application,
                version,
                building,
                labels,
            } => Command::CreateRelease(CreateRelease {
                application: application.clone(),
                version: version.clone(),
                labels: labels.clone(),
                spec: release_spec(version)?,
                stored: !building,
            }),
            Statement::Deploy {
                application,
                version,
                scope,
                strategy,
                on_conflict,
                overrides,
            } => Command::CreateDeployments(CreateDeployments {
                application: application.clone(),
                version: version.clone(),
                scopes: vec![scope.clone()],
                strategy: strategy.clone(),
                overrides: serde_json::from_str::<StrategySpec>(overrides)
                    .map_err(|error| error.to_string())?,
                labels: Labels::new(),
                on_conflict: match on_conflict.as_str() {
                    "queue" => OnConflict::Queue,
                    "supersede" => OnConflict::Supersede,
                    _ => OnConflict::Fail,
                },
            }),
            Statement::Verb { verb, nth, weight } => Command::ActOnDeployment(ActOnDeployment {
                deployment: self.id(*nth)?,
                verb: match (verb.as_str(), weight) {
                    ("pause", _) => Verb::Pause,
                    ("resume", _) => Verb::Resume,
                    ("promote", _) => Verb::Promote,
                    ("promote-full", _) => Verb::PromoteFull,
                    ("traffic", Some(weight)) => Verb::Traffic(*weight),
                    ("finalize", _) => Verb::Finalize,
                    ("cancel", _) => Verb::Cancel,
                    ("rollback", _) => Verb::Rollback,
                    ("retry", _) => Verb::Retry,
                    (other, _) => return Err(format!("\"{other}\" is no verb")),
                },
                expected_revision: None,
                reason: String::new(),
            }),
            Statement::Decide { nth, granted, by } => {
                let command = Command::Decide(Decide {
                    deployment: self.id(*nth)?,
                    granted: *granted,
                    reason: String::new(),
                });
                return Ok((Actor::User(by.clone()), command));
            }
            Statement::Scope {
                verb,
                name,
                version,
                flag,
            } => scope_command(verb, name, version.as_ref(), *flag),
            Statement::Status { status, version } => Command::SetReleaseStatus(SetReleaseStatus {
                application: name("shop")?,
                version: version.clone(),
                status: match status.as_str() {
                    "rejected" => ReleaseStatus::Rejected,
                    "paused" => ReleaseStatus::Paused,
                    _ => ReleaseStatus::Ready,
                },
                reason: "told by the script".to_owned(),
                expected_revision: None,
            }),
            Statement::Word(word) => word.command(&self.state, self.now)?,
            Statement::Agents(_)
            | Statement::Object { .. }
            | Statement::Release { .. }
            | Statement::Fault(_)
            | Statement::Group(_)
            | Statement::Manage(_)
            | Statement::Measure(_)
            | Statement::Wait(_)
            | Statement::Explain(_)
            | Statement::Person(..)
            | Statement::Show => return Err("is no command".to_owned()),
        };
        Ok((admin()?, command))
    }

    /// Something said to a group; what was left as it is is told.
    fn group(&mut self, saying: &Saying) -> Result<(), String> {
        if let Saying::Look(nth) = saying {
            let found = self
                .groups
                .look(&self.state, &self.observed, self.now, *nth)?;
            for line in found {
                let line = self.groups.in_text(&self.state, &self.names.in_text(&line));
                self.say(&line);
            }
            return Ok(());
        }
        let Some((actor, command)) = saying.command(&self.groups)? else {
            return Ok(());
        };
        let request = RequestKey::Client(self.mint());
        let text = match self.enter(actor, request, command)? {
            Ok(Reply::GroupActed { left, .. }) if !left.is_empty() => {
                let left = left.iter().map(|(scope, why)| format!("{scope}: {why}"));
                format!("left: {}", left.collect::<Vec<_>>().join("; "))
            }
            Ok(_) => return Ok(()),
            Err(rejection) => format!("refused: {} {rejection}", rejection.reason.code()),
        };
        let text = self.groups.in_text(&self.state, &self.names.in_text(&text));
        self.say(&text);
        Ok(())
    }

    /// What people are told who ask why it waits.
    fn explain(&mut self, nth: Nth) -> Result<(), String> {
        let found = explain(&self.state, &self.observed, self.now, self.id(nth)?);
        for line in trace::explanation(&found, self.now) {
            let line = self.groups.in_text(&self.state, &self.names.in_text(&line));
            self.say(&line);
        }
        Ok(())
    }

    fn show(&mut self) {
        let mut lines = Vec::new();
        for (id, deployment) in &self.state.deployments {
            let name = self.names.name(*id);
            lines.push((name.clone(), trace::picture(deployment, &name, self.now)));
        }
        for (name, scope) in &self.state.scopes {
            let active = scope
                .active
                .map_or("none".to_owned(), |id| self.names.name(id));
            let line = format!("  {name}: {}, active {active}", scope.status.as_str());
            lines.push(("~".to_owned(), line));
        }
        for (name, host) in &self.hosts {
            let running = host.model.host.running();
            let mut versions: BTreeMap<String, usize> = BTreeMap::new();
            for instance in &running {
                let version = self.names.name(instance.place.deployment);
                *versions.entry(version).or_default() += 1;
            }
            let runs: Vec<String> = versions
                .iter()
                .map(|(version, count)| format!("{count} of {version}"))
                .collect();
            let runs = if runs.is_empty() {
                "nothing".to_owned()
            } else {
                runs.join(", ")
            };
            lines.push(("~~".to_owned(), format!("  {name}: runs {runs}")));
        }
        lines.sort();
        for (_, line) in lines {
            self.say(&line);
        }
    }

    // ---- time ----

    fn wait(&mut self, wait: &Wait) -> Result<(), String> {
        let until = match wait {
            Wait::For(span) => self.now + *span,
            Wait::Status(..) | Wait::Step(..) | Wait::End(_) | Wait::Quiet | Wait::Group(..) => {
                self.now + PATIENCE
            }
        };
        self.settle()?;
        loop {
            if !matches!(wait, Wait::For(_)) && self.holds(wait)? {
                return Ok(());
            }
            let next = self.next_event();
            let next = next.filter(|next| *next <= until);
            let Some(next) = next else {
                if matches!(wait, Wait::For(_)) {
                    self.pass(until)?;
                    return self.settle();
                }
                return Err(format!("it did not happen within {PATIENCE}"));
            };
            self.pass(next.max(self.now + Span::from_millis(1)))?;
            self.settle()?;
        }
    }

    fn holds(&self, wait: &Wait) -> Result<bool, String> {
        let deployment = |nth: &Nth| {
            let id = self.id(*nth)?;
            let found = self.state.deployments.get(&id);
            found.ok_or_else(|| format!("{nth} is gone"))
        };
        Ok(match wait {
            Wait::For(_) => true,
            Wait::Status(nth, status) => {
                let found = deployment(nth)?;
                if found.status.is_end() && found.status.as_str() != status {
                    return Err(format!("{nth} ended {}", found.status));
                }
                found.status.as_str() == status
            }
            Wait::Step(nth, number) => {
                let found = deployment(nth)?;
                if found.status.is_end() {
                    return Err(format!("{nth} ended {}", found.status));
                }
                found
                    .traffic
                    .step
                    .is_some_and(|step| step.index + 1 == *number && step.reached_at.is_some())
            }
            Wait::Group(nth, status) => self.groups.is(&self.state, *nth, status)?,
            Wait::End(nth) => self.id(*nth).is_ok() && deployment(nth)?.status.is_end(),
            Wait::Quiet => self.state.scopes.values().all(|scope| {
                scope.candidate.is_none()
                    && scope.waiting.is_empty()
                    && scope.retired.is_empty()
                    && scope.active.is_none_or(|id| {
                        let found = self.state.deployments.get(&id);
                        found.is_none_or(|d| d.status != Status::Deleting)
                    })
            }),
        })
    }

    fn next_event(&self) -> Option<Timestamp> {
        let hosts = self
            .hosts
            .values()
            .filter_map(|host| host.model.next_event());
        hosts
            .chain(self.planner_wakes)
            .chain(self.checks.next(self.now))
            .chain(self.next_report())
            .min()
    }

    /// When counts are told next: while a deployment moves in a scope that gets requests.
    fn next_report(&self) -> Option<Timestamp> {
        let moving = self.loaded.iter().any(|scope| {
            let scope = self.state.scopes.get(scope);
            scope.is_some_and(|scope| scope.candidate.is_some())
        });
        let hosts = self.hosts.values().filter(|host| host.connected && moving);
        let spans = hosts.filter_map(|host| host.model.report_interval());
        spans.min().map(|span| self.now + span)
    }

    fn pass(&mut self, to: Timestamp) -> Result<(), String> {
        self.now = self.now.max(to);
        for host in self.hosts.values_mut() {
            host.model.advance(to);
        }
        let broken = self.guard.hosts(&self.state, &self.hosts);
        if broken.is_empty() {
            Ok(())
        } else {
            Err(self.names.in_text(&broken.join("\n")))
        }
    }

    /// Rounds at this instant until nothing changes.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..MAX_ROUNDS {
            self.deliver()?;
            if !self.plan()? {
                return self.pass(self.now);
            }
        }
        Err("the planner does not come to rest".to_owned())
    }

    /// Assignments out, reports in.
    fn deliver(&mut self) -> Result<(), String> {
        let coordinator = name("c1")?;
        let mut changes = Vec::new();
        for (name, host) in &mut self.hosts {
            if host.connected {
                host.model.assign(&desired(&self.state, name));
            }
            host.model.advance(self.now);
            if host.connected
                && let Some(mut report) = host.model.report()
            {
                let wished = desired(&self.state, name);
                self.checks.measure(name, &wished, &mut report, self.now);
                let lanes = &mut self.observed.verification;
                lanes.absorb(&self.state, name, &report, self.now);
                self.heard.insert(name.clone());
                self.observed.absorb(name, &coordinator, report, self.now);
            }
            let places = host
                .model
                .observed()
                .map(|observed| tidegate_agent_core::report::places(observed, self.now))
                .unwrap_or_default();
            let texts: BTreeMap<DeploymentId, String> = places
                .iter()
                .map(|place| (place.deployment, trace::place(place)))
                .collect();
            for (id, text) in &texts {
                if host.shown.get(id) != Some(text) {
                    changes.push((name.clone(), *id, text.clone()));
                }
            }
            for id in host.shown.keys().filter(|id| !texts.contains_key(id)) {
                changes.push((name.clone(), *id, "gone".to_owned()));
            }
            host.shown = texts;
        }
        for line in trace::places(&changes, &self.names) {
            self.trace.line(self.now, &line);
        }
        Ok(())
    }

    /// Proposes what the planner finds due; whether it proposed anything.
    fn plan(&mut self) -> Result<bool, String> {
        let measured = self.checks.lead(&self.state, &mut self.observed, self.now);
        self.heard.extend(measured);
        let planned = plan(&self.state, &self.observed, self.now);
        self.planner_wakes = planned.next_wakeup;
        self.look(&planned)?;
        let some = !planned.commands.is_empty();
        for item in planned.commands {
            let text = format!("{:?}", item.command);
            let outcome = self.enter(item.actor, item.request, *item.command)?;
            match outcome {
                Ok(_) => {}
                // A second command of one round on the same deployment; planned again in the next.
                Err(rejection) if rejection.reason == Reason::Stale => {}
                Err(rejection) => {
                    return Err(format!("the planner was refused: {rejection}: {text}"));
                }
            }
        }
        Ok(some)
    }

    /// The leader's memory comes to the same as a look at everything.
    fn look(&mut self, planned: &Plan) -> Result<(), String> {
        let heard = std::mem::take(&mut self.heard);
        self.agenda
            .look(&self.state, &self.observed, &heard, self.now);
        let due: BTreeSet<_> = self.agenda.due().map(|item| item.request).collect();
        let all: BTreeSet<_> = planned.commands.iter().map(|item| item.request).collect();
        let wake = self.agenda.next_wakeup();
        let late = planned
            .next_wakeup
            .is_some_and(|at| wake.is_none_or(|wake| wake > at));
        if due == all && !late {
            return Ok(());
        }
        let known: Vec<_> = self.agenda.due().collect();
        Err(format!(
            "the agenda knows of {known:?} until {wake:?}, and due is {planned:?}"
        ))
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

fn name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(|error| error.to_string())
}

fn admin() -> Result<Actor, String> {
    name("admin").map(Actor::User)
}
