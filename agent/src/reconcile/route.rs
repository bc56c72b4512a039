//! Routes of the core ⇄ tables of the data plane.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use tidegate_agent_core::observed::{HeldInstance, HeldScope, HeldVersion, ListenProblem, Traffic};
use tidegate_agent_core::place::{InstanceKey, PlaceKey};
use tidegate_agent_core::plan::Routes;
use tidegate_shared::assignment::{Counters, DrainingProxy, PermanentErrorKind, ProxyReport};
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::time::Timestamp;
use tidegate_shared::weight::Weight;

use crate::proxy::table::{
    self, Held, InstanceRoute, ListenProblemKind, RESPONSE_TIMEOUT_MS, ScopeRoute, Table, TlsRoute,
    VersionRoute,
};

/// Addresses that the core does not know.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Where the proxy listens.
    pub listen: IpAddr,
    /// Where instances listen.
    pub instance: IpAddr,
}

/// Scopes that cannot be in the table beside the others, held as if they were there without a
/// listener, so that they do not take the rest of the table with them.
pub type Conflicts = BTreeMap<Name, HeldScope>;

/// The table for some routes. Of two scopes with one port the first by name gets it. `find` gives the value
/// of a place's parameter.
pub fn table(
    routes: &Routes,
    addresses: Addresses,
    find: impl Fn(&PlaceKey, &str) -> Option<String>,
) -> (Table, Conflicts) {
    let mut listeners: BTreeMap<u16, &Name> = BTreeMap::new();
    let mut conflicts = Conflicts::new();
    let mut table = Table::default();
    for (scope, route) in &routes.0 {
        if let Some(other) = listeners.get(&route.port) {
            let message = format!("port {} is the port of the scope {other} too", route.port);
            conflicts.insert(scope.clone(), refused(route, message));
            continue;
        }
        listeners.insert(route.port, scope);
        let versions = route.versions.iter().map(|(deployment, version)| {
            let place = PlaceKey {
                scope: scope.clone(),
                deployment: *deployment,
            };
            let instances = version.instances.iter().map(|(ordinal, instance)| {
                let key = InstanceKey {
                    place: place.clone(),
                    ordinal: *ordinal,
                };
                InstanceRoute {
                    instance: key.id(),
                    address: SocketAddr::new(addresses.instance, instance.port),
                    healthy: instance.healthy,
                }
            });
            VersionRoute {
                deployment: deployment.to_string(),
                weight: version.weight.basis_points(),
                on_demand: version.on_demand,
                draining: false,
                close: version.close,
                instances: instances.collect(),
            }
        });
        table.scopes.push(ScopeRoute {
            scope: scope.to_string(),
            listen: SocketAddr::new(addresses.listen, route.port),
            protocol: route.settings.protocol,
            tls: route.settings.tls.as_ref().map(|tls| {
                let place = PlaceKey {
                    scope: scope.clone(),
                    deployment: route.settings_of,
                };
                let value = |variable: &str| find(&place, variable).unwrap_or_default();
                TlsRoute {
                    certificate: value(&tls.certificate),
                    key: value(&tls.key),
                }
            }),
            http2: route.settings.http2,
            sticky: route.settings.sticky.clone(),
            route: route.settings.route.clone(),
            revision: route.revision.clone(),
            response_timeout_ms: RESPONSE_TIMEOUT_MS,
            versions: versions.collect(),
        });
    }
    (table, conflicts)
}

fn refused(route: &tidegate_agent_core::plan::ScopeRoute, message: String) -> HeldScope {
    let versions = route.versions.iter().map(|(deployment, version)| {
        let instances = version.instances.iter().map(|(ordinal, instance)| {
            let held = HeldInstance {
                listed: true,
                healthy: instance.healthy,
                port: instance.port,
                ..HeldInstance::default()
            };
            (*ordinal, held)
        });
        let held = HeldVersion {
            weight: version.weight,
            on_demand: version.on_demand,
            open_requests: 0,
            instances: instances.collect(),
        };
        (*deployment, held)
    });
    HeldScope {
        problem: Some(ListenProblem {
            permanent: Some(PermanentErrorKind::PortTaken),
            message,
        }),
        revision: route.revision.clone(),
        versions: versions.collect(),
    }
}

/// What the data plane holds, in the core's words. Names that the agent never gave are left out.
pub fn traffic(held: &Held, conflicts: &Conflicts) -> Traffic {
    let mut scopes = conflicts.clone();
    for scope in &held.scopes {
        let Ok(name) = Name::new(scope.scope.clone()) else {
            continue;
        };
        let problem = match (&scope.problem, scope.listen) {
            (Some(problem), _) => Some(ListenProblem {
                permanent: match problem.kind {
                    ListenProblemKind::AddressInUse
                    | ListenProblemKind::AddressNotHere
                    | ListenProblemKind::NotPermitted => Some(PermanentErrorKind::PortTaken),
                    ListenProblemKind::Certificate => Some(PermanentErrorKind::BadCertificate),
                    ListenProblemKind::Waiting | ListenProblemKind::Other => None,
                },
                message: problem.message.clone(),
            }),
            (None, None) => Some(ListenProblem {
                permanent: None,
                message: format!("the scope {name} has no listener yet"),
            }),
            (None, Some(_)) => None,
        };
        let versions = scope.versions.iter().filter_map(|version| {
            let deployment: DeploymentId = version.deployment.parse().ok()?;
            Some((deployment, held_version(version)))
        });
        let held = HeldScope {
            problem,
            revision: scope.revision.clone(),
            versions: versions.collect(),
        };
        scopes.insert(name, held);
    }
    Traffic::Held(scopes)
}

/// What the proxy tells of itself.
pub fn proxy(held: &Held) -> Option<ProxyReport> {
    let process = held.process.as_ref()?;
    let draining = held.draining.iter().map(|old| DrainingProxy {
        pid: old.pid,
        version: old.version.clone(),
        since: Timestamp::from_millis(old.since),
        until: Timestamp::from_millis(old.until),
        open: old.open,
    });
    Some(ProxyReport {
        pid: process.pid,
        version: process.version.clone(),
        started_at: Timestamp::from_millis(process.started_at),
        connections: process.connections,
        draining: draining.collect(),
    })
}

fn held_version(version: &table::HeldVersion) -> HeldVersion {
    let first_error = version.first_error_at.map(Timestamp::from_millis);
    let instances = version.instances.iter().filter_map(|instance| {
        let (_, ordinal) = instance.instance.rsplit_once('-')?;
        let held = HeldInstance {
            listed: instance.listed,
            healthy: instance.listed && instance.healthy,
            port: instance.address.port(),
            open_requests: instance.open_requests,
            stamp: Timestamp::from_millis(instance.counters.since_ms),
            counters: counters(&instance.counters, first_error),
        };
        Some((ordinal.parse().ok()?, held))
    });
    let weight = u64::from(if version.draining { 0 } else { version.weight });
    HeldVersion {
        weight: Weight::from_basis_points(weight).unwrap_or(Weight::ZERO),
        on_demand: version.on_demand,
        open_requests: version.open_requests,
        instances: instances.collect(),
    }
}

/// Answered requests only: what a client gave up is no verdict about the instance.
fn counters(from: &table::Counters, first_error: Option<Timestamp>) -> Counters {
    Counters {
        requests: from.responses.iter().sum(),
        client_errors: from.responses[3],
        server_errors: from.responses[4],
        health_checks: 0,
        health_check_failures: 0,
        latency: from.latency_us.clone(),
        first_error: first_error.filter(|_| from.responses[4] > 0),
        connections: from.connections,
        bytes_in: from.bytes_in,
        bytes_out: from.bytes_out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::TrafficProvider as _;
    use crate::traffic::fake::FakeTraffic;
    use tidegate_agent_core::plan;
    use tidegate_shared::spec::ScopeTraffic;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn routes(scopes: &[(&str, u16)]) -> Routes {
        let deployment: DeploymentId = "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
        let instance = plan::InstanceRoute {
            port: 20_000,
            healthy: true,
        };
        let version = plan::VersionRoute {
            weight: Weight::FULL,
            on_demand: false,
            close: false,
            instances: BTreeMap::from([(0, instance)]),
        };
        let scopes = scopes.iter().map(|(scope, port)| {
            let route = plan::ScopeRoute {
                port: *port,
                settings: ScopeTraffic::default(),
                settings_of: deployment,
                revision: String::new(),
                versions: BTreeMap::from([(deployment, version.clone())]),
            };
            (name(scope), route)
        });
        Routes(scopes.collect())
    }

    const ADDRESSES: Addresses = Addresses {
        listen: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        instance: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    };

    #[tokio::test]
    async fn what_is_told_comes_back_as_held() {
        let traffic = FakeTraffic::default();
        let (table, conflicts) =
            table(&routes(&[("a", 8_080), ("b", 8_081)]), ADDRESSES, |_, _| {
                None
            });
        let held = traffic.converge(table).await.unwrap();
        traffic.request("127.0.0.1:8080".parse().unwrap(), 500, 900);
        let held_later = traffic.observe().await.unwrap();
        assert_eq!(held.scopes.len(), 2);
        let Traffic::Held(scopes) = super::traffic(&held_later, &conflicts) else {
            panic!("unknown");
        };
        let version = scopes[&name("a")].versions.values().next().unwrap();
        assert_eq!(version.weight, Weight::FULL);
        let instance = &version.instances[&0];
        assert!(instance.listed && instance.healthy && instance.port == 20_000);
        assert_eq!(instance.counters.requests, 1);
        assert_eq!(instance.counters.server_errors, 1);
    }

    #[test]
    fn two_scopes_with_one_port_do_not_take_each_other_down() {
        let routes = routes(&[("a", 8_080), ("b", 8_080)]);
        let (table, conflicts) = table(&routes, ADDRESSES, |_, _| None);
        assert_eq!(table.validate(), Ok(()));
        assert_eq!(table.scopes.len(), 1);
        let problem = conflicts[&name("b")].problem.as_ref().unwrap();
        assert_eq!(problem.permanent, Some(PermanentErrorKind::PortTaken));
        assert_eq!(problem.message, "port 8080 is the port of the scope a too");
    }
}
