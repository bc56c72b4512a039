//! Raft itself, on a thread of its own. With its two parts the only file that names the raft crate.
//!
//! The thread owns the `RawNode`; everybody else holds a [`RaftHandle`] and sends it `Input`s.
//! Writes go to the log-writer thread and come back as `Persisted`; committed entries go to the
//! replica's thread and come back as `Applied`. All live entries stay in memory (`Cache`), so
//! Raft never waits for a read.
//!
//! Bytes from the network never reach the crate's own parser (it links a protobuf that overflows
//! its stack on hostile input): messages are converted field by field, and a membership change is
//! read from the entry's context in our own encoding, never from its data.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType, Snapshot};
use raft::{Config, RawNode, StateRole};
use tidegate_proto::peer::v1::RaftMessage;
use tokio::sync::{oneshot, watch};

use super::snapshot::Start;
use super::transport::Outbox;
use super::writer::{LogWriter, WriteTask, Written};
use super::{
    Committed, CommittedEntry, Fate, MembershipChange, MembershipError, OnFatal, RaftSettings,
    RaftStatus, Role, Ticket, spawn_thread,
};
use crate::storage::codec;
use crate::storage::log::{HardState, Mark, Membership, WriteBatch};
use crate::storage::snapshot::SnapshotFile;

mod cache;
mod drain;
mod pulse;
mod status;
mod wire;
mod word;

use cache::Cache;
use drain::TracingDrain;
pub use pulse::Pulse;
use wire::{
    conf_change, from_wire, length_of, membership_of, to_log_entry, to_raft_entry, to_wire_all,
};
use word::Word;

/// Inputs from outside that may wait; more are refused.
const MAX_WAITING: usize = 16 * 1024;
/// Inputs taken before Raft's answers are handled.
const MAX_ROUND: usize = 1024;
const MAX_MESSAGE_BYTES: u64 = 1024 * 1024;
const MAX_UNCOMMITTED_BYTES: u64 = 64 * 1024 * 1024;
const MAX_COMMITTED_BYTES: u64 = 16 * 1024 * 1024;

/// What the Raft thread is told.
enum Input {
    Propose(Proposed, Ticket),
    Change(
        MembershipChange,
        oneshot::Sender<Result<Mark, MembershipError>>,
    ),
    Step(RaftMessage),
    ReadIndex(oneshot::Sender<u64>),
    Transfer(Option<u64>),
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
    Pulse(oneshot::Sender<()>),
    Stop,
}

/// An entry for the log.
#[derive(Clone, Debug)]
pub struct Proposed {
    /// Encoded.
    pub data: Bytes,
    /// Whether somebody at a follower waits for its effect there.
    pub is_awaited: bool,
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

    /// Sends an input; whether it was taken. A ticket that is dropped with it answers by itself.
    fn send(&self, input: Input) -> bool {
        if is_bounded(&input) && self.waiting.fetch_add(1, Ordering::AcqRel) >= MAX_WAITING {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            if let Input::Propose(_, ticket) = input {
                ticket.send(Fate::Full).ok();
            }
            return false;
        }
        self.sender.send(input).is_ok()
    }

    /// Puts an entry into the log, if this node leads. Its fate comes by the receiver; a closed
    /// receiver means [`Fate::Unknown`].
    #[must_use]
    pub fn propose(&self, entry: Proposed) -> oneshot::Receiver<Fate> {
        let (ticket, fate) = oneshot::channel();
        self.send(Input::Propose(entry, ticket));
        fate
    }

    /// Begins a change of the membership; the answer is the entry's position.
    ///
    /// # Errors
    /// [`MembershipError`]; `Busy` also when the queue is full.
    pub async fn change(&self, change: MembershipChange) -> Result<Mark, MembershipError> {
        let (sender, receiver) = oneshot::channel();
        if !self.send(Input::Change(change, sender)) {
            return Err(MembershipError::Busy);
        }
        receiver.await.unwrap_or(Err(MembershipError::NotLeader))
    }

    /// Hands a peer's message to Raft. A full queue drops it, as a network may.
    pub fn step(&self, message: RaftMessage) {
        if !self.send(Input::Step(message)) {
            tracing::debug!("a message of a peer was dropped: the queue is full");
        }
    }

    /// Asks for the index that a linearizable read must wait for. Without a leader nothing ever
    /// comes, so the caller sets a limit and asks again.
    #[must_use]
    pub fn read_index(&self) -> oneshot::Receiver<u64> {
        let (sender, receiver) = oneshot::channel();
        self.send(Input::ReadIndex(sender));
        receiver
    }

    /// Begins to hand the lead to `to`, or to the member that is furthest, if this node leads. A
    /// node without a vote or out of reach gets nothing.
    pub fn transfer(&self, to: Option<u64>) {
        self.send(Input::Transfer(to));
    }

    /// A message to `peer` was dropped.
    pub fn report_unreachable(&self, peer: u64) {
        self.send(Input::Unreachable(peer));
    }

    /// The snapshot for `to` arrived and was good, or not. Without this the peer waits for ever.
    pub fn report_snapshot(&self, to: u64, arrived: bool) {
        self.send(Input::SnapshotSent { to, arrived });
    }

    /// This node's clock is off the majority's, or no longer.
    pub fn set_clock_skewed(&self, skewed: bool) {
        self.send(Input::ClockSkewed(skewed));
    }

    /// The state includes entries up to `mark`.
    pub(crate) fn applied(&self, mark: Mark) {
        self.send(Input::Applied(mark));
    }

    /// A snapshot was written; entries up to `compact` may go.
    pub(crate) fn snapshot_taken(&self, newest: SnapshotFile, compact: u64) {
        self.send(Input::SnapshotTaken { newest, compact });
    }

    /// Ends the thread; the log writer and the replica end after it.
    pub(crate) fn stop(&self) {
        self.send(Input::Stop);
    }
}

/// What the thread needs besides its inputs.
pub(crate) struct DriverParts {
    pub node_id: u64,
    pub settings: RaftSettings,
    pub start: Start,
    /// Random, so that answers to reads of an earlier life are not taken for this one's.
    pub boot: u64,
    pub writer: LogWriter,
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
    word: Word,
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
            skip_bcast_commit: true,
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
            word: Word::default(),
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
                let until = self
                    .tell_commit(now)
                    .map_or(next_tick, |due| due.min(next_tick));
                match self.input.receiver.recv_timeout(until - now) {
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
                self.transfer(None);
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
            Input::Propose(entry, ticket) => self.propose(entry, ticket),
            Input::Change(change, reply) => {
                reply.send(self.change(change)).ok();
            }
            Input::Step(message) => self.step(message),
            Input::ReadIndex(reply) => self.read_index(reply),
            Input::Transfer(to) => self.transfer(to),
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
            Input::Persisted(number) => self.persisted(number),
            Input::Applied(mark) => {
                if mark.index > self.applied.index {
                    self.applied = mark;
                    self.advance_applied();
                }
            }
            Input::SnapshotTaken { newest, compact } => self.snapshot_taken(newest, compact),
            Input::Pulse(beat) => drop(self.parts.committed.send(Committed::Pulse(beat))),
            Input::Stop => self.stopping = true,
        }
    }

    fn persisted(&mut self, number: u64) {
        self.persisted = number;
        self.raw.on_persist_ready(number);
        self.advance_applied();
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

    fn propose(&mut self, proposed: Proposed, ticket: Ticket) {
        // A follower would forward it silently and lose sight of it; we forward ourselves.
        if self.raw.raft.state != StateRole::Leader {
            ticket.send(Fate::NotLeader).ok();
            return;
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.parts.node_id;
        let entry = wire::commands_entry(proposed.data);
        message.set_entries(vec![entry].into());
        let committed = self.raw.raft.raft_log.committed;
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
        let index = raft.raft_log.last_index();
        self.word.went_along(committed);
        if proposed.is_awaited {
            self.word.is_awaited(index);
        }
        self.tickets.insert(index, (raft.term, ticket));
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

    fn transfer(&mut self, to: Option<u64>) {
        if self.raw.raft.state != StateRole::Leader || self.raw.raft.lead_transferee.is_some() {
            return;
        }
        let best = self
            .progress()
            .into_iter()
            .filter(|p| p.is_active && self.membership.voters.contains(&p.node_id))
            .filter(|p| to.is_none_or(|to| to == p.node_id))
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
        let task = WriteTask {
            number: self.written,
            batch,
            must_sync: true,
            messages: Vec::new(),
        };
        // A failure has ended the process.
        self.parts.writer.write(task, false);
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
                self.written = number;
                self.persisted(number);
            } else {
                // With an answer still on its way, this one would come before it.
                let may_wait = self.persisted == self.written
                    && self.input.waiting.load(Ordering::Acquire) == 0;
                self.written = number;
                let task = WriteTask {
                    number,
                    batch,
                    must_sync,
                    messages,
                };
                match self.parts.writer.write(task, may_wait) {
                    Written::Now => self.persisted(number),
                    Written::Later => {}
                    Written::Never => {
                        self.stopping = true;
                        return;
                    }
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
                // The file that arrived says it; it was looked at then.
                history: None,
            },
            length: length_of(snapshot),
        };
        batch.restart = Some(mark);
        self.membership = membership;
        self.raw.mut_store().restart(file.clone());
        let install = Committed::Install(Box::new(file));
        self.parts.committed.send(install).ok();
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
}
