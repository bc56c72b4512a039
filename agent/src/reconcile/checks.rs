//! Checks of rollouts, in the reports while assignments ask for them.

use tidegate_agent_core::place::{InstanceKey, PlaceKey};
use tidegate_shared::assignment::{InstanceState, ObservedPlace};
use tidegate_shared::measurement::MOST_INSTANCES;

use super::Reconciler;
use crate::checks::{Target, TargetInstance};
use crate::executor::instance_dir;

impl Reconciler {
    /// Has measured what is due, and adds the latest measurements. Answers with what makes a report
    /// go out at once.
    pub(super) fn check(&self, places: &mut [ObservedPlace]) -> Vec<String> {
        let mut targets = Vec::new();
        for observed in places.iter() {
            let key = PlaceKey {
                scope: observed.scope.clone(),
                deployment: observed.deployment,
            };
            let wished = self.desired.places.get(&key);
            let Some(item) = wished.filter(|item| !item.checks.is_empty()) else {
                continue;
            };
            let instances = self.measured_instances(observed, &key);
            targets.extend(item.checks.iter().map(|wish| Target {
                place: key.clone(),
                wish: wish.clone(),
                instances: instances.clone(),
            }));
        }
        self.checker.ask(targets);
        let mut marks = Vec::new();
        for observed in places {
            let key = PlaceKey {
                scope: observed.scope.clone(),
                deployment: observed.deployment,
            };
            observed.checks = self.checker.latest(&key);
            marks.extend(observed.checks.iter().map(|check| {
                let instance = check.instance.map_or(-1, i64::from);
                format!("check {key} {} {instance} {}", check.name, check.sequence)
            }));
        }
        marks
    }

    /// The instances that are up, the first ones.
    fn measured_instances(&self, observed: &ObservedPlace, key: &PlaceKey) -> Vec<TargetInstance> {
        let up = observed.instances.iter().filter(|instance| {
            let runs = match instance.state {
                InstanceState::Healthy | InstanceState::Unhealthy => true,
                InstanceState::Starting
                | InstanceState::Backoff
                | InstanceState::Stopping
                | InstanceState::Failed => false,
            };
            runs && instance.ordinal < MOST_INSTANCES
        });
        let folder = self.parts.settings.layout.instances();
        up.filter_map(|instance| {
            let id = InstanceKey {
                place: key.clone(),
                ordinal: instance.ordinal,
            };
            Some(TargetInstance {
                ordinal: instance.ordinal,
                launch: self.launch_of(&id, instance.port)?,
                dir: instance_dir(&folder, &id),
                address: (self.parts.settings.instance_address, instance.port).into(),
            })
        })
        .collect()
    }
}
