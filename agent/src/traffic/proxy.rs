//! The embedded data plane as a provider: starts `tidegate-agent proxy` when none runs, replaces one that
//! runs from another build than its own, and talks to it.
//!
//! The proxy is started detached and outlives this process; a later agent finds it by its socket. Dropping
//! the provider stops nothing. Every call finds or starts the proxy first, so a proxy that was killed is
//! back, with its stored table, at the next call. A proxy of another build is asked to hand its sockets to
//! a new one; if that fails it goes on, the observation says why, and it is tried again later. Where a unit
//! of systemd runs the proxy, start and replacement are the unit's (`proxy_unit.rs`).

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::proxy_unit::ProxyUnit;
use super::{Answer, TrafficError, TrafficProvider};
use crate::proxy::build_of;
use crate::proxy::control::ControlClient;
use crate::proxy::table::{ControlReply, ControlRequest, Held, ProxyProcess, Table};

const PROVIDER: &str = "proxy";

/// How long the proxy may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a started proxy may take until its socket answers.
const START_LIMIT: Duration = Duration::from_secs(10);

/// How long a new proxy may take until it has taken over from the running one.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(30);

/// How often a replacement is tried, and the pause between.
const REPLACEMENTS: usize = 5;
const REPLACE_AGAIN: Duration = Duration::from_secs(60);

/// How often a start is tried in one call, and the pause between.
const STARTS: usize = 5;
const START_PAUSE: Duration = Duration::from_millis(100);

const START_POLL: Duration = Duration::from_millis(10);

/// The proxy of one folder.
pub struct ProxyTraffic {
    dir: PathBuf,
    program: PathBuf,
    /// Which file `program` was when this provider was made.
    build: String,
    /// The unit that runs the proxy; none: it is started from here.
    unit: Option<ProxyUnit>,
    link: Mutex<Link>,
}

#[derive(Default)]
struct Link {
    client: Option<ControlClient>,
    /// The proxy when it is a child of this process, kept so that its end is noticed.
    child: Option<Child>,
    /// Whether the running proxy is of the right build.
    replacing: Replacing,
}

/// How it stands with the proxy's build.
#[derive(Default)]
enum Replacing {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// It is right, or was replaced.
    Done,
    /// It could not be replaced.
    Failed {
        problem: String,
        again: Instant,
        attempts: usize,
    },
}

impl ProxyTraffic {
    /// The proxy in `dir`, started from the program that is running now.
    ///
    /// # Errors
    /// When the path of the running program cannot be found.
    pub fn new(dir: PathBuf) -> io::Result<Self> {
        Ok(Self::with_program(dir, std::env::current_exe()?))
    }

    /// The proxy in `dir`, started as `program proxy --dir DIR --detach`.
    #[must_use]
    pub fn with_program(dir: PathBuf, program: PathBuf) -> Self {
        Self {
            dir,
            build: build_of(&program),
            program,
            unit: None,
            link: Mutex::default(),
        }
    }

    /// The same, run by a unit of systemd if there is one to do it.
    #[must_use]
    pub fn under(mut self, unit: Option<String>) -> Self {
        self.unit = unit.map(ProxyUnit::new);
        self
    }

    /// Finds the proxy or starts it, and tells who it is.
    ///
    /// # Errors
    /// When it cannot be started or does not answer.
    pub async fn ensure_running(&self) -> Result<ProxyProcess, TrafficError> {
        match self.ask(ControlRequest::Ping).await? {
            ControlReply::Pong(process) => Ok(process),
            other => Err(misfit(&other)),
        }
    }

    /// Replaces the running proxy by a new process, whatever its build, and tells who that is; starts one
    /// when none runs.
    ///
    /// # Errors
    /// When it could not be replaced; it goes on then.
    pub async fn replace(&self) -> Result<ProxyProcess, TrafficError> {
        let mut link = self.link.lock().await;
        link.client = None;
        let client = self.take_over(&mut link).await?;
        link.client = Some(client);
        link.replacing = Replacing::Done;
        drop(link);
        self.ensure_running().await
    }

    /// Tells a running proxy to end after its open requests, at most after `grace`. Does not wait for it
    /// and starts none.
    ///
    /// # Errors
    /// When it runs and does not answer.
    pub async fn shutdown(&self, grace: Duration) -> Result<(), TrafficError> {
        let mut link = self.link.lock().await;
        link.client = None;
        let Ok(mut client) = ControlClient::connect(&self.dir).await else {
            return Ok(());
        };
        let request = ControlRequest::Shutdown {
            grace_ms: grace.as_millis() as u64,
        };
        match timeout(ANSWER_LIMIT, client.ask(&request)).await {
            Ok(Ok(ControlReply::Stopping)) => Ok(()),
            Ok(Ok(other)) => Err(misfit(&other)),
            Ok(Err(error)) => Err(unreachable(error.to_string())),
            Err(_) => Err(no_answer()),
        }
    }

    /// Asks over the standing connection; when that has ended, over a new one. Every request is a level, so
    /// asking twice does no harm. A proxy that is just dying may still take a connection and drop it, so
    /// that is tried again for a while.
    async fn ask(&self, request: ControlRequest) -> Result<ControlReply, TrafficError> {
        let mut link = self.link.lock().await;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let client = match link.client.take() {
                Some(client) => client,
                None => self.connect(&mut link).await?,
            };
            let mut client = self.renew(&mut link, client).await?;
            match timeout(ANSWER_LIMIT, client.ask(&request)).await {
                Ok(Ok(mut reply)) => {
                    if let (ControlReply::Held(held), Replacing::Failed { problem, .. }) =
                        (&mut reply, &link.replacing)
                    {
                        held.replace_problem = Some(problem.clone());
                    }
                    link.client = Some(client);
                    return Ok(reply);
                }
                Ok(Err(error)) if Instant::now() >= deadline => {
                    return Err(unreachable(error.to_string()));
                }
                Ok(Err(_)) => sleep(START_POLL).await,
                Err(_) => return Err(no_answer()),
            }
        }
    }

    /// Replaces the proxy if it is of another build, which is looked at once, and again after a failure.
    async fn renew(
        &self,
        link: &mut Link,
        mut client: ControlClient,
    ) -> Result<ControlClient, TrafficError> {
        let attempts = match &link.replacing {
            Replacing::Unknown => 0,
            Replacing::Failed {
                again, attempts, ..
            } if *attempts < REPLACEMENTS && *again <= Instant::now() => *attempts,
            Replacing::Failed { .. } | Replacing::Done => return Ok(client),
        };
        let running = match timeout(ANSWER_LIMIT, client.ask(&ControlRequest::Ping)).await {
            Ok(Ok(ControlReply::Pong(running))) => running,
            // Whatever ails it shows in the request itself.
            Ok(_) | Err(_) => return self.connect(link).await,
        };
        if running.build == self.build || self.build.is_empty() {
            link.replacing = Replacing::Done;
            return Ok(client);
        }
        info!(
            pid = running.pid,
            version = running.version,
            "the proxy runs from another build and is replaced"
        );
        match self.take_over(link).await {
            Ok(client) => {
                link.replacing = Replacing::Done;
                Ok(client)
            }
            Err(error) => {
                let problem = format!(
                    "the proxy of version {} (pid {}) serves on and could not be replaced: {error}",
                    running.version, running.pid
                );
                warn!("{problem}");
                link.replacing = Replacing::Failed {
                    problem,
                    again: Instant::now() + REPLACE_AGAIN,
                    attempts: attempts + 1,
                };
                self.connect(link).await
            }
        }
    }

    /// Starts a proxy that takes over from the one that runs, and waits until it answers.
    async fn take_over(&self, link: &mut Link) -> Result<ControlClient, TrafficError> {
        let found = match &self.unit {
            Some(_) => None,
            None => ProxyUnit::of_proxy_in(&self.dir).await,
        };
        if let Some(unit) = self.unit.as_ref().or(found.as_ref()) {
            let replaced = unit.replace(&self.dir, TAKE_OVER_LIMIT).await;
            return replaced.map_err(unreachable);
        }
        let mut child = self.start(true)?;
        let pid = child.id();
        let deadline = Instant::now() + TAKE_OVER_LIMIT;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                let reason = format!("the new one ended ({status}); {}", self.log_hint());
                return Err(unreachable(reason));
            }
            if let Ok(Ok(mut client)) =
                timeout(ANSWER_LIMIT, ControlClient::connect(&self.dir)).await
                && let Ok(Ok(ControlReply::Pong(running))) =
                    timeout(ANSWER_LIMIT, client.ask(&ControlRequest::Ping)).await
                && Some(running.pid) == pid
            {
                link.child = Some(child);
                return Ok(client);
            }
            if Instant::now() >= deadline {
                // It would go on trying; two that try are one too many.
                child.start_kill().ok();
                let reason = format!("the new one does not take over; {}", self.log_hint());
                return Err(unreachable(reason));
            }
            sleep(START_POLL).await;
        }
    }

    /// Connects to the proxy that runs, or starts one. A start that fails is repeated a few times: the
    /// proxy before it may not have let go of the folder yet.
    async fn connect(&self, link: &mut Link) -> Result<ControlClient, TrafficError> {
        let mut starts = 1;
        loop {
            if let Ok(client) = ControlClient::connect(&self.dir).await {
                return Ok(client);
            }
            if let Some(unit) = &self.unit {
                let started = unit.start(&self.dir, START_LIMIT).await;
                return started.map_err(unreachable);
            }
            let child = self.start(false)?;
            match self.wait_for(link.child.insert(child)).await {
                Err(_) if starts < STARTS => {
                    starts += 1;
                    sleep(START_PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Waits until the started proxy answers.
    async fn wait_for(&self, child: &mut Child) -> Result<ControlClient, TrafficError> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let error = match ControlClient::connect(&self.dir).await {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            if let Ok(Some(status)) = child.try_wait() {
                let reason = format!("it ended at once ({status}); {}", self.log_hint());
                return Err(unreachable(reason));
            }
            if Instant::now() >= deadline {
                let reason = format!("it does not come up: {error}; {}", self.log_hint());
                return Err(unreachable(reason));
            }
            sleep(START_POLL).await;
        }
    }

    fn start(&self, take_over: bool) -> Result<Child, TrafficError> {
        let failed = |error: io::Error| {
            unreachable(format!("cannot start {}: {error}", self.program.display()))
        };
        let mut folder = std::fs::DirBuilder::new();
        folder
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(failed)?;
        let mut log = OpenOptions::new();
        let log = log
            .append(true)
            .create(true)
            .mode(0o600)
            .open(self.log_path())
            .map_err(failed)?;
        let mut command = Command::new(&self.program);
        command
            .arg("proxy")
            .arg("--dir")
            .arg(&self.dir)
            .arg("--detach");
        if take_over {
            command.arg("--take-over");
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(false);
        for variable in crate::service::MANAGER_VARIABLES {
            command.env_remove(variable);
        }
        let child = command.spawn().map_err(failed)?;
        info!(pid = child.id(), dir = %self.dir.display(), "proxy started");
        Ok(child)
    }

    /// What the proxy says before it has a log, and what it says when it panics.
    fn log_path(&self) -> PathBuf {
        self.dir.join("stderr.log")
    }

    fn log_hint(&self) -> String {
        let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        match text.lines().rfind(|line| !line.trim().is_empty()) {
            Some(line) => format!("it said: {line}"),
            None => format!("see {}", self.dir.join("proxy.log").display()),
        }
    }
}

fn unreachable(reason: String) -> TrafficError {
    TrafficError::Unreachable {
        provider: PROVIDER,
        reason,
    }
}

fn no_answer() -> TrafficError {
    unreachable(format!("no answer within {} s", ANSWER_LIMIT.as_secs()))
}

fn misfit(reply: &ControlReply) -> TrafficError {
    let reason = format!("{reply:?}").chars().take(200).collect();
    TrafficError::Protocol {
        provider: PROVIDER,
        reason,
    }
}

fn held(reply: ControlReply) -> Result<Held, TrafficError> {
    match reply {
        ControlReply::Held(held) => Ok(held),
        ControlReply::Refused { message } => Err(TrafficError::Refused {
            provider: PROVIDER,
            reason: message,
        }),
        other => Err(misfit(&other)),
    }
}

impl TrafficProvider for ProxyTraffic {
    fn observe(&self) -> Answer<'_, Held> {
        Box::pin(async move { held(self.ask(ControlRequest::Observe).await?) })
    }

    fn converge(&self, table: Table) -> Answer<'_, Held> {
        Box::pin(async move { held(self.ask(ControlRequest::Converge { table }).await?) })
    }
}
