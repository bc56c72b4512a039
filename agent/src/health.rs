//! The health listener: plain HTTP on a loopback address, for the host's own monitoring.
//!
//! `GET /healthz`: the reconcile loop turns. `GET /readyz`: it does, and a coordinator is there.
//! `GET /metrics`: figures in the OpenMetrics text format. Answers from the last report, so that
//! asking costs the loop nothing. Never on an address that others can reach: it asks nobody who
//! they are.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tidegate_shared::assignment::Report;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

use crate::tls::Material;

/// A loop that has told nothing for so long has stopped: it tells every 10 s at the latest.
const STALLED: Duration = Duration::from_secs(60);
/// Connections at a time; each may take so long to ask.
const MOST_CONNECTIONS: usize = 16;
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told.
#[derive(Clone)]
pub struct Health {
    /// The loop's latest report.
    pub reports: watch::Receiver<Option<Arc<Report>>>,
    /// The coordinator that the session is with; none: no session.
    pub connected: watch::Receiver<Option<String>>,
    /// The certificate in use.
    pub material: watch::Receiver<Arc<Material>>,
}

type Seen = watch::Receiver<Option<Instant>>;
type Answer = Response<Full<Bytes>>;

/// Serves for ever; drop the future to end it.
pub async fn serve(listener: TcpListener, health: Health) {
    let (seen, last) = watch::channel(None);
    let mut reports = health.reports.clone();
    reports.mark_changed();
    let watching = async {
        while reports.changed().await.is_ok() {
            if reports.borrow_and_update().is_some() {
                seen.send_replace(Some(Instant::now()));
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::join!(watching, accept(listener, health, last));
}

async fn accept(listener: TcpListener, health: Health, last: Seen) {
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "the health listener cannot accept");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let (health, last) = (health.clone(), last.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let answer = answer(&request, &health, &last);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_LIMIT)
                .keep_alive(false);
            if let Err(error) = builder
                .serve_connection(TokioIo::new(stream), service)
                .await
            {
                debug!(%error, "a connection to the health listener ended");
            }
        });
    }
}

fn answer<B>(request: &Request<B>, health: &Health, last: &Seen) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/healthz" => told(alive(*last.borrow()), "ok\n"),
        "/readyz" => told(
            alive(*last.borrow()).and_then(|()| ready(&health.connected)),
            "ready\n",
        ),
        "/metrics" => metrics(health),
        path => plain(
            StatusCode::NOT_FOUND,
            format!("{path} is not here; try /healthz, /readyz, /metrics\n"),
        ),
    }
}

fn told(outcome: Result<(), String>, good: &str) -> Answer {
    match outcome {
        Ok(()) => plain(StatusCode::OK, good.to_owned()),
        Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

fn plain(status: StatusCode, text: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

fn alive(last: Option<Instant>) -> Result<(), String> {
    match last {
        Some(at) if at.elapsed() < STALLED => Ok(()),
        Some(at) => Err(format!(
            "the reconcile loop has told nothing for {} s",
            at.elapsed().as_secs()
        )),
        None => Err("the reconcile loop has not told anything yet".to_owned()),
    }
}

fn ready(connected: &watch::Receiver<Option<String>>) -> Result<(), String> {
    if connected.borrow().is_some() {
        return Ok(());
    }
    Err("no session with a coordinator; applications and the proxy go on".to_owned())
}

fn metrics(health: &Health) -> Answer {
    let mut text = String::new();
    if encode(&mut text, &registry(health)).is_err() {
        let why = "the figures cannot be written\n".to_owned();
        return plain(StatusCode::INTERNAL_SERVER_ERROR, why);
    }
    let mut answer = plain(StatusCode::OK, text);
    let kind = header::HeaderValue::from_static(OPEN_METRICS);
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

type Labels = Vec<(&'static str, String)>;

fn registry(health: &Health) -> Registry {
    let mut registry = Registry::with_prefix("tidegate_agent");
    let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "Version of the program", version);
    let mut gauge = |name: &str, help: &str, value: i64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    gauge(
        "session_up",
        "1: a session with a coordinator is up",
        i64::from(health.connected.borrow().is_some()),
    );
    gauge(
        "certificate_not_after_seconds",
        "When the certificate ends, in seconds since 1970",
        health.material.borrow().not_after,
    );
    let Some(report) = health.reports.borrow().clone() else {
        return registry;
    };
    gauge(
        "complaints",
        "What the agent knows to be wrong with itself",
        count(report.complaints.len()),
    );
    gauge("places", "Versions held here", count(report.places.len()));
    gauge(
        "generation_index",
        "Log index of the assignments in force",
        clamp(report.applied.index),
    );
    gauge(
        "disk_available_bytes",
        "Free bytes on the disk of the agent's folder",
        clamp(report.host.disk_available),
    );
    instances(&mut registry, &report);
    registry
}

fn instances(registry: &mut Registry, report: &Report) {
    let states = Family::<Labels, Gauge>::default();
    let restarts = Family::<Labels, Gauge>::default();
    let requests = Family::<Labels, Counter>::default();
    let weights = Family::<Labels, Gauge>::default();
    for place in &report.places {
        let of_place: Labels = vec![
            ("scope", place.scope.to_string()),
            ("deployment", place.deployment.to_string()),
        ];
        if let Some(weight) = place.weight {
            let weight = i64::from(weight.basis_points());
            weights.get_or_create(&of_place).set(weight);
        }
        for instance in &place.instances {
            let state = vec![("state", instance.state.as_str().to_owned())];
            states.get_or_create(&state).inc();
            let mut labels = of_place.clone();
            labels.push(("instance", instance.ordinal.to_string()));
            restarts
                .get_or_create(&labels)
                .set(i64::from(instance.restarts));
            requests
                .get_or_create(&labels)
                .inc_by(instance.counters.requests);
        }
    }
    registry.register("instances", "Instances by state", states);
    registry.register(
        "instance_restarts",
        "Restarts of an instance since its place was made",
        restarts,
    );
    registry.register(
        "instance_requests",
        "Requests that the proxy sent to an instance since its start",
        requests,
    );
    registry.register(
        "weight_basis_points",
        "Weight that the data plane holds for a version",
        weights,
    );
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn clamp(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
