//! Waves: members start in sets, one after another, with a bake after each (product.md §3).

use std::collections::BTreeSet;

use tidegate_shared::id::Name;
use tidegate_shared::spec::WaveSpec;
use tidegate_shared::time::{Span, Timestamp};

use super::budget::Amount;

/// What a wave takes of the members that no earlier one took, in the group's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// Those that its selector matches.
    Selected,
    /// So many, or a share of all members of the group, rounded up.
    First(Amount),
}

impl From<&WaveSpec> for Take {
    fn from(written: &WaveSpec) -> Self {
        match (written.count, written.percent) {
            (Some(count), _) => Self::First(Amount::Count(u64::from(count))),
            (None, Some(share)) => Self::First(Amount::Share(share)),
            (None, None) => Self::Selected,
        }
    }
}

/// The members of each wave; the last element is what no wave took, and starts after all of them.
/// `selected(wave, member)` tells what the selector of a wave matches.
pub fn split(
    order: &[Name],
    waves: &[Take],
    selected: impl Fn(usize, &Name) -> bool,
) -> Vec<Vec<Name>> {
    let total = order.len() as u64;
    let mut rest: Vec<Name> = order.to_vec();
    let mut all = Vec::new();
    for (index, take) in waves.iter().enumerate() {
        let taken: Vec<Name> = match take {
            Take::Selected => rest
                .iter()
                .filter(|name| selected(index, name))
                .cloned()
                .collect(),
            Take::First(amount) => {
                let count = usize::try_from(amount.of(total)).unwrap_or(usize::MAX);
                rest.iter().take(count).cloned().collect()
            }
        };
        let gone: BTreeSet<&Name> = taken.iter().collect();
        rest.retain(|name| !gone.contains(name));
        all.push(taken);
    }
    all.push(rest);
    all
}

/// How a member of a wave fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Not at an end.
    UnderWay,
    /// `FINALIZED`, counted in the failure budget, or ended otherwise for good; since then.
    Settled(Timestamp),
}

/// Where a rollout by waves stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Members up to and with this wave may start.
    In {
        /// From 0.
        wave: usize,
    },
    /// This wave is done and bakes; the next one may start then.
    Baking {
        /// From 0.
        wave: usize,
        /// End of the bake.
        until: Timestamp,
    },
    /// Every wave is done.
    Done,
}

/// Where it stands: a wave is done when all its members are settled, its bake runs from the last of
/// them, and the next one may start at its end. An empty wave passes without a bake; none follows
/// the last wave that has members.
pub fn position(waves: &[Vec<Fate>], bakes: &[Span], now: Timestamp) -> Position {
    for (wave, members) in waves.iter().enumerate() {
        let settled: Option<Vec<Timestamp>> = members
            .iter()
            .map(|fate| match fate {
                Fate::Settled(at) => Some(*at),
                Fate::UnderWay => None,
            })
            .collect();
        let Some(settled) = settled else {
            return Position::In { wave };
        };
        let follows = waves.iter().skip(wave + 1).any(|later| !later.is_empty());
        let last = settled.into_iter().max().filter(|_| follows);
        let Some(last) = last else { continue };
        let until = last + bakes.get(wave).copied().unwrap_or(Span::ZERO);
        if now < until {
            return Position::Baking { wave, until };
        }
    }
    Position::Done
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(count: usize) -> Vec<Name> {
        let all = (0..count).map(|n| Name::new(format!("m{n:02}")).unwrap());
        all.collect()
    }

    #[test]
    fn waves_take_in_order_and_the_rest_comes_last() {
        let order = names(10);
        let waves = [
            Take::First(Amount::Count(1)),
            Take::Selected,
            Take::First(Amount::Percent(25)),
            Take::Selected,
        ];
        let odd = |wave: usize, name: &Name| wave == 1 && name.as_str() >= "m08";
        let found = split(&order, &waves, odd);
        let sizes: Vec<usize> = found.iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 2, 3, 0, 4]);
        assert_eq!(found[2], order[1..4]);
        assert_eq!(split(&[], &waves, |_, _| true), vec![Vec::<Name>::new(); 5]);
    }

    #[test]
    fn a_wave_bakes_from_its_last_end_and_an_empty_one_passes() {
        let at = Timestamp::from_millis;
        let settled = |millis| Fate::Settled(at(millis));
        let bakes = [Span::from_millis(100); 4];
        let waves = vec![
            vec![settled(5), settled(10)],
            vec![],
            vec![Fate::UnderWay, settled(50)],
            vec![Fate::UnderWay],
        ];
        let until = at(110);
        assert_eq!(
            position(&waves, &bakes, at(109)),
            Position::Baking { wave: 0, until }
        );
        assert_eq!(position(&waves, &bakes, until), Position::In { wave: 2 });
        let done = vec![vec![settled(5)], vec![]];
        assert_eq!(position(&done, &bakes, at(6)), Position::Done);
        assert_eq!(position(&[], &[], at(0)), Position::Done);
    }

    proptest! {
        /// Nobody is lost or doubled.
        #[test]
        fn every_member_is_in_exactly_one_wave(count in 0_usize..30, takes in prop::collection::vec(0_u32..130, 0..5)) {
            let order = names(count);
            let waves: Vec<Take> = takes.iter().map(|t| match t % 3 {
                0 => Take::Selected,
                1 => Take::First(Amount::Count(u64::from(*t) / 10)),
                _ => Take::First(Amount::Percent(*t)),
            }).collect();
            let found = split(&order, &waves, |wave, name| (name.as_str().len() + wave).is_multiple_of(2));
            let mut all: Vec<Name> = found.concat();
            prop_assert_eq!(found.len(), waves.len() + 1);
            all.sort();
            prop_assert_eq!(all, order);
        }
    }
}
