//! Which version gets the next request: exact shares without randomness.
//!
//! Request number n goes to the version whose cumulative share steps up between n and n + 1 (Bresenham's
//! line), first for the first version against the rest, then within the rest. So any run of requests that
//! can hold a share exactly does hold it — 25 % is 25 of any 100 in a row — and two requests never need to
//! agree on more than their numbers. Pure; the routes call it.

/// The index of the version that gets request number `n`, `None` when all weights are 0. Weights count
/// relative to their sum.
#[must_use]
pub fn pick(weights: &[u16], n: u64) -> Option<usize> {
    let mut rest: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let mut n = n;
    for (index, weight) in weights.iter().enumerate() {
        let weight = u64::from(*weight);
        if weight == 0 {
            continue;
        }
        if weight == rest {
            return Some(index);
        }
        let before = share(n, weight, rest);
        if share(n.wrapping_add(1), weight, rest) != before {
            return Some(index);
        }
        n -= before;
        rest -= weight;
    }
    None
}

/// ⌊n · weight / whole⌋ without overflow.
fn share(n: u64, weight: u64, whole: u64) -> u64 {
    n / whole * weight + n % whole * weight / whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_weight_no_version() {
        assert_eq!(pick(&[], 7), None);
        assert_eq!(pick(&[0, 0], 7), None);
        assert_eq!(pick(&[0, 1], 7), Some(1));
    }

    #[test]
    fn the_share_is_spread_not_clustered() {
        let hits: Vec<u64> = (0..100)
            .filter(|n| pick(&[1000, 9000], *n) == Some(0))
            .collect();
        assert_eq!(hits, (0..10).map(|k| k * 10 + 9).collect::<Vec<u64>>());
    }

    proptest! {
        #[test]
        fn any_hundred_in_a_row_hold_whole_percents_exactly(
            start in 0_u64..u64::MAX / 2, first in 0_u16..=100, second in 0_u16..=100,
        ) {
            let second = second.min(100 - first);
            let weights = [first * 100, second * 100, (100 - first - second) * 100];
            let mut counts = [0_u16; 3];
            for n in start..start + 100 {
                counts[pick(&weights, n).expect("the sum is 10000")] += 1;
            }
            prop_assert_eq!(counts, [first, second, 100 - first - second]);
        }

        #[test]
        fn two_versions_are_never_more_than_one_request_off(
            start in 0_u64..1_000_000, length in 1_u64..2_000, weight in 0_u16..=10_000,
        ) {
            let hits = (start..start + length)
                .filter(|n| pick(&[weight, 10_000 - weight], *n) == Some(0))
                .count() as u64;
            let exact = length * u64::from(weight);
            prop_assert!(hits * 10_000 < exact + 10_000 && exact < hits * 10_000 + 10_000);
        }
    }
}
