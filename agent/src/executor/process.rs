//! The process executor: each instance a process group of its own, output straight to files.
//!
//! Nothing of an instance hangs on the agent: its group is its own and its output goes to files, so
//! `kill -9` of the agent leaves it serving, and the next agent adopts it by number, start time and
//! boot, watching a pidfd. A stop is SIGTERM to the group, a time of grace, SIGKILL. The exit
//! status of an adopted process, which is not a child, cannot be known, and that is said. An instance
//! with limits has a control group besides ([`super::cgroup`]), which ends with it, whatever it started.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tidegate_agent_core::observed::Event;
use tidegate_agent_core::place::{InstanceKey, PlaceKey};
use tidegate_shared::spec::Limits;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use super::cgroup::Group;
use super::limits::{Cgroups, SUBCOMMAND, out_of_memory};
use super::{
    Capabilities, Events, Executor, Launch, OutputPlace, Running, Task, instance_dir, output,
    procfs,
};
use crate::files;
use crate::ledger::ProcessId;

/// How long the last members of a group may outlive SIGKILL before the stop counts as complete.
const KILL_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// See the module.
pub struct ProcessExecutor {
    instances: PathBuf,
    grace: Duration,
    events: Events,
    held: Arc<Mutex<BTreeMap<InstanceKey, Held>>>,
    cgroups: Arc<Cgroups>,
    /// The program that becomes a limited one: this agent's own.
    helper: Option<PathBuf>,
}

/// A process that this executor watches.
struct Held {
    running: Running,
    /// Its control group, if its limits need one.
    group: Option<Group>,
    /// How it ended, once it has.
    ended: watch::Receiver<Option<String>>,
    /// The end was ordered: no `Exited` for it.
    stopping: bool,
}

impl ProcessExecutor {
    /// An executor with its working files in `instances`; `grace` lies between SIGTERM and SIGKILL.
    pub fn new(instances: PathBuf, grace: Duration, events: Events) -> Self {
        Self {
            instances,
            grace,
            events,
            held: Arc::default(),
            cgroups: Arc::default(),
            // Looked up at the start: after an upgrade the path names the new program.
            helper: std::env::current_exe().ok(),
        }
    }

    /// With another program that becomes limited ones, for tests, whose own is none.
    #[must_use]
    pub fn with_helper(self, helper: PathBuf) -> Self {
        Self {
            helper: Some(helper),
            ..self
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<InstanceKey, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        // The loop has ended: nobody needs to know any more.
        self.events.send(event).ok();
    }

    fn start(&self, launch: &Launch) {
        let key = launch.instance.clone();
        let incarnation = launch.incarnation;
        let known = self.held().get(&key).map(|held| held.running.clone());
        if let Some(known) = known.filter(|known| known.incarnation == incarnation) {
            return self.started(&known, launch.port);
        }
        match self.spawn(launch) {
            Ok((running, child, group)) => {
                info!(instance = %key, pid = running.process.pid, "started");
                self.started(&running, launch.port);
                self.watch(running, group, Watched::Child(child));
            }
            Err(Refusal { permanent, message }) => {
                warn!(instance = %key, permanent, message, "cannot be started");
                self.tell(Event::StartFailed {
                    instance: key,
                    incarnation,
                    permanent,
                    message,
                });
            }
        }
    }

    fn started(&self, running: &Running, port: u16) {
        self.tell(Event::Started {
            instance: running.instance.clone(),
            incarnation: running.incarnation,
            pid: running.process.pid,
            port,
        });
    }

    fn spawn(&self, launch: &Launch) -> Result<(Running, Child, Option<Group>), Refusal> {
        let dir = instance_dir(&self.instances, &launch.instance);
        let local = |error: io::Error| Refusal {
            permanent: false,
            message: format!("{}: {error}", dir.display()),
        };
        if launch.run.notify {
            return Err(Refusal {
                permanent: true,
                message: "the release tells by sd_notify when it is ready (run.notify), which only the executor systemd hears: set `executor: systemd` in the agent's configuration, or use a health check".to_owned(),
            });
        }
        files::make_folder(&dir, 0o700).map_err(local)?;
        let stdout = output::open(&output::Stream::Stdout.path(&dir)).map_err(local)?;
        let stderr = output::open(&output::Stream::Stderr.path(&dir)).map_err(local)?;
        let program = launch.program(&launch.run.command, &dir);
        let args = launch
            .run
            .args
            .iter()
            .map(|arg| launch.substitute(arg, &dir));
        let (mut command, group) = self.command(&program, launch)?;
        command
            .args(args)
            .env_clear()
            .envs(launch.environment(&dir))
            .envs(launch.secret_environment().map(|(k, v)| (k, v.expose())))
            .current_dir(&launch.release_dir)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(false);
        let child = command
            .spawn()
            .map_err(|error| Refusal::of(&error, &program, launch))?;
        let pid = child.id().unwrap_or_default();
        // Not reaped yet, so its line is there even if it has ended already.
        let started = procfs::stat(pid).map_or(0, |stat| stat.started);
        let process = ProcessId {
            pid,
            started,
            boot: procfs::boot(),
        };
        let running = Running {
            instance: launch.instance.clone(),
            incarnation: launch.incarnation,
            process,
        };
        Ok((running, child, group))
    }

    /// The command of a program; with limits, of the helper that becomes it in its group.
    fn command(
        &self,
        program: &Path,
        launch: &Launch,
    ) -> Result<(Command, Option<Group>), Refusal> {
        let limits = &launch.run.limits;
        if limits.is_empty() {
            return Ok((Command::new(program), None));
        }
        let instance = launch.instance.id();
        let name = Group::name(launch.agent.as_str(), &instance, launch.incarnation);
        let group = self.cgroups.prepare(&name, limits)?;
        // What the helper could not say: it has become a process by then.
        if program.is_absolute() && !program.exists() {
            let missing = io::Error::from(io::ErrorKind::NotFound);
            return Err(Refusal::of(&missing, program, launch));
        }
        let helper = self.helper.as_ref().ok_or_else(|| Refusal {
            permanent: false,
            message: "the agent's own program, which sets limits, is not found".to_owned(),
        })?;
        let mut command = Command::new(helper);
        command.arg(SUBCOMMAND);
        if let Some(group) = &group {
            command.arg("--cgroup").arg(group.path());
        }
        if let Some(count) = limits.open_files {
            command.arg("--open-files").arg(count.to_string());
        }
        command.arg("--").arg(program);
        Ok((command, group))
    }

    fn adopt(&self, running: Running) {
        if self
            .held()
            .get(&running.instance)
            .is_some_and(|held| held.running == running)
        {
            return;
        }
        info!(instance = %running.instance, pid = running.process.pid, "adopted");
        let group = Group::of(&running);
        self.watch(running, group, Watched::Stranger);
    }

    fn watch(&self, running: Running, group: Option<Group>, watched: Watched) {
        let (sender, ended) = watch::channel(None);
        let held = Held {
            running: running.clone(),
            group: group.clone(),
            ended,
            stopping: false,
        };
        self.held().insert(running.instance.clone(), held);
        let table = Arc::clone(&self.held);
        let events = self.events.clone();
        let dir = instance_dir(&self.instances, &running.instance);
        tokio::spawn(async move {
            let how = match watched {
                Watched::Child(mut child) => match child.wait().await {
                    Ok(status) => describe(status),
                    Err(error) => format!("ended; its exit status cannot be read: {error}"),
                },
                Watched::Stranger => {
                    wait_for_stranger(&running.process).await;
                    "ended; its exit status is unknown, because it was started by an earlier agent process".to_owned()
                }
            };
            // Before its group goes, which takes the count with it.
            let how = match group.as_ref().and_then(Group::out_of_memory) {
                Some(limit) => out_of_memory(limit),
                None => how,
            };
            let ordered = {
                let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
                match table.get(&running.instance) {
                    Some(held) if held.running == running => {
                        let ordered = held.stopping;
                        if !ordered {
                            table.remove(&running.instance);
                        }
                        ordered
                    }
                    Some(_) | None => true,
                }
            };
            let told = match output::last_words(&dir) {
                Some(words) => format!("{how}; its last words:\n{words}"),
                None => how.clone(),
            };
            if !ordered {
                // Without its last words: they may hold a secret, and stand in its own output.
                info!(instance = %running.instance, how, "ended");
                // Members that it left behind would hold its port against the next start.
                if procfs::group_is_of(&running.process) {
                    signal(running.process.pid, Signal::KILL);
                }
                if let Some(group) = &group {
                    group.end().await;
                }
                let instance = running.instance.clone();
                let incarnation = running.incarnation;
                events
                    .send(Event::Exited {
                        instance,
                        incarnation,
                        how: told.clone(),
                    })
                    .ok();
            }
            sender.send(Some(told)).ok();
        });
    }

    fn stop(&self, key: InstanceKey, incarnation: u32) {
        let found = {
            let mut table = self.held();
            let held = table.get_mut(&key);
            held.filter(|held| held.running.incarnation == incarnation)
                .map(|held| {
                    let again = std::mem::replace(&mut held.stopping, true);
                    let (process, group) = (held.running.process.clone(), held.group.clone());
                    (process, group, held.ended.clone(), again)
                })
        };
        let Some((process, group, mut ended, again)) = found else {
            return self.tell(Event::Stopped {
                instance: key,
                incarnation,
                how: None,
            });
        };
        if again {
            return;
        }
        let (table, events, grace) = (Arc::clone(&self.held), self.events.clone(), self.grace);
        tokio::spawn(async move {
            info!(instance = %key, pid = process.pid, "stopping");
            end_group(&process, grace).await;
            let how = match ended.wait_for(Option::is_some).await {
                Ok(how) => how.clone(),
                Err(_) => None,
            };
            // After the time of grace, which members of the process group have had, too.
            if let Some(group) = group {
                group.end().await;
            }
            table
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key);
            info!(instance = %key, "stopped");
            events
                .send(Event::Stopped {
                    instance: key,
                    incarnation,
                    how,
                })
                .ok();
        });
    }

    fn remove(&self, place: PlaceKey) {
        let folder = self.instances.join(place.folder());
        let events = self.events.clone();
        let cgroups = Arc::clone(&self.cgroups);
        tokio::task::spawn_blocking(move || {
            for ordinal in ordinals(&folder) {
                let instance = InstanceKey {
                    place: place.clone(),
                    ordinal,
                };
                cgroups.forget(&instance.id());
            }
            if let Err(error) = files::remove(&folder) {
                warn!(folder = %folder.display(), %error, "cannot be removed; it stays");
            }
            events.send(Event::Removed { place }).ok();
        });
    }
}

impl Executor for ProcessExecutor {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "process",
            survives_agent: true,
            output: OutputPlace::Files,
        }
    }

    fn limit_trouble(&self, limits: &Limits) -> Option<String> {
        self.cgroups.trouble(limits)
    }

    fn observe(&self) -> Vec<Running> {
        self.held()
            .values()
            .map(|held| held.running.clone())
            .collect()
    }

    fn perform(&self, task: Task) {
        match task {
            Task::Start(launch) => self.start(&launch),
            Task::Adopt(running) => self.adopt(running),
            Task::Stop {
                instance,
                incarnation,
                ..
            } => self.stop(instance, incarnation),
            Task::Remove(place) => self.remove(place),
        }
    }
}

/// The instances that have files in the folder of a place.
pub fn ordinals(folder: &Path) -> Vec<u32> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

enum Watched {
    Child(Child),
    Stranger,
}

/// Why a program was not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Trying again will not help.
    pub permanent: bool,
    /// What is wrong.
    pub message: String,
}

impl Refusal {
    /// Why a program could not be run, in plain words.
    pub fn of(error: &io::Error, program: &Path, launch: &Launch) -> Self {
        let name = program.display();
        if !launch.release_dir.is_dir() {
            return Self {
                permanent: false,
                message: format!(
                    "the release's folder {} is gone",
                    launch.release_dir.display()
                ),
            };
        }
        // ENOEXEC has no kind of its own.
        let not_a_program = error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error());
        let (permanent, message) = match error.kind() {
            io::ErrorKind::NotFound if program.is_file() => (
                true,
                format!(
                    "the command {name} cannot be started: the interpreter in its first line, or its loader, is not on this host"
                ),
            ),
            io::ErrorKind::NotFound => (true, format!("the command {name} does not exist")),
            io::ErrorKind::PermissionDenied => (
                true,
                format!("the command {name} may not be executed: {error}"),
            ),
            _ if not_a_program => (
                true,
                format!("the command {name} is no program of this machine: {error}"),
            ),
            _ => (
                false,
                format!("the command {name} could not be started: {error}"),
            ),
        };
        Self { permanent, message }
    }
}

/// How a program ended.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Sends a signal to a group; a group without members is no error.
fn signal(group: u32, signal: Signal) {
    let pid = i32::try_from(group).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        match kill_process_group(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => warn!(group, ?signal, %error, "the signal was not sent"),
        }
    }
}

/// SIGTERM to the group of a process, a time of grace, SIGKILL; returns when no member is left.
pub async fn end_group(process: &ProcessId, grace: Duration) {
    if !procfs::group_is_of(process) {
        return;
    }
    signal(process.pid, Signal::TERM);
    if !group_ends(process.pid, grace).await {
        signal(process.pid, Signal::KILL);
        if !group_ends(process.pid, KILL_LIMIT).await {
            warn!(group = process.pid, "members of the group outlive SIGKILL");
        }
    }
}

async fn group_ends(group: u32, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while procfs::group_lives(group) {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(POLL).await;
    }
    true
}

/// Waits for the end of a process that is not a child.
pub(super) async fn wait_for_stranger(process: &ProcessId) {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
    let fd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    // The number may have been given to another one before the descriptor was opened.
    if !procfs::is_alive(process) {
        return;
    }
    #[allow(
        deprecated,
        reason = "its successor is unsafe; the descriptor is owned, so it stays open while registered"
    )]
    let watched = fd.and_then(|fd| AsyncFd::with_interest(fd, Interest::READABLE).ok());
    loop {
        match &watched {
            Some(fd) => {
                let deadline = Instant::now() + Duration::from_secs(5);
                match timeout_at(deadline, fd.readable()).await {
                    Ok(Ok(_)) => return,
                    Ok(Err(_)) => sleep(POLL).await,
                    Err(_) => {}
                }
            }
            None => sleep(Duration::from_millis(200)).await,
        }
        if !procfs::is_alive(process) {
            return;
        }
    }
}
