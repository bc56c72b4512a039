//! Real HTTP load on the agents' proxies: connections that stay and connections that are made
//! anew for each request, at a bounded pace, and what was seen of each version.
//!
//! Every request counts: an answer that does not come, or comes broken, is a failure, and it is
//! charged to the good versions, because a bad one answers properly with an error.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::app::VERSION_HEADER;

/// Connections per proxy that stay open.
const KEPT: usize = 2;
/// Workers per proxy that connect anew for each request.
const FRESH: usize = 1;
/// Time between two requests of one worker: 40 requests/s.
const PACE: Duration = Duration::from_millis(25);
/// An answer that takes longer is a failure.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Failures whose words are kept.
const KEPT_WORDS: usize = 5;

/// What was seen of one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// Answers.
    pub requests: u64,
    /// Answers with an error.
    pub failures: u64,
    /// When the first error was seen.
    pub first_failure: Option<Instant>,
    /// When the last answer was seen.
    pub last_answer: Option<Instant>,
}

/// Everything that was seen so far.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// By version.
    pub versions: BTreeMap<String, Seen>,
    /// Requests that got no answer of the application at all.
    pub broken: u64,
    /// Words of the first of them.
    pub words: Vec<String>,
}

impl Picture {
    /// What was seen of a version.
    pub fn of(&self, version: &str) -> Seen {
        self.versions.get(version).copied().unwrap_or_default()
    }

    /// All requests.
    pub fn total(&self) -> u64 {
        self.broken
            + self
                .versions
                .values()
                .map(|seen| seen.requests)
                .sum::<u64>()
    }

    fn take(&mut self, answer: Result<(String, StatusCode), String>) {
        let now = Instant::now();
        match answer {
            Ok((version, status)) => {
                let seen = self.versions.entry(version).or_default();
                seen.requests += 1;
                seen.last_answer = Some(now);
                if !status.is_success() {
                    seen.failures += 1;
                    seen.first_failure.get_or_insert(now);
                }
            }
            Err(words) => {
                self.broken += 1;
                if self.words.len() < KEPT_WORDS {
                    self.words.push(words);
                }
            }
        }
    }
}

/// Load that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Load {
    picture: Arc<Mutex<Picture>>,
    stop: CancellationToken,
    workers: JoinSet<()>,
}

impl Load {
    /// Starts on these proxies.
    pub fn start(targets: &[SocketAddr]) -> Self {
        let picture = Arc::new(Mutex::new(Picture::default()));
        let stop = CancellationToken::new();
        let mut workers = JoinSet::new();
        let all = targets.len() * (KEPT + FRESH);
        let mut started = 0;
        for target in targets {
            for position in 0..KEPT + FRESH {
                // Spread over the pace, so that the requests do not come in bursts.
                let offset = PACE * started / u32::try_from(all).unwrap_or(1);
                started += 1;
                workers.spawn(work(
                    *target,
                    position < KEPT,
                    offset,
                    picture.clone(),
                    stop.clone(),
                ));
            }
        }
        Self {
            picture,
            stop,
            workers,
        }
    }

    /// What was seen so far.
    pub fn picture(&self) -> Picture {
        lock(&self.picture).clone()
    }

    /// Lets the requests that are open come back, and ends.
    pub async fn finish(mut self) -> Picture {
        self.stop.cancel();
        while self.workers.join_next().await.is_some() {}
        self.picture()
    }
}

fn lock(picture: &Mutex<Picture>) -> std::sync::MutexGuard<'_, Picture> {
    picture.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn work(
    target: SocketAddr,
    keep: bool,
    offset: Duration,
    picture: Arc<Mutex<Picture>>,
    stop: CancellationToken,
) {
    let mut pace = tokio::time::interval_at(Instant::now() + offset, PACE);
    // A slow answer must not be followed by a burst.
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection: Option<SendRequest<Empty<Bytes>>> = None;
    loop {
        tokio::select! {
            _ = pace.tick() => {}
            () = stop.cancelled() => return,
        }
        let kept = connection.take().filter(|_| keep);
        let asked = tokio::time::timeout(ANSWER_LIMIT, ask(target, kept)).await;
        let answer = match asked {
            Ok(Ok((version, status, sender))) => {
                connection = Some(sender);
                Ok((version, status))
            }
            Ok(Err(words)) => Err(words),
            Err(_) => Err(format!("no answer within {} s", ANSWER_LIMIT.as_secs())),
        };
        lock(&picture).take(answer.map_err(|words| format!("{target}: {words}")));
    }
}

type Answer = (String, StatusCode, SendRequest<Empty<Bytes>>);

async fn ask(
    target: SocketAddr,
    kept: Option<SendRequest<Empty<Bytes>>>,
) -> Result<Answer, String> {
    let told = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let usable = match kept {
        // A connection that the proxy closed between two requests is simply made anew.
        Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
        None => None,
    };
    let mut sender = match usable {
        Some(sender) => sender,
        None => connect(target).await?,
    };
    let request = Request::get("/")
        .header("host", target.to_string())
        .body(Empty::new())
        .map_err(|error| told("request", &error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| told("answer", &error))?;
    let status = response.status();
    let version = response
        .headers()
        .get(VERSION_HEADER)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| told("body", &error))?
        .to_bytes();
    match version {
        Some(version) => Ok((version, status, sender)),
        None => {
            let text = String::from_utf8_lossy(&body);
            Err(format!("{status} from the proxy itself: {}", text.trim()))
        }
    }
}

async fn connect(target: SocketAddr) -> Result<SendRequest<Empty<Bytes>>, String> {
    let stream = TcpStream::connect(target)
        .await
        .map_err(|error| format!("connect: {error}"))?;
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("handshake: {error}"))?;
    // Its errors come back through the request.
    tokio::spawn(connection);
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_charged_where_they_belong() {
        let mut picture = Picture::default();
        picture.take(Ok(("2".to_owned(), StatusCode::OK)));
        picture.take(Ok(("3".to_owned(), StatusCode::INTERNAL_SERVER_ERROR)));
        picture.take(Err("connect: refused".to_owned()));
        assert_eq!((picture.of("2").requests, picture.of("2").failures), (1, 0));
        assert!(picture.of("3").first_failure.is_some());
        assert_eq!((picture.broken, picture.total()), (1, 3));
        assert_eq!(picture.of("9"), Seen::default());
    }
}
