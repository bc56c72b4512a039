//! A cluster in service: on every host a coordinator and an agent, installed from the packages,
//! started by systemd, joined by tokens; and a person at a machine of her own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tidegate_harness::cluster::{PATIENCE, number, programs, text};
use tidegate_harness::nspawn::Host;
use tidegate_harness::{Client, Hosts, Output, poll};

/// The unit of a coordinator.
pub const COORDINATOR: &str = "tidegate-coordinator.service";
/// The unit of an agent.
pub const AGENT: &str = "tidegate-agent.service";

/// The data folder of a coordinator.
const COORDINATOR_DIR: &str = "/var/lib/tidegate-coordinator";

/// See the module.
pub struct Service {
    hosts: Hosts,
    packages: Packages,
    home: PathBuf,
}

/// Packages of one version.
pub struct Packages {
    /// The version.
    pub version: String,
    files: Vec<PathBuf>,
}

impl Packages {
    /// Builds them of the programs beside this test.
    ///
    /// # Errors
    /// What the build said.
    pub fn build(dir: &Path, version: &str) -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let out = dir.join(format!("packages-{version}"));
        let built = Command::new(root.join("packaging/deb/build"))
            .arg("--bin-dir")
            .arg(programs()?)
            .arg("--out")
            .arg(&out)
            .args(["--version", version, "--compression", "none"])
            .output()
            .context("packaging/deb/build")?;
        ensure!(
            built.status.success(),
            "packaging/deb/build: {}\n{}{}",
            built.status,
            String::from_utf8_lossy(&built.stdout),
            String::from_utf8_lossy(&built.stderr)
        );
        let mut files: Vec<PathBuf> = std::fs::read_dir(&out)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|kind| kind == "deb"))
            .collect();
        files.sort();
        ensure!(files.len() == 3, "want three packages: {files:?}");
        Ok(Self {
            version: version.to_owned(),
            files,
        })
    }

    /// Installs them on a host, or upgrades what is there.
    ///
    /// # Errors
    /// What dpkg said.
    pub fn install(&self, host: &Host) -> anyhow::Result<()> {
        let mut command = vec!["dpkg".to_owned(), "--install".to_owned()];
        for file in &self.files {
            let name = file.file_name().context("a package without a name")?;
            let place = format!("/root/packages/{}", name.to_string_lossy());
            host.copy_in(file, &place, 0o644)?;
            command.push(place);
        }
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        host.run(&command)?.ok()?;
        host.run(&["rm", "-r", "/root/packages"])?.ok()?;
        Ok(())
    }
}

impl Client for Service {
    fn tidegate(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = Command::new(programs()?.join("tidegate"))
            .args(arguments)
            .env("TIDEGATE_CONTEXT", "people")
            .env("TIDEGATE_CONFIG_DIR", &self.home)
            .env("TIDEGATE_OUTPUT", "json")
            .output()?;
        Ok(Output {
            command: format!("tidegate {}", arguments.join(" ")),
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn dir(&self) -> &Path {
        &self.home
    }

    fn program(&self) -> anyhow::Result<PathBuf> {
        Ok(PathBuf::from("/usr/bin/tidegate"))
    }
}

impl Service {
    /// Boots so many hosts with the packages and nothing configured.
    ///
    /// # Errors
    /// What did not work.
    pub fn boot(count: u8, version: &str) -> anyhow::Result<Self> {
        let hosts = Hosts::boot(count)?;
        let home = hosts.dir().join("home");
        std::fs::create_dir(&home)?;
        let packages = Packages::build(hosts.dir(), version)?;
        for host in hosts.iter() {
            packages.install(host)?;
        }
        Ok(Self {
            hosts,
            packages,
            home,
        })
    }

    /// A host; from 0.
    pub fn host(&self, position: usize) -> &Host {
        self.hosts.host(position)
    }

    /// The hosts themselves.
    pub fn hosts(&mut self) -> &mut Hosts {
        &mut self.hosts
    }

    /// The packages that were installed at first.
    pub fn packages(&self) -> &Packages {
        &self.packages
    }

    /// Where the proxies of the hosts listen for a port.
    pub fn doors(&self, port: u16) -> Vec<SocketAddr> {
        let door = |host: &Host| SocketAddr::new(host.address(), port);
        self.hosts.iter().map(door).collect()
    }

    /// Begins the cluster on the first host and joins the others; logs the person in; joins an agent on
    /// each host.
    ///
    /// # Errors
    /// What was refused, or did not come up.
    pub fn found(&self) -> anyhow::Result<()> {
        self.begin()?;
        for position in 1..self.hosts.iter().count() {
            self.join_coordinator(position)?;
        }
        self.log_in()?;
        let hosts = self.hosts.iter().count().to_string();
        let arguments = ["agent", "--uses", &hosts, "--labels", "role=web"];
        let token = token(self.tidegate(&[&["token", "create"], &arguments[..]].concat())?)?;
        for host in self.hosts.iter() {
            join_agent(host, &self.door(), &token)?;
        }
        self.all_connected()
    }

    /// Where newcomers are let in: the first coordinator.
    fn door(&self) -> String {
        format!("{}:7443", self.host(0).address())
    }

    fn begin(&self) -> anyhow::Result<()> {
        let first = self.host(0);
        let address = first.address().to_string();
        let init = [
            "tidegate-coordinator",
            "init",
            "--dir",
            COORDINATOR_DIR,
            "--name",
            first.name(),
            "--trust-domain",
            "example.com",
            "--listen",
            &address,
        ];
        first.run(&init)?.ok()?;
        start(first, COORDINATOR)?;
        poll::until("a leader", PATIENCE, || {
            self.as_admin(&["cluster", "status"])?.json()
        })?;
        Ok(())
    }

    /// Runs `tidegate` on the first host as its root, who holds the first administrator's context.
    fn as_admin(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let context = format!("TIDEGATE_CONTEXT={COORDINATOR_DIR}/admin");
        let words = [context.as_str(), "TIDEGATE_OUTPUT=json", "tidegate"];
        self.host(0).run(&[&words, arguments].concat())
    }

    fn join_coordinator(&self, position: usize) -> anyhow::Result<()> {
        let host = self.host(position);
        let (name, address) = (host.name(), host.address().to_string());
        let made = self.as_admin(&["token", "create", "coordinator", "--name", name])?;
        let token = format!("TIDEGATE_COORDINATOR_TOKEN={}", token(made)?);
        let join = [
            &token,
            "tidegate-coordinator",
            "join",
            "--dir",
            COORDINATOR_DIR,
            "--name",
            name,
            "--listen",
            &address,
            "--server",
            &self.door(),
        ];
        host.run(&join)?.ok()?;
        start(host, COORDINATOR)?;
        poll::until(&format!("{name} as a member"), PATIENCE, || {
            let status = self.as_admin(&["cluster", "status"])?.json()?;
            members_up(&status, position + 1)
        })
    }

    fn log_in(&self) -> anyhow::Result<()> {
        let token = token(self.as_admin(&[
            "token", "create", "user", "--name", "ann", "--role", "admin",
        ])?)?;
        let arguments = [
            "login",
            "--name",
            "people",
            "--server",
            &self.door(),
            "--token",
            &token,
        ];
        self.tidegate(&arguments)?.ok()?;
        Ok(())
    }

    /// Waits until every member is up.
    ///
    /// # Errors
    /// Not in time.
    pub fn all_members(&self) -> anyhow::Result<()> {
        poll::until("all members", PATIENCE, || {
            let status = self.tidegate(&["cluster", "status"])?.json()?;
            members_up(&status, self.hosts.iter().count())
        })
    }

    /// Waits until the agents of all hosts are connected.
    ///
    /// # Errors
    /// Not in time.
    pub fn all_connected(&self) -> anyhow::Result<()> {
        let wanted = self.hosts.iter().count() as u64;
        poll::until("all agents", PATIENCE, || {
            let status = self.tidegate(&["cluster", "status"])?.json()?;
            let connected = number(&status, "agentsConnected");
            poll::holds(connected == wanted, || status.to_string())
        })
    }

    /// Waits until no agent of a scope is lost and nothing is left of ended deployments.
    ///
    /// # Errors
    /// Not in time.
    pub fn converged(&self, scope: &str) -> anyhow::Result<Value> {
        poll::until("nothing lost, nothing left", PATIENCE, || {
            let view = self.tidegate(&["scope", "get", scope])?.json()?;
            let none = |key: &str| view[key].as_array().is_none_or(Vec::is_empty);
            poll::holds(none("lostAgents") && none("leftovers"), || view.to_string())?;
            Ok(view)
        })
    }
}

fn members_up(status: &Value, wanted: usize) -> anyhow::Result<()> {
    let members = status["members"].as_array().cloned().unwrap_or_default();
    let up = members
        .iter()
        .filter(|member| ["leader", "follower"].contains(&text(member, "role")));
    poll::holds(up.count() == wanted, || status.to_string())
}

fn token(made: Output) -> anyhow::Result<String> {
    let made = made.json()?;
    let token = text(&made, "token");
    ensure!(token.starts_with("tg1_"), "no token: {made}");
    Ok(token.to_owned())
}

fn join_agent(host: &Host, server: &str, token: &str) -> anyhow::Result<()> {
    let token = format!("TIDEGATE_AGENT_TOKEN={token}");
    let address = host.address().to_string();
    let join = [
        &token,
        "tidegate-agent",
        "join",
        "--server",
        server,
        "--name",
        host.name(),
        "--listen-address",
        &address,
    ];
    host.run(&join)?.ok()?;
    start(host, AGENT)
}

/// Starts a unit; systemd says when it is ready.
pub fn start(host: &Host, unit: &str) -> anyhow::Result<()> {
    let started = host.run(&["systemctl", "start", unit])?;
    started.ok().map(drop).with_context(|| journal(host, unit))
}

/// The last lines of a unit.
pub fn journal(host: &Host, unit: &str) -> String {
    let said = host.run(&["journalctl", "--no-pager", "--lines=30", "--unit", unit]);
    said.map_or_else(|error| format!("{error:#}"), |said| said.stdout)
}

/// A property of a unit.
pub fn property(host: &Host, unit: &str, name: &str) -> anyhow::Result<String> {
    let show = ["systemctl", "show", "--value", "--property", name, unit];
    Ok(host.run(&show)?.ok()?.stdout.trim().to_owned())
}

/// The main process of a unit, as the host counts; never 0.
pub fn main_pid(host: &Host, unit: &str) -> anyhow::Result<u32> {
    let pid: u32 = property(host, unit, "MainPID")?.parse()?;
    ensure!(
        pid > 0,
        "{unit} does not run on {}: {}",
        host.name(),
        journal(host, unit)
    );
    Ok(pid)
}
