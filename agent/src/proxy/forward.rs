//! One request from a client to an instance and its answer back: the hot path.
//!
//! Chooses by the current routes, goes on to another instance and then to another version only while
//! nothing was sent, and answers 502, 503 or 504 with one line that names the scope when nobody can answer.
//! Bodies stream through. The listener calls this once per request.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SET_COOKIE};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use tracing::debug;

use super::body::{Ending, RequestBody, ResponseBody};
use super::headers;
use super::listener::{Active, Client};
use super::routes::{RoutedVersion, Routes};
use super::table::StickySpec;
use super::tunnel;
use super::upstream::{Answer, Failure, Lease};

/// How often a request may find that its routes were replaced while it chose, a millisecond apart.
const REROUTES: usize = 200;

/// What came of asking one version.
enum Asked {
    Answered(Lease, Answer),
    /// No instance took a connection: the request is as it was.
    Refused(Box<Request<RequestBody>>),
    /// The instances stopped taking requests after the routes were read.
    Outdated(Box<Request<RequestBody>>),
    /// It was sent and must not be sent again.
    Failed(StatusCode, String),
}

/// Answers one request. Never fails: what goes wrong becomes an answer.
pub(super) async fn forward(
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let version = request.version();
    client.activity.speaks(version);
    let mut response = answer(&client, request).await;
    if client.door.is_leaving()
        && version != Version::HTTP_2
        && response.status() != StatusCode::SWITCHING_PROTOCOLS
    {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    Ok(response)
}

async fn answer(client: &Client, request: Request<Incoming>) -> Response<ResponseBody> {
    let active = client.activity.begin();
    let started = Instant::now();
    let mut request = request;
    if request.method() == Method::CONNECT {
        let reason = "tidegate: CONNECT is not served here";
        return text(StatusCode::METHOD_NOT_ALLOWED, reason.to_owned(), active);
    }
    let upgrade = match request.version() {
        Version::HTTP_11 => headers::wanted_upgrade(request.headers()),
        _ => None,
    };
    let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let mut request = outgoing(request, client, upgrade.as_ref());
    let mut refused = false;
    for _ in 0..REROUTES {
        let routes = client.door.routes();
        let mut outdated = false;
        let sticky = routes.sticky.as_ref();
        let pin = sticky.and_then(|sticky| headers::cookie(request.headers(), &sticky.cookie));
        let pin = pin.map(str::to_owned);
        let asked_for = routes.asked_for(request.headers(), pin.as_deref());
        for version in routes.order(asked_for) {
            match ask(version, &routes, request, started).await {
                Asked::Answered(lease, answer) => {
                    let mut response = finish(lease, answer, client_side, active);
                    // Who asked for a version by its header is not made to stay with it.
                    let demanded =
                        asked_for.is_some() && pin.as_deref() != Some(&version.deployment);
                    if let Some(sticky) = sticky
                        && pin.as_deref() != Some(&version.deployment)
                        && !(demanded && asked_for.is_some_and(|one| std::ptr::eq(one, version)))
                    {
                        stay(&mut response, sticky, &version.deployment, client.secure);
                    }
                    return response;
                }
                Asked::Failed(status, reason) => {
                    return failure(&routes, version, status, &reason, active);
                }
                Asked::Refused(unsent) => {
                    refused = true;
                    request = *unsent;
                }
                Asked::Outdated(unsent) => {
                    outdated = true;
                    request = *unsent;
                    break;
                }
            }
        }
        if !outdated {
            return nobody(&routes, refused, active);
        }
        // The engine publishes new routes before it stops instances, so the next picture is there already;
        // only a scope that was dropped has none.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    nobody(&client.door.routes(), refused, active)
}

/// Asks the client to come back to this version.
fn stay(
    response: &mut Response<ResponseBody>,
    sticky: &StickySpec,
    deployment: &str,
    secure: bool,
) {
    let (cookie, seconds) = (&sticky.cookie, sticky.ttl.millis() / 1_000);
    let secure = if secure { "; Secure" } else { "" };
    let line =
        format!("{cookie}={deployment}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Lax{secure}");
    if let Ok(line) = HeaderValue::from_str(&line) {
        response.headers_mut().append(SET_COOKIE, line);
    }
}

/// Tries the instances of one version until one of them has the request.
async fn ask(
    version: &RoutedVersion,
    routes: &Routes,
    request: Request<RequestBody>,
    started: Instant,
) -> Asked {
    let mut request = request;
    let mut tried = Vec::new();
    let mut refusing = None;
    while let Some((index, mut lease)) = version.lease(&tried, started) {
        let instance = Arc::clone(lease.instance());
        lease.carries(request.body().progress());
        match instance.send(request, routes.silence).await {
            Ok(answer) => {
                lease.answered(answer.response.status());
                return Asked::Answered(lease, answer);
            }
            Err(Failure::Connect {
                request: unsent,
                reason,
            }) => {
                debug!(
                    scope = routes.scope,
                    instance = instance.id,
                    reason,
                    "connection refused"
                );
                instance.ledger.stats.connect_error();
                instance.avoid();
                tried.push(index);
                lease.cancel();
                refusing = Some(instance);
                request = *unsent;
            }
            Err(Failure::Lost { reason }) => {
                debug!(
                    scope = routes.scope,
                    instance = instance.id,
                    reason,
                    "no answer"
                );
                lease.failed();
                return Asked::Failed(
                    StatusCode::BAD_GATEWAY,
                    format!("sent no answer ({reason})"),
                );
            }
            Err(Failure::Timeout) => {
                lease.failed();
                let reason = format!("sent no answer within {} ms", routes.silence.as_millis());
                return Asked::Failed(StatusCode::GATEWAY_TIMEOUT, reason);
            }
        }
    }
    match refusing {
        // The version had its turn and nobody there: that is an error of the version, even when another
        // version answers the client.
        Some(instance) => {
            instance.ledger.failed(started);
            Asked::Refused(Box::new(request))
        }
        None => Asked::Outdated(Box::new(request)),
    }
}

/// The request as the instance shall see it.
fn outgoing(
    request: Request<Incoming>,
    client: &Client,
    upgrade: Option<&HeaderValue>,
) -> Request<RequestBody> {
    let (mut parts, body) = request.into_parts();
    headers::prepare_request(
        &mut parts.headers,
        &parts.uri,
        &client.forwarded_for,
        client.secure,
        upgrade,
    );
    let mut request = Request::new(RequestBody::from(body));
    *request.method_mut() = parts.method;
    *request.uri_mut() = origin_form(parts.uri);
    *request.headers_mut() = parts.headers;
    request
}

/// The path and query alone; an absolute target (HTTP/2, clients that take us for their proxy) loses
/// scheme and authority, which went into `Host`.
fn origin_form(uri: Uri) -> Uri {
    if uri.authority().is_none() {
        return uri;
    }
    uri.path_and_query()
        .map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()))
}

fn finish(
    lease: Lease,
    answer: Answer,
    client_side: Option<OnUpgrade>,
    active: Active,
) -> Response<ResponseBody> {
    let Answer {
        mut response,
        sender,
        progress,
    } = answer;
    // The hop to the client has its own version; an answer in HTTP/1.0 must not end its connection.
    *response.version_mut() = Version::HTTP_11;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client_side) = client_side else {
            let reason = "tidegate: the instance changed the protocol without being asked";
            return text(StatusCode::BAD_GATEWAY, reason.to_owned(), active);
        };
        return tunnel::join(lease, response, client_side, active);
    }
    headers::strip_hop(response.headers_mut());
    let (parts, body) = response.into_parts();
    let ending = Ending {
        lease,
        sender,
        progress,
    };
    Response::from_parts(parts, ResponseBody::stream(body, ending, active))
}

fn failure(
    routes: &Routes,
    version: &RoutedVersion,
    status: StatusCode,
    reason: &str,
    active: Active,
) -> Response<ResponseBody> {
    let (scope, deployment) = (&routes.scope, &version.deployment);
    text(
        status,
        format!("tidegate: scope {scope}: the instance of {deployment} {reason}"),
        active,
    )
}

fn nobody(routes: &Routes, refused: bool, active: Active) -> Response<ResponseBody> {
    let scope = &routes.scope;
    if refused {
        let line =
            format!("tidegate: scope {scope}: no healthy instance, every connection was refused");
        return text(StatusCode::BAD_GATEWAY, line, active);
    }
    routes.unrouted.fetch_add(1, Ordering::Relaxed);
    let line = format!("tidegate: scope {scope}: no healthy instance");
    text(StatusCode::SERVICE_UNAVAILABLE, line, active)
}

fn text(status: StatusCode, mut line: String, active: Active) -> Response<ResponseBody> {
    line.push('\n');
    let mut response = Response::new(ResponseBody::text(line, active));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
