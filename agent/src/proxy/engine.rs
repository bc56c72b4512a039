//! The proxy's state: which table is in force, which listeners and instances live, and how one table turns
//! into the next.
//!
//! A table is checked as a whole before anything changes. Then listeners are bound, the new routes are
//! published, and only after that the instances that lost their place stop taking requests, so no request
//! finds an empty picture in between. A listener that cannot be bound concerns its own scope alone and is
//! tried again every second. The control socket calls `converge` and `observe`; one caller at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, watch};
use tracing::{error, info, warn};

use super::handover::{Level, Predecessor, Wishes};
use super::listener::{Door, Listener};
use super::routes::{RoutedVersion, Routes};
use super::stats::{ErrorMarks, unix_ms};
use super::store::TableFile;
use super::table::{
    Held, HeldInstance, HeldScope, HeldVersion, InstanceRoute, ListenProblem, ListenProblemKind,
    ProxyProcess, ScopeRoute, Table, TableError, VersionRoute,
};
use super::upstream::{Instance, Ledger, lock};
use crate::port_holder::port_taken_message;

/// Instances that left the table are remembered for their counters, at most so many per version.
const RETIRED_MAX: usize = 64;

/// How long a version that left the table may finish its open requests.
const DEPARTURE: Duration = Duration::from_secs(30);

/// How long connections that were cut may take to be counted.
const CUT_LIMIT: Duration = Duration::from_secs(1);

/// Listening sockets by address.
pub(super) type Sockets = Vec<(SocketAddr, Arc<TcpListener>)>;

/// The whole data plane of one process.
pub(super) struct Engine {
    state: AsyncMutex<State>,
    /// Doors whose listeners were closed, as long as they have connections.
    leaving: Mutex<Vec<Arc<Door>>>,
    /// Held while the sockets change hands: no table comes in meanwhile.
    gate: AsyncMutex<()>,
    predecessor: Mutex<Option<Predecessor>>,
    /// What the predecessor shall hear.
    wishes: watch::Sender<Wishes>,
    process: ProxyProcess,
}

struct State {
    file: TableFile,
    table: Table,
    persist_problem: Option<String>,
    listeners: BTreeMap<SocketAddr, Listener>,
    scopes: BTreeMap<String, Scope>,
    stopped: bool,
    /// The sockets are another proxy's: listeners are neither opened nor tried again.
    retired: bool,
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
    pub(super) fn new(file: TableFile, process: ProxyProcess) -> Self {
        let state = State {
            file,
            table: Table::default(),
            persist_problem: None,
            listeners: BTreeMap::new(),
            scopes: BTreeMap::new(),
            stopped: false,
            retired: false,
        };
        Self {
            state: AsyncMutex::new(state),
            leaving: Mutex::default(),
            gate: AsyncMutex::default(),
            predecessor: Mutex::default(),
            wishes: watch::Sender::default(),
            process,
        }
    }

    /// Who this is.
    pub(super) async fn process(&self) -> ProxyProcess {
        let connections = self.state.lock().await.connections() + self.leaving_connections();
        ProxyProcess {
            connections,
            ..self.process.clone()
        }
    }

    fn leaving_connections(&self) -> u64 {
        let leaving = lock(&self.leaving);
        leaving.iter().map(|door| door.connections() as u64).sum()
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
        let _gate = self.gate.lock().await;
        let mut state = self.state.lock().await;
        if !state.stopped {
            let doors = state.apply(&table).await;
            lock(&self.leaving).extend(doors);
            self.pass_on(&table);
            if table != state.table || state.persist_problem.is_some() {
                state.table = table;
                state.persist().await;
            }
        }
        drop(state);
        Ok(self.observe().await)
    }

    /// What is held and what was counted.
    pub(super) async fn observe(&self) -> Held {
        let mut held = self.state.lock().await.held();
        held.process = Some(self.process().await);
        if let Some(predecessor) = lock(&self.predecessor).as_ref() {
            predecessor.add_to(&mut held);
        }
        held
    }

    /// Once a second: tries listeners again that could not be had, closes what slept too long.
    pub(super) async fn tend(&self) {
        let Ok(_gate) = self.gate.try_lock() else {
            return;
        };
        let mut state = self.state.lock().await;
        if !state.stopped
            && !state.retired
            && state.scopes.values().any(|scope| scope.problem.is_some())
        {
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

    /// Requests, tunnels and client connections that are still open, here and at the predecessor.
    pub(super) async fn open(&self) -> u64 {
        let state = self.state.lock().await;
        let requests: u64 = state.ledgers().map(|ledger| ledger.open()).sum();
        let inside = if state.retired {
            state.connections()
        } else {
            0
        };
        let before = lock(&self.predecessor)
            .as_ref()
            .map_or(0, Predecessor::open);
        requests + inside + self.leaving_connections() + before
    }

    /// Waits until nothing is open, at most so long; false when something still is.
    pub(super) async fn finish(&self, grace: Duration) -> bool {
        let finished = async {
            while self.open().await > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(grace, finished).await.is_ok()
    }

    /// Cuts off whatever is open, so that it is counted.
    pub(super) async fn cut(&self) {
        let state = self.state.lock().await;
        for listener in state.listeners.values() {
            listener.door.cut_connections();
        }
        lock(&self.leaving)
            .iter()
            .for_each(|door| door.cut_connections());
        state.ledgers().for_each(Ledger::close);
        drop(state);
        self.finish(CUT_LIMIT).await;
    }
}

/// The hand-over (`handover/`), seen from both sides.
impl Engine {
    /// Keeps tables out while the guard lives.
    pub(super) async fn freeze(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().await
    }

    /// The table in force.
    pub(super) async fn table(&self) -> Table {
        self.state.lock().await.table.clone()
    }

    /// The listening sockets, and where each scope is served.
    pub(super) async fn sockets(&self) -> (Sockets, BTreeMap<String, SocketAddr>) {
        let state = self.state.lock().await;
        let listeners = state.listeners.iter();
        let sockets = listeners
            .filter_map(|(address, listener)| Some((*address, listener.socket()?)))
            .collect();
        let scopes = state.scopes.iter();
        let served = scopes
            .filter_map(|(name, scope)| Some((name.clone(), scope.listen?)))
            .collect();
        (sockets, served)
    }

    /// Accepts no more on any listener.
    pub(super) async fn pause(&self) {
        for listener in self.state.lock().await.listeners.values_mut() {
            listener.pause().await;
        }
    }

    /// Accepts again on every listener.
    pub(super) async fn resume(&self) {
        for listener in self.state.lock().await.listeners.values_mut() {
            listener.resume();
        }
    }

    /// Lets the listening sockets go; connections, instances and counts stay.
    pub(super) async fn retire(&self) {
        let mut state = self.state.lock().await;
        state.retired = true;
        for listener in state.listeners.values_mut() {
            listener.give_away().await;
        }
    }

    /// Follows the successor's table with what is still open here.
    pub(super) async fn follow(&self, table: Table) {
        if let Err(error) = table.validate() {
            warn!(%error, "the successor's table is not valid");
            return;
        }
        let mut state = self.state.lock().await;
        let doors = state.apply(&table).await;
        lock(&self.leaving).extend(doors);
        self.pass_on(&table);
        state.table = table;
    }

    /// Holds a predecessor's table and sockets, without accepting yet.
    pub(super) async fn inherit(
        &self,
        table: Table,
        sockets: BTreeMap<SocketAddr, StdListener>,
        served: BTreeMap<String, SocketAddr>,
    ) -> io::Result<()> {
        let mut state = self.state.lock().await;
        for (address, socket) in sockets {
            let listener = Listener::of(socket, Arc::new(Routes::empty()))?;
            state.listeners.insert(address, listener);
        }
        for (scope, address) in served {
            let scope = state.scopes.entry(scope).or_insert_with(Scope::new);
            scope.listen = Some(address);
        }
        let doors = state.apply(&table).await;
        lock(&self.leaving).extend(doors);
        state.table = table;
        // The file may be older, if the predecessor could not write it.
        state.persist().await;
        Ok(())
    }

    /// Adds a predecessor's counts to its own from now on.
    pub(super) fn succeed(&self, predecessor: Predecessor) {
        *lock(&self.predecessor) = Some(predecessor);
    }

    /// The predecessor told how it stands.
    pub(super) fn predecessor_says(&self, level: Level) {
        if let Some(predecessor) = lock(&self.predecessor).as_mut() {
            predecessor.hear(level);
        }
    }

    /// The predecessor has ended.
    pub(super) fn predecessor_ended(&self) {
        if let Some(predecessor) = lock(&self.predecessor).as_mut() {
            predecessor.end();
        }
    }

    /// What the predecessor shall hear.
    pub(super) fn wishes(&self) -> watch::Receiver<Wishes> {
        self.wishes.subscribe()
    }

    /// The predecessor shall end within this time.
    pub(super) fn wish_end(&self, grace: Duration) {
        self.wishes.send_modify(|wishes| wishes.end = Some(grace));
    }

    fn pass_on(&self, table: &Table) {
        let mut predecessor = lock(&self.predecessor);
        if let Some(predecessor) = predecessor.as_mut() {
            predecessor.keep_only(table);
            self.wishes
                .send_modify(|wishes| wishes.table = Some(table.clone()));
        }
    }
}

impl State {
    /// Client connections that came through the listeners.
    fn connections(&self) -> u64 {
        let doors = self.listeners.values();
        doors.map(|l| l.door.connections() as u64).sum()
    }

    fn ledgers(&self) -> impl Iterator<Item = &Ledger> {
        let versions = self.scopes.values().flat_map(|s| s.versions.values());
        let members = versions.flat_map(|version| version.instances.values());
        members.map(|member| &*member.instance.ledger)
    }

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
            None if self.retired => None,
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
            ..Held::default()
        }
    }
}

fn listen_problem(route: &ScopeRoute, error: &io::Error) -> ListenProblem {
    let (scope, listen) = (&route.scope, route.listen);
    let (kind, reason) = match error.kind() {
        io::ErrorKind::AddrInUse => (ListenProblemKind::AddressInUse, port_taken_message(listen)),
        io::ErrorKind::AddrNotAvailable => {
            let reason = format!("{} is not an address of this host", listen.ip());
            (ListenProblemKind::AddressNotHere, reason)
        }
        io::ErrorKind::PermissionDenied => {
            let reason = format!(
                "port {} needs the capability CAP_NET_BIND_SERVICE",
                listen.port()
            );
            (ListenProblemKind::NotPermitted, reason)
        }
        _ => (ListenProblemKind::Other, error.to_string()),
    };
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
