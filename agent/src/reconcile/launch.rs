//! What a start needs: the port, the parameters with their values, the release's folder; and the
//! samples of health, which run in the same surroundings.

use std::collections::BTreeSet;

use tidegate_agent_core::observed::Event;
use tidegate_agent_core::place::InstanceKey;
use tidegate_shared::assignment::{Assignment, ParameterContent, ParameterWish};
use tidegate_shared::digest::Digest;
use tidegate_shared::secret::Secret;
use tidegate_shared::spec::Port;
use tracing::error;

use super::Reconciler;
use crate::executor::{Launch, Parameter, Task, instance_dir};
use crate::ledger::InstanceRecord;
use crate::probe;

impl Reconciler {
    /// Drops the secrets that neither the wish nor anything held names.
    pub(super) fn forget_secrets(&mut self) {
        let in_force = self.ledger.assignments.as_ref();
        let in_force = in_force.filter(|_| !self.ledger.removed);
        let wished = in_force.iter().flat_map(|wish| &wish.items);
        let held = self.observed.places.values().map(|place| &place.item);
        let named: BTreeSet<Digest> = wished
            .chain(held)
            .chain(&self.ledger.places)
            .flat_map(|item| &item.parameters)
            .filter_map(|parameter| match &parameter.content {
                ParameterContent::Secret(version) => Some(*version),
                ParameterContent::Plain(_) => None,
            })
            .collect();
        let kept = self.parts.secrets.retain(&named);
        self.complain_about_secrets(kept);
    }

    pub(super) fn complain_about_secrets(&mut self, kept: std::io::Result<()>) {
        match kept {
            Ok(()) => {
                self.complaints.remove("secrets");
            }
            Err(error) => {
                let line = format!(
                    "the sealed secrets cannot be written: {error}; after a restart of the agent without a coordinator, instances that need one do not start"
                );
                if self.complaints.insert("secrets", line.clone()).is_none() {
                    error!("{line}");
                }
            }
        }
    }

    /// The last words of a process go to the cluster and into its log: not with secrets in them.
    pub(super) fn mask(&self, event: &mut Event) {
        let (instance, text) = match event {
            Event::StartFailed {
                instance, message, ..
            } => (instance, message),
            Event::Exited { instance, how, .. }
            | Event::Stopped {
                instance,
                how: Some(how),
                ..
            } => (instance, how),
            Event::Started { .. }
            | Event::Stopped { how: None, .. }
            | Event::Staged { .. }
            | Event::StageFailed { .. }
            | Event::Probed { .. }
            | Event::Removed { .. }
            | Event::Traffic(_) => return,
        };
        if let Some(launch) = self.launch_of(instance, 0) {
            *text = launch.mask(text);
        }
    }

    /// Starts a process, after the ledger knows that it is about to.
    pub(super) fn launch(&mut self, key: InstanceKey) {
        let incarnation = self.incarnation(&key);
        let kept = self.ledger.instance(&key).map_or(0, |record| record.port);
        let needs_port = self
            .observed
            .places
            .get(&key.place)
            .is_some_and(|place| place.item.port != Port::None);
        let port = if needs_port {
            let others = self.ledger.instances.iter().filter(|r| r.instance != key);
            let taken: BTreeSet<u16> = others.map(|record| record.port).collect();
            match self.ports.pick(kept, &taken) {
                Ok(port) => port,
                Err(message) => {
                    let event = Event::StartFailed {
                        instance: key,
                        incarnation,
                        permanent: false,
                        message,
                    };
                    self.parts.events.send(event).ok();
                    return;
                }
            }
        } else {
            0
        };
        let restarts = self.restarts(&key);
        self.ledger.set_instance(InstanceRecord {
            instance: key.clone(),
            port,
            incarnation,
            restarts,
            process: None,
        });
        self.write_ledger();
        let Some(launch) = self.launch_of(&key, port) else {
            return;
        };
        if let Some(lacking) = launch.parameters.iter().find(|p| p.value.is_none()) {
            let message = format!(
                "the value of the secret {} has not come to this host yet; a coordinator sends it",
                lacking.variable
            );
            let event = Event::StartFailed {
                instance: key,
                incarnation,
                permanent: false,
                message,
            };
            self.parts.events.send(event).ok();
            return;
        }
        self.parts.executor.perform(Task::Start(Box::new(launch)));
    }

    fn restarts(&self, key: &InstanceKey) -> u32 {
        let place = self.observed.places.get(&key.place);
        let instance = place.and_then(|place| place.instances.get(&key.ordinal));
        instance.map_or(0, |instance| instance.restarts)
    }

    pub(super) fn launch_of(&self, key: &InstanceKey, port: u16) -> Option<Launch> {
        let item = &self.observed.places.get(&key.place)?.item;
        Some(self.launch_from(item, key, self.incarnation(key), port))
    }

    pub(super) fn launch_from(
        &self,
        item: &Assignment,
        key: &InstanceKey,
        incarnation: u32,
        port: u16,
    ) -> Launch {
        Launch {
            instance: key.clone(),
            incarnation,
            port,
            address: self.parts.settings.instance_address,
            agent: self.parts.settings.name.clone(),
            release: item.release.clone(),
            release_dir: self.parts.store.path(&item.asset.sha256),
            run: item.run.clone(),
            parameters: item
                .parameters
                .iter()
                .map(|wish| self.parameter(wish))
                .collect(),
        }
    }

    fn parameter(&self, wish: &ParameterWish) -> Parameter {
        let (value, secret) = match &wish.content {
            ParameterContent::Plain(text) => (Some(Secret::new(text.clone())), false),
            ParameterContent::Secret(version) => (self.parts.secrets.get(version), true),
        };
        Parameter {
            variable: wish.variable.clone(),
            value,
            secret,
            file: wish.file.clone(),
        }
    }

    pub(super) fn probe(&self, key: InstanceKey) {
        let Some(place) = self.observed.places.get(&key.place) else {
            return;
        };
        let port = place
            .instances
            .get(&key.ordinal)
            .map_or(0, |instance| instance.port);
        let Some(launch) = self.launch_of(&key, port) else {
            return;
        };
        let check = place.item.health_check.clone();
        let address = (self.parts.settings.instance_address, port).into();
        let dir = instance_dir(&self.parts.settings.layout.instances(), &key);
        let events = self.parts.events.clone();
        tokio::spawn(async move {
            let sample = probe::sample(&check, address, &launch, &dir).await;
            let event = Event::Probed {
                instance: key,
                incarnation: launch.incarnation,
                sample,
            };
            events.send(event).ok();
        });
    }
}
