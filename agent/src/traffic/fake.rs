//! A data plane in memory, for tests of those who drive one.
//!
//! Holds tables and counts requests like the proxy, by the same rule of shares; requests are made by
//! calling [`FakeTraffic::request`], and addresses are made unavailable by [`FakeTraffic::occupy`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Answer, TrafficError, TrafficProvider};
use crate::proxy::pick;
use crate::proxy::table::{
    Counters, Held, HeldInstance, HeldScope, HeldVersion, ListenProblem, ListenProblemKind, Table,
    VersionRoute,
};

/// The fake; share it by reference or in an `Arc`.
#[derive(Default)]
pub struct FakeTraffic(Mutex<State>);

#[derive(Default)]
struct State {
    table: Table,
    listening: BTreeMap<SocketAddr, String>,
    occupied: BTreeSet<SocketAddr>,
    spread: u64,
    unrouted: BTreeMap<String, u64>,
    /// By scope, deployment, instance.
    counters: BTreeMap<(String, String, String), Counters>,
    open: BTreeMap<(String, String), u64>,
    failing: Option<String>,
}

impl FakeTraffic {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nobody can listen on `address`; who listens there already goes on.
    pub fn occupy(&self, address: SocketAddr) {
        self.state().occupied.insert(address);
    }

    /// Lets others listen on `address` again.
    pub fn release(&self, address: SocketAddr) {
        self.state().occupied.remove(&address);
    }

    /// From now on every call fails with that reason; `None` mends it.
    pub fn fail(&self, reason: Option<String>) {
        self.state().failing = reason;
    }

    /// Sets how many requests of a version are open.
    pub fn set_open(&self, scope: &str, deployment: &str, open: u64) {
        self.state()
            .open
            .insert((scope.to_owned(), deployment.to_owned()), open);
    }

    /// One request to a listener, answered with `status` after `latency_us`: the instance that got it.
    pub fn request(&self, listen: SocketAddr, status: u16, latency_us: u64) -> Option<String> {
        self.state().request(listen, status, latency_us)
    }
}

fn ready(version: &VersionRoute) -> Option<&str> {
    let healthy = version.instances.iter().find(|instance| instance.healthy)?;
    version
        .takes_requests()
        .then_some(healthy.instance.as_str())
}

impl State {
    fn request(&mut self, listen: SocketAddr, status: u16, latency_us: u64) -> Option<String> {
        let scope = self.listening.get(&listen)?.clone();
        let route = self
            .table
            .scopes
            .iter()
            .find(|route| route.scope == scope)?;
        let weights: Vec<u16> = route
            .versions
            .iter()
            .map(|version| ready(version).map_or(0, |_| version.weight))
            .collect();
        let Some(index) = pick(&weights, self.spread) else {
            *self.unrouted.entry(scope).or_default() += 1;
            return None;
        };
        self.spread += 1;
        let version = &route.versions[index];
        let instance = ready(version)?.to_owned();
        let key = (scope, version.deployment.clone(), instance.clone());
        let counters = self.counters.entry(key).or_default();
        counters.since_ms = 1;
        counters.requests += 1;
        counters.responses[usize::from((status / 100).clamp(1, 5) - 1)] += 1;
        counters.latency_us.record(latency_us);
        Some(instance)
    }

    fn converge(&mut self, table: Table) {
        let mut listening = BTreeMap::new();
        for route in &table.scopes {
            if self.listening.contains_key(&route.listen) || !self.occupied.contains(&route.listen)
            {
                listening.insert(route.listen, route.scope.clone());
            }
        }
        self.listening = listening;
        let named = |scope: &str, deployment: &str| {
            let route = table.scopes.iter().find(|route| route.scope == scope);
            route.is_some_and(|route| route.versions.iter().any(|v| v.deployment == deployment))
        };
        self.counters
            .retain(|(scope, deployment, _), _| named(scope, deployment));
        self.open
            .retain(|(scope, deployment), _| named(scope, deployment));
        self.unrouted
            .retain(|scope, _| table.scopes.iter().any(|route| route.scope == *scope));
        self.table = table;
    }

    fn held(&self) -> Held {
        let mut scopes: Vec<HeldScope> = self
            .table
            .scopes
            .iter()
            .map(|route| {
                let listens = self.listening.get(&route.listen) == Some(&route.scope);
                let problem = (!listens).then(|| ListenProblem {
                    kind: ListenProblemKind::AddressInUse,
                    message: format!(
                        "scope {}: cannot listen on {}: it is occupied",
                        route.scope, route.listen
                    ),
                });
                let mut versions: Vec<HeldVersion> = route
                    .versions
                    .iter()
                    .map(|version| self.version(&route.scope, version))
                    .collect();
                versions.sort_by(|one, two| one.deployment.cmp(&two.deployment));
                HeldScope {
                    scope: route.scope.clone(),
                    listen: listens.then_some(route.listen),
                    problem,
                    revision: route.revision.clone(),
                    unrouted: self.unrouted.get(&route.scope).copied().unwrap_or(0),
                    versions,
                }
            })
            .collect();
        scopes.sort_by(|one, two| one.scope.cmp(&two.scope));
        Held {
            scopes,
            ..Held::default()
        }
    }

    fn version(&self, scope: &str, version: &VersionRoute) -> HeldVersion {
        let key = (scope.to_owned(), version.deployment.clone());
        let instances = version.instances.iter().map(|route| {
            let key = (key.0.clone(), key.1.clone(), route.instance.clone());
            HeldInstance {
                instance: route.instance.clone(),
                address: route.address,
                listed: true,
                healthy: route.healthy,
                open_requests: 0,
                counters: self.counters.get(&key).cloned().unwrap_or_default(),
            }
        });
        HeldVersion {
            deployment: version.deployment.clone(),
            weight: version.weight,
            on_demand: version.on_demand,
            draining: version.draining || version.close,
            open_requests: self.open.get(&key).copied().unwrap_or(0),
            first_error_at: None,
            last_error_at: None,
            instances: instances.collect(),
        }
    }
}

impl TrafficProvider for FakeTraffic {
    fn observe(&self) -> Answer<'_, Held> {
        Box::pin(async move {
            let state = self.state();
            match &state.failing {
                Some(reason) => Err(unreachable(reason)),
                None => Ok(state.held()),
            }
        })
    }

    fn converge(&self, table: Table) -> Answer<'_, Held> {
        Box::pin(async move {
            let mut state = self.state();
            if let Some(reason) = &state.failing {
                return Err(unreachable(reason));
            }
            table.validate().map_err(|error| TrafficError::Refused {
                provider: "fake",
                reason: error.to_string(),
            })?;
            state.converge(table);
            Ok(state.held())
        })
    }
}

fn unreachable(reason: &str) -> TrafficError {
    TrafficError::Unreachable {
        provider: "fake",
        reason: reason.to_owned(),
    }
}
