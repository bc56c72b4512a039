//! The door: the one way of a command into the log.
//!
//! On the leader, commands that wait together go into one Raft entry, which gets its time here.
//! On a follower they are forwarded to the leader, many in one message. While the lead changes
//! they wait and are tried again: a request id is done at most once, so trying again is safe, and
//! a hand-over of the lead fails no request. What remains unanswered after [`PROPOSE_LIMIT`] is
//! told as what it is: nobody led, or the outcome is unknown.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tidegate_coordinator_core::{Entry, Item, Outcome};
use tidegate_proto::peer::v1::{ProposeReply, ProposeRequest, propose_reply};
use tidegate_shared::error::Reason;
use tidegate_shared::time::Timestamp;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::raft::driver::{Proposed, RaftHandle};
use crate::raft::transport::PeerClients;
use crate::raft::{Fate, RaftStatus, Role};
use crate::replica::{View, Views};
use crate::storage::codec;

/// How long the door tries before it gives an error.
pub const PROPOSE_LIMIT: Duration = Duration::from_secs(5);
/// The largest entry, in encoded bytes.
pub const MAX_ENTRY_BYTES: usize = 1024 * 1024;
const QUEUE_JOBS: usize = 16 * 1024;
const ENTRY_ITEMS: usize = 512;
/// Entries of this node that may be on their way at once.
const ENTRIES_AT_ONCE: usize = 4;
/// An entry waits this long at most for those before it, so that commands gather: each entry costs
/// every member the same, whether it holds one command or hundreds. Where members are far from each
/// other, several are under way.
const GATHER: Duration = Duration::from_millis(5);
const FORWARDS_AT_ONCE: usize = 4;
const PAUSE: Duration = Duration::from_millis(10);

/// A command with who asked for it and under which request id.
pub type Proposal = Item;

/// Why a command has no outcome. A refusal is an outcome and never stands here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nobody led; nothing was done.
    #[error("no coordinator leads at the moment; nothing was done")]
    NoLeader,
    /// Too many commands wait; nothing was done.
    #[error("too many commands wait; nothing was done")]
    QueueFull,
    /// The command was on its way when the answer got lost: it may or may not take effect.
    #[error("the command was sent, and its outcome is unknown")]
    OutcomeUnknown,
    /// The command is larger than an entry may be; nothing was done.
    #[error("the command takes {bytes} bytes, {MAX_ENTRY_BYTES} are allowed; nothing was done")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
    },
    /// This coordinator is stopping; nothing was done.
    #[error("this coordinator is stopping")]
    ShuttingDown,
}

impl ProposeError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            ProposeError::NoLeader => Reason::NoLeader,
            ProposeError::QueueFull => Reason::QueueFull,
            ProposeError::OutcomeUnknown => Reason::OutcomeUnknown,
            ProposeError::TooLarge { .. } => Reason::TooLarge,
            ProposeError::ShuttingDown => Reason::ShuttingDown,
        }
    }
}

/// The time of the log while this node leads: the last entry's time and the monotonic clock since.
#[derive(Debug)]
pub struct LogTime {
    clock: Clock,
    base: Mutex<Option<Base>>,
}

#[derive(Clone, Copy, Debug)]
struct Base {
    term: u64,
    at_ms: u64,
    since: Duration,
    last_ms: u64,
}

impl LogTime {
    fn new(clock: Clock) -> LogTime {
        LogTime {
            clock,
            base: Mutex::new(None),
        }
    }

    /// The present time of the log in `view`'s term. Never runs back, also across leaders.
    #[must_use]
    pub fn now(&self, view: &View) -> Timestamp {
        let mut base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        let monotonic = self.clock.monotonic();
        let last = view.state.at.millis();
        let used = match *base {
            Some(found) if found.term == view.term => found,
            _ => Base {
                term: view.term,
                at_ms: last.max(self.clock.wall_ms()),
                since: monotonic,
                last_ms: last,
            },
        };
        let elapsed = monotonic.saturating_sub(used.since).as_millis();
        let now = used
            .at_ms
            .saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
            .max(used.last_ms)
            .max(last);
        *base = Some(Base {
            last_ms: now,
            ..used
        });
        Timestamp::from_millis(now)
    }
}

/// What commands came to.
#[derive(Debug)]
struct Settled {
    outcomes: Vec<Outcome>,
    seen: Seen,
}

/// Which state holds the effects of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// This node's newest view.
    Here,
    /// Views from this index on.
    From(u64),
    /// The leader did not tell.
    Unknown,
}

type Answer = Result<Settled, ProposeError>;

struct Job {
    items: Vec<Item>,
    deadline: Instant,
    /// Some attempt may have reached the log.
    in_doubt: bool,
    /// Came from a follower: it tries again itself.
    is_forwarded: bool,
    answer: oneshot::Sender<Answer>,
}

impl Job {
    fn give_up(self) {
        let error = if self.in_doubt {
            ProposeError::OutcomeUnknown
        } else {
            ProposeError::NoLeader
        };
        self.answer.send(Err(error)).ok();
    }
}

/// Hands commands to the door. Cheap to clone.
#[derive(Clone)]
pub struct Proposer {
    jobs: mpsc::Sender<Job>,
    time: Arc<LogTime>,
    status: watch::Receiver<RaftStatus>,
    views: Views,
    stop: CancellationToken,
    limit: Duration,
    /// Commands without an answer yet; closed once no more are taken.
    unanswered: TaskTracker,
}

/// What the door needs.
pub(crate) struct DoorParts {
    pub raft: RaftHandle,
    pub views: Views,
    pub clients: PeerClients,
    pub clock: Clock,
    pub stop: CancellationToken,
    pub limit: Duration,
}

impl Proposer {
    /// Starts the door's task; it ends with `stop`.
    pub(crate) fn start(parts: DoorParts) -> Proposer {
        let (jobs, receiver) = mpsc::channel(QUEUE_JOBS);
        let (again, retries) = mpsc::unbounded_channel();
        let time = Arc::new(LogTime::new(parts.clock));
        let status = parts.raft.status();
        let door = Door {
            raft: parts.raft,
            status: status.clone(),
            views: parts.views.clone(),
            clients: parts.clients,
            time: time.clone(),
            again,
            entries: Arc::new(Semaphore::new(ENTRIES_AT_ONCE)),
            settled: Arc::default(),
            forwards: Arc::new(Semaphore::new(FORWARDS_AT_ONCE)),
            stop: parts.stop.clone(),
        };
        tokio::spawn(door.run(receiver, retries));
        Proposer {
            jobs,
            time,
            status,
            views: parts.views,
            stop: parts.stop,
            limit: parts.limit,
            unanswered: TaskTracker::new(),
        }
    }

    /// From now on takes no more commands; returns when those under way are answered, or after
    /// `limit`.
    pub(crate) async fn drain(&self, limit: Duration) {
        self.unanswered.close();
        tokio::time::timeout(limit, self.unanswered.wait())
            .await
            .ok();
    }

    /// Proposes one command and waits until it is applied here or on the leader.
    ///
    /// # Errors
    /// [`ProposeError`]; asking again with the same request id is always safe.
    pub async fn propose(&self, proposal: Proposal) -> Result<Outcome, ProposeError> {
        let mut outcomes = self.propose_batch(vec![proposal]).await?;
        outcomes.pop().ok_or(ProposeError::OutcomeUnknown)
    }

    /// Proposes commands that go into one entry, in order, and so happen at one instant.
    ///
    /// # Errors
    /// [`ProposeError`], for all of them.
    pub async fn propose_batch(
        &self,
        proposals: Vec<Proposal>,
    ) -> Result<Vec<Outcome>, ProposeError> {
        Ok(self.submit(proposals, false).await?.outcomes)
    }

    /// As [`Proposer::propose_batch`], and waits until this node has applied the commands too, which
    /// on the leader it has. The view holds their effects; none: the leader does not tell where they
    /// are, or this node is too far behind, and who wants to see them has to read.
    ///
    /// # Errors
    /// [`ProposeError`], for all of them.
    pub async fn propose_and_see(
        &self,
        proposals: Vec<Proposal>,
    ) -> Result<(Vec<Outcome>, Option<Arc<View>>), ProposeError> {
        let settled = self.submit(proposals, false).await?;
        let view = match settled.seen {
            Seen::Here => Some(self.views.borrow().clone()),
            Seen::From(index) => {
                let mut views = self.views.clone();
                let here = views.wait_for(|view| view.index >= index);
                let found = tokio::time::timeout(self.limit, here).await;
                found.ok().and_then(Result::ok).map(|view| view.clone())
            }
            Seen::Unknown => None,
        };
        Ok((settled.outcomes, view))
    }

    /// The time of the log, if this node leads and knows all that was committed before it led.
    #[must_use]
    pub fn leader_now(&self) -> Option<Timestamp> {
        let view = self.views.borrow().clone();
        leads(&self.status.borrow(), &view).then(|| self.time.now(&view))
    }

    async fn submit(&self, items: Vec<Item>, is_forwarded: bool) -> Answer {
        if items.is_empty() {
            return Ok(Settled {
                outcomes: Vec::new(),
                seen: Seen::Here,
            });
        }
        let counted = self.unanswered.token();
        if self.stop.is_cancelled() || self.unanswered.is_closed() {
            return Err(ProposeError::ShuttingDown);
        }
        let (answer, receiver) = oneshot::channel();
        let job = Job {
            items,
            deadline: Instant::now() + self.limit,
            in_doubt: false,
            is_forwarded,
            answer,
        };
        self.jobs.try_send(job).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => ProposeError::QueueFull,
            mpsc::error::TrySendError::Closed(_) => ProposeError::ShuttingDown,
        })?;
        let answer = receiver.await;
        drop(counted);
        answer.unwrap_or(Err(ProposeError::OutcomeUnknown))
    }

    /// Takes what a follower forwarded: encoded proposals, one job each.
    pub(crate) async fn take_forwarded(&self, jobs: &[Bytes]) -> ProposeReply {
        let reply = |status: propose_reply::Status, message: String| ProposeReply {
            status: status.into(),
            outcomes: Vec::new(),
            leader: 0,
            message,
            applied: 0,
        };
        let status = self.status.borrow().clone();
        if status.role != Role::Leader {
            return ProposeReply {
                leader: status.leader.unwrap_or(0),
                ..reply(propose_reply::Status::NotLeader, String::new())
            };
        }
        let mut decoded: Vec<Vec<Item>> = Vec::with_capacity(jobs.len());
        for job in jobs {
            match codec::decode(job) {
                Ok(items) => decoded.push(items),
                Err(error) => {
                    return reply(propose_reply::Status::Invalid, error.to_string());
                }
            }
        }
        // Polled together, so that all wait in the queue at once and share entries.
        let waits = decoded.into_iter().map(|items| self.submit(items, true));
        let answers = join_all(waits).await;
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            let encoded = answer.and_then(|settled| {
                codec::encode(&settled.outcomes).map_err(|_| ProposeError::OutcomeUnknown)
            });
            match encoded {
                Ok(bytes) => outcomes.push(Bytes::from(bytes)),
                Err(error) => {
                    // Some of the message may be done: the follower asks again for all of it.
                    return reply(propose_reply::Status::Unknown, error.to_string());
                }
            }
        }
        ProposeReply {
            outcomes,
            applied: self.views.borrow().index,
            ..reply(propose_reply::Status::Done, String::new())
        }
    }
}

async fn join_all<F>(futures: impl Iterator<Item = F>) -> Vec<F::Output>
where
    F: Future,
{
    let mut pending: Vec<_> = futures.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|context| {
        let mut is_done = true;
        for (future, output) in &mut pending {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => is_done = false,
                }
            }
        }
        if is_done {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    pending
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}

/// Whether this node leads and its view holds all that was committed before its term.
fn leads(status: &RaftStatus, view: &View) -> bool {
    status.role == Role::Leader && view.term == status.term && !status.clock_skewed
}

#[derive(Clone)]
struct Door {
    raft: RaftHandle,
    status: watch::Receiver<RaftStatus>,
    views: Views,
    clients: PeerClients,
    time: Arc<LogTime>,
    again: mpsc::UnboundedSender<Job>,
    entries: Arc<Semaphore>,
    /// An entry has met its fate.
    settled: Arc<Notify>,
    forwards: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Where waiting jobs can go now.
enum Way {
    Log,
    Leader(u64),
    Nowhere,
}

impl Door {
    async fn run(self, mut jobs: mpsc::Receiver<Job>, mut retries: mpsc::UnboundedReceiver<Job>) {
        let mut waiting: Vec<Job> = Vec::new();
        let mut newest = Instant::now();
        loop {
            if waiting.is_empty() {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => break,
                    job = retries.recv() => waiting.extend(job),
                    taken = jobs.recv_many(&mut waiting, ENTRY_ITEMS) => if taken == 0 { break },
                }
            }
            let way = self.way();
            let slots = match way {
                Way::Log => &self.entries,
                Way::Leader(_) => &self.forwards,
                Way::Nowhere => {
                    if self.wait_for_change().await.is_err() {
                        break;
                    }
                    waiting = still_waiting(waiting);
                    continue;
                }
            };
            let slot = tokio::select! {
                slot = slots.clone().acquire_owned() => slot,
                () = self.stop.cancelled() => break,
            };
            let Ok(slot) = slot else { break };
            if matches!(way, Way::Log) {
                self.gather(newest + GATHER).await;
                newest = Instant::now();
            }
            // While the slot was awaited more came: all of it goes along.
            while waiting.len() < ENTRY_ITEMS {
                match retries.try_recv().or_else(|_| jobs.try_recv()) {
                    Ok(job) => waiting.push(job),
                    Err(_) => break,
                }
            }
            let batch = std::mem::take(&mut waiting);
            match way {
                Way::Log => self.append(batch, slot),
                Way::Leader(leader) => {
                    let (own, foreign) = batch.into_iter().partition(|j: &Job| !j.is_forwarded);
                    for job in foreign {
                        Job::give_up(job);
                    }
                    let door = self.clone();
                    tokio::spawn(async move {
                        door.forward(leader, own).await;
                        drop(slot);
                    });
                }
                Way::Nowhere => waiting = batch,
            }
        }
        jobs.close();
        for job in waiting {
            job.answer.send(Err(ProposeError::ShuttingDown)).ok();
        }
        while let Ok(job) = jobs.try_recv() {
            job.answer.send(Err(ProposeError::ShuttingDown)).ok();
        }
    }

    fn way(&self) -> Way {
        let status = self.status.borrow();
        if status.role == Role::Leader {
            if leads(&status, &self.views.borrow()) {
                return Way::Log;
            }
            return Way::Nowhere;
        }
        match status.leader {
            Some(leader) => Way::Leader(leader),
            None => Way::Nowhere,
        }
    }

    /// Until no entry is on its way but the one whose slot is held, or `limit`.
    async fn gather(&self, limit: Instant) {
        while self.entries.available_permits() + 1 < ENTRIES_AT_ONCE {
            tokio::select! {
                () = self.settled.notified() => {}
                () = tokio::time::sleep_until(limit) => return,
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Until the lead or the view changes, for a short while.
    async fn wait_for_change(&self) -> Result<(), ()> {
        let mut status = self.status.clone();
        let mut views = self.views.clone();
        tokio::select! {
            changed = status.changed() => changed.map_err(|_| ()),
            changed = views.changed() => changed.map_err(|_| ()),
            () = tokio::time::sleep(PAUSE) => Ok(()),
            () = self.stop.cancelled() => Err(()),
        }
    }

    /// Puts `jobs` into one entry; in halves, if that would be too large.
    fn append(&self, mut jobs: Vec<Job>, slot: tokio::sync::OwnedSemaphorePermit) {
        let view = self.views.borrow().clone();
        let at = self.time.now(&view);
        let slot = Arc::new(slot);
        let mut stack = Vec::new();
        jobs.reverse();
        stack.push(jobs);
        while let Some(mut part) = stack.pop() {
            part.reverse();
            let mut entry = Entry {
                at,
                items: Vec::new(),
            };
            let counts: Vec<usize> = part.iter().map(|j| j.items.len()).collect();
            for job in &mut part {
                entry.items.append(&mut job.items);
            }
            let encoded = codec::encode(&entry);
            let mut items = entry.items.into_iter();
            for (job, count) in part.iter_mut().zip(counts) {
                job.items = items.by_ref().take(count).collect();
            }
            let Ok(bytes) = encoded else {
                part.into_iter().for_each(Job::give_up);
                continue;
            };
            if bytes.len() <= MAX_ENTRY_BYTES {
                let fate = self.raft.propose(Proposed {
                    data: Bytes::from(bytes),
                    is_awaited: part.iter().any(|job| job.is_forwarded),
                });
                let door = self.clone();
                let slot = slot.clone();
                tokio::spawn(async move {
                    let fate = fate.await.unwrap_or(Fate::Unknown);
                    drop(slot);
                    door.settled.notify_one();
                    door.settle(part, fate);
                });
            } else if part.len() == 1 {
                for job in part {
                    let error = ProposeError::TooLarge { bytes: bytes.len() };
                    job.answer.send(Err(error)).ok();
                }
            } else {
                let mut second = part.split_off(part.len() / 2);
                second.reverse();
                part.reverse();
                stack.push(second);
                stack.push(part);
            }
        }
    }

    fn settle(&self, jobs: Vec<Job>, fate: Fate) {
        match fate {
            Fate::Applied(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for job in jobs {
                    let own: Vec<Outcome> = outcomes.by_ref().take(job.items.len()).collect();
                    let answer = if own.len() == job.items.len() {
                        Ok(Settled {
                            outcomes: own,
                            seen: Seen::Here,
                        })
                    } else {
                        Err(ProposeError::OutcomeUnknown)
                    };
                    job.answer.send(answer).ok();
                }
            }
            Fate::NotLeader | Fate::Full => self.retry(jobs, false),
            Fate::Unknown => self.retry(jobs, true),
        }
    }

    fn retry(&self, jobs: Vec<Job>, in_doubt: bool) {
        let now = Instant::now();
        let (mut again, over): (Vec<Job>, Vec<Job>) = jobs
            .into_iter()
            .map(|mut job| {
                job.in_doubt |= in_doubt;
                job
            })
            .partition(|job| !job.is_forwarded && job.deadline > now && !self.stop.is_cancelled());
        over.into_iter().for_each(Job::give_up);
        again.retain(|job| !job.answer.is_closed());
        if again.is_empty() {
            return;
        }
        let door = self.clone();
        tokio::spawn(async move {
            // Most often the next leader is known a moment later.
            door.wait_for_change().await.ok();
            for job in again {
                if let Err(lost) = door.again.send(job) {
                    lost.0.give_up();
                }
            }
        });
    }

    async fn forward(&self, leader: u64, jobs: Vec<Job>) {
        let mut rest = jobs;
        while !rest.is_empty() {
            let mut proposals = Vec::new();
            let mut part = Vec::new();
            let mut size = 0;
            for mut job in std::mem::take(&mut rest) {
                if size > MAX_ENTRY_BYTES {
                    rest.push(job);
                    continue;
                }
                match codec::encode(&job.items) {
                    Ok(bytes) if bytes.len() <= MAX_ENTRY_BYTES => {
                        size += bytes.len();
                        proposals.push(Bytes::from(bytes));
                        part.push(job);
                    }
                    Ok(bytes) => {
                        job.items.clear();
                        let error = ProposeError::TooLarge { bytes: bytes.len() };
                        job.answer.send(Err(error)).ok();
                    }
                    Err(_) => job.give_up(),
                }
            }
            if !part.is_empty() {
                self.forward_part(leader, part, proposals).await;
            }
        }
    }

    async fn forward_part(&self, leader: u64, jobs: Vec<Job>, proposals: Vec<Bytes>) {
        let mut client = match self.clients.client(leader) {
            Ok(client) => client,
            Err(error) => {
                tracing::debug!(%error, "the leader cannot be called");
                self.retry(jobs, false);
                return;
            }
        };
        let deadline = jobs.iter().map(|j| j.deadline).max();
        let request = ProposeRequest {
            envelope: Some(self.clients.envelope(leader)),
            proposals,
        };
        let mut status = self.status.clone();
        let call = async {
            tokio::select! {
                reply = client.propose(request) => reply.map(tonic::Response::into_inner).ok(),
                // The leader that was asked is none any more: its answer may never come.
                _ = status.wait_for(|s| s.leader != Some(leader)) => None,
                () = self.stop.cancelled() => None,
            }
        };
        let reply = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, call).await.ok().flatten(),
            None => None,
        };
        let Some(reply) = reply else {
            self.retry(jobs, true);
            return;
        };
        match reply.status() {
            propose_reply::Status::Done if reply.outcomes.len() == jobs.len() => {
                let seen = match reply.applied {
                    0 => Seen::Unknown,
                    index => Seen::From(index),
                };
                for (job, bytes) in jobs.into_iter().zip(reply.outcomes) {
                    let answer = codec::decode::<Vec<Outcome>>(&bytes)
                        .map(|outcomes| Settled { outcomes, seen })
                        .map_err(|_| ProposeError::OutcomeUnknown);
                    job.answer.send(answer).ok();
                }
            }
            propose_reply::Status::NotLeader | propose_reply::Status::QueueFull => {
                self.retry(jobs, false);
            }
            propose_reply::Status::Invalid => {
                tracing::error!(
                    message = reply.message,
                    "the leader cannot read a command of this node"
                );
                jobs.into_iter().for_each(Job::give_up);
            }
            propose_reply::Status::Done
            | propose_reply::Status::Unknown
            | propose_reply::Status::Unspecified => self.retry(jobs, true),
        }
    }
}

fn still_waiting(jobs: Vec<Job>) -> Vec<Job> {
    let now = Instant::now();
    let (waiting, over): (Vec<Job>, Vec<Job>) = jobs
        .into_iter()
        .filter(|job| !job.answer.is_closed())
        .partition(|job| job.deadline > now);
    over.into_iter().for_each(Job::give_up);
    waiting
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::log::Membership;
    use tidegate_coordinator_core::State;

    fn view(term: u64, at_ms: u64) -> View {
        View {
            state: State {
                at: Timestamp::from_millis(at_ms),
                ..State::default()
            },
            index: 1,
            term,
            membership: Membership::default(),
        }
    }

    #[test]
    fn log_time_never_runs_back() {
        let clock = Clock::system();
        let time = LogTime::new(clock.clone());
        let ahead = clock.wall_ms() + 60_000;
        let first = time.now(&view(1, ahead));
        assert!(
            first.millis() >= ahead,
            "a leader behind the log follows it"
        );
        clock.shift(-3_600_000);
        assert!(time.now(&view(1, ahead)) >= first);
        assert!(time.now(&view(2, first.millis())) >= first);
    }

    #[test]
    fn a_jump_of_the_wall_clock_ends_no_duration() {
        let clock = Clock::system();
        let time = LogTime::new(clock.clone());
        let first = time.now(&view(1, 0));
        clock.shift(3_600_000);
        let second = time.now(&view(1, 0));
        assert!(second.since(first).millis() < 600_000);
    }
}
