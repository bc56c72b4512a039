//! Taking up what is there already: releases on disk, processes, routes.
//!
//! Used for every place that the agent does not know yet: all of them at its start, new ones when
//! assignments arrive. A process is taken up with the health that the data plane holds, so that
//! adoption takes no traffic from it.

use std::collections::BTreeMap;

use tidegate_agent_core::instance::{Adopted, Instance, Settings};
use tidegate_agent_core::observed::{Place, Staging};
use tidegate_agent_core::place::{InstanceKey, PlaceKey};
use tidegate_shared::assignment::Assignment;
use tidegate_shared::spec::HookKind;
use tracing::{info, warn};

use super::{Reconciler, find_process};
use crate::executor::{Running, Task, instance_dir, procfs};
use crate::hooks;
use crate::ledger::{InstanceRecord, ProcessId};

impl Reconciler {
    pub(super) fn recover(&mut self, places: BTreeMap<PlaceKey, Assignment>) {
        for (key, item) in places {
            let staged = self.parts.store.has(&item.asset.sha256);
            let instances = self.recover_instances(&key, &item);
            if !staged && instances.is_empty() {
                continue;
            }
            let mut place = Place::new(item);
            if staged {
                place.staging = Staging::Ready;
            }
            place.instances = instances;
            self.observed.places.insert(key, place);
        }
        let now = self.clock.now();
        let traffic = self.observed.traffic.clone();
        let known = tidegate_agent_core::observed::Event::Traffic(traffic);
        self.observed.apply(known, now);
    }

    fn recover_instances(&mut self, key: &PlaceKey, item: &Assignment) -> BTreeMap<u32, Instance> {
        let folder = self.parts.settings.layout.instances();
        let recorded = self
            .ledger
            .instances
            .iter()
            .filter(|r| r.instance.place == *key);
        let mut ordinals: Vec<u32> = recorded.map(|record| record.instance.ordinal).collect();
        // A folder without a record: the ledger was lost.
        ordinals.extend((0..item.count).filter(|ordinal| {
            let instance = InstanceKey {
                place: key.clone(),
                ordinal: *ordinal,
            };
            self.ledger.instance(&instance).is_none() && instance_dir(&folder, &instance).is_dir()
        }));
        let mut instances = BTreeMap::new();
        for ordinal in ordinals {
            let instance = InstanceKey {
                place: key.clone(),
                ordinal,
            };
            if let Some(found) = self.recover_instance(&instance, item) {
                instances.insert(ordinal, found);
            }
        }
        instances
    }

    fn recover_instance(&mut self, key: &InstanceKey, item: &Assignment) -> Option<Instance> {
        let folder = self.parts.settings.layout.instances();
        let record = self.ledger.instance(key).cloned();
        let process = find_process(&folder, key, record.as_ref());
        let version = self.observed.traffic.version(&key.place);
        let held = version.and_then(|version| version.instances.get(&key.ordinal));
        let adopted = Adopted {
            incarnation: record.as_ref().map_or(1, |record| record.incarnation),
            restarts: record.as_ref().map_or(0, |record| record.restarts),
            pid: process.as_ref().map_or(0, |process| process.pid),
            port: record
                .as_ref()
                .map(|record| record.port)
                .or(held.map(|held| held.port))
                .or(process.as_ref().map(|process| procfs::port_of(process.pid)))
                .unwrap_or(0),
            healthy: held.is_some_and(|held| held.healthy),
        };
        let now = self.clock.now();
        let unfinished = hooks::interrupted(&instance_dir(&folder, key));
        if unfinished.is_some_and(HookKind::is_of_stop) {
            return Some(self.resume_stop(key, item, adopted, process));
        }
        let Some(process) = process else {
            record.as_ref()?;
            warn!(instance = %key, "ended while the agent was away");
            if let Some(record) = self.record(key) {
                record.process = None;
            }
            let settings = Settings {
                check: &item.health_check,
                max_restarts: item.max_restarts,
            };
            return Some(Instance::lost(adopted, settings, now));
        };
        info!(instance = %key, pid = process.pid, "found running");
        self.take_up(key, &adopted, process);
        Some(Instance::adopt(adopted, now))
    }

    fn take_up(&mut self, key: &InstanceKey, adopted: &Adopted, process: ProcessId) {
        self.ledger.set_instance(InstanceRecord {
            instance: key.clone(),
            port: adopted.port,
            incarnation: adopted.incarnation,
            restarts: adopted.restarts,
            process: Some(process.clone()),
        });
        self.parts.executor.perform(Task::Adopt(Running {
            instance: key.clone(),
            incarnation: adopted.incarnation,
            process,
        }));
    }

    /// A stop whose hooks an earlier agent left unfinished is completed, whatever is wished now: an
    /// instance that is half stopped is none to keep.
    fn resume_stop(
        &mut self,
        key: &InstanceKey,
        item: &Assignment,
        adopted: Adopted,
        process: Option<ProcessId>,
    ) -> Instance {
        info!(instance = %key, "a stop that was interrupted is completed");
        if let Some(process) = process {
            self.take_up(key, &adopted, process);
        }
        let launch = self.launch_from(item, key, adopted.incarnation, adopted.port);
        self.parts.executor.perform(Task::Stop {
            instance: key.clone(),
            incarnation: adopted.incarnation,
            launch: Some(Box::new(launch)),
        });
        let mut instance = Instance::adopt(adopted, self.clock.now());
        instance.stopping();
        instance
    }
}
