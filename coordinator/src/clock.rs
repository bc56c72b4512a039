//! The only file that reads time. Everything else gets a [`Clock`].

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The machine's clocks. Cheap to clone; clones share the shift.
#[derive(Clone, Debug)]
pub struct Clock {
    origin: Instant,
    shift_ms: Arc<AtomicI64>,
}

impl Clock {
    /// The real clocks.
    #[must_use]
    pub fn system() -> Clock {
        Clock {
            origin: Instant::now(),
            shift_ms: Arc::new(AtomicI64::new(0)),
        }
    }

    /// Wall time in milliseconds since 1970.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        let real = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        real.saturating_add_signed(self.shift_ms.load(Ordering::Relaxed))
    }

    /// Time that only runs forward, at an even pace, since the clock was made.
    #[must_use]
    pub fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The present instant, for deadlines.
    #[must_use]
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    /// Sets the wall clock wrong by `by_ms`, for tests of skewed clocks.
    #[cfg(any(test, feature = "testing"))]
    pub fn shift(&self, by_ms: i64) {
        self.shift_ms.store(by_ms, Ordering::Relaxed);
    }
}
