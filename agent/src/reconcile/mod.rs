//! The loop: observe → plan → act → report, woken by the session, by events and by time.
//!
//! It owns the ledger and what is observed; the core decides. Before anything is done that a later
//! start must know of, the ledger has it. Long work runs as tasks whose events come back here, so
//! a turn never waits for a download or a stop. `kill -9` at any point is safe: what was under way
//! is found again on disk, among the processes and in the data plane.

mod checks;
mod launch;
mod plane;
pub mod ports;
pub mod recover;
pub mod route;
mod scrape;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidegate_agent_core::desired::Desired;
use tidegate_agent_core::fence::{self, Verdict};
use tidegate_agent_core::observed::{Event, Observed};
use tidegate_agent_core::place::{InstanceKey, PlaceKey};
use tidegate_agent_core::plan::{Action, Routes, plan};
use tidegate_agent_core::report;
use tidegate_agent_core::retention::{KeptRelease, expendable};
use tidegate_shared::assignment::{Assignment, Assignments, Generation, ProxyReport, Report};
use tidegate_shared::time::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::asset::ReleaseStore;
use crate::asset::fetch::Source;
use crate::checks::Checker;
use crate::config::Settings;
use crate::executor::{Events, Executor, Task, instance_dir, output, procfs};
use crate::ledger::{InstanceRecord, Ledger};
use crate::secrets::SecretStore;
use crate::session::{Secrets, Wish};
use crate::telemetry::host::HostMeter;
use crate::telemetry::scrape::Scraper;
use crate::telemetry::usage::UsageMeter;
use crate::traffic::TrafficProvider;
use ports::Ports;
use route::Conflicts;

/// Turns at one wake-up: each is a route that was acknowledged.
const MAX_TURNS: usize = 8;
/// The same routes are told again at most so often.
const ROUTE_AGAIN: Duration = Duration::from_secs(1);
/// How old the data plane's figures may be while a deployment is under way, and else.
const LOOK_BUSY: Duration = Duration::from_millis(500);
const LOOK_QUIET: Duration = Duration::from_secs(5);
/// Between two looks at the sizes of output files.
const ROTATE_EVERY: Duration = Duration::from_secs(30);
/// Releases kept of a scope that is not wished any more.
const KEEP_OF_GONE_SCOPES: u32 = 1;

/// The parts of the agent that the loop drives.
pub struct Parts {
    /// The configuration.
    pub settings: Settings,
    /// Runs workloads; its events come through `events`.
    pub executor: Arc<dyn Executor>,
    /// Routes requests.
    pub traffic: Arc<dyn TrafficProvider>,
    /// Releases on disk.
    pub store: Arc<ReleaseStore>,
    /// Values of secrets.
    pub secrets: Arc<SecretStore>,
    /// Where assets come from.
    pub source: Arc<dyn Source>,
    /// For tasks to tell their ends.
    pub events: Events,
}

/// Where the loop tells what others need.
pub struct Outlets {
    /// The latest report.
    pub reports: watch::Sender<Option<Arc<Report>>>,
    /// The highest generation.
    pub generation: watch::Sender<Generation>,
    /// The instances that are known.
    pub instances: watch::Sender<Arc<Vec<InstanceKey>>>,
}

/// The loop's memory.
pub struct Reconciler {
    parts: Parts,
    outlets: Outlets,
    ports: Ports,
    clock: Clock,
    ledger: Ledger,
    written: Option<Ledger>,
    desired: Desired,
    observed: Observed,
    complaints: BTreeMap<&'static str, String>,
    conflicts: Conflicts,
    proxy: Option<ProxyReport>,
    routed: Option<(Instant, Routes)>,
    looked: Option<Instant>,
    rotated: Instant,
    swept: Option<Instant>,
    sequence: u64,
    reported: Option<(Timestamp, Vec<String>)>,
    host: HostMeter,
    usage: UsageMeter,
    pulses: Option<mpsc::Receiver<oneshot::Sender<()>>>,
    scraper: Scraper,
    checker: Checker,
}

/// Time that never goes backwards: the wall clock of the start, and what passed since.
struct Clock {
    wall: u64,
    began: Instant,
}

impl Clock {
    fn new() -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            wall: wall.as_millis() as u64,
            began: Instant::now(),
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.wall + self.began.elapsed().as_millis() as u64)
    }
}

impl Reconciler {
    /// The loop over a ledger that was read; `complaint` is what was wrong with it.
    pub fn new(parts: Parts, outlets: Outlets, ledger: Ledger, complaint: Option<String>) -> Self {
        let settings = &parts.settings;
        let (range, address) = (settings.ports, settings.instance_address);
        let mut reconciler = Self {
            ports: Ports::new(range, address, settings.name.as_str()),
            clock: Clock::new(),
            written: None,
            desired: Desired::default(),
            observed: Observed::default(),
            complaints: BTreeMap::new(),
            conflicts: Conflicts::new(),
            proxy: None,
            routed: None,
            looked: None,
            rotated: Instant::now(),
            swept: None,
            sequence: 0,
            reported: None,
            host: HostMeter::new(&settings.layout.dir),
            usage: UsageMeter::default(),
            pulses: None,
            scraper: Scraper::default(),
            checker: Checker::default(),
            outlets,
            ledger,
            parts,
        };
        if let Some(complaint) = complaint {
            reconciler.complaints.insert("ledger", complaint);
        }
        let seconds = reconciler.clock.wall / 1_000;
        reconciler.ledger.start = (reconciler.ledger.start + 1).max(seconds);
        reconciler
    }

    /// A way to ask whether the loop turns: it answers between two turns, as soon as it can.
    pub fn pulse(&mut self) -> mpsc::Sender<oneshot::Sender<()>> {
        let (sender, receiver) = mpsc::channel(1);
        self.pulses = Some(receiver);
        sender
    }

    /// Tells the cluster of something that is wrong with this agent.
    pub fn complain(&mut self, about: &'static str, line: String) {
        self.complaints.insert(about, line);
    }

    /// The start counter of this run.
    pub const fn start(&self) -> u64 {
        self.ledger.start
    }

    /// What is observed, for tests.
    pub const fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Takes up what an earlier process left: call once, before [`run`](Self::run).
    pub async fn resume(&mut self) {
        self.write_ledger();
        if let Some(held) = self.ledger.assignments.clone() {
            match Desired::new(&held, &self.ledger.latched) {
                Ok(_) if self.ledger.removed => self.desired = Desired::nothing(held.generation),
                Ok(desired) => self.desired = desired,
                Err(error) => error!(%error, "the ledger's assignments are not followed"),
            }
            self.outlets.generation.send_replace(held.generation);
        }
        let known = self.ledger.places_by_key();
        if !known.is_empty() {
            self.look().await;
            self.recover(known);
        }
    }

    /// Runs until `stop` resolves.
    pub async fn run(
        &mut self,
        mut events: mpsc::UnboundedReceiver<Event>,
        mut wishes: mpsc::Receiver<Wish>,
        stop: impl Future<Output = ()>,
    ) {
        let mut stop = std::pin::pin!(stop);
        let mut pulses = self.pulses.take();
        let measured = self.checker.news();
        loop {
            let wake = self.turn().await;
            tokio::select! {
                () = &mut stop => return,
                event = events.recv() => {
                    let Some(event) = event else { return };
                    self.take(event);
                    while let Ok(event) = events.try_recv() {
                        self.take(event);
                    }
                }
                wish = wishes.recv() => {
                    match wish {
                        Some(Wish::Assignments(wish, secrets)) => self.accept(wish, secrets).await,
                        Some(Wish::Removed) => self.leave(),
                        None => return,
                    }
                }
                Some(beat) = next_pulse(&mut pulses) => {
                    // Whoever asked may have given up.
                    beat.send(()).ok();
                }
                () = measured.notified() => {}
                () = tokio::time::sleep(wake) => {}
            }
        }
    }

    /// Assignments came: through the fence, into the ledger, then in force.
    pub async fn accept(&mut self, wish: Assignments, secrets: Secrets) {
        // Also of assignments that are known: a value that was lost comes back with them.
        let kept = self.parts.secrets.add(secrets);
        self.complain_about_secrets(kept);
        match fence::judge(self.ledger.assignments.as_ref(), &wish) {
            Verdict::Accept => {}
            // What was wished before the removal is wished again.
            Verdict::Repeated if self.ledger.removed => {}
            Verdict::Repeated => return,
            Verdict::Older { held } => {
                let came = wish.generation;
                warn!(?came, ?held, "older assignments are ignored");
                return;
            }
            Verdict::Conflicting => {
                let (epoch, index) = (wish.generation.epoch, wish.generation.index);
                let line = format!(
                    "other assignments came with the same generation {epoch}.{index}; they are ignored: please report it"
                );
                error!("{line}");
                self.complaints.insert("generation", line);
                return;
            }
        }
        let desired = match Desired::new(&wish, &self.ledger.latched) {
            Ok(desired) => desired,
            Err(error) => {
                error!(%error, "assignments are ignored");
                self.complaints.insert("assignments", error.to_string());
                return;
            }
        };
        info!(
            epoch = wish.generation.epoch,
            index = wish.generation.index,
            items = wish.items.len(),
            "new assignments"
        );
        self.complaints.remove("assignments");
        self.complaints.remove("generation");
        self.ledger.removed = false;
        let unknown: BTreeMap<PlaceKey, Assignment> = desired
            .places
            .iter()
            .filter(|(key, _)| !self.observed.places.contains_key(key))
            .map(|(key, item)| (key.clone(), item.clone()))
            .collect();
        let first = self.ledger.assignments.is_none();
        self.desired = desired;
        self.outlets.generation.send_replace(wish.generation);
        self.ledger.assignments = Some(wish);
        self.write_ledger();
        self.forget_secrets();
        if !unknown.is_empty() {
            if first {
                // What runs already, if the ledger was lost, is taken up with the health it has.
                self.look().await;
            }
            self.recover(unknown);
        }
    }

    /// The cluster took this agent out: everything drains and goes, in the usual order. What was
    /// wished stays in the ledger for the fence, should the agent be let in again.
    fn leave(&mut self) {
        if self.ledger.removed {
            return;
        }
        self.ledger.removed = true;
        self.write_ledger();
        self.desired = Desired::nothing(self.desired.generation);
    }

    fn take(&mut self, mut event: Event) {
        let now = self.clock.now();
        self.mask(&mut event);
        match &event {
            Event::Started {
                instance,
                pid,
                port,
                ..
            } => self.note_started(instance, *pid, *port),
            Event::Exited { instance, .. } => {
                if let Some(record) = self.record(instance) {
                    record.process = None;
                }
            }
            Event::Stopped { instance, .. } => {
                self.ledger
                    .instances
                    .retain(|record| record.instance != *instance);
            }
            Event::Staged { place } => self.note_release(place, now),
            Event::Removed { place } => {
                self.note_release(place, now);
                self.ledger
                    .instances
                    .retain(|record| record.instance.place != *place);
            }
            Event::StageFailed {
                place,
                message,
                kind,
            } => {
                warn!(%place, message, permanent = kind.is_some(), "staging failed");
            }
            Event::StartFailed { .. } | Event::Probed { .. } | Event::Traffic(_) => {}
        }
        let prune = matches!(event, Event::Staged { .. } | Event::Removed { .. });
        self.observed.apply(event, now);
        if prune {
            self.prune();
            self.forget_secrets();
        }
    }

    fn record(&mut self, key: &InstanceKey) -> Option<&mut InstanceRecord> {
        self.ledger
            .instances
            .iter_mut()
            .find(|record| record.instance == *key)
    }

    fn note_started(&mut self, key: &InstanceKey, pid: u32, port: u16) {
        let running = self.parts.executor.observe();
        let process = running.into_iter().find(|running| running.instance == *key);
        let process = process
            .map(|running| running.process)
            .filter(|p| p.pid == pid);
        if let Some(record) = self.record(key) {
            record.port = port;
            record.process = process;
        }
    }

    /// Remembers that a scope used a release.
    fn note_release(&mut self, place: &PlaceKey, now: Timestamp) {
        let Some(held) = self.observed.places.get(place) else {
            return;
        };
        let digest = held.item.asset.sha256;
        self.ledger
            .releases
            .retain(|r| r.scope != place.scope || r.digest != digest);
        self.ledger.releases.push(KeptRelease {
            scope: place.scope.clone(),
            digest,
            used_at: now,
        });
    }

    /// Removes releases that no place uses and no scope keeps.
    fn prune(&mut self) {
        let items = self.observed.places.values().map(|place| &place.item);
        let wished = self.desired.places.values();
        let in_use: BTreeSet<_> = items.chain(wished).map(|item| item.asset.sha256).collect();
        let mut keep = BTreeMap::new();
        for item in self.desired.places.values() {
            keep.insert(item.scope.clone(), item.keep_releases);
        }
        let gone = expendable(&self.ledger.releases, &in_use, &keep, KEEP_OF_GONE_SCOPES);
        self.ledger.releases.retain(|record| !gone.contains(record));
        for record in gone {
            if self
                .ledger
                .releases
                .iter()
                .any(|kept| kept.digest == record.digest)
            {
                continue;
            }
            info!(scope = %record.scope, digest = %record.digest.short(), "an old release is removed");
            let store = Arc::clone(&self.parts.store);
            tokio::task::spawn_blocking(move || {
                if let Err(error) = store.remove(&record.digest) {
                    warn!(digest = %record.digest, %error, "the release cannot be removed");
                }
            });
        }
    }

    /// One wake-up: turns until nothing more is due; answers with how long to sleep.
    async fn turn(&mut self) -> Duration {
        // Without a first wish there is nothing that could be right to do.
        if self.ledger.assignments.is_none() {
            self.report();
            return self.until(None);
        }
        let mut wake_at = None;
        for _ in 0..MAX_TURNS {
            if self.look_due() <= Duration::ZERO {
                self.look().await;
            }
            let now = self.clock.now();
            self.observed.sync(&self.desired, now);
            let planned = plan(&self.desired, &self.observed, now);
            wake_at = planned.wake_at;
            let mut routed = false;
            for action in planned.actions {
                routed |= self.perform(action).await;
            }
            self.ledger.places = self
                .observed
                .places
                .values()
                .map(|place| place.item.clone())
                .collect();
            self.write_ledger();
            if !routed {
                break;
            }
        }
        self.rotate();
        self.sweep();
        self.report();
        self.until(wake_at)
    }

    /// Does what is due; answers whether the data plane was told something.
    async fn perform(&mut self, action: Action) -> bool {
        match action {
            Action::Route(routes) => return self.route(routes).await,
            Action::Start { .. }
            | Action::Stage { .. }
            | Action::Probe { .. }
            | Action::Stop { .. }
            | Action::Remove { .. } => self.observed.begin(&action),
        }
        match action {
            Action::Stage { place } => self.stage(place),
            Action::Start { instance } => self.launch(instance),
            Action::Probe { instance } => self.probe(instance),
            Action::Stop { instance } => {
                let incarnation = self.incarnation(&instance);
                let port = self.ledger.instance(&instance).map_or(0, |r| r.port);
                let launch = self.launch_of(&instance, port).map(Box::new);
                self.parts.executor.perform(Task::Stop {
                    instance,
                    incarnation,
                    launch,
                });
            }
            Action::Remove { place } => self.parts.executor.perform(Task::Remove(place)),
            Action::Route(_) => {}
        }
        false
    }

    fn busy(&self) -> bool {
        self.desired.report_interval.is_some()
    }

    fn look_due(&self) -> Duration {
        let limit = if self.busy() { LOOK_BUSY } else { LOOK_QUIET };
        self.looked
            .map_or(Duration::ZERO, |at| limit.saturating_sub(at.elapsed()))
    }

    fn incarnation(&self, key: &InstanceKey) -> u32 {
        let place = self.observed.places.get(&key.place);
        let instance = place.and_then(|place| place.instances.get(&key.ordinal));
        instance.map_or(0, |instance| instance.incarnation)
    }

    fn stage(&self, place: PlaceKey) {
        let Some(held) = self.observed.places.get(&place) else {
            return;
        };
        let wish = held.item.asset.clone();
        let (store, source) = (
            Arc::clone(&self.parts.store),
            Arc::clone(&self.parts.source),
        );
        let events = self.parts.events.clone();
        tokio::spawn(async move {
            let event = match store.stage(&wish, source.as_ref()).await {
                Ok(()) => Event::Staged { place },
                Err(error) => Event::StageFailed {
                    place,
                    kind: error.kind,
                    message: error.message,
                },
            };
            events.send(event).ok();
        });
    }

    /// Writes the ledger if it changed. An agent that cannot write goes on and says so: to hold
    /// back a rollback would be worse.
    fn write_ledger(&mut self) {
        if self.written.as_ref() == Some(&self.ledger) {
            return;
        }
        let path = self.parts.settings.layout.ledger();
        match self.ledger.write(&path) {
            Ok(()) => {
                self.complaints.remove("disk");
                self.written = Some(self.ledger.clone());
            }
            Err(error) => {
                let line = format!("the ledger {} cannot be written: {error}", path.display());
                if self.complaints.insert("disk", line.clone()).is_none() {
                    error!("{line}");
                }
            }
        }
    }

    fn rotate(&mut self) {
        if self.rotated.elapsed() < ROTATE_EVERY {
            return;
        }
        self.rotated = Instant::now();
        let instances = self.parts.settings.layout.instances();
        for record in &self.ledger.instances {
            let dir = instance_dir(&instances, &record.instance);
            for stream in output::Stream::ALL {
                let path = stream.path(&dir);
                if let Err(error) = output::rotate(&path, output::ROTATE_AT) {
                    warn!(path = %path.display(), %error, "the output is not rotated");
                }
            }
        }
    }

    fn until(&self, wake_at: Option<Timestamp>) -> Duration {
        let now = self.clock.now();
        let next_report = self
            .reported
            .as_ref()
            .map_or(now, |(at, _)| *at + report::interval(&self.desired));
        let wake = wake_at.map_or(next_report, |at| at.min(next_report));
        // A look is only due when something could have changed.
        let look = if self.observed.places.is_empty() {
            LOOK_QUIET
        } else {
            self.look_due()
        };
        wake.since(now)
            .to_std()
            .min(look)
            .min(self.checker.rest().unwrap_or(look))
            .max(Duration::from_millis(1))
    }

    /// Makes a report if something of note changed or the interval is over.
    fn report(&mut self) {
        let now = self.clock.now();
        let mut places = report::places(&self.observed, now);
        let checked = self.check(&mut places);
        let mut marks = report::landmarks(self.desired.generation, &places);
        marks.extend(checked);
        let troubles = self.parts.executor.troubles();
        marks.extend(self.complaints.values().chain(&troubles).cloned());
        marks.extend(self.proxy.iter().map(|proxy| {
            let draining = proxy.draining.iter().map(|old| old.pid);
            format!("proxy {} {:?}", proxy.pid, draining.collect::<Vec<u32>>())
        }));
        let due = self.reported.as_ref().is_none_or(|(at, told)| {
            now.since(*at) >= report::interval(&self.desired) || *told != marks
        });
        if !due {
            return;
        }
        self.measure(&mut places);
        self.scrape(&mut places);
        self.sequence += 1;
        let known = self.observed.places.iter().flat_map(|(key, place)| {
            place.instances.keys().map(|ordinal| InstanceKey {
                place: key.clone(),
                ordinal: *ordinal,
            })
        });
        self.outlets
            .instances
            .send_replace(Arc::new(known.collect()));
        self.outlets.reports.send_replace(Some(Arc::new(Report {
            start: self.ledger.start,
            sequence: self.sequence,
            applied: self.desired.generation,
            places,
            host: self.host.read(),
            complaints: self.complaints.values().cloned().chain(troubles).collect(),
            proxy: self.proxy.clone(),
        })));
        self.reported = Some((now, marks));
    }

    /// Adds what the processes use.
    fn measure(&mut self, places: &mut [tidegate_shared::assignment::ObservedPlace]) {
        let instances = || places.iter().flat_map(|place| &place.instances);
        let groups: Vec<u32> = instances().map(|i| i.pid).filter(|pid| *pid > 0).collect();
        let usages = self.usage.read(&groups, Instant::now());
        for instance in places.iter_mut().flat_map(|place| &mut place.instances) {
            if let Some(usage) = usages.get(&instance.pid) {
                instance.cpu_basis_points = usage.cpu_basis_points;
                instance.memory_bytes = usage.memory_bytes;
            }
        }
    }
}

async fn next_pulse(
    pulses: &mut Option<mpsc::Receiver<oneshot::Sender<()>>>,
) -> Option<oneshot::Sender<()>> {
    match pulses {
        Some(pulses) => pulses.recv().await,
        None => None,
    }
}

/// The process of a record, if it is still there: as it was noted, or found by its marks if the
/// agent ended before it could note it.
pub fn find_process(
    instances: &std::path::Path,
    key: &InstanceKey,
    record: Option<&InstanceRecord>,
) -> Option<crate::ledger::ProcessId> {
    match record.and_then(|record| record.process.as_ref()) {
        Some(process) => procfs::is_alive(process).then(|| process.clone()),
        None => procfs::find_marked(&key.id(), &instance_dir(instances, key)),
    }
}
