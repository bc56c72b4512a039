//! A cluster in one process for the tests, and a small state machine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_coordinator_core::command::{
    Applied, Command, InitCluster, MemberId, RaiseLevel, UpdateMember,
};
use tidegate_coordinator_core::event::verify_chain;
use tidegate_coordinator_core::state::{
    Addresses, CaRecord, Cluster, Member, Remembered, SealedKey,
};
use tidegate_coordinator_core::{Actor, Entry, Event, Item, Reply, RequestKey, State};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{ClusterId, Name, RequestId};
use tidegate_shared::time::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::entropy;
use crate::raft::membership::{bootstrap, claim};
use crate::raft::{RaftSettings, Role};
use crate::replica::ApplyFn;
use crate::replication::{Replication, ReplicationConfig};
use crate::storage::data_dir::{DataDir, Identity, Peer};
use crate::tls::testing::TestCa;
use crate::tls::{Tls, TlsMaterial};

pub(super) const WAIT: Duration = Duration::from_secs(20);
pub(super) const CLUSTER: &str = "01JD00000000000000000000AB";

/// Remembers every request, counts them, and keeps the member table.
pub(super) fn apply(state: &mut State, _index: u64, entry: &Entry) -> Vec<Applied> {
    state.at = entry.at;
    entry
        .items
        .iter()
        .map(|item| {
            if let Some(known) = state.requests.get(&item.request) {
                return Applied {
                    outcome: known.outcome.clone(),
                    ..Applied::default()
                };
            }
            state.last_revision += 1;
            change(state, &item.command);
            let outcome = Ok(Reply::Object {
                revision: state.last_revision,
                created: true,
                changed: true,
            });
            let remembered = Remembered {
                at: entry.at,
                command: Digest::of(b""),
                outcome: outcome.clone(),
            };
            state.requests.insert(item.request, remembered);
            Applied {
                outcome,
                ..Applied::default()
            }
        })
        .collect()
}

/// As [`apply`], with a line of the audit log for each command, which leaves the state at once.
pub(super) fn apply_with_past(state: &mut State, index: u64, entry: &Entry) -> Vec<Applied> {
    let mut applied = apply(state, index, entry);
    let mut archive = state.archive.unwrap_or_default();
    for (ordinal, one) in (0..).zip(&mut applied) {
        let event = Event {
            index,
            ordinal,
            at: entry.at,
            actor: Actor::System,
            kind: "written".to_owned(),
            object_kind: "test".to_owned(),
            object: String::new(),
            outcome: "ok".to_owned(),
            message: "x".repeat(2_000),
            details: BTreeMap::new(),
            previous_hash: state.last_hash.unwrap_or(Digest::ZERO),
            hash: Digest::ZERO,
        }
        .sealed();
        archive.events += 1;
        state.last_hash = Some(event.hash);
        one.events.push(event);
        one.events_leave = true;
    }
    state.archive = Some(archive);
    applied
}

pub(super) fn change(state: &mut State, command: &Command) {
    match command {
        Command::InitCluster(init) => {
            state.cluster = Some(std::sync::Arc::new(Cluster {
                id: init.cluster,
                trust_domain: init.trust_domain.clone(),
                level: init.level,
                epoch: 1,
                next_node: 1,
                members: Default::default(),
                former: Default::default(),
                ca: init.ca.clone(),
            }));
            member(state, 1, &init.addresses);
        }
        Command::UpdateMember(update) => member(state, update.node, &update.addresses),
        Command::RemoveMember(MemberId { node }) => {
            std::sync::Arc::make_mut(state.cluster.as_mut().unwrap())
                .members
                .remove(node);
        }
        Command::RaiseLevel(_) => {}
        other => panic!("the tests do not use {other:?}"),
    }
}

pub(super) fn member(state: &mut State, node: u64, addresses: &Addresses) {
    let cluster = std::sync::Arc::make_mut(state.cluster.as_mut().unwrap());
    cluster.next_node = cluster.next_node.max(node + 1);
    let member = Member {
        name: Name::new(format!("n{node}")).unwrap(),
        addresses: addresses.clone(),
        version: String::new(),
        level: 1,
        joined_at: Timestamp::ZERO,
    };
    cluster.members.insert(node, member);
}

pub(super) fn peer_address(address: &str) -> Addresses {
    Addresses {
        peer: address.to_owned(),
        ..Addresses::default()
    }
}

pub(super) fn item(command: Command) -> Item {
    let now = Clock::system().wall_ms();
    Item {
        actor: Actor::System,
        request: RequestKey::Client(RequestId::new(entropy::ulid(now).unwrap())),
        command: Box::new(command),
    }
}

pub(super) fn write() -> Item {
    item(Command::RaiseLevel(RaiseLevel { level: 1 }))
}

pub(super) struct Node {
    pub(super) running: Option<Replication>,
    pub(super) clock: Clock,
    pub(super) address: String,
    pub(super) material: watch::Sender<Arc<TlsMaterial>>,
}

pub(super) struct TestCluster {
    pub(super) folder: tempfile::TempDir,
    pub(super) ca: TestCa,
    pub(super) settings: RaftSettings,
    pub(super) propose_limit: Duration,
    pub(super) state_machine: ApplyFn,
    pub(super) nodes: BTreeMap<u64, Node>,
    pub(super) fatal: Arc<Mutex<Vec<String>>>,
}

impl TestCluster {
    pub(super) fn new() -> TestCluster {
        // Shown with a failing test; RUST_LOG chooses.
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init()
            .ok();
        TestCluster {
            folder: tempfile::tempdir().unwrap(),
            ca: TestCa::new().unwrap(),
            settings: RaftSettings {
                tick: Duration::from_millis(20),
                ..RaftSettings::default()
            },
            propose_limit: Duration::from_secs(20),
            state_machine: apply,
            nodes: BTreeMap::new(),
            fatal: Arc::default(),
        }
    }

    /// Node 1 by bootstrap, the others by joining; all of them voters.
    pub(super) async fn of(count: u64) -> TestCluster {
        let mut cluster = TestCluster::new();
        cluster.grow(count).await;
        cluster
    }

    pub(super) async fn grow(&mut self, count: u64) {
        for id in self.nodes.len() as u64 + 1..=count {
            self.add(id).await;
        }
        let all: Vec<u64> = (1..=count).collect();
        for id in 1..=count {
            self.until(id, "all vote", |s| s.membership.voters == all)
                .await;
        }
    }

    pub(super) fn dir(&self, id: u64) -> DataDir {
        DataDir::open(&self.folder.path().join(format!("n{id}"))).unwrap()
    }

    pub(super) fn identity(&self, id: u64) -> Identity {
        Identity {
            cluster_id: CLUSTER.to_owned(),
            trust_domain: "td".to_owned(),
            node_id: id,
            name: format!("n{id}"),
            peers: self
                .nodes
                .iter()
                .map(|(&node_id, node)| Peer {
                    node_id,
                    name: format!("n{node_id}"),
                    address: node.address.clone(),
                })
                .collect(),
        }
    }

    pub(super) async fn add(&mut self, id: u64) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dir = self.dir(id);
        if id == 1 {
            let init = item(Command::InitCluster(InitCluster {
                cluster: ClusterId::new(CLUSTER.parse().unwrap()),
                trust_domain: "td".to_owned(),
                name: Name::new("n1").unwrap(),
                addresses: peer_address(&address),
                ca: CaRecord {
                    certificate: String::new(),
                    key: SealedKey {
                        nonce: Vec::new(),
                        sealed: Vec::new(),
                    },
                },
                admin: Name::new("admin").unwrap(),
                level: 1,
            }));
            let entry = Entry {
                at: Timestamp::from_millis(Clock::system().wall_ms()),
                items: vec![init],
            };
            bootstrap(&dir, &self.identity(1), self.state_machine, &entry).unwrap();
        } else {
            let update = item(Command::UpdateMember(UpdateMember {
                node: id,
                addresses: peer_address(&address),
                version: String::new(),
                level: 1,
            }));
            let proposer = self.node(1).proposer.clone();
            proposer.propose(update).await.unwrap().unwrap();
            claim(&dir, &self.identity(id)).unwrap();
        }
        let uri = format!("spiffe://td/coordinator/n{id}");
        let (material, _) = watch::channel(Arc::new(self.ca.issue(&uri).unwrap()));
        self.nodes.insert(
            id,
            Node {
                running: None,
                clock: Clock::system(),
                address,
                material,
            },
        );
        self.run(id, dir, listener);
    }

    pub(super) fn run(&mut self, id: u64, dir: DataDir, listener: TcpListener) {
        let fatal = self.fatal.clone();
        let node = self.nodes.get_mut(&id).unwrap();
        let tls = Tls::new(node.material.subscribe(), "td");
        let mut config =
            ReplicationConfig::new(dir, tls, listener, node.address.clone(), self.state_machine);
        config.raft = self.settings.clone();
        config.propose_limit = self.propose_limit;
        config.segment_bytes = 256 * 1024;
        config.clock = node.clock.clone();
        config.on_fatal = Arc::new(move |message| fatal.lock().unwrap().push(message));
        node.running = Some(Replication::start(config).unwrap());
    }

    pub(super) async fn restart(&mut self, id: u64) {
        let dir = self.dir(id);
        let listener = TcpListener::bind(&self.nodes[&id].address).await.unwrap();
        self.run(id, dir, listener);
    }

    pub(super) async fn kill(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap().running.take().unwrap();
        node.kill().await;
    }

    pub(super) fn node(&self, id: u64) -> &Replication {
        self.nodes[&id].running.as_ref().unwrap()
    }

    pub(super) async fn until(
        &self,
        id: u64,
        what: &str,
        is_so: impl Fn(&crate::raft::RaftStatus) -> bool,
    ) {
        let mut status = self.node(id).status.clone();
        let reached = tokio::time::timeout(WAIT, status.wait_for(|s| is_so(s))).await;
        assert!(
            matches!(reached, Ok(Ok(_))),
            "node {id}: {what}: {:?}; fatal: {:?}",
            self.node(id).status.borrow(),
            self.fatal.lock().unwrap()
        );
    }

    pub(super) async fn leader(&self) -> u64 {
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            for (&id, node) in &self.nodes {
                if let Some(node) = &node.running
                    && node.status.borrow().role == Role::Leader
                    && node.proposer.leader_now().is_some()
                {
                    return id;
                }
            }
            assert!(tokio::time::Instant::now() < deadline, "nobody leads");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        *self
            .nodes
            .iter()
            .find(|(id, n)| **id != leader && n.running.is_some())
            .unwrap()
            .0
    }

    pub(super) async fn write(&self, id: u64) -> Item {
        let one = write();
        let outcome = self.node(id).proposer.propose(one.clone()).await;
        outcome.unwrap().unwrap();
        one
    }

    pub(super) async fn reads(&self, id: u64, one: &Item) -> bool {
        let view = self.node(id).query.linearizable().await.unwrap();
        view.state.requests.contains_key(&one.request)
    }

    /// Every running node has the same state.
    pub(super) async fn assert_equal(&self) {
        let leader = self.leader().await;
        let view = self.node(leader).query.linearizable().await.unwrap();
        for node in self.nodes.values().filter_map(|n| n.running.as_ref()) {
            let mut views = node.views.clone();
            let other = tokio::time::timeout(WAIT, views.wait_for(|v| v.index >= view.index))
                .await
                .unwrap()
                .unwrap()
                .clone();
            assert_eq!(other.state, view.state);
        }
        assert_eq!(*self.fatal.lock().unwrap(), Vec::<String>::new());
    }

    /// Every running node has the whole audit log, unbroken, up to the end that its state names.
    pub(super) async fn assert_whole_past(&self) {
        self.assert_equal().await;
        for (id, node) in &self.nodes {
            let Some(node) = &node.running else { continue };
            let view = node.query.linearizable().await.unwrap();
            let events = node.history.events(None, view.index, usize::MAX).unwrap();
            let last = verify_chain(&events).unwrap();
            assert_eq!(view.state.last_hash, Some(last), "node {id}");
            let count = view.state.archive.unwrap().events;
            assert_eq!(events.len() as u64, count, "node {id}");
        }
    }

    pub(super) async fn stop(mut self) {
        for node in self.nodes.values_mut() {
            if let Some(node) = node.running.take() {
                node.kill().await;
            }
        }
    }
}
