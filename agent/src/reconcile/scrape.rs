//! Metrics of the applications themselves, in the reports while a deployment is under way.

use tidegate_agent_core::place::{InstanceKey, PlaceKey};
use tidegate_shared::assignment::ObservedPlace;
use tidegate_shared::spec::Selector;

use super::Reconciler;
use crate::telemetry::scrape::Target;

impl Reconciler {
    /// Adds what the applications told of themselves, and asks them again. Nobody wants to know it
    /// while no deployment is under way.
    pub(super) fn scrape(&self, places: &mut [ObservedPlace]) {
        let mut targets = Vec::new();
        for observed in places {
            let key = PlaceKey {
                scope: observed.scope.clone(),
                deployment: observed.deployment,
            };
            let item = self.desired.places.get(&key);
            let Some(scrape) = item.and_then(|item| item.scrape.as_ref()) else {
                continue;
            };
            let series: Vec<Selector> = scrape
                .series
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect();
            for instance in observed.instances.iter_mut().filter(|i| i.pid > 0) {
                let id = InstanceKey {
                    place: key.clone(),
                    ordinal: instance.ordinal,
                };
                instance.app = self.scraper.samples(&id, instance.pid);
                let port = scrape.port.unwrap_or(instance.port);
                if self.busy() && port > 0 {
                    targets.push(Target {
                        instance: id,
                        pid: instance.pid,
                        address: (self.parts.settings.instance_address, port).into(),
                        path: scrape.path.clone(),
                        series: series.clone(),
                    });
                }
            }
        }
        self.scraper.ask(targets);
    }
}
