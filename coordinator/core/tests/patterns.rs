//! The ready policies of `packaging/config/policies`: each file is read as the command line reads it,
//! put into a state, and its effect is asked of the planner at times of the story's own.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::PathBuf;

use tidegate_coordinator_core::command::{
    CreateDeployments, CreateGroup, CreateRelease, Decide, InitCluster, OnConflict, PutObject,
};
use tidegate_coordinator_core::group::open_time::Openings;
use tidegate_coordinator_core::group::schedule::{Pace, schedule};
use tidegate_coordinator_core::plan::{GateAnswer, plan};
use tidegate_coordinator_core::policy::check::check;
use tidegate_coordinator_core::policy::guardrail;
use tidegate_coordinator_core::policy::window::Window;
use tidegate_coordinator_core::state::{Addresses, CaRecord, SealedKey, Status};
use tidegate_coordinator_core::{
    Actor, Command, Entry, Item, Observed, Outcome, Reply, RequestKey, State, apply, explain,
};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{ClusterId, DeploymentId, Name, RequestId, Version};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{
    AssetKind, AssetSource, AssetSpec, Kind, ObjectSpec, PolicySpec, ReleaseSpec, RunSpec,
    StrategySpec,
};
use tidegate_shared::time::Timestamp;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn at(text: &str) -> Timestamp {
    let time = chrono::DateTime::parse_from_rfc3339(text).unwrap();
    Timestamp::from_millis(u64::try_from(time.timestamp_millis()).unwrap())
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(own).collect()
}

/// The policies of a file, by name.
fn policies(file: &str) -> Vec<(Name, PolicySpec)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../packaging/config/policies");
    let text = std::fs::read_to_string(folder.join(file)).unwrap();
    let policies: Vec<(Name, PolicySpec)> = text
        .split("\n---\n")
        .map(|document| {
            let manifest: tidegate_shared::spec::Manifest<PolicySpec> =
                serde_saphyr::from_str(document).unwrap();
            assert_eq!(manifest.kind, Kind::Policy, "{file}");
            let errors = check(&manifest.spec).0;
            assert!(errors.is_empty(), "{file}: {errors:?}");
            (manifest.name, manifest.spec)
        })
        .collect();
    assert!(!policies.is_empty(), "{file} has no policy");
    policies
}

/// A shop with scopes in every environment, under policies of one file.
struct Story {
    state: State,
    now: Timestamp,
    index: u64,
}

impl Story {
    fn new(file: &str, now: &str) -> Self {
        let mut story = Self {
            state: State::default(),
            now: at(now),
            index: 0,
        };
        story.must(
            "admin",
            Command::InitCluster(InitCluster {
                cluster: ClusterId::derived(story.now, "patterns", 0, 0),
                trust_domain: "patterns.test".to_owned(),
                name: name("c1"),
                addresses: Addresses::default(),
                ca: CaRecord {
                    certificate: "patterns".to_owned(),
                    key: SealedKey {
                        nonce: vec![0; 12],
                        sealed: vec![0; 16],
                    },
                },
                admin: name("admin"),
                level: 1,
            }),
        );
        story.put(Kind::Application, "shop", &[], "{}");
        story.put(
            Kind::Application,
            "till",
            &[("criticality", "critical")],
            "{}",
        );
        for (tier, environment) in ["qa", "staging", "production"].into_iter().enumerate() {
            let spec = format!(r#"{{"tier": {tier}}}"#);
            story.put(Kind::Environment, environment, &[], &spec);
            for (port, application) in [(8080, "shop"), (8081, "till")] {
                let scope = format!("{application}-{environment}");
                let spec = format!(
                    r#"{{"application": "{application}", "environment": "{environment}", "port": {port}}}"#
                );
                let sensitive = [("sensitivity", "high")];
                let labels = if scope == "till-production" {
                    &sensitive[..]
                } else {
                    &[]
                };
                story.put(Kind::Scope, &scope, labels, &spec);
            }
        }
        for (policy, spec) in policies(file) {
            story.object(&policy, Labels::new(), ObjectSpec::Policy(spec));
        }
        story.release("shop", "1.0.0", &[]);
        story.release("till", "1.0.0", &[]);
        story
    }

    fn enter(&mut self, actor: Actor, request: RequestKey, command: Command) -> Outcome {
        self.index += 1;
        let entry = Entry {
            at: self.now,
            items: vec![Item {
                actor,
                request,
                command: Box::new(command),
            }],
        };
        apply(&mut self.state, self.index, &entry)
            .pop()
            .unwrap()
            .outcome
    }

    fn ask(&mut self, user: &str, command: Command) -> Outcome {
        let request = RequestId::derived(self.now, "patterns", self.index, 0);
        self.enter(
            Actor::User(name(user)),
            RequestKey::Client(request),
            command,
        )
    }

    fn must(&mut self, user: &str, command: Command) -> Reply {
        self.ask(user, command).unwrap()
    }

    fn object(&mut self, name: &Name, labels: Labels, spec: ObjectSpec) {
        self.must(
            "admin",
            Command::PutObject(PutObject {
                name: name.clone(),
                labels,
                spec,
                expected_revision: None,
                must_not_exist: true,
            }),
        );
    }

    fn put(&mut self, kind: Kind, called: &str, pairs: &[(&str, &str)], spec: &str) {
        let spec = ObjectSpec::from_json(kind, spec).unwrap();
        self.object(&name(called), labels(pairs), spec);
    }

    fn release(&mut self, application: &str, version: &str, pairs: &[(&str, &str)]) {
        let asset = AssetSpec {
            name: name("app"),
            kind: AssetKind::Archive,
            platform: "any".to_owned(),
            sha256: Digest::of(version.as_bytes()),
            size: 1_000,
            source: AssetSource::Store,
            run: RunSpec {
                command: "run".to_owned(),
                ..RunSpec::default()
            },
        };
        self.must(
            "admin",
            Command::CreateRelease(CreateRelease {
                application: name(application),
                version: Version::new(version).unwrap(),
                labels: labels(pairs),
                spec: ReleaseSpec {
                    assets: vec![asset],
                    ..ReleaseSpec::default()
                },
                stored: true,
            }),
        );
    }

    /// A deployment to `APPLICATION-ENVIRONMENT`, and what the planner makes of it at once.
    fn deploy(
        &mut self,
        user: &str,
        version: &str,
        scope: &str,
        overrides: &str,
    ) -> Result<DeploymentId, String> {
        let (application, _) = scope.split_once('-').unwrap();
        let overrides: StrategySpec = serde_json::from_str(overrides).unwrap();
        let command = Command::CreateDeployments(CreateDeployments {
            application: name(application),
            version: Version::new(version).unwrap(),
            scopes: vec![name(scope)],
            strategy: None,
            overrides,
            labels: Labels::new(),
            on_conflict: OnConflict::Fail,
        });
        // As the coordinators' front does: guardrails are asked of what would be made.
        let before = self.state.clone();
        let reply = self.ask(user, command).map_err(|r| r.to_string())?;
        let Reply::Deployments(made) = reply else {
            panic!("{reply:?}");
        };
        let deployment = &self.state.deployments[&made[0]];
        if let Err(refusal) = guardrail::check_all(&self.state, deployment, self.now) {
            self.state = before;
            return Err(refusal.to_string());
        }
        self.settle();
        Ok(made[0])
    }

    /// A group of so many scopes `APPLICATION-ENVIRONMENT-1` …, and what the planner makes of it at
    /// once.
    fn group(&mut self, application: &str, environment: &str, members: u16) -> Vec<DeploymentId> {
        let mut scopes = Vec::new();
        for number in 1..=members {
            let scope = format!("{application}-{environment}-{number}");
            let port = 9_000 + number;
            let spec = format!(
                r#"{{"application": "{application}", "environment": "{environment}", "port": {port}}}"#
            );
            self.put(Kind::Scope, &scope, &[], &spec);
            scopes.push(name(&scope));
        }
        let command = Command::CreateGroup(CreateGroup {
            name: None,
            deployments: CreateDeployments {
                application: name(application),
                version: Version::new("1.0.0").unwrap(),
                scopes,
                strategy: None,
                overrides: StrategySpec::default(),
                labels: Labels::new(),
                on_conflict: OnConflict::Fail,
            },
            rollout: None,
        });
        let reply = self.must("ann", command);
        let Reply::Group { deployments, .. } = reply else {
            panic!("{reply:?}");
        };
        self.settle();
        deployments
    }

    /// Seconds from now at which the members are due by the paces of policies, in order of time.
    fn turns(&self, members: &[DeploymentId]) -> Vec<u64> {
        let observed = Observed::new(self.now);
        let mut turns: Vec<u64> = members
            .iter()
            .map(|member| {
                let told = explain(&self.state, &observed, self.now, *member);
                let paces = told.gates.iter().filter(|g| g.kind == "gradual_rollout");
                // The later of several counts.
                let latest = paces.map(|gate| match gate.answer {
                    GateAnswer::Allowed => gate.satisfied_at.unwrap(),
                    GateAnswer::Pending | GateAnswer::Denied => gate.until.unwrap(),
                });
                latest.max().unwrap().since(self.now).millis() / 1_000
            })
            .collect();
        turns.sort_unstable();
        turns
    }

    /// Whatever the planner finds due at this instant.
    fn settle(&mut self) {
        for _ in 0..20 {
            let due = plan(&self.state, &Observed::new(self.now), self.now).commands;
            if due.is_empty() {
                return;
            }
            for item in due {
                self.enter(item.actor, item.request, *item.command).unwrap();
            }
        }
        panic!("the planner does not rest");
    }

    fn wait(&mut self, until: &str) {
        self.now = at(until);
        self.settle();
    }

    fn decide(&mut self, user: &str, deployment: DeploymentId) -> Result<(), String> {
        let command = Command::Decide(Decide {
            deployment,
            granted: true,
            reason: String::new(),
        });
        let decided = self.ask(user, command).map(drop).map_err(|r| r.to_string());
        self.settle();
        decided
    }

    fn status(&self, deployment: DeploymentId) -> Status {
        self.state.deployments[&deployment].status
    }

    fn reason(&self, deployment: DeploymentId) -> String {
        let found = &self.state.deployments[&deployment];
        format!("{} {}", found.reason, found.message)
    }

    /// The answer of the gate of a kind, and why; none: nothing asks.
    fn gate(&self, deployment: DeploymentId, kind: &str) -> Option<(GateAnswer, String)> {
        let told = explain(&self.state, &Observed::new(self.now), self.now, deployment);
        let gate = told.gates.into_iter().find(|gate| gate.kind == kind)?;
        Some((gate.answer, gate.why))
    }
}

/// Seconds after the first member at which each of so many is due, of a policy that is always open.
fn due(policy: &PolicySpec, members: u64) -> Vec<u64> {
    due_within(policy, members, at("2026-03-02T10:00:00Z"))
}

fn due_within(policy: &PolicySpec, members: u64, base: Timestamp) -> Vec<u64> {
    let rule = policy.gradual_rollout.as_ref().unwrap();
    let windows: Vec<Window> = policy
        .windows
        .iter()
        .map(|rule| Window::compile(rule).unwrap())
        .collect();
    let pace = Pace {
        kind: rule.kind,
        interval: rule.interval,
    };
    let openings = Openings {
        windows: &windows,
        stops: &[],
    };
    let plan = schedule(pace, members, base, openings);
    let start = plan.start.unwrap();
    plan.due
        .into_iter()
        .map(|due| due.unwrap().since(start).millis() / 1_000)
        .collect()
}

/// A Monday at noon in Berlin.
const MONDAY: &str = "2026-03-02T11:00:00Z";

#[test]
fn conservative_production_asks_somebody_else_and_takes_its_time() {
    let mut story = Story::new("conservative-production.yaml", MONDAY);
    let staging = story.deploy("ann", "1.0.0", "shop-staging", "{}").unwrap();
    assert_eq!(story.status(staging), Status::Pending);
    let id = story
        .deploy("ann", "1.0.0", "shop-production", "{}")
        .unwrap();
    assert_eq!(story.status(id), Status::CreatingApproval);
    let own = story.decide("ann", id);
    assert!(own.is_err(), "who asked for it has no say");
    assert_eq!(story.status(id), Status::CreatingApproval);
    story.decide("ben", id).unwrap();
    assert_eq!(story.status(id), Status::Pending);

    let (_, policy) = policies("conservative-production.yaml").remove(0);
    assert_eq!(due(&policy, 4), [0, 900, 1_800, 2_700]);
    let members = story.group("shop", "production", 4);
    story.wait("2026-03-02T11:40:00Z");
    for member in &members {
        assert_eq!(story.status(*member), Status::CreatingApproval);
        story.decide("ben", *member).unwrap();
    }
    assert_eq!(
        story.turns(&members),
        [0, 900, 1_800, 2_700],
        "from the grant"
    );
}

#[test]
fn an_approval_that_nobody_gives_in_a_day_expires() {
    let mut story = Story::new("conservative-production.yaml", MONDAY);
    let id = story
        .deploy("ann", "1.0.0", "shop-production", "{}")
        .unwrap();
    story.wait("2026-03-03T10:59:59Z");
    assert_eq!(story.status(id), Status::CreatingApproval);
    story.wait("2026-03-03T11:00:00Z");
    assert_eq!(story.status(id), Status::CreatingApprovalDenied);
}

#[test]
fn fast_staging_asks_nobody_and_ends_in_two_minutes() {
    let mut story = Story::new("fast-staging.yaml", MONDAY);
    let id = story.deploy("ann", "1.0.0", "shop-staging", "{}").unwrap();
    assert_eq!(story.status(id), Status::Pending);
    assert_eq!(story.gate(id, "approval").unwrap().0, GateAnswer::Allowed);
    let (_, policy) = policies("fast-staging.yaml").remove(0);
    assert_eq!(due(&policy, 4), [0, 30, 60, 90]);
    assert!(due(&policy, 1_000).iter().all(|due| *due < 120));
    let members = story.group("shop", "staging", 4);
    assert_eq!(story.turns(&members), [0, 30, 60, 90]);
}

#[test]
fn a_critical_service_waits_for_two_people_staging_and_working_hours() {
    let mut story = Story::new("critical-service.yaml", MONDAY);
    let free = story
        .deploy("ann", "1.0.0", "shop-production", "{}")
        .unwrap();
    assert_eq!(story.status(free), Status::Pending);
    let id = story
        .deploy("ann", "1.0.0", "till-production", "{}")
        .unwrap();
    for (user, status) in [("ben", Status::CreatingApproval), ("cleo", Status::Pending)] {
        story.decide(user, id).unwrap();
        assert_eq!(story.status(id), status, "after {user}");
    }
    let (answer, why) = story.gate(id, "progression").unwrap();
    assert_eq!(answer, GateAnswer::Pending, "{why}");
    assert!(why.contains("staging"), "{why}");
    let open = |story: &Story| story.gate(id, "window").unwrap().0;
    assert_eq!(open(&story), GateAnswer::Allowed);
    story.wait("2026-03-02T14:00:00Z");
    assert_eq!(open(&story), GateAnswer::Pending, "three in the afternoon");
    story.wait("2026-03-03T08:00:00Z");
    assert_eq!(open(&story), GateAnswer::Allowed, "nine in the morning");
    story.wait("2026-03-06T10:00:00Z");
    assert_eq!(open(&story), GateAnswer::Pending, "a Friday");
    assert_eq!(
        story.gate(id, "concurrency").map(|gate| gate.0),
        Some(GateAnswer::Allowed)
    );

    // Half an hour apart, and the night does not count: from half past two on there is room for two.
    let (_, policy) = policies("critical-service.yaml").remove(0);
    let night = 18 * 3_600;
    assert_eq!(
        due_within(&policy, 4, at("2026-03-02T13:15:00Z")),
        [0, 1_800, 3_600 + night, 5_400 + night]
    );
}

#[test]
fn the_pace_is_that_of_the_table() {
    let table = [
        ("pace-qa", 60..=120, "linear_normalized"),
        ("pace-staging", 120..=300, "linear_normalized"),
        ("pace-production", 300..=900, "linear"),
        ("pace-critical", 900..=1_800, "linear"),
    ];
    let found = policies("pace.yaml");
    assert_eq!(found.len(), table.len());
    for ((policy, spec), (called, seconds, kind)) in found.iter().zip(table) {
        assert_eq!(policy.as_str(), called);
        let rule = spec.gradual_rollout.as_ref().unwrap();
        let word = serde_json::to_value(rule.kind).unwrap();
        assert_eq!(word, kind, "{called}");
        let interval = rule.interval.millis() / 1_000;
        assert!(seconds.contains(&interval), "{called}: {interval} s");
        let last = due(spec, 5).pop().unwrap();
        let wanted = if kind == "linear" {
            4 * interval
        } else {
            4 * interval / 5
        };
        assert_eq!(last, wanted, "{called}");
    }
    // They stand in nobody's way by themselves.
    let mut story = Story::new("pace.yaml", MONDAY);
    let id = story
        .deploy("ann", "1.0.0", "till-production", "{}")
        .unwrap();
    assert_eq!(story.status(id), Status::Pending);
    for (application, environment, turns) in [
        ("shop", "qa", [0, 30, 60]),
        ("shop", "staging", [0, 60, 120]),
        ("shop", "production", [0, 600, 1_200]),
        ("till", "production", [0, 1_200, 2_400]),
    ] {
        let members = story.group(application, environment, 3);
        let found = story.turns(&members);
        assert_eq!(found, turns, "{application} in {environment}");
    }
}

#[test]
fn holidays_deny_production_and_nothing_else() {
    let (before, first) = ("2026-12-19T22:59:59Z", "2026-12-19T23:00:00Z");
    let (last, after) = ("2027-01-02T22:59:59Z", "2027-01-02T23:00:00Z");
    for (now, status) in [
        (before, Status::Pending),
        (first, Status::CreatingApprovalDenied),
        (last, Status::CreatingApprovalDenied),
        (after, Status::Pending),
    ] {
        let mut story = Story::new("holiday-freeze.yaml", now);
        let id = story
            .deploy("ann", "1.0.0", "shop-production", "{}")
            .unwrap();
        assert_eq!(story.status(id), status, "{now}");
        let id = story.deploy("ann", "1.0.0", "shop-staging", "{}").unwrap();
        assert_eq!(story.status(id), Status::Pending, "{now}, staging");
    }
}

#[test]
fn a_senior_engineer_agrees_to_what_is_sensitive() {
    let mut story = Story::new("senior-engineer.yaml", MONDAY);
    let id = story
        .deploy("cleo", "1.0.0", "shop-production", "{}")
        .unwrap();
    assert_eq!(story.status(id), Status::Pending, "not sensitive");
    let id = story
        .deploy("cleo", "1.0.0", "till-production", "{}")
        .unwrap();
    assert_eq!(story.status(id), Status::CreatingApproval);
    assert!(story.decide("dan", id).is_err(), "dan is no senior");
    assert_eq!(story.status(id), Status::CreatingApproval);
    story.decide("ann", id).unwrap();
    assert_eq!(story.status(id), Status::Pending);
}

#[test]
fn only_listed_people_deploy_to_production() {
    let mut story = Story::new("production-users.yaml", MONDAY);
    let id = story
        .deploy("ann", "1.0.0", "shop-production", "{}")
        .unwrap();
    assert_eq!(story.status(id), Status::Pending);
    let id = story
        .deploy("dan", "1.0.0", "till-production", "{}")
        .unwrap();
    assert_eq!(story.status(id), Status::CreatingApprovalDenied);
    assert!(
        story.reason(id).contains("production-users"),
        "{}",
        story.reason(id)
    );
    let id = story.deploy("dan", "1.0.0", "till-staging", "{}").unwrap();
    assert_eq!(story.status(id), Status::Pending);
}

#[test]
fn well_tested_releases_need_nobodys_word() {
    for (coverage, status) in [
        (Some("87"), Status::Pending),
        (Some("80"), Status::Pending),
        (Some("79.9"), Status::CreatingApproval),
        (None, Status::CreatingApproval),
    ] {
        let mut story = Story::new("coverage.yaml", MONDAY);
        let pairs: Vec<_> = coverage.map(|c| ("coverage", c)).into_iter().collect();
        story.release("shop", "2.0.0", &pairs);
        let id = story
            .deploy("ann", "2.0.0", "shop-production", "{}")
            .unwrap();
        assert_eq!(story.status(id), status, "{coverage:?}");
        if status == Status::CreatingApproval {
            story.decide("ben", id).unwrap();
            assert_eq!(story.status(id), Status::Pending, "{coverage:?}");
        }
    }
}

#[test]
fn the_guardrail_refuses_a_jump_and_a_strategy_without_a_way_back() {
    let rule =
        r#"{"metric": "http.response_time", "comparison": "greater_than", "threshold": 500}"#;
    let mut story = Story::new("guardrail.yaml", MONDAY);
    for overrides in [
        "{}".to_owned(),
        format!(r#"{{"kind": "all_in", "rollback": {{"rules": [{rule}]}}}}"#),
        r#"{"rollback": {"rules": []}}"#.to_owned(),
    ] {
        let refused = story
            .deploy("ann", "1.0.0", "shop-production", &overrides)
            .unwrap_err();
        assert!(refused.contains("no all_in"), "{overrides}: {refused}");
        assert!(story.state.deployments.is_empty());
    }
    let good = format!(r#"{{"rollback": {{"rules": [{rule}]}}}}"#);
    let id = story
        .deploy("ann", "1.0.0", "shop-production", &good)
        .unwrap();
    assert_eq!(story.status(id), Status::Pending);
    story
        .deploy("ann", "1.0.0", "shop-staging", r#"{"kind": "all_in"}"#)
        .unwrap();
}

#[test]
fn every_file_has_its_story_and_stands_in_the_list() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../packaging/config/policies");
    let list = std::fs::read_to_string(folder.join("README.md")).unwrap();
    let mut names = Vec::new();
    let here = include_str!("patterns.rs");
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        if file.ends_with(".yaml") {
            assert!(list.contains(&format!("]({file})")), "{file} is not listed");
            assert!(here.contains(&format!("\"{file}\"")), "{file} has no story");
            names.extend(policies(&file).into_iter().map(|(name, _)| name));
        }
    }
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count, "all of them can be applied together");
    assert!(count >= 12);
}
