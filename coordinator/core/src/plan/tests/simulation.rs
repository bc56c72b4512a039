//! Planner and `apply` in a loop under random reports, time and people: nothing that is proposed is
//! refused (other than as `STALE`), what is wished stays safe, and under a fair clock with honest
//! agents everything comes to an end.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tidegate_shared::assignment::{
    Facts, InstanceState, PermanentError, PermanentErrorKind, Report, WishedState,
};
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{ClusterId, DeploymentId, Name, RequestId, TokenId, Version};
use tidegate_shared::measurement::{ObservedCheck, Sample};
use tidegate_shared::spec::{Kind, ObjectSpec, ReleaseSpec};
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::weight::Weight;

use crate::apply::apply;
use crate::command::{
    ActOnDeployment, Actor, AgentName, Command, CreateDeployments, CreateRelease, CreateToken,
    Decide, Entry, InitCluster, Item, Join, OnConflict, Outcome, PutObject, RequestKey,
    RollbackScope, ScopeName, StopScope, TokenKind, Verb,
};
use crate::desired::desired;
use crate::fixture::name;
use crate::observed::Observed;
use crate::plan::{Agenda, Plan, plan};
use crate::state::{Addresses, CaRecord, SealedKey, State, Status};
use crate::testing::fulfilled;

pub(crate) const AGENTS: [&str; 4] = ["a1", "a2", "a3", "a4"];

/// A small cluster with its planner; also what forecasts are compared with.
pub(crate) struct Sim {
    pub(crate) state: State,
    pub(crate) observed: Observed,
    pub(crate) now: Timestamp,
    index: u64,
    requests: u64,
    sequence: u64,
    /// Reports under way, to be delivered late or twice.
    late: Vec<(Name, Report)>,
    /// What a leader remembers between its looks; it answers what `plan` does.
    agenda: Agenda,
    heard: BTreeSet<Name>,
}

impl Sim {
    pub(crate) fn new(strategy: &str, instances: u32, port: &str) -> Self {
        let mut sim = Self {
            state: State::default(),
            observed: Observed::new(Timestamp::from_millis(1_000_000)),
            now: Timestamp::from_millis(1_000_000),
            index: 0,
            requests: 0,
            sequence: 0,
            late: Vec::new(),
            agenda: Agenda::default(),
            heard: BTreeSet::new(),
        };
        sim.set_up(strategy, instances, port);
        sim
    }

    fn set_up(&mut self, strategy: &str, instances: u32, port: &str) {
        let addresses = Addresses::default();
        self.must(Command::InitCluster(InitCluster {
            cluster: ClusterId::derived(self.now, "c", 0, 0),
            trust_domain: "test".to_owned(),
            name: name("c1"),
            addresses,
            ca: CaRecord {
                certificate: String::new(),
                key: SealedKey {
                    nonce: vec![0; 12],
                    sealed: Vec::new(),
                },
            },
            admin: name("ann"),
            level: 1,
        }));
        let token = TokenId::derived(self.now, "t", 0, 0);
        self.must(Command::CreateToken(CreateToken {
            id: token,
            kind: TokenKind::Agent,
            secret_hash: Digest::of(b"secret"),
            labels: BTreeMap::new(),
            expires_at: self.now + Span::from_hours(1),
            uses: 10,
            name: None,
            roles: Vec::new(),
        }));
        for agent in AGENTS {
            self.must(Command::Join(Join {
                token,
                secret_hash: Digest::of(b"secret"),
                name: name(agent),
                facts: Facts::default(),
                addresses: None,
            }));
        }
        let scope = scope_spec(instances, port);
        for (kind, object, spec) in [
            (Kind::Application, "shop", "{}"),
            (Kind::Environment, "production", "{}"),
            (Kind::Strategy, "way", strategy),
            (Kind::Scope, "web", &scope),
        ] {
            self.put(kind, object, spec);
        }
        for version in 1..=5 {
            let spec = r#"{"assets":[{"name":"shop","kind":"archive","size":1,"sha256":"HASH","run":{"command":"shop"}}]}"#;
            let spec = spec.replace("HASH", &Digest::of(&[version]).to_string());
            self.must(Command::CreateRelease(CreateRelease {
                application: name("shop"),
                version: Version::new(version.to_string()).unwrap(),
                labels: BTreeMap::new(),
                spec: serde_json::from_str::<ReleaseSpec>(&spec).unwrap(),
                stored: true,
            }));
        }
    }

    pub(crate) fn apply(&mut self, item: Item) -> Outcome {
        self.index += 1;
        let entry = Entry {
            at: self.now,
            items: vec![item],
        };
        let before = self.state.clone();
        let mut applied = apply(&mut self.state, self.index, &entry);
        super::groups::guard(&before, &self.state);
        self.check();
        applied.pop().unwrap().outcome
    }

    pub(crate) fn say(&mut self, command: Command) -> Outcome {
        self.say_as(&name("ann"), command)
    }

    pub(crate) fn say_as(&mut self, who: &Name, command: Command) -> Outcome {
        self.requests += 1;
        let request = RequestId::derived(self.now, "r", self.requests, 0);
        self.apply(Item {
            actor: Actor::User(who.clone()),
            request: RequestKey::Client(request),
            command: Box::new(command),
        })
    }

    pub(crate) fn must(&mut self, command: Command) {
        let outcome = self.say(command);
        assert!(outcome.is_ok(), "{outcome:?}");
    }

    pub(crate) fn put(&mut self, kind: Kind, object: &str, spec: &str) {
        self.must(Command::PutObject(PutObject {
            name: name(object),
            labels: BTreeMap::new(),
            spec: ObjectSpec::from_json(kind, spec).unwrap(),
            expected_revision: None,
            must_not_exist: false,
        }));
    }

    pub(crate) fn deploy(&mut self, version: u8, on_conflict: OnConflict) -> Outcome {
        self.say(Command::CreateDeployments(CreateDeployments {
            application: name("shop"),
            version: Version::new(version.to_string()).unwrap(),
            scopes: vec![name("web")],
            strategy: Some(name("way")),
            overrides: Default::default(),
            labels: BTreeMap::new(),
            on_conflict,
        }))
    }

    /// Applies what is due until nothing is.
    pub(crate) fn settle(&mut self) {
        for _ in 0..200 {
            let due = plan(&self.state, &self.observed, self.now);
            assert_eq!(due, plan(&self.state, &self.observed, self.now));
            self.look(&due);
            assert!(due.next_wakeup.is_none_or(|at| at > self.now), "{due:?}");
            if due.commands.is_empty() {
                return;
            }
            for item in due.commands {
                let command = item.command.clone();
                let outcome = self.apply(item);
                let fine = match &outcome {
                    Ok(_) => true,
                    Err(rejection) => rejection.reason == Reason::Stale,
                };
                assert!(fine, "{command:?} came to {outcome:?}");
            }
        }
        let due = plan(&self.state, &self.observed, self.now);
        panic!("the planner never comes to rest: {due:?}");
    }

    /// The agenda knows of what is due, and when to look again at the latest.
    fn look(&mut self, due: &Plan) {
        let heard = std::mem::take(&mut self.heard);
        self.agenda
            .look(&self.state, &self.observed, &heard, self.now);
        let known: BTreeSet<_> = self.agenda.due().map(|item| item.request).collect();
        let all: BTreeSet<_> = due.commands.iter().map(|item| item.request).collect();
        assert_eq!(known, all, "{due:?}");
        let wake = self.agenda.next_wakeup();
        assert!(
            due.next_wakeup
                .is_none_or(|at| wake.is_some_and(|wake| wake <= at)),
            "{wake:?} is too late for {due:?}"
        );
    }

    pub(crate) fn report(&mut self, agent: usize, mood: u8) {
        let agent = name(AGENTS[agent % AGENTS.len()]);
        self.sequence += 1;
        let mut report = fulfilled(&self.state, &agent, self.sequence);
        spoil(&mut report, mood);
        measure(&self.state, &agent, &mut report, mood);
        if mood % 5 == 4 {
            self.late.push((agent, report));
            return;
        }
        self.hear(&agent, report);
    }

    pub(crate) fn deliver_late(&mut self) {
        for (agent, report) in std::mem::take(&mut self.late) {
            self.hear(&agent, report);
        }
    }

    pub(crate) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(crate) fn hear(&mut self, agent: &Name, report: Report) {
        self.heard.insert(agent.clone());
        let checks = &mut self.observed.verification;
        checks.absorb(&self.state, agent, &report, self.now);
        self.observed.absorb(agent, &name("c1"), report, self.now);
    }

    fn check(&self) {
        assert_eq!(self.state.check(), Vec::<String>::new());
        for agent in self.state.agents.keys() {
            let mut sums = BTreeMap::<Name, u32>::new();
            for item in desired(&self.state, agent).items {
                let deployment = &self.state.deployments[&item.deployment];
                let scope = &self.state.scopes[&item.scope];
                let carries = item.weight > Weight::ZERO;
                let is_active = scope.active == Some(item.deployment);
                let batched_return = crate::strategy::is_batched(deployment)
                    && matches!(deployment.status, Status::RollingBack | Status::Cancelling);
                let may = is_active
                    || batched_return
                    || matches!(deployment.status, Status::Running | Status::Finalizing)
                    || (crate::strategy::is_batched(deployment)
                        && deployment.status == Status::WaitingForInstances);
                assert!(!carries || may, "{item:?} of {}", deployment.status);
                let candidate = scope.candidate.map(|id| &self.state.deployments[&id]);
                let replaced = candidate.is_some_and(|candidate| {
                    crate::strategy::is_batched(candidate) || candidate.status == Status::Finalizing
                });
                if is_active && !replaced && deployment.status == Status::Finalized {
                    assert_eq!(item.state, WishedState::Running, "{item:?}");
                }
                *sums.entry(item.scope).or_default() += u32::from(item.weight.basis_points());
            }
            assert!(
                sums.values().all(|sum| *sum <= 10_000),
                "{agent}: {:?}",
                desired(&self.state, agent).items
            );
        }
    }

    fn newest(&self) -> Option<DeploymentId> {
        self.state.deployments.keys().next_back().copied()
    }

    fn unfinished(&self) -> Vec<(DeploymentId, Status)> {
        let all = self.state.deployments.values();
        all.filter(|d| !d.status.is_end())
            .map(|d| (d.id, d.status))
            .collect()
    }

    fn act(&mut self, verb: Verb) {
        let Some(deployment) = self.newest() else {
            return;
        };
        // Whether it is allowed is not what is tested here.
        self.say(Command::ActOnDeployment(ActOnDeployment {
            deployment,
            verb,
            expected_revision: None,
            reason: "a test".to_owned(),
        }))
        .ok();
    }

    fn step(&mut self, (what, which, how): (u8, u8, u8)) {
        match what {
            0..=9 => self.report(which as usize, how),
            10..=13 => self.now = self.now + Span::from_millis(u64::from(how) * 20),
            14 => self.now = self.now + Span::from_secs(u64::from(how)),
            15 => self.now = self.now + Span::from_mins(u64::from(how)),
            16 => {
                let conflict = [OnConflict::Fail, OnConflict::Queue, OnConflict::Supersede];
                self.deploy(1 + which % 5, conflict[how as usize % 3]).ok();
            }
            17 => {
                let weight = Weight::share(u64::from(how), 255);
                let verbs = [
                    Verb::Pause,
                    Verb::Resume,
                    Verb::Resume,
                    Verb::Promote,
                    Verb::PromoteFull,
                    Verb::Traffic(weight),
                    Verb::Finalize,
                    Verb::Cancel,
                    Verb::Rollback,
                    Verb::Retry,
                ];
                self.act(verbs[which as usize % verbs.len()]);
            }
            18 => self.deliver_late(),
            19 => self.disturb(which, how),
            20 => self.put(
                Kind::Policy,
                "eyes",
                &format!(
                    r#"{{"selector":"scope.name == '{}'","enabled":{},"approval":{{"required":{}}}}}"#,
                    if which % 3 == 0 { "api" } else { "web" },
                    which % 4 > 0,
                    1 + how % 2
                ),
            ),
            21 => {
                let spec = scope_spec(u32::from(1 + how % 3), "8080");
                self.put(Kind::Scope, "web", &spec);
            }
            _ => {
                if let Some(deployment) = self.newest() {
                    self.say(Command::Decide(Decide {
                        deployment,
                        granted: how % 3 > 0,
                        reason: String::new(),
                    }))
                    .ok();
                }
            }
        }
        self.settle();
    }

    /// People act on the scope, an agent goes, another node leads.
    fn disturb(&mut self, which: u8, how: u8) {
        match which % 6 {
            0 => self.scope_verb(Command::StopScope(StopScope {
                name: name("web"),
                cancel: how.is_multiple_of(2),
            })),
            1 => self.scope_verb(Command::StartScope(ScopeName { name: name("web") })),
            2 => self.scope_verb(Command::RestartScope(ScopeName { name: name("web") })),
            3 => self.scope_verb(Command::RollbackScope(RollbackScope {
                name: name("web"),
                version: None,
                force: false,
                reason: String::new(),
            })),
            4 if how.is_multiple_of(4) => {
                let agent = name(AGENTS[3]);
                self.scope_verb(Command::RemoveAgent(AgentName {
                    name: agent.clone(),
                }));
                self.observed.forget(&agent);
            }
            _ => self.new_leader(),
        }
    }

    /// Another node leads, which has heard of nobody and remembers nothing.
    pub(super) fn new_leader(&mut self) {
        self.observed = Observed::new(self.now);
        self.agenda = Agenda::default();
    }

    fn scope_verb(&mut self, command: Command) {
        self.say(command).ok();
    }

    /// Honest agents, time that passes, nobody who interferes: everything ends.
    pub(crate) fn run_out(&mut self) {
        self.late.clear();
        for round in 0..4_000_u64 {
            for agent in 0..AGENTS.len() {
                self.report(agent, 0);
            }
            self.settle();
            if self.unfinished().is_empty() {
                return;
            }
            let long = if round > 1_000 { 3_600 } else { 5 };
            self.now = self.now + Span::from_secs(long);
        }
        let left = self.unfinished();
        let explained = left.iter().map(|(id, _)| {
            crate::explain::explain(&self.state, &self.observed, self.now, *id).waiting_for
        });
        panic!("{left:?} never end: {:?}", explained.collect::<Vec<_>>());
    }
}

pub(crate) fn scope_spec(instances: u32, port: &str) -> String {
    format!(
        r#"{{"application":"shop","environment":"production","agents":"","instances_per_agent":{instances},"port":{port}}}"#
    )
}

/// What an agent's trouble does to its report.
fn spoil(report: &mut Report, mood: u8) {
    let Some(place) = report.places.last_mut() else {
        return;
    };
    match mood {
        100..=130 => {
            for instance in &mut place.instances {
                instance.state = InstanceState::Starting;
            }
        }
        131..=150 => place.weight = None,
        151..=170 => place.staged = false,
        171..=185 => {
            for instance in &mut place.instances {
                instance.counters.requests = u64::from(mood);
                instance.counters.server_errors = u64::from(mood) - 100;
            }
        }
        186..=195 => place.drained = false,
        196..=205 => {
            for instance in &mut place.instances {
                instance.state = InstanceState::Backoff;
                instance.last_exit = Some("exited with 1".to_owned());
            }
        }
        206..=208 => {
            place.permanent_error = Some(PermanentError {
                kind: PermanentErrorKind::ALL[usize::from(mood) % 7],
                message: "as a test wants it".to_owned(),
            });
        }
        _ => {}
    }
}

/// Checks are made: some badly, some not at all.
fn measure(state: &State, agent: &Name, report: &mut Report, mood: u8) {
    let sequence = report.sequence;
    let wished = desired(state, agent);
    for item in wished.items.iter().filter(|item| !item.checks.is_empty()) {
        let mut places = report.places.iter_mut();
        let Some(place) = places.find(|place| place.deployment == item.deployment) else {
            continue;
        };
        let instances = place.instances.iter();
        let asked = item.checks.iter().flat_map(|check| {
            instances.clone().map(move |i| ObservedCheck {
                name: check.name.clone(),
                run: check.run,
                instance: Some(i.ordinal),
                sequence,
                sample: match mood {
                    220..=230 => Sample::Unanswered("as a test wants it".to_owned()),
                    231..=255 => Sample::NotMade("as a test wants it".to_owned()),
                    _ => Sample::Http {
                        status: 200,
                        body: String::new(),
                        cut: false,
                    },
                },
            })
        });
        place.checks = asked.collect();
    }
}

const STRATEGIES: [&str; 6] = [
    r#"{"bake":"5s","traffic":{"steps":[{"percent":10,"hold":"2s"},{"percent":50,"hold":"manual"},{"percent":100,"hold":"1s"}]}}"#,
    r#"{"kind":"all_in","bake":"2s","finalize":"manual","bake_share":10,"on_stall":"finalize"}"#,
    r#"{"kind":"rolling","bake":"2s","batch":{"max_unavailable":3,"hold":"1s"}}"#,
    r#"{"kind":"rolling","bake":"2s","batch":{"max_unavailable":"30%","overlap":false,"hold":"1s"},"on_stall":"halt"}"#,
    r#"{"bake":"2s","traffic":{"steps":[{"percent":20,"hold":"2s"}]},"on_no_data":{"wait":"3s","then":"halt"},"rollback":{"rules":[
        {"metric":"http.error_rate","comparison":"greater_than","threshold":0.3,"judge":"raw","window":"1s"},
        {"metric":"http.rpm","comparison":"less_than","threshold":10,"window":"5s","action":"halt","dry_run":true}]}}"#,
    r#"{"bake":"5s","traffic":{"steps":[{"percent":10,"hold":"2s"}]},"on_no_data":{"wait":"3s","then":"halt"},"verification":[
        {"name":"smoke","http":{"path":"/"},"interval":"1s","consecutive_successes":2,"failure_limit":1},
        {"name":"never","prometheus":{"address":"http://p","query":"up","timeout":"1s"},"success":"true","when":["before_traffic"]}]}"#,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_is_proposed_is_taken_and_everything_ends(
        strategy in 0..STRATEGIES.len(),
        instances in 1_u32..4,
        steps in prop::collection::vec((0_u8..23, any::<u8>(), any::<u8>()), 1..120),
    ) {
        let port = if instances == 2 { "\"none\"" } else { "8080" };
        let mut sim = Sim::new(STRATEGIES[strategy], instances, port);
        sim.deploy(1, OnConflict::Fail).ok();
        sim.run_out();
        sim.deploy(2, OnConflict::Fail).ok();
        for step in steps {
            sim.step(step);
        }
        sim.run_out();
    }
}

#[test]
fn every_strategy_runs_through() {
    for (position, strategy) in STRATEGIES.iter().enumerate() {
        let mut sim = Sim::new(strategy, 2, "8080");
        for version in [1, 2, 3] {
            sim.deploy(version, OnConflict::Fail).unwrap();
            sim.run_out();
        }
        let statuses: Vec<Status> = sim.state.deployments.values().map(|d| d.status).collect();
        // A manual hold and halts without a person end in a rollback: nobody promotes here.
        let ends_well = !matches!(position, 0 | 4 | 5);
        assert_eq!(
            statuses[0] == Status::Finalized,
            position != 4,
            "{position} {statuses:?}"
        );
        assert_eq!(
            statuses[2] == Status::Finalized,
            ends_well,
            "{position} {statuses:?}"
        );
    }
}

#[test]
fn a_rollout_that_never_had_traffic_gets_none_on_its_way_back() {
    let mut sim = Sim::new(STRATEGIES[2], 1, "8080");
    sim.deploy(1, OnConflict::Fail).unwrap();
    sim.run_out();
    sim.deploy(2, OnConflict::Fail).unwrap();
    sim.settle();
    for agent in 0..AGENTS.len() {
        sim.report(agent, 100);
    }
    sim.settle();
    let waiting = |sim: &Sim| sim.unfinished()[0].1;
    assert_eq!(waiting(&sim), Status::WaitingForInstances);
    // More instances per agent: the first batch grows above its size.
    sim.put(Kind::Scope, "web", &scope_spec(2, "8080"));
    sim.act(Verb::Cancel);
    sim.settle();
    assert_eq!(waiting(&sim), Status::Cancelling);
    sim.run_out();
    let last = sim.newest().map(|id| sim.state.deployments[&id].status);
    assert_eq!(last, Some(Status::Cancelled));
}
