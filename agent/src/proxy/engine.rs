//! The proxy's state: which table is in force, which listeners and instances live, and how one table turns
//! into the next.
//!
//! A table is checked as a whole before anything changes. Then listeners are bound, the new routes are
//! published, and only after that the instances that lost their place stop taking requests, so no request
//! finds an empty picture in between. A listener that cannot be bound concerns its own scope alone and is
//! tried again every second. The control socket calls `converge` and `observe`; one caller at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as AsyncMutex;
use tracing::{error, info, warn};

use super::listener::{Door, Listener};
use super::routes::{RoutedVersion, Routes};
use super::stats::{ErrorMarks, unix_ms};
use super::store::TableFile;
use super::table::{
    Held, HeldInstance, HeldScope, HeldVersion, InstanceRoute, ListenProblem, ListenProblemKind,
    ScopeRoute, Table, TableError, VersionRoute,
};
use super::upstream::{Instance, Ledger, lock};
use crate::port_holder::why_not;

/// Instances that left the table are remembered for their counters, at most so many per version.
const RETIRED_MAX: usize = 64;

/// How long a version that left the table may finish its open requests.
const DEPARTURE: Duration = Duration::from_secs(30);

/// The whole data plane of one process.
pub(super) struct Engine {
    state: AsyncMutex<State>,
    /// Doors whose listeners were closed, as long as they have connections.
    leaving: Mutex<Vec<Arc<Door>>>,
}

struct State {
    file: TableFile,
    table: Table,
    persist_problem: Option<String>,
    listeners: BTreeMap<SocketAddr, Listener>,
    scopes: BTreeMap<String, Scope>,
    stopped: bool,
}

struct Scope {
    /// Where it is served now.
    listen: Option<SocketAddr>,
    problem: Option<ListenProblem>,
    spread: Arc<AtomicU64>,
    unrouted: Arc<AtomicU64>,
    versions: BTreeMap<String, Version>,
}

struct Version {
    route: VersionRoute,
    marks: Arc<ErrorMarks>,
    /// By id, those that left the table too.
    instances: BTreeMap<String, Member>,
    /// Instances at addresses that are no longer theirs, until the new routes are published.
    replaced: Vec<Arc<Instance>>,
}

struct Member {
    instance: Arc<Instance>,
    listed: bool,
    healthy: bool,
}

impl Engine {
    pub(super) fn new(file: TableFile) -> Self {
        let state = State {
            file,
            table: Table::default(),
            persist_problem: None,
            listeners: BTreeMap::new(),
            scopes: BTreeMap::new(),
            stopped: false,
        };
        Self {
            state: AsyncMutex::new(state),
            leaving: Mutex::default(),
        }
    }

    /// Puts the table of the last run in force again. A table that cannot be read is set aside.
    pub(super) async fn restore(&self) {
        let mut state = self.state.lock().await;
        let Some(table) = state.file.load() else {
            return;
        };
        if let Err(error) = table.validate() {
            error!(%error, "the stored table is not valid, starting without routes");
            return;
        }
        info!(scopes = table.scopes.len(), "stored table restored");
        let doors = state.apply(&table).await;
        lock(&self.leaving).extend(doors);
        state.table = table;
    }

    /// Puts `table` in force, whatever was in force before, and tells what is held then.
    ///
    /// # Errors
    /// When the table is not valid; then nothing has changed.
    pub(super) async fn converge(&self, table: Table) -> Result<Held, TableError> {
        table.validate()?;
        let mut state = self.state.lock().await;
        if !state.stopped {
            let doors = state.apply(&table).await;
            lock(&self.leaving).extend(doors);
            if table != state.table || state.persist_problem.is_some() {
                state.table = table;
                state.persist().await;
            }
        }
        Ok(state.held())
    }

    /// What is held and what was counted.
    pub(super) async fn observe(&self) -> Held {
        self.state.lock().await.held()
    }

    /// Once a second: tries listeners again that could not be had, closes what slept too long.
    pub(super) async fn tend(&self) {
        let mut state = self.state.lock().await;
        if !state.stopped && state.scopes.values().any(|scope| scope.problem.is_some()) {
            let table = state.table.clone();
            let doors = state.apply(&table).await;
            lock(&self.leaving).extend(doors);
        }
        let now = Instant::now();
        for scope in state.scopes.values() {
            for member in scope
                .versions
                .values()
                .flat_map(|version| version.instances.values())
            {
                member.instance.sweep(now);
            }
        }
        for listener in state.listeners.values() {
            listener.door.sweep();
        }
        drop(state);
        let mut leaving = lock(&self.leaving);
        leaving.retain(|door| door.connections() > 0);
        leaving.iter().for_each(|door| door.sweep());
    }

    /// Closes every listener and asks every connection to end. Routes stay for what is still open.
    pub(super) async fn stop(&self) {
        let mut state = self.state.lock().await;
        state.stopped = true;
        for listener in std::mem::take(&mut state.listeners).into_values() {
            let door = listener.close().await;
            door.end_connections();
            lock(&self.leaving).push(door);
        }
        for scope in state.scopes.values_mut() {
            scope.listen = None;
        }
    }

    /// Requests, tunnels and client connections that are still open.
    pub(super) async fn open(&self) -> u64 {
        let state = self.state.lock().await;
        let members = state
            .scopes
            .values()
            .flat_map(|scope| scope.versions.values());
        let members = members.flat_map(|version| version.instances.values());
        let requests: u64 = members.map(|member| member.instance.ledger.open()).sum();
        let connections: usize = lock(&self.leaving)
            .iter()
            .map(|door| door.connections())
            .sum();
        requests + connections as u64
    }
}

impl State {
    /// Applies a checked table. Answers with the doors of the listeners that were closed.
    async fn apply(&mut self, table: &Table) -> Vec<Arc<Door>> {
        let now_ms = unix_ms();
        for route in &table.scopes {
            let scope = self
                .scopes
                .entry(route.scope.clone())
                .or_insert_with(Scope::new);
            scope.admit(route, now_ms);
        }
        for route in &table.scopes {
            self.place(route, table);
        }
        for route in &table.scopes {
            if let Some(scope) = self.scopes.get_mut(&route.scope) {
                scope.dismiss(route);
            }
        }
        let named: BTreeSet<&str> = table
            .scopes
            .iter()
            .map(|route| route.scope.as_str())
            .collect();
        let gone: Vec<String> = self
            .scopes
            .keys()
            .filter(|scope| !named.contains(scope.as_str()))
            .cloned()
            .collect();
        for scope in gone {
            info!(scope, "scope dropped");
            if let Some(scope) = self.scopes.remove(&scope) {
                scope.versions.into_values().for_each(Version::depart);
            }
        }
        self.close_unused().await
    }

    /// Gives a scope its listener, or the reason why it has none, and publishes its routes there.
    fn place(&mut self, route: &ScopeRoute, table: &Table) {
        let Some(scope) = self.scopes.get_mut(&route.scope) else {
            return;
        };
        let routes = Arc::new(scope.routes(route));
        let problem = match self.listeners.get(&route.listen) {
            Some(listener) => {
                listener.door.set_routes(Arc::clone(&routes));
                None
            }
            None => match Listener::open(route.listen, Arc::clone(&routes)) {
                Ok(listener) => {
                    info!(scope = route.scope, listen = %route.listen, "listening");
                    self.listeners.insert(route.listen, listener);
                    None
                }
                Err(error) => Some(listen_problem(route, &error)),
            },
        };
        if problem.is_none() {
            scope.listen = Some(route.listen);
        } else if let Some(old) = scope.listen {
            // Better served at the old address than nowhere, unless another scope has it now.
            let taken = table.scopes.iter().any(|other| other.listen == old);
            match self.listeners.get(&old).filter(|_| !taken) {
                Some(listener) => listener.door.set_routes(routes),
                None => scope.listen = None,
            }
        }
        if let Some(problem) = problem
            .as_ref()
            .filter(|new| scope.problem.as_ref() != Some(*new))
        {
            warn!(problem.message, "cannot listen, trying on");
        }
        scope.problem = problem;
    }

    async fn close_unused(&mut self) -> Vec<Arc<Door>> {
        let used: BTreeSet<SocketAddr> = self
            .scopes
            .values()
            .filter_map(|scope| scope.listen)
            .collect();
        let unused: Vec<SocketAddr> = self
            .listeners
            .keys()
            .filter(|address| !used.contains(address))
            .copied()
            .collect();
        let mut doors = Vec::new();
        for address in unused {
            if let Some(listener) = self.listeners.remove(&address) {
                info!(listen = %address, "listener closed");
                let door = listener.close().await;
                door.end_connections();
                let late = Arc::clone(&door);
                tokio::spawn(async move {
                    tokio::time::sleep(DEPARTURE).await;
                    late.cut_connections();
                });
                doors.push(door);
            }
        }
        doors
    }

    async fn persist(&mut self) {
        let (file, table) = (self.file.clone(), self.table.clone());
        let outcome = tokio::task::spawn_blocking(move || file.store(&table)).await;
        self.persist_problem = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = &self.persist_problem {
            error!(problem, "the table is in force but could not be stored");
        }
    }

    fn held(&self) -> Held {
        let scopes = self
            .scopes
            .iter()
            .map(|(name, scope)| scope.held(name))
            .collect();
        Held {
            scopes,
            persist_problem: self.persist_problem.clone(),
        }
    }
}

fn listen_problem(route: &ScopeRoute, error: &io::Error) -> ListenProblem {
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
    fn new() -> Self {
        Self {
            listen: None,
            problem: None,
            spread: Arc::default(),
            unrouted: Arc::default(),
            versions: BTreeMap::new(),
        }
    }

    /// Brings in what the route names and opens it for requests where they may come.
    fn admit(&mut self, route: &ScopeRoute, now_ms: u64) {
        for wanted in &route.versions {
            let version = self.versions.entry(wanted.deployment.clone());
            let version = version.or_insert_with(|| Version::new(wanted));
            version.admit(wanted, now_ms);
        }
    }

    /// Ends new requests for everything that the route gives none, after the new routes are published.
    fn dismiss(&mut self, route: &ScopeRoute) {
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

    fn routes(&self, route: &ScopeRoute) -> Routes {
        let mut versions = Vec::new();
        for wanted in route
            .versions
            .iter()
            .filter(|version| version.takes_requests())
        {
            let Some(version) = self.versions.get(&wanted.deployment) else {
                continue;
            };
            let instances = version.ready();
            if !instances.is_empty() {
                let routed = RoutedVersion::new(wanted.deployment.clone(), instances);
                versions.push((wanted.weight, routed));
            }
        }
        versions.sort_by(|(one, _), (two, _)| two.cmp(one));
        Routes::new(
            route.scope.clone(),
            Arc::clone(&self.spread),
            Arc::clone(&self.unrouted),
            Duration::from_millis(route.response_timeout_ms),
            versions,
        )
    }

    fn held(&self, name: &str) -> HeldScope {
        HeldScope {
            scope: name.to_owned(),
            listen: self.listen,
            problem: self.problem.clone(),
            unrouted: self.unrouted.load(Ordering::Relaxed),
            versions: self.versions.values().map(Version::held).collect(),
        }
    }
}

impl Version {
    fn new(route: &VersionRoute) -> Self {
        Self {
            route: route.clone(),
            marks: Arc::default(),
            instances: BTreeMap::new(),
            replaced: Vec::new(),
        }
    }

    fn admit(&mut self, wanted: &VersionRoute, now_ms: u64) {
        for member in self.instances.values_mut() {
            member.listed = false;
            member.healthy = false;
        }
        for route in &wanted.instances {
            self.admit_instance(route, now_ms);
        }
        let takes_requests = wanted.takes_requests();
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

    fn admit_instance(&mut self, route: &InstanceRoute, now_ms: u64) {
        let ledger = match self.instances.get_mut(&route.instance) {
            Some(member) if member.instance.address == route.address => {
                member.listed = true;
                member.healthy = route.healthy;
                return;
            }
            Some(member) => {
                // It came back at another address: the counts go on.
                self.replaced.push(Arc::clone(&member.instance));
                Arc::clone(&member.instance.ledger)
            }
            None => Arc::new(Ledger::new(Arc::clone(&self.marks), now_ms)),
        };
        let instance = Arc::new(Instance::new(route.instance.clone(), route.address, ledger));
        let member = Member {
            instance,
            listed: true,
            healthy: route.healthy,
        };
        self.instances.insert(route.instance.clone(), member);
    }

    /// The instances that may get requests.
    fn ready(&self) -> Vec<Arc<Instance>> {
        let ready = self.instances.values().filter(|member| member.healthy);
        ready.map(|member| Arc::clone(&member.instance)).collect()
    }

    fn dismiss(&mut self) {
        let takes_requests = self.route.takes_requests();
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
    fn forget_retired(&mut self) {
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
    fn depart(self) {
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

    fn held(&self) -> HeldVersion {
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
