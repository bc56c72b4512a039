//! The health listener: plain HTTP on a loopback address, for the host's own monitoring, and the
//! figures that the HTTP listener tells to those with a certificate.
//!
//! `GET /healthz`: the process answers. `GET /readyz`: a majority confirms reads. `GET /metrics`:
//! figures in the OpenMetrics text format, read from what is known already; a scrape proposes
//! nothing and asks no other member. Never on an address that others can reach: it asks nobody who
//! they are.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::api::Context;
use crate::raft::Role;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until the node stops.
pub async fn serve(context: Arc<Context>, listener: TcpListener) {
    let stop = context.stop.clone();
    let router = Router::new()
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(|| async {
            let line = "not here; try /healthz, /readyz, /metrics\n";
            (StatusCode::NOT_FOUND, line)
        })
        .with_state(context);
    let serving = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = serving.await {
        tracing::error!(%error, "the health listener ended");
    }
}

async fn healthy() -> &'static str {
    "ok\n"
}

async fn ready(State(context): State<Arc<Context>>) -> Response {
    match context.query.linearizable().await {
        Ok(_) => "ready\n".into_response(),
        Err(error) => {
            let line = format!("{error} [{}]\n", error.reason().code());
            (StatusCode::SERVICE_UNAVAILABLE, line).into_response()
        }
    }
}

async fn metrics(State(context): State<Arc<Context>>) -> Response {
    exposition(&context).await
}

/// The figures as an answer.
pub async fn exposition(context: &Arc<Context>) -> Response {
    let context = context.clone();
    // Counting walks every scope, which takes a moment in a large cluster.
    let written = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        encode(&mut text, &registry(&context)).map(|()| text)
    });
    match written.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Ok(Err(_)) | Err(_) => {
            let line = "the figures cannot be written\n";
            (StatusCode::INTERNAL_SERVER_ERROR, line).into_response()
        }
    }
}

type Labels = Vec<(&'static str, String)>;

fn registry(context: &Context) -> Registry {
    let mut registry = Registry::with_prefix("tidegate");
    let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "Version of the program", version);
    replication(&mut registry, context);
    cluster(&mut registry, context);
    process(&mut registry, context);
    registry
}

fn set(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(clamp(value));
    registry.register(name, help, gauge);
}

fn replication(registry: &mut Registry, context: &Context) {
    let status = context.status.borrow().clone();
    set(
        registry,
        "raft_is_leader",
        "1: this node leads",
        u64::from(status.role == Role::Leader),
    );
    set(
        registry,
        "raft_has_leader",
        "1: a leader is known",
        u64::from(status.leader.is_some()),
    );
    set(registry, "raft_term", "The present term", status.term);
    set(
        registry,
        "raft_commit_index",
        "The last entry known to be on a majority",
        status.commit,
    );
    set(
        registry,
        "raft_applied_index",
        "The last entry that the state includes",
        status.applied,
    );
    set(
        registry,
        "raft_log_entries",
        "Entries that the log holds",
        status.last_index.saturating_sub(status.compacted),
    );
    set(
        registry,
        "raft_voters",
        "Members with a vote",
        status.membership.voters.len() as u64,
    );
    set(
        registry,
        "raft_clock_skewed",
        "1: this node's clock is too far off the majority's, so it does not lead",
        u64::from(status.clock_skewed),
    );
    let lag = Family::<Labels, Gauge>::default();
    for peer in &status.progress {
        let behind = status.last_index.saturating_sub(peer.matched);
        lag.get_or_create(&vec![("node", peer.node_id.to_string())])
            .set(clamp(behind));
    }
    registry.register(
        "raft_peer_lag_entries",
        "On the leader: entries that a member does not hold yet",
        lag,
    );
}

fn cluster(registry: &mut Registry, context: &Context) {
    let view = context.query.stale();
    let state = &view.state;
    set(
        registry,
        "agents",
        "Agents in the cluster",
        state.agents.len() as u64,
    );
    set(
        registry,
        "agent_sessions",
        "Agents whose sessions are at this node",
        context.sessions.connected().len() as u64,
    );
    set(
        registry,
        "scopes",
        "Scopes in the cluster",
        state.scopes.len() as u64,
    );
    let moving = Family::<Labels, Gauge>::default();
    for scope in state.scopes.values() {
        for id in scope.candidate.iter().chain(&scope.waiting) {
            if let Some(deployment) = state.deployments.get(id) {
                let status = deployment.status.as_str().to_owned();
                moving.get_or_create(&vec![("status", status)]).inc();
            }
        }
    }
    registry.register(
        "deployments_under_way",
        "Deployments that have not ended, by status",
        moving,
    );
}

fn process(registry: &mut Registry, context: &Context) {
    let free = rustix::fs::statvfs(&context.config.data_dir)
        .map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize));
    set(
        registry,
        "data_available_bytes",
        "Free bytes on the disk of the data folder",
        free,
    );
}

fn clamp(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
