//! A latency histogram with exponential buckets that merges by addition.
//!
//! Scale 3: eight buckets per power of two, each about 9 % wide, so that the same latency falls into the
//! same bucket on every host and two histograms add up bucket by bucket without loss. Values are plain
//! integers; Tidegate records microseconds. Buckets are found and bounded with integer arithmetic alone,
//! so every build of the program agrees on them. It is not a sampler and keeps no single values: a
//! quantile is known to the width of its bucket. The proxy records into it, agents send it as a
//! cumulative level, the leader merges and subtracts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Buckets per power of two (2³).
pub const BUCKETS_PER_OCTAVE: u16 = 8;

/// Number of bucket indexes that a `u64` can fall into.
pub const BUCKETS: u16 = 64 * BUCKETS_PER_OCTAVE;

/// ⌈2^63 · 2^(k/8)⌉ for k = 1…7: where the eight buckets of an octave part, for a value that is shifted
/// left until its highest bit is bit 63.
const EDGES: [u64; 7] = [
    0x8b95_c1e3_ea8b_d6e7,
    0x9837_f051_8db8_a970,
    0xa5fe_d6a9_b151_38eb,
    0xb504_f333_f9de_6485,
    0xc567_2a11_5506_dade,
    0xd744_fcca_d69d_6af5,
    0xeac0_c6e7_dd24_392f,
];

/// The bucket of a value, 0…[`BUCKETS`] − 1: the whole part of 8·log2(value). Zero counts as one.
#[must_use]
pub fn bucket_of(value: u64) -> u16 {
    let value = value.max(1);
    let octave = value.ilog2();
    let mantissa = value << (63 - octave);
    let part = EDGES.iter().filter(|edge| mantissa >= **edge).count();
    octave as u16 * BUCKETS_PER_OCTAVE + part as u16
}

/// The smallest value that is not below the lower edge of bucket `index`. Indexes above the last bucket
/// answer with `u64::MAX`.
#[must_use]
pub fn lower_edge(index: u16) -> u64 {
    if index >= BUCKETS {
        return u64::MAX;
    }
    let octave = u32::from(index / BUCKETS_PER_OCTAVE);
    let edge = match index % BUCKETS_PER_OCTAVE {
        0 => return 1 << octave,
        part => EDGES[usize::from(part) - 1],
    };
    let shift = 63 - octave;
    if shift == 0 {
        return edge;
    }
    let whole = edge >> shift;
    whole + u64::from(whole << shift != edge)
}

/// Why bytes from outside are no histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistogramError {
    /// A bucket index is [`BUCKETS`] or more.
    #[error("bucket {index} is out of range, the last one is {last}", last = BUCKETS - 1)]
    OutOfRange {
        /// The index that was given.
        index: u16,
    },
    /// The same bucket stands there twice, or buckets are not in rising order.
    #[error("bucket {index} is repeated or out of order")]
    OutOfOrder {
        /// The index at which the order breaks.
        index: u16,
    },
}

/// The sparse form on the wire: the sum of all values and the buckets that are not empty.
#[derive(Serialize, Deserialize)]
struct Wire {
    sum: u64,
    buckets: Vec<(u16, u64)>,
}

/// Counts of values by bucket, with their sum. All arithmetic saturates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Histogram {
    sum: u64,
    count: u64,
    buckets: BTreeMap<u16, u64>,
}

impl TryFrom<Wire> for Histogram {
    type Error = HistogramError;

    fn try_from(wire: Wire) -> Result<Self, HistogramError> {
        let mut histogram = Self::default();
        let mut last = None;
        for (index, count) in wire.buckets {
            if index >= BUCKETS {
                return Err(HistogramError::OutOfRange { index });
            }
            if last.is_some_and(|last| index <= last) {
                return Err(HistogramError::OutOfOrder { index });
            }
            last = Some(index);
            histogram.add(index, count);
        }
        histogram.sum = wire.sum;
        Ok(histogram)
    }
}

impl From<Histogram> for Wire {
    fn from(histogram: Histogram) -> Self {
        Self {
            sum: histogram.sum,
            buckets: histogram.buckets.into_iter().collect(),
        }
    }
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            sum: 0,
            count: 0,
            buckets: BTreeMap::new(),
        }
    }

    /// A histogram from bucket counts that were gathered elsewhere (the proxy's atomic counters, a message).
    ///
    /// # Errors
    /// When an index is out of range, repeated or out of order. Empty buckets are dropped.
    pub fn from_parts(
        sum: u64,
        buckets: impl IntoIterator<Item = (u16, u64)>,
    ) -> Result<Self, HistogramError> {
        Wire {
            sum,
            buckets: buckets.into_iter().collect(),
        }
        .try_into()
    }

    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        self.add(bucket_of(value), 1);
        self.sum = self.sum.saturating_add(value);
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (index, count) in &other.buckets {
            self.add(*index, *count);
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// What was counted since `earlier`, an older level of the same cumulative histogram; `None` when
    /// `earlier` is not contained in it, as after a restart of the counter.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let mut difference = self.clone();
        difference.sum = self.sum.checked_sub(earlier.sum)?;
        difference.count = self.count.checked_sub(earlier.count)?;
        for (index, count) in &earlier.buckets {
            let held = difference.buckets.get_mut(index)?;
            *held = held.checked_sub(*count)?;
            if *held == 0 {
                difference.buckets.remove(index);
            }
        }
        Some(difference)
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sum of all values.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// True when nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The buckets that are not empty, in rising order.
    pub fn buckets(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        self.buckets.iter().map(|(index, count)| (*index, *count))
    }

    /// How many values fell into bucket `index` or a higher one.
    #[must_use]
    pub fn count_from(&self, index: u16) -> u64 {
        self.buckets
            .range(index..)
            .fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The mean of all values, rounded down; `None` when empty.
    #[must_use]
    pub fn mean(&self) -> Option<u64> {
        self.sum.checked_div(self.count)
    }

    /// The bucket that holds the quantile, given in basis points (9,900 = p99; above 10,000 counts as
    /// 10,000); `None` when empty. Nearest rank: the smallest bucket that has at least that share at or
    /// below it.
    #[must_use]
    pub fn quantile_bucket(&self, basis_points: u16) -> Option<u16> {
        let share = u128::from(basis_points.min(10_000));
        let rank = (u128::from(self.count) * share).div_ceil(10_000).max(1);
        let mut seen = 0_u128;
        for (index, count) in &self.buckets {
            seen += u128::from(*count);
            if seen >= rank {
                return Some(*index);
            }
        }
        None
    }

    /// The quantile in basis points as a value: the middle of its bucket, so at most about 5 % off.
    #[must_use]
    pub fn quantile(&self, basis_points: u16) -> Option<u64> {
        let index = self.quantile_bucket(basis_points)?;
        let low = lower_edge(index);
        let high = lower_edge(index + 1).saturating_sub(1).max(low);
        Some(low + (high - low) / 2)
    }

    /// The median; see [`Self::quantile`].
    #[must_use]
    pub fn p50(&self) -> Option<u64> {
        self.quantile(5_000)
    }

    /// The 95th percentile; see [`Self::quantile`].
    #[must_use]
    pub fn p95(&self) -> Option<u64> {
        self.quantile(9_500)
    }

    /// The 99th percentile; see [`Self::quantile`].
    #[must_use]
    pub fn p99(&self) -> Option<u64> {
        self.quantile(9_900)
    }

    fn add(&mut self, index: u16, count: u64) {
        if count == 0 {
            return;
        }
        let held = self.buckets.entry(index).or_default();
        *held = held.saturating_add(count);
        self.count = self.count.saturating_add(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        for value in values {
            histogram.record(*value);
        }
        histogram
    }

    #[test]
    fn edges_are_the_powers_of_the_eighth_root_of_two() {
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(1), 0);
        assert_eq!(bucket_of(2), 8);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        // 2^(83/8) = 1327.9…, 2^(84/8) = 1448.15…: the values beside each edge.
        assert_eq!(lower_edge(83), 1328);
        assert_eq!(lower_edge(84), 1449);
        assert_eq!((bucket_of(1448), bucket_of(1449)), (83, 84));
        assert_eq!(lower_edge(BUCKETS), u64::MAX);
    }

    #[test]
    fn figures_of_a_known_set() {
        let values: Vec<u64> = (1..=1000).map(|n| n * 1000).collect();
        let histogram = of(&values);
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.mean(), Some(500_500));
        for (found, truth) in [
            (histogram.p50(), 500_000_u64),
            (histogram.p95(), 950_000),
            (histogram.p99(), 990_000),
        ] {
            let found = found.expect("not empty");
            assert!(
                found.abs_diff(truth) * 20 <= truth,
                "{found} is over 5 % off {truth}"
            );
        }
        assert_eq!(Histogram::default().p99(), None);
        assert_eq!(Histogram::default().mean(), None);
    }

    #[test]
    fn bytes_from_outside_are_checked() {
        let parse = |text: &str| serde_json::from_str::<Histogram>(text).map_err(|e| e.to_string());
        assert!(parse(r#"{"sum":3,"buckets":[[0,1],[8,1]]}"#).is_ok());
        let error = parse(r#"{"sum":3,"buckets":[[512,1]]}"#).expect_err("out of range");
        assert!(error.contains("bucket 512 is out of range"), "{error}");
        let error = parse(r#"{"sum":3,"buckets":[[8,1],[8,1]]}"#).expect_err("repeated");
        assert!(error.contains("bucket 8 is repeated"), "{error}");
    }

    proptest! {
        #[test]
        fn a_value_lies_between_the_edges_of_its_bucket(value in 1_u64..) {
            let index = bucket_of(value);
            prop_assert!(lower_edge(index) <= value);
            prop_assert!(index + 1 == BUCKETS || value < lower_edge(index + 1));
        }

        #[test]
        fn merge_is_the_histogram_of_both(
            one in prop::collection::vec(0_u64..10_000_000, 0..50),
            two in prop::collection::vec(0_u64..10_000_000, 0..50),
        ) {
            let mut merged = of(&one);
            merged.merge(&of(&two));
            let both: Vec<u64> = one.iter().chain(&two).copied().collect();
            prop_assert_eq!(&merged, &of(&both));
            prop_assert_eq!(merged.since(&of(&one)), Some(of(&two)));
            let text = serde_json::to_string(&merged).expect("serialises");
            prop_assert_eq!(serde_json::from_str::<Histogram>(&text).expect("parses"), merged);
        }
    }
}
