//! The log in memory, as Raft reads it. A part of the driver.

#![allow(
    clippy::field_reassign_with_default,
    reason = "the crate's messages have private fields and cannot be built in one expression"
)]

use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{Entry, HardState as RaftHardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::wire::conf_state;
use crate::storage::log::{HardState, Mark, Membership};
use crate::storage::snapshot::SnapshotFile;

/// The log in memory, as Raft reads it.
pub(super) struct Cache {
    pub(super) hard_state: HardState,
    /// At start: the membership of the snapshot. Raft follows it from there itself.
    pub(super) membership: Membership,
    pub(super) start: Mark,
    pub(super) entries: VecDeque<Entry>,
    pub(super) snapshot: Option<SnapshotFile>,
    pub(super) wants_snapshot: std::cell::Cell<bool>,
}

impl Cache {
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.entries.back().is_some_and(|e| e.index >= first.index) {
            self.entries.pop_back();
        }
        self.entries.extend(entries.iter().cloned());
    }

    pub(super) fn compact(&mut self, index: u64) -> Option<Mark> {
        if index <= self.start.index || index > self.last() {
            return None;
        }
        let term = self.term(index).ok()?;
        while self.entries.front().is_some_and(|e| e.index <= index) {
            self.entries.pop_front();
        }
        self.start = Mark { index, term };
        Some(self.start)
    }

    pub(super) fn restart(&mut self, file: SnapshotFile) {
        self.entries.clear();
        self.start = file.head.mark;
        self.membership = file.head.membership.clone();
        self.snapshot = Some(file);
    }

    pub(super) fn last(&self) -> u64 {
        self.start.index + self.entries.len() as u64
    }
}

impl Storage for Cache {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut hard_state = RaftHardState::default();
        hard_state.term = self.hard_state.term;
        hard_state.vote = self.hard_state.vote;
        hard_state.commit = self.hard_state.commit;
        Ok(RaftState::new(hard_state, conf_state(&self.membership)))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.start.index {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let from = usize::try_from(low - self.start.index - 1).unwrap_or(usize::MAX);
        let count = usize::try_from(high - low).unwrap_or(usize::MAX);
        let mut found = Vec::with_capacity(count.min(1024));
        for entry in self.entries.iter().skip(from).take(count) {
            size += (entry.data.len() + entry.context.len() + 32) as u64;
            if size > limit && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.start.index {
            return Ok(self.start.term);
        }
        if index < self.start.index {
            return Err(StorageError::Compacted.into());
        }
        let at = usize::try_from(index - self.start.index - 1).unwrap_or(usize::MAX);
        self.entries
            .get(at)
            .map(|e| e.term)
            .ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.start.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        match &self.snapshot {
            // A node ignores a snapshot whose membership it is not in, and would ask for ever.
            Some(file)
                if file.head.mark.index >= request_index.max(self.start.index)
                    && file.head.membership.contains(to) =>
            {
                let mut snapshot = Snapshot::default();
                snapshot.data = Bytes::copy_from_slice(&file.length.to_le_bytes());
                let metadata = snapshot.mut_metadata();
                metadata.index = file.head.mark.index;
                metadata.term = file.head.mark.term;
                *metadata.mut_conf_state() = conf_state(&file.head.membership);
                Ok(snapshot)
            }
            _ => {
                self.wants_snapshot.set(true);
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}
