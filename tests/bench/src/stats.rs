//! Medians, percentiles and a small generator of numbers; nothing here knows what is measured.

use std::time::Duration;

/// The median; of an even count the lower of the two in the middle, which was measured. None: empty.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len().checked_sub(1)? / 2;
    sorted.get(middle).copied()
}

/// Times of calls, gathered by many clients.
#[derive(Debug, Clone, Default)]
pub struct Times {
    micros: Vec<u32>,
}

impl Times {
    /// Takes one.
    pub fn push(&mut self, time: Duration) {
        self.micros
            .push(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
    }

    /// Takes all of another client.
    pub fn append(&mut self, mut other: Self) {
        self.micros.append(&mut other.micros);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.micros.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.micros.is_empty()
    }

    /// Milliseconds that this share of the calls (0 to 1) did not exceed; the nearest rank. None: empty.
    pub fn percentile(&self, share: f64) -> Option<f64> {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted
            .get(rank.max(1) - 1)
            .map(|micros| f64::from(*micros) / 1_000.0)
    }
}

/// Numbers that are spread well enough to choose keys by, the same in every run.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// A row of its own for each seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one (splitmix64).
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A text of this many letters and digits.
    pub fn text(&mut self, length: usize) -> String {
        const SIGNS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let mut text = String::with_capacity(length + 12);
        while text.len() < length {
            let mut bits = self.draw();
            for _ in 0..12 {
                text.push(char::from(SIGNS[(bits & 31) as usize]));
                bits >>= 5;
            }
        }
        text.truncate(length);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_one_of_the_values() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.0));
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut times = Times::default();
        assert_eq!(times.percentile(0.5), None);
        for millis in (1..=200).rev() {
            times.push(Duration::from_millis(millis));
        }
        assert_eq!(times.percentile(0.5), Some(100.0));
        assert_eq!(times.percentile(0.99), Some(198.0));
        assert_eq!(times.percentile(1.0), Some(200.0));
    }

    #[test]
    fn texts_have_their_length_and_differ() {
        let mut numbers = Numbers::new(1);
        let (first, second) = (numbers.text(256), numbers.text(256));
        assert_eq!((first.len(), second.len()), (256, 256));
        assert_ne!(first, second);
    }
}
