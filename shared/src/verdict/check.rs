//! From measurements to the answer of a check.
//!
//! Pure: each measurement was judged by the check's conditions already. [`Tally`] is the running
//! state, a few numbers, so that nobody has to keep the measurements; [`judge`] is the same over a
//! list. Once a check has succeeded or failed, further measurements change nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::spec::VerificationSpec;

/// What one measurement says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Good.
    Success,
    /// Bad.
    Failure,
    /// Nothing: it could not be made, or no condition holds of it.
    Inconclusive,
}

/// The answer of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Good enough; final.
    Success,
    /// More bad ones than are borne; final.
    Failure,
    /// A round ended without an answer, or none came; another round may give one.
    Inconclusive,
}

impl Outcome {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Inconclusive => "inconclusive",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How many make which answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Measurements of a round; none: no end by number.
    pub count: Option<u32>,
    /// So many good ones in a row are a success; none: a round that is made to its end.
    pub row: Option<u32>,
    /// Bad ones that are borne.
    pub failures: u32,
    /// Of a round, those that say nothing and are borne.
    pub inconclusive: u32,
}

impl Bounds {
    /// Those of a check, with its defaults.
    pub fn of(spec: &VerificationSpec) -> Self {
        let row = match (spec.count, spec.consecutive_successes) {
            (_, Some(row)) => Some(row.max(1)),
            (None, None) => Some(1),
            (Some(_), None) => None,
        };
        Self {
            count: spec.count.map(|count| count.max(1)),
            row,
            failures: spec.failure_limit,
            inconclusive: spec.inconclusive_limit,
        }
    }

    /// Good ones that make a success, in a row or in all.
    pub fn needed(&self) -> u32 {
        match (self.row, self.count) {
            (Some(row), _) => row,
            (None, Some(count)) => count,
            (None, None) => 1,
        }
    }
}

/// How far a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Of the present round.
    pub measurements: u32,
    /// Good ones of the present round.
    pub successes: u32,
    /// Good ones since the last other one.
    pub row: u32,
    /// Bad ones in all: a new round does not forget them.
    pub failures: u32,
    /// Of the present round.
    pub inconclusive: u32,
    /// Rounds that ended without an answer.
    pub rounds: u32,
    /// The answer, if there is one.
    pub outcome: Option<Outcome>,
}

impl Tally {
    /// With one measurement more. After a round without an answer the next one begins.
    #[must_use]
    pub fn push(mut self, bounds: &Bounds, class: Class) -> Self {
        match self.outcome {
            Some(Outcome::Success | Outcome::Failure) => return self,
            Some(Outcome::Inconclusive) => {
                self.measurements = 0;
                self.successes = 0;
                self.inconclusive = 0;
                self.outcome = None;
            }
            None => {}
        }
        self.measurements = self.measurements.saturating_add(1);
        match class {
            Class::Success => {
                self.successes = self.successes.saturating_add(1);
                self.row = self.row.saturating_add(1);
            }
            Class::Failure => {
                self.row = 0;
                self.failures = self.failures.saturating_add(1);
            }
            Class::Inconclusive => {
                self.row = 0;
                self.inconclusive = self.inconclusive.saturating_add(1);
            }
        }
        self.outcome = self.answer(bounds);
        if self.outcome == Some(Outcome::Inconclusive) {
            self.rounds = self.rounds.saturating_add(1);
        }
        self
    }

    fn answer(&self, bounds: &Bounds) -> Option<Outcome> {
        if self.failures > bounds.failures {
            return Some(Outcome::Failure);
        }
        if self.inconclusive > bounds.inconclusive {
            return Some(Outcome::Inconclusive);
        }
        if bounds.row.is_some_and(|row| self.row >= row) {
            return Some(Outcome::Success);
        }
        if bounds.count.is_none_or(|count| self.measurements < count) {
            return None;
        }
        Some(if bounds.row.is_none() && self.successes > 0 {
            Outcome::Success
        } else {
            Outcome::Inconclusive
        })
    }

    /// Good ones that count towards a success.
    pub const fn counted(&self, bounds: &Bounds) -> u32 {
        match bounds.row {
            Some(_) => self.row,
            None => self.successes,
        }
    }
}

/// The answer to a list of measurements in their order; none: it goes on.
pub fn judge(bounds: &Bounds, measurements: &[Class]) -> Option<Outcome> {
    let tally = measurements
        .iter()
        .fold(Tally::default(), |tally, class| tally.push(bounds, *class));
    tally.outcome
}

/// The answer of several that are made beside each other, each on another agent or instance: bad as
/// soon as one is, good when all are.
pub fn together(outcomes: impl IntoIterator<Item = Option<Outcome>>) -> Option<Outcome> {
    let mut all = Some(Outcome::Success);
    for outcome in outcomes {
        all = match (all, outcome) {
            (_, Some(Outcome::Failure)) | (Some(Outcome::Failure), _) => Some(Outcome::Failure),
            (None, _) | (_, None) => None,
            (Some(Outcome::Inconclusive), _) | (_, Some(Outcome::Inconclusive)) => {
                Some(Outcome::Inconclusive)
            }
            (Some(Outcome::Success), Some(Outcome::Success)) => Some(Outcome::Success),
        };
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use Class::{Failure as F, Inconclusive as I, Success as S};
    use proptest::prelude::*;

    fn bounds(count: Option<u32>, row: Option<u32>, failures: u32, inconclusive: u32) -> Bounds {
        Bounds {
            count,
            row,
            failures,
            inconclusive,
        }
    }

    #[test]
    fn one_good_measurement_is_enough_by_default() {
        let spec: VerificationSpec =
            serde_json::from_str(r#"{"name": "a", "http": {"path": "/"}}"#).unwrap();
        let bounds = Bounds::of(&spec);
        assert_eq!(judge(&bounds, &[]), None);
        assert_eq!(judge(&bounds, &[S]), Some(Outcome::Success));
        assert_eq!(judge(&bounds, &[F]), Some(Outcome::Failure));
        assert_eq!(judge(&bounds, &[I]), Some(Outcome::Inconclusive));
        assert_eq!(judge(&bounds, &[I, S]), Some(Outcome::Success));
    }

    #[test]
    fn a_row_has_to_be_unbroken() {
        let b = bounds(None, Some(3), 2, 1);
        assert_eq!(judge(&b, &[S, S, F, S, S]), None);
        assert_eq!(judge(&b, &[S, S, I, S, S]), None);
        assert_eq!(judge(&b, &[S, S, F, S, S, S]), Some(Outcome::Success));
        assert_eq!(judge(&b, &[F, S, F, S, S, F]), Some(Outcome::Failure));
    }

    #[test]
    fn a_count_is_made_to_its_end() {
        let b = bounds(Some(4), None, 1, 1);
        assert_eq!(judge(&b, &[S, S, S]), None);
        assert_eq!(judge(&b, &[S, F, I, S]), Some(Outcome::Success));
        assert_eq!(judge(&b, &[S, F, F]), Some(Outcome::Failure));
        // Its row did not come in time, and nothing was bad enough.
        let b = bounds(Some(3), Some(2), 2, 2);
        assert_eq!(judge(&b, &[S, F, S]), Some(Outcome::Inconclusive));
        assert_eq!(judge(&b, &[S, F, S, S]), Some(Outcome::Success));
    }

    #[test]
    fn rounds_without_an_answer_forget_no_failure() {
        let b = bounds(None, Some(2), 1, 0);
        assert_eq!(judge(&b, &[F, I, F]), Some(Outcome::Failure));
        assert_eq!(judge(&b, &[F, I, S, S]), Some(Outcome::Success));
    }

    #[test]
    fn several_are_good_when_all_are_and_bad_when_one_is() {
        let (s, f, i) = (
            Some(Outcome::Success),
            Some(Outcome::Failure),
            Some(Outcome::Inconclusive),
        );
        assert_eq!(together([s, s]), s);
        assert_eq!(together([s, None]), None);
        assert_eq!(together([i, None]), None);
        assert_eq!(together([None, i, f, s]), f);
        assert_eq!(together([s, i]), i);
    }

    fn class() -> impl Strategy<Value = Class> {
        prop_oneof![Just(S), Just(F), Just(I)]
    }

    fn any_bounds() -> impl Strategy<Value = Bounds> {
        (
            proptest::option::of(1..9_u32),
            proptest::option::of(1..5_u32),
            0..4_u32,
            0..4_u32,
        )
            .prop_filter("a check has an end", |(count, row, ..)| {
                count.is_some() || row.is_some()
            })
            .prop_map(|(count, row, failures, inconclusive)| {
                bounds(count, row, failures, inconclusive)
            })
    }

    proptest! {
        /// An answer that is final stays, whatever is measured afterwards.
        #[test]
        fn final_answers_stay(b in any_bounds(), list in prop::collection::vec(class(), 0..40)) {
            let mut settled = None;
            for end in 0..=list.len() {
                let now = judge(&b, &list[..end]);
                if let Some(before) = settled {
                    prop_assert_eq!(now, Some(before));
                }
                if let Some(Outcome::Success | Outcome::Failure) = now {
                    settled = now;
                }
            }
        }

        /// More bad ones than are borne are never a success; a failure never comes of fewer.
        #[test]
        fn failure_is_exactly_too_many_bad_ones(
            b in any_bounds(),
            list in prop::collection::vec(class(), 0..40),
        ) {
            let mut bad = 0;
            for (end, class) in list.iter().enumerate() {
                let before = judge(&b, &list[..end]);
                if matches!(before, Some(Outcome::Success | Outcome::Failure)) {
                    break;
                }
                bad += u32::from(*class == F);
                let now = judge(&b, &list[..=end]);
                prop_assert_eq!(now == Some(Outcome::Failure), bad > b.failures);
            }
        }

        /// A success has its row, or its whole count, behind it; and good ones alone end in one.
        #[test]
        fn success_is_earned(b in any_bounds(), list in prop::collection::vec(class(), 0..40)) {
            for end in 0..=list.len() {
                let seen = &list[..end];
                if judge(&b, seen) == Some(Outcome::Success) {
                    match b.row {
                        Some(row) => {
                            let row = row as usize;
                            let found = seen.windows(row).any(|part| part.iter().all(|c| *c == S));
                            prop_assert!(found);
                        }
                        None => {
                            let count = b.count.unwrap_or_default() as usize;
                            prop_assert!(seen.len() >= count);
                        }
                    }
                }
            }
            let good = vec![S; 10];
            prop_assume!(b.row.unwrap_or(1) <= b.count.unwrap_or(u32::MAX));
            prop_assert_eq!(judge(&b, &good), Some(Outcome::Success));
        }

        /// Without measurements that say nothing, the longest time of a spec is enough for an answer.
        #[test]
        fn the_longest_round_has_an_answer(
            row in 1..5_u32,
            failures in 0..4_u32,
            list in prop::collection::vec(prop_oneof![Just(S), Just(F)], 20),
        ) {
            let b = bounds(None, Some(row), failures, 0);
            let most = (row * (failures + 1)) as usize;
            prop_assert!(judge(&b, &list[..most]).is_some());
        }
    }
}
