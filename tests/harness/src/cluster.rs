//! A cluster of real programs on loopback, driven through the real command line.
//!
//! The programs are those beside the test's own executable: `tests/run` builds them first.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::poll;
use crate::ports::{self, Network};
use crate::process::{Process, tail};

pub mod control;

/// A step of starting may take so long, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Ports of loopback for the coordinators: the network's address with this number.
const COORDINATORS: u8 = 200;

/// How many of what.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Coordinators; 1 to 7.
    pub coordinators: u8,
    /// Agents; 0 to 100.
    pub agents: u8,
}

/// What a command of the command line came to.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// Its exit status; none if a signal ended it.
    pub status: Option<i32>,
    /// Its results.
    pub stdout: String,
    /// Its notes and errors.
    pub stderr: String,
}

impl Output {
    /// The results, if it ended well.
    ///
    /// # Errors
    /// It did not; the message is all that it said.
    pub fn ok(self) -> anyhow::Result<Self> {
        ensure!(self.status == Some(0), "{self}");
        Ok(self)
    }

    /// The results as JSON, if it ended well.
    ///
    /// # Errors
    /// It did not, or they are no JSON.
    pub fn json(self) -> anyhow::Result<Value> {
        let output = self.ok()?;
        serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {output}"))
    }

    /// Checks that it was refused with this status and that every part stands in what it said.
    ///
    /// # Errors
    /// It was not.
    pub fn refused(&self, status: i32, parts: &[&str]) -> anyhow::Result<()> {
        ensure!(self.status == Some(status), "want exit {status}: {self}");
        for part in parts {
            ensure!(self.stderr.contains(part), "\"{part}\" is missing: {self}");
        }
        ensure!(!self.stderr.contains("panicked"), "{self}");
        Ok(())
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ended with {:?}\n{}\n{}",
            self.command, self.status, self.stdout, self.stderr
        )
    }
}

/// A person who uses a cluster through the command line, wherever it runs.
pub trait Client {
    /// Runs `tidegate` with JSON as output.
    ///
    /// # Errors
    /// It cannot be started.
    fn tidegate(&self, arguments: &[&str]) -> anyhow::Result<Output>;

    /// A folder for files that the person makes.
    fn dir(&self) -> &Path;

    /// Where `tidegate` lies on the hosts of the agents: releases run it.
    ///
    /// # Errors
    /// It is not built.
    fn program(&self) -> anyhow::Result<PathBuf>;
}

impl Client for Cluster {
    fn tidegate(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Self::tidegate(self, arguments)
    }

    fn dir(&self) -> &Path {
        Self::dir(self)
    }

    fn program(&self) -> anyhow::Result<PathBuf> {
        Ok(self.programs.join("tidegate"))
    }
}

/// A coordinator of the cluster.
#[derive(Debug)]
struct Coordinator {
    name: String,
    folder: PathBuf,
    flags: Vec<String>,
    enroll: SocketAddr,
    process: Option<Process>,
}

/// An agent of the cluster.
#[derive(Debug)]
struct Agent {
    name: String,
    folder: PathBuf,
    address: IpAddr,
    process: Option<Process>,
}

/// See the module.
#[derive(Debug)]
pub struct Cluster {
    folder: Option<tempfile::TempDir>,
    dir: PathBuf,
    programs: PathBuf,
    context: String,
    tick: String,
    coordinators: Vec<Coordinator>,
    agents: Vec<Agent>,
}

/// The folder of the programs that were built with this test.
///
/// # Errors
/// They are not there.
pub fn programs() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own
        .ancestors()
        .find(|folder| folder.join("tidegate").is_file())
        .context("the programs are not beside the tests: run `cargo build --workspace --bins`")?;
    for name in ["tidegate-coordinator", "tidegate-agent"] {
        ensure!(
            folder.join(name).is_file(),
            "{name} is missing: run `cargo build --workspace --bins`"
        );
    }
    Ok(folder.to_owned())
}

impl Cluster {
    /// Makes and starts one; comes back when every agent is connected.
    ///
    /// # Errors
    /// What did not start, with the end of its log.
    pub fn start(shape: Shape) -> anyhow::Result<Self> {
        Self::start_with_tick(shape, "20ms")
    }

    /// As [`Cluster::start`], with another tick of the coordinators' Raft, as `50ms`.
    ///
    /// # Errors
    /// As there.
    pub fn start_with_tick(shape: Shape, tick: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tidegate-").tempdir()?;
        let dir = folder.path().to_owned();
        fs::create_dir(dir.join("logs"))?;
        let admin = dir.join("admin").display().to_string();
        let mut cluster = Self {
            context: admin,
            folder: Some(folder),
            dir,
            programs: programs()?,
            tick: tick.to_owned(),
            coordinators: Vec::new(),
            agents: Vec::new(),
        };
        cluster.bring_up(shape).with_context(|| cluster.tails())?;
        Ok(cluster)
    }

    fn bring_up(&mut self, shape: Shape) -> anyhow::Result<()> {
        let network = Network::new();
        for number in 1..=shape.coordinators {
            self.plan_coordinator(number, network.address(COORDINATORS + number))?;
        }
        let admin = self.dir.join("admin").display().to_string();
        let mut flags = vec!["init".to_owned(), "--trust-domain".to_owned()];
        flags.push("test.tidegate".to_owned());
        flags.extend(self.coordinators[0].flags.clone());
        flags.extend(["--admin-out".to_owned(), admin]);
        self.finish("tidegate-coordinator", &flags, &[])?.ok()?;
        self.start_coordinator(0)?;
        poll::until("a leader", PATIENCE, || self.leader())?;
        for position in 1..self.coordinators.len() {
            self.join_coordinator(position)?;
        }
        self.log_in()?;
        for number in 1..=shape.agents {
            self.join_agent(
                number,
                network.address(number),
                &network.instance_ports(number),
            )?;
        }
        let wanted = usize::from(shape.agents);
        poll::until("all agents", PATIENCE, || {
            let status = self.tidegate(&["cluster", "status"])?.json()?;
            let connected = number(&status, "agentsConnected");
            poll::holds(connected == wanted as u64, || {
                format!("{connected} of {wanted} agents are connected: {status}")
            })
        })
    }

    fn plan_coordinator(&mut self, number: u8, address: IpAddr) -> anyhow::Result<()> {
        let name = format!("c{number}");
        let folder = self.dir.join(&name);
        let mut flags = vec!["--dir".to_owned(), folder.display().to_string()];
        flags.extend(["--name".to_owned(), name.clone()]);
        let mut addresses = Vec::new();
        for flag in ["--control", "--peer", "--http", "--enroll"] {
            let mut found = SocketAddr::new(address, ports::free(address)?);
            while addresses.contains(&found) {
                found = SocketAddr::new(address, ports::free(address)?);
            }
            addresses.push(found);
            flags.extend([flag.to_owned(), found.to_string()]);
        }
        self.coordinators.push(Coordinator {
            name,
            folder,
            flags,
            enroll: addresses[3],
            process: None,
        });
        Ok(())
    }

    fn join_coordinator(&mut self, position: usize) -> anyhow::Result<()> {
        let name = self.coordinators[position].name.clone();
        let token = self.token(&["coordinator", "--name", &name])?;
        let server = self.coordinators[0].enroll.to_string();
        let mut flags = vec!["join".to_owned(), "--server".to_owned(), server];
        flags.extend(self.coordinators[position].flags.clone());
        let environment = [("TIDEGATE_COORDINATOR_TOKEN", token)];
        self.finish("tidegate-coordinator", &flags, &environment)?
            .ok()?;
        self.start_coordinator(position)?;
        poll::until(&format!("{name} as a member"), PATIENCE, || {
            let status = self.tidegate(&["cluster", "status"])?.json()?;
            let members = status["members"].as_array().cloned().unwrap_or_default();
            let up = members
                .iter()
                .filter(|member| ["leader", "follower"].contains(&text(member, "role")));
            poll::holds(up.count() == position + 1, || status.to_string())
        })
    }

    fn join_agent(&mut self, number: u8, address: IpAddr, ports: &str) -> anyhow::Result<()> {
        let name = format!("a{number}");
        let folder = self.dir.join(&name);
        let token = self.token(&["agent", "--name", &name, "--labels", "role=web"])?;
        let flags = [
            "join",
            "--name",
            &name,
            "--server",
            &self.coordinators[0].enroll.to_string(),
            "--dir",
            &folder.display().to_string(),
            "--listen-address",
            &address.to_string(),
            "--instance-address",
            &address.to_string(),
            "--port-range",
            ports,
        ]
        .map(str::to_owned);
        let environment = [("TIDEGATE_AGENT_TOKEN", token)];
        self.finish("tidegate-agent", &flags, &environment)?.ok()?;
        self.agents.push(Agent {
            name,
            folder,
            address,
            process: None,
        });
        self.start_agent(self.agents.len() - 1)
    }

    /// A new join token.
    ///
    /// # Errors
    /// The cluster's refusal.
    pub fn token(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut all = vec!["token", "create"];
        all.extend(arguments);
        let made = self.tidegate(&all)?.json()?;
        let token = text(&made, "token");
        ensure!(token.starts_with("tg1_"), "no token: {made}");
        Ok(token.to_owned())
    }

    /// The folder that holds everything.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Logs a person in, who then knows every coordinator; the first administrator's context knows
    /// only the one that `init` made.
    fn log_in(&mut self) -> anyhow::Result<()> {
        let token = self.token(&["user", "--name", "ann", "--role", "admin"])?;
        let server = self.coordinators[0].enroll.to_string();
        let arguments = ["login", "--name", "people", "--server", &server].map(str::to_owned);
        let environment = [
            ("TIDEGATE_TOKEN", token),
            ("TIDEGATE_CONFIG_DIR", self.dir.display().to_string()),
        ];
        self.finish("tidegate", &arguments, &environment)?.ok()?;
        self.context = "people".to_owned();
        Ok(())
    }

    /// Runs `tidegate` as a person, with JSON as output.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn tidegate(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let environment = [
            ("TIDEGATE_CONTEXT", self.context.clone()),
            ("TIDEGATE_CONFIG_DIR", self.dir.display().to_string()),
            ("TIDEGATE_OUTPUT", "json".to_owned()),
        ];
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        self.finish("tidegate", &arguments, &environment)
    }

    /// Runs a program of ours to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn finish(
        &self,
        program: &str,
        arguments: &[String],
        environment: &[(&str, String)],
    ) -> anyhow::Result<Output> {
        let mut command = Command::new(self.programs.join(program));
        command
            .args(arguments)
            .stdin(Stdio::null())
            .current_dir(&self.dir);
        for (key, value) in environment {
            command.env(key, value);
        }
        let output = command
            .output()
            .with_context(|| format!("{program} cannot be started"))?;
        Ok(Output {
            command: format!("{program} {}", arguments.join(" ")),
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Starts a coordinator that does not run; from 0.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_coordinator(&mut self, position: usize) -> anyhow::Result<()> {
        let coordinator = &self.coordinators[position];
        let arguments = ["run".into(), "--dir".into(), coordinator.folder.clone()];
        let process = Process::start(
            &coordinator.name,
            &self.programs.join("tidegate-coordinator"),
            &arguments,
            &[("TIDEGATE_COORDINATOR_RAFT_TICK", self.tick.clone())],
            &self.log(&coordinator.name),
        )?;
        self.coordinators[position].process = Some(process);
        Ok(())
    }

    /// Starts an agent that does not run; from 0.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_agent(&mut self, position: usize) -> anyhow::Result<()> {
        let agent = &self.agents[position];
        let arguments = [
            "run".into(),
            "--config".into(),
            agent.folder.join("agent.toml"),
        ];
        let process = Process::start(
            &agent.name,
            &self.programs.join("tidegate-agent"),
            &arguments,
            &[],
            &self.log(&agent.name),
        )?;
        self.agents[position].process = Some(process);
        Ok(())
    }

    /// Ends a coordinator as `kill -9` does.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_coordinator(&mut self, position: usize) -> anyhow::Result<()> {
        let process = self.coordinators[position].process.take();
        process.context("it does not run")?.kill()
    }

    /// Ends an agent as `kill -9` does; what it started goes on.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_agent(&mut self, position: usize) -> anyhow::Result<()> {
        let slot = &mut self.agents[position].process;
        let process = slot.as_mut().context("it does not run")?;
        process.signal(Signal::KILL)?;
        process.wait(PATIENCE)?;
        // Its group is not ended here: the proxy and the instances must survive their parent.
        if let Some(process) = slot.take() {
            process.forget();
        }
        Ok(())
    }

    /// The position of the leader, from 0.
    ///
    /// # Errors
    /// Nobody leads, or nobody answers.
    pub fn leader(&self) -> anyhow::Result<usize> {
        let status = self.tidegate(&["cluster", "status"])?.json()?;
        let members = status["members"].as_array().cloned().unwrap_or_default();
        let leader = members
            .iter()
            .find(|member| text(member, "role") == "leader")
            .with_context(|| format!("nobody leads: {status}"))?;
        let name = text(leader, "name");
        self.coordinators
            .iter()
            .position(|coordinator| coordinator.name == name)
            .with_context(|| format!("{name} is a stranger"))
    }

    /// Where the proxy of an agent listens for a scope with this port; agents count from 0.
    pub fn proxy(&self, agent: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.agents[agent].address, port)
    }

    /// The folder of an agent; from 0.
    pub fn agent_dir(&self, agent: usize) -> &Path {
        &self.agents[agent].folder
    }

    /// A port that is free at every agent.
    ///
    /// # Errors
    /// None can be had.
    pub fn scope_port(&self) -> anyhow::Result<u16> {
        let Some(first) = self.agents.first() else {
            bail!("there are no agents");
        };
        ports::free(first.address)
    }

    /// The newest deployment of a scope.
    ///
    /// # Errors
    /// There is none.
    pub fn newest(&self, scope: &str) -> anyhow::Result<Value> {
        let list = self.tidegate(&["deployment", "history", scope])?.json()?;
        list["deployments"]
            .get(0)
            .cloned()
            .with_context(|| format!("{scope} has no deployment"))
    }

    /// The last lines of every log, for messages.
    pub fn tails(&self) -> String {
        let names = self.coordinators.iter().map(|c| &c.name);
        let names = names.chain(self.agents.iter().map(|agent| &agent.name));
        names
            .map(|name| {
                let text = fs::read_to_string(self.log(name)).unwrap_or_default();
                format!("-- {name}\n{}\n", tail(&text))
            })
            .collect()
    }

    /// Keeps the folder after the end, and says where it is.
    pub fn keep(&mut self) -> PathBuf {
        match self.folder.take() {
            Some(folder) => folder.keep(),
            None => self.dir.clone(),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            drop(agent.process.take());
        }
        // Instances and proxies have groups of their own; the agent's program finds them by its
        // ledger.
        for agent in &self.agents {
            let dir = agent.folder.display().to_string();
            let arguments = ["stop-all".to_owned(), "--dir".to_owned(), dir];
            self.finish("tidegate-agent", &arguments, &[]).ok();
        }
        self.coordinators.clear();
        if std::thread::panicking() {
            self.keep();
        }
    }
}

/// A text of a JSON object; empty if it is not there.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A number of a JSON object, written as a number or as a text; 0 if it is not there.
pub fn number(value: &Value, key: &str) -> u64 {
    match &value[key] {
        Value::String(text) => text.parse().unwrap_or(0),
        other => other.as_u64().unwrap_or(0),
    }
}
