//! When the members of a gradual rollout are due (product.md §5.5).
//!
//! Offsets are spans of open time after the start; the start is the first open instant at or after
//! the base. What actually started moves the rest: a backlog is paced like the plan.

use tidegate_shared::spec::GradualType;
use tidegate_shared::time::{Span, Timestamp};

use super::open_time::{Openings, Walk};

/// How fast members follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Linear or normalized.
    pub kind: GradualType,
    /// Between members, or of the whole rollout.
    pub interval: Span,
}

/// The plan of a rollout that has started, or will by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Everything that it waited for was there.
    pub base: Timestamp,
    /// The first open instant from there on; none: nothing ever opens.
    pub start: Option<Timestamp>,
    /// When each member is due, by position; none: never.
    pub due: Vec<Option<Timestamp>>,
}

impl Pace {
    /// Open time after the start at which the member at `position` of `members` is due. Normalized
    /// offsets are whole seconds, rounded down.
    pub fn offset(self, members: u64, position: u64) -> Span {
        let product = u128::from(position) * u128::from(self.interval.millis());
        let millis = match self.kind {
            GradualType::Linear => product,
            GradualType::LinearNormalized => {
                let seconds = product
                    .checked_div(u128::from(members) * 1_000)
                    .unwrap_or(0);
                seconds * 1_000
            }
        };
        Span::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

/// The latest of the creation and of the gates (approvals, progressions, or the skips that replaced
/// them); none while one of them is not satisfied.
pub fn base(
    created_at: Timestamp,
    gates: impl IntoIterator<Item = Option<Timestamp>>,
) -> Option<Timestamp> {
    gates
        .into_iter()
        .try_fold(created_at, |latest, gate| Some(latest.max(gate?)))
}

/// The whole plan, as if every member started when it is due.
pub fn schedule(pace: Pace, members: u64, base: Timestamp, openings: Openings<'_>) -> Schedule {
    let start = openings.reach(base, Span::ZERO);
    let mut walk = Walk::new(openings, base);
    let due = (0..members)
        .map(|position| walk.reach(pace.offset(members, position)))
        .collect();
    Schedule { base, start, due }
}

/// A member that started: its position, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// From 0.
    pub position: u64,
    /// When it entered `CREATING`.
    pub at: Timestamp,
}

/// When one member is due: by the plan, and not before the open time between it and the last one
/// that started has passed. A member that comes before the last one in the order is not held back.
pub fn due(
    pace: Pace,
    members: u64,
    position: u64,
    base: Timestamp,
    last: Option<Started>,
    openings: Openings<'_>,
) -> Option<Timestamp> {
    let planned = openings.reach(base, pace.offset(members, position))?;
    let Some(last) = last.filter(|last| last.position < position) else {
        return Some(planned);
    };
    let between = pace
        .offset(members, position)
        .saturating_sub(pace.offset(members, last.position));
    Some(planned.max(openings.reach(last.at, between)?))
}

#[cfg(test)]
mod tests;
