//! Retry: another try after a failure before any traffic moved (product.md §5.11).

use tidegate_shared::spec::{Backoff, RetryRule};
use tidegate_shared::time::{Span, Timestamp};

/// A deployment that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// When.
    pub at: Timestamp,
    /// As `FAILED`.
    pub failed: bool,
    /// The new version ever got traffic.
    pub got_traffic: bool,
    /// How many tries of the same deployment were made before this one.
    pub retries: u32,
}

/// When the next try is made; none: there is none.
pub fn next_try(rule: &RetryRule, ended: Ended) -> Option<Timestamp> {
    let may = ended.failed && !ended.got_traffic && ended.retries < rule.max;
    may.then(|| ended.at + pause(rule, ended.retries))
}

/// The pause before the try that follows so many others.
pub fn pause(rule: &RetryRule, retries: u32) -> Span {
    let factor = match rule.backoff {
        Backoff::Linear => u64::from(retries).saturating_add(1),
        Backoff::Exponential => 1_u64.checked_shl(retries).unwrap_or(u64::MAX),
    };
    rule.initial.times(factor).min(rule.longest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_shared::spec::RetryOn;

    #[test]
    fn pauses_grow_up_to_the_longest_and_tries_end() {
        let mut rule = RetryRule {
            max: 3,
            on: vec![RetryOn::Failed],
            backoff: Backoff::Exponential,
            initial: Span::from_secs(10),
            longest: Span::from_secs(60),
        };
        let pauses = |rule: &RetryRule| {
            [0, 1, 2, 3, 63, 64, u32::MAX].map(|n| pause(rule, n).millis() / 1_000)
        };
        assert_eq!(pauses(&rule), [10, 20, 40, 60, 60, 60, 60]);
        rule.backoff = Backoff::Linear;
        assert_eq!(pauses(&rule), [10, 20, 30, 40, 60, 60, 60]);
        let ended = Ended {
            at: Timestamp::from_millis(1_000),
            failed: true,
            got_traffic: false,
            retries: 2,
        };
        assert_eq!(next_try(&rule, ended), Some(Timestamp::from_millis(31_000)));
        for none in [
            Ended {
                retries: 3,
                ..ended
            },
            Ended {
                got_traffic: true,
                ..ended
            },
            Ended {
                failed: false,
                ..ended
            },
        ] {
            assert_eq!(next_try(&rule, none), None);
        }
    }
}
