//! The real program with its real proxy: what lives on when it is killed, and what `stop-all` ends.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tidegate_agent::config::{Config, Layout};
use tidegate_agent::executor::procfs;
use tidegate_agent::identity;
use tidegate_agent::ledger::{self, Found, Ledger, ProcessId};
use tidegate_shared::assignment::{
    AssetWish, Assignment, Assignments, Generation, Role, WishedState,
};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{Name, Version};
use tidegate_shared::spec::{AssetKind, HealthCheck, Port, RunSpec};
use tidegate_shared::time::Span;
use tidegate_shared::weight::Weight;

const LIMIT: Duration = Duration::from_secs(30);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn write_identity(layout: &Layout) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    let uri = Ia5String::try_from("spiffe://td/agent/web-1").unwrap();
    params.subject_alt_names = vec![SanType::URI(uri)];
    let leaf = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    let (key, leaf, root) = (key.serialize_pem(), leaf.pem(), root.pem());
    identity::store(&layout.identity(), &key, &leaf, &root).unwrap();
}

fn item(port: u16) -> Assignment {
    Assignment {
        scope: name("shop-eu"),
        deployment: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
        role: Role::Active,
        count: 1,
        application: name("shop"),
        release: Version::new("1.0.0").unwrap(),
        asset: AssetWish {
            name: name("shop"),
            kind: AssetKind::Binary,
            sha256: Digest::ZERO,
            size: 0,
            sources: Vec::new(),
        },
        run: RunSpec {
            command: "/bin/sh".into(),
            args: vec!["-c".into(), "exec sleep 600".into()],
            ..RunSpec::default()
        },
        parameters: Vec::new(),
        port: Port::Number(port),
        traffic: Default::default(),
        health_check: HealthCheck {
            interval: Span::from_millis(200),
            healthy_threshold: 1,
            ..HealthCheck::default()
        },
        state: WishedState::Running,
        weight: Weight::FULL,
        may_interrupt: false,
        drain: Span::ZERO,
        max_restarts: 3,
        keep_releases: 1,
        guard: None,
        scrape: None,
        checks: Vec::new(),
    }
}

fn agent(dir: &Path, extra: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tidegate-agent"))
        .arg("run")
        .arg("--config")
        .arg(dir.join("agent.toml"))
        .args(extra)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn instance(layout: &Layout) -> Option<ProcessId> {
    match ledger::read(&layout.ledger(), 1).unwrap() {
        Found::Good(ledger) => ledger.instances.first()?.process.clone(),
        Found::Nothing | Found::Damaged { .. } => None,
    }
}

fn start_counter(layout: &Layout) -> u64 {
    match ledger::read(&layout.ledger(), 1).unwrap() {
        Found::Good(ledger) => ledger.start,
        Found::Nothing | Found::Damaged { .. } => 0,
    }
}

fn terminate(child: &mut Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn applications_and_the_proxy_outlive_the_agent_until_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout {
        dir: dir.path().canonicalize().unwrap(),
    };
    write_identity(&layout);
    // Nobody listens there: the agent does its work without a coordinator.
    Config::new(&name("web-1"), vec!["127.0.0.1:1".into()], vec![])
        .write(&layout.config())
        .unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let assignments = Assignments {
        generation: Generation { epoch: 1, index: 1 },
        items: vec![item(port)],
        report_interval: Some(Span::from_secs(1)),
    };
    let ledger = Ledger {
        assignments: Some(assignments),
        places: vec![item(port)],
        ..Ledger::default()
    };
    ledger.write(&layout.ledger()).unwrap();
    std::fs::create_dir_all(layout.releases().join(Digest::ZERO.to_string())).unwrap();

    let mut first = agent(&layout.dir, &[]);
    let listens = || TcpStream::connect(("127.0.0.1", port)).ok().map(drop);
    wait("the proxy listens", listens);
    let process = wait("an instance runs", || {
        instance(&layout).filter(procfs::is_alive)
    });
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(procfs::is_alive(&process) && listens().is_some());

    let started = start_counter(&layout);
    let mut second = agent(&layout.dir, &[]);
    wait("the second agent noted its start", || {
        (start_counter(&layout) > started).then_some(())
    });
    let busy = Command::new(env!("CARGO_BIN_EXE_tidegate-agent"))
        .args(["stop-all", "--dir"])
        .arg(&layout.dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&busy.stderr).into_owned();
    assert!(
        !busy.status.success() && said.contains("another tidegate-agent runs"),
        "{said}"
    );
    terminate(&mut second);
    assert_eq!(instance(&layout).as_ref(), Some(&process));
    assert!(procfs::is_alive(&process) && listens().is_some());

    let started = start_counter(&layout);
    let mut third = agent(&layout.dir, &["--stop-everything-on-exit"]);
    // Its start is noted after it listens for signals.
    wait("the third agent noted its start", || {
        (start_counter(&layout) > started).then_some(())
    });
    terminate(&mut third);
    assert!(!procfs::is_alive(&process));
    wait("the proxy is gone", || listens().is_none().then_some(()));
}

#[test]
fn what_is_wrong_is_one_line_with_a_code_and_a_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    let run = || {
        let output = Command::new(env!("CARGO_BIN_EXE_tidegate-agent"))
            .args(["run", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = run();
    assert!(
        said.contains("cannot be read") && said.contains("[TG-1501]"),
        "{said}"
    );
    std::fs::write(&config, "name = \"web-1\"\ncoordinators = []\nhttp = []\n").unwrap();
    let said = run();
    assert!(said.contains("key coordinators: is empty"), "{said}");
    assert!(said.contains("hint: "), "{said}");
    std::fs::write(
        &config,
        "name = \"web-1\"\ncoordinators = [\"a:1\"]\nhttp = []\n",
    )
    .unwrap();
    let said = run();
    assert!(
        said.contains("cert.pem cannot be read") && said.contains("[TG-1504]"),
        "{said}"
    );
}
