//! The host of an [`AgentModel`](super::AgentModel): releases on disk, processes, ports, a data
//! plane, requests. It does what it is told by actions and scripts, and decides nothing.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_shared::assignment::{Counters, PermanentErrorKind};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::Name;
use tidegate_shared::spec::Port;
use tidegate_shared::time::{Span, Timestamp};

use crate::instance::Adopted;
use crate::observed::{Event, Observed};
use crate::place::{InstanceKey, PlaceKey};
use crate::plan::{Action, Routes};

/// What a release does on this host. The default is a good one: staged at once, healthy at the
/// first check, answering every request with success in 20 ms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behaviour {
    /// How staging goes.
    pub staged: Staged,
    /// How long staging takes.
    pub stage_takes: Span,
    /// Some: its command cannot be started at all, for this reason.
    pub unstartable: Option<String>,
    /// Its checks succeed from so long after each start on; none: never.
    pub healthy_after: Option<Span>,
    /// Its checks fail again from so long after each start on.
    pub unhealthy_after: Option<Span>,
    /// Its process ends so long after each start; zero: at once.
    pub exits_after: Option<Span>,
    /// How long a stop takes.
    pub stop_takes: Span,
    /// Of its answers, 5xx, in basis points.
    pub server_errors: u32,
    /// Of its answers, 4xx, in basis points.
    pub client_errors: u32,
    /// How long each answer takes.
    pub latency: Span,
}

/// How staging a release ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staged {
    /// Well.
    Fine,
    /// For good, with this error.
    Refused(PermanentErrorKind),
    /// With an error that trying again may cure, as long as the script says so.
    Fails,
    /// Not at all: it goes on for ever.
    Hangs,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            staged: Staged::Fine,
            stage_takes: Span::ZERO,
            unstartable: None,
            healthy_after: Some(Span::ZERO),
            unhealthy_after: None,
            exits_after: None,
            stop_takes: Span::ZERO,
            server_errors: 0,
            client_errors: 0,
            latency: Span::from_millis(20),
        }
    }
}

pub(super) struct Process {
    pub(super) adopted: Adopted,
    pub(super) alive: bool,
    pub(super) started_at: Timestamp,
    pub(super) release: String,
}

/// See the module.
#[derive(Default)]
pub struct FakeHost {
    pub(super) behaviours: BTreeMap<String, Behaviour>,
    pub(super) load: BTreeMap<Name, u64>,
    pub(super) open: BTreeMap<PlaceKey, u64>,
    pub(super) occupied: BTreeSet<u16>,
    pub(super) plane_down: bool,
    pub(super) releases: BTreeSet<Digest>,
    /// What is being staged for which place.
    pub(super) staging: BTreeMap<PlaceKey, Digest>,
    pub(super) processes: BTreeMap<InstanceKey, Process>,
    pub(super) routes: Routes,
    pub(super) counters: BTreeMap<InstanceKey, (Timestamp, Counters)>,
    /// Parts of requests that were not whole yet, by place and purpose.
    pub(super) rests: BTreeMap<(PlaceKey, u8), u64>,
    pub(super) unrouted: BTreeMap<Name, u64>,
    /// News that waits for its time.
    pub(super) pending: BTreeMap<(Timestamp, u64), Event>,
    pub(super) serial: u64,
    pub(super) next_pid: u32,
    pub(super) next_port: u16,
}

impl FakeHost {
    pub(super) fn new() -> Self {
        Self {
            next_pid: 1_000,
            next_port: 20_000,
            ..Self::default()
        }
    }

    /// From now on the release of this version behaves so; processes that run already too.
    pub fn behave(&mut self, release: &str, behaviour: Behaviour) {
        self.behaviours.insert(release.to_owned(), behaviour);
    }

    /// From now on so many requests per second come for a scope; 0: none.
    pub fn load(&mut self, scope: &Name, requests_per_second: u64) {
        self.load.insert(scope.clone(), requests_per_second);
    }

    /// From now on so many requests of a version stay open; 0: they end.
    pub fn hold_open(&mut self, place: &PlaceKey, requests: u64) {
        self.open.insert(place.clone(), requests);
    }

    /// Another program has a port: a scope of that port is not listened for.
    pub fn occupy(&mut self, port: u16) {
        self.occupied.insert(port);
    }

    /// The other program gives the port back.
    pub fn vacate(&mut self, port: u16) {
        self.occupied.remove(&port);
    }

    /// The data plane cannot be asked or told anything; it serves on.
    pub fn data_plane_down(&mut self, down: bool) {
        self.plane_down = down;
    }

    /// Ends the process of an instance from outside, as the kernel does without memory.
    pub fn kill_process(&mut self, instance: &InstanceKey, now: Timestamp) {
        self.end_process(instance, "killed by signal 9", now);
    }

    /// The instances whose process runs.
    pub fn running(&self) -> Vec<InstanceKey> {
        let alive = self.processes.iter().filter(|(_, p)| p.alive);
        alive.map(|(key, _)| key.clone()).collect()
    }

    /// What the data plane routes.
    pub const fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Requests of a scope that nobody could take so far.
    pub fn unrouted(&self, scope: &Name) -> u64 {
        self.unrouted.get(scope).copied().unwrap_or(0)
    }

    /// Whether a release is on disk.
    pub fn has_release(&self, digest: &Digest) -> bool {
        self.releases.contains(digest)
    }

    pub(super) fn records(&self, place: &PlaceKey) -> Vec<(u32, Adopted, bool)> {
        let own = self.processes.iter().filter(|(key, _)| key.place == *place);
        own.map(|(key, process)| {
            let route = self.routes.0.get(&place.scope);
            let route = route.and_then(|r| r.versions.get(&place.deployment));
            let route = route.and_then(|v| v.instances.get(&key.ordinal));
            let adopted = Adopted {
                healthy: route.is_some_and(|instance| instance.healthy),
                ..process.adopted
            };
            (key.ordinal, adopted, process.alive)
        })
        .collect()
    }

    pub(super) fn agent_died(&mut self) {
        self.pending.clear();
    }

    pub(super) fn power_cut(&mut self) {
        for process in self.processes.values_mut() {
            process.alive = false;
        }
        self.routes = Routes::default();
        self.counters.clear();
    }

    pub(super) fn behaviour(&self, release: &str) -> Behaviour {
        self.behaviours.get(release).cloned().unwrap_or_default()
    }

    /// Whether doing that would change nothing now.
    pub(super) fn ignores(&self, action: &Action) -> bool {
        match action {
            Action::Route(routes) => self.plane_down || self.routes == *routes,
            Action::Stage { .. }
            | Action::Start { .. }
            | Action::Probe { .. }
            | Action::Stop { .. }
            | Action::Remove { .. } => false,
        }
    }

    pub(super) fn perform(&mut self, action: &Action, observed: &Observed, now: Timestamp) {
        match action {
            Action::Route(routes) => {
                if !self.plane_down {
                    self.routes = routes.clone();
                }
            }
            Action::Stage { place } => self.stage(place, observed, now),
            Action::Start { instance } => self.launch(instance, observed, now),
            Action::Probe { instance } => self.probe(instance, observed, now),
            Action::Stop { instance } => {
                let takes = self
                    .processes
                    .get(instance)
                    .map_or(Span::ZERO, |p| self.behaviour(&p.release).stop_takes);
                let event = Event::Stopped {
                    instance: instance.clone(),
                    incarnation: incarnation(observed, instance),
                    how: Some("ended by signal 15".to_owned()),
                };
                self.later(now + takes, event);
            }
            Action::Remove { place } => {
                self.processes.retain(|key, _| key.place != *place);
                let place = place.clone();
                self.later(now, Event::Removed { place });
            }
        }
    }

    fn later(&mut self, at: Timestamp, event: Event) {
        self.serial += 1;
        self.pending.insert((at, self.serial), event);
    }

    fn stage(&mut self, place: &PlaceKey, observed: &Observed, now: Timestamp) {
        let Some(held) = observed.places.get(place) else {
            return;
        };
        self.staging.insert(place.clone(), held.item.asset.sha256);
        let behaviour = self.behaviour(held.item.release.as_str());
        let failed = |kind: Option<PermanentErrorKind>, message: &str| Event::StageFailed {
            place: place.clone(),
            kind,
            message: message.to_owned(),
        };
        let event = match behaviour.staged {
            Staged::Fine => Event::Staged {
                place: place.clone(),
            },
            Staged::Refused(kind) => failed(Some(kind), kind.as_str()),
            Staged::Fails => failed(None, "the connection broke"),
            Staged::Hangs => return,
        };
        self.later(now + behaviour.stage_takes, event);
    }

    fn launch(&mut self, key: &InstanceKey, observed: &Observed, now: Timestamp) {
        let Some(held) = observed.places.get(&key.place) else {
            return;
        };
        let Some(instance) = held.instances.get(&key.ordinal) else {
            return;
        };
        let release = held.item.release.as_str().to_owned();
        let incarnation = instance.incarnation;
        if let Some(message) = self.behaviour(&release).unstartable {
            let instance = key.clone();
            let event = Event::StartFailed {
                instance,
                incarnation,
                permanent: true,
                message,
            };
            return self.later(now, event);
        }
        let known = self.processes.get(key).map(|process| process.adopted.port);
        let port = match (held.item.port, known) {
            (Port::None, _) => 0,
            (Port::Number(_), Some(port)) => port,
            (Port::Number(_), None) => {
                self.next_port += 1;
                self.next_port
            }
        };
        self.next_pid += 1;
        let process = Process {
            adopted: Adopted {
                incarnation,
                restarts: instance.restarts,
                pid: self.next_pid,
                port,
                healthy: false,
            },
            alive: true,
            started_at: now,
            release,
        };
        self.processes.insert(key.clone(), process);
        let event = Event::Started {
            instance: key.clone(),
            incarnation,
            pid: self.next_pid,
            port,
        };
        self.later(now, event);
    }

    fn probe(&mut self, key: &InstanceKey, observed: &Observed, now: Timestamp) {
        let process = self.processes.get(key).filter(|process| process.alive);
        let good = process.is_some_and(|process| {
            let behaviour = self.behaviour(&process.release);
            let age = now.since(process.started_at);
            behaviour.healthy_after.is_some_and(|after| age >= after)
                && behaviour.unhealthy_after.is_none_or(|after| age < after)
        });
        let event = Event::Probed {
            instance: key.clone(),
            incarnation: incarnation(observed, key),
            sample: if good {
                Ok(())
            } else {
                Err("the check got no good answer".to_owned())
            },
        };
        self.later(now, event);
    }

    fn exit_of(&self, process: &Process) -> Option<Timestamp> {
        let after = self.behaviour(&process.release).exits_after?;
        process.alive.then(|| process.started_at + after)
    }

    pub(super) fn next_event(&self) -> Option<Timestamp> {
        let exit = self.processes.values().filter_map(|p| self.exit_of(p));
        let news = self.pending.keys().next().map(|(at, _)| *at);
        exit.chain(news).min()
    }

    /// Time passes: requests are served, processes end, news becomes known.
    pub(super) fn pass(&mut self, from: Timestamp, to: Timestamp) -> Vec<Event> {
        self.serve(to.since(from), to);
        let ended: Vec<InstanceKey> = self
            .processes
            .iter()
            .filter(|(_, process)| self.exit_of(process).is_some_and(|at| at <= to))
            .map(|(key, _)| key.clone())
            .collect();
        for key in ended {
            self.end_process(&key, "exit status 1", to);
        }
        let later = self.pending.split_off(&(to, u64::MAX));
        let due = std::mem::replace(&mut self.pending, later);
        for event in due.values() {
            self.take_effect(event);
        }
        due.into_values().collect()
    }

    fn end_process(&mut self, key: &InstanceKey, how: &str, now: Timestamp) {
        let Some(process) = self.processes.get_mut(key).filter(|p| p.alive) else {
            return;
        };
        process.alive = false;
        let incarnation = process.adopted.incarnation;
        let event = Event::Exited {
            instance: key.clone(),
            incarnation,
            how: how.to_owned(),
        };
        self.later(now, event);
    }

    fn take_effect(&mut self, event: &Event) {
        match event {
            Event::Stopped { instance, .. } => {
                self.processes.remove(instance);
            }
            Event::Staged { place } => {
                if let Some(digest) = self.staging.remove(place) {
                    self.releases.insert(digest);
                }
            }
            Event::StageFailed { .. }
            | Event::Started { .. }
            | Event::StartFailed { .. }
            | Event::Exited { .. }
            | Event::Probed { .. }
            | Event::Removed { .. }
            | Event::Traffic(_) => {}
        }
    }
}

fn incarnation(observed: &Observed, key: &InstanceKey) -> u32 {
    let place = observed.places.get(&key.place);
    let instance = place.and_then(|place| place.instances.get(&key.ordinal));
    instance.map_or(0, |instance| instance.incarnation)
}
