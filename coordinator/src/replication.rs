//! The replicated heart, put together: one [`Replication`] per process.
//!
//! Starts the threads (Raft, log writer, replica), the peer listener and the tasks around them
//! from a data folder, and stops them in the order that loses nothing.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tidegate_coordinator_core::State;
use tidegate_proto::peer::v1::peer_server::PeerServer;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::entropy;
use crate::propose::{DoorParts, PROPOSE_LIMIT, Proposer};
use crate::query::Query;
use crate::raft::driver::{self, DriverParts, Pulse, RaftHandle};
use crate::raft::membership::Members;
use crate::raft::peer_service::{Asks, ClockWatch, PeerService};
use crate::raft::snapshot::{Snapshotter, StartError, read_state, recover};
use crate::raft::transport::{Directory, PeerClients, Transport};
use crate::raft::{OnFatal, RaftSettings, RaftStatus, Role, spawn_thread, writer};
use crate::replica::{self, AppliedEntries, ApplyFn, EVENT_BACKLOG, ReplicaParts, View, Views};
use crate::storage::data_dir::{DataDir, DataDirError};
use crate::storage::disk::FolderDisk;
use crate::storage::history::HistoryStore;
use crate::storage::log::{Mark, Membership};
use crate::storage::segment::{SEGMENT_BYTES, SegmentLog};
use crate::storage::snapshot::SnapshotStore;
use crate::tls::{ClientAuth, Tls};

/// What a node is started from.
pub struct ReplicationConfig {
    /// The locked data folder, with an identity.
    pub data: DataDir,
    /// How Raft runs.
    pub raft: RaftSettings,
    /// Bytes of one log segment; [`SEGMENT_BYTES`] but in tests.
    pub segment_bytes: u64,
    /// How long the door tries; [`PROPOSE_LIMIT`] but in tests.
    pub propose_limit: Duration,
    /// The process's certificates.
    pub tls: Tls,
    /// The bound peer listener.
    pub listener: TcpListener,
    /// `host:port` where other members reach that listener.
    pub own_address: String,
    /// More services on the peer listener; callers' certificates are in the extensions.
    pub services: tonic::service::Routes,
    /// The clocks.
    pub clock: Clock,
    /// The state machine.
    pub apply: ApplyFn,
    /// What ends the process.
    pub on_fatal: OnFatal,
}

impl ReplicationConfig {
    /// A node with the shipped settings.
    #[must_use]
    pub fn new(
        data: DataDir,
        tls: Tls,
        listener: TcpListener,
        own_address: String,
        apply: ApplyFn,
    ) -> ReplicationConfig {
        ReplicationConfig {
            data,
            raft: RaftSettings::default(),
            segment_bytes: SEGMENT_BYTES,
            propose_limit: PROPOSE_LIMIT,
            tls,
            listener,
            own_address,
            services: tonic::service::Routes::default(),
            clock: Clock::system(),
            apply,
            on_fatal: crate::raft::end_process(),
        }
    }
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The data folder cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Log or snapshots cannot be used.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Raft refuses its settings.
    #[error("raft: {0}")]
    Raft(String),
    /// The system gives no thread, folder or randomness.
    #[error("{0}")]
    System(String),
}

/// A running node. Its parts may be cloned out and used from anywhere.
pub struct Replication {
    /// The door for commands.
    pub proposer: Proposer,
    /// The way to read.
    pub query: Query,
    /// What has left the state.
    pub history: HistoryStore,
    /// The newest view, always.
    pub views: Views,
    /// Applied entries as they come.
    pub entries: AppliedEntries,
    /// How replication stands.
    pub status: watch::Receiver<RaftStatus>,
    /// Changes of the membership.
    pub members: Members,
    /// Connections to the other members.
    pub peers: PeerClients,
    /// Who answers what other members ask.
    pub asks: Asks,
    /// Whether its threads still turn.
    pub pulse: Pulse,
    raft: RaftHandle,
    stop: CancellationToken,
    killed: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    server: tokio::task::JoinHandle<()>,
    data: DataDir,
}

impl Replication {
    /// Starts a node; inside a tokio runtime.
    ///
    /// # Errors
    /// [`ReplicationError`], in one line for the person who starts it.
    pub fn start(config: ReplicationConfig) -> Result<Replication, ReplicationError> {
        let identity = config.data.identity()?;
        let system = |e: &dyn std::fmt::Display| ReplicationError::System(e.to_string());
        let snapshots = SnapshotStore::new(
            Arc::new(FolderDisk::new(&config.data.snapshots()).map_err(|e| system(&e))?),
            &identity.cluster_id,
        );
        let disk = Arc::new(FolderDisk::new(&config.data.log()).map_err(|e| system(&e))?);
        let (mut store, recovered) =
            SegmentLog::open(disk, config.segment_bytes).map_err(StartError::from)?;
        let start = recover(&identity.cluster_id, recovered, &snapshots, &mut store)?;
        let (state, mark, membership) = match &start.snapshot {
            Some(file) => (
                read_state(&snapshots, file).map_err(StartError::from)?,
                file.head.mark,
                file.head.membership.clone(),
            ),
            None => (State::default(), Mark::default(), Membership::default()),
        };
        let extent = start.snapshot.as_ref().and_then(|file| file.head.history);
        let needed = extent.map(|extent| (extent, mark.index));
        let history = HistoryStore::open(&config.data.history(), &identity.cluster_id, needed)
            .map_err(StartError::from)?;
        let (views_sender, views) = watch::channel(Arc::new(View {
            state: state.clone(),
            index: mark.index,
            term: mark.term,
            membership: membership.clone(),
        }));
        let (entries, _) = broadcast::channel(EVENT_BACKLOG);
        let (raft, driver_input) = driver::channel(identity.node_id);
        let stop = CancellationToken::new();
        let killed = Arc::new(AtomicBool::new(false));
        let directory = Arc::new(Directory::new(
            identity.clone(),
            config.own_address.clone(),
            views.clone(),
        ));
        let peers = PeerClients::new(config.tls.clone(), directory.clone(), config.clock.clone());
        let clocks = Arc::new(ClockWatch::new(config.clock.clone(), identity.node_id));
        let transport = Transport::start(
            peers.clone(),
            raft.clone(),
            snapshots.clone(),
            clocks.clone(),
            stop.clone(),
        );

        let (committed, committed_work) = mpsc::channel();
        let boot = entropy::number().map_err(|e| system(&e))?;
        let mut threads = Vec::new();
        let (writer, thread) = writer::start(
            Box::new(store),
            Arc::new(transport.clone()),
            driver::persisted_callback(&raft),
            killed.clone(),
            config.on_fatal.clone(),
            config.clock.clone(),
        )
        .map_err(|e| system(&e))?;
        threads.push(thread);
        let snapshotter = Snapshotter::new(
            snapshots.clone(),
            history.clone(),
            config.raft.clone(),
            raft.clone(),
            config.on_fatal.clone(),
            identity.node_id,
            mark.index,
        );
        let (written, on_fatal) = (history.clone(), config.on_fatal.clone());
        let write = move || {
            if let Err(error) = written.run() {
                on_fatal(format!("{error}; the node cannot go on without it"));
            }
        };
        threads
            .push(spawn_thread("history", config.on_fatal.clone(), write).map_err(|e| system(&e))?);
        threads.push(
            replica::spawn(
                ReplicaParts {
                    apply: config.apply,
                    state,
                    mark,
                    membership,
                    snapshots: snapshots.clone(),
                    history: history.clone(),
                    snapshotter,
                    raft: raft.clone(),
                    views: views_sender,
                    entries: entries.clone(),
                    on_fatal: config.on_fatal.clone(),
                },
                committed_work,
            )
            .map_err(|e| system(&e))?,
        );
        threads.push(
            driver::spawn(
                DriverParts {
                    node_id: identity.node_id,
                    settings: config.raft.clone(),
                    start,
                    boot,
                    writer,
                    committed,
                    outbox: Arc::new(transport),
                    killed: killed.clone(),
                    on_fatal: config.on_fatal.clone(),
                },
                driver_input,
            )
            .map_err(ReplicationError::Raft)?,
        );
        let proposer = Proposer::start(DoorParts {
            raft: raft.clone(),
            views: views.clone(),
            clients: peers.clone(),
            clock: config.clock.clone(),
            stop: stop.clone(),
            limit: config.propose_limit,
        });
        let query = Query::start(&raft, views.clone(), config.raft.tick);
        let members = Members::start(raft.clone(), proposer.clone(), views.clone(), stop.clone());
        let asks = Asks::default();
        let service = PeerService {
            directory,
            raft: raft.clone(),
            snapshots,
            history: history.clone(),
            clients: peers.clone(),
            proposer: proposer.clone(),
            clocks,
            asks: asks.clone(),
            clock: config.clock,
            stop: stop.clone(),
            refusals: Mutex::new(HashMap::new()),
            incoming: tokio::sync::Mutex::new(()),
        };
        let server = serve(
            config.tls,
            config.listener,
            config.services.add_service(PeerServer::new(service)),
            stop.clone(),
        );
        Ok(Replication {
            proposer,
            query,
            history,
            views,
            entries,
            status: raft.status(),
            members,
            peers,
            asks,
            pulse: Pulse::new(raft.clone()),
            raft,
            stop,
            killed,
            threads,
            server,
            data: config.data,
        })
    }

    /// Hands the lead to `to`, or to whichever member is furthest, if this node leads and that
    /// voter is up. Returns once another leads, or after `limit`; whether the wanted one leads, or
    /// without a wish, whether this node leads no more.
    pub async fn transfer_leadership(&self, to: Option<u64>, limit: Duration) -> bool {
        let mut status = self.status.clone();
        let own = self.raft.status().borrow().node_id;
        if status.borrow().role != Role::Leader {
            let leader = status.borrow().leader;
            return to.is_none() || leader == to;
        }
        self.raft.transfer(to);
        let handed_over = status.wait_for(|s| s.leader.is_some_and(|leader| leader != own));
        match tokio::time::timeout(limit, handed_over).await {
            Ok(Ok(status)) => to.is_none() || status.leader == to,
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Stops: first the lead goes to another member, then no more commands are taken and those
    /// under way are answered, then the log is closed. Returns when all is on disk.
    pub async fn shutdown(self) {
        self.transfer_leadership(None, Duration::from_secs(1)).await;
        self.proposer.drain(Duration::from_secs(1)).await;
        self.end().await;
    }

    /// The way to the Raft thread.
    #[cfg(test)]
    pub(crate) fn raft(&self) -> &RaftHandle {
        &self.raft
    }

    /// Stops as a killed process does: nothing is handed over, nothing more is written.
    pub async fn kill(self) {
        self.killed
            .store(true, std::sync::atomic::Ordering::Relaxed);
        self.end().await;
    }

    async fn end(self) {
        self.stop.cancel();
        self.raft.stop();
        let Replication {
            threads,
            server,
            history,
            data,
            ..
        } = self;
        let joined = tokio::task::spawn_blocking(move || {
            // A thread's panic was reported by itself.
            threads.into_iter().for_each(|t| {
                t.join().ok();
            });
            // Readers and a snapshot under way may still hold it.
            history.close();
            // The lock goes last: nobody may open the folder before its log is closed.
            drop(data);
        });
        joined.await.ok();
        server.await.ok();
    }
}

fn serve(
    tls: Tls,
    listener: TcpListener,
    routes: tonic::service::Routes,
    stop: CancellationToken,
) -> tokio::task::JoinHandle<()> {
    let incoming = tls.incoming(listener, ClientAuth::Required);
    tokio::spawn(async move {
        let result = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(5)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(16 * 1024 * 1024)
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await;
        if let Err(error) = result {
            tracing::error!(%error, "the peer listener ended");
        }
    })
}
