//! Steady HTTP load that counts: connections that stay, and a new connection for each request, at
//! a bounded pace, with what was seen of each version and every request that failed.
//!
//! A failure is a request without a whole answer, or with a status that is not 2xx. A kept
//! connection that was closed between two requests is made anew, as every HTTP client does; one
//! that ends after a request was written is a failure. [`Load::stop`] and dropping end the threads.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::poll;

/// Header in which the applications of the tests tell their version.
pub const VERSION_HEADER: &str = "x-demo-version";

/// Time between two requests of a worker of [`Load::start`]; there are two workers per target.
const PACE: Duration = Duration::from_millis(25);
/// An answer that takes longer is a failure.
const LIMIT: Duration = Duration::from_secs(10);
/// Failures whose words are kept.
const WORDS: usize = 10;
/// Largest answer that is read.
const LARGEST: u64 = 1 << 20;

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Good answers by version.
    pub versions: BTreeMap<String, u64>,
    /// Requests that failed.
    pub failures: u64,
    /// The first of them in words, with the seconds since the load began.
    pub words: Vec<String>,
}

impl Seen {
    /// Good answers of a version.
    pub fn of(&self, version: &str) -> u64 {
        self.versions.get(version).copied().unwrap_or(0)
    }

    /// All good answers.
    pub fn good(&self) -> u64 {
        self.versions.values().sum()
    }
}

#[derive(Debug)]
struct Shared {
    seen: Mutex<Seen>,
    stop: AtomicBool,
    began: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts on these targets, with one connection that stays and one that is made anew at each.
    pub fn start(targets: &[SocketAddr]) -> Self {
        Self::of(targets, 2, PACE)
    }

    /// Starts with so many requests a second in all, over sixteen connections at a time to each
    /// target, every fourth of them made anew for each request. A machine that is too busy for
    /// the rate gets less.
    pub fn at_rate(targets: &[SocketAddr], per_second: u32) -> Self {
        let workers = 16 * u32::try_from(targets.len()).unwrap_or(1);
        Self::of(
            targets,
            16,
            Duration::from_secs(1) * workers / per_second.max(1),
        )
    }

    fn of(targets: &[SocketAddr], workers: usize, pace: Duration) -> Self {
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            stop: AtomicBool::new(false),
            began: Instant::now(),
        });
        let fresh_every = workers.min(4);
        let kinds = targets.iter().flat_map(|at| {
            (0..workers).map(move |number| (*at, number % fresh_every != fresh_every - 1))
        });
        let workers = kinds
            .map(|(target, keep)| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || work(&shared, target, keep, pace))
            })
            .collect();
        Self { shared, workers }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        lock(&self.shared.seen).clone()
    }

    /// Waits until a version has given `more` good answers from now on.
    ///
    /// # Errors
    /// It has not in time.
    pub fn wait_for(&self, version: &str, more: u64, within: Duration) -> anyhow::Result<()> {
        let wanted = self.seen().of(version) + more;
        poll::until(&format!("answers of version {version}"), within, || {
            let seen = self.seen();
            poll::holds(seen.of(version) >= wanted, || format!("{seen:?}"))
        })
    }

    /// Checks that nothing failed so far.
    ///
    /// # Errors
    /// A request failed, or there was none.
    pub fn clean(&self, when: &str) -> anyhow::Result<()> {
        let seen = self.seen();
        ensure!(seen.failures == 0, "{when}, requests failed: {seen:#?}");
        ensure!(seen.good() > 0, "{when}, there was no load at all");
        Ok(())
    }

    /// Lets the open requests come back and ends; what was seen.
    pub fn stop(mut self) -> Seen {
        self.end();
        self.seen()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            worker.join().ok();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(shared: &Shared, target: SocketAddr, keep: bool, pace: Duration) {
    let mut kept: Option<BufReader<TcpStream>> = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let asked = ask(target, kept.take(), keep);
        let mut seen = lock(&shared.seen);
        match asked {
            Ok((version, connection)) => {
                *seen.versions.entry(version).or_default() += 1;
                kept = connection;
            }
            Err(error) => {
                seen.failures += 1;
                if seen.words.len() < WORDS {
                    let at = shared.began.elapsed().as_secs_f32();
                    let kind = if keep { "kept" } else { "fresh" };
                    seen.words
                        .push(format!("{at:.2} s, {kind} to {target}: {error:#}"));
                }
            }
        }
        drop(seen);
        std::thread::sleep(pace.saturating_sub(began.elapsed()));
    }
}

type Answer = (String, Option<BufReader<TcpStream>>);

/// One request; the version that answered, and the connection if it may be used again.
fn ask(
    target: SocketAddr,
    kept: Option<BufReader<TcpStream>>,
    keep: bool,
) -> anyhow::Result<Answer> {
    let mut connection = match kept.filter(is_open) {
        Some(kept) => kept,
        None => {
            let stream = TcpStream::connect_timeout(&target, LIMIT).context("connect")?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.set_nodelay(true)?;
            BufReader::new(stream)
        }
    };
    let option = if keep { "keep-alive" } else { "close" };
    let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: {option}\r\n\r\n");
    connection
        .get_mut()
        .write_all(request.as_bytes())
        .context("write")?;
    let mut line = String::new();
    connection.read_line(&mut line).context("status")?;
    let status: u16 = line
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .with_context(|| format!("no HTTP answer: {line:?}"))?;
    let head = head(&mut connection)?;
    let body = body(&mut connection, &head)?;
    if !(200..300).contains(&status) {
        bail!("status {status}: {body}");
    }
    let version = head
        .get(VERSION_HEADER)
        .with_context(|| format!("an answer without a version: {body}"))?;
    let again = keep && head.get("connection").is_none_or(|value| value != "close");
    Ok((version.clone(), again.then_some(connection)))
}

/// Whether the other side has not closed it since the last answer.
fn is_open(connection: &BufReader<TcpStream>) -> bool {
    let stream = connection.get_ref();
    let mut byte = [0];
    let looked = stream
        .set_nonblocking(true)
        .and_then(|()| stream.peek(&mut byte));
    let open = looked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).is_ok() && open
}

fn head(connection: &mut BufReader<TcpStream>) -> anyhow::Result<BTreeMap<String, String>> {
    let mut head = BTreeMap::new();
    loop {
        let mut line = String::new();
        let read = connection.read_line(&mut line).context("head")?;
        ensure!(read > 0, "the answer ends in its head");
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(head);
        }
        let (name, value) = line.split_once(':').context("a head without a colon")?;
        head.insert(name.to_ascii_lowercase(), value.trim().to_ascii_lowercase());
    }
}

fn body(
    connection: &mut BufReader<TcpStream>,
    head: &BTreeMap<String, String>,
) -> anyhow::Result<String> {
    if head
        .get("transfer-encoding")
        .is_some_and(|v| v.contains("chunked"))
    {
        return chunks(connection);
    }
    let mut bytes = Vec::new();
    match head.get("content-length") {
        Some(length) => {
            let length: u64 = length.parse().context("content-length")?;
            ensure!(length <= LARGEST, "an answer of {length} bytes");
            connection.take(length).read_to_end(&mut bytes)?;
            ensure!(bytes.len() as u64 == length, "the answer was cut off");
        }
        None => {
            connection.take(LARGEST).read_to_end(&mut bytes)?;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

fn chunks(connection: &mut BufReader<TcpStream>) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).context("chunk")?;
        let length = u64::from_str_radix(line.trim(), 16).context("the length of a chunk")?;
        ensure!(length <= LARGEST, "a chunk of {length} bytes");
        let before = bytes.len() as u64;
        connection.by_ref().take(length).read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 - before == length, "a chunk was cut off");
        line.clear();
        connection.read_line(&mut line).context("end of a chunk")?;
        if length == 0 {
            return Ok(String::from_utf8_lossy(&bytes).trim().to_owned());
        }
    }
}
