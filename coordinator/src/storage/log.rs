//! What a log store must do, and the values that it keeps.
//!
//! The Raft driver keeps all live entries in memory and reads the store only once, at start. So
//! the store is a journal: it takes batches in order and gives them back after a restart. The
//! types here mirror Raft's without naming its crate.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEntry {
    /// Position in the log, from 1.
    pub index: u64,
    /// The term of the leader that made the entry.
    pub term: u64,
    /// How `data` is to be read.
    pub kind: EntryKind,
    /// Encoded commands or membership change; empty for a new leader's first entry, and for the
    /// step that leaves a joint membership.
    pub data: Bytes,
}

/// What an entry carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// Commands for the state machine.
    Commands,
    /// A [`crate::raft::MembershipChange`].
    Membership,
}

/// What a node must not forget between two elections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HardState {
    /// The latest term that the node has seen.
    pub term: u64,
    /// Whom it voted for in that term; 0 for nobody.
    pub vote: u64,
    /// The highest index known to be committed.
    pub commit: u64,
}

/// An entry's position without its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The entry's index; 0 before the first.
    pub index: u64,
    /// The entry's term; 0 before the first.
    pub term: u64,
}

/// Who replicates the log. Outside a joint change the last three fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// Node ids that vote.
    pub voters: Vec<u64>,
    /// Node ids that only follow.
    pub learners: Vec<u64>,
    /// Node ids that voted before the change in progress.
    pub voters_outgoing: Vec<u64>,
    /// Node ids that become learners when the change in progress ends.
    pub learners_next: Vec<u64>,
    /// Whether the leader ends the change in progress by itself.
    pub auto_leave: bool,
}

impl Membership {
    /// Whether a change in progress still waits for its end.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Whether `node` takes part in any role.
    #[must_use]
    pub fn contains(&self, node: u64) -> bool {
        self.voters.contains(&node)
            || self.learners.contains(&node)
            || self.voters_outgoing.contains(&node)
            || self.learners_next.contains(&node)
    }
}

/// One change of the log. Its parts take effect in the order of the fields, all or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteBatch {
    /// All entries are given up and the log goes on after this mark: a snapshot was installed.
    pub restart: Option<Mark>,
    /// Entries to append. The first one replaces what stands at its index and behind it.
    pub entries: Vec<LogEntry>,
    /// The new hard state.
    pub hard_state: Option<HardState>,
    /// Entries up to and including this mark are no longer needed.
    pub compact: Option<Mark>,
}

/// What a store holds when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last hard state written.
    pub hard_state: HardState,
    /// The mark before the first entry.
    pub start: Mark,
    /// The entries after `start`, without a gap.
    pub entries: VecDeque<LogEntry>,
}

impl Recovered {
    /// Replays one batch. Gaps are allowed until [`Recovered::finish`], because a later batch may
    /// compact them away.
    pub fn replay(&mut self, batch: &WriteBatch) {
        if let Some(mark) = batch.restart {
            self.entries.clear();
            self.start = mark;
        }
        if let Some(first) = batch.entries.first() {
            while self.entries.back().is_some_and(|e| e.index >= first.index) {
                self.entries.pop_back();
            }
            self.entries.extend(batch.entries.iter().cloned());
        }
        if let Some(hard_state) = batch.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(mark) = batch.compact
            && mark.index > self.start.index
        {
            self.start = mark;
            while self.entries.front().is_some_and(|e| e.index <= mark.index) {
                self.entries.pop_front();
            }
        }
    }

    /// Checks that the entries follow `start` without a gap.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] naming the first missing index.
    pub fn finish(&mut self) -> Result<(), LogError> {
        while self
            .entries
            .front()
            .is_some_and(|e| e.index <= self.start.index)
        {
            self.entries.pop_front();
        }
        for (expected, entry) in (self.start.index + 1..).zip(&self.entries) {
            if entry.index != expected {
                return Err(LogError::Corrupt(format!(
                    "entry {expected} is missing, the next one is {}",
                    entry.index
                )));
            }
        }
        Ok(())
    }

    /// The mark of the last entry.
    #[must_use]
    pub fn last(&self) -> Mark {
        self.entries.back().map_or(self.start, |e| Mark {
            index: e.index,
            term: e.term,
        })
    }
}

/// Why the log cannot be used. Every one of them ends the process: going on could lose what was
/// acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk refused.
    #[error("cannot {action} {file}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file's name.
        file: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Written and acknowledged data is gone. Only the tail of a log may be cut.
    #[error(
        "the log is damaged: {0}. Acknowledged entries would be lost, so this node does not start. Restore the disk, or remove this member from the cluster and join it anew with an empty data folder"
    )]
    Corrupt(String),
    /// The log was written by a newer program.
    #[error("the log cannot be read: {0}")]
    Codec(#[from] super::codec::CodecError),
}

/// A journal of [`WriteBatch`]es. One thread owns it.
pub trait LogStore: Send {
    /// Appends `batches` in order, and makes them and all before them durable when `durable`.
    /// After an error the store must not be used again.
    ///
    /// # Errors
    /// [`LogError::Io`], never half hidden: what was written before is still there.
    fn write(&mut self, batches: &[WriteBatch], durable: bool) -> Result<(), LogError>;

    /// Makes everything durable; called once, at the end.
    ///
    /// # Errors
    /// As [`LogStore::write`].
    fn close(&mut self) -> Result<(), LogError>;

    /// Bytes that the log takes on disk.
    fn size(&self) -> u64;
}
