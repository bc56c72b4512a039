//! How many members may fail before a group stops (product.md §3).

use tidegate_shared::weight::Weight;

/// A count, or a share of all members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// So many.
    Count(u64),
    /// So many of a hundred, rounded up.
    Percent(u32),
    /// So large a share, rounded up.
    Share(Weight),
}

impl Amount {
    /// Of so many.
    pub fn of(self, members: u64) -> u64 {
        let share = |part: u128, whole: u128| {
            let product = u128::from(members) * part;
            u64::try_from(product.div_ceil(whole)).unwrap_or(u64::MAX)
        };
        match self {
            Self::Count(count) => count,
            Self::Percent(percent) => share(u128::from(percent), 100),
            Self::Share(weight) => share(u128::from(weight.basis_points()), 10_000),
        }
    }
}

/// The failures that a group bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// More than these stop it.
    pub max_failures: Amount,
    /// It is not judged before so many members were executed.
    pub min_executed: Amount,
}

/// How the members of a group fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// All members.
    pub members: u64,
    /// Members that reached an end, well or not; a person's cancel and a denial do not count.
    pub executed: u64,
    /// Members that failed with their retries used up, or were rolled back by a rule or a deadline.
    pub failures: u64,
}

impl Budget {
    /// The budget of linear rollouts and waves that name none: no failure at all.
    pub const NONE: Self = Self {
        max_failures: Amount::Count(0),
        min_executed: Amount::Count(0),
    };

    /// Whether no further member may start.
    pub fn is_exceeded(self, tally: Tally) -> bool {
        tally.executed >= self.min_executed.of(tally.members).min(tally.members)
            && tally.failures > self.max_failures.of(tally.members)
    }

    /// How many more may fail.
    pub fn left(self, tally: Tally) -> u64 {
        self.max_failures
            .of(tally.members)
            .saturating_sub(tally.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shares_are_rounded_up_and_too_few_are_not_judged() {
        for (members, percent, wanted) in
            [(10, 10, 1), (11, 10, 2), (3, 0, 0), (0, 50, 0), (3, 100, 3)]
        {
            assert_eq!(Amount::Percent(percent).of(members), wanted);
            let share = Weight::share(u64::from(percent), 100);
            assert_eq!(Amount::Share(share).of(members), wanted);
        }
        let tally = |executed, failures| Tally {
            members: 10,
            executed,
            failures,
        };
        assert!(Budget::NONE.is_exceeded(tally(1, 1)) && !Budget::NONE.is_exceeded(tally(9, 0)));
        let patient = Budget {
            max_failures: Amount::Count(1),
            min_executed: Amount::Count(4),
        };
        assert!(!patient.is_exceeded(tally(3, 3)) && patient.is_exceeded(tally(4, 2)));
        assert!(!patient.is_exceeded(tally(4, 1)));
        // More than there are members to judge by: judged when all were executed.
        let never = Budget {
            min_executed: Amount::Count(100),
            ..Budget::NONE
        };
        assert!(!never.is_exceeded(tally(9, 9)) && never.is_exceeded(tally(10, 1)));
    }

    proptest! {
        /// Once exceeded, further ends do not mend it.
        #[test]
        fn an_exceeded_budget_stays_exceeded(max in 0_u64..5, least in 0_u64..8, ends in prop::collection::vec(any::<bool>(), 0..12)) {
            let budget = Budget { max_failures: Amount::Count(max), min_executed: Amount::Count(least) };
            let mut tally = Tally { members: 12, ..Tally::default() };
            let mut before = false;
            for failed in ends {
                tally.executed += 1;
                tally.failures += u64::from(failed);
                let now = budget.is_exceeded(tally);
                prop_assert!(now || !before);
                before = now;
            }
        }
    }
}
