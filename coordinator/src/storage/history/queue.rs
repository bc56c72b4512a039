//! Rows on their way into the history. The replica hands them over and goes on; a thread of their
//! own writes what has gathered in one transaction. A transaction costs more than its rows, and
//! nobody waits for it, so the thread lets rows gather for a while. Whoever asks the history waits
//! for everything that was handed over before the question, and hurries it: answers are as if
//! each row was written at once.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_coordinator_core::{Archived, ArchivedRow, Event};

use super::{HistoryError, HistoryStore};

/// Batches that may wait; the replica waits for room.
const MOST_WAITING: usize = 256;
/// Batches that are not left waiting for more.
const ENOUGH: usize = MOST_WAITING / 2;
/// How long fewer are.
const GATHER: Duration = Duration::from_millis(200);

/// What an entry lets leave the state.
pub struct Left {
    /// Rows that were in the state, oldest first.
    pub archived: Vec<Archived>,
    /// The entry's events.
    pub events: Arc<Vec<Event>>,
    /// The first of the events that are not in the state.
    pub from: usize,
}

impl Left {
    fn rows(&self) -> impl Iterator<Item = ArchivedRow<'_>> {
        let events = self.events.iter().skip(self.from);
        let archived = self.archived.iter().map(Archived::row);
        archived.chain(events.map(ArchivedRow::Event))
    }

    fn is_empty(&self) -> bool {
        self.archived.is_empty() && self.from >= self.events.len()
    }
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<Left>,
    /// Batches that were ever handed over, and that are written.
    queued: u64,
    written: u64,
    /// Somebody waits until this many are written.
    wanted: u64,
    /// No more will come.
    is_ended: bool,
    /// The thread gave up: what was not written never will be.
    has_failed: bool,
}

impl Waiting {
    fn is_urgent(&self) -> bool {
        self.batches.len() >= ENOUGH || self.written < self.wanted || self.is_ended
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// There is something to write, or it has become urgent.
    work: Condvar,
    /// Something was taken, or written.
    progress: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for progress.
    fn wait_while(&self, condition: impl Fn(&mut Waiting) -> bool) -> MutexGuard<'_, Waiting> {
        let done = self.progress.wait_while(self.lock(), condition);
        done.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for batches; none: no more will come.
    fn take(&self) -> VecDeque<Left> {
        let idle = |w: &mut Waiting| w.batches.is_empty() && !w.is_ended;
        let some = self.work.wait_while(self.lock(), idle);
        let some = some.unwrap_or_else(PoisonError::into_inner);
        let more = self
            .work
            .wait_timeout_while(some, GATHER, |w| !w.is_urgent());
        let (mut waiting, _) = more.unwrap_or_else(PoisonError::into_inner);
        let batches = std::mem::take(&mut waiting.batches);
        self.progress.notify_all();
        batches
    }

    /// Waits until what was handed over so far is written.
    pub(super) fn settle(&self) -> Result<(), HistoryError> {
        let mut waiting = self.lock();
        let target = waiting.queued;
        waiting.wanted = target;
        drop(waiting);
        self.work.notify_all();
        let waiting = self.wait_while(|w| w.written < target && !w.has_failed);
        match waiting.written < target {
            true => Err(HistoryError::Closed),
            false => Ok(()),
        }
    }
}

impl HistoryStore {
    /// Hands rows over to [`Self::run`]; from now on every question waits for them.
    pub fn write_soon(&self, left: Left) {
        if left.is_empty() {
            return;
        }
        let queue = &self.inner.queue;
        let mut waiting = queue.wait_while(|w| w.batches.len() >= MOST_WAITING && !w.has_failed);
        waiting.batches.push_back(left);
        waiting.queued += 1;
        if waiting.batches.len() == 1 || waiting.is_urgent() {
            queue.work.notify_all();
        }
    }

    /// Writes what is handed over, until [`Self::finish`] and all is written.
    ///
    /// # Errors
    /// [`HistoryError`] of the first rows that could not be written; nothing is written any more.
    pub fn run(&self) -> Result<(), HistoryError> {
        let queue = &self.inner.queue;
        loop {
            let batches = queue.take();
            if batches.is_empty() {
                return Ok(());
            }
            let done = self.write(batches.iter().flat_map(Left::rows));
            let mut waiting = queue.lock();
            match &done {
                Ok(()) => waiting.written += batches.len() as u64,
                Err(_) => waiting.has_failed = true,
            }
            drop(waiting);
            queue.progress.notify_all();
            done?;
        }
    }

    /// No more rows will be handed over.
    pub fn finish(&self) {
        self.inner.queue.lock().is_ended = true;
        self.inner.queue.work.notify_all();
    }
}
