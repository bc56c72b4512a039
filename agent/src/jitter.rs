//! A little randomness so that agents do not act in step: for waits and first picks only, never
//! for secrets.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// A number below `bound`, which must not be 0.
pub fn below(bound: u64) -> u64 {
    // Each state has keys of its own.
    RandomState::new().hash_one(0_u8) % bound.max(1)
}

/// Between a half of the wait and the whole of it.
pub fn jittered(wait: Duration) -> Duration {
    let half = wait / 2;
    half + Duration::from_millis(below(
        u64::try_from(half.as_millis()).unwrap_or(u64::MAX) + 1,
    ))
}
