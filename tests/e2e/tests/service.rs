//! The daemons as services: what they tell a service manager that listens, and what SIGHUP does.
//! The manager is this test; hosts with a real systemd are in `hosts`.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tidegate_harness::cluster::{PATIENCE, programs};

/// A daemon, and what it told.
struct Daemon {
    child: Child,
    socket: UnixDatagram,
    log: PathBuf,
    told: Vec<String>,
}

impl Daemon {
    fn start(dir: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let place = dir.join(format!("{program}.notify"));
        let socket = UnixDatagram::bind(&place)?;
        let log = dir.join(format!("{program}.log"));
        let child = Command::new(programs()?.join(program))
            .args(arguments)
            .env("NOTIFY_SOCKET", &place)
            // Three questions in this time.
            .env("WATCHDOG_USEC", "1500000")
            .stderr(File::create(&log)?)
            .spawn()?;
        Ok(Self {
            child,
            socket,
            log,
            told: Vec::new(),
        })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Takes messages until one line fits; what came before it is forgotten.
    fn wait_for(&mut self, what: &str, fits: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while !self.told.is_empty() {
                if fits(&self.told.remove(0)) {
                    return Ok(());
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "no {what} in time:\n{}", self.log());
            if let Some(status) = self.child.try_wait()? {
                bail!("ended ({status}) before {what}:\n{}", self.log());
            }
            self.socket
                .set_read_timeout(Some(left.min(std::time::Duration::from_secs(1))))?;
            let mut bytes = [0; 4096];
            if let Ok(length) = self.socket.recv(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..length]);
                self.told.extend(text.lines().map(str::to_owned));
            }
        }
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed()).context("no pid")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Ready, then alive, then a reload, then the end: the life that every daemon has.
    fn live(
        &mut self,
        status: &str,
        change: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.wait_for("READY", |line| line == "READY=1")?;
        self.wait_for(status, |line| {
            line.strip_prefix("STATUS=")
                .is_some_and(|told| told.contains(status))
        })?;
        for _ in 0..3 {
            self.wait_for("WATCHDOG", |line| line == "WATCHDOG=1")?;
        }
        change()?;
        self.signal(Signal::HUP)?;
        self.wait_for("RELOADING", |line| line == "RELOADING=1")?;
        self.wait_for("the time of the reload", |line| {
            line.starts_with("MONOTONIC_USEC=")
        })?;
        self.wait_for("READY again", |line| line == "READY=1")?;
        let log = self.log();
        ensure!(log.contains("reloaded: log filter"), "{log}");
        ensure!(log.contains("need a restart"), "{log}");
        self.wait_for("WATCHDOG after the reload", |line| line == "WATCHDOG=1")
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(
                Instant::now() < deadline,
                "it does not end:\n{}",
                self.log()
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        };
        ensure!(status.success(), "{status}:\n{}", self.log());
        self.socket.set_nonblocking(true)?;
        let mut bytes = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..length]);
            self.told.extend(text.lines().map(str::to_owned));
        }
        ensure!(
            self.told.iter().any(|line| line == "STOPPING=1"),
            "{:?}",
            self.told
        );
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ended already, in a test that passed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn run(program: &str, arguments: &[&str], context: &Path) -> anyhow::Result<String> {
    let output = Command::new(programs()?.join(program))
        .args(arguments)
        .env("TIDEGATE_CONTEXT", context)
        .output()?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Replaces a text in a file.
fn edit(file: &Path, from: &str, to: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file)?;
    ensure!(
        text.contains(from),
        "{} lacks {from}: {text}",
        file.display()
    );
    Ok(std::fs::write(file, text.replace(from, to))?)
}

/// Where a coordinator listens, by the line that it says when it is ready.
fn listens(log: &str, what: &str) -> Option<String> {
    let line = log.lines().find(|line| line.starts_with("ready node="))?;
    let found = line.split(' ').find_map(|word| word.strip_prefix(what))?;
    Some(found.trim_start_matches('=').to_owned())
}

#[test]
fn daemons_tell_their_manager_how_they_are() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path();
    let data = dir.join("c1");
    let admin = data.join("admin");
    let data = data.display().to_string();
    let any = "127.0.0.1:0";
    let mut init = vec!["init", "--dir", &data, "--name", "c1"];
    init.extend(["--trust-domain", "example.com"]);
    for key in ["--control", "--peer", "--http", "--enroll"] {
        init.extend([key, any]);
    }
    run("tidegate-coordinator", &init, &admin)?;
    let mut coordinator = Daemon::start(dir, "tidegate-coordinator", &["run", "--dir", &data])?;
    let file = Path::new(&data).join("coordinator.toml");
    coordinator.live("node 1, leads, term", || {
        edit(&file, "filter = \"info\"", "filter = \"debug\"")?;
        edit(&file, "tick = \"25ms\"", "tick = \"40ms\"")
    })?;
    ensure!(
        coordinator.log().contains("raft.tick"),
        "{}",
        coordinator.log()
    );

    let log = coordinator.log();
    let control = listens(&log, "control").context("no control listener")?;
    let enroll = listens(&log, "enroll").context("no enrolment listener")?;
    // The context of `init` has port 0, as it was told.
    for entry in std::fs::read_dir(&admin)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        if text.contains(any) {
            std::fs::write(&path, text.replace(any, &control))?;
        }
    }
    let token = run(
        "tidegate",
        &["token", "create", "agent", "--output", "json"],
        &admin,
    )?;
    let token: serde_json::Value = serde_json::from_str(&token)?;
    let token = token["token"].as_str().context("no token")?.to_owned();
    let agent = dir.join("a1").display().to_string();
    let join = [
        "join", "--token", &token, "--server", &enroll, "--name", "a1", "--dir", &agent,
    ];
    run("tidegate-agent", &join, &admin)?;
    let file = Path::new(&agent).join("agent.toml");
    let config = file.display().to_string();
    let mut agent = Daemon::start(dir, "tidegate-agent", &["run", "--config", &config])?;
    agent.live("in session with", || {
        edit(&file, "log = \"info\"", "log = \"debug\"")?;
        edit(&file, "20000-29999", "21000-29999")
    })?;
    ensure!(agent.log().contains("port_range"), "{}", agent.log());
    agent.end()?;
    coordinator.end()
}
