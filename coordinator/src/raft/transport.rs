//! Messages between members, over `peer/v1` with mutual TLS.
//!
//! Raft's messages to a peer wait in a bounded queue and travel on one stream; what does not fit
//! is dropped and reported, as Raft expects of a network. A snapshot's message travels with its
//! file on a stream of its own. Every second without messages a sign of life carries the clock.
//! [`PeerClients`] gives the same connections to other parts of the coordinator.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tidegate_coordinator_core::state::{Cluster, Member};
use tidegate_proto::peer::v1::peer_client::PeerClient;
use tidegate_proto::peer::v1::{
    AskRequest, Envelope, RaftBatch, RaftMessage, SnapshotHead, SnapshotPart, raft_message,
    snapshot_part,
};
use tidegate_shared::time::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::driver::RaftHandle;
use super::peer_service::ClockWatch;
use crate::ca::Validity;
use crate::clock::Clock;
use crate::replica::Views;
use crate::storage::data_dir::{Identity, Peer};
use crate::storage::log::{Mark, Membership};
use crate::storage::snapshot::{SnapshotStore, file_name};
use crate::tls::{Expected, Tls, TlsMaterial};

/// Nodes that joined while this one was away, until the state tells of them.
const MOST_LEARNED: usize = 64;
const QUEUE_MESSAGES: usize = 4096;
const QUEUE_BYTES: usize = 64 * 1024 * 1024;
const BATCH_BYTES: usize = 1024 * 1024;
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// A snapshot's transfer may take this long in all; then the leader tries again.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(600);

/// Where Raft's messages leave. Never blocks.
pub trait Outbox: Send + Sync {
    /// Sends what can be sent; the rest is dropped and reported to Raft.
    fn send(&self, messages: Vec<RaftMessage>);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who the members are: by the state, and until there is one by the identity file. Members that
/// joined while this node was away are believed by their certificate, until the state tells.
pub struct Directory {
    identity: Identity,
    own_address: String,
    views: Views,
    learned: Mutex<HashMap<u64, Peer>>,
}

impl Directory {
    /// `own_address` is what this node tells peers that do not know it yet.
    #[must_use]
    pub fn new(identity: Identity, own_address: String, views: Views) -> Directory {
        Directory {
            identity,
            own_address,
            views,
            learned: Mutex::new(HashMap::new()),
        }
    }

    /// Who this node is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The member of this id.
    #[must_use]
    pub fn peer(&self, node_id: u64) -> Option<Peer> {
        let view = self.views.borrow();
        let known = match &view.state.cluster {
            Some(cluster) => spoken_to(cluster, &view.membership, node_id).map(|member| Peer {
                node_id,
                name: member.name.to_string(),
                address: member.addresses.peer.clone(),
            }),
            None => self
                .identity
                .peers
                .iter()
                .find(|p| p.node_id == node_id)
                .cloned(),
        };
        drop(view);
        known.or_else(|| lock(&self.learned).get(&node_id).cloned())
    }

    /// Every member but this node.
    #[must_use]
    pub fn others(&self) -> Vec<u64> {
        let view = self.views.borrow();
        let mut ids: Vec<u64> = match &view.state.cluster {
            Some(cluster) => cluster.members.keys().copied().collect(),
            None => self.identity.peers.iter().map(|p| p.node_id).collect(),
        };
        ids.retain(|id| *id != self.identity.node_id);
        ids
    }

    /// Whether `name` is the member `node_id`, as far as this node knows. What only members may
    /// ask for is given to nobody on the word of a certificate alone.
    #[must_use]
    pub fn is_member(&self, node_id: u64, name: &str, validity: Validity) -> bool {
        let view = self.views.borrow();
        match &view.state.cluster {
            Some(cluster) => cluster.members.get(&node_id).is_some_and(|member| {
                member.name.as_str() == name && validity.is_since(member.joined_at)
            }),
            None => {
                let mut peers = self.identity.peers.iter();
                peers.any(|peer| peer.node_id == node_id && peer.name == name)
            }
        }
    }

    /// Whether `name`, with a certificate of this validity, may speak as `node_id` in Raft's
    /// messages.
    ///
    /// # Errors
    /// One line that says why not.
    pub fn admit(
        &self,
        node_id: u64,
        name: &str,
        validity: Validity,
        address: &str,
    ) -> Result<(), String> {
        let view = self.views.borrow();
        let (known, was_removed) = match &view.state.cluster {
            Some(cluster) => (
                spoken_to(cluster, &view.membership, node_id)
                    .map(|m| (m.name.to_string(), m.joined_at)),
                node_id < cluster.next_node,
            ),
            None => (
                self.identity
                    .peers
                    .iter()
                    .find(|p| p.node_id == node_id)
                    .map(|p| (p.name.clone(), Timestamp::ZERO)),
                false,
            ),
        };
        drop(view);
        match known {
            Some((known, since)) if known == name => {
                if validity.is_since(since) {
                    Ok(())
                } else {
                    Err(format!(
                        "`{name}` was removed and joined again as node {node_id}: its certificate is of the time before"
                    ))
                }
            }
            Some((known, _)) => Err(format!(
                "node {node_id} is `{known}`, the certificate names `{name}`"
            )),
            None if was_removed => Err(format!(
                "node {node_id} was removed from the cluster; join it anew with an empty data folder"
            )),
            None => {
                let mut learned = lock(&self.learned);
                if learned.len() >= MOST_LEARNED && !learned.contains_key(&node_id) {
                    return Err(format!("node {node_id} is one unknown node too many"));
                }
                learned.insert(
                    node_id,
                    Peer {
                        node_id,
                        name: name.to_owned(),
                        address: address.to_owned(),
                    },
                );
                Ok(())
            }
        }
    }
}

/// Why a member cannot be called.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Nobody has this id.
    #[error("there is no coordinator with node id {0}")]
    Unknown(u64),
    /// Its address or our certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// It could not be reached, or refused.
    #[error("coordinator {node_id} at {address}: {}", status.message())]
    Call {
        /// The member.
        node_id: u64,
        /// Where it was called.
        address: String,
        /// Its answer.
        status: Box<tonic::Status>,
    },
}

struct Cached {
    peer: Peer,
    material: Arc<TlsMaterial>,
    channel: Channel,
}

/// Connections to the other members, by node id. Cheap to clone.
#[derive(Clone)]
pub struct PeerClients {
    tls: Tls,
    directory: Arc<Directory>,
    clock: Clock,
    cache: Arc<Mutex<HashMap<u64, Cached>>>,
}

impl PeerClients {
    /// Connections made with the certificates of `tls`.
    #[must_use]
    pub fn new(tls: Tls, directory: Arc<Directory>, clock: Clock) -> PeerClients {
        PeerClients {
            tls,
            directory,
            clock,
            cache: Arc::new(Mutex::new(HashMap::new())),
        }
    }

    /// The table of members.
    #[must_use]
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// The channel to a member's peer listener; services that were added to it can be called too.
    /// Made anew when its address or our certificate changed.
    ///
    /// # Errors
    /// [`PeerError::Unknown`] or [`PeerError::Tls`].
    pub fn channel(&self, node_id: u64) -> Result<Channel, PeerError> {
        let peer = self
            .directory
            .peer(node_id)
            .ok_or(PeerError::Unknown(node_id))?;
        let material = self.tls.material();
        let mut cache = lock(&self.cache);
        if let Some(cached) = cache.get(&node_id)
            && cached.peer == peer
            && Arc::ptr_eq(&cached.material, &material)
        {
            return Ok(cached.channel.clone());
        }
        let channel = self
            .tls
            .channel(&peer.address, Expected::Coordinator(peer.name.clone()))?;
        cache.insert(
            node_id,
            Cached {
                peer,
                material,
                channel: channel.clone(),
            },
        );
        Ok(channel)
    }

    pub(crate) fn client(&self, node_id: u64) -> Result<PeerClient<Channel>, PeerError> {
        Ok(PeerClient::new(self.channel(node_id)?))
    }

    pub(crate) fn envelope(&self, to: u64) -> Envelope {
        let identity = self.directory.identity();
        Envelope {
            cluster_id: identity.cluster_id.clone(),
            from: identity.node_id,
            to,
            clock_ms: self.clock.wall_ms(),
            address: self.directory.own_address.clone(),
        }
    }

    /// Asks the part of another member that registered for `topic`
    /// ([`super::peer_service::Asks`]).
    ///
    /// # Errors
    /// [`PeerError`]; `Call` with `DeadlineExceeded` after `limit`.
    pub async fn ask(
        &self,
        node_id: u64,
        topic: &str,
        payload: Bytes,
        limit: Duration,
    ) -> Result<Bytes, PeerError> {
        let mut request = tonic::Request::new(AskRequest {
            envelope: Some(self.envelope(node_id)),
            topic: topic.to_owned(),
            payload,
        });
        request.set_timeout(limit);
        let answer = self.client(node_id)?.ask(request).await;
        answer
            .map(|reply| reply.into_inner().payload)
            .map_err(|status| self.call_error(node_id, status))
    }

    pub(crate) fn call_error(&self, node_id: u64, status: tonic::Status) -> PeerError {
        PeerError::Call {
            node_id,
            address: self
                .directory
                .peer(node_id)
                .map(|p| p.address)
                .unwrap_or_default(),
            status: Box::new(status),
        }
    }
}

struct PeerQueue {
    sender: mpsc::Sender<RaftMessage>,
    bytes: Arc<AtomicUsize>,
}

fn weight(message: &RaftMessage) -> usize {
    64 + message
        .entries
        .iter()
        .map(|e| e.data.len() + e.context.len() + 32)
        .sum::<usize>()
}

/// The [`Outbox`] of a real node.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    clients: PeerClients,
    raft: RaftHandle,
    snapshots: SnapshotStore,
    runtime: tokio::runtime::Handle,
    queues: Mutex<HashMap<u64, PeerQueue>>,
    stop: CancellationToken,
}

impl Transport {
    /// Starts the signs of life. Must be called inside the runtime; ends with `stop`.
    #[must_use]
    pub fn start(
        clients: PeerClients,
        raft: RaftHandle,
        snapshots: SnapshotStore,
        clocks: Arc<ClockWatch>,
        stop: CancellationToken,
    ) -> Transport {
        let transport = Transport {
            inner: Arc::new(Inner {
                clients,
                raft,
                snapshots,
                runtime: tokio::runtime::Handle::current(),
                queues: Mutex::new(HashMap::new()),
                stop,
            }),
        };
        tokio::spawn(transport.clone().watch(clocks));
        transport
    }

    /// Keeps a stream to every member, and judges the own clock by theirs.
    async fn watch(self, clocks: Arc<ClockWatch>) {
        let mut timer = tokio::time::interval(SIGN_OF_LIFE);
        let mut was_skewed = false;
        loop {
            tokio::select! {
                _ = timer.tick() => {}
                () = self.inner.stop.cancelled() => return,
            }
            for node_id in self.inner.clients.directory.others() {
                self.with_queue(node_id, |_| ());
            }
            let voters = self.inner.raft.status().borrow().membership.voters.clone();
            let skew = clocks.skew(&voters);
            if skew.is_some() != was_skewed {
                was_skewed = skew.is_some();
                match skew {
                    Some(ms) => tracing::error!(
                        "TG-1405: this machine's clock is {ms} ms off most other coordinators': set it; until then this node does not lead"
                    ),
                    None => tracing::info!("this machine's clock agrees with the others' again"),
                }
                self.inner.raft.set_clock_skewed(was_skewed);
            }
        }
    }

    fn with_queue<R>(&self, node_id: u64, use_queue: impl FnOnce(&PeerQueue) -> R) -> R {
        let mut queues = lock(&self.inner.queues);
        let queue = queues.entry(node_id).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(QUEUE_MESSAGES);
            let bytes = Arc::new(AtomicUsize::new(0));
            let worker = PeerWorker {
                inner: self.inner.clone(),
                node_id,
                receiver,
                bytes: bytes.clone(),
            };
            self.inner.runtime.spawn(worker.run());
            PeerQueue { sender, bytes }
        });
        use_queue(queue)
    }

    fn send_one(&self, message: RaftMessage) {
        let to = message.to;
        if message.r#type() == raft_message::Type::Snapshot {
            let inner = self.inner.clone();
            self.inner.runtime.spawn(async move {
                let result = tokio::select! {
                    result = tokio::time::timeout(SNAPSHOT_LIMIT, send_snapshot(&inner, message)) => {
                        result.unwrap_or_else(|_| Err("it took too long".to_owned()))
                    }
                    () = inner.stop.cancelled() => return,
                };
                if let Err(reason) = &result {
                    tracing::warn!(to, reason, "a snapshot did not arrive");
                }
                inner.raft.report_snapshot(to, result.is_ok());
            });
            return;
        }
        let size = weight(&message);
        let sent = self.with_queue(to, |queue| {
            if queue.bytes.load(Ordering::Relaxed) + size > QUEUE_BYTES {
                return false;
            }
            queue.bytes.fetch_add(size, Ordering::Relaxed);
            let sent = queue.sender.try_send(message).is_ok();
            if !sent {
                queue.bytes.fetch_sub(size, Ordering::Relaxed);
            }
            sent
        });
        if !sent {
            self.inner.raft.report_unreachable(to);
        }
    }
}

impl Outbox for Transport {
    fn send(&self, messages: Vec<RaftMessage>) {
        for message in messages {
            self.send_one(message);
        }
    }
}

async fn send_snapshot(inner: &Inner, message: RaftMessage) -> Result<(), String> {
    let to = message.to;
    let descriptor = message.snapshot.as_ref().ok_or("it has no description")?;
    let name = file_name(Mark {
        index: descriptor.index,
        term: descriptor.term,
    });
    let mut raw = inner.snapshots.raw(&name).map_err(|e| e.to_string())?;
    let mut client = inner.clients.client(to).map_err(|e| e.to_string())?;
    let head = SnapshotPart {
        part: Some(snapshot_part::Part::Head(SnapshotHead {
            envelope: Some(inner.clients.envelope(to)),
            message: Some(message),
        })),
    };
    let (sender, receiver) = mpsc::channel(4);
    let feed = async move {
        if sender.send(head).await.is_err() {
            return Ok(());
        }
        loop {
            let (back, piece) = tokio::task::spawn_blocking(move || {
                let piece = raw.next_piece();
                (raw, piece)
            })
            .await
            .map_err(|e| e.to_string())?;
            raw = back;
            let piece = piece.map_err(|e| e.to_string())?;
            if piece.is_empty() {
                return Ok(());
            }
            let part = SnapshotPart {
                part: Some(snapshot_part::Part::Chunk(piece.into())),
            };
            if sender.send(part).await.is_err() {
                // The call has ended; it says why.
                return Ok(());
            }
        }
    };
    let call = client.send_snapshot(ReceiverStream::new(receiver));
    let (fed, answer): (Result<(), String>, _) = tokio::join!(feed, call);
    fed?;
    answer.map(|_| ()).map_err(|s| s.message().to_owned())
}

/// Feeds one peer.
struct PeerWorker {
    inner: Arc<Inner>,
    node_id: u64,
    receiver: mpsc::Receiver<RaftMessage>,
    bytes: Arc<AtomicUsize>,
}

impl PeerWorker {
    async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut was_lost = false;
        while !self.inner.stop.is_cancelled() {
            let began = tokio::time::Instant::now();
            let result = self.connection().await;
            if self.inner.stop.is_cancelled() {
                return;
            }
            if began.elapsed() > LAST_PAUSE * 2 {
                pause = FIRST_PAUSE;
                was_lost = false;
            }
            if let Err(reason) = result
                && !std::mem::replace(&mut was_lost, true)
            {
                tracing::info!(peer = self.node_id, reason, "a coordinator is out of reach");
            }
            self.drop_waiting();
            self.inner.raft.report_unreachable(self.node_id);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.inner.stop.cancelled() => return,
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    fn drop_waiting(&mut self) {
        while let Ok(message) = self.receiver.try_recv() {
            self.bytes.fetch_sub(weight(&message), Ordering::Relaxed);
        }
    }

    /// One stream, until it breaks or the peer moved.
    async fn connection(&mut self) -> Result<(), String> {
        let clients = self.inner.clients.clone();
        let peer = clients.directory.peer(self.node_id);
        let mut client = clients.client(self.node_id).map_err(|e| e.to_string())?;
        let (sender, stream) = mpsc::channel(16);
        let call = client.exchange(ReceiverStream::new(stream));
        tokio::pin!(call);
        let stop = self.inner.stop.clone();
        loop {
            let batch = tokio::select! {
                result = &mut call => return result.map(|_| ()).map_err(|s| s.message().to_owned()),
                batch = self.next_batch() => batch,
                () = stop.cancelled() => return Ok(()),
            };
            tokio::select! {
                result = &mut call => return result.map(|_| ()).map_err(|s| s.message().to_owned()),
                sent = sender.send(batch) => if sent.is_err() {
                    return Err("the stream ended".to_owned());
                },
                () = stop.cancelled() => return Ok(()),
            }
            if clients.directory.peer(self.node_id) != peer {
                return Ok(());
            }
        }
    }

    async fn next_batch(&mut self) -> RaftBatch {
        let first = tokio::time::timeout(SIGN_OF_LIFE, self.receiver.recv()).await;
        let mut messages = Vec::new();
        let mut size = 0;
        let mut next = first.ok().flatten();
        while let Some(message) = next {
            let bytes = weight(&message);
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            size += bytes;
            messages.push(message);
            next = if size < BATCH_BYTES {
                self.receiver.try_recv().ok()
            } else {
                None
            };
        }
        RaftBatch {
            envelope: Some(self.inner.clients.envelope(self.node_id)),
            messages,
        }
    }
}

/// A member, or one that was taken out and that Raft's membership still has: a majority of the
/// old membership has to agree to the new one, and that one may be needed for it.
fn spoken_to<'a>(
    cluster: &'a Cluster,
    membership: &Membership,
    node_id: u64,
) -> Option<&'a Member> {
    let former = || cluster.former.get(&node_id);
    let member = cluster.members.get(&node_id);
    member.or_else(|| former().filter(|_| membership.contains(node_id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::View;
    use tidegate_coordinator_core::State;
    use tidegate_coordinator_core::state::{
        Addresses, CaRecord, Cluster, Member, SealedKey, Table,
    };
    use tidegate_shared::id::Name;
    use tidegate_shared::time::Span;

    const JOINED: Timestamp = Timestamp::from_millis(1_700_000_000_500);

    fn directory() -> Directory {
        let member = Member {
            name: Name::new("c2").unwrap(),
            addresses: Addresses::default(),
            version: String::new(),
            level: 1,
            joined_at: JOINED,
        };
        let cluster = Cluster {
            id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            trust_domain: "td".to_owned(),
            level: 1,
            epoch: 0,
            next_node: 4,
            former: Table::new(),
            members: Table::unit(3, member),
            ca: CaRecord {
                certificate: String::new(),
                key: SealedKey {
                    nonce: Vec::new(),
                    sealed: Vec::new(),
                },
            },
        };
        let state = State {
            cluster: Some(cluster.into()),
            ..State::default()
        };
        let view = View {
            state,
            index: 1,
            term: 1,
            membership: Membership::default(),
        };
        let identity = Identity {
            cluster_id: String::new(),
            trust_domain: "td".to_owned(),
            node_id: 1,
            name: "c1".to_owned(),
            peers: Vec::new(),
        };
        let views = tokio::sync::watch::channel(Arc::new(view)).1;
        Directory::new(identity, String::new(), views)
    }

    #[test]
    fn a_certificate_of_a_removed_member_does_not_speak_for_the_next_of_its_name() {
        let directory = directory();
        let issued = |issued_at: Timestamp| Validity {
            issued_at,
            not_after: issued_at + Span::from_hours(24),
        };
        let own = issued(Timestamp::from_millis(JOINED.millis() - 500));
        assert_eq!(directory.admit(3, "c2", own, ""), Ok(()));
        assert!(directory.is_member(3, "c2", own));
        let old = issued(Timestamp::from_millis(JOINED.millis() - 60_000));
        let refused = directory.admit(3, "c2", old, "").unwrap_err();
        assert!(refused.contains("the time before"), "{refused}");
        assert!(!directory.is_member(3, "c2", old));
    }
}
