//! A small HTTP/1.1 client for steady load: kept connections, a bounded pace, every answer noted.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// Header in which the application tells its version.
const VERSION_HEADER: &str = "x-demo-version";
/// A request that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(10);
/// Connections that share the pace.
const CONNECTIONS: u32 = 50;

/// One answer as a client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// When its last byte was there.
    pub at: Instant,
    /// The version that answered; empty: it did not say.
    pub version: String,
    /// The HTTP status; 0: there was no whole answer.
    pub status: u16,
}

/// Load that goes on until it is stopped.
#[derive(Debug)]
pub struct Load {
    answers: Arc<Mutex<Vec<Answer>>>,
    over: Arc<AtomicBool>,
    workers: JoinSet<()>,
}

impl Load {
    /// Asks `/` so many times a second; 50 to 10,000.
    pub fn start(target: SocketAddr, per_second: u32) -> Self {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let over = Arc::new(AtomicBool::new(false));
        let mut workers = JoinSet::new();
        let pace = Duration::from_secs(1) * CONNECTIONS / per_second.max(CONNECTIONS);
        for number in 0..CONNECTIONS {
            let offset = pace * number / CONNECTIONS;
            workers.spawn(work(target, pace, offset, answers.clone(), over.clone()));
        }
        Self {
            answers,
            over,
            workers,
        }
    }

    /// What was seen so far, in the order of the answers.
    pub fn seen(&self) -> Vec<Answer> {
        let answers = self.answers.lock();
        answers.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets open requests come back and ends; what was seen.
    pub async fn stop(mut self) -> Vec<Answer> {
        self.over.store(true, Ordering::Relaxed);
        while self.workers.join_next().await.is_some() {}
        self.seen()
    }
}

async fn work(
    target: SocketAddr,
    pace: Duration,
    offset: Duration,
    answers: Arc<Mutex<Vec<Answer>>>,
    over: Arc<AtomicBool>,
) {
    let mut timer = tokio::time::interval_at(tokio::time::Instant::now() + offset, pace);
    timer.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut kept = None;
    while !over.load(Ordering::Relaxed) {
        timer.tick().await;
        let asked = tokio::time::timeout(LIMIT, ask(target, &mut kept)).await;
        let (status, version) = match asked {
            Ok(Ok(found)) => found,
            Ok(Err(_)) | Err(_) => {
                kept = None;
                (0, String::new())
            }
        };
        let answer = Answer {
            at: Instant::now(),
            version,
            status,
        };
        answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(answer);
    }
}

async fn ask(
    target: SocketAddr,
    kept: &mut Option<BufReader<TcpStream>>,
) -> anyhow::Result<(u16, String)> {
    let mut connection = match kept.take() {
        Some(kept) => kept,
        None => {
            let stream = TcpStream::connect(target).await?;
            stream.set_nodelay(true)?;
            BufReader::new(stream)
        }
    };
    let request = format!("GET / HTTP/1.1\r\nhost: {target}\r\n\r\n");
    connection.get_mut().write_all(request.as_bytes()).await?;
    let mut line = String::new();
    connection.read_line(&mut line).await?;
    let status: u16 = line
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .with_context(|| format!("no HTTP answer: {line:?}"))?;
    let (mut length, mut version, mut closes) = (0_u64, String::new(), false);
    loop {
        line.clear();
        ensure!(connection.read_line(&mut line).await? > 0, "cut off");
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse()?;
        } else if name.eq_ignore_ascii_case(VERSION_HEADER) {
            value.clone_into(&mut version);
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.eq_ignore_ascii_case("close");
        }
    }
    let mut body = vec![0; usize::try_from(length)?];
    connection.read_exact(&mut body).await?;
    if !closes {
        *kept = Some(connection);
    }
    Ok((status, version))
}
