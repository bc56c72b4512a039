//! How a node starts from its disk, when it writes snapshots, and how far the log is cut.
//!
//! A node starts from the newest good snapshot and the log behind it. Snapshots are written on a
//! thread of their own from a clone of the state, which costs nothing, so applying goes on.

use std::io::BufReader;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tidegate_coordinator_core::State;

use super::driver::RaftHandle;
use super::{OnFatal, RaftSettings, spawn_thread};
use crate::storage;
use crate::storage::history::{HistoryError, HistoryStore};
use crate::storage::log::{HardState, LogError, LogStore, Mark, Membership, Recovered, WriteBatch};
use crate::storage::snapshot::{SnapshotError, SnapshotFile, SnapshotStore, mark_of};

/// Where a node starts.
#[derive(Clone, Debug)]
pub struct Start {
    /// The cluster's ULID as text.
    pub cluster_id: String,
    /// The log, consistent with the snapshot.
    pub log: Recovered,
    /// The snapshot to start from; `None` for a node that joins.
    pub snapshot: Option<SnapshotFile>,
}

/// Why a node cannot start from its disk.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A snapshot cannot be used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The history cannot be used.
    #[error(transparent)]
    History(#[from] HistoryError),
}

/// Fits the log to the newest good snapshot, and writes to `store` what that changes.
///
/// # Errors
/// [`StartError`] when entries between the snapshot and the log are gone, or acknowledged ones
/// behind both.
pub fn recover(
    cluster_id: &str,
    mut log: Recovered,
    snapshots: &SnapshotStore,
    store: &mut dyn LogStore,
) -> Result<Start, StartError> {
    snapshots.remove_leftovers()?;
    let usable = snapshots.usable(|error| {
        tracing::error!(%error, "passed over for the one before it");
    })?;
    let snapshot = usable.into_iter().next();
    let mark = snapshot
        .as_ref()
        .map_or_else(Mark::default, |s| s.head.mark);
    if mark.index < log.start.index {
        return Err(LogError::Corrupt(format!(
            "it begins behind entry {}, and the newest good snapshot ends with entry {}",
            log.start.index, mark.index
        ))
        .into());
    }
    let before = log.clone();
    let mut batch = WriteBatch::default();
    if !holds(&log, mark) {
        // The snapshot arrived, and the node ended before its log followed.
        log.entries.clear();
        log.start = mark;
        batch.restart = Some(mark);
    }
    let last = log.last();
    let known = before.hard_state;
    if known.commit > last.index {
        return Err(LogError::Corrupt(format!(
            "entry {} is known to be committed, and the log ends with entry {}",
            known.commit, last.index
        ))
        .into());
    }
    log.hard_state = HardState {
        term: known.term.max(last.term),
        vote: if last.term > known.term {
            0
        } else {
            known.vote
        },
        // What a snapshot holds is committed. Raft panics when applied is ahead of commit.
        commit: known.commit.max(mark.index),
    };
    if log.hard_state != known {
        batch.hard_state = Some(log.hard_state);
    }
    if batch != WriteBatch::default() {
        store.write(&[batch], true)?;
    }
    Ok(Start {
        cluster_id: cluster_id.to_owned(),
        log,
        snapshot,
    })
}

/// Whether the log holds the entry at `mark`, or begins right behind it.
fn holds(log: &Recovered, mark: Mark) -> bool {
    if mark.index == log.start.index {
        return mark.term == log.start.term;
    }
    log.entries
        .iter()
        .any(|e| e.index == mark.index && e.term == mark.term)
}

/// The state in a snapshot.
///
/// # Errors
/// [`SnapshotError`] when the file is damaged, or was written by a newer program.
pub fn read_state(store: &SnapshotStore, file: &SnapshotFile) -> Result<State, SnapshotError> {
    let reader = BufReader::with_capacity(1 << 16, store.open(&file.name)?);
    Ok(storage::state::read(reader)?)
}

/// Writes a snapshot of `state`.
///
/// # Errors
/// [`SnapshotError`].
pub fn write_state(
    store: &SnapshotStore,
    mark: Mark,
    membership: &Membership,
    state: &State,
) -> Result<SnapshotFile, SnapshotError> {
    store.write(mark, membership, state.extent(), |out| {
        storage::state::write(state, out)
    })
}

/// Decides when to write, and writes beside everything else. Owned by the replica's thread.
pub struct Snapshotter {
    store: SnapshotStore,
    history: HistoryStore,
    settings: RaftSettings,
    raft: RaftHandle,
    on_fatal: OnFatal,
    is_writing: Arc<AtomicBool>,
    newest: u64,
    entries: u64,
    bytes: u64,
}

impl Snapshotter {
    /// Node `node_id`, whose newest snapshot ends with entry `newest`.
    ///
    /// Members apply the same entries at about the same time. They begin to count at different
    /// thirds, so that not all of them write a snapshot at once and a majority goes on undisturbed.
    #[must_use]
    pub fn new(
        store: SnapshotStore,
        history: HistoryStore,
        settings: RaftSettings,
        raft: RaftHandle,
        on_fatal: OnFatal,
        node_id: u64,
        newest: u64,
    ) -> Snapshotter {
        let third = node_id % 3;
        Snapshotter {
            entries: settings.snapshot_entries / 3 * third,
            bytes: settings.snapshot_bytes / 3 * third,
            store,
            history,
            settings,
            raft,
            on_fatal,
            is_writing: Arc::new(AtomicBool::new(false)),
            newest,
        }
    }

    /// An entry of `bytes` was applied.
    pub fn count(&mut self, bytes: u64) {
        self.entries += 1;
        self.bytes += bytes;
    }

    /// A snapshot that ends with entry `index` was installed.
    pub fn installed(&mut self, index: u64) {
        self.newest = index;
        self.entries = 0;
        self.bytes = 0;
        if let Err(error) = self.store.retain() {
            tracing::warn!(%error, "old snapshots stay");
        }
    }

    /// Writes a snapshot if it is due, or if somebody `asked` and there is something new.
    pub fn consider(&mut self, asked: bool, mark: Mark, membership: &Membership, state: &State) {
        let due = self.entries >= self.settings.snapshot_entries
            || self.bytes >= self.settings.snapshot_bytes;
        if !(due || asked) || mark.index <= self.newest || membership.is_joint() {
            return;
        }
        if self.is_writing.swap(true, Ordering::AcqRel) {
            return;
        }
        self.newest = mark.index;
        self.entries = 0;
        self.bytes = 0;
        let (store, history, raft, is_writing) = (
            self.store.clone(),
            self.history.clone(),
            self.raft.clone(),
            self.is_writing.clone(),
        );
        let (membership, state) = (membership.clone(), state.clone());
        let keep = self.settings.keep_entries;
        let spawned = spawn_thread("snapshot", self.on_fatal.clone(), move || {
            // Whoever starts from the snapshot needs what has left its state.
            let result = history.sync().map_err(StartError::from).and_then(|()| {
                let file = write_state(&store, mark, &membership, &state)?;
                Ok((file, store.retain()?))
            });
            match result {
                Ok((file, kept)) => {
                    // Behind the older one, so that a damaged newest one can be passed over.
                    let older = kept.get(1).and_then(|name| mark_of(name));
                    let compact = older.map_or(0, |m| m.index.saturating_sub(keep));
                    raft.snapshot_taken(file, compact);
                }
                Err(error) => tracing::error!(%error, "the log stays long until one succeeds"),
            }
            is_writing.store(false, Ordering::Release);
        });
        if let Err(error) = spawned {
            self.is_writing.store(false, Ordering::Release);
            tracing::error!(%error, "no thread for a snapshot");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance::entries;
    use crate::storage::faulty::FaultyDisk;
    use crate::storage::memory::MemoryLog;

    fn snapshots(marks: &[(u64, u64)]) -> SnapshotStore {
        let store = SnapshotStore::new(Arc::new(FaultyDisk::new(1)), "01CLUSTER");
        for &(index, term) in marks {
            let mark = Mark { index, term };
            write_state(&store, mark, &Membership::default(), &State::default()).unwrap();
        }
        store
    }

    fn log(first: u64, count: u64, term: u64, commit: u64) -> Recovered {
        Recovered {
            hard_state: HardState {
                term,
                vote: 1,
                commit,
            },
            start: Mark {
                index: first - 1,
                term: u64::from(first > 1),
            },
            entries: entries(first, count, term).into(),
        }
    }

    fn run(log: Recovered, marks: &[(u64, u64)]) -> Result<Start, StartError> {
        recover(
            "01CLUSTER",
            log,
            &snapshots(marks),
            &mut MemoryLog::default(),
        )
    }

    #[test]
    fn applied_is_never_ahead_of_commit() {
        let start = run(log(1, 10, 1, 3), &[(8, 1)]).unwrap();
        assert_eq!(start.log.hard_state.commit, 8);
        assert_eq!(start.log.entries.len(), 10);
    }

    #[test]
    fn a_snapshot_ahead_of_the_log_restarts_it() {
        let start = run(log(1, 10, 1, 3), &[(100, 4)]).unwrap();
        assert_eq!(
            start.log.start,
            Mark {
                index: 100,
                term: 4
            }
        );
        assert!(start.log.entries.is_empty());
        let expected = HardState {
            term: 4,
            vote: 0,
            commit: 100,
        };
        assert_eq!(start.log.hard_state, expected);
    }

    #[test]
    fn a_log_that_contradicts_the_snapshot_gives_way() {
        let start = run(log(1, 10, 1, 3), &[(8, 2)]).unwrap();
        assert_eq!(start.log.start, Mark { index: 8, term: 2 });
        assert!(start.log.entries.is_empty());
    }

    #[test]
    fn a_gap_between_snapshot_and_log_is_fatal() {
        let error = run(log(50, 10, 1, 55), &[(20, 1)]).unwrap_err();
        assert!(
            error.to_string().contains("begins behind entry 49"),
            "{error}"
        );
    }

    #[test]
    fn lost_committed_entries_are_fatal() {
        let error = run(log(1, 10, 1, 30), &[(5, 1)]).unwrap_err();
        assert!(error.to_string().contains("entry 30"), "{error}");
    }

    #[test]
    fn a_fresh_node_starts_with_nothing() {
        let start = run(Recovered::default(), &[]).unwrap();
        assert_eq!(start.log, Recovered::default());
        assert_eq!(start.snapshot, None);
    }
}
