//! An executor in memory, for tests of those who drive one: starts and stops succeed at once, and
//! processes end when a test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tidegate_agent_core::observed::Event;
use tidegate_agent_core::place::InstanceKey;
use tidegate_shared::spec::Limits;

use super::{Capabilities, Events, Executor, Launch, OutputPlace, Running, Task};
use crate::ledger::ProcessId;

/// The fake.
pub struct FakeExecutor {
    events: Events,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: BTreeMap<InstanceKey, Running>,
    unstartable: BTreeSet<String>,
    next_pid: u32,
    limit_trouble: Option<String>,
}

impl FakeExecutor {
    /// An executor that runs nothing yet.
    pub fn new(events: Events) -> Self {
        Self {
            events,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this command cannot be started.
    pub fn refuse(&self, command: &str) {
        self.state().unstartable.insert(command.to_owned());
    }

    /// From now on it cannot hold an instance to any limit.
    pub fn cannot_limit(&self, why: &str) {
        self.state().limit_trouble = Some(why.to_owned());
    }

    /// Ends the process of an instance.
    pub fn end(&self, instance: &InstanceKey, how: &str) {
        let ended = self.state().running.remove(instance);
        if let Some(running) = ended {
            self.tell(Event::Exited {
                instance: running.instance,
                incarnation: running.incarnation,
                how: how.to_owned(),
            });
        }
    }

    fn tell(&self, event: Event) {
        self.events.send(event).ok();
    }

    fn start(&self, launch: &Launch) {
        let mut state = self.state();
        let incarnation = launch.incarnation;
        let instance = launch.instance.clone();
        if state.unstartable.contains(&launch.run.command) {
            return self.tell(Event::StartFailed {
                instance,
                incarnation,
                permanent: true,
                message: format!("the command {} does not exist", launch.run.command),
            });
        }
        state.next_pid += 1;
        let fresh = Running {
            instance: instance.clone(),
            incarnation,
            process: ProcessId {
                pid: state.next_pid,
                started: u64::from(state.next_pid),
                boot: "fake".to_owned(),
            },
        };
        let known = state.running.get(&instance);
        let running = known
            .filter(|r| r.incarnation == incarnation)
            .cloned()
            .unwrap_or(fresh);
        let pid = running.process.pid;
        state.running.insert(instance.clone(), running);
        self.tell(Event::Started {
            instance,
            incarnation,
            pid,
            port: launch.port,
        });
    }
}

impl Executor for FakeExecutor {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "fake",
            survives_agent: false,
            output: OutputPlace::Files,
        }
    }

    fn limit_trouble(&self, _limits: &Limits) -> Option<String> {
        self.state().limit_trouble.clone()
    }

    fn observe(&self) -> Vec<Running> {
        self.state().running.values().cloned().collect()
    }

    fn perform(&self, task: Task) {
        match task {
            Task::Start(launch) => self.start(&launch),
            Task::Adopt(running) => {
                self.state()
                    .running
                    .insert(running.instance.clone(), running);
            }
            Task::Stop {
                instance,
                incarnation,
                ..
            } => {
                self.state().running.remove(&instance);
                self.tell(Event::Stopped {
                    instance,
                    incarnation,
                    how: None,
                });
            }
            Task::Remove(place) => self.tell(Event::Removed { place }),
        }
    }
}
