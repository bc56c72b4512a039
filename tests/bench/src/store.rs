//! What is asked of a replicated store, whoever it is, and the closed loop that asks it.
//!
//! A client sends its next call when the one before was answered. Clients share connections, up to
//! 16 to each; both sides of a comparison get the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;

use crate::stats::{Numbers, Times};

/// Keys that are written to.
pub const KEYS: u64 = 10_000;
/// Bytes of a value.
pub const VALUE_BYTES: usize = 256;
/// Clients on one connection.
const PER_CONNECTION: usize = 16;
/// A call that takes longer has failed.
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// After a failed call, so that a side that refuses is not asked in a busy loop.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// One connection to a store. A write is answered when a majority has it on disk.
pub trait Store: Clone + Send + Sync + 'static {
    /// Writes a new value under one of [`KEYS`].
    fn put(&self, numbers: &mut Numbers) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Writes `count` new values under different keys in one call, all at one instant.
    fn put_many(
        &self,
        numbers: &mut Numbers,
        count: usize,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Reads one of the keys, linearizably.
    fn get(&self, numbers: &mut Numbers) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// [`Store::put`].
    Put,
    /// [`Store::put_many`] with so many values.
    PutMany(usize),
    /// [`Store::get`].
    Get,
}

/// How hard, how long.
#[derive(Debug, Clone, Copy)]
pub struct Pressure {
    /// Clients at once.
    pub clients: usize,
    /// Not counted: connections are made, caches fill.
    pub warm_up: Duration,
    /// Counted.
    pub length: Duration,
}

impl Pressure {
    /// Connections that the clients share.
    pub const fn connections(&self) -> usize {
        self.clients.div_ceil(PER_CONNECTION)
    }
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Calls answered within the counted time.
    pub times: Times,
    /// Calls that failed.
    pub failures: u64,
    /// The first of them in words.
    pub failure: Option<String>,
    /// The counted time.
    pub length: Duration,
}

impl Outcome {
    /// Answered calls per second.
    pub fn per_second(&self) -> f64 {
        self.times.len() as f64 / self.length.as_secs_f64()
    }

    fn add(&mut self, other: Self) {
        self.times.append(other.times);
        self.failures += other.failures;
        self.failure = self.failure.take().or(other.failure);
    }
}

const WARM: u8 = 0;
const COUNTED: u8 = 1;
const OVER: u8 = 2;

/// The first counted answer may take so long.
const FIRST_ANSWER: Duration = Duration::from_secs(30);

/// Lets clients work on these connections.
///
/// # Errors
/// Nothing at all was answered.
pub async fn closed_loop<S: Store>(
    connections: &[S],
    work: Work,
    pressure: Pressure,
) -> anyhow::Result<Outcome> {
    ensure!(!connections.is_empty(), "no connections");
    let phase = Arc::new(AtomicU8::new(WARM));
    let answered = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for number in 0..pressure.clients {
        let store = connections[number % connections.len()].clone();
        let phase = phase.clone();
        clients.spawn(client(store, work, number as u64, phase, answered.clone()));
    }
    tokio::time::sleep(pressure.warm_up).await;
    let began = Instant::now();
    phase.store(COUNTED, Ordering::Relaxed);
    tokio::time::sleep(pressure.length).await;
    // A short form on a busy machine may be over before the first answer.
    while answered.load(Ordering::Relaxed) == 0 && began.elapsed() < FIRST_ANSWER {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    phase.store(OVER, Ordering::Relaxed);
    let mut all = Outcome {
        length: began.elapsed(),
        ..Outcome::default()
    };
    while let Some(one) = clients.join_next().await {
        all.add(one?);
    }
    ensure!(
        !all.times.is_empty(),
        "no call was answered within {:?}: {}",
        pressure.length,
        all.failure.unwrap_or_default()
    );
    Ok(all)
}

async fn client<S: Store>(
    store: S,
    work: Work,
    seed: u64,
    phase: Arc<AtomicU8>,
    answered: Arc<AtomicU64>,
) -> Outcome {
    let mut numbers = Numbers::new(seed);
    let mut own = Outcome::default();
    loop {
        let before = phase.load(Ordering::Relaxed);
        if before == OVER {
            return own;
        }
        let began = Instant::now();
        let call = async {
            match work {
                Work::Put => store.put(&mut numbers).await,
                Work::PutMany(count) => store.put_many(&mut numbers, count).await,
                Work::Get => store.get(&mut numbers).await,
            }
        };
        let answer = tokio::time::timeout(CALL_LIMIT, call)
            .await
            .context("no answer in time")
            .and_then(|answer| answer);
        match answer {
            // Begun before or answered after the counted time: it would count for both.
            Ok(()) if before == COUNTED && phase.load(Ordering::Relaxed) == COUNTED => {
                own.times.push(began.elapsed());
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(()) => {}
            Err(error) => {
                own.failures += 1;
                own.failure.get_or_insert_with(|| format!("{error:#}"));
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }
}
