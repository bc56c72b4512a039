//! Asks instances for `/metrics` while a deployment is under way, and keeps the latest answer of
//! each for the next report. One question at a time per instance, none more often than once a
//! second; an answer that is old is none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::{ACCEPT, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use tidegate_agent_core::place::InstanceKey;
use tidegate_shared::assignment::AppSample;
use tidegate_shared::spec::Selector;
use tokio::net::TcpStream;
use tracing::debug;

use super::prometheus;

/// Largest text: 4 MiB.
const MAX_TEXT: usize = 4 << 20;
/// For the whole exchange.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two questions to an instance.
const PAUSE: Duration = Duration::from_secs(1);
/// An answer is told so long.
const FRESH: Duration = Duration::from_secs(10);

/// Whom to ask for what.
#[derive(Debug, Clone)]
pub struct Target {
    /// Which instance.
    pub instance: InstanceKey,
    /// Its process: the answer of another one is not its.
    pub pid: u32,
    /// Where it answers.
    pub address: SocketAddr,
    /// On which path.
    pub path: String,
    /// What rules name.
    pub series: Vec<Selector>,
}

#[derive(Debug)]
struct Held {
    pid: u32,
    asked: Instant,
    is_asking: bool,
    answered: Option<(Instant, Vec<AppSample>)>,
}

/// The latest answers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Scraper(Arc<Mutex<BTreeMap<InstanceKey, Held>>>);

impl Scraper {
    /// Asks those whose turn it is, and forgets all others.
    pub fn ask(&self, targets: Vec<Target>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known: BTreeSet<&InstanceKey> = targets.iter().map(|t| &t.instance).collect();
        held.retain(|key, _| known.contains(key));
        let now = Instant::now();
        for target in targets {
            let entry = held.get(&target.instance);
            if entry.is_some_and(|held| {
                held.pid == target.pid && (held.is_asking || now - held.asked < PAUSE)
            }) {
                continue;
            }
            let answered = held
                .remove(&target.instance)
                .filter(|held| held.pid == target.pid)
                .and_then(|held| held.answered);
            let entry = Held {
                pid: target.pid,
                asked: now,
                is_asking: true,
                answered,
            };
            held.insert(target.instance.clone(), entry);
            let scraper = self.clone();
            tokio::spawn(async move { scraper.take(target).await });
        }
    }

    async fn take(&self, target: Target) {
        let answer = tokio::time::timeout(LIMIT, get(target.address, &target.path)).await;
        let samples = match answer {
            Ok(Ok(text)) => {
                let found = prometheus::read(&String::from_utf8_lossy(&text), &target.series);
                if found.malformed > 0 {
                    debug!(instance = %target.instance, lines = found.malformed, "lines of its metrics are malformed");
                }
                Some(found.samples)
            }
            Ok(Err(why)) => {
                debug!(instance = %target.instance, why, "its metrics cannot be read");
                None
            }
            Err(_) => {
                debug!(instance = %target.instance, "its metrics did not come in 5 s");
                None
            }
        };
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = held.get_mut(&target.instance);
        if let Some(entry) = entry.filter(|held| held.pid == target.pid) {
            entry.is_asking = false;
            entry.answered = samples.map(|samples| (Instant::now(), samples));
        }
    }

    /// What an instance told last, if that is not old.
    pub fn samples(&self, instance: &InstanceKey, pid: u32) -> Vec<AppSample> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = held.get(instance).filter(|held| held.pid == pid);
        match found.and_then(|held| held.answered.as_ref()) {
            Some((at, samples)) if at.elapsed() < FRESH => samples.clone(),
            Some(_) | None => Vec::new(),
        }
    }
}

async fn get(address: SocketAddr, path: &str) -> Result<Bytes, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, "tidegate-agent")
        .header(ACCEPT, "text/plain;version=0.0.4")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let (response, _connection) = crate::asset::pieces::ask(stream, request).await?;
    if response.status() != StatusCode::OK {
        return Err(format!("answered {}", response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_TEXT).collect().await;
    Ok(body.map_err(|error| error.to_string())?.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::conformance::launch;
    use tidegate_shared::spec::RunSpec;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn answers_are_kept_per_process_until_they_are_not_wanted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                assert!(stream.read(&mut [0; 1_024]).await.unwrap() > 0);
                let reply = "HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\nx 1\nbroken\nx{} 2\n";
                stream.write_all(reply.as_bytes()).await.ok();
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let instance = launch(0, dir.path(), RunSpec::default()).instance;
        let target = |pid| Target {
            instance: instance.clone(),
            pid,
            address,
            path: "/metrics".to_owned(),
            series: vec!["x".parse().unwrap()],
        };
        let scraper = Scraper::default();
        scraper.ask(vec![target(7)]);
        let deadline = Instant::now() + Duration::from_secs(30);
        while scraper.samples(&instance, 7).is_empty() {
            assert!(Instant::now() < deadline, "no answer");
            tokio::task::yield_now().await;
        }
        assert_eq!(scraper.samples(&instance, 7)[0].value, 3.0);
        // Another process of the same instance has told nothing yet.
        assert!(scraper.samples(&instance, 8).is_empty());
        scraper.ask(Vec::new());
        assert!(scraper.samples(&instance, 7).is_empty());
    }
}
