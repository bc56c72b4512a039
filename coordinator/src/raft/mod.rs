//! Replication: the same log on a majority of coordinators.
//!
//! [`driver`] owns Raft on a thread of its own and is the only file that names its crate;
//! [`writer`] puts the log on disk; [`transport`] carries messages between members;
//! [`snapshot`] decides when the log is cut and how a node starts; [`membership`] makes the set of
//! replicating nodes follow the member table of the state. This module holds the values that they
//! exchange. [`crate::replica`] applies what is committed, [`crate::propose`] feeds in.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_coordinator_core::Outcome;
use tokio::sync::oneshot;

use crate::storage::log::{LogEntry, Membership};
use crate::storage::snapshot::SnapshotFile;

pub mod driver;
pub mod membership;
mod peer_history;
pub mod peer_service;
pub mod snapshot;
pub mod transport;
pub mod writer;

/// What a node does in the present term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Takes commands.
    Leader,
    /// Votes and follows.
    #[default]
    Follower,
    /// Wants to lead.
    Candidate,
    /// Follows without a vote, or is no member (yet).
    Learner,
}

/// How far a member is, as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// The member.
    pub node_id: u64,
    /// The last entry that it is known to hold.
    pub matched: u64,
    /// Whether it was heard within about an election timeout.
    pub is_active: bool,
    /// Whether it is being sent a snapshot.
    pub gets_snapshot: bool,
}

/// How replication stands, for everybody. Role, leader and term are always fresh; the rest is
/// brought up to date at every tick.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// This node.
    pub node_id: u64,
    /// Its role.
    pub role: Role,
    /// Who leads, if anybody is known to.
    pub leader: Option<u64>,
    /// The present term.
    pub term: u64,
    /// The last entry known to be on a majority.
    pub commit: u64,
    /// The last entry that the state includes.
    pub applied: u64,
    /// The last entry in the log.
    pub last_index: u64,
    /// The last entry that the log no longer holds.
    pub compacted: u64,
    /// Who replicates.
    pub membership: Membership,
    /// On the leader: how far the others are.
    pub progress: Vec<PeerProgress>,
    /// This node's clock is more than 2 s off the majority's: it does not lead.
    pub clock_skewed: bool,
}

/// One step of the membership; what an [`crate::storage::log::EntryKind::Membership`] entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MembershipChange {
    /// The node follows without a vote.
    AddLearner(u64),
    /// The node gets a vote.
    Promote(u64),
    /// The node leaves for ever.
    Remove(u64),
}

/// What became of a proposed entry.
#[derive(Debug)]
pub enum Fate {
    /// It is applied; one outcome per command.
    Applied(Vec<Outcome>),
    /// This node does not lead: nothing was done.
    NotLeader,
    /// Too much is on its way: nothing was done.
    Full,
    /// It was in the log when this node lost the lead or stopped: it may or may not take effect.
    Unknown,
}

/// Where an entry's fate is told.
pub type Ticket = oneshot::Sender<Fate>;

/// Why a membership change was not begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader changes the membership.
    #[error("this node does not lead")]
    NotLeader,
    /// One change at a time.
    #[error("another change of the membership is still under way")]
    Busy,
    /// It would leave nobody.
    #[error("node {0} is the last voter and cannot be removed")]
    LastVoter(u64),
}

/// Committed work for the replica, in order.
#[derive(Debug)]
pub enum Committed {
    /// Entries with the tickets of those that were proposed here.
    Entries(Vec<CommittedEntry>),
    /// The state continues from this snapshot.
    Install(Box<SnapshotFile>),
    /// Somebody needs a snapshot that is newer than what there is.
    TakeSnapshot,
    /// Somebody wants to know that both threads still turn.
    Pulse(oneshot::Sender<()>),
}

/// One committed entry.
#[derive(Debug)]
pub struct CommittedEntry {
    /// The entry.
    pub entry: LogEntry,
    /// Who waits for it here.
    pub ticket: Option<Ticket>,
    /// The membership from this entry on, when the entry changed it.
    pub membership: Option<Membership>,
}

/// How Raft runs on this node.
#[derive(Clone, Debug)]
pub struct RaftSettings {
    /// Length of a tick; 25 ms as shipped. At least 5 ms.
    pub tick: Duration,
    /// Ticks without a leader before an election; twice as many at most, by chance.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Entries after which a snapshot is written.
    pub snapshot_entries: u64,
    /// Bytes of entries after which a snapshot is written.
    pub snapshot_bytes: u64,
    /// Entries kept behind the older snapshot, for followers that are a little late.
    pub keep_entries: u64,
}

impl Default for RaftSettings {
    fn default() -> RaftSettings {
        RaftSettings {
            tick: Duration::from_millis(25),
            election_ticks: 10,
            heartbeat_ticks: 1,
            snapshot_entries: 50_000,
            snapshot_bytes: 64 * 1024 * 1024,
            keep_entries: 1_000,
        }
    }
}

/// Called with one line when the node cannot go on: its disk failed, or it lost acknowledged
/// entries. It must end the process; the caller's thread has given up.
pub type OnFatal = Arc<dyn Fn(String) + Send + Sync>;

/// The [`OnFatal`] of a real process: says why and ends it at once.
#[must_use]
pub fn end_process() -> OnFatal {
    Arc::new(|message| {
        tracing::error!("{message}");
        std::process::exit(70);
    })
}

/// Starts a named thread whose panic counts as fatal.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn spawn_thread(
    name: &str,
    on_fatal: OnFatal,
    body: impl FnOnce() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let thread = name.to_owned();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            if let Err(panic) = result {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("no message");
                on_fatal(format!("the thread {thread} panicked: {text}"));
            }
        })
}
