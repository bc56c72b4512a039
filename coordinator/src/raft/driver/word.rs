//! When followers hear that entries are committed.
//!
//! Every append carries how far the log is committed. While commands come one after the other, a
//! message of its own after each commit would double what members send and wake: the next append
//! is on its way before long. So the leader waits a moment for one, unless somebody at a follower
//! waits for the effect.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use raft::StateRole;

use super::Driver;

/// Followers hear of a commit after this time at the latest.
const MOMENT: Duration = Duration::from_millis(1);

/// What followers were told of the commit.
#[derive(Debug, Default)]
pub(super) struct Word {
    /// The index that they were told.
    told: u64,
    /// Entries whose effect somebody at a follower waits for, until that one is told.
    awaited: VecDeque<u64>,
    /// When they have to hear of a later one.
    due: Option<Instant>,
}

impl Word {
    /// An append with this commit index is on its way to all.
    pub(super) fn went_along(&mut self, committed: u64) {
        self.told = self.told.max(committed);
        self.due = None;
        while self
            .awaited
            .front()
            .is_some_and(|&index| index <= committed)
        {
            self.awaited.pop_front();
        }
    }

    /// Somebody at a follower waits for this entry, the newest one.
    pub(super) fn is_awaited(&mut self, index: u64) {
        self.awaited.push_back(index);
    }

    /// Whether followers have to be told now; else when.
    fn due(&mut self, committed: u64, now: Instant) -> (bool, Option<Instant>) {
        if committed <= self.told {
            self.due = None;
            return (false, None);
        }
        let due = *self.due.get_or_insert(now + MOMENT);
        let oldest = self.awaited.front();
        let is_awaited = oldest.is_some_and(|&index| index <= committed);
        (is_awaited || now >= due, Some(due))
    }
}

impl Driver {
    /// Tells followers of the commit if it is time; else when it will be.
    pub(super) fn tell_commit(&mut self, now: Instant) -> Option<Instant> {
        let raft = &mut self.raw.raft;
        if raft.state != StateRole::Leader {
            self.word = Word::default();
            return None;
        }
        let committed = raft.raft_log.committed;
        let (is_due, due) = self.word.due(committed, now);
        if !is_due {
            return due;
        }
        self.word.went_along(committed);
        raft.bcast_append();
        self.handle_ready();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_told_in_a_moment_or_with_the_next_append_or_at_once_if_awaited() {
        let now = Instant::now();
        let mut word = Word::default();
        assert_eq!(word.due(0, now), (false, None));
        assert_eq!(word.due(5, now), (false, Some(now + MOMENT)));
        // Later commits do not put it off.
        let later = now + MOMENT / 2;
        assert_eq!(word.due(6, later), (false, Some(now + MOMENT)));
        assert!(word.due(6, now + MOMENT).0);
        word.went_along(6);
        assert_eq!(word.due(6, later), (false, None));
        word.is_awaited(8);
        word.is_awaited(10);
        assert!(!word.due(7, now).0, "what is awaited is not committed yet");
        assert!(word.due(8, now).0);
        word.went_along(8);
        assert!(!word.due(9, now).0);
        assert!(word.due(10, now).0);
        word.went_along(10);
        assert!(!word.due(11, now).0);
    }
}
