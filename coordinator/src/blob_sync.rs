//! Blobs on every coordinator: who holds which, spreading an upload, and fetching what is missing.
//!
//! An upload answers once a majority holds the blob; the rest catches up here. A new or restored
//! member fetches what the releases in the state need. The leader makes a release `ready` once
//! its blobs are on a majority.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate_coordinator_core::command::{Command, SetReleaseStatus};
use tidegate_coordinator_core::{Actor, State, collection};
use tidegate_shared::digest::Digest;
use tidegate_shared::spec::ReleaseStatus;
use tokio_util::io::ReaderStream;
use tonic::body::Body;
use tower::ServiceExt;

use crate::api::Context;
use crate::pace::{self, Broken, Pace, Progress};
use crate::raft::peer_service::{AskFuture, AskHandler};
use crate::replica::Glimpses;
use crate::storage::blobs::BlobError;
use crate::storage::codec;
use crate::storage::data_dir::Peer;
use crate::tls::{Expected, Tls};

/// The topic under which coordinators ask each other for sizes of blobs.
pub const TOPIC: &str = "blobs";
/// Marks an upload that another coordinator passes on.
pub const PASSED_ON: &str = "tidegate-passed-on";

/// For the answer to begin.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const ASK_LIMIT: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Between two looks at the releases.
const REST: Duration = Duration::from_millis(20);

/// Which coordinators hold which blobs.
#[derive(Debug, Default)]
pub struct Holders {
    voters: usize,
    /// Digest → (coordinator, size).
    found: BTreeMap<Digest, Vec<(String, u64)>>,
}

impl Holders {
    /// Bytes of a blob that anybody holds.
    #[must_use]
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        self.found.get(digest)?.first().map(|(_, size)| *size)
    }

    /// Names of the coordinators that hold it.
    #[must_use]
    pub fn names(&self, digest: &Digest) -> Vec<String> {
        let found = self.found.get(digest);
        found.map_or_else(Vec::new, |found| {
            found.iter().map(|(name, _)| name.clone()).collect()
        })
    }

    /// Whether more than half of the members hold it.
    #[must_use]
    pub fn has_majority(&self, digest: &Digest) -> bool {
        self.found.get(digest).map_or(0, Vec::len) > self.voters / 2
    }
}

/// Asks every coordinator, this one too.
pub async fn holders(context: &Context, digests: &[Digest]) -> Holders {
    let others = context.peers.directory().others();
    let mut holders = Holders {
        voters: others.len() + 1,
        found: BTreeMap::new(),
    };
    for digest in digests.iter().collect::<BTreeSet<_>>() {
        if let Some(size) = context.blobs.size(digest).await {
            // Who asks may be about to make a release of it.
            context.blobs.claim(digest);
            let own = context.identity.name.clone();
            holders.found.entry(*digest).or_default().push((own, size));
        }
    }
    let Ok(payload) = codec::encode(digests) else {
        return holders;
    };
    let payload = Bytes::from(payload);
    let mut asks = tokio::task::JoinSet::new();
    for node in others {
        let (peers, payload) = (context.peers.clone(), payload.clone());
        asks.spawn(async move {
            let answer = peers.ask(node, TOPIC, payload, ASK_LIMIT).await;
            let name = peers.directory().peer(node).map(|peer| peer.name);
            (name, answer)
        });
    }
    while let Some(answer) = asks.join_next().await {
        let Ok((Some(name), Ok(answer))) = answer else {
            continue;
        };
        let Ok(sizes) = codec::decode::<BTreeMap<Digest, u64>>(&answer) else {
            continue;
        };
        for (digest, size) in sizes {
            let found = holders.found.entry(digest).or_default();
            found.push((name.clone(), size));
        }
    }
    holders
}

/// Answers [`TOPIC`].
#[must_use]
pub fn tell_sizes(context: Arc<Context>) -> Arc<dyn AskHandler> {
    Arc::new(move |_from: Peer, payload: Bytes| -> AskFuture {
        let context = context.clone();
        Box::pin(async move {
            let digests: Vec<Digest> = codec::decode(&payload)
                .map_err(|error| tonic::Status::invalid_argument(error.to_string()))?;
            let mut sizes = BTreeMap::new();
            for digest in digests {
                if let Some(size) = context.blobs.size(&digest).await {
                    context.blobs.claim(&digest);
                    sizes.insert(digest, size);
                }
            }
            codec::encode(&sizes)
                .map(Bytes::from)
                .map_err(|error| tonic::Status::internal(error.to_string()))
        })
    })
}

/// Why a blob did not get from one coordinator to another.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The other one has no address.
    #[error("the coordinator has no address yet")]
    Unknown,
    /// It could not be reached, or broke off.
    #[error("{0}")]
    Transport(String),
    /// It refused.
    #[error("it answered {0}")]
    Refused(http::StatusCode),
    /// It cannot be stored or read here.
    #[error(transparent)]
    Store(#[from] BlobError),
}

fn transport(error: impl std::fmt::Display) -> TransferError {
    TransferError::Transport(error.to_string())
}

/// Speaks HTTP to other coordinators with this one's certificate.
#[derive(Clone)]
pub struct BlobClient {
    tls: Tls,
}

impl BlobClient {
    /// With the certificates of `tls`.
    #[must_use]
    pub const fn new(tls: Tls) -> Self {
        Self { tls }
    }

    async fn call(
        &self,
        context: &Context,
        node: u64,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, TransferError> {
        let (name, address) = {
            let view = context.query.stale();
            let member = view
                .state
                .cluster
                .as_ref()
                .and_then(|cluster| cluster.members.get(&node))
                .ok_or(TransferError::Unknown)?;
            (member.name.to_string(), member.addresses.http.clone())
        };
        let channel = self
            .tls
            .channel(&address, Expected::Coordinator(name))
            .map_err(transport)?;
        channel.oneshot(request).await.map_err(transport)
    }

    /// Sends a blob of this store to another coordinator.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn push(
        &self,
        context: &Context,
        node: u64,
        digest: Digest,
    ) -> Result<(), TransferError> {
        let size = context.blobs.size(&digest).await.unwrap_or(0);
        let file = context.blobs.read(digest, 0, size).await?;
        let progress = Progress::default();
        let counted = progress.clone();
        let body = http_body_util::StreamBody::new(tokio_stream::StreamExt::map(
            ReaderStream::with_capacity(file, 64 * 1024),
            move |piece| {
                let piece = piece.inspect(|bytes| counted.add(bytes.len()));
                piece.map(hyper::body::Frame::data)
            },
        ));
        let request = http::Request::put(format!("/v1/blobs/{digest}"))
            .header(http::header::CONTENT_LENGTH, size)
            .header(PASSED_ON, "1")
            .body(Body::new(body))
            .map_err(transport)?;
        let response = tokio::select! {
            response = self.call(context, node, request) => response?,
            () = progress.stalls(Pace::default()) => {
                return Err(transport("it did not take the bytes in time"));
            }
        };
        if response.status().is_success() {
            Ok(())
        } else {
            Err(TransferError::Refused(response.status()))
        }
    }

    /// Fetches a blob from another coordinator into this store.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn fetch(
        &self,
        context: &Context,
        node: u64,
        digest: Digest,
    ) -> Result<(), TransferError> {
        let request = http::Request::get(format!("/v1/blobs/{digest}"))
            .body(Body::empty())
            .map_err(transport)?;
        let asked = self.call(context, node, request);
        let response = tokio::time::timeout(ANSWER_LIMIT, asked)
            .await
            .map_err(|_| transport("it did not answer in 30 s"))??;
        if !response.status().is_success() {
            return Err(TransferError::Refused(response.status()));
        }
        let mut incoming = context.blobs.receive(digest).await?;
        let mut body = response.into_body();
        pace::receive(&mut body, &mut incoming, Pace::default())
            .await
            .map_err(|broken| match broken {
                Broken::Store(error) => TransferError::Store(error),
                Broken::Off(_) | Broken::Slow(_) => transport(broken),
            })?;
        incoming.finish().await?;
        Ok(())
    }
}

/// Spreads a blob of this store until a majority holds it; whether it does within `limit`. Goes on
/// with the others afterwards.
pub async fn spread(
    context: &Arc<Context>,
    client: &BlobClient,
    digest: Digest,
    limit: Duration,
) -> bool {
    let others = context.peers.directory().others();
    let needed = others.len().div_ceil(2);
    let (sender, mut receiver) = tokio::sync::mpsc::channel(others.len().max(1));
    for node in others {
        let (context, client, sender) = (context.clone(), client.clone(), sender.clone());
        tokio::spawn(async move {
            match client.push(&context, node, digest).await {
                Ok(()) => {
                    sender.send(()).await.ok();
                }
                Err(error) => {
                    tracing::warn!(node, %digest, %error, "a coordinator did not take a blob; it will fetch it");
                }
            }
        });
    }
    drop(sender);
    let wait = async {
        for _ in 0..needed {
            if receiver.recv().await.is_none() {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(limit, wait).await.unwrap_or(false)
}

/// Fetches what is missing here, and on the leader finishes releases whose blobs have arrived;
/// until the node stops.
pub async fn catch_up(context: Arc<Context>, client: BlobClient) {
    let mut views = Glimpses::new(context.query.views(), REST);
    let mut timer = tokio::time::interval(LOOK_EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen = None;
    loop {
        tokio::select! {
            _ = timer.tick() => {}
            next = views.next() => {
                let Ok(view) = next else { return };
                let releases = view.state.releases.clone();
                if seen.as_ref().is_some_and(|seen| releases.ptr_eq(seen)) {
                    continue;
                }
                seen = Some(releases);
            }
            () = context.stop.cancelled() => return,
        }
        let view = context.query.stale();
        for digest in collection::needed(&view.state) {
            if context.blobs.size(&digest).await.is_none() {
                fetch_anywhere(&context, &client, digest).await;
            }
        }
        if context.leads() {
            finish_building(&context, &view.state).await;
        }
    }
}

async fn fetch_anywhere(context: &Arc<Context>, client: &BlobClient, digest: Digest) {
    for node in context.peers.directory().others() {
        match client.fetch(context, node, digest).await {
            Ok(()) => {
                tracing::info!(%digest, node, "a blob was fetched");
                return;
            }
            Err(error) => tracing::debug!(%digest, node, %error, "a blob is not there"),
        }
    }
}

async fn finish_building(context: &Arc<Context>, state: &State) {
    for ((application, version), release) in &state.releases {
        if release.status != ReleaseStatus::Building {
            continue;
        }
        let stored = || {
            let assets = release.spec.assets.iter();
            assets.filter(|asset| asset.source.needs_store())
        };
        let digests: Vec<Digest> = stored().map(|asset| asset.sha256).collect();
        let holders = holders(context, &digests).await;
        let is_whole = stored().all(|asset| {
            holders.has_majority(&asset.sha256) && holders.size(&asset.sha256) == Some(asset.size)
        });
        let Ok(key) = context.own_request() else {
            return;
        };
        if !is_whole {
            continue;
        }
        let command = Command::SetReleaseStatus(SetReleaseStatus {
            application: application.clone(),
            version: version.clone(),
            status: ReleaseStatus::Ready,
            reason: "its assets are stored".to_owned(),
            expected_revision: Some(release.meta.revision),
        });
        if let Err(error) = context.propose(Actor::System, key, command).await {
            tracing::debug!(%application, %version, %error, "a release is not ready yet");
        }
    }
}
