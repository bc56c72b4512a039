//! A small cluster for the tests of this crate, put together by hand: scope `web` on agents `a1` …
//! with version 1 active and version 2 a candidate of any status.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_shared::assignment::{Generation, ObservedPlace, Report};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, Name, Version};
use tidegate_shared::spec::{
    ApprovalRule, AssetKind, AssetSource, AssetSpec, PolicySpec, Port, Protocol, ReleaseSpec,
    ReleaseStatus, RunSpec, ScopeSpec, ScopeType, StrategySpec,
};
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::weight::Weight;

use crate::command::{Action, Actor, Command, OnConflict};
use crate::observed::Observed;
use crate::plan::{Plan, plan};
use crate::state::{
    Agent, Deployment, Durations, Meta, Object, Origin, Release, Scope, ScopeStatus, State, Status,
    StepProgress, Table, Traffic,
};
use crate::testing::fulfilled;

/// When everything in the fixture began.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_000_000);

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn meta() -> Meta {
    Meta {
        labels: BTreeMap::new(),
        created_at: START,
        created_by: Actor::System,
        revision: 1,
    }
}

pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) observed: Observed,
    pub(crate) now: Timestamp,
    pub(crate) old: DeploymentId,
    pub(crate) new: DeploymentId,
    sequence: u64,
}

fn scope_spec(instances: u32) -> ScopeSpec {
    ScopeSpec {
        application: name("shop"),
        environment: name("production"),
        kind: ScopeType::Hosts,
        dimensions: BTreeMap::new(),
        asset: None,
        agents: "".parse().unwrap(),
        instances_per_agent: instances,
        port: Port::Number(8_080),
        protocol: Protocol::Http,
        tls: None,
        http2: false,
        sticky: None,
        route: None,
        health_check: None,
        metrics: None,
        max_restarts: 5,
        parameters: BTreeMap::new(),
        limits: Default::default(),
        auto_deploy: None,
    }
}

fn deployment(position: u64, version: &str, strategy: &StrategySpec, instances: u32) -> Deployment {
    let id = DeploymentId::derived(START, "web", position, 0);
    Deployment {
        id,
        short: id.short(),
        meta: meta(),
        origin: Arc::new(Origin {
            application: name("shop"),
            version: Version::new(version).unwrap(),
            release_digest: Digest::ZERO,
            scope: name("web"),
            scope_spec: Arc::new(scope_spec(instances)),
            asset: Arc::new(AssetSpec {
                name: name("shop"),
                kind: AssetKind::Archive,
                platform: "any".to_owned(),
                sha256: Digest::ZERO,
                size: 1,
                source: AssetSource::Store,
                run: RunSpec {
                    command: "shop".to_owned(),
                    env: BTreeMap::from([("A".to_owned(), "asset".to_owned())]),
                    ..RunSpec::default()
                },
            }),
            health_check: Arc::default(),
            strategy_name: None,
            strategy: Arc::new(strategy.resolve()),
            parameters: Table::new(),
            on_conflict: OnConflict::Fail,
            fast: false,
            forced: false,
            link: None,
            auto: None,
        }),
        status: Status::Finalized,
        status_since: START,
        replaces: None,
        participants: Vec::new(),
        lost: Vec::new(),
        required: None,
        clock_since: START,
        counted_to: START,
        fewest_outstanding: None,
        traffic: Traffic::default(),
        paused: None,
        halted: None,
        drained: false,
        return_at_finalized: None,
        end_cause: None,
        reason: String::new(),
        message: String::new(),
        outcome: None,
        unverified: false,
        ended_at: None,
        durations: Durations::default(),
        causes: Vec::new(),
        evidence: Vec::new(),
        leftovers: Vec::new(),
        promoted_full: false,
        checks: Vec::new(),
        group: None,
        tries: 0,
    }
}

impl World {
    /// Version 1 active on so many agents, version 2 in `status` with a strategy written in JSON.
    pub(crate) fn new(agents: usize, instances: u32, strategy: &str, status: Status) -> Self {
        let strategy: StrategySpec = serde_json::from_str(strategy).unwrap();
        let names: Vec<Name> = (1..=agents).map(|n| name(&format!("a{n}"))).collect();
        let mut old = deployment(1, "1.0.0", &strategy, instances);
        old.participants = names.clone();
        let mut new = deployment(2, "2.0.0", &strategy, instances);
        new.status = status;
        let total = names.len() as u32 * instances;
        if !crate::deployment::phase::is_waiting(status) {
            new.participants = names.clone();
            new.replaces = Some(old.id);
            new.traffic.total = total;
        }
        let mut state = State::default();
        for agent in &names {
            let known = Agent {
                meta: meta(),
                facts: BTreeMap::new(),
                version: String::new(),
                generation: Generation { epoch: 0, index: 7 },
            };
            state.agents.insert(agent.clone(), known);
        }
        let waiting = crate::deployment::phase::is_waiting(status);
        let scope = Scope {
            meta: meta(),
            spec: Arc::new(scope_spec(instances)),
            status: ScopeStatus::Ready,
            active: Some(old.id),
            candidate: (!waiting).then_some(new.id),
            waiting: waiting.then_some(new.id).into_iter().collect(),
            retired: Vec::new(),
            kept: vec![old.id],
            last_active: None,
        };
        state.scopes.insert(name("web"), scope);
        let release = Release {
            meta: meta(),
            spec: ReleaseSpec::default(),
            digest: Digest::ZERO,
            status: ReleaseStatus::Ready,
            reason: String::new(),
            idle_since: None,
        };
        let key = (name("shop"), new.origin.version.clone());
        state.releases.insert(key, release);
        let (old_id, new_id) = (old.id, new.id);
        state.deployments.insert(old.id, old);
        state.deployments.insert(new.id, new);
        Self {
            state,
            observed: Observed::new(START),
            now: START,
            old: old_id,
            new: new_id,
            sequence: 0,
        }
    }

    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Deployment)) {
        self.state.deployments.change(&self.new, change).unwrap();
    }

    /// As `apply` does when a command changes what agents should do.
    pub(crate) fn wish_changed(&mut self) {
        let names: Vec<Name> = self.state.agents.keys().cloned().collect();
        for agent in names {
            self.state
                .agents
                .beside_terms(&agent)
                .unwrap()
                .generation
                .index += 1;
        }
    }

    pub(crate) fn scope(&mut self, change: impl FnOnce(&mut Scope)) {
        self.state.scopes.change(&name("web"), change).unwrap();
    }

    pub(crate) fn candidate(&self) -> &Deployment {
        &self.state.deployments[&self.new]
    }

    /// The candidate is at a step that was reached at `reached`.
    pub(crate) fn at_step(&mut self, index: u32, percent: u64, reached: Option<Timestamp>) {
        self.change(|new| {
            new.traffic.desired = Weight::share(percent, 100);
            new.traffic.got_traffic = percent > 0;
            new.traffic.step = Some(StepProgress {
                index,
                started_at: START,
                reached_at: reached,
                not_counted: Span::ZERO,
                promoted: false,
            });
        });
    }

    pub(crate) fn policy(&mut self, policy: &str, selector: &str, required: u32) {
        let spec = PolicySpec {
            selector: selector.to_owned(),
            approval: Some(ApprovalRule {
                required: Some(required),
                expires: Span::from_hours(72),
                ..ApprovalRule::default()
            }),
            ..PolicySpec::default()
        };
        let object = Object { meta: meta(), spec };
        self.state.policies.insert(name(policy), object);
    }

    /// A report that fulfils the wish, changed by hand.
    pub(crate) fn report(&mut self, agent: &str, change: impl FnOnce(&mut Report)) {
        self.sequence += 1;
        let mut report = fulfilled(&self.state, &name(agent), self.sequence);
        change(&mut report);
        let checks = &mut self.observed.verification;
        checks.absorb(&self.state, &name(agent), &report, self.now);
        self.observed
            .absorb(&name(agent), &name("c1"), report, self.now);
    }

    /// The place of the new version in a report.
    pub(crate) fn place_of(report: &mut Report, deployment: DeploymentId) -> &mut ObservedPlace {
        let mut places = report.places.iter_mut();
        places.find(|p| p.deployment == deployment).unwrap()
    }

    pub(crate) fn all_fulfilled(&mut self) {
        let names: Vec<Name> = self.state.agents.keys().cloned().collect();
        for agent in names {
            self.report(agent.as_str(), |_| {});
        }
    }

    pub(crate) fn plan(&self) -> Plan {
        let first = plan(&self.state, &self.observed, self.now);
        assert_eq!(first, plan(&self.state, &self.observed, self.now));
        first
    }

    /// The one action that is due, if any.
    pub(crate) fn action(&self) -> Option<Action> {
        let mut commands = self.plan().commands;
        assert!(commands.len() <= 1, "{commands:?}");
        commands.pop().map(|item| match *item.command {
            Command::Advance(advance) => advance.action,
            other => panic!("{other:?}"),
        })
    }

    /// What it waits for.
    pub(crate) fn waits_for(&self) -> String {
        crate::explain::explain(&self.state, &self.observed, self.now, self.new).waiting_for
    }
}
