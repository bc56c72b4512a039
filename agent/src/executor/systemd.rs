//! The systemd executor: each instance a transient service of a user of its own.
//!
//! A unit is called like its instance (`tidegate-<scope>-<deployment>-<n>.service`), lies in
//! `tidegate.slice` and prints to the journal. Nothing of it hangs on the agent; the next agent
//! takes it up by its name. It sees the host read-only and, of the agent's folder, only its release
//! and its own folder, at the paths that they have on the host. Restarts are ordered by the agent's
//! core, never by systemd (`Restart=no`): backoff, `max_restarts` and the story of each end are the
//! same under every executor (docs/decisions). The manager is asked through
//! [`crate::systemd`], output is read back by `journal`.

pub mod journal;
mod limits;
mod unit;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_agent_core::observed::Event;
use tidegate_agent_core::place::{InstanceKey, PlaceKey};
use tidegate_shared::spec::Limits;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::process::{Refusal, end_group, wait_for_stranger};
use super::{
    Capabilities, Events, Executor, Launch, OutputPlace, Running, Task, instance_dir, procfs,
};
use crate::files;
use crate::ledger::ProcessId;
use crate::systemd::{Active, BusError, Manager, UnitState};

/// Between two looks at a unit that is on its way up or down.
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// For a unit that is to be up, apart from what it may take to tell that it is ready.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long the manager may take to forget a unit that has ended.
const FORGET_LIMIT: Duration = Duration::from_secs(5);
/// How long the manager may take for a stop, beyond the time of grace.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Clone)]
pub struct SystemdExecutor(Arc<Inner>);

struct Inner {
    /// The agent's folder, which instances do not see.
    dir: PathBuf,
    instances: PathBuf,
    grace: Duration,
    events: Events,
    manager: Manager,
    held: Mutex<BTreeMap<InstanceKey, Held>>,
    /// One order at a time for an instance: a stop must not slip in front of the start before it.
    turns: Mutex<BTreeMap<InstanceKey, Arc<tokio::sync::Mutex<()>>>>,
}

/// An instance that this executor watches.
struct Held {
    running: Running,
    /// How it ended, once it has.
    ended: watch::Receiver<Option<String>>,
    /// The end was ordered: no `Exited` for it.
    stopping: bool,
}

impl SystemdExecutor {
    /// An executor of an agent in `dir`, with working files in `instances`; `grace` lies between
    /// SIGTERM and SIGKILL.
    #[must_use]
    pub fn new(dir: PathBuf, instances: PathBuf, grace: Duration, events: Events) -> Self {
        Self(Arc::new(Inner {
            dir,
            instances,
            grace,
            events,
            manager: Manager::default(),
            held: Mutex::default(),
            turns: Mutex::default(),
        }))
    }

    /// Whether it would work here: systemd runs the host, its bus answers, and this process is root.
    ///
    /// # Errors
    /// What is missing, as half a sentence.
    pub async fn usable() -> Result<(), String> {
        if !Manager::runs_host() {
            return Err("systemd does not run this host".to_owned());
        }
        if !rustix::process::geteuid().is_root() {
            return Err("the agent is not root, and may not start units".to_owned());
        }
        let version = Manager::default().version().await;
        version.map(|_| ()).map_err(|error| error.to_string())
    }
}

impl Executor for SystemdExecutor {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "systemd",
            survives_agent: true,
            output: OutputPlace::Journal,
        }
    }

    fn limit_trouble(&self, limits: &Limits) -> Option<String> {
        limits::properties(limits)
            .err()
            .map(|refusal| refusal.message)
    }

    fn observe(&self) -> Vec<Running> {
        let held = self.0.held();
        held.values().map(|held| held.running.clone()).collect()
    }

    fn perform(&self, task: Task) {
        let inner = Arc::clone(&self.0);
        match task {
            Task::Start(launch) => {
                tokio::spawn(async move { inner.start(&launch).await });
            }
            Task::Adopt(running) => inner.adopt(running),
            Task::Stop {
                instance,
                incarnation,
                ..
            } => {
                tokio::spawn(async move { inner.stop(instance, incarnation).await });
            }
            Task::Remove(place) => inner.remove(place),
        }
    }
}

/// The unit of an instance.
#[must_use]
pub fn unit_name(key: &InstanceKey) -> String {
    format!("{}.service", key.id())
}

/// Ends the unit of an instance and waits for it; nothing to do if there is none.
pub async fn end_unit(key: &InstanceKey, grace: Duration) -> Result<(), BusError> {
    end(&Manager::default(), &unit_name(key), grace).await
}

async fn end(manager: &Manager, unit: &str, grace: Duration) -> Result<(), BusError> {
    let deadline = Instant::now() + grace + STOP_LIMIT;
    match manager.stop(unit).await {
        Ok(()) => {}
        Err(BusError::NoUnit(_)) => return Ok(()),
        Err(error) => return Err(error),
    }
    while Instant::now() < deadline {
        let state = manager.state(unit).await?;
        if state.is_none_or(|state| has_ended(&state)) {
            return Ok(());
        }
        sleep(LOOK_EVERY).await;
    }
    Err(BusError::Refused(format!("{unit} does not end")))
}

const fn has_ended(state: &UnitState) -> bool {
    matches!(state.active, Active::Inactive | Active::Failed)
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, BTreeMap<InstanceKey, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        // The loop has ended: nobody needs to know any more.
        self.events.send(event).ok();
    }

    fn turn(&self, key: &InstanceKey) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(key.clone()).or_default())
    }

    async fn start(self: Arc<Self>, launch: &Launch) {
        let key = launch.instance.clone();
        let turn = self.turn(&key);
        let turn = turn.lock().await;
        let known = self.held().get(&key).map(|held| held.running.clone());
        if let Some(known) = known.filter(|known| known.incarnation == launch.incarnation) {
            return self.started(&known, launch.port);
        }
        match self.bring_up(launch).await {
            Ok((running, state)) => {
                info!(instance = %key, pid = running.process.pid, "started");
                self.started(&running, launch.port);
                Arc::clone(&self).watch(running, Some(state.invocation));
            }
            Err(Refusal { permanent, message }) => {
                warn!(instance = %key, permanent, message, "cannot be started");
                self.manager.forget(&unit_name(&key)).await;
                self.tell(Event::StartFailed {
                    instance: key,
                    incarnation: launch.incarnation,
                    permanent,
                    message,
                });
            }
        }
        drop(turn);
    }

    fn started(&self, running: &Running, port: u16) {
        self.tell(Event::Started {
            instance: running.instance.clone(),
            incarnation: running.incarnation,
            pid: running.process.pid,
            port,
        });
    }

    /// Makes the unit and waits until its program runs.
    async fn bring_up(&self, launch: &Launch) -> Result<(Running, UnitState), Refusal> {
        let dir = instance_dir(&self.instances, &launch.instance);
        let unit = unit_name(&launch.instance);
        let program = unit::program(launch, &dir)?;
        self.clear(&unit, launch).await?;
        let refused = |error: BusError| Refusal {
            permanent: false,
            message: format!("{unit} cannot be started: {error}"),
        };
        let deadline = Instant::now() + FORGET_LIMIT;
        loop {
            let properties = unit::properties(launch, &dir, &self.dir, &program, self.grace)?;
            match self.manager.start_transient(&unit, properties).await {
                // What was there is ended and let go of; the manager forgets it in its own time.
                Err(BusError::Exists(_)) if Instant::now() < deadline => sleep(LOOK_EVERY).await,
                started => break started.map_err(refused)?,
            }
        }
        let state = self.wait_until_up(&unit).await.map_err(refused)?;
        // One that ends at once may be gone before systemd counts it as up: it was run all the same.
        if !state.was_up && !unit::was_run(&state) {
            let words = journal::of_manager(&unit, &state.invocation).await;
            return Err(unit::why_not_up(launch, &program, &state, words));
        }
        let process = procfs::identify(state.last_pid).unwrap_or_else(|| ProcessId {
            // It has ended already, which the watch tells next.
            pid: state.last_pid,
            started: 0,
            boot: procfs::boot(),
        });
        let running = Running {
            instance: launch.instance.clone(),
            incarnation: launch.incarnation,
            process,
        };
        Ok((running, state))
    }

    /// Takes away what an earlier start left under the name.
    async fn clear(&self, unit: &str, launch: &Launch) -> Result<(), Refusal> {
        let failed = |error: BusError| Refusal {
            permanent: false,
            message: format!("{unit} cannot be looked at: {error}"),
        };
        let Some(state) = self.manager.state(unit).await.map_err(failed)? else {
            return Ok(());
        };
        if !has_ended(&state) && !unit::is_of(&state.description, launch) {
            return Err(Refusal {
                permanent: true,
                message: format!(
                    "{unit} runs already and is not of this agent (\"{}\"): two agents on one host need scopes of different names",
                    state.description
                ),
            });
        }
        if !has_ended(&state) {
            end(&self.manager, unit, self.grace).await.map_err(failed)?;
        }
        self.manager.forget(unit).await;
        Ok(())
    }

    /// Waits until a unit is up, or has failed.
    async fn wait_until_up(&self, unit: &str) -> Result<UnitState, BusError> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let Some(state) = self.manager.state(unit).await? else {
                return Err(BusError::NoUnit(unit.to_owned()));
            };
            if state.was_up || has_ended(&state) {
                return Ok(state);
            }
            if Instant::now() >= deadline {
                end(&self.manager, unit, self.grace).await?;
                return Err(BusError::Refused(format!(
                    "it was not up within {} s",
                    START_LIMIT.as_secs()
                )));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn adopt(self: Arc<Self>, running: Running) {
        if self
            .held()
            .get(&running.instance)
            .is_some_and(|held| held.running == running)
        {
            return;
        }
        info!(instance = %running.instance, pid = running.process.pid, "adopted");
        self.watch(running, None);
    }

    /// Watches an instance to its end. `invocation` is that of a start of this process.
    fn watch(self: Arc<Self>, running: Running, invocation: Option<String>) {
        let (sender, ended) = watch::channel(None);
        let held = Held {
            running: running.clone(),
            ended,
            stopping: false,
        };
        self.held().insert(running.instance.clone(), held);
        tokio::spawn(async move {
            let unit = unit_name(&running.instance);
            if invocation.is_none() {
                // Without the hold, its end could not be read; that is said then.
                self.manager.keep(&unit).await.ok();
            }
            let how = self.see_end(&unit, &running.process, invocation).await;
            let ordered = {
                let mut table = self.held();
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
            if !ordered {
                info!(instance = %running.instance, how, "ended");
                self.tell(Event::Exited {
                    instance: running.instance.clone(),
                    incarnation: running.incarnation,
                    how: how.clone(),
                });
            }
            sender.send(Some(how)).ok();
        });
    }

    /// Waits for the end of a unit and tells how it came, with the last lines of its output.
    async fn see_end(&self, unit: &str, process: &ProcessId, invocation: Option<String>) -> String {
        let mut process = process.clone();
        let mut invocation = invocation;
        loop {
            wait_for_stranger(&process).await;
            let state = match self.manager.state(unit).await {
                Ok(Some(state)) if invocation.as_ref().is_none_or(|i| *i == state.invocation) => {
                    state
                }
                Ok(_) => return unit::UNKNOWN_END.to_owned(),
                Err(error) => {
                    warn!(unit, %error, "its end cannot be read yet");
                    sleep(LOOK_EVERY * 10).await;
                    continue;
                }
            };
            if has_ended(&state) {
                // A second look: the manager may have been about to write the result.
                let how = unit::describe(&state);
                let words = journal::last_words(unit, state.started_at).await;
                self.manager.forget(unit).await;
                return match words {
                    Some(words) => format!("{how}; its last words:\n{words}"),
                    None => how,
                };
            }
            invocation.get_or_insert(state.invocation);
            // A program may name another process as its main one.
            if state.main_pid > 0
                && let Some(other) = procfs::identify(state.main_pid)
            {
                process = other;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn stop(self: Arc<Self>, key: InstanceKey, incarnation: u32) {
        let turn = self.turn(&key);
        let turn = turn.lock().await;
        let unit = unit_name(&key);
        let found = {
            let mut table = self.held();
            let held = table.get_mut(&key);
            held.filter(|held| held.running.incarnation == incarnation)
                .map(|held| {
                    let again = std::mem::replace(&mut held.stopping, true);
                    (held.running.process.clone(), held.ended.clone(), again)
                })
        };
        let how = match found {
            Some((_, _, true)) => return,
            Some((process, mut ended, false)) => {
                info!(instance = %key, pid = process.pid, "stopping");
                self.end_held(&unit, &process).await;
                let how = match ended.wait_for(Option::is_some).await {
                    Ok(how) => how.clone(),
                    Err(_) => None,
                };
                self.held().remove(&key);
                info!(instance = %key, "stopped");
                how
            }
            None => None,
        };
        drop(turn);
        self.tell(Event::Stopped {
            instance: key,
            incarnation,
            how,
        });
    }

    /// Ends what is watched. An instance that an agent with another executor started has no unit
    /// and ends as a process group.
    async fn end_held(&self, unit: &str, process: &ProcessId) {
        if let Err(error) = end(&self.manager, unit, self.grace).await {
            warn!(unit, %error, "the unit is not stopped by systemd; its processes are ended");
        }
        end_group(process, self.grace).await;
    }

    fn remove(&self, place: PlaceKey) {
        let folder = self.instances.join(place.folder());
        let events = self.events.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = files::remove(&folder) {
                warn!(folder = %folder.display(), %error, "cannot be removed; it stays");
            }
            events.send(Event::Removed { place }).ok();
        });
    }
}
