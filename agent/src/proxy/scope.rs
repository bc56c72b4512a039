//! One scope of the engine: its versions, their instances, and how a new route turns into the next state of
//! them. The engine owns the scopes and their listeners.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};
use rustls::ServerConfig;

use super::routes::{Demand, RoutedVersion, Routes, Security};
use super::stats::ErrorMarks;
use super::table::{
    HeldInstance, HeldScope, HeldVersion, InstanceRoute, ListenProblem, ListenProblemKind,
    ScopeRoute, TlsRoute, VersionRoute,
};
use super::tls;
use super::upstream::{Instance, Ledger};
use crate::port_holder::why_not;

/// Instances that left the table are remembered for their counters, at most so many per version.
const RETIRED_MAX: usize = 64;

/// How long a version that left the table may finish its open requests.
pub(super) const DEPARTURE: Duration = Duration::from_secs(30);

pub(super) struct Scope {
    /// Where it is served now.
    pub(super) listen: Option<SocketAddr>,
    pub(super) problem: Option<ListenProblem>,
    /// The settings in force.
    pub(super) revision: String,
    /// What accepts handshakes, with what it was made of.
    pub(super) tls: Option<(TlsRoute, Arc<ServerConfig>)>,
    pub(super) spread: Arc<AtomicU64>,
    pub(super) unrouted: Arc<AtomicU64>,
    pub(super) versions: BTreeMap<String, Version>,
}

pub(super) struct Version {
    pub(super) route: VersionRoute,
    pub(super) marks: Arc<ErrorMarks>,
    /// By id, those that left the table too.
    pub(super) instances: BTreeMap<String, Member>,
    /// Instances at addresses that are no longer theirs, until the new routes are published.
    pub(super) replaced: Vec<Arc<Instance>>,
}

pub(super) struct Member {
    pub(super) instance: Arc<Instance>,
    pub(super) listed: bool,
    pub(super) healthy: bool,
}

pub(super) fn listen_problem(route: &ScopeRoute, error: &io::Error) -> ListenProblem {
    let (scope, listen) = (&route.scope, route.listen);
    let kind = match error.kind() {
        io::ErrorKind::AddrInUse => ListenProblemKind::AddressInUse,
        io::ErrorKind::AddrNotAvailable => ListenProblemKind::AddressNotHere,
        io::ErrorKind::PermissionDenied => ListenProblemKind::NotPermitted,
        _ => ListenProblemKind::Other,
    };
    let reason = why_not(listen, error);
    ListenProblem {
        kind,
        message: format!("scope {scope}: cannot listen on {listen}: {reason}"),
    }
}

impl Scope {
    pub(super) fn new() -> Self {
        Self {
            listen: None,
            problem: None,
            revision: String::new(),
            tls: None,
            spread: Arc::default(),
            unrouted: Arc::default(),
            versions: BTreeMap::new(),
        }
    }

    /// Brings in what the route names and opens it for requests where they may come.
    pub(super) fn admit(&mut self, route: &ScopeRoute, now_ms: u64) {
        for wanted in &route.versions {
            let version = self.versions.entry(wanted.deployment.clone());
            let version = version.or_insert_with(|| Version::new(wanted));
            version.admit(wanted, route.http2, now_ms);
        }
    }

    /// Ends new requests for everything that the route gives none, after the new routes are published.
    pub(super) fn dismiss(&mut self, route: &ScopeRoute) {
        let named: BTreeSet<&str> = route
            .versions
            .iter()
            .map(|version| version.deployment.as_str())
            .collect();
        for version in self.versions.values_mut() {
            version.dismiss();
        }
        let gone: Vec<String> = self
            .versions
            .keys()
            .filter(|id| !named.contains(id.as_str()))
            .cloned()
            .collect();
        for deployment in gone {
            if let Some(version) = self.versions.remove(&deployment) {
                version.depart();
            }
        }
    }

    /// What clients are received with, and what is wrong with what they should be received with. An
    /// earlier certificate goes on when a new one cannot be used.
    pub(super) fn security(&mut self, route: &ScopeRoute) -> (Security, Option<ListenProblem>) {
        let Some(wanted) = &route.tls else {
            self.tls = None;
            return (Security::Cleartext, None);
        };
        let problem = |kind, reason: String| {
            let message = format!("scope {}: {reason}", route.scope);
            Some(ListenProblem { kind, message })
        };
        let problem = match &self.tls {
            Some((held, _)) if held == wanted => None,
            _ if wanted.key.is_empty() || wanted.certificate.is_empty() => problem(
                ListenProblemKind::Waiting,
                "its certificate and private key have not come yet".to_owned(),
            ),
            _ => match tls::config(wanted, route.protocol) {
                Ok(config) => {
                    self.tls = Some((wanted.clone(), config));
                    None
                }
                Err(reason) => problem(ListenProblemKind::Certificate, reason),
            },
        };
        let security = match &self.tls {
            Some((_, config)) => Security::Tls(Arc::clone(config)),
            None => Security::Broken,
        };
        (security, problem)
    }

    pub(super) fn routes(&self, route: &ScopeRoute, security: Security) -> Routes {
        let mut weighed = Vec::new();
        let mut demanded = None;
        for wanted in &route.versions {
            let Some(version) = self.versions.get(&wanted.deployment) else {
                continue;
            };
            let instances = version.ready();
            if instances.is_empty() {
                continue;
            }
            if wanted.takes_demands() {
                demanded = Some(RoutedVersion::new(
                    wanted.deployment.clone(),
                    instances.clone(),
                ));
            }
            if wanted.takes_requests() {
                let routed = RoutedVersion::new(wanted.deployment.clone(), instances);
                weighed.push((wanted.weight, routed));
            }
        }
        weighed.sort_by(|(one, _), (two, _)| two.cmp(one));
        let (weights, versions) = weighed.into_iter().unzip();
        let demand = route.route.as_ref().zip(demanded);
        Routes {
            scope: route.scope.clone(),
            protocol: route.protocol,
            security,
            sticky: route.sticky.clone(),
            demand: demand.and_then(|(rule, version)| {
                Some(Demand {
                    header: HeaderName::from_bytes(rule.header.as_bytes()).ok()?,
                    value: HeaderValue::from_str(&rule.value).ok()?,
                    version,
                })
            }),
            spread: Arc::clone(&self.spread),
            unrouted: Arc::clone(&self.unrouted),
            silence: Duration::from_millis(route.response_timeout_ms),
            versions,
            weights,
        }
    }

    pub(super) fn held(&self, name: &str) -> HeldScope {
        HeldScope {
            scope: name.to_owned(),
            listen: self.listen,
            problem: self.problem.clone(),
            revision: self.revision.clone(),
            unrouted: self.unrouted.load(Ordering::Relaxed),
            versions: self.versions.values().map(Version::held).collect(),
        }
    }
}

impl Version {
    pub(super) fn new(route: &VersionRoute) -> Self {
        Self {
            route: route.clone(),
            marks: Arc::default(),
            instances: BTreeMap::new(),
            replaced: Vec::new(),
        }
    }

    pub(super) fn admit(&mut self, wanted: &VersionRoute, http2: bool, now_ms: u64) {
        for member in self.instances.values_mut() {
            member.listed = false;
            member.healthy = false;
        }
        for route in &wanted.instances {
            self.admit_instance(route, http2, now_ms);
        }
        let takes_requests = wanted.takes_requests() || wanted.takes_demands();
        for member in self.instances.values() {
            if !wanted.close {
                member.instance.ledger.reopen();
            }
            if member.healthy && takes_requests {
                member.instance.set_accepting(true);
            }
        }
        self.route = wanted.clone();
    }

    pub(super) fn admit_instance(&mut self, route: &InstanceRoute, http2: bool, now_ms: u64) {
        let ledger = match self.instances.get_mut(&route.instance) {
            Some(member) if member.instance.is_at(route.address, http2) => {
                member.listed = true;
                member.healthy = route.healthy;
                return;
            }
            Some(member) => {
                // It came back at another address, or speaks another protocol: the counts go on.
                self.replaced.push(Arc::clone(&member.instance));
                Arc::clone(&member.instance.ledger)
            }
            None => Arc::new(Ledger::new(Arc::clone(&self.marks), now_ms)),
        };
        let instance = Arc::new(Instance::new(
            route.instance.clone(),
            route.address,
            http2,
            ledger,
        ));
        let member = Member {
            instance,
            listed: true,
            healthy: route.healthy,
        };
        self.instances.insert(route.instance.clone(), member);
    }

    /// The instances that may get requests.
    pub(super) fn ready(&self) -> Vec<Arc<Instance>> {
        let ready = self.instances.values().filter(|member| member.healthy);
        ready.map(|member| Arc::clone(&member.instance)).collect()
    }

    pub(super) fn dismiss(&mut self) {
        let takes_requests = self.route.takes_requests() || self.route.takes_demands();
        for member in self.instances.values() {
            if !(member.healthy && takes_requests) {
                member.instance.set_accepting(false);
            }
            if self.route.close {
                member.instance.ledger.close();
            }
        }
        for instance in self.replaced.drain(..) {
            instance.set_accepting(false);
        }
        self.forget_retired();
    }

    /// Forgets instances that left the table and were never used, and the first ones of too many.
    pub(super) fn forget_retired(&mut self) {
        let mut retired = 0;
        let keep = |member: &Member| member.instance.ledger.open() > 0;
        self.instances.retain(|_, member| {
            if member.listed || keep(member) {
                return true;
            }
            retired += 1;
            !member.instance.ledger.stats.is_empty() && retired <= RETIRED_MAX
        });
    }

    /// The version left the table: what is open may end within a time, then it is cut.
    pub(super) fn depart(self) {
        let mut ledgers = Vec::new();
        for member in self.instances.into_values() {
            member.instance.set_accepting(false);
            if self.route.close {
                member.instance.ledger.close();
            }
            ledgers.push(Arc::clone(&member.instance.ledger));
        }
        tokio::spawn(async move {
            tokio::time::sleep(DEPARTURE).await;
            ledgers.iter().for_each(|ledger| ledger.close());
        });
    }

    pub(super) fn held(&self) -> HeldVersion {
        let instances: Vec<HeldInstance> = self
            .instances
            .iter()
            .map(|(id, member)| HeldInstance {
                instance: id.clone(),
                address: member.instance.address,
                listed: member.listed,
                healthy: member.healthy,
                open_requests: member.instance.ledger.open(),
                counters: member.instance.ledger.stats.snapshot(),
            })
            .collect();
        HeldVersion {
            deployment: self.route.deployment.clone(),
            weight: self.route.weight,
            on_demand: self.route.takes_demands(),
            draining: self.route.draining || self.route.close,
            open_requests: instances
                .iter()
                .map(|instance| instance.open_requests)
                .sum(),
            first_error_at: self.marks.first(),
            last_error_at: self.marks.last(),
            instances,
        }
    }
}
