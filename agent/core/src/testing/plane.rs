//! The data plane of a [`FakeHost`]: spreads requests by weight, counts them, answers what it holds.

use std::collections::BTreeMap;

use tidegate_shared::assignment::{Counters, PermanentErrorKind};
use tidegate_shared::id::Name;
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::weight::Weight;

use super::host::FakeHost;
use crate::observed::{HeldInstance, HeldScope, HeldVersion, ListenProblem, Traffic};
use crate::place::{InstanceKey, PlaceKey};

impl FakeHost {
    pub(super) fn serve(&mut self, time: Span, now: Timestamp) {
        let scopes: Vec<(Name, u64)> = self.load.iter().map(|(n, r)| (n.clone(), *r)).collect();
        for (scope, rate) in scopes {
            self.serve_scope(&scope, rate.saturating_mul(time.millis()), now);
        }
    }

    /// Spreads thousandths of requests over the versions by weight and their healthy instances.
    fn serve_scope(&mut self, scope: &Name, thousandths: u64, now: Timestamp) {
        let listens = self.problem(scope).is_none();
        let Some(route) = self.routes.0.get(scope).filter(|_| listens) else {
            *self.unrouted.entry(scope.clone()).or_default() += thousandths / 1_000;
            return;
        };
        let mut takers: Vec<(InstanceKey, u64)> = Vec::new();
        for (deployment, version) in &route.versions {
            let place = PlaceKey {
                scope: scope.clone(),
                deployment: *deployment,
            };
            let healthy: Vec<u32> = version
                .instances
                .iter()
                .filter(|(_, instance)| instance.healthy)
                .map(|(ordinal, _)| *ordinal)
                .collect();
            let share = u64::from(version.weight.basis_points());
            for ordinal in &healthy {
                let key = InstanceKey {
                    place: place.clone(),
                    ordinal: *ordinal,
                };
                // Scaled so that instances of one version share its weight.
                takers.push((key, share * 1_000 / healthy.len() as u64));
            }
        }
        let whole: u64 = takers.iter().map(|(_, share)| share).sum();
        if whole == 0 {
            *self.unrouted.entry(scope.clone()).or_default() += thousandths / 1_000;
            return;
        }
        for (key, share) in takers {
            self.count(&key, thousandths * share / whole, now);
        }
    }

    fn count(&mut self, key: &InstanceKey, thousandths: u64, now: Timestamp) {
        let release = self
            .processes
            .get(key)
            .map(|p| (p.release.clone(), p.alive));
        let Some((release, alive)) = release else {
            return;
        };
        let behaviour = self.behaviour(&release);
        let requests = self.whole(key, 0, thousandths, 1_000);
        let errors = if alive {
            behaviour.server_errors
        } else {
            10_000
        };
        let server_errors = self.whole(key, 1, requests * u64::from(errors), 10_000);
        let client = requests * u64::from(behaviour.client_errors);
        let client_errors = self.whole(key, 2, client, 10_000);
        let (_, counters) = self
            .counters
            .entry(key.clone())
            .or_insert_with(|| (now, Counters::default()));
        counters.requests += requests;
        counters.server_errors += server_errors;
        counters.client_errors += client_errors;
        if server_errors > 0 {
            counters.first_error = counters.first_error.or(Some(now));
        }
        for _ in 0..requests {
            counters.latency.record(behaviour.latency.millis() * 1_000);
        }
    }

    /// The whole part of `parts / unit`, the rest kept for the next time.
    fn whole(&mut self, key: &InstanceKey, purpose: u8, parts: u64, unit: u64) -> u64 {
        let slot = purpose + (key.ordinal as u8).wrapping_mul(4);
        let rest = self.rests.entry((key.place.clone(), slot)).or_default();
        *rest += parts;
        let whole = *rest / unit;
        *rest %= unit;
        whole
    }

    fn problem(&self, scope: &Name) -> Option<ListenProblem> {
        let port = self.routes.0.get(scope)?.port;
        self.occupied.contains(&port).then(|| ListenProblem {
            permanent: Some(PermanentErrorKind::PortTaken),
            message: format!("port {port} is held by another program"),
        })
    }

    pub(super) fn traffic(&self) -> Traffic {
        if self.plane_down {
            return Traffic::Unknown;
        }
        let mut scopes = BTreeMap::new();
        for (scope, route) in &self.routes.0 {
            let mut held = HeldScope {
                problem: self.problem(scope),
                revision: route.revision.clone(),
                versions: BTreeMap::new(),
            };
            for (deployment, version) in &route.versions {
                let place = PlaceKey {
                    scope: scope.clone(),
                    deployment: *deployment,
                };
                held.versions
                    .insert(*deployment, self.held_version(&place, version));
            }
            scopes.insert(scope.clone(), held);
        }
        Traffic::Held(scopes)
    }

    fn held_version(&self, place: &PlaceKey, version: &crate::plan::VersionRoute) -> HeldVersion {
        let instances = version.instances.iter().map(|(ordinal, route)| {
            let key = InstanceKey {
                place: place.clone(),
                ordinal: *ordinal,
            };
            let (stamp, counters) = self.counters.get(&key).cloned().unwrap_or_default();
            let held = HeldInstance {
                listed: true,
                healthy: route.healthy,
                port: route.port,
                open_requests: 0,
                stamp,
                counters,
            };
            (*ordinal, held)
        });
        let open = self.open.get(place).copied().unwrap_or(0);
        HeldVersion {
            weight: version.weight,
            on_demand: version.on_demand,
            open_requests: if version.close { 0 } else { open },
            instances: instances.collect(),
        }
    }

    /// The weight that the data plane holds for a place; zero if it does not know it.
    pub fn weight(&self, place: &PlaceKey) -> Weight {
        let route = self.routes.0.get(&place.scope);
        let version = route.and_then(|route| route.versions.get(&place.deployment));
        version.map_or(Weight::ZERO, |version| version.weight)
    }
}
