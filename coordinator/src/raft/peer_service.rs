//! The `peer/v1` service: what other members send here.
//!
//! Every message is checked before anything is done with it: the cluster id, that it is for this
//! node, and that the sender's certificate names the node that it says it is. Refusals are told to
//! the sender and logged once per peer and minute.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tidegate_proto::peer::v1::peer_server::Peer as PeerApi;
use tidegate_proto::peer::v1::{
    AskReply, AskRequest, Envelope, ExchangeEnd, HistoryRequest, ProposeReply, ProposeRequest,
    RaftBatch, RaftMessage, SnapshotPart, SnapshotReceipt, raft_message, snapshot_part,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::driver::RaftHandle;
use super::peer_history;
use super::transport::{Directory, PeerClients};
use crate::ca::Validity;
use crate::clock::Clock;
use crate::propose::Proposer;
use crate::storage::data_dir::Peer;
use crate::storage::history::HistoryStore;
use crate::storage::log::Mark;
use crate::storage::snapshot::SnapshotStore;
use crate::tls::ConnectionInfo;

/// A clock further off than this is wrong.
pub const SKEW_LIMIT_MS: u64 = 2_000;
/// A peer's clock counts this long after it was last heard.
const CLOCK_FRESH: Duration = Duration::from_secs(5);
const LOG_EVERY: Duration = Duration::from_secs(60);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the peers' clocks say about the own one.
pub struct ClockWatch {
    clock: Clock,
    own: u64,
    /// Offset in milliseconds and when it was heard.
    heard: Mutex<BTreeMap<u64, (i64, Duration)>>,
}

impl ClockWatch {
    /// The watch of node `own`.
    #[must_use]
    pub fn new(clock: Clock, own: u64) -> ClockWatch {
        ClockWatch {
            clock,
            own,
            heard: Mutex::new(BTreeMap::new()),
        }
    }

    /// `peer` said just now that its clock shows `clock_ms`.
    pub fn note(&self, peer: u64, clock_ms: u64) {
        let offset = i64::try_from(i128::from(clock_ms) - i128::from(self.clock.wall_ms()))
            .unwrap_or(i64::MAX);
        lock(&self.heard).insert(peer, (offset, self.clock.monotonic()));
    }

    /// By how many milliseconds the own clock is off, if a majority of `voters` is more than
    /// [`SKEW_LIMIT_MS`] away from it.
    #[must_use]
    pub fn skew(&self, voters: &[u64]) -> Option<i64> {
        let now = self.clock.monotonic();
        let mut far: Vec<i64> = lock(&self.heard)
            .iter()
            .filter(|(peer, (offset, heard))| {
                **peer != self.own
                    && voters.contains(peer)
                    && now.saturating_sub(*heard) < CLOCK_FRESH
                    && offset.unsigned_abs() > SKEW_LIMIT_MS
            })
            .map(|(_, (offset, _))| -*offset)
            .collect();
        far.sort_unstable();
        (!voters.is_empty() && far.len() > voters.len() / 2).then(|| far[far.len() / 2])
    }
}

/// The answer to an ask, when it comes.
pub type AskFuture = Pin<Box<dyn Future<Output = Result<Bytes, Status>> + Send>>;

/// Answers what other members ask.
pub trait AskHandler: Send + Sync {
    /// Answers `payload`, which `from` sent.
    fn ask(&self, from: Peer, payload: Bytes) -> AskFuture;
}

impl<F> AskHandler for F
where
    F: Fn(Peer, Bytes) -> AskFuture + Send + Sync,
{
    fn ask(&self, from: Peer, payload: Bytes) -> AskFuture {
        self(from, payload)
    }
}

/// Who answers which topic. Parts register at their start.
#[derive(Clone, Default)]
pub struct Asks(Arc<RwLock<HashMap<String, Arc<dyn AskHandler>>>>);

impl Asks {
    /// From now on `handler` answers `topic`.
    pub fn register(&self, topic: &str, handler: Arc<dyn AskHandler>) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(topic.to_owned(), handler);
    }

    fn find(&self, topic: &str) -> Option<Arc<dyn AskHandler>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(topic)
            .cloned()
    }
}

/// See the module's text.
pub struct PeerService {
    pub(crate) directory: Arc<Directory>,
    pub(crate) raft: RaftHandle,
    pub(crate) snapshots: SnapshotStore,
    pub(crate) history: HistoryStore,
    pub(crate) clients: PeerClients,
    pub(crate) proposer: Proposer,
    pub(crate) clocks: Arc<ClockWatch>,
    pub(crate) asks: Asks,
    pub(crate) clock: Clock,
    pub(crate) stop: CancellationToken,
    pub(crate) refusals: Mutex<HashMap<String, Duration>>,
    /// One snapshot comes in at a time.
    pub(crate) incoming: tokio::sync::Mutex<()>,
}

/// Who calls, by its certificate.
struct Certified {
    name: String,
    validity: Validity,
}

impl PeerService {
    fn refuse(&self, who: &str, reason: String) -> Status {
        let now = self.clock.monotonic();
        let mut refusals = lock(&self.refusals);
        refusals.retain(|_, said| now.saturating_sub(*said) < LOG_EVERY);
        if !refusals.contains_key(who) {
            refusals.insert(who.to_owned(), now);
            tracing::warn!(peer = who, reason, "a peer was refused");
        }
        Status::permission_denied(reason)
    }

    /// What the caller's certificate says.
    fn caller<T>(&self, request: &Request<T>) -> Result<Certified, Status> {
        let info = request.extensions().get::<ConnectionInfo>();
        let Some(info) = info else {
            return Err(Status::unauthenticated("the connection has no certificate"));
        };
        let who = || {
            info.identity
                .as_ref()
                .map_or_else(|| info.remote.to_string(), ToString::to_string)
        };
        match &info.identity {
            Some(id)
                if id.kind == "coordinator"
                    && id.trust_domain == self.directory.identity().trust_domain =>
            {
                let validity = info
                    .validity
                    .ok_or_else(|| Status::unauthenticated("the certificate cannot be read"))?;
                Ok(Certified {
                    name: id.name.clone(),
                    validity,
                })
            }
            _ => Err(self.refuse(
                &who(),
                "only coordinators of this cluster may call the peer listener".to_owned(),
            )),
        }
    }

    /// Checks where a message comes from and goes to.
    fn admit(&self, certified: &Certified, envelope: Option<&Envelope>) -> Result<Peer, Status> {
        let caller = certified.name.as_str();
        let identity = self.directory.identity();
        let Some(envelope) = envelope else {
            return Err(self.refuse(caller, "the message has no envelope".to_owned()));
        };
        if envelope.cluster_id != identity.cluster_id {
            return Err(self.refuse(
                caller,
                format!(
                    "the message is of cluster {}, this node belongs to {}",
                    envelope.cluster_id, identity.cluster_id
                ),
            ));
        }
        if envelope.to != identity.node_id {
            return Err(self.refuse(
                caller,
                format!(
                    "the message is for node {}, this is node {}",
                    envelope.to, identity.node_id
                ),
            ));
        }
        if envelope.from == identity.node_id || envelope.from == 0 {
            return Err(self.refuse(
                caller,
                format!("`{caller}` cannot speak as node {}", envelope.from),
            ));
        }
        self.directory
            .admit(envelope.from, caller, certified.validity, &envelope.address)
            .map_err(|reason| self.refuse(caller, reason))?;
        self.clocks.note(envelope.from, envelope.clock_ms);
        Ok(Peer {
            node_id: envelope.from,
            name: caller.to_owned(),
            address: envelope.address.clone(),
        })
    }

    /// As [`Self::admit`], for members alone: a node that this one has not heard of yet tries again.
    fn admit_member(
        &self,
        certified: &Certified,
        envelope: Option<&Envelope>,
    ) -> Result<Peer, Status> {
        let peer = self.admit(certified, envelope)?;
        let caller = certified.name.as_str();
        if !self
            .directory
            .is_member(peer.node_id, caller, certified.validity)
        {
            let reason = format!(
                "`{caller}` is not a member of the cluster as node {}",
                peer.node_id
            );
            return Err(self.refuse(caller, reason));
        }
        Ok(peer)
    }

    fn check_ends(&self, caller: &str, from: u64, message: &RaftMessage) -> Result<(), Status> {
        if message.from != from || message.to != self.directory.identity().node_id {
            return Err(self.refuse(
                caller,
                format!(
                    "node {from} sent a message from node {} to node {}",
                    message.from, message.to
                ),
            ));
        }
        Ok(())
    }

    async fn exchange_loop(
        &self,
        caller: Certified,
        mut stream: Streaming<RaftBatch>,
    ) -> Result<(), Status> {
        while let Some(batch) = stream.message().await? {
            let peer = self.admit(&caller, batch.envelope.as_ref())?;
            for message in batch.messages {
                self.check_ends(&caller.name, peer.node_id, &message)?;
                if message.r#type() == raft_message::Type::Snapshot {
                    return Err(
                        self.refuse(&caller.name, "a snapshot came without its file".to_owned())
                    );
                }
                self.raft.step(message);
            }
        }
        Ok(())
    }

    async fn take_snapshot(
        &self,
        caller: Certified,
        mut stream: Streaming<SnapshotPart>,
    ) -> Result<(), Status> {
        let head = match stream.message().await?.and_then(|p| p.part) {
            Some(snapshot_part::Part::Head(head)) => head,
            Some(snapshot_part::Part::Chunk(_)) | None => {
                return Err(Status::invalid_argument(
                    "the head of the snapshot is missing",
                ));
            }
        };
        let peer = self.admit(&caller, head.envelope.as_ref())?;
        let message = head
            .message
            .filter(|m| m.r#type() == raft_message::Type::Snapshot)
            .ok_or_else(|| Status::invalid_argument("the head has no snapshot message"))?;
        self.check_ends(&caller.name, peer.node_id, &message)?;
        let descriptor = message
            .snapshot
            .clone()
            .ok_or_else(|| Status::invalid_argument("the snapshot has no description"))?;
        let _alone = self.incoming.lock().await;
        let failed = |e: &dyn std::fmt::Display| Status::internal(e.to_string());
        let mut incoming = self
            .snapshots
            .receive(peer.node_id)
            .map_err(|e| failed(&e))?;
        while let Some(part) = stream.message().await? {
            let Some(snapshot_part::Part::Chunk(chunk)) = part.part else {
                return Err(Status::invalid_argument("a second head in one snapshot"));
            };
            incoming.push(&chunk).map_err(|e| failed(&e))?;
        }
        let mark = Mark {
            index: descriptor.index,
            term: descriptor.term,
        };
        let checked = tokio::task::spawn_blocking(move || incoming.finish(mark, descriptor.length))
            .await
            .map_err(|e| failed(&e))?
            .map_err(|e| failed(&e))?;
        // A node may start from a snapshot in its place, so what has left the state comes first.
        if let Some(extent) = checked.head().history {
            peer_history::fetch(
                &self.clients,
                &self.history,
                peer.node_id,
                extent,
                mark.index,
            )
            .await?;
        }
        let file = tokio::task::spawn_blocking(move || checked.publish())
            .await
            .map_err(|e| failed(&e))?
            .map_err(|e| failed(&e))?;
        tracing::info!(index = file.head.mark.index, bytes = file.length, from = %caller.name, "a snapshot arrived");
        self.raft.step(message);
        Ok(())
    }
}

#[tonic::async_trait]
impl PeerApi for PeerService {
    async fn exchange(
        &self,
        request: Request<Streaming<RaftBatch>>,
    ) -> Result<Response<ExchangeEnd>, Status> {
        let caller = self.caller(&request)?;
        tokio::select! {
            result = self.exchange_loop(caller, request.into_inner()) => result?,
            () = self.stop.cancelled() => return Err(Status::unavailable("this coordinator is stopping")),
        }
        Ok(Response::new(ExchangeEnd {}))
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<SnapshotReceipt>, Status> {
        let caller = self.caller(&request)?;
        tokio::select! {
            result = self.take_snapshot(caller, request.into_inner()) => result?,
            () = self.stop.cancelled() => return Err(Status::unavailable("this coordinator is stopping")),
        }
        Ok(Response::new(SnapshotReceipt {}))
    }

    type HistoryStream = peer_history::Rows;

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<Self::HistoryStream>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        self.admit_member(&caller, request.envelope.as_ref())?;
        Ok(Response::new(peer_history::send(
            self.history.clone(),
            &request,
        )))
    }

    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeReply>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        self.admit_member(&caller, request.envelope.as_ref())?;
        Ok(Response::new(
            self.proposer.take_forwarded(&request.proposals).await,
        ))
    }

    async fn ask(&self, request: Request<AskRequest>) -> Result<Response<AskReply>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let peer = self.admit_member(&caller, request.envelope.as_ref())?;
        let handler = self.asks.find(&request.topic).ok_or_else(|| {
            Status::unimplemented(format!("nobody here answers `{}`", request.topic))
        })?;
        let payload = handler.ask(peer, request.payload).await?;
        Ok(Response::new(AskReply { payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_wrong_when_most_others_disagree() {
        let clock = Clock::system();
        let watch = ClockWatch::new(clock.clone(), 1);
        let now = clock.wall_ms();
        watch.note(2, now + 10_000);
        assert_eq!(
            watch.skew(&[1, 2, 3]),
            None,
            "one of three may be wrong itself"
        );
        watch.note(3, now + 9_000);
        let off = watch.skew(&[1, 2, 3]).unwrap();
        assert!((-10_001..=-8_900).contains(&off), "{off}");
        watch.note(3, now + 100);
        assert_eq!(watch.skew(&[1, 2, 3]), None);
        watch.note(3, now + 9_000);
        assert_eq!(watch.skew(&[1, 2]), None, "of two nobody can tell");
    }
}
