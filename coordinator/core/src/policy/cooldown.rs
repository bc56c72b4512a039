//! Version cooldown: a newer release starts only so long after the release before it entered
//! `CREATING` in the same scope (product.md §5.3). The same release again is free.

use tidegate_shared::time::{Span, Timestamp};

use super::Answer;

/// The last release of the application that entered `CREATING` in the scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Previous<'a> {
    /// Its version.
    pub release: &'a str,
    /// When it entered.
    pub started_at: Timestamp,
}

/// Whether a release may start now; at the end of the interval it may.
pub fn answer(
    interval: Span,
    previous: Option<Previous<'_>>,
    candidate: &str,
    now: Timestamp,
) -> Answer {
    let Some(previous) = previous else {
        return Answer::allowed("no release was started here before");
    };
    if previous.release == candidate {
        return Answer::allowed(format!("release {candidate} is the one before again"));
    }
    let until = previous.started_at + interval;
    if now >= until {
        return Answer::allowed(format!(
            "release {} was started at {}, {interval} ago or more",
            previous.release, previous.started_at
        ))
        .satisfied_at(Some(until));
    }
    Answer::pending(
        format!(
            "release {} was started at {}; the next one may {interval} later",
            previous.release, previous.started_at
        ),
        Some(until),
        "time",
    )
}
