//! The replica: the only holder of `&mut State`.
//!
//! One thread takes committed entries in order, applies them, hands what left the state to the
//! history, publishes a new read view, and only then answers those who wait, so whoever was
//! answered finds the effect in the view. A read view is an O(1) clone; readers never block applying.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tidegate_coordinator_core::{Applied, Entry, Event, Outcome, State};
use tidegate_shared::time::Timestamp;
use tokio::sync::{broadcast, watch};
use tokio::time::Sleep;

use crate::raft::driver::RaftHandle;
use crate::raft::snapshot::{Snapshotter, StartError, read_state};
use crate::raft::{Committed, CommittedEntry, Fate, OnFatal, Ticket, spawn_thread};
use crate::storage::codec;
use crate::storage::history::HistoryStore;
use crate::storage::history::queue::Left;
use crate::storage::log::{EntryKind, Mark, Membership};
use crate::storage::snapshot::{SnapshotFile, SnapshotStore};

/// Entries that a slow subscriber may be behind before it must start from a view.
pub const EVENT_BACKLOG: usize = 4096;

/// The state at one index. Cheap to clone and to keep.
#[derive(Clone, Debug)]
pub struct View {
    /// The state.
    pub state: State,
    /// The last entry that it includes.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// Who takes part in Raft at that entry.
    pub membership: Membership,
}

/// The newest view, always.
pub type Views = watch::Receiver<Arc<View>>;

/// Views for those who need not see every one: the next at once, and then none for a while. Waking
/// everybody for each of thousands of entries a second would cost more than applying them.
#[derive(Debug)]
pub struct Glimpses {
    views: Views,
    rest: Duration,
    resting: Option<Pin<Box<Sleep>>>,
}

impl Glimpses {
    /// At most one in each `rest`.
    #[must_use]
    pub fn new(views: Views, rest: Duration) -> Glimpses {
        Glimpses {
            views,
            rest,
            resting: None,
        }
    }

    /// The newest view, once there is one that was not given yet. May be dropped while it waits:
    /// nothing is missed.
    ///
    /// # Errors
    /// The replica has ended.
    pub async fn next(&mut self) -> Result<Arc<View>, watch::error::RecvError> {
        if let Some(resting) = &mut self.resting {
            resting.as_mut().await;
            self.resting = None;
        }
        self.views.changed().await?;
        self.resting = Some(Box::pin(tokio::time::sleep(self.rest)));
        Ok(self.views.borrow_and_update().clone())
    }
}

/// What one entry did. Entries without events are published too, so indexes have no gaps but
/// those of membership changes and of a snapshot's installation.
#[derive(Clone, Debug)]
pub struct AppliedEntry {
    /// The entry's index.
    pub index: u64,
    /// The entry's time.
    pub at: Timestamp,
    /// What happened, in order.
    pub events: Arc<Vec<Event>>,
}

/// Applied entries as they come. A receiver that lags starts again from the view.
pub type AppliedEntries = broadcast::Sender<Arc<AppliedEntry>>;

/// The state machine: changes the state by one entry, with one [`Applied`] per item.
pub type ApplyFn = fn(&mut State, u64, &Entry) -> Vec<Applied>;

/// Everything that the thread needs.
pub(crate) struct ReplicaParts {
    pub apply: ApplyFn,
    pub state: State,
    pub mark: Mark,
    pub membership: Membership,
    pub snapshots: SnapshotStore,
    pub history: HistoryStore,
    pub snapshotter: Snapshotter,
    pub raft: RaftHandle,
    pub views: watch::Sender<Arc<View>>,
    pub entries: AppliedEntries,
    pub on_fatal: OnFatal,
}

/// Starts the thread; it ends when `committed` is closed.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn spawn(
    parts: ReplicaParts,
    committed: mpsc::Receiver<Committed>,
) -> std::io::Result<JoinHandle<()>> {
    let on_fatal = parts.on_fatal.clone();
    let mut replica = Replica { parts };
    spawn_thread("replica", on_fatal, move || {
        while let Ok(work) = committed.recv() {
            if let Err(message) = replica.take(work) {
                (replica.parts.on_fatal)(message);
                return;
            }
        }
    })
}

struct Replica {
    parts: ReplicaParts,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.parts.history.finish();
    }
}

impl Replica {
    fn take(&mut self, work: Committed) -> Result<(), String> {
        match work {
            Committed::Entries(list) => self.entries(list)?,
            Committed::Install(file) => self
                .install(&file)
                .map_err(|e| format!("{e}; the node cannot go on without it"))?,
            // Whoever asked may have given up.
            Committed::Pulse(beat) => {
                beat.send(()).ok();
            }
            Committed::TakeSnapshot => {
                let parts = &mut self.parts;
                parts
                    .snapshotter
                    .consider(true, parts.mark, &parts.membership, &parts.state);
            }
        }
        Ok(())
    }

    fn entries(&mut self, list: Vec<CommittedEntry>) -> Result<(), String> {
        let mut answers: Vec<(Ticket, Fate)> = Vec::new();
        let mut done = Vec::with_capacity(list.len());
        let parts = &mut self.parts;
        for committed in list {
            let entry = committed.entry;
            parts.snapshotter.count(entry.data.len() as u64);
            parts.mark = Mark {
                index: entry.index,
                term: entry.term,
            };
            if let Some(membership) = committed.membership {
                parts.membership = membership;
            }
            if entry.kind == EntryKind::Membership || entry.data.is_empty() {
                continue;
            }
            let decoded: Entry = codec::decode(&entry.data).map_err(|e| {
                format!(
                    "entry {} cannot be applied: {e}. Run the newer program that the cluster uses",
                    entry.index
                )
            })?;
            let applied = (parts.apply)(&mut parts.state, entry.index, &decoded);
            let (published, outcomes) =
                Self::tell(&parts.history, entry.index, decoded.at, applied);
            done.push(published);
            if let Some(ticket) = committed.ticket {
                answers.push((ticket, Fate::Applied(outcomes)));
            }
        }
        self.publish();
        for entry in done {
            // Nobody listening is fine.
            self.parts.entries.send(entry).ok();
        }
        for (ticket, fate) in answers {
            ticket.send(fate).ok();
        }
        let parts = &mut self.parts;
        parts
            .snapshotter
            .consider(false, parts.mark, &parts.membership, &parts.state);
        Ok(())
    }

    /// Hands what left the state to the history, before the view that lacks it.
    fn tell(
        history: &HistoryStore,
        index: u64,
        at: Timestamp,
        applied: Vec<Applied>,
    ) -> (Arc<AppliedEntry>, Vec<Outcome>) {
        let (outcomes, left) = sort_out(applied);
        let events = left.events.clone();
        history.write_soon(left);
        (Arc::new(AppliedEntry { index, at, events }), outcomes)
    }

    fn publish(&self) {
        let parts = &self.parts;
        parts.views.send_replace(Arc::new(View {
            state: parts.state.clone(),
            index: parts.mark.index,
            term: parts.mark.term,
            membership: parts.membership.clone(),
        }));
        parts.raft.applied(parts.mark);
    }

    fn install(&mut self, file: &SnapshotFile) -> Result<(), StartError> {
        self.parts.state = read_state(&self.parts.snapshots, file)?;
        // It came before the snapshot did; see the peer service.
        if let Some(extent) = self.parts.state.extent() {
            self.parts.history.check(extent, file.head.mark.index)?;
        }
        self.parts.mark = file.head.mark;
        self.parts.membership = file.head.membership.clone();
        self.parts.snapshotter.installed(file.head.mark.index);
        self.publish();
        tracing::info!(index = file.head.mark.index, "continued from a snapshot");
        Ok(())
    }
}

/// What an entry came to, and what of it leaves the state.
fn sort_out(applied: Vec<Applied>) -> (Vec<Outcome>, Left) {
    let mut outcomes = Vec::with_capacity(applied.len());
    let (mut events, mut archived) = (Vec::new(), Vec::new());
    let mut from = 0;
    for one in applied {
        outcomes.push(one.outcome);
        archived.extend(one.archived);
        // Once they leave, all later ones do. A repeated request has none.
        let stay = !one.events_leave && !one.events.is_empty();
        events.extend(one.events);
        if stay {
            from = events.len();
        }
    }
    let events = Arc::new(events);
    let left = Left {
        archived,
        events,
        from,
    };
    (outcomes, left)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tidegate_coordinator_core::Actor;
    use tidegate_shared::digest::Digest;

    use super::*;

    fn applied(ordinal: u32, events_leave: bool) -> Applied {
        let event = Event {
            index: 1,
            ordinal,
            at: Timestamp::from_millis(1),
            actor: Actor::System,
            kind: "done".to_owned(),
            object_kind: "application".to_owned(),
            object: "shop".to_owned(),
            outcome: "ok".to_owned(),
            message: String::new(),
            details: BTreeMap::new(),
            previous_hash: Digest::ZERO,
            hash: Digest::ZERO,
        };
        Applied {
            events: vec![event],
            events_leave,
            ..Applied::default()
        }
    }

    fn view(index: u64) -> Arc<View> {
        Arc::new(View {
            state: State::default(),
            index,
            term: 1,
            membership: Membership::default(),
        })
    }

    /// Asks once and gives up if nothing is there yet.
    async fn glance(glimpses: &mut Glimpses) -> Option<u64> {
        tokio::select! {
            biased;
            view = glimpses.next() => Some(view.unwrap().index),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn after_a_glimpse_there_is_none_for_a_while() {
        let (sender, views) = watch::channel(view(0));
        let mut glimpses = Glimpses::new(views, Duration::from_hours(1));
        assert_eq!(glance(&mut glimpses).await, None);
        sender.send_replace(view(1));
        assert_eq!(glance(&mut glimpses).await, Some(1));
        sender.send_replace(view(2));
        assert_eq!(glance(&mut glimpses).await, None);
    }

    #[tokio::test]
    async fn the_last_view_is_never_missed_whoever_gives_up_waiting() {
        let (sender, views) = watch::channel(view(0));
        let mut glimpses = Glimpses::new(views, Duration::from_millis(1));
        for index in 1..20 {
            sender.send_replace(view(index - 1));
            sender.send_replace(view(index));
            while glance(&mut glimpses).await != Some(index) {
                tokio::task::yield_now().await;
            }
        }
        drop(sender);
        assert!(glimpses.next().await.is_err());
    }

    #[test]
    fn a_repeated_request_keeps_no_event_beside_it_from_the_history() {
        let (outcomes, left) = sort_out(vec![
            applied(0, true),
            Applied::default(),
            applied(1, true),
            Applied::default(),
        ]);
        assert_eq!((outcomes.len(), left.events.len(), left.from), (4, 2, 0));
        // The entry with which events begin to leave.
        let (_, left) = sort_out(vec![
            applied(0, false),
            Applied::default(),
            applied(1, true),
        ]);
        assert_eq!((left.events.len(), left.from), (2, 1));
    }
}
