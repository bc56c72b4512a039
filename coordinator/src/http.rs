//! The HTTP listener: blobs of the built-in store, health, and figures for people. Mutual TLS.
//!
//! `PUT /v1/blobs/<sha256>` by people (and by coordinators among themselves), `GET` and `HEAD`
//! with `Range` by people, coordinators, and by agents for what is assigned to them. Errors are a
//! line of JSON: `{"code": "TG-…", "reason": "…", "message": "…"}`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use http::{HeaderMap, Request, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tidegate_coordinator_core::desired::desired;
use tidegate_coordinator_core::people::Rights;
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::spec::Role;
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_util::io::ReaderStream;

use crate::api::Context;
use crate::api::authn::{Caller, Kind, Refused};
use crate::blob_sync::{self, BlobClient, PASSED_ON};
use crate::health;
use crate::pace::{self, Broken, Pace};
use crate::storage::blobs::BlobError;
use crate::tls::{ClientAuth, ConnectionInfo, Tls};

/// An upload waits so long for a majority.
const SPREAD_LIMIT: Duration = Duration::from_secs(60);
#[derive(Clone)]
struct Front {
    context: Arc<Context>,
    client: BlobClient,
}

/// A refusal as JSON.
struct Refusal {
    status: StatusCode,
    reason: Reason,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            status,
            reason,
            message: message.into(),
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let status = if refused.reason == Reason::Unauthenticated {
            StatusCode::UNAUTHORIZED
        } else {
            StatusCode::FORBIDDEN
        };
        Self::new(status, refused.reason, refused.message)
    }
}

impl From<BlobError> for Refusal {
    fn from(error: BlobError) -> Self {
        let (status, reason) = match &error {
            BlobError::DigestMismatch { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, Reason::DigestMismatch)
            }
            BlobError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, Reason::TooLarge),
            BlobError::DiskFull { .. } => (StatusCode::INSUFFICIENT_STORAGE, Reason::StoreFull),
            BlobError::Io { .. } => (StatusCode::INTERNAL_SERVER_ERROR, Reason::Internal),
        };
        Self::new(status, reason, error.to_string())
    }
}

impl From<Broken> for Refusal {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Store(error) => error.into(),
            Broken::Off(_) | Broken::Slow(_) => Self::new(
                StatusCode::BAD_REQUEST,
                Reason::InvalidRequest,
                format!("{broken}; nothing was kept"),
            ),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::json!({
            "code": self.reason.code(),
            "reason": self.reason.as_str(),
            "message": self.message,
            "hint": self.reason.hint(),
        });
        (self.status, axum::Json(body)).into_response()
    }
}

/// Serves until the node stops.
pub async fn serve(context: Arc<Context>, tls: Tls, listener: TcpListener, client: BlobClient) {
    let stop = context.stop.clone();
    let router = Router::new()
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/blobs/{digest}", get(download).put(upload))
        .with_state(Front { context, client });
    let mut incoming = tls.incoming(listener, ClientAuth::Required);
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let connection = tokio::select! {
            connection = incoming.next() => connection,
            () = stop.cancelled() => break,
        };
        let Some(Ok(connection)) = connection else {
            break;
        };
        let info = connection.info().clone();
        let router = router.clone();
        let service = tower::service_fn(move |mut request: Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(info.clone());
            let router = router.clone();
            async move { tower::ServiceExt::oneshot(router, request.map(Body::new)).await }
        });
        let stop = stop.clone();
        connections.spawn(async move {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder
                .http2()
                .initial_stream_window_size(1024 * 1024)
                .initial_connection_window_size(4 * 1024 * 1024);
            let serving = builder
                .serve_connection(TokioIo::new(connection), TowerToHyperService::new(service));
            tokio::pin!(serving);
            let result = tokio::select! {
                result = &mut serving => result,
                () = stop.cancelled() => {
                    serving.as_mut().graceful_shutdown();
                    // Transfers get a moment to end.
                    let ended = tokio::time::timeout(Duration::from_secs(3), serving).await;
                    ended.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "an HTTP connection ended");
            }
        });
    }
    connections.close();
    connections.wait().await;
}

async fn healthy() -> &'static str {
    "ok\n"
}

async fn ready(State(front): State<Front>) -> Result<&'static str, Refusal> {
    match front.context.query.linearizable().await {
        Ok(_) => Ok("ready\n"),
        Err(error) => Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            error.reason(),
            error.to_string(),
        )),
    }
}

/// Who calls, as the state knows it.
async fn admit(front: &Front, info: ConnectionInfo) -> Result<Caller, Refusal> {
    let context = &front.context;
    let caller = Caller::of_connection(&info, &context.identity.trust_domain, context.now())?;
    if caller.kind == Kind::Anonymous {
        return Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            Reason::Unauthenticated,
            "this needs a client certificate of the cluster",
        ));
    }
    if caller.check_known(&context.query.stale().state).is_err() {
        let view = context.query.linearizable().await.map_err(|error| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                error.reason(),
                error.to_string(),
            )
        })?;
        caller.check_known(&view.state)?;
    }
    Ok(caller)
}

fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse()
        .map_err(|error: tidegate_shared::digest::DigestError| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                Reason::InvalidField,
                error.to_string(),
            )
        })
}

/// Whether a caller may fetch a blob: agents only what is assigned to them.
async fn may_fetch(front: &Front, caller: &Caller, digest: &Digest) -> Result<(), Refusal> {
    let (Kind::Agent, Some(name)) = (caller.kind, &caller.name) else {
        return Ok(());
    };
    let is_assigned = |state: &tidegate_coordinator_core::State| {
        desired(state, name)
            .items
            .iter()
            .any(|item| item.asset.sha256 == *digest)
    };
    if is_assigned(&front.context.query.stale().state) {
        return Ok(());
    }
    // This node may be behind.
    let view = front.context.query.linearizable().await.map_err(|error| {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            error.reason(),
            error.to_string(),
        )
    })?;
    if is_assigned(&view.state) {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::FORBIDDEN,
        Reason::PermissionDenied,
        format!("blob {digest} is not assigned to agent \"{name}\""),
    ))
}

/// The part of a blob that a `Range` header asks for: (start, length); none: all of it.
fn range(headers: &HeaderMap, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some(text) = headers.get(header::RANGE).and_then(|v| v.to_str().ok()) else {
        return Ok(None);
    };
    let Some(spec) = text.strip_prefix("bytes=").filter(|s| !s.contains(',')) else {
        // Other units and lists of ranges may be ignored (RFC 9110 §14.2).
        return Ok(None);
    };
    let Some((from, to)) = spec.trim().split_once('-') else {
        return Ok(None);
    };
    let (start, end) = match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(start), Ok(end)) if start <= end => (start, end.min(size.saturating_sub(1))),
        (Ok(start), Err(_)) if to.is_empty() => (start, size.saturating_sub(1)),
        (Err(_), Ok(last)) if from.is_empty() && last > 0 => {
            (size.saturating_sub(last), size.saturating_sub(1))
        }
        _ => return Ok(None),
    };
    if start >= size {
        return Err(());
    }
    Ok(Some((start, end - start + 1)))
}

/// Whether a person has a role anywhere; everybody else is held elsewhere.
async fn has_role(front: &Front, caller: &Caller, role: Role) -> Result<(), Refusal> {
    let (Kind::User, Some(name)) = (caller.kind, &caller.name) else {
        return Ok(());
    };
    let holds = |state: &tidegate_coordinator_core::State| Rights::of(state, name).anywhere(role);
    if holds(&front.context.query.stale().state) {
        return Ok(());
    }
    let newest = front.context.query.linearizable().await;
    if newest.is_ok_and(|view| holds(&view.state)) {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::FORBIDDEN,
        Reason::RoleNeeded,
        format!("user \"{name}\" needs the role {role} for this"),
    ))
}

async fn metrics(
    State(front): State<Front>,
    Extension(info): Extension<ConnectionInfo>,
) -> Result<Response, Refusal> {
    let caller = admit(&front, info).await?;
    has_role(&front, &caller, Role::Viewer).await?;
    match caller.kind {
        Kind::User | Kind::Coordinator => Ok(health::exposition(&front.context).await),
        Kind::Agent | Kind::Anonymous => Err(Refusal::new(
            StatusCode::FORBIDDEN,
            Reason::PermissionDenied,
            "figures are for people",
        )),
    }
}

async fn download(
    State(front): State<Front>,
    Path(digest): Path<String>,
    Extension(info): Extension<ConnectionInfo>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let digest = parse_digest(&digest)?;
    let caller = admit(&front, info).await?;
    may_fetch(&front, &caller, &digest).await?;
    has_role(&front, &caller, Role::Viewer).await?;
    let blobs = &front.context.blobs;
    if blobs.size(&digest).await.is_none() && caller.kind != Kind::Coordinator {
        fetch_first(&front, digest).await;
    }
    let Some(size) = blobs.size(&digest).await else {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            Reason::BlobMissing,
            format!("no blob {digest} is stored here"),
        ));
    };
    let part = range(&headers, size);
    let builder = Response::builder()
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::ETAG, format!("\"{digest}\""));
    let failed = |error: http::Error| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Reason::Internal,
            error.to_string(),
        )
    };
    let (start, length, builder) = match part {
        Err(()) => {
            return builder
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(header::CONTENT_RANGE, format!("bytes */{size}"))
                .body(Body::empty())
                .map_err(failed);
        }
        Ok(None) => (0, size, builder.status(StatusCode::OK)),
        Ok(Some((start, length))) => {
            let content = format!("bytes {start}-{}/{size}", start + length - 1);
            let builder = builder
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, content);
            (start, length, builder)
        }
    };
    let builder = builder.header(header::CONTENT_LENGTH, length);
    // The router answers HEAD with the same headers and drops the body.
    let file = blobs.read(digest, start, length).await?;
    let stream = ReaderStream::with_capacity(file, 64 * 1024);
    builder.body(Body::from_stream(stream)).map_err(failed)
}

/// A coordinator that joined lately may lack a blob that others hold.
async fn fetch_first(front: &Front, digest: Digest) {
    for node in front.context.peers.directory().others() {
        match front.client.fetch(&front.context, node, digest).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%digest, node, %error, "a blob is not there"),
        }
    }
}

async fn upload(
    State(front): State<Front>,
    Path(digest): Path<String>,
    Extension(info): Extension<ConnectionInfo>,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let digest = parse_digest(&digest)?;
    let caller = admit(&front, info).await?;
    has_role(&front, &caller, Role::Deployer).await?;
    let is_passed_on = match caller.kind {
        Kind::User => false,
        Kind::Coordinator if request.headers().contains_key(PASSED_ON) => true,
        Kind::Coordinator | Kind::Agent | Kind::Anonymous => {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                Reason::PermissionDenied,
                "only people upload blobs",
            ));
        }
    };
    let blobs = &front.context.blobs;
    let length = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(length) = length {
        blobs.check_room(length)?;
    }
    let mut incoming = blobs.receive(digest).await?;
    let mut body = request.into_body();
    pace::receive(&mut body, &mut incoming, Pace::default()).await?;
    let size = incoming.finish().await?;
    if !is_passed_on {
        let spread = blob_sync::spread(&front.context, &front.client, digest, SPREAD_LIMIT).await;
        if !spread {
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                Reason::NoLeader,
                "the blob is stored here, but not yet on a majority of the coordinators; upload it again",
            ));
        }
        tracing::info!(%digest, size, by = ?caller.name, "a blob was uploaded");
    }
    let body = serde_json::json!({ "sha256": digest.to_string(), "size": size });
    Ok((StatusCode::CREATED, axum::Json(body)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Option<(u64, u64)>, ()> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, text.parse().unwrap());
        range(&headers, 100)
    }

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        assert_eq!(range(&HeaderMap::new(), 100), Ok(None));
        assert_eq!(of("bytes=0-9"), Ok(Some((0, 10))));
        assert_eq!(of("bytes=90-"), Ok(Some((90, 10))));
        assert_eq!(of("bytes=-5"), Ok(Some((95, 5))));
        assert_eq!(of("bytes=-500"), Ok(Some((0, 100))));
        assert_eq!(of("bytes=50-500"), Ok(Some((50, 50))));
        assert_eq!(of("bytes=100-"), Err(()));
        for ignored in ["bytes=9-5", "lines=1-2", "bytes=0-1,3-4", "bytes=x"] {
            assert_eq!(of(ignored), Ok(None), "{ignored}");
        }
    }
}
