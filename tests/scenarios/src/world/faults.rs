//! Faults of a scenario: what happens to hosts, their network and the leader, and what comes to them.

use tidegate_agent_core::place::PlaceKey;
use tidegate_coordinator_core::Observed;
use tidegate_coordinator_core::plan::Agenda;
use tidegate_shared::id::Name;

use super::{Host, World};
use crate::script::Fault;

impl World {
    pub(super) fn fault(&mut self, fault: &Fault) -> Result<(), String> {
        let now = self.now;
        match fault {
            Fault::Cut(agent) => self.host(agent)?.connected = false,
            Fault::Kill(agent) => {
                let host = self.host(agent)?;
                host.connected = false;
                for instance in host.model.host.running() {
                    host.model.host.kill_process(&instance, now);
                    host.excused.insert(instance.place.deployment);
                }
                host.model.kill();
            }
            Fault::Back(agent) => {
                let host = self.host(agent)?;
                host.connected = true;
                if host.model.observed().is_none() {
                    host.model.advance(now);
                    host.model.start();
                }
            }
            Fault::Stick(agent) => self.host(agent)?.model.host.data_plane_down(true),
            Fault::Free(agent) => self.host(agent)?.model.host.data_plane_down(false),
            Fault::Leader => {
                self.observed = Observed::new(now);
                self.checks.new_leader();
                self.planner_wakes = None;
                self.agenda = Agenda::default();
            }
            Fault::Vanish(nth, on) => {
                let id = self.id(*nth)?;
                for (_, host) in self.hosts_on(on.as_ref()) {
                    for instance in host.model.host.running() {
                        if instance.place.deployment == id {
                            host.model.host.kill_process(&instance, now);
                            host.excused.insert(id);
                        }
                    }
                }
            }
            Fault::Load(scope, requests) => {
                self.loaded.remove(scope);
                if *requests > 0 {
                    self.loaded.insert(scope.clone());
                }
                for host in self.hosts.values_mut() {
                    host.model.host.load(scope, *requests);
                }
            }
            Fault::Open(nth, requests, on) => {
                let id = self.id(*nth)?;
                let scope = self
                    .state
                    .deployments
                    .get(&id)
                    .map(|deployment| deployment.origin.scope.clone())
                    .ok_or_else(|| format!("{nth} is gone"))?;
                for (_, host) in self.hosts_on(on.as_ref()) {
                    let place = PlaceKey {
                        scope: scope.clone(),
                        deployment: id,
                    };
                    host.model.host.hold_open(&place, *requests);
                }
            }
        }
        Ok(())
    }

    fn host(&mut self, name: &Name) -> Result<&mut Host, String> {
        self.hosts
            .get_mut(name)
            .ok_or_else(|| format!("there is no host {name}"))
    }

    fn hosts_on<'a>(
        &'a mut self,
        on: Option<&'a Name>,
    ) -> impl Iterator<Item = (&'a Name, &'a mut Host)> {
        self.hosts
            .iter_mut()
            .filter(move |(name, _)| on.is_none_or(|on| on == *name))
    }
}
