//! The gate before every service: who calls ([`super::authn`]), may they ([`super::authz`]). Where
//! a person's role has to hold is asked later, when the objects are known.
//!
//! A tower layer, so that no service can be reached past it. It leaves the [`Caller`] in the
//! request's extensions. On the peer listener a coordinator may pass on a person's request; whose
//! it is stands in the metadata, and only the certificate of a member is believed there.

use std::sync::{Arc, OnceLock};
use std::task::{Context as TaskContext, Poll};

use http::{HeaderMap, Request, Response};
use tidegate_shared::error::Reason;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service, ServiceExt};

use super::authn::{Caller, Kind, NO_VALIDITY, Refused};
use super::authz::{Door, may_call, permits};
use super::{Context, status};
use crate::tls::{ConnectionInfo, SpiffeId};

/// Metadata that carries the identity of a relayed caller.
pub const RELAYED_FOR: &str = "tidegate-relayed-for";

/// The gate of one listener.
#[derive(Clone)]
pub struct Gate {
    context: Arc<Context>,
    door: Door,
}

impl Gate {
    /// The gate of a listener.
    #[must_use]
    pub const fn new(context: Arc<Context>, door: Door) -> Self {
        Self { context, door }
    }

    /// Who calls, if they may.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, `REVOKED`, `PERMISSION_DENIED`.
    pub async fn admit(
        &self,
        path: &str,
        headers: &HeaderMap,
        connection: Option<&ConnectionInfo>,
    ) -> Result<Caller, Status> {
        let trust_domain = &self.context.identity.trust_domain;
        let connection =
            connection.ok_or_else(|| status::internal(&"a connection without its facts"))?;
        let mut caller = Caller::of_connection(connection, trust_domain, self.context.now())
            .map_err(|refused| self.refuse(path, &refused))?;
        if let Some(value) = headers.get(RELAYED_FOR) {
            caller = self.relayed(path, &caller, value).await?;
        }
        if !permits(self.door, path, caller.kind, caller.relayed) {
            let refused = if caller.kind == Kind::Anonymous {
                Refused {
                    reason: Reason::Unauthenticated,
                    message: "this needs a client certificate of the cluster".to_owned(),
                }
            } else {
                let who = caller.identity.as_ref().map(ToString::to_string);
                Refused {
                    reason: Reason::PermissionDenied,
                    message: format!("{} may not call {path}", who.unwrap_or_default()),
                }
            };
            return Err(self.refuse(path, &refused));
        }
        if self.door != Door::Enroll {
            self.check_known(path, &caller).await?;
            self.check_role(path, &caller).await?;
        }
        Ok(caller)
    }

    /// The person that a coordinator passes a request on for.
    async fn relayed(
        &self,
        path: &str,
        relay: &Caller,
        value: &http::HeaderValue,
    ) -> Result<Caller, Status> {
        let no = |message: &str| Refused {
            reason: Reason::PermissionDenied,
            message: message.to_owned(),
        };
        if relay.kind != Kind::Coordinator || self.door != Door::Peer {
            let refused = no("only coordinators may pass requests on, and only to each other");
            return Err(self.refuse(path, &refused));
        }
        self.check_known(path, relay).await?;
        let identity = value
            .to_str()
            .ok()
            .and_then(SpiffeId::parse)
            .ok_or_else(|| self.refuse(path, &no("the relayed identity cannot be read")))?;
        let trust_domain = &self.context.identity.trust_domain;
        let mut caller = Caller::of_identity(&identity, trust_domain, NO_VALIDITY, relay.remote)
            .map_err(|refused| self.refuse(path, &refused))?;
        caller.relayed = true;
        Ok(caller)
    }

    /// This node may be behind: before somebody is refused as unknown, the newest state is asked.
    async fn check_known(&self, path: &str, caller: &Caller) -> Result<(), Status> {
        let known = caller.check_known(&self.context.query.stale().state);
        if known.is_ok() {
            return Ok(());
        }
        let view = self.context.read().await?;
        caller
            .check_known(&view.state)
            .map_err(|refused| self.refuse(path, &refused))
    }

    /// Whether a person has the role that the call needs; this node may be behind here too.
    async fn check_role(&self, path: &str, caller: &Caller) -> Result<(), Status> {
        let (Kind::User, Some(name)) = (caller.kind, &caller.name) else {
            return Ok(());
        };
        if may_call(&self.context.query.stale().state, name, path).is_ok() {
            return Ok(());
        }
        let view = self.context.read().await?;
        may_call(&view.state, name, path).map_err(|rejection| {
            let refused = Refused {
                reason: rejection.reason,
                message: rejection.message,
            };
            self.refuse(path, &refused)
        })
    }

    fn refuse(&self, path: &str, refused: &Refused) -> Status {
        tracing::warn!(
            path,
            code = refused.reason.code(),
            "refused: {}",
            refused.message
        );
        status::refusal(refused.reason, refused.message.clone())
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            gate: self.clone(),
            inner,
        }
    }
}

/// A service behind the gate.
#[derive(Clone)]
pub struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Gated<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let gate = self.gate.clone();
        // The one that was found ready is used; the clone takes its place.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let path = request.uri().path().to_owned();
        let headers = request.headers().clone();
        let connection = request.extensions().get::<ConnectionInfo>().cloned();
        Box::pin(async move {
            match gate.admit(&path, &headers, connection.as_ref()).await {
                Ok(caller) => {
                    request.extensions_mut().insert(caller);
                    inner.call(request).await
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

/// Services of the peer listener that exist only once replication runs: until then the answer is
/// "try again".
#[derive(Clone, Default)]
pub struct LateRoutes {
    routes: Arc<OnceLock<(Gate, tonic::service::Routes)>>,
}

impl LateRoutes {
    /// From now on requests reach `routes`. Later calls change nothing.
    pub fn set(&self, context: Arc<Context>, routes: tonic::service::Routes) {
        let gate = Gate::new(context, Door::Peer);
        self.routes.set((gate, routes.prepare())).ok();
    }

    /// The routes to put on the listener now.
    #[must_use]
    pub fn routes(&self) -> tonic::service::Routes {
        let late = self.clone();
        let service = tower::service_fn(move |request: Request<axum::body::Body>| {
            let late = late.clone();
            async move { Ok::<_, std::convert::Infallible>(late.answer(request).await) }
        });
        axum::Router::new().fallback_service(service).into()
    }

    async fn answer(&self, request: Request<axum::body::Body>) -> Response<Body> {
        let Some((gate, routes)) = self.routes.get() else {
            let starting = status::refusal(Reason::NoLeader, "this coordinator is still starting");
            return starting.into_http();
        };
        let service = gate.layer(routes.clone());
        match service.oneshot(request.map(Body::new)).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
