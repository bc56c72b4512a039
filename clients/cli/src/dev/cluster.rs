//! The processes of a cluster on this machine: made once, started, stopped in order.
//!
//! ```text
//! D/cluster.json            addresses, so that the same cluster starts again
//! D/admin/                  the first administrator's context
//! D/coordinators/N/         data of a coordinator
//! D/agents/N/               data of an agent, its proxy and its instances
//! D/logs/                   output of all of them
//! D/pids/                   the process id of each, for whoever wants to kill one
//! ```

mod supervise;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;
use tidegate_shared::time::Span;

use super::process::{Launch, Process, sweep};
use crate::commands::{agent, cluster as cluster_command, token};
use crate::connect::Client;
use crate::context;
use crate::errors::{Failure, Result};
use crate::output::{ColorChoice, Format, Output};
use crate::session::{GlobalArgs, Session};

/// Names the cluster of a folder.
pub const PLAN_FILE: &str = "cluster.json";
/// Trust domain of every cluster made here.
const TRUST_DOMAIN: &str = "dev.tidegate";
/// A step of starting may take so long.
const STEP_LIMIT: Duration = Duration::from_secs(30);
/// Agents stop their instances and their proxy within this time.
const AGENT_STOP: Duration = Duration::from_secs(15);
/// Coordinators hand over and sync within this time.
const COORDINATOR_STOP: Duration = Duration::from_secs(5);
/// The port that is held at 127.0.N.254 by the cluster whose agents have the addresses 127.0.N.x.
const CLAIM_PORT: u16 = 7_439;
/// Ports for instances of one agent.
const PORTS_PER_AGENT: u16 = 200;

/// Addresses of one coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorPlan {
    name: String,
    control: SocketAddr,
    peer: SocketAddr,
    http: SocketAddr,
    enroll: SocketAddr,
}

/// Place of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentPlan {
    name: String,
    address: Ipv4Addr,
    first_port: u16,
}

/// A cluster as it was laid out once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Agents have the addresses 127.0.`network`.N.
    network: u8,
    coordinators: Vec<CoordinatorPlan>,
    agents: Vec<AgentPlan>,
}

impl Plan {
    /// The plan of a folder, or a new one with free ports.
    ///
    /// # Errors
    /// The folder holds another plan, or no ports are free.
    pub fn find_or_make(dir: &Path, coordinators: u8, agents: u8) -> Result<Self> {
        let path = dir.join(PLAN_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let plan: Self = serde_json::from_slice(&bytes).map_err(|error| {
                    Failure::new(
                        Reason::DataFolder,
                        format!("{} cannot be used: {error}", path.display()),
                    )
                    .hint("give another --dir")
                })?;
                if plan.coordinators.len() != usize::from(coordinators)
                    || plan.agents.len() != usize::from(agents)
                {
                    return Err(Failure::new(
                        Reason::DataFolder,
                        format!(
                            "{} holds a cluster of {} coordinators and {} agents",
                            dir.display(),
                            plan.coordinators.len(),
                            plan.agents.len()
                        ),
                    )
                    .hint(format!(
                        "say --coordinators {} --agents {}, or give another --dir",
                        plan.coordinators.len(),
                        plan.agents.len()
                    )));
                }
                Ok(plan)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let empty =
                    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
                if !empty {
                    return Err(Failure::new(
                        Reason::DataFolder,
                        format!("{} is not empty and holds no cluster", dir.display()),
                    )
                    .hint("give --dir an empty or a new folder"));
                }
                Self::make(coordinators, agents)
            }
            Err(error) => Err(Failure::file(Reason::DataFolder, &path, "read", &error)),
        }
    }

    fn make(coordinators: u8, agents: u8) -> Result<Self> {
        let network = (1..=u8::MAX)
            .find(|network| claim(*network).is_ok())
            .ok_or_else(|| {
                Failure::new(Reason::AddressInUse, "every loopback network has a cluster")
            })?;
        // All are held until all are found, so that none is found twice.
        let mut held = Vec::new();
        let mut address = || -> Result<SocketAddr> {
            let listener =
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| no_port(&error))?;
            let address = listener.local_addr().map_err(|error| no_port(&error))?;
            held.push(listener);
            Ok(address)
        };
        let coordinators = (1..=coordinators)
            .map(|number| {
                Ok(CoordinatorPlan {
                    name: format!("coordinator-{number}"),
                    control: address()?,
                    peer: address()?,
                    http: address()?,
                    enroll: address()?,
                })
            })
            .collect::<Result<_>>()?;
        let agents = (1..=agents)
            .map(|number| AgentPlan {
                name: format!("agent-{number}"),
                address: Ipv4Addr::new(127, 0, network, number),
                first_port: first_port(network, number),
            })
            .collect();
        Ok(Self {
            network,
            coordinators,
            agents,
        })
    }

    fn store(&self, dir: &Path) -> Result<()> {
        let text = crate::output::to_json(self)?;
        context::write(&dir.join(PLAN_FILE), text.as_bytes(), 0o600)
    }
}

/// Instances of all agents listen on 127.0.0.1, so that applications may listen on any address:
/// every agent of every cluster has ports of its own, as far as there are enough.
fn first_port(network: u8, number: u8) -> u16 {
    let blocks = (30_000 - 10_000) / PORTS_PER_AGENT;
    let block = (u16::from(network - 1) * 10 + u16::from(number - 1)) % blocks;
    10_000 + block * PORTS_PER_AGENT
}

/// Takes the addresses 127.0.`network`.N for one cluster of this machine, as long as the listener
/// lives: nothing is served there.
fn claim(network: u8) -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::new(127, 0, network, 254), CLAIM_PORT))
}

fn no_port(error: &std::io::Error) -> Failure {
    Failure::new(
        Reason::AddressInUse,
        format!("no free port on 127.0.0.1: {error}"),
    )
}

/// The running processes.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    plan: Plan,
    output: Output,
    coordinator_program: PathBuf,
    agent_program: PathBuf,
    coordinators: Vec<Process>,
    agents: Vec<Process>,
    session: Session,
    /// Names of those that were taken out of the cluster.
    removed: BTreeSet<String>,
    /// Held, so that no other cluster takes the same addresses.
    _claim: TcpListener,
}

impl Cluster {
    /// Finds the programs; starts nothing.
    ///
    /// # Errors
    /// A program is not beside this one.
    pub fn new(dir: PathBuf, plan: Plan, output: Output) -> Result<Self> {
        let beside = |name: &str| -> Result<PathBuf> {
            let program = super::own_program()?.with_file_name(name);
            if program.is_file() {
                return Ok(program);
            }
            Err(Failure::new(
                Reason::ProgramMissing,
                format!("{} is not there", program.display()),
            ))
        };
        let network = plan.network;
        let claim = claim(network).map_err(|error| {
            Failure::new(
                Reason::AddressInUse,
                format!(
                    "the addresses 127.0.{network}.x are taken by another `tidegate dev`: {error}"
                ),
            )
            .hint("stop that one first, or start another cluster without --dir")
        })?;
        for folder in ["logs", "pids", "coordinators", "agents"] {
            context::make_folder(&dir.join(folder))?;
        }
        let session = admin_session(&dir);
        Ok(Self {
            coordinator_program: beside("tidegate-coordinator")?,
            agent_program: beside("tidegate-agent")?,
            dir,
            plan,
            output,
            coordinators: Vec::new(),
            agents: Vec::new(),
            session,
            removed: BTreeSet::new(),
            _claim: claim,
        })
    }

    /// Everything that is written stands here.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The first administrator's context.
    pub fn admin_folder(&self) -> PathBuf {
        self.dir.join("admin")
    }

    /// A session as the first administrator.
    pub const fn session(&self) -> &Session {
        &self.session
    }

    /// How many agents there are.
    pub fn agent_count(&self) -> usize {
        self.present_agents().count()
    }

    /// Positions and plans of the agents that are in the cluster.
    fn present_agents(&self) -> impl Iterator<Item = (usize, &AgentPlan)> {
        let agents = self.plan.agents.iter().enumerate();
        agents.filter(|(_, agent)| !self.removed.contains(&agent.name))
    }

    /// Where the proxies listen for a scope with this port.
    pub fn proxies(&self, port: u16) -> Vec<SocketAddr> {
        self.present_agents()
            .map(|(_, agent)| SocketAddr::from((agent.address, port)))
            .collect()
    }

    /// A port that is free at every agent: 8080 if possible.
    ///
    /// # Errors
    /// None can be found.
    pub fn scope_port(&self) -> Result<u16> {
        let is_free = |port: u16| {
            self.proxies(port)
                .iter()
                .all(|address| TcpListener::bind(address).is_ok())
        };
        (8_080..8_180).find(|port| is_free(*port)).ok_or_else(|| {
            Failure::new(
                Reason::AddressInUse,
                "no port of 8080 to 8179 is free at every agent",
            )
        })
    }

    /// Makes what is not there yet and starts everything; comes back when it works.
    ///
    /// # Errors
    /// The process that did not start, with its last words.
    pub async fn start(&mut self) -> Result<()> {
        let fresh = !self.dir.join(PLAN_FILE).exists();
        if fresh {
            self.init().await?;
        }
        self.start_coordinator(0)?;
        if !fresh {
            for position in 1..self.plan.coordinators.len() {
                self.start_coordinator(position)?;
            }
        }
        self.until("a leader", |status| status.leader != 0).await?;
        if fresh {
            for position in 1..self.plan.coordinators.len() {
                self.join_coordinator(position).await?;
            }
        } else {
            self.leave_out_the_removed().await?;
        }
        let members = self.coordinators.len();
        self.until("all coordinators", move |status| {
            let up = status
                .members
                .iter()
                .filter(|m| m.role == "leader" || m.role == "follower");
            status.leader != 0 && up.count() == members
        })
        .await?;
        self.output
            .note(&format!("{members} coordinators are up"))?;
        self.learn_addresses().await?;
        let present: Vec<_> = self.present_agents().map(|(at, _)| at).collect();
        for position in present {
            if fresh {
                self.join_agent(position).await?;
            }
            self.start_agent(position)?;
        }
        self.until_agents().await?;
        self.output
            .note(&format!("{} agents are connected", self.agents.len()))?;
        if fresh {
            // Written last: a folder whose making was interrupted is not taken for a cluster.
            self.plan.store(&self.dir)?;
        }
        Ok(())
    }

    /// Finds who was taken out of the cluster when it ran before: they stay out.
    async fn leave_out_the_removed(&mut self) -> Result<()> {
        let status = cluster_command::status(&self.session).await?;
        let agents = agent::all(&self.session, "").await?;
        let members = status.members.iter().map(|member| member.name.as_str());
        let names = agents.iter().filter_map(|agent| agent.metadata.as_ref());
        let known: BTreeSet<&str> = members
            .chain(names.map(|metadata| metadata.name.as_str()))
            .collect();
        let coordinators = self.plan.coordinators.iter().map(|plan| &plan.name);
        let all = coordinators.chain(self.plan.agents.iter().map(|plan| &plan.name));
        self.removed = all
            .filter(|name| !known.contains(name.as_str()))
            .cloned()
            .collect();
        for name in &self.removed {
            self.output
                .note(&format!("{name} was removed from the cluster: left out"))?;
        }
        let (mut gone, stay) = std::mem::take(&mut self.coordinators)
            .into_iter()
            .partition(|process| self.removed.contains(&process.name));
        self.coordinators = stay;
        stop_all(&mut gone, COORDINATOR_STOP).await;
        Ok(())
    }

    /// Puts every coordinator into the administrator's context, so that any of them may die.
    async fn learn_addresses(&mut self) -> Result<()> {
        let context = context::Context::read(&self.admin_folder())?;
        Client::connect(context).await?.refresh_addresses().await?;
        self.session = admin_session(&self.dir);
        Ok(())
    }

    fn launch<'a>(&'a self, name: &str, program: &'a Path, arguments: Vec<OsString>) -> Launch<'a> {
        Launch {
            name: name.to_owned(),
            program,
            arguments,
            environment: Vec::new(),
            log: self.dir.join("logs").join(format!("{name}.log")),
        }
    }

    fn coordinator_folder(&self, position: usize) -> PathBuf {
        self.dir
            .join("coordinators")
            .join((position + 1).to_string())
    }

    fn agent_folder(&self, position: usize) -> PathBuf {
        self.dir.join("agents").join((position + 1).to_string())
    }

    fn addresses(&self, position: usize) -> Vec<OsString> {
        let plan = &self.plan.coordinators[position];
        let mut arguments = words(&["--dir"]);
        arguments.push(self.coordinator_folder(position).into());
        for (flag, value) in [
            ("--name", plan.name.clone()),
            ("--control", plan.control.to_string()),
            ("--peer", plan.peer.to_string()),
            ("--http", plan.http.to_string()),
            ("--enroll", plan.enroll.to_string()),
        ] {
            arguments.push(flag.into());
            arguments.push(value.into());
        }
        arguments
    }

    async fn init(&mut self) -> Result<()> {
        let mut arguments = words(&["init", "--trust-domain", TRUST_DOMAIN]);
        arguments.extend(self.addresses(0));
        arguments.push("--admin-out".into());
        arguments.push(self.admin_folder().into());
        let mut launch = self.launch("coordinator-1", &self.coordinator_program, arguments);
        launch.environment = coordinator_environment();
        launch.finish(STEP_LIMIT).await
    }

    fn start_coordinator(&mut self, position: usize) -> Result<()> {
        let process = self.run_coordinator(position)?;
        self.coordinators.push(process);
        Ok(())
    }

    fn run_coordinator(&self, position: usize) -> Result<Process> {
        let name = self.plan.coordinators[position].name.clone();
        let mut arguments = words(&["run", "--dir"]);
        arguments.push(self.coordinator_folder(position).into());
        let mut launch = self.launch(&name, &self.coordinator_program, arguments);
        launch.environment = coordinator_environment();
        self.started(launch.start()?)
    }

    /// Notes the process id where people find it.
    fn started(&self, process: Process) -> Result<Process> {
        if let Some(id) = process.id() {
            let path = self.pid_file(&process.name);
            context::write(&path, format!("{id}\n").as_bytes(), 0o644)?;
        }
        Ok(process)
    }

    /// Where the process id of a coordinator or agent stands.
    pub fn pid_file(&self, name: &str) -> PathBuf {
        self.dir.join("pids").join(name)
    }

    async fn join_coordinator(&mut self, position: usize) -> Result<()> {
        let name = self.plan.coordinators[position].name.clone();
        let made = token::make(
            &self.session,
            "coordinator",
            &[],
            Span::from_mins(10),
            1,
            &name,
        )
        .await?;
        let mut arguments = words(&["join", "--server"]);
        arguments.push(self.plan.coordinators[0].enroll.to_string().into());
        arguments.extend(self.addresses(position));
        let mut launch = self.launch(&name, &self.coordinator_program, arguments);
        launch.environment = coordinator_environment();
        // Arguments can be seen by everybody on the machine.
        launch
            .environment
            .push(("TIDEGATE_COORDINATOR_TOKEN".to_owned(), made.token));
        launch.finish(STEP_LIMIT).await?;
        self.start_coordinator(position)?;
        let wanted = position + 1;
        self.until(&format!("{name} as a member"), move |status| {
            let up = status
                .members
                .iter()
                .filter(|m| m.role == "leader" || m.role == "follower");
            up.count() == wanted
        })
        .await
        .map(|_| ())
    }

    async fn join_agent(&mut self, position: usize) -> Result<()> {
        let plan = self.plan.agents[position].clone();
        let labels = ["role=web".to_owned(), format!("zone=z{}", position + 1)];
        let ttl = Span::from_mins(10);
        let made = token::make(&self.session, "agent", &labels, ttl, 1, &plan.name).await?;
        let last = plan.first_port + PORTS_PER_AGENT - 1;
        let mut arguments = words(&["join", "--name", &plan.name, "--server"]);
        arguments.push(self.plan.coordinators[0].enroll.to_string().into());
        arguments.extend(words(&["--listen-address", &plan.address.to_string()]));
        let ports = format!("{}-{last}", plan.first_port);
        arguments.extend(words(&["--port-range", &ports, "--dir"]));
        arguments.push(self.agent_folder(position).into());
        let mut launch = self.launch(&plan.name, &self.agent_program, arguments);
        launch
            .environment
            .push(("TIDEGATE_AGENT_TOKEN".to_owned(), made.token));
        launch.finish(STEP_LIMIT).await
    }

    fn start_agent(&mut self, position: usize) -> Result<()> {
        let process = self.run_agent(position)?;
        self.agents.push(process);
        Ok(())
    }

    fn run_agent(&self, position: usize) -> Result<Process> {
        let name = self.plan.agents[position].name.clone();
        let mut arguments = words(&["run", "--stop-everything-on-exit", "--config"]);
        arguments.push(self.agent_folder(position).join("agent.toml").into());
        let launch = self.launch(&name, &self.agent_program, arguments);
        self.started(launch.start()?)
    }

    /// Waits until the status is as wanted; ends early when a process dies.
    async fn until(
        &mut self,
        what: &str,
        fits: impl Fn(&api::ClusterStatus) -> bool,
    ) -> Result<api::ClusterStatus> {
        let deadline = tokio::time::Instant::now() + STEP_LIMIT;
        let mut last = None;
        loop {
            match cluster_command::status(&self.session).await {
                Ok(status) if fits(&status) => return Ok(status),
                Ok(_) => {}
                Err(failure) => last = Some(failure),
            }
            self.pause(what, deadline, last.as_ref()).await?;
        }
    }

    async fn until_agents(&mut self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + STEP_LIMIT;
        let mut last = None;
        loop {
            match agent::all(&self.session, "").await {
                Ok(agents) => {
                    let connected = agents.iter().filter(|agent| agent.connected).count();
                    if connected >= self.agents.len() {
                        return Ok(());
                    }
                }
                Err(failure) => last = Some(failure),
            }
            self.pause("all agents", deadline, last.as_ref()).await?;
        }
    }

    async fn pause(
        &mut self,
        what: &str,
        deadline: tokio::time::Instant,
        last: Option<&Failure>,
    ) -> Result<()> {
        if tokio::time::Instant::now() > deadline {
            let failure = Failure::new(
                Reason::Internal,
                format!("waited {} s for {what}, in vain", STEP_LIMIT.as_secs()),
            )
            .hint(format!(
                "see the logs in {}",
                self.dir.join("logs").display()
            ));
            return Err(match last {
                Some(last) => failure.at(last.message().to_owned()),
                None => failure,
            });
        }
        tokio::select! {
            death = self.first_death() => Err(death),
            () = tokio::time::sleep(Duration::from_millis(50)) => Ok(()),
        }
    }

    /// Waits until one of the processes ends, which none should.
    pub async fn first_death(&mut self) -> Failure {
        loop {
            let mut processes = self.coordinators.iter_mut().chain(&mut self.agents);
            if let Some(dead) = processes.find_map(|process| process.has_ended().then_some(process))
            {
                return dead.unexpected_end().await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Agents first, with all that they run; then the coordinators.
    pub async fn stop(&mut self) {
        stop_all(&mut self.agents, AGENT_STOP).await;
        sweep(&self.dir);
        stop_all(&mut self.coordinators, COORDINATOR_STOP).await;
        // Ids of processes that are gone may soon be those of others.
        std::fs::remove_dir_all(self.dir.join("pids")).ok();
    }
}

/// A session with the context that `init` wrote.
fn admin_session(dir: &Path) -> Session {
    Session::new(GlobalArgs {
        output: Format::Table,
        context: Some(dir.join("admin").display().to_string()),
        config_dir: Some(dir.to_owned()),
        color: ColorChoice::Auto,
    })
}

/// All are asked at once; each has the limit.
async fn stop_all(processes: &mut Vec<Process>, limit: Duration) {
    for process in processes.iter_mut() {
        process.signal(Signal::TERM);
    }
    let until = tokio::time::Instant::now() + limit;
    for mut process in processes.drain(..) {
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        process.stop(left).await;
    }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn coordinator_environment() -> Vec<(String, String)> {
    vec![(
        "TIDEGATE_COORDINATOR_RAFT_TICK".to_owned(),
        "20ms".to_owned(),
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_have_distinct_addresses_and_are_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan::find_or_make(folder.path(), 3, 50).unwrap();
        let mut ports: Vec<_> = plan
            .coordinators
            .iter()
            .flat_map(|c| [c.control, c.peer, c.http, c.enroll])
            .collect();
        ports.sort();
        ports.dedup();
        assert_eq!(ports.len(), 12);
        let address = plan.agents[2].address.octets();
        assert_eq!((address[0], address[2], address[3]), (127, plan.network, 3));
        plan.store(folder.path()).unwrap();
        assert_eq!(Plan::find_or_make(folder.path(), 3, 50).unwrap(), plan);
        let failure = Plan::find_or_make(folder.path(), 1, 50).unwrap_err();
        assert!(
            failure
                .render(false)
                .contains("--coordinators 3 --agents 50")
        );
    }

    #[test]
    fn other_folders_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.tex"), "x").unwrap();
        let failure = Plan::find_or_make(folder.path(), 1, 1).unwrap_err();
        assert_eq!(failure.code(), "TG-1503");
    }
}
