//! What a person asks of the proxy on its host: how it does, and to be replaced. For `tidegate-agent proxy
//! status` and `replace`; it starts no proxy and decides nothing.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use tidegate_shared::error::Reason;
use tokio::time::timeout;

use super::control::ControlClient;
use super::stats::unix_ms;
use super::table::{ControlReply, ControlRequest, Held, HeldScope, ProxyProcess};
use crate::error::AgentError;
use crate::traffic::proxy::ProxyTraffic;

/// How long the proxy may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// How the proxy of a folder does, in lines for a person.
///
/// # Errors
/// None runs there, or it does not answer.
pub async fn look(dir: &Path) -> Result<String, AgentError> {
    let failed = |why: String| {
        let message = format!("no proxy answers in {}: {why}", dir.display());
        AgentError::new(Reason::ProxyUnavailable, message)
    };
    let asked = async {
        let mut client = ControlClient::connect(dir).await?;
        client.ask(&ControlRequest::Observe).await
    };
    match timeout(LIMIT, asked).await {
        Ok(Ok(ControlReply::Held(held))) => Ok(page(&held, unix_ms())),
        Ok(Ok(other)) => Err(failed(format!("it said {other:?}"))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("silent for {} s", LIMIT.as_secs()))),
    }
}

/// Replaces the proxy of a folder by one of the program that is running now.
///
/// # Errors
/// It could not be replaced; it goes on then.
pub async fn replace(dir: &Path) -> Result<String, AgentError> {
    let failed = |why: String| AgentError::new(Reason::ProxyUnavailable, why);
    // Nothing is started where nothing runs: that is the agent's to decide.
    look(dir).await?;
    let traffic = ProxyTraffic::new(dir.to_owned()).map_err(|error| failed(error.to_string()))?;
    let process = traffic.replace().await;
    let process = process.map_err(|error| failed(error.to_string()))?;
    Ok(format!(
        "the proxy is now pid {}, version {}; the one before it finishes what is open\n",
        process.pid, process.version
    ))
}

fn page(held: &Held, now: u64) -> String {
    let mut text = String::new();
    let ProxyProcess {
        pid,
        version,
        started_at,
        connections,
        ..
    } = held.process.clone().unwrap_or_default();
    let age = now.saturating_sub(started_at) / 1_000;
    // Writing to a string cannot fail.
    writeln!(
        text,
        "proxy       pid {pid}, version {version}, up {age} s, {connections} connections"
    )
    .ok();
    for old in &held.draining {
        let left = old.until.saturating_sub(now) / 1_000;
        writeln!(
            text,
            "draining    pid {}, version {}, {} open, at most {left} s more",
            old.pid, old.version, old.open
        )
        .ok();
    }
    if let Some(problem) = &held.persist_problem {
        writeln!(text, "problem     the routes cannot be stored: {problem}").ok();
    }
    for scope in &held.scopes {
        write_scope(&mut text, scope);
    }
    text
}

fn write_scope(text: &mut String, scope: &HeldScope) {
    let listen = match (scope.listen, &scope.problem) {
        (_, Some(problem)) => problem.message.clone(),
        (Some(address), None) => address.to_string(),
        (None, None) => "no listener".to_owned(),
    };
    writeln!(text, "scope       {}  {listen}", scope.scope).ok();
    for version in &scope.versions {
        let counters = version.counters();
        let weight = f64::from(version.weight) / 100.0;
        writeln!(
            text,
            "  {}  {weight} %, {} instances, {} open, {} requests, {} of them 5xx, {} connections, {} bytes in, {} out",
            version.deployment,
            version.instances.iter().filter(|i| i.listed).count(),
            version.open_requests,
            counters.requests,
            counters.errors(),
            counters.connections,
            counters.bytes_in,
            counters.bytes_out
        )
        .ok();
    }
    if scope.unrouted > 0 {
        writeln!(text, "  without a version: {} requests", scope.unrouted).ok();
    }
}
