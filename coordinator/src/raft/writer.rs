//! The log-writer thread: makes what Raft hands over durable, many at once.
//!
//! While one sync runs, further work gathers and goes into the next (group commit). Messages that
//! promise durability leave only after the sync. A failing write or sync ends the process: the
//! disk's content is then in doubt, and going on could lose what was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use tidegate_proto::peer::v1::RaftMessage;

use super::transport::Outbox;
use super::{OnFatal, spawn_thread};
use crate::storage::log::{LogStore, WriteBatch};

/// Upper bound of entries' bytes in one write.
const GROUP_BYTES: usize = 8 * 1024 * 1024;

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

/// Starts the thread. It ends when `tasks` is closed, with a clean end of the log; or at once,
/// dropping what waits, when `killed` is set.
///
/// # Errors
/// When the system gives no thread.
pub fn spawn(
    mut store: Box<dyn LogStore>,
    tasks: mpsc::Receiver<WriteTask>,
    outbox: Arc<dyn Outbox>,
    persisted: impl Fn(u64) + Send + 'static,
    killed: Arc<AtomicBool>,
    on_fatal: OnFatal,
) -> std::io::Result<JoinHandle<()>> {
    let fatal = on_fatal.clone();
    spawn_thread("raft-log", on_fatal, move || {
        while let Ok(first) = tasks.recv() {
            let mut bytes = weight(&first);
            let mut group = vec![first];
            while bytes < GROUP_BYTES {
                let Ok(task) = tasks.try_recv() else { break };
                bytes += weight(&task);
                group.push(task);
            }
            if killed.load(Ordering::Relaxed) {
                return;
            }
            let mut batches = Vec::with_capacity(group.len());
            let mut messages = Vec::new();
            let mut must_sync = false;
            let mut number = 0;
            for task in group {
                if task.batch != WriteBatch::default() {
                    batches.push(task.batch);
                }
                must_sync |= task.must_sync;
                messages.extend(task.messages);
                number = task.number;
            }
            if let Err(error) = store.write(&batches, must_sync) {
                fatal(format!("{error}; the node stops rather than lose entries"));
                return;
            }
            outbox.send(messages);
            persisted(number);
        }
        if killed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = store.close() {
            fatal(format!("the log cannot be closed: {error}"));
        }
    })
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

    fn run(disk: &FaultyDisk, fail_after: Option<u64>) -> Vec<String> {
        let (store, _) = SegmentLog::open(Arc::new(disk.clone()), 1 << 16).unwrap();
        if let Some(operations) = fail_after {
            disk.fail_after(operations);
        }
        let seen = Arc::new(Seen::default());
        let (tasks, receiver) = mpsc::channel();
        let (told, fatal) = (seen.clone(), seen.clone());
        let thread = spawn(
            Box::new(store),
            receiver,
            seen.clone(),
            move |number| told.add(format!("persisted {number}")),
            Arc::default(),
            Arc::new(move |message| fatal.add(message)),
        )
        .unwrap();
        let task = WriteTask {
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
        };
        tasks.send(task).unwrap();
        drop(tasks);
        thread.join().unwrap();
        seen.0.lock().unwrap().clone()
    }

    #[test]
    fn messages_leave_after_the_sync() {
        let disk = FaultyDisk::new(1);
        assert_eq!(run(&disk, None), ["sent 3", "persisted 4"]);
        disk.crash();
        let (_, found) = SegmentLog::open(Arc::new(disk), 1 << 16).unwrap();
        assert_eq!(found.last().index, 3);
    }

    #[test]
    fn a_failing_sync_is_fatal_and_nothing_is_promised() {
        let seen = run(&FaultyDisk::new(1), Some(1));
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[0].contains("cannot sync"), "{seen:?}");
    }
}
