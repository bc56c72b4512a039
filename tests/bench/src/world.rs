//! A state machine of any size, without a network: commands applied one after the other as a replica
//! does it, and agents that have done at once what they are told.

mod groups;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tidegate_coordinator_core::command::{
    ActOnDeployment, CreateDeployments, CreateRelease, CreateToken, InitCluster, Join, OnConflict,
    PutObject, TokenKind, Verb,
};
use tidegate_coordinator_core::plan::Agenda;
use tidegate_coordinator_core::state::{Addresses, CaRecord, SealedKey};
use tidegate_coordinator_core::testing::fulfilled;
use tidegate_coordinator_core::{
    Actor, Applied, Command, Entry, Item, Observed, Reply, RequestKey, State, apply,
};
use tidegate_shared::assignment::Facts;
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{ClusterId, DeploymentId, Name, RequestId, TokenId, Version};
use tidegate_shared::spec::{Kind, ObjectSpec, ReleaseSpec, StrategySpec};
use tidegate_shared::time::{Span, Timestamp};

use crate::stats::Numbers;

/// Scopes of one agent.
const SCOPES_PER_AGENT: usize = 10;
/// Commands in one entry while a world is made.
const BATCH: usize = 256;
/// As a new cluster has it: ended deployments and audit events leave the state, snapshots are packed.
const LEVEL: u32 = tidegate_coordinator::setup::LEVEL;

/// See the module.
pub struct World {
    /// As one replica has it.
    pub state: State,
    /// What the leader hears.
    pub observed: Observed,
    /// What the leader remembers.
    pub agenda: Agenda,
    /// The last entry.
    pub index: u64,
    now: Timestamp,
    view: State,
    requests: u64,
    reports: u64,
    agents: usize,
    heard: BTreeSet<Name>,
    person: Actor,
}

fn name(text: &str) -> anyhow::Result<Name> {
    Name::new(text).with_context(|| text.to_owned())
}

/// The scope of this number.
///
/// # Errors
/// None for any number.
pub fn scope(number: usize) -> anyhow::Result<Name> {
    name(&format!("scope-{number:06}"))
}

fn agent(number: usize) -> anyhow::Result<Name> {
    name(&format!("agent-{number:06}"))
}

impl World {
    /// A cluster with an application of three releases, and nothing else.
    ///
    /// # Errors
    /// A command was refused.
    pub fn new() -> anyhow::Result<Self> {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let mut world = Self {
            state: State::default(),
            observed: Observed::new(now),
            agenda: Agenda::default(),
            index: 0,
            now,
            view: State::default(),
            requests: 0,
            reports: 0,
            agents: 0,
            heard: BTreeSet::new(),
            person: Actor::User(name("ann")?),
        };
        world.say(Command::InitCluster(InitCluster {
            cluster: ClusterId::derived(now, "bench", 0, 0),
            trust_domain: "bench.example.com".to_owned(),
            name: name("c1")?,
            addresses: Addresses::default(),
            ca: CaRecord {
                certificate: "-".repeat(800),
                key: SealedKey {
                    nonce: vec![0; 12],
                    sealed: vec![0; 160],
                },
            },
            admin: name("ann")?,
            level: LEVEL,
        }))?;
        world.put(Kind::Application, name("shop")?, "{}")?;
        world.put(Kind::Environment, name("production")?, "{}")?;
        for version in ["1.0.0", "2.0.0", "3.0.0"] {
            let asset = Digest::of(version.as_bytes());
            let spec = format!(
                r#"{{"assets":[{{"name":"shop","kind":"archive","size":1,"sha256":"{asset}","run":{{"command":"bin/shop","args":["--port","${{PORT}}"],"env":{{"MODE":"production"}}}}}}]}}"#
            );
            world.say(Command::CreateRelease(CreateRelease {
                application: name("shop")?,
                version: Version::new(version)?,
                labels: BTreeMap::new(),
                spec: serde_json::from_str::<ReleaseSpec>(&spec)?,
                stored: true,
            }))?;
        }
        Ok(world)
    }

    /// So many scopes, each with a healthy active deployment on one agent of its own or shared with
    /// a few others, rolled out by the planner.
    ///
    /// # Errors
    /// A command was refused, or the planner does not come to rest.
    pub fn with_scopes(count: usize) -> anyhow::Result<Self> {
        let mut world = Self::new()?;
        world.agents = count.div_ceil(SCOPES_PER_AGENT);
        for number in 0..world.agents {
            world.join(number)?;
        }
        let mut items = Vec::new();
        for number in 0..count {
            let spec = format!(
                r#"{{"application":"shop","environment":"production","agents":"role=web,host=agent-{:06}","instances_per_agent":1,"port":8080,"dimensions":{{"zone":"z{}"}}}}"#,
                number / SCOPES_PER_AGENT,
                number % 7
            );
            let command = put(Kind::Scope, scope(number)?, &spec)?;
            items.push(world.item(command));
        }
        for batch in items.chunks(BATCH) {
            world.enter(batch.to_vec())?;
        }
        let scopes = (0..count).map(scope).collect::<anyhow::Result<Vec<_>>>()?;
        for scopes in scopes.chunks(1_000) {
            world.say(deploy(scopes.to_vec(), "1.0.0")?)?;
        }
        world.settle()?;
        Ok(world)
    }

    fn join(&mut self, number: usize) -> anyhow::Result<()> {
        let id = TokenId::derived(self.now, "token", self.index, 0);
        let host = agent(number)?;
        let labels = [("role", "web"), ("host", host.as_str())];
        self.say(Command::CreateToken(CreateToken {
            id,
            kind: TokenKind::Agent,
            secret_hash: Digest::ZERO,
            labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            expires_at: self.now + Span::from_days(365),
            uses: 1,
            name: None,
            roles: Vec::new(),
        }))?;
        self.say(Command::Join(Join {
            token: id,
            secret_hash: Digest::ZERO,
            name: host,
            facts: Facts::default(),
            addresses: None,
        }))?;
        Ok(())
    }

    fn put(&mut self, kind: Kind, name: Name, spec: &str) -> anyhow::Result<()> {
        self.say(put(kind, name, spec)?).map(drop)
    }

    /// A person's command with a new request id.
    pub fn item(&mut self, command: Command) -> Item {
        self.requests += 1;
        let id = RequestId::derived(self.now, "bench", self.requests, 0);
        Item {
            actor: self.person.clone(),
            request: RequestKey::Client(id),
            command: Box::new(command),
        }
    }

    /// Writes a parameter of an application anew, or makes it.
    ///
    /// # Errors
    /// None for names that are names.
    pub fn parameter(&mut self, number: u64, numbers: &mut Numbers) -> anyhow::Result<Item> {
        let value = numbers.text(crate::store::VALUE_BYTES);
        let spec = format!(
            r#"{{"variable":"BENCH","value":"{value}","target":{{"application":"shop"}}}}"#
        );
        let command = put(
            Kind::Parameter,
            name(&format!("parameter-{number:06}"))?,
            &spec,
        )?;
        Ok(self.item(command))
    }

    /// Applies one entry as a replica does: readers keep the state as it was before. Answers how long
    /// that took, and what came of it.
    ///
    /// # Errors
    /// A command was refused.
    pub fn enter(&mut self, items: Vec<Item>) -> anyhow::Result<(Duration, Vec<Applied>)> {
        self.index += 1;
        let entry = Entry {
            at: self.now,
            items,
        };
        let began = Instant::now();
        let applied = apply(&mut self.state, self.index, &entry);
        self.view = self.state.clone();
        let took = began.elapsed();
        for one in &applied {
            if let Err(rejection) = &one.outcome {
                bail!("refused: {rejection}");
            }
        }
        Ok((took, applied))
    }

    /// One command of a person, in an entry of its own.
    ///
    /// # Errors
    /// It was refused.
    pub fn say(&mut self, command: Command) -> anyhow::Result<(Duration, Reply)> {
        let item = self.item(command);
        let (took, applied) = self.enter(vec![item])?;
        let reply = applied.into_iter().next().map(|applied| applied.outcome);
        match reply {
            Some(Ok(reply)) => Ok((took, reply)),
            Some(Err(_)) | None => bail!("no answer"),
        }
    }

    /// A planner's look; answers how long it took.
    pub fn look(&mut self) -> Duration {
        let heard = std::mem::take(&mut self.heard);
        let began = Instant::now();
        self.agenda
            .look(&self.state, &self.observed, &heard, self.now);
        began.elapsed()
    }

    /// Time passes, and every agent is heard.
    pub fn pass(&mut self, time: Span) {
        self.now = self.now + time;
    }

    /// An agent reports that it has done what it is told. Answers how long it took to say what that
    /// is.
    ///
    /// # Errors
    /// None for a number of an agent.
    pub fn report(&mut self, number: usize) -> anyhow::Result<Duration> {
        let agent = agent(number)?;
        self.reports += 1;
        let began = Instant::now();
        let report = fulfilled(&self.state, &agent, self.reports);
        let took = began.elapsed();
        self.observed.absorb(&agent, &name("c1")?, report, self.now);
        self.heard.insert(agent);
        Ok(took)
    }

    /// The agent of a scope.
    pub const fn agent_of(number: usize) -> usize {
        number / SCOPES_PER_AGENT
    }

    /// What is due, in entries of a batch each, until nothing is.
    fn settle(&mut self) -> anyhow::Result<()> {
        for _ in 0..200 {
            for number in 0..self.agents {
                self.report(number)?;
            }
            self.look();
            let due: Vec<Item> = self.agenda.due().cloned().collect();
            if due.is_empty() {
                if self.state.unfinished_scopes().next().is_none() {
                    return Ok(());
                }
                self.pass(Span::from_secs(60));
            }
            for batch in due.chunks(BATCH) {
                self.enter(batch.to_vec())?;
            }
        }
        bail!("the planner does not come to rest")
    }

    /// Rolls the second release out to one scope by the planner's moves; every one is an entry.
    ///
    /// # Errors
    /// A command was refused, or the rollout does not end.
    pub fn roll_out(&mut self, number: usize) -> anyhow::Result<Rollout> {
        let mut rollout = Rollout::default();
        let version = match self.state.scope(&scope(number)?) {
            Ok(found) => self.state.active_of(found),
            Err(_) => None,
        };
        let other = version.is_some_and(|d| d.origin.version.as_str() == "2.0.0");
        let version = if other { "1.0.0" } else { "2.0.0" };
        let (took, _) = self.say(deploy(vec![scope(number)?], version)?)?;
        rollout.commands.push(took);
        for _ in 0..200 {
            rollout.wishes.push(self.report(Self::agent_of(number))?);
            rollout.looks.push(self.look());
            let due: Vec<Item> = self.agenda.due().cloned().collect();
            if due.is_empty() {
                if self.agenda.next_wakeup().is_none() {
                    return Ok(rollout);
                }
                self.pass(Span::from_secs(60));
            }
            for item in due {
                rollout.commands.push(self.enter(vec![item])?.0);
            }
        }
        bail!("the rollout does not end")
    }

    /// Deployments that wait in these scopes until somebody resumes them.
    ///
    /// # Errors
    /// A command was refused.
    pub fn have_wait(&mut self, scopes: Vec<Name>) -> anyhow::Result<Vec<DeploymentId>> {
        let mut all = Vec::new();
        for scopes in scopes.chunks(1_000) {
            if let (_, Reply::Deployments(made)) = self.say(deploy(scopes.to_vec(), "2.0.0")?)? {
                all.extend(made);
            }
        }
        for ids in all.chunks(BATCH) {
            let items = ids.iter().map(|id| {
                self.item(Command::ActOnDeployment(ActOnDeployment {
                    deployment: *id,
                    verb: Verb::Pause,
                    expected_revision: None,
                    reason: String::new(),
                }))
            });
            let items = items.collect();
            self.enter(items)?;
        }
        Ok(all)
    }
}

/// How long the parts of a rollout took.
#[derive(Debug, Default)]
pub struct Rollout {
    /// Each command.
    pub commands: Vec<Duration>,
    /// Each look of the planner, after news of this scope.
    pub looks: Vec<Duration>,
    /// Each time that the agent was told its assignments.
    pub wishes: Vec<Duration>,
}

fn put(kind: Kind, name: Name, spec: &str) -> anyhow::Result<Command> {
    let spec = ObjectSpec::from_json(kind, spec);
    Ok(Command::PutObject(PutObject {
        name,
        labels: BTreeMap::new(),
        spec: spec.map_err(|error| anyhow::anyhow!("{error:?}"))?,
        expected_revision: None,
        must_not_exist: false,
    }))
}

fn deploy(scopes: Vec<Name>, version: &str) -> anyhow::Result<Command> {
    Ok(Command::CreateDeployments(CreateDeployments {
        application: name("shop")?,
        version: Version::new(version)?,
        scopes,
        strategy: None,
        overrides: serde_json::from_str::<StrategySpec>(r#"{"kind":"all_in","bake":"0s"}"#)?,
        labels: BTreeMap::new(),
        on_conflict: OnConflict::Fail,
    }))
}
