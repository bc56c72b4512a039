//! The planner: desired × observed → the actions that are due now, and when to look again.
//!
//! It holds the order within the levels, whatever an assignment says (agent.md §2):
//!
//! * weight moves only to a version with a healthy instance;
//! * instances stop only after the data plane acknowledges weight 0 for their version and it is
//!   drained: no open requests, or the drain time is over;
//! * while the wish gives some version of the scope weight, traffic is not taken from the last
//!   healthy version and that one is not stopped, unless its item says `may_interrupt`.
//!
//! It decides levels, not steps: the same plan twice does no harm, and what is under way is seen in
//! [`Observed`] and not ordered again.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_shared::assignment::{Role, WishedState};
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::spec::Port;
use tidegate_shared::time::Timestamp;
use tidegate_shared::weight::Weight;

use crate::desired::Desired;
use crate::instance::{Instance, Phase};
use crate::observed::{HeldInstance, Observed, Place, Staging, Traffic};
use crate::place::{InstanceKey, PlaceKey};
pub use crate::route::{InstanceRoute, Routes, ScopeRoute, VersionRoute};
use crate::route::{held_as, revision};

/// Something to do. Doing it twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Tell the data plane these routes; answered by `Event::Traffic`.
    Route(Routes),
    /// Fetch, verify and unpack the release of a place; answered by `Staged` or `StageFailed`.
    Stage {
        /// Which place.
        place: PlaceKey,
    },
    /// Start a process; answered by `Started` or `StartFailed`, later by `Exited`.
    Start {
        /// Which instance.
        instance: InstanceKey,
    },
    /// Take one sample of the health check; answered by `Probed`.
    Probe {
        /// Which instance.
        instance: InstanceKey,
    },
    /// Stop a process; answered by `Stopped`.
    Stop {
        /// Which instance.
        instance: InstanceKey,
    },
    /// Forget a place without instances; answered by `Removed`.
    Remove {
        /// Which place.
        place: PlaceKey,
    },
}

/// What is due.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In this order.
    pub actions: Vec<Action>,
    /// When to plan again if nothing happens before; none: nothing is waited for.
    pub wake_at: Option<Timestamp>,
}

/// Plans; see the module.
pub fn plan(desired: &Desired, observed: &Observed, now: Timestamp) -> Plan {
    let mut planner = Planner {
        desired,
        observed,
        now,
        plan: Plan::default(),
    };
    let weights = planner.weights();
    planner.route(&weights);
    for (key, place) in &observed.places {
        planner.place(key, place);
    }
    planner.plan
}

/// Requests of a place: weight 0 acknowledged, and nothing open or the drain time over. Workers,
/// which no data plane knows, are drained when no weight is wished for them.
pub fn drained(traffic: &Traffic, key: &PlaceKey, place: &Place, now: Timestamp) -> bool {
    if place.item.port == Port::None {
        return place.item.weight == Weight::ZERO;
    }
    let Some(since) = place.zero_since else {
        return false;
    };
    if traffic.weight(key) != Some(Weight::ZERO) {
        return false;
    }
    let open = traffic.version(key).map_or(0, |held| held.open_requests);
    open == 0 || now >= since + place.item.drain
}

struct Planner<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    now: Timestamp,
    plan: Plan,
}

impl Planner<'_> {
    /// Whether the wish gives some version of the scope weight: the order invariant binds.
    fn binds(&self, scope: &Name) -> bool {
        let mut items = self.desired.places.iter();
        items.any(|(key, item)| key.scope == *scope && item.weight > Weight::ZERO)
    }

    fn may_interrupt(&self, key: &PlaceKey) -> bool {
        let item = self.desired.places.get(key);
        item.is_some_and(|item| item.may_interrupt)
    }

    /// The weight that each routed place should hold now: the wish, as far as the order allows.
    fn weights(&self) -> BTreeMap<PlaceKey, Weight> {
        let traffic = &self.observed.traffic;
        let mut weights = BTreeMap::new();
        let mut carried = BTreeSet::new();
        for (key, place) in &self.observed.places {
            let wished = self.desired.weight(key);
            let held = traffic.weight(key).unwrap_or(Weight::ZERO);
            let healthy = place.has_healthy();
            let weight = if wished <= held || healthy {
                wished
            } else {
                held
            };
            if weight > Weight::ZERO && healthy {
                carried.insert(key.scope.clone());
            }
            weights.insert(key.clone(), weight);
        }
        for (key, weight) in &mut weights {
            let held = traffic.weight(key).unwrap_or(Weight::ZERO);
            let stays = self.binds(&key.scope) && !carried.contains(&key.scope);
            if stays && !self.may_interrupt(key) {
                *weight = held.max(*weight);
            }
        }
        weights
    }

    /// Orders new routes if the data plane holds others.
    fn route(&mut self, weights: &BTreeMap<PlaceKey, Weight>) {
        if self.observed.traffic == Traffic::Unknown {
            return;
        }
        let mut routes = Routes::default();
        for (key, place) in &self.observed.places {
            let Some(port) = place.item.port.number() else {
                continue;
            };
            if !self.desired.wants_instances(key) && !place.may_live() {
                continue;
            }
            let scope = routes.0.entry(key.scope.clone());
            let scope = scope.or_insert_with(|| ScopeRoute {
                port,
                settings: place.item.traffic.clone(),
                settings_of: key.deployment,
                revision: String::new(),
                versions: BTreeMap::new(),
            });
            // A new port of a scope comes with a new version, and so do other settings; the
            // listener follows the wish.
            if self.desired.weight(key) > Weight::ZERO {
                scope.port = port;
                scope.settings = place.item.traffic.clone();
                scope.settings_of = key.deployment;
            }
            let weight = weights.get(key).copied().unwrap_or(Weight::ZERO);
            let route = self.version_route(key, place, weight);
            scope.versions.insert(key.deployment, route);
        }
        for (name, scope) in &mut routes.0 {
            self.settle(name, scope);
        }
        if !held_as(&self.observed.traffic, &routes) {
            self.plan.actions.push(Action::Route(routes));
        }
    }

    /// What follows from the settings that the scope has in the end.
    fn settle(&self, name: &Name, scope: &mut ScopeRoute) {
        let key = |deployment: DeploymentId| PlaceKey {
            scope: name.clone(),
            deployment,
        };
        if let Some(place) = self.observed.places.get(&key(scope.settings_of)) {
            scope.revision = revision(&scope.settings, &place.item);
        }
        if scope.settings.route.is_none() {
            return;
        }
        for (deployment, version) in &mut scope.versions {
            let item = self.desired.places.get(&key(*deployment));
            version.on_demand = item.is_some_and(|item| {
                item.role == Role::Candidate && item.state == WishedState::Running
            });
        }
    }

    fn version_route(&self, key: &PlaceKey, place: &Place, weight: Weight) -> VersionRoute {
        let wanted = self.desired.wants_instances(key);
        let instances = place
            .instances
            .iter()
            .filter(|(_, instance)| instance.may_live() && instance.port > 0)
            .map(|(ordinal, instance)| {
                let surplus = wanted && self.leaves(key, place, *ordinal, instance);
                let route = InstanceRoute {
                    port: instance.port,
                    healthy: instance.is_healthy() && !surplus,
                };
                (*ordinal, route)
            });
        VersionRoute {
            weight,
            on_demand: false,
            close: !wanted
                && weight == Weight::ZERO
                && drained(&self.observed.traffic, key, place, self.now),
            instances: instances.collect(),
        }
    }

    fn place(&mut self, key: &PlaceKey, place: &Place) {
        if self.desired.wants_staged(key) {
            self.stage(key, place);
        }
        if self.desired.wants_instances(key) {
            for (ordinal, instance) in &place.instances {
                if *ordinal < place.item.count {
                    self.keep_up(key, place, *ordinal, instance);
                } else {
                    self.shed(key, place, *ordinal, instance);
                }
            }
        } else {
            self.clear(key, place);
        }
    }

    fn stage(&mut self, key: &PlaceKey, place: &Place) {
        match place.staging {
            Staging::Missing { retry_at, .. } if retry_at <= self.now => {
                self.plan.actions.push(Action::Stage { place: key.clone() });
            }
            Staging::Missing { retry_at, .. } => self.wake(retry_at),
            Staging::Underway { .. } | Staging::Ready | Staging::Refused(_) => {}
        }
    }

    /// Starts and checks a wanted instance.
    fn keep_up(&mut self, key: &PlaceKey, place: &Place, ordinal: u32, instance: &Instance) {
        let name = || InstanceKey {
            place: key.clone(),
            ordinal,
        };
        if place.staging == Staging::Ready
            && !self.waits_for_others(key)
            && let Some(due) = instance.start_due(place.is_stubborn())
        {
            if due <= self.now {
                let instance = name();
                self.plan.actions.push(Action::Start { instance });
            } else {
                self.wake(due);
            }
        }
        self.check(name(), instance);
    }

    fn check(&mut self, name: InstanceKey, instance: &Instance) {
        if let Some(due) = instance.check_due() {
            if due <= self.now {
                self.plan.actions.push(Action::Probe { instance: name });
            } else {
                self.wake(due);
            }
        }
    }

    /// An item that may interrupt starts only after the versions that it replaces, and that may be
    /// interrupted, are gone: two at once are not allowed there.
    fn waits_for_others(&self, key: &PlaceKey) -> bool {
        self.may_interrupt(key)
            && self.observed.places.iter().any(|(other, place)| {
                other != key
                    && other.scope == key.scope
                    && place.may_live()
                    && !self.desired.wants_instances(other)
                    && (self.may_interrupt(other) || !self.desired.places.contains_key(other))
            })
    }

    /// Whether an instance above the wanted count may leave the table: another one is healthy.
    fn leaves(&self, key: &PlaceKey, place: &Place, ordinal: u32, instance: &Instance) -> bool {
        let other = |(o, i): (&u32, &Instance)| *o < place.item.count && i.is_healthy();
        ordinal >= place.item.count
            && (!instance.is_healthy()
                || !self.binds(&key.scope)
                || self.may_interrupt(key)
                || place.instances.iter().any(other))
    }

    /// Takes an instance above the wanted count away, after it has left the table and its requests
    /// have ended.
    fn shed(&mut self, key: &PlaceKey, place: &Place, ordinal: u32, instance: &Instance) {
        if !instance.may_live() || !self.leaves(key, place, ordinal, instance) {
            return self.check(
                InstanceKey {
                    place: key.clone(),
                    ordinal,
                },
                instance,
            );
        }
        let gone = |held: &HeldInstance| !held.healthy && held.open_requests == 0;
        let out = match self.observed.traffic {
            Traffic::Unknown => place.item.port == Port::None,
            Traffic::Held(_) => {
                let held = self.observed.traffic.version(key);
                held.and_then(|v| v.instances.get(&ordinal))
                    .is_none_or(gone)
            }
        };
        if out {
            self.stop(key, ordinal, instance);
        }
    }

    /// Takes a place that should have no instances towards nothing.
    fn clear(&mut self, key: &PlaceKey, place: &Place) {
        if place.may_live() {
            if self.may_stop(key, place) {
                for (ordinal, instance) in &place.instances {
                    self.stop(key, *ordinal, instance);
                }
            } else {
                for (ordinal, instance) in &place.instances {
                    let instance_key = InstanceKey {
                        place: key.clone(),
                        ordinal: *ordinal,
                    };
                    self.check(instance_key, instance);
                }
                if let Some(since) = place.zero_since {
                    self.wake(since + place.item.drain);
                }
            }
        } else if !self.desired.wants_staged(key)
            && !place.removing
            && !staging(place)
            && self.holds_nothing(key, place)
        {
            self.plan
                .actions
                .push(Action::Remove { place: key.clone() });
        }
    }

    fn stop(&mut self, key: &PlaceKey, ordinal: u32, instance: &Instance) {
        match instance.phase {
            Phase::Up { .. } => {
                let instance = InstanceKey {
                    place: key.clone(),
                    ordinal,
                };
                self.plan.actions.push(Action::Stop { instance });
            }
            // Its start is waited for; a stop under way is not ordered again.
            Phase::Launching
            | Phase::Stopping
            | Phase::Idle
            | Phase::Backoff { .. }
            | Phase::Failed { .. } => {}
        }
    }

    /// Whether the instances of a place may stop.
    fn may_stop(&self, key: &PlaceKey, place: &Place) -> bool {
        if self.desired.weight(key) > Weight::ZERO {
            return false;
        }
        let worker = place.item.port == Port::None;
        if !worker && !drained(&self.observed.traffic, key, place, self.now) {
            return false;
        }
        let free = !self.binds(&key.scope) || self.may_interrupt(key) || !place.has_healthy();
        free || self.somebody_else_serves(key)
    }

    /// Whether another version of the scope, which should have weight, is healthy and, where there
    /// is a data plane with a listener, holds weight.
    fn somebody_else_serves(&self, key: &PlaceKey) -> bool {
        let traffic = &self.observed.traffic;
        let listens = traffic
            .scope(&key.scope)
            .is_some_and(|scope| scope.problem.is_none());
        self.observed.places.iter().any(|(other, place)| {
            other != key
                && other.scope == key.scope
                && self.desired.weight(other) > Weight::ZERO
                && place.has_healthy()
                && (!listens
                    || traffic
                        .weight(other)
                        .is_some_and(|held| held > Weight::ZERO))
        })
    }

    fn holds_nothing(&self, key: &PlaceKey, place: &Place) -> bool {
        place.item.port == Port::None
            || self.observed.traffic.weight(key) == Some(Weight::ZERO)
            || place.zero_since.is_some()
    }

    fn wake(&mut self, at: Timestamp) {
        if at > self.now {
            let earliest = self.plan.wake_at.map_or(at, |held| held.min(at));
            self.plan.wake_at = Some(earliest);
        }
    }
}

fn staging(place: &Place) -> bool {
    matches!(place.staging, Staging::Underway { .. })
}
