//! Waiting for real conditions, with a deadline that only a broken program meets.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// Looks until the answer is there.
///
/// # Errors
/// The last reason why it was not, when the deadline has passed.
pub fn until<T>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if began.elapsed() >= within => {
                return Err(error).with_context(|| format!("{what}: not within {within:?}"));
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

/// An error unless the condition holds; for use in [`until`].
///
/// # Errors
/// The text, if it does not hold.
pub fn holds(condition: bool, otherwise: impl FnOnce() -> String) -> anyhow::Result<()> {
    if !condition {
        bail!(otherwise());
    }
    Ok(())
}
