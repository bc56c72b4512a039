//! The log writer: makes what Raft hands over durable, many at once.
//!
//! Two ways lead to the disk. A thread of its own takes what Raft hands over while it goes on: while
//! one sync runs, further work gathers and goes into the next (group commit). On a disk that syncs
//! in less time than two threads take to wake each other, and with nothing else to do, Raft's
//! thread writes by itself. Either way messages that promise durability leave only after the sync.
//! A failing write or sync ends the process: the disk's content is then in doubt, and going on
//! could lose what was acknowledged.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tidegate_proto::peer::v1::RaftMessage;

use super::transport::Outbox;
use super::{OnFatal, spawn_thread};
use crate::clock::Clock;
use crate::storage::log::{LogStore, WriteBatch};

/// Upper bound of entries' bytes in one write.
const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// A disk whose syncs usually take longer is never waited for by Raft's thread, which has to beat
/// several times within a tick.
const PATIENCE: Duration = Duration::from_millis(1);

/// One hand-over of Raft.
#[derive(Debug)]
pub struct WriteTask {
    /// Its number, rising.
    pub number: u64,
    /// What to write; may be empty.
    pub batch: WriteBatch,
    /// Whether Raft's promises rest on it.
    pub must_sync: bool,
    /// Messages to send afterwards.
    pub messages: Vec<RaftMessage>,
}

fn weight(task: &WriteTask) -> usize {
    task.batch.entries.iter().map(|e| e.data.len() + 64).sum()
}

/// What became of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is durable and its messages are sent.
    Now,
    /// The thread has it and will tell.
    Later,
    /// The disk failed, or the node is ending: it never will be.
    Never,
}

/// What both ways to the disk share.
struct Journal {
    store: Mutex<Box<dyn LogStore>>,
    outbox: Arc<dyn Outbox>,
    killed: Arc<AtomicBool>,
    on_fatal: OnFatal,
    clock: Clock,
    /// Tasks that the thread has not finished.
    waiting: AtomicUsize,
    /// What a sync usually takes, in microseconds.
    usual: AtomicU64,
}

impl Journal {
    /// Writes tasks together and sends their messages; no: the disk failed or the node was killed.
    fn write(&self, tasks: Vec<WriteTask>) -> bool {
        if self.killed.load(Ordering::Relaxed) {
            return false;
        }
        let mut batches = Vec::with_capacity(tasks.len());
        let mut messages = Vec::new();
        let mut must_sync = false;
        for task in tasks {
            if task.batch != WriteBatch::default() {
                batches.push(task.batch);
            }
            must_sync |= task.must_sync;
            messages.extend(task.messages);
        }
        let begun = self.clock.monotonic();
        if let Err(error) = self.with_store(|store| store.write(&batches, must_sync)) {
            (self.on_fatal)(format!("{error}; the node stops rather than lose entries"));
            return false;
        }
        if must_sync {
            self.learn(self.clock.monotonic().saturating_sub(begun));
        }
        self.outbox.send(messages);
        true
    }

    fn with_store<T>(&self, act: impl FnOnce(&mut dyn LogStore) -> T) -> T {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        act(store.as_mut())
    }

    /// An eighth of what is usual is forgotten with each sync.
    fn learn(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX / 8);
        let usual = self.usual.load(Ordering::Relaxed);
        let learned = usual - usual / 8 + took / 8;
        self.usual.store(learned, Ordering::Relaxed);
    }

    fn is_fast(&self) -> bool {
        Duration::from_micros(self.usual.load(Ordering::Relaxed)) < PATIENCE
    }
}

/// The way to the disk, for Raft's thread alone. Dropping it ends the writing thread.
pub struct LogWriter {
    journal: Arc<Journal>,
    tasks: mpsc::Sender<WriteTask>,
}

impl LogWriter {
    /// Writes a task, or has it written. `may_wait`: the caller has nothing else to do.
    pub fn write(&self, task: WriteTask, may_wait: bool) -> Written {
        let journal = &self.journal;
        // Tasks are written in their order: this one may go ahead of none.
        if may_wait && journal.is_fast() && journal.waiting.load(Ordering::Acquire) == 0 {
            return match journal.write(vec![task]) {
                true => Written::Now,
                false => Written::Never,
            };
        }
        journal.waiting.fetch_add(1, Ordering::AcqRel);
        match self.tasks.send(task) {
            Ok(()) => Written::Later,
            Err(_) => Written::Never,
        }
    }
}

/// Starts the thread. It ends when the [`LogWriter`] is dropped, with a clean end of the log; or at
/// once, dropping what waits, when `killed` is set.
///
/// # Errors
/// When the system gives no thread.
pub fn start(
    store: Box<dyn LogStore>,
    outbox: Arc<dyn Outbox>,
    persisted: impl Fn(u64) + Send + 'static,
    killed: Arc<AtomicBool>,
    on_fatal: OnFatal,
    clock: Clock,
) -> std::io::Result<(LogWriter, JoinHandle<()>)> {
    let journal = Arc::new(Journal {
        store: Mutex::new(store),
        outbox,
        killed,
        on_fatal: on_fatal.clone(),
        clock,
        waiting: AtomicUsize::new(0),
        usual: AtomicU64::new(0),
    });
    let (sender, tasks) = mpsc::channel();
    let writer = LogWriter {
        journal: journal.clone(),
        tasks: sender,
    };
    let thread = spawn_thread("raft-log", on_fatal, move || {
        write_all(&journal, &tasks, persisted);
    })?;
    Ok((writer, thread))
}

fn write_all(journal: &Journal, tasks: &mpsc::Receiver<WriteTask>, persisted: impl Fn(u64)) {
    while let Ok(first) = tasks.recv() {
        let mut bytes = weight(&first);
        let mut group = vec![first];
        while bytes < GROUP_BYTES {
            let Ok(task) = tasks.try_recv() else { break };
            bytes += weight(&task);
            group.push(task);
        }
        let (count, number) = (group.len(), group.last().map_or(0, |task| task.number));
        if !journal.write(group) {
            return;
        }
        persisted(number);
        journal.waiting.fetch_sub(count, Ordering::AcqRel);
    }
    if journal.killed.load(Ordering::Relaxed) {
        return;
    }
    if let Err(error) = journal.with_store(|store| store.close()) {
        (journal.on_fatal)(format!("the log cannot be closed: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance::entries;
    use crate::storage::faulty::FaultyDisk;
    use crate::storage::segment::SegmentLog;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);

    impl Seen {
        fn add(&self, what: String) {
            self.0.lock().unwrap().push(what);
        }
    }

    impl Outbox for Seen {
        fn send(&self, messages: Vec<RaftMessage>) {
            for message in messages {
                self.add(format!("sent {}", message.index));
            }
        }
    }

    fn task() -> WriteTask {
        WriteTask {
            number: 4,
            batch: WriteBatch {
                entries: entries(1, 3, 1),
                ..WriteBatch::default()
            },
            must_sync: true,
            messages: vec![RaftMessage {
                index: 3,
                ..RaftMessage::default()
            }],
        }
    }

    /// What was seen, and what the writer answered.
    fn run(disk: &FaultyDisk, fail_after: Option<u64>, may_wait: bool) -> (Vec<String>, Written) {
        let (store, _) = SegmentLog::open(Arc::new(disk.clone()), 1 << 16).unwrap();
        if let Some(operations) = fail_after {
            disk.fail_after(operations);
        }
        let seen = Arc::new(Seen::default());
        let (told, fatal) = (seen.clone(), seen.clone());
        let (writer, thread) = start(
            Box::new(store),
            seen.clone(),
            move |number| told.add(format!("persisted {number}")),
            Arc::default(),
            Arc::new(move |message| fatal.add(message)),
            Clock::system(),
        )
        .unwrap();
        let written = writer.write(task(), may_wait);
        drop(writer);
        thread.join().unwrap();
        let seen = seen.0.lock().unwrap().clone();
        (seen, written)
    }

    #[test]
    fn messages_leave_after_the_sync() {
        let by_thread = (
            vec!["sent 3".to_owned(), "persisted 4".to_owned()],
            Written::Later,
        );
        // Whoever waited knows that it is done.
        let at_once = (vec!["sent 3".to_owned()], Written::Now);
        for (may_wait, expected) in [(false, by_thread), (true, at_once)] {
            let disk = FaultyDisk::new(1);
            assert_eq!(run(&disk, None, may_wait), expected);
            disk.crash();
            let (_, found) = SegmentLog::open(Arc::new(disk), 1 << 16).unwrap();
            assert_eq!(found.last().index, 3);
        }
    }

    #[test]
    fn a_failing_sync_is_fatal_and_nothing_is_promised() {
        for (may_wait, expected) in [(false, Written::Later), (true, Written::Never)] {
            let (seen, written) = run(&FaultyDisk::new(1), Some(1), may_wait);
            assert_eq!(written, expected);
            // Closing the log fails as well, where the thread is still there to do it.
            assert!(seen[0].contains("cannot sync"), "{seen:?}");
            assert!(!seen.iter().any(|s| s.starts_with("sent")), "{seen:?}");
            assert!(!seen.iter().any(|s| s.starts_with("persisted")), "{seen:?}");
        }
    }

    #[test]
    fn raft_never_waits_for_a_slow_disk_nor_overtakes_a_task() {
        let (store, _) = SegmentLog::open(Arc::new(FaultyDisk::new(1)), 1 << 16).unwrap();
        let (tasks, queue) = mpsc::channel();
        let journal = Arc::new(Journal {
            store: Mutex::new(Box::new(store)),
            outbox: Arc::new(Seen::default()),
            killed: Arc::default(),
            on_fatal: Arc::new(|_| ()),
            clock: Clock::system(),
            waiting: AtomicUsize::new(0),
            usual: AtomicU64::new(0),
        });
        let writer = LogWriter {
            journal: journal.clone(),
            tasks,
        };
        assert_eq!(writer.write(task(), true), Written::Now);
        assert_eq!(writer.write(task(), false), Written::Later);
        assert_eq!(writer.write(task(), true), Written::Later);
        write_all_that_waits(&journal, &queue);
        assert_eq!(writer.write(task(), true), Written::Now);
        for _ in 0..8 {
            journal.learn(Duration::from_millis(2));
        }
        assert_eq!(writer.write(task(), true), Written::Later);
        for _ in 0..16 {
            journal.learn(Duration::ZERO);
        }
        write_all_that_waits(&journal, &queue);
        assert_eq!(writer.write(task(), true), Written::Now);
    }

    fn write_all_that_waits(journal: &Journal, queue: &mpsc::Receiver<WriteTask>) {
        let (again, waiting) = mpsc::channel();
        queue.try_iter().for_each(|task| again.send(task).unwrap());
        drop(again);
        write_all(journal, &waiting, |_| ());
    }
}
