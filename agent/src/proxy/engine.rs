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
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, watch};
use tracing::{error, info, warn};

use super::handover::{Level, Predecessor, Wishes};
use super::listener::{Door, Listener};
use super::routes::Routes;
use super::scope::{DEPARTURE, Scope, Version, listen_problem};
use super::stats::unix_ms;
use super::store::TableFile;
use super::table::{Held, ProxyProcess, ScopeRoute, Table, TableError};
use super::upstream::{Ledger, lock};

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
        let (security, tls_problem) = scope.security(route);
        let routes = Arc::new(scope.routes(route, security));
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
        let problem = problem.or(tls_problem);
        if let Some(problem) = problem
            .as_ref()
            .filter(|new| scope.problem.as_ref() != Some(*new))
        {
            warn!(problem.message, "cannot serve, trying on");
        }
        // Settings that are not in force in full are not acknowledged, so they are told again.
        scope.revision = match &problem {
            None => route.revision.clone(),
            Some(_) => String::new(),
        };
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
        let (file, table) = (self.file.clone(), self.table.without_keys());
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
