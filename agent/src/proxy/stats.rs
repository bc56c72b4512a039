//! The counters of one instance and the error stamps of one version: atomics that the request path adds to.
//!
//! Nothing here decides or locks. A snapshot reads each counter on its own, so requests that end during the
//! reading may be in one figure and not yet in another; the next level has them all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::StatusCode;
use tidegate_shared::verdict::histogram::{self, Histogram};

use super::table::Counters;

/// Latency buckets that are kept: up to 2^32 µs (71 minutes), longer ones fall into the last.
const LATENCY_BUCKETS: usize = 32 * histogram::BUCKETS_PER_OCTAVE as usize;

/// Now as unix milliseconds; 0 before 1970.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_millis() as u64
}

/// When a version answered with 5xx. Zero stands for never.
#[derive(Default)]
pub(super) struct ErrorMarks {
    first: AtomicU64,
    last: AtomicU64,
}

impl ErrorMarks {
    fn mark(&self, at: u64) {
        // Fails when the first error is known already, which is all right.
        self.first
            .compare_exchange(0, at, Ordering::Relaxed, Ordering::Relaxed)
            .ok();
        self.last.fetch_max(at, Ordering::Relaxed);
    }

    pub(super) fn first(&self) -> Option<u64> {
        Some(self.first.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    pub(super) fn last(&self) -> Option<u64> {
        Some(self.last.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }
}

/// Everything that is counted for one instance.
pub(super) struct Stats {
    since_ms: u64,
    responses: [AtomicU64; 5],
    connect_errors: AtomicU64,
    failures: AtomicU64,
    aborted: AtomicU64,
    abandoned: AtomicU64,
    connections: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    latency_sum: AtomicU64,
    latency: Box<[AtomicU64]>,
}

impl Stats {
    pub(super) fn new(since_ms: u64) -> Self {
        Self {
            since_ms,
            responses: Default::default(),
            connect_errors: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            aborted: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            latency_sum: AtomicU64::new(0),
            latency: (0..LATENCY_BUCKETS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The instance answered.
    pub(super) fn answered(&self, status: StatusCode, elapsed: Duration, marks: &ErrorMarks) {
        // Above 599 is not defined by HTTP; it says that the server is out of order.
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.responses[class].fetch_add(1, Ordering::Relaxed);
        self.latency(elapsed);
        if class == 4 {
            marks.mark(unix_ms());
        }
    }

    /// The instance gave no answer; the proxy says 502 or 504 for it.
    pub(super) fn failed(&self, elapsed: Duration, marks: &ErrorMarks) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.answered(StatusCode::BAD_GATEWAY, elapsed, marks);
    }

    /// The client gave up before the answer's head. The time counts: a version that hangs must show.
    pub(super) fn abandoned(&self, elapsed: Duration) {
        self.abandoned.fetch_add(1, Ordering::Relaxed);
        self.latency(elapsed);
    }

    pub(super) fn connect_error(&self) {
        self.connect_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn aborted(&self) {
        self.aborted.fetch_add(1, Ordering::Relaxed);
    }

    /// The instance took a raw connection.
    pub(super) fn connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes that came from clients.
    pub(super) fn received(&self, bytes: u64) {
        self.bytes_in.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that went to clients.
    pub(super) fn sent(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
    }

    fn latency(&self, elapsed: Duration) {
        let micros = elapsed.as_micros() as u64;
        let bucket = usize::from(histogram::bucket_of(micros)).min(LATENCY_BUCKETS - 1);
        self.latency[bucket].fetch_add(1, Ordering::Relaxed);
        self.latency_sum.fetch_add(micros, Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        let counts =
            self.responses
                .iter()
                .chain([&self.connect_errors, &self.abandoned, &self.connections]);
        counts
            .map(|count| count.load(Ordering::Relaxed))
            .sum::<u64>()
            == 0
    }

    pub(super) fn snapshot(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let responses: [u64; 5] = std::array::from_fn(|class| read(&self.responses[class]));
        let abandoned = read(&self.abandoned);
        let buckets = (0_u16..)
            .zip(self.latency.iter().map(read))
            .filter(|(_, count)| *count > 0);
        Counters {
            since_ms: self.since_ms,
            requests: responses.iter().sum::<u64>() + abandoned,
            responses,
            connect_errors: read(&self.connect_errors),
            failures: read(&self.failures),
            aborted: read(&self.aborted),
            abandoned,
            // Rising indexes below the limit are always a histogram.
            connections: read(&self.connections),
            bytes_in: read(&self.bytes_in),
            bytes_out: read(&self.bytes_out),
            latency_us: Histogram::from_parts(read(&self.latency_sum), buckets).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_failures_and_given_up_requests_add_up() {
        let (stats, marks) = (Stats::new(42), ErrorMarks::default());
        assert!(stats.is_empty());
        stats.answered(StatusCode::OK, Duration::from_micros(900), &marks);
        stats.answered(StatusCode::NOT_FOUND, Duration::from_micros(100), &marks);
        assert_eq!((marks.first(), marks.last()), (None, None));
        stats.failed(Duration::from_secs(60 * 60 * 24), &marks);
        stats.abandoned(Duration::from_millis(5));
        let counters = stats.snapshot();
        assert_eq!(counters.since_ms, 42);
        assert_eq!(counters.requests, 4);
        assert_eq!(counters.responses, [0, 1, 0, 1, 1]);
        assert_eq!((counters.failures, counters.abandoned), (1, 1));
        assert_eq!(counters.latency_us.count(), 4);
        assert!(marks.first().is_some() && marks.first() <= marks.last());
    }
}
