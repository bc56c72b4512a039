//! The loop over real processes, a real disk and a data plane in memory; seen through its reports.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidegate_shared::assignment::{
    AssetWish, Assignment, Assignments, Generation, InstanceState, PermanentErrorKind, Report,
    Role, WishedState,
};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, Name, Version};
use tidegate_shared::spec::{AssetKind, HealthCheck, Port, RunSpec};
use tidegate_shared::time::Span;
use tidegate_shared::weight::Weight;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Outlets, Parts, Reconciler};
use crate::asset::ReleaseStore;
use crate::asset::fetch::tests::{Scripted, scripted};
use crate::config::{Layout, PortRange, Settings};
use crate::executor::prepared::Prepared;
use crate::executor::process::{ProcessExecutor, end_group};
use crate::executor::procfs;
use crate::ledger::{self, Found, Ledger};
use crate::secrets::SecretStore;
use crate::session::{Secrets, Wish};
use crate::traffic::fake::FakeTraffic;

const LIMIT: Duration = Duration::from_secs(30);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn deployment(n: u8) -> DeploymentId {
    format!("01ARZ3NDEKTSV4RRFFQ69G5FA{n}").parse().unwrap()
}

/// A program that stays up, as the content of a binary asset.
fn program(n: u8) -> Vec<u8> {
    format!("#!/bin/sh\n# version {n}\necho up $PORT\nexec sleep 600\n").into_bytes()
}

fn item(n: u8, state: WishedState, weight: u64) -> Assignment {
    Assignment {
        scope: name("shop-eu"),
        deployment: deployment(n),
        role: Role::Candidate,
        count: 1,
        application: name("shop"),
        release: Version::new(format!("{n}.0.0")).unwrap(),
        asset: AssetWish {
            name: name("shop"),
            kind: AssetKind::Binary,
            sha256: Digest::of(&program(n)),
            size: program(n).len() as u64,
            sources: Vec::new(),
        },
        run: RunSpec {
            command: "./shop".into(),
            ..RunSpec::default()
        },
        parameters: Vec::new(),
        port: Port::Number(8_080),
        traffic: Default::default(),
        health_check: HealthCheck {
            interval: Span::from_millis(100),
            healthy_threshold: 1,
            ..HealthCheck::default()
        },
        state,
        weight: Weight::from_basis_points(weight).unwrap(),
        may_interrupt: false,
        drain: Span::from_millis(200),
        max_restarts: 3,
        keep_releases: 1,
        guard: None,
        scrape: None,
        checks: Vec::new(),
    }
}

fn wish(index: u64, items: Vec<Assignment>) -> Assignments {
    Assignments {
        generation: Generation { epoch: 1, index },
        items,
        report_interval: Some(Span::from_millis(200)),
    }
}

/// One process of the agent, in a runtime of its own so that it can end at any point.
struct Agent {
    runtime: Option<Runtime>,
    wishes: mpsc::Sender<Wish>,
    reports: watch::Receiver<Option<Arc<Report>>>,
    stop: Option<oneshot::Sender<()>>,
}

fn layout(dir: &Path) -> Layout {
    Layout {
        dir: dir.to_path_buf(),
    }
}

fn source() -> Scripted {
    scripted(vec![(Some(program(0)), None)])
}

impl Agent {
    fn start(dir: &Path, traffic: &Arc<FakeTraffic>, source: Scripted) -> Self {
        let runtime = Runtime::new().unwrap();
        let layout = layout(dir);
        let settings = Settings {
            source_roots: Vec::new(),
            health: tidegate_shared::health::HealthListen::Off,
            name: name("web-1"),
            layout: layout.clone(),
            coordinators: vec![],
            http: vec![],
            listen_address: [127, 0, 0, 1].into(),
            instance_address: [127, 0, 0, 1].into(),
            ports: PortRange {
                first: 30_000,
                last: 39_999,
            },
            executor: crate::config::ExecutorChoice::Process,
            proxy_unit: None,
            log: "info".into(),
            log_json: false,
        };
        let (ledger, complaint) = match ledger::read(&layout.ledger(), 1).unwrap() {
            Found::Nothing => (Ledger::default(), None),
            Found::Good(ledger) => (*ledger, None),
            Found::Damaged { reason, .. } => (Ledger::default(), Some(reason)),
        };
        let (events, event_receiver) = mpsc::unbounded_channel();
        let grace = Duration::from_secs(5);
        let (reports, report_receiver) = watch::channel(None);
        let (wishes, wish_receiver) = mpsc::channel(4);
        let (stop, stopped) = oneshot::channel::<()>();
        let parts = Parts {
            settings,
            executor: {
                let _inside = runtime.enter();
                let instances = layout.instances();
                Arc::new(Prepared::new(instances.clone(), events.clone(), |events| {
                    Arc::new(ProcessExecutor::new(instances, grace, events))
                }))
            },
            traffic: Arc::clone(traffic) as Arc<dyn crate::traffic::TrafficProvider>,
            secrets: Arc::new(SecretStore::open(dir).0),
            store: Arc::new(ReleaseStore::open(layout.releases()).unwrap()),
            source: Arc::new(source),
            events,
        };
        let outlets = Outlets {
            reports,
            generation: watch::Sender::default(),
            instances: watch::Sender::default(),
        };
        runtime.spawn(async move {
            let mut reconciler = Reconciler::new(parts, outlets, ledger, complaint);
            reconciler.resume().await;
            let stop = async move {
                stopped.await.ok();
            };
            reconciler.run(event_receiver, wish_receiver, stop).await;
        });
        Self {
            runtime: Some(runtime),
            wishes,
            reports: report_receiver,
            stop: Some(stop),
        }
    }

    fn assign(&self, wish: Assignments) {
        let wish = Wish::Assignments(wish, Secrets::new());
        self.wishes.blocking_send(wish).unwrap();
    }

    /// The first report that fits.
    fn until(&mut self, what: &str, fits: impl Fn(&Report) -> bool) -> Arc<Report> {
        let mut reports = self.reports.clone();
        let found = self.runtime.as_ref().unwrap().block_on(async {
            let fits = |report: &Option<Arc<Report>>| report.as_deref().is_some_and(&fits);
            tokio::time::timeout(LIMIT, reports.wait_for(fits))
                .await
                .map(|found| found.unwrap().clone())
        });
        match found {
            Ok(report) => report.unwrap(),
            Err(_) => panic!("never {what}: {:#?}", self.reports.borrow()),
        }
    }

    /// Ends the agent's process as `kill -9` would: no task of it goes on.
    fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
        drop(self.stop.take());
    }
}

fn pid(report: &Report, n: u8) -> u32 {
    let place = report
        .places
        .iter()
        .find(|place| place.deployment == deployment(n));
    place.map_or(0, |place| {
        place.instances.first().map_or(0, |instance| instance.pid)
    })
}

fn serves(report: &Report, n: u8) -> bool {
    report.places.iter().any(|place| {
        place.deployment == deployment(n)
            && place.weight == Some(Weight::FULL)
            && place
                .instances
                .iter()
                .all(|i| i.state == InstanceState::Healthy)
            && !place.instances.is_empty()
    })
}

/// Ends what a failed test would leave behind.
struct Cleanup(std::path::PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        if let Ok(Found::Good(ledger)) = ledger::read(&layout(&self.0).ledger(), 1) {
            let runtime = Runtime::new().unwrap();
            for process in ledger
                .instances
                .into_iter()
                .filter_map(|record| record.process)
            {
                runtime.block_on(end_group(&process, Duration::ZERO));
            }
        }
    }
}

#[test]
fn a_version_comes_serves_and_gives_way_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let _cleanup = Cleanup(dir.path().to_path_buf());
    let traffic = Arc::new(FakeTraffic::default());
    let mut agent = Agent::start(dir.path(), &traffic, source());
    agent.assign(wish(1, vec![item(0, WishedState::Running, 10_000)]));
    let report = agent.until("blue serves", |report| serves(report, 0));
    let blue = pid(&report, 0);
    assert!(procfs::identify(blue).is_some());
    assert!((30_000..40_000).contains(&report.places[0].instances[0].port));
    agent.kill();

    let two = scripted(vec![(Some(program(1)), None)]);
    let mut agent = Agent::start(dir.path(), &traffic, two);
    let both = vec![
        item(0, WishedState::Absent, 0),
        item(1, WishedState::Running, 10_000),
    ];
    agent.assign(wish(2, both));
    let report = agent.until("green alone", |r| serves(r, 1) && r.places.len() == 1);
    assert!(procfs::identify(blue).is_none());
    assert!(procfs::identify(pid(&report, 1)).is_some());
    let releases = layout(dir.path()).releases();
    let green = releases.join(Digest::of(&program(1)).to_string());
    let old = releases.join(Digest::of(&program(0)).to_string());
    agent.assign(wish(3, vec![item(1, WishedState::Absent, 0)]));
    agent.until("nothing is left", |report| report.places.is_empty());
    assert!(green.exists());
    let deadline = std::time::Instant::now() + LIMIT;
    while old.exists() && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!old.exists(), "one release is kept, the older one goes");
    assert_eq!(
        std::fs::read_dir(layout(dir.path()).instances())
            .unwrap()
            .count(),
        0
    );
    agent.kill();
}

#[test]
fn a_removed_agent_drains_even_over_a_restart_and_returns_when_it_is_let_in_again() {
    let dir = tempfile::tempdir().unwrap();
    let _cleanup = Cleanup(dir.path().to_path_buf());
    let traffic = Arc::new(FakeTraffic::default());
    let held = wish(1, vec![item(0, WishedState::Running, 10_000)]);
    let mut agent = Agent::start(dir.path(), &traffic, source());
    agent.assign(held.clone());
    let report = agent.until("serving", |report| serves(report, 0));
    let before = pid(&report, 0);
    agent.wishes.blocking_send(Wish::Removed).unwrap();
    agent.until("nothing is left", |report| report.places.is_empty());
    assert!(procfs::identify(before).is_none());
    let asked = "127.0.0.1:8080".parse().unwrap();
    assert_eq!(traffic.request(asked, 200, 1), None);
    // The very wish of before is in force again.
    agent.assign(held);
    let report = agent.until("serving again", |report| serves(report, 0));
    let again = pid(&report, 0);
    agent.kill();

    // Killed before it could drain: the next start does it.
    let path = layout(dir.path()).ledger();
    let Found::Good(mut ledger) = ledger::read(&path, 1).unwrap() else {
        panic!("no ledger");
    };
    ledger.removed = true;
    ledger.write(&path).unwrap();
    let mut agent = Agent::start(dir.path(), &traffic, source());
    agent.until("nothing is left", |report| report.places.is_empty());
    assert!(procfs::identify(again).is_none());
    agent.kill();
}

#[test]
fn a_killed_agent_comes_back_to_the_same_processes() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil); 4] = [
        ("as it was", |_| {}),
        ("killed before it noted the process", |path| {
            let Found::Good(mut ledger) = ledger::read(path, 1).unwrap() else {
                panic!("no ledger");
            };
            ledger.instances[0].process = None;
            ledger.write(path).unwrap();
        }),
        ("the ledger is damaged", |path| {
            std::fs::write(path, b"noise").unwrap()
        }),
        ("the ledger is gone", |path| {
            std::fs::remove_file(path).unwrap()
        }),
    ];
    for (case, spoil) in cases {
        let dir = tempfile::tempdir().unwrap();
        let _cleanup = Cleanup(dir.path().to_path_buf());
        let traffic = Arc::new(FakeTraffic::default());
        let mut agent = Agent::start(dir.path(), &traffic, source());
        agent.assign(wish(1, vec![item(0, WishedState::Running, 10_000)]));
        let before = agent.until("serving", |report| serves(report, 0));
        agent.kill();
        spoil(&layout(dir.path()).ledger());

        let mut agent = Agent::start(dir.path(), &traffic, scripted(vec![]));
        agent.assign(wish(1, vec![item(0, WishedState::Running, 10_000)]));
        let after = agent.until("serving again", |report| serves(report, 0));
        let (was, is) = (
            &before.places[0].instances[0],
            &after.places[0].instances[0],
        );
        assert_eq!((was.pid, was.port), (is.pid, is.port), "{case}");
        assert_eq!(is.restarts, 0, "{case}");
        let routed = traffic.request("127.0.0.1:8080".parse().unwrap(), 200, 1);
        assert_eq!(routed.as_deref(), Some(is.id.as_str()), "{case}");
        agent.assign(wish(2, vec![]));
        agent.until("nothing is left", |report| report.places.is_empty());
        assert!(procfs::identify(was.pid).is_none(), "{case}");
        agent.kill();
    }
}

#[test]
fn an_instance_that_ended_meanwhile_is_started_again_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let _cleanup = Cleanup(dir.path().to_path_buf());
    let traffic = Arc::new(FakeTraffic::default());
    let mut agent = Agent::start(dir.path(), &traffic, source());
    agent.assign(wish(1, vec![item(0, WishedState::Running, 10_000)]));
    let before = agent.until("serving", |report| serves(report, 0));
    agent.kill();
    let process = procfs::identify(pid(&before, 0)).unwrap();
    Runtime::new()
        .unwrap()
        .block_on(end_group(&process, Duration::ZERO));

    let mut agent = Agent::start(dir.path(), &traffic, scripted(vec![]));
    let after = agent.until("serving again", |r| {
        serves(r, 0) && pid(r, 0) != process.pid
    });
    let instance = &after.places[0].instances[0];
    assert_eq!(instance.restarts, 1);
    assert!(
        instance
            .last_exit
            .as_ref()
            .is_some_and(|how| how.contains("while the agent was away"))
    );
    agent.assign(wish(2, vec![]));
    agent.until("nothing is left", |report| report.places.is_empty());
    agent.kill();
}

#[test]
fn what_cannot_be_is_told_in_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let traffic = Arc::new(FakeTraffic::default());
    traffic.occupy("127.0.0.1:8080".parse().unwrap());
    let mut agent = Agent::start(
        dir.path(),
        &traffic,
        scripted(vec![(Some(b"other".to_vec()), None)]),
    );
    agent.assign(wish(1, vec![item(0, WishedState::Staged, 0)]));
    let error = |report: &Report| {
        let first = report.places.first()?;
        first.permanent_error.as_ref().map(|error| error.kind)
    };
    agent.until("a wrong digest", |report| {
        error(report) == Some(PermanentErrorKind::DigestMismatch)
    });
    agent.assign(wish(2, vec![]));
    agent.until("nothing is left", |report| report.places.is_empty());
    agent.kill();

    let mut agent = Agent::start(dir.path(), &traffic, source());
    let mut wrong = item(0, WishedState::Running, 10_000);
    wrong.run.command = "./nothing-here".into();
    agent.assign(wish(3, vec![wrong]));
    let report = agent.until("it cannot start", |report| {
        error(report) == Some(PermanentErrorKind::StartFailed)
    });
    let message = &report.places[0].permanent_error.as_ref().unwrap().message;
    assert!(message.contains("nothing-here does not exist"), "{message}");
    agent.assign(wish(4, vec![item(0, WishedState::Running, 10_000)]));
    agent.until("older ones are ignored, this one is in force", |r| {
        r.applied.index == 4
    });
    agent.assign(wish(2, vec![]));
    let mut conflicting = wish(4, vec![]);
    conflicting.report_interval = None;
    agent.assign(conflicting);
    let report = agent.until("a complaint", |report| !report.complaints.is_empty());
    assert!(
        report.complaints[0].contains("same generation 1.4"),
        "{:?}",
        report.complaints
    );
    assert_eq!(report.applied.index, 4);
    agent.assign(wish(5, vec![]));
    agent.until("nothing is left", |report| report.places.is_empty());
    agent.kill();
    let left = std::fs::read_dir(layout(dir.path()).instances()).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}
