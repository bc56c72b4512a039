//! Raft itself, on a thread of its own. The only file that names the raft crate.
//!
//! The thread owns the `RawNode`; everybody else holds a [`RaftHandle`] and sends it [`Input`]s.
//! Writes go to the log-writer thread and come back as `Persisted`; committed entries go to the
//! replica's thread and come back as `Applied`. All live entries stay in memory ([`Cache`]), so
//! Raft never waits for a read.
//!
//! Bytes from the network never reach the crate's own parser (it links a protobuf that overflows
//! its stack on hostile input): messages are converted field by field, and a membership change is
//! read from the entry's context in our own encoding, never from its data.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType,
    HardState as RaftHardState, Message, MessageType, Snapshot,
};
use raft::{Config, GetEntriesContext, RaftState, RawNode, StateRole, Storage, StorageError};
use tidegate_proto::peer::v1::{self as wire, RaftEntry, RaftMessage};
use tokio::sync::{oneshot, watch};

use super::snapshot::Start;
use super::transport::Outbox;
use super::writer::WriteTask;
use super::{
    Committed, CommittedEntry, Fate, MembershipChange, MembershipError, OnFatal, PeerProgress,
    RaftSettings, RaftStatus, Role, Ticket, spawn_thread,
};
use crate::storage::codec;
use crate::storage::log::{EntryKind, HardState, LogEntry, Mark, Membership, WriteBatch};
use crate::storage::snapshot::SnapshotFile;

/// Inputs from outside that may wait; more are refused.
const MAX_WAITING: usize = 16 * 1024;
/// Inputs taken before Raft's answers are handled.
const MAX_ROUND: usize = 1024;
const MAX_MESSAGE_BYTES: u64 = 1024 * 1024;
const MAX_UNCOMMITTED_BYTES: u64 = 64 * 1024 * 1024;
const MAX_COMMITTED_BYTES: u64 = 16 * 1024 * 1024;

/// What the Raft thread is told.
enum Input {
    Propose(Bytes, Ticket),
    Change(
        MembershipChange,
        oneshot::Sender<Result<Mark, MembershipError>>,
    ),
    Step(RaftMessage),
    ReadIndex(oneshot::Sender<u64>),
    Transfer,
    Unreachable(u64),
    SnapshotSent {
        to: u64,
        arrived: bool,
    },
    ClockSkewed(bool),
    Persisted(u64),
    Applied(Mark),
    SnapshotTaken {
        newest: SnapshotFile,
        compact: u64,
    },
    Stop,
}

/// Whether an input counts against [`MAX_WAITING`].
fn is_bounded(input: &Input) -> bool {
    matches!(
        input,
        Input::Propose(..) | Input::Change(..) | Input::Step(_) | Input::ReadIndex(_)
    )
}

/// The way to the Raft thread. Never blocks.
#[derive(Clone)]
pub struct RaftHandle {
    sender: mpsc::Sender<Input>,
    waiting: Arc<AtomicUsize>,
    status: watch::Receiver<RaftStatus>,
}

impl RaftHandle {
    /// How replication stands.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }

    /// Sends an input; gives it back when the queue is full or the thread has ended.
    fn send(&self, input: Input) -> Result<(), Input> {
        if is_bounded(&input) {
            if self.waiting.fetch_add(1, Ordering::AcqRel) >= MAX_WAITING {
                self.waiting.fetch_sub(1, Ordering::AcqRel);
                return Err(input);
            }
        }
        self.sender.send(input).map_err(|e| e.0)
    }

    /// Puts an encoded entry into the log, if this node leads. Its fate comes by the receiver; a
    /// closed receiver means [`Fate::Unknown`].
    #[must_use]
    pub fn propose(&self, data: Bytes) -> oneshot::Receiver<Fate> {
        let (ticket, fate) = oneshot::channel();
        if let Err(Input::Propose(_, ticket)) = self.send(Input::Propose(data, ticket)) {
            ticket.send(Fate::Full).ok();
        }
        fate
    }

    /// Begins a change of the membership; the answer is the entry's position.
    ///
    /// # Errors
    /// [`MembershipError`]; `Busy` also when the queue is full.
    pub async fn change(&self, change: MembershipChange) -> Result<Mark, MembershipError> {
        let (sender, receiver) = oneshot::channel();
        if self.send(Input::Change(change, sender)).is_err() {
            return Err(MembershipError::Busy);
        }
        receiver.await.unwrap_or(Err(MembershipError::NotLeader))
    }

    /// Hands a peer's message to Raft. A full queue drops it, as a network may.
    pub fn step(&self, message: RaftMessage) {
        if self.send(Input::Step(message)).is_err() {
            tracing::debug!("a message of a peer was dropped: the queue is full");
        }
    }

    /// Asks for the index that a linearizable read must wait for. Without a leader nothing ever
    /// comes, so the caller sets a limit and asks again.
    #[must_use]
    pub fn read_index(&self) -> oneshot::Receiver<u64> {
        let (sender, receiver) = oneshot::channel();
        self.send(Input::ReadIndex(sender)).ok();
        receiver
    }

    /// Begins to hand the lead to the member that is furthest, if this node leads.
    pub fn transfer(&self) {
        self.send(Input::Transfer).ok();
    }

    /// A message to `peer` was dropped.
    pub fn report_unreachable(&self, peer: u64) {
        self.send(Input::Unreachable(peer)).ok();
    }

    /// The snapshot for `to` arrived and was good, or not. Without this the peer waits for ever.
    pub fn report_snapshot(&self, to: u64, arrived: bool) {
        self.send(Input::SnapshotSent { to, arrived }).ok();
    }

    /// This node's clock is off the majority's, or no longer.
    pub fn set_clock_skewed(&self, skewed: bool) {
        self.send(Input::ClockSkewed(skewed)).ok();
    }

    /// The state includes entries up to `mark`.
    pub(crate) fn applied(&self, mark: Mark) {
        self.send(Input::Applied(mark)).ok();
    }

    /// A snapshot was written; entries up to `compact` may go.
    pub(crate) fn snapshot_taken(&self, newest: SnapshotFile, compact: u64) {
        self.send(Input::SnapshotTaken { newest, compact }).ok();
    }

    /// Ends the thread; the log writer and the replica end after it.
    pub(crate) fn stop(&self) {
        self.send(Input::Stop).ok();
    }
}

/// What the thread needs besides its inputs.
pub(crate) struct DriverParts {
    pub node_id: u64,
    pub settings: RaftSettings,
    pub start: Start,
    /// Random, so that answers to reads of an earlier life are not taken for this one's.
    pub boot: u64,
    pub writes: mpsc::Sender<WriteTask>,
    pub committed: mpsc::Sender<Committed>,
    pub outbox: Arc<dyn Outbox>,
    pub killed: Arc<AtomicBool>,
    pub on_fatal: OnFatal,
}

/// The receiving half, until the thread starts.
pub(crate) struct DriverInput {
    receiver: mpsc::Receiver<Input>,
    waiting: Arc<AtomicUsize>,
    status: watch::Sender<RaftStatus>,
}

/// Both halves of the way to the Raft thread.
pub(crate) fn channel(node_id: u64) -> (RaftHandle, DriverInput) {
    let (sender, receiver) = mpsc::channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let (status_sender, status) = watch::channel(RaftStatus {
        node_id,
        role: Role::Learner,
        ..RaftStatus::default()
    });
    let handle = RaftHandle {
        sender,
        waiting: waiting.clone(),
        status,
    };
    let input = DriverInput {
        receiver,
        waiting,
        status: status_sender,
    };
    (handle, input)
}

/// Tells the thread that the write of `number` is durable.
pub(crate) fn persisted_callback(handle: &RaftHandle) -> impl Fn(u64) + Send + 'static {
    let sender = handle.sender.clone();
    move |number| {
        sender.send(Input::Persisted(number)).ok();
    }
}

/// Starts the thread.
///
/// # Errors
/// When Raft refuses the settings, or the system gives no thread.
pub(crate) fn spawn(parts: DriverParts, input: DriverInput) -> Result<JoinHandle<()>, String> {
    let on_fatal = parts.on_fatal.clone();
    let mut driver = Driver::new(parts, input)?;
    spawn_thread("raft", on_fatal, move || driver.run()).map_err(|e| e.to_string())
}

/// The log in memory, as Raft reads it.
struct Cache {
    hard_state: HardState,
    /// At start: the membership of the snapshot. Raft follows it from there itself.
    membership: Membership,
    start: Mark,
    entries: VecDeque<Entry>,
    snapshot: Option<SnapshotFile>,
    wants_snapshot: std::cell::Cell<bool>,
}

impl Cache {
    fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.entries.back().is_some_and(|e| e.index >= first.index) {
            self.entries.pop_back();
        }
        self.entries.extend(entries.iter().cloned());
    }

    fn compact(&mut self, index: u64) -> Option<Mark> {
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

    fn restart(&mut self, file: SnapshotFile) {
        self.entries.clear();
        self.start = file.head.mark;
        self.membership = file.head.membership.clone();
        self.snapshot = Some(file);
    }

    fn last(&self) -> u64 {
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

struct Driver {
    raw: RawNode<Cache>,
    input: DriverInput,
    parts: DriverParts,
    /// Entries proposed here that are not committed yet, by index.
    tickets: BTreeMap<u64, (u64, Ticket)>,
    reads: HashMap<Vec<u8>, oneshot::Sender<u64>>,
    next_read: u64,
    /// The last hand-over to the writer, and the last that came back.
    written: u64,
    persisted: u64,
    applied: Mark,
    membership: Membership,
    skewed: bool,
    was_leader: bool,
    stopping: bool,
    ticks: u64,
    /// The tick at which a member was last known to be active.
    active: HashMap<u64, u64>,
}

impl Driver {
    fn new(parts: DriverParts, input: DriverInput) -> Result<Driver, String> {
        let start = &parts.start;
        let applied = start
            .snapshot
            .as_ref()
            .map_or_else(Mark::default, |s| s.head.mark);
        let membership = start
            .snapshot
            .as_ref()
            .map_or_else(Membership::default, |s| s.head.membership.clone());
        let cache = Cache {
            hard_state: start.log.hard_state,
            membership: membership.clone(),
            start: start.log.start,
            entries: start.log.entries.iter().map(to_raft_entry).collect(),
            snapshot: start.snapshot.clone(),
            wants_snapshot: std::cell::Cell::new(false),
        };
        let config = Config {
            id: parts.node_id,
            election_tick: parts.settings.election_ticks,
            heartbeat_tick: parts.settings.heartbeat_ticks,
            applied: applied.index,
            max_size_per_msg: MAX_MESSAGE_BYTES,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
            max_committed_size_per_ready: MAX_COMMITTED_BYTES,
            ..Config::default()
        };
        let logger = slog::Logger::root(TracingDrain, slog::o!());
        let raw = RawNode::new(&config, cache, &logger).map_err(|e| e.to_string())?;
        Ok(Driver {
            raw,
            input,
            parts,
            tickets: BTreeMap::new(),
            reads: HashMap::new(),
            next_read: 0,
            written: 0,
            persisted: 0,
            applied,
            membership,
            skewed: false,
            was_leader: false,
            stopping: false,
            ticks: 0,
            active: HashMap::new(),
        })
    }

    fn run(&mut self) {
        let tick = self.parts.settings.tick;
        let mut next_tick = Instant::now() + tick;
        if self.membership.voters == [self.parts.node_id] {
            // Nobody else could lead, so there is nothing to wait for.
            self.raw.campaign().ok();
        }
        self.handle_ready();
        self.publish(true);
        while !self.stopping {
            let now = Instant::now();
            let input = if now >= next_tick {
                // After a pause of the whole process one tick is made, not all that were missed:
                // a node that slept must listen before it campaigns.
                next_tick = (next_tick + tick).max(now + tick / 2);
                self.tick();
                None
            } else {
                match self.input.receiver.recv_timeout(next_tick - now) {
                    Ok(input) => Some(input),
                    Err(mpsc::RecvTimeoutError::Timeout) => continue,
                    Err(mpsc::RecvTimeoutError::Disconnected) => break,
                }
            };
            let ticked = input.is_none();
            if let Some(input) = input {
                self.take(input);
            }
            for _ in 1..MAX_ROUND {
                match self.input.receiver.try_recv() {
                    Ok(input) => self.take(input),
                    Err(_) => break,
                }
            }
            if self.parts.killed.load(Ordering::Relaxed) {
                break;
            }
            self.handle_ready();
            self.publish(ticked);
        }
        for (_, (_, ticket)) in std::mem::take(&mut self.tickets) {
            ticket.send(Fate::Unknown).ok();
        }
    }

    fn tick(&mut self) {
        // Raft forgets who was active at each check of the quorum, and learns it again.
        self.ticks += 1;
        for (&node, progress) in self.raw.raft.prs().iter() {
            if progress.recent_active {
                self.active.insert(node, self.ticks);
            }
        }
        if self.skewed && self.raw.raft.state != StateRole::Leader {
            self.raw.raft.election_elapsed = 0;
        }
        self.raw.tick();
        self.reads.retain(|_, waiting| !waiting.is_closed());
        if self.raw.raft.state == StateRole::Leader {
            if self.skewed {
                self.transfer();
            }
            // A new leader inside a joint membership must leave it itself.
            if self.membership.is_joint() && !self.raw.raft.has_pending_conf() {
                self.raw
                    .propose_conf_change(Vec::new(), ConfChangeV2::default())
                    .ok();
            }
        }
        if self.raw.store().wants_snapshot.take() {
            self.parts.committed.send(Committed::TakeSnapshot).ok();
        }
    }

    fn take(&mut self, input: Input) {
        if is_bounded(&input) {
            self.input.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        match input {
            Input::Propose(data, ticket) => self.propose(data, ticket),
            Input::Change(change, reply) => {
                reply.send(self.change(change)).ok();
            }
            Input::Step(message) => self.step(message),
            Input::ReadIndex(reply) => self.read_index(reply),
            Input::Transfer => self.transfer(),
            Input::Unreachable(peer) => self.raw.report_unreachable(peer),
            Input::SnapshotSent { to, arrived } => {
                let status = if arrived {
                    raft::SnapshotStatus::Finish
                } else {
                    raft::SnapshotStatus::Failure
                };
                self.raw.report_snapshot(to, status);
            }
            Input::ClockSkewed(skewed) => self.skewed = skewed,
            Input::Persisted(number) => {
                self.persisted = number;
                self.raw.on_persist_ready(number);
                self.advance_applied();
            }
            Input::Applied(mark) => {
                if mark.index > self.applied.index {
                    self.applied = mark;
                    self.advance_applied();
                }
            }
            Input::SnapshotTaken { newest, compact } => self.snapshot_taken(newest, compact),
            Input::Stop => self.stopping = true,
        }
    }

    /// Tells Raft what is applied. A snapshot may be installed before the log's restart behind it
    /// is durable; Raft panics when applied is ahead of what is persisted.
    fn advance_applied(&mut self) {
        let log = &self.raw.raft.raft_log;
        let index = self.applied.index.min(log.persisted).min(log.committed);
        if index > log.applied {
            self.raw.advance_apply_to(index);
        }
    }

    fn propose(&mut self, data: Bytes, ticket: Ticket) {
        // A follower would forward it silently and lose sight of it; we forward ourselves.
        if self.raw.raft.state != StateRole::Leader {
            ticket.send(Fate::NotLeader).ok();
            return;
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.parts.node_id;
        let mut entry = Entry::default();
        entry.data = data;
        message.set_entries(vec![entry].into());
        if self.raw.step(message).is_err() {
            let fate = if self.raw.raft.lead_transferee.is_some() {
                Fate::NotLeader
            } else {
                Fate::Full
            };
            ticket.send(fate).ok();
            return;
        }
        let raft = &self.raw.raft;
        self.tickets
            .insert(raft.raft_log.last_index(), (raft.term, ticket));
    }

    fn change(&mut self, change: MembershipChange) -> Result<Mark, MembershipError> {
        if self.raw.raft.state != StateRole::Leader {
            return Err(MembershipError::NotLeader);
        }
        // The crate would answer Ok and commit an empty entry instead.
        if self.raw.raft.has_pending_conf() || self.membership.is_joint() {
            return Err(MembershipError::Busy);
        }
        if let MembershipChange::Remove(node) = change
            && self.membership.voters == [node]
        {
            return Err(MembershipError::LastVoter(node));
        }
        let context = codec::encode(&change).map_err(|_| MembershipError::Busy)?;
        self.raw
            .propose_conf_change(context, conf_change(change))
            .map_err(|_| MembershipError::Busy)?;
        Ok(Mark {
            index: self.raw.raft.raft_log.last_index(),
            term: self.raw.raft.term,
        })
    }

    fn step(&mut self, message: RaftMessage) {
        let message = match from_wire(message) {
            Ok(message) => message,
            Err(reason) => {
                tracing::warn!(reason, "a peer's message was refused");
                return;
            }
        };
        let last = self.raw.raft.raft_log.last_index();
        match message.get_msg_type() {
            MessageType::MsgHeartbeat
                if message.term >= self.raw.raft.term && message.commit > last =>
            {
                // The leader only tells what this node once acknowledged.
                (self.parts.on_fatal)(format!(
                    "this node acknowledged entry {} and now holds {last} at most: its disk lost data. Remove it from the cluster and join it anew with an empty data folder",
                    message.commit
                ));
                self.stopping = true;
            }
            MessageType::MsgTimeoutNow if self.skewed => {}
            _ => {
                // Refusals concern peers that are no members (any more).
                self.raw.step(message).ok();
            }
        }
    }

    fn read_index(&mut self, reply: oneshot::Sender<u64>) {
        if self.raw.raft.leader_id == raft::INVALID_ID {
            return;
        }
        self.next_read += 1;
        let mut context = Vec::with_capacity(24);
        context.extend_from_slice(&self.parts.node_id.to_le_bytes());
        context.extend_from_slice(&self.parts.boot.to_le_bytes());
        context.extend_from_slice(&self.next_read.to_le_bytes());
        self.reads.insert(context.clone(), reply);
        self.raw.read_index(context);
    }

    fn transfer(&mut self) {
        if self.raw.raft.state != StateRole::Leader || self.raw.raft.lead_transferee.is_some() {
            return;
        }
        let best = self
            .progress()
            .into_iter()
            .filter(|p| p.is_active && self.membership.voters.contains(&p.node_id))
            .max_by_key(|p| p.matched);
        if let Some(best) = best {
            self.raw.transfer_leader(best.node_id);
        }
    }

    fn snapshot_taken(&mut self, newest: SnapshotFile, compact: u64) {
        let store = self.raw.mut_store();
        let is_newer = store
            .snapshot
            .as_ref()
            .is_none_or(|s| s.head.mark.index < newest.head.mark.index);
        if is_newer {
            store.snapshot = Some(newest);
        }
        // Never cut what Raft has not seen applied, nor what the newest snapshot does not hold.
        let newest = store.snapshot.as_ref().map_or(0, |s| s.head.mark.index);
        let limit = compact.min(self.raw.raft.raft_log.applied).min(newest);
        if let Some(mark) = self.raw.mut_store().compact(limit) {
            self.write(WriteBatch {
                compact: Some(mark),
                ..WriteBatch::default()
            });
        }
    }

    /// Writes something that no promise rests on; numbers stay those of Raft's readies.
    fn write(&mut self, batch: WriteBatch) {
        self.parts
            .writes
            .send(WriteTask {
                number: self.written,
                batch,
                must_sync: true,
                messages: Vec::new(),
            })
            .ok();
    }

    fn handle_ready(&mut self) {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            self.parts.outbox.send(to_wire_all(ready.take_messages()));
            for state in ready.take_read_states() {
                if let Some(reply) = self.reads.remove(&state.request_ctx) {
                    reply.send(state.index).ok();
                }
            }
            let mut batch = WriteBatch::default();
            if !ready.snapshot().is_empty() {
                self.install(ready.snapshot(), &mut batch);
            }
            let committed = ready.take_committed_entries();
            if !ready.entries().is_empty() {
                batch.entries = ready.entries().iter().map(to_log_entry).collect();
                self.raw.mut_store().append(ready.entries());
            }
            if let Some(hs) = ready.hs() {
                let hard_state = HardState {
                    term: hs.term,
                    vote: hs.vote,
                    commit: hs.commit,
                };
                self.raw.mut_store().hard_state = hard_state;
                batch.hard_state = Some(hard_state);
            }
            let messages = to_wire_all(ready.take_persisted_messages());
            let number = ready.number();
            let must_sync = ready.must_sync();
            self.raw.advance_append_async(ready);
            if batch == WriteBatch::default() && self.persisted == self.written {
                // Nothing to write and nothing on its way: the promise holds already.
                self.parts.outbox.send(messages);
                self.raw.on_persist_ready(number);
                self.written = number;
                self.persisted = number;
                self.advance_applied();
            } else {
                self.written = number;
                let task = WriteTask {
                    number,
                    batch,
                    must_sync,
                    messages,
                };
                if self.parts.writes.send(task).is_err() {
                    self.stopping = true;
                    return;
                }
            }
            self.hand_over(committed);
            self.notice_lost_lead();
        }
    }

    fn install(&mut self, snapshot: &Snapshot, batch: &mut WriteBatch) {
        let metadata = snapshot.get_metadata();
        let mark = Mark {
            index: metadata.index,
            term: metadata.term,
        };
        let membership = membership_of(metadata.get_conf_state());
        let file = SnapshotFile {
            name: crate::storage::snapshot::file_name(mark),
            head: crate::storage::snapshot::SnapshotHead {
                cluster_id: self.parts.start.cluster_id.clone(),
                mark,
                membership: membership.clone(),
            },
            length: length_of(snapshot),
        };
        batch.restart = Some(mark);
        self.membership = membership;
        self.raw.mut_store().restart(file.clone());
        self.parts.committed.send(Committed::Install(file)).ok();
    }

    fn hand_over(&mut self, committed: Vec<Entry>) {
        if committed.is_empty() {
            return;
        }
        let mut list = Vec::with_capacity(committed.len());
        for entry in committed {
            let membership = match entry.get_entry_type() {
                EntryType::EntryNormal => None,
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.apply_change(&entry)
                }
            };
            let ticket = match self.tickets.remove(&entry.index) {
                Some((term, ticket)) if term == entry.term => Some(ticket),
                Some((_, ticket)) => {
                    ticket.send(Fate::Unknown).ok();
                    None
                }
                None => None,
            };
            list.push(CommittedEntry {
                entry: to_log_entry(&entry),
                ticket,
                membership,
            });
        }
        self.parts.committed.send(Committed::Entries(list)).ok();
    }

    fn apply_change(&mut self, entry: &Entry) -> Option<Membership> {
        let change = if entry.context.is_empty() {
            ConfChangeV2::default()
        } else {
            match codec::decode::<MembershipChange>(&entry.context) {
                Ok(change) => conf_change(change),
                Err(error) => {
                    (self.parts.on_fatal)(format!(
                        "entry {} changes the membership in a way that this program does not know: {error}",
                        entry.index
                    ));
                    self.stopping = true;
                    return None;
                }
            }
        };
        match self.raw.apply_conf_change(&change) {
            Ok(state) => {
                self.membership = membership_of(&state);
                tracing::info!(voters = ?self.membership.voters, learners = ?self.membership.learners, "membership");
                Some(self.membership.clone())
            }
            Err(error) => {
                // Every replica refuses it alike, so skipping it keeps them equal.
                tracing::warn!(%error, index = entry.index, "a change of the membership has no effect");
                None
            }
        }
    }

    fn notice_lost_lead(&mut self) {
        let leads = self.raw.raft.state == StateRole::Leader;
        if self.was_leader && !leads {
            for (_, (_, ticket)) in std::mem::take(&mut self.tickets) {
                ticket.send(Fate::Unknown).ok();
            }
        }
        self.was_leader = leads;
    }

    fn progress(&self) -> Vec<PeerProgress> {
        let raft = &self.raw.raft;
        raft.prs()
            .iter()
            .filter(|(id, _)| **id != self.parts.node_id)
            .map(|(&node_id, progress)| PeerProgress {
                node_id,
                matched: progress.matched,
                is_active: progress.recent_active
                    || self.active.get(&node_id).is_some_and(|tick| {
                        self.ticks - tick < self.parts.settings.election_ticks as u64
                    }),
                gets_snapshot: progress.state == raft::ProgressState::Snapshot,
            })
            .collect()
    }

    fn publish(&mut self, everything: bool) {
        self.notice_lost_lead();
        let raft = &self.raw.raft;
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if raft.promotable() => Role::Follower,
            StateRole::Follower => Role::Learner,
        };
        let leader = (raft.leader_id != raft::INVALID_ID).then_some(raft.leader_id);
        let old = self.input.status.borrow();
        let urgent = old.role != role
            || old.leader != leader
            || old.term != raft.term
            || old.membership != self.membership
            || old.clock_skewed != self.skewed;
        drop(old);
        if !urgent && !everything {
            return;
        }
        let mut progress = Vec::new();
        if role == Role::Leader {
            progress = self.progress();
            progress.sort_by_key(|p| p.node_id);
        }
        let status = RaftStatus {
            node_id: self.parts.node_id,
            role,
            leader,
            term: raft.term,
            commit: raft.raft_log.committed,
            applied: self.applied.index,
            last_index: raft.raft_log.last_index(),
            compacted: self.raw.store().start.index,
            membership: self.membership.clone(),
            progress,
            clock_skewed: self.skewed,
        };
        self.input.status.send_if_modified(|present| {
            let differs = *present != status;
            if differs {
                *present = status;
            }
            differs
        });
    }
}

fn conf_change(change: MembershipChange) -> ConfChangeV2 {
    let (kind, node_id) = match change {
        MembershipChange::AddLearner(node) => (ConfChangeType::AddLearnerNode, node),
        MembershipChange::Promote(node) => (ConfChangeType::AddNode, node),
        MembershipChange::Remove(node) => (ConfChangeType::RemoveNode, node),
    };
    let mut single = ConfChangeSingle::default();
    single.set_change_type(kind);
    single.node_id = node_id;
    let mut change = ConfChangeV2::default();
    change.set_changes(vec![single].into());
    change
}

fn conf_state(membership: &Membership) -> ConfState {
    let mut state = ConfState::default();
    state.set_voters(membership.voters.clone());
    state.set_learners(membership.learners.clone());
    state.set_voters_outgoing(membership.voters_outgoing.clone());
    state.set_learners_next(membership.learners_next.clone());
    state.auto_leave = membership.auto_leave;
    state
}

fn membership_of(state: &ConfState) -> Membership {
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    Membership {
        voters: sorted(state.get_voters()),
        learners: sorted(state.get_learners()),
        voters_outgoing: sorted(state.get_voters_outgoing()),
        learners_next: sorted(state.get_learners_next()),
        auto_leave: state.auto_leave,
    }
}

fn length_of(snapshot: &Snapshot) -> u64 {
    snapshot
        .data
        .as_ref()
        .try_into()
        .map_or(0, u64::from_le_bytes)
}

fn to_log_entry(entry: &Entry) -> LogEntry {
    let (kind, data) = match entry.get_entry_type() {
        EntryType::EntryNormal => (EntryKind::Commands, entry.data.clone()),
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
            (EntryKind::Membership, entry.context.clone())
        }
    };
    LogEntry {
        index: entry.index,
        term: entry.term,
        kind,
        data,
    }
}

fn to_raft_entry(entry: &LogEntry) -> Entry {
    let mut made = Entry::default();
    made.index = entry.index;
    made.term = entry.term;
    match entry.kind {
        EntryKind::Commands => made.data = entry.data.clone(),
        EntryKind::Membership => {
            made.set_entry_type(EntryType::EntryConfChangeV2);
            made.context = entry.data.clone();
        }
    }
    made
}

const TYPES: [(MessageType, wire::raft_message::Type); 12] = {
    use wire::raft_message::Type as W;
    [
        (MessageType::MsgAppend, W::Append),
        (MessageType::MsgAppendResponse, W::AppendResponse),
        (MessageType::MsgRequestVote, W::RequestVote),
        (MessageType::MsgRequestVoteResponse, W::RequestVoteResponse),
        (MessageType::MsgSnapshot, W::Snapshot),
        (MessageType::MsgHeartbeat, W::Heartbeat),
        (MessageType::MsgHeartbeatResponse, W::HeartbeatResponse),
        (MessageType::MsgTimeoutNow, W::TimeoutNow),
        (MessageType::MsgReadIndex, W::ReadIndex),
        (MessageType::MsgReadIndexResp, W::ReadIndexResponse),
        (MessageType::MsgRequestPreVote, W::RequestPreVote),
        (
            MessageType::MsgRequestPreVoteResponse,
            W::RequestPreVoteResponse,
        ),
    ]
};

fn to_wire_all(messages: Vec<Message>) -> Vec<RaftMessage> {
    messages.into_iter().filter_map(to_wire).collect()
}

/// `None` for kinds that never leave a node.
fn to_wire(mut message: Message) -> Option<RaftMessage> {
    let kind = message.get_msg_type();
    let (_, kind) = TYPES.iter().find(|(raft, _)| *raft == kind)?;
    let entries = message
        .take_entries()
        .into_iter()
        .map(|entry| {
            let (kind, data, context) = match entry.get_entry_type() {
                EntryType::EntryNormal => {
                    (wire::raft_entry::Kind::Normal, entry.data, Bytes::new())
                }
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => (
                    wire::raft_entry::Kind::Membership,
                    Bytes::new(),
                    entry.context,
                ),
            };
            RaftEntry {
                kind: kind.into(),
                term: entry.term,
                index: entry.index,
                data,
                context,
            }
        })
        .collect();
    let snapshot = (!message.get_snapshot().is_empty()).then(|| {
        let snapshot = message.get_snapshot();
        let metadata = snapshot.get_metadata();
        let membership = membership_of(metadata.get_conf_state());
        wire::SnapshotDescriptor {
            index: metadata.index,
            term: metadata.term,
            membership: Some(wire::Membership {
                voters: membership.voters,
                learners: membership.learners,
                voters_outgoing: membership.voters_outgoing,
                learners_next: membership.learners_next,
                auto_leave: membership.auto_leave,
            }),
            length: length_of(snapshot),
        }
    });
    Some(RaftMessage {
        r#type: (*kind).into(),
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries,
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        priority: message.priority,
    })
}

/// Converts and checks what Raft itself takes for granted.
fn from_wire(message: RaftMessage) -> Result<Message, &'static str> {
    let kind = message.r#type();
    let (kind, _) = TYPES
        .iter()
        .find(|(_, wire)| *wire == kind)
        .ok_or("its type is unknown")?;
    let mut made = Message::default();
    made.set_msg_type(*kind);
    made.to = message.to;
    made.from = message.from;
    made.term = message.term;
    made.log_term = message.log_term;
    made.index = message.index;
    made.commit = message.commit;
    made.commit_term = message.commit_term;
    made.request_snapshot = message.request_snapshot;
    made.reject = message.reject;
    made.reject_hint = message.reject_hint;
    made.context = message.context;
    made.priority = message.priority;
    let mut entries = Vec::with_capacity(message.entries.len());
    for entry in message.entries {
        let mut one = Entry::default();
        one.term = entry.term;
        one.index = entry.index;
        match entry.kind() {
            wire::raft_entry::Kind::Unspecified => return Err("an entry's kind is unknown"),
            wire::raft_entry::Kind::Normal => one.data = entry.data,
            wire::raft_entry::Kind::Membership => {
                one.set_entry_type(EntryType::EntryConfChangeV2);
                one.context = entry.context;
            }
        }
        entries.push(one);
    }
    check_entries(*kind, &made, &entries)?;
    made.set_entries(entries.into());
    if *kind == MessageType::MsgSnapshot {
        let descriptor = message.snapshot.ok_or("a snapshot without description")?;
        if descriptor.index == 0 {
            return Err("a snapshot of nothing");
        }
        let membership = descriptor.membership.unwrap_or_default();
        let mut snapshot = Snapshot::default();
        snapshot.data = Bytes::copy_from_slice(&descriptor.length.to_le_bytes());
        let metadata = snapshot.mut_metadata();
        metadata.index = descriptor.index;
        metadata.term = descriptor.term;
        *metadata.mut_conf_state() = conf_state(&Membership {
            voters: membership.voters,
            learners: membership.learners,
            voters_outgoing: membership.voters_outgoing,
            learners_next: membership.learners_next,
            auto_leave: membership.auto_leave,
        });
        made.set_snapshot(snapshot);
    }
    Ok(made)
}

fn check_entries(
    kind: MessageType,
    message: &Message,
    entries: &[Entry],
) -> Result<(), &'static str> {
    // Only questions about the read index come without a term: Raft takes a message without a
    // term for one of the node's own.
    let is_read = kind == MessageType::MsgReadIndex;
    if message.term == 0 && !is_read {
        return Err("it has no term");
    }
    match kind {
        MessageType::MsgAppend => {
            let mut index = message.index;
            let mut term = message.log_term;
            for entry in entries {
                index += 1;
                if entry.index != index || entry.term < term || entry.term > message.term {
                    return Err("its entries do not follow each other");
                }
                term = entry.term;
            }
            Ok(())
        }
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp if entries.len() == 1 => Ok(()),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => Err("it asks for no one read"),
        _ if entries.is_empty() => Ok(()),
        _ => Err("it carries entries that do not belong there"),
    }
}

/// Passes the crate's log lines on to `tracing`.
struct TracingDrain;

impl slog::Drain for TracingDrain {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        let text = record.msg();
        match record.level() {
            slog::Level::Critical | slog::Level::Error => tracing::error!(target: "raft", "{text}"),
            slog::Level::Warning => tracing::warn!(target: "raft", "{text}"),
            slog::Level::Info | slog::Level::Debug | slog::Level::Trace => {
                tracing::debug!(target: "raft", "{text}");
            }
        }
        Ok(())
    }
}
