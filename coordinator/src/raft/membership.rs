//! Who replicates: makes Raft's membership follow the member table of the state.
//!
//! The table is the wish, changed by commands; the leader brings Raft there one step at a time:
//! newcomers follow first and get their vote when they have caught up, removed nodes leave. Node
//! ids come from a counter in the state and are never used again; a node whose disk was lost joins
//! anew under a new id. [`bootstrap`] makes the first node, [`claim`] the folder of a further one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tidegate_coordinator_core::command::{Command, MemberId};
use tidegate_coordinator_core::{
    Actor, Applied, Entry, Item, Outcome, Rejection, RequestKey, State,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::driver::RaftHandle;
use super::snapshot::write_state;
use super::{MembershipChange, PeerProgress, RaftStatus, Role};
use crate::propose::{ProposeError, Proposer};
use crate::replica::{ApplyFn, Views};
use crate::storage::data_dir::{DataDir, DataDirError, Identity};
use crate::storage::disk::FolderDisk;
use crate::storage::history::{HistoryError, HistoryStore};
use crate::storage::log::{HardState, LogError, LogStore, Mark, Membership, WriteBatch};
use crate::storage::segment::SegmentLog;
use crate::storage::snapshot::{SnapshotError, SnapshotStore};

/// A learner this close to the leader has caught up.
const CAUGHT_UP: u64 = 256;
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why a cluster could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The folder cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The log cannot be made.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The first snapshot cannot be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The history cannot be made.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// A folder cannot be made.
    #[error("cannot create the folders of the log and the snapshots: {0}")]
    Folder(#[from] std::io::Error),
    /// The first entry was refused.
    #[error("{0}")]
    Refused(Rejection),
}

/// Makes the first node of a cluster in `dir`: `entry` is applied as entry 1, and the state after
/// it becomes the first snapshot, with this node as the only voter. Every node that joins later
/// starts from a snapshot, so entry 1 needs no place in the log.
///
/// # Errors
/// [`BootstrapError`]; then the folder has no identity and may be used again.
pub fn bootstrap(
    dir: &DataDir,
    identity: &Identity,
    apply: ApplyFn,
    entry: &Entry,
) -> Result<State, BootstrapError> {
    dir.require_empty()?;
    let mut state = State::default();
    let applied = apply(&mut state, 1, entry);
    if let Some(refused) = applied.iter().find_map(|one| one.outcome.as_ref().err()) {
        return Err(BootstrapError::Refused(refused.clone()));
    }
    // An attempt that ended half-way may have left something.
    for folder in [dir.log(), dir.snapshots()] {
        match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    match std::fs::remove_file(dir.history()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let history = HistoryStore::open(&dir.history(), &identity.cluster_id, None)?;
    history.write(applied.iter().flat_map(Applied::rows))?;
    history.sync()?;
    history.close();
    let mark = Mark { index: 1, term: 1 };
    let membership = Membership {
        voters: vec![identity.node_id],
        ..Membership::default()
    };
    let snapshots = SnapshotStore::new(
        Arc::new(FolderDisk::new(&dir.snapshots())?),
        &identity.cluster_id,
    );
    write_state(&snapshots, mark, &membership, &state)?;
    let disk = Arc::new(FolderDisk::new(&dir.log())?);
    let (mut log, _) = SegmentLog::open(disk, crate::storage::segment::SEGMENT_BYTES)?;
    log.write(
        &[WriteBatch {
            restart: Some(mark),
            hard_state: Some(HardState {
                term: 1,
                vote: 0,
                commit: 1,
            }),
            ..WriteBatch::default()
        }],
        true,
    )?;
    log.close()?;
    dir.claim(identity)?;
    Ok(state)
}

/// Makes `dir` the folder of a node that was admitted as `identity`; it gets everything else from
/// the leader.
///
/// # Errors
/// [`DataDirError`].
pub fn claim(dir: &DataDir, identity: &Identity) -> Result<(), DataDirError> {
    dir.claim(identity)
}

/// The next step from `membership` towards `members`, if one is due.
#[must_use]
pub fn next_change(
    members: &BTreeSet<u64>,
    membership: &Membership,
    progress: &[PeerProgress],
    last_index: u64,
) -> Option<MembershipChange> {
    if membership.is_joint() || members.is_empty() {
        return None;
    }
    let caught_up = |node: u64| {
        progress.iter().any(|p| {
            p.node_id == node
                && p.is_active
                && !p.gets_snapshot
                && p.matched > 0
                && p.matched + CAUGHT_UP >= last_index
        })
    };
    // Learners leave first, then voters: a vote given up too early could cost the majority.
    let gone = |ids: &[u64]| ids.iter().copied().find(|id| !members.contains(id));
    if let Some(node) = gone(&membership.learners) {
        return Some(MembershipChange::Remove(node));
    }
    if let Some(&node) = membership.learners.iter().find(|id| caught_up(**id)) {
        return Some(MembershipChange::Promote(node));
    }
    if membership.voters.len() > 1
        && let Some(node) = gone(&membership.voters)
    {
        return Some(MembershipChange::Remove(node));
    }
    members
        .iter()
        .copied()
        .find(|id| !membership.contains(*id))
        .map(MembershipChange::AddLearner)
}

/// Why waiting for a change of the membership ended without it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// The command had no outcome.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The command was refused.
    #[error("{0}")]
    Refused(Rejection),
    /// It did not happen in time; it still may.
    #[error("node {node_id} is not {wish} after {limit:?}; see `tidegate cluster status`")]
    TooSlow {
        /// The node.
        node_id: u64,
        /// What it should be.
        wish: &'static str,
        /// How long was waited.
        limit: Duration,
    },
}

/// Changes the member table and waits for Raft to follow. Cheap to clone.
#[derive(Clone)]
pub struct Members {
    proposer: Proposer,
    status: watch::Receiver<RaftStatus>,
}

impl Members {
    /// Starts the task that makes Raft follow the table while this node leads; it ends with
    /// `stop`.
    pub(crate) fn start(
        raft: RaftHandle,
        proposer: Proposer,
        views: Views,
        stop: CancellationToken,
    ) -> Members {
        let status = raft.status();
        tokio::spawn(follow(raft, views, stop));
        Members { proposer, status }
    }

    /// Admits a node: `command` (a [`Command::Join`] of a coordinator) puts it into the table and
    /// gives it its id. It becomes a voter by itself once it runs and has caught up.
    ///
    /// # Errors
    /// [`ProposeError`]; a refusal stands in the outcome.
    pub async fn add_member(
        &self,
        actor: Actor,
        request: RequestKey,
        command: Command,
    ) -> Result<Outcome, ProposeError> {
        let item = Item {
            actor,
            request,
            command: Box::new(command),
        };
        self.proposer.propose(item).await
    }

    /// Waits until `node_id` votes.
    ///
    /// # Errors
    /// [`MemberError::TooSlow`].
    pub async fn wait_for_voter(&self, node_id: u64, limit: Duration) -> Result<(), MemberError> {
        let votes = |s: &RaftStatus| s.membership.voters.contains(&node_id);
        self.wait(node_id, "a voter", limit, votes).await
    }

    /// Takes a node out of the table and waits until Raft goes on without it. Nobody tells a
    /// removed node that it is gone; asked of itself, this returns when another node leads.
    ///
    /// # Errors
    /// [`MemberError`].
    pub async fn remove_member(
        &self,
        actor: Actor,
        request: RequestKey,
        node_id: u64,
        limit: Duration,
    ) -> Result<(), MemberError> {
        let item = Item {
            actor,
            request,
            command: Box::new(Command::RemoveMember(MemberId { node: node_id })),
        };
        self.proposer
            .propose(item)
            .await?
            .map_err(MemberError::Refused)?;
        let is_gone = |s: &RaftStatus| {
            !s.membership.contains(node_id) || (s.node_id == node_id && s.role != Role::Leader)
        };
        self.wait(node_id, "gone", limit, is_gone).await
    }

    async fn wait(
        &self,
        node_id: u64,
        wish: &'static str,
        limit: Duration,
        is_so: impl Fn(&RaftStatus) -> bool,
    ) -> Result<(), MemberError> {
        let mut status = self.status.clone();
        let reached = tokio::time::timeout(limit, status.wait_for(|s| is_so(s))).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ProposeError::ShuttingDown.into()),
            Err(_) => Err(MemberError::TooSlow {
                node_id,
                wish,
                limit,
            }),
        }
    }
}

async fn follow(raft: RaftHandle, views: Views, stop: CancellationToken) {
    let mut timer = tokio::time::interval(LOOK_EVERY);
    let status = raft.status();
    loop {
        tokio::select! {
            _ = timer.tick() => {}
            () = stop.cancelled() => return,
        }
        let now = status.borrow().clone();
        let view = views.borrow().clone();
        // Only a leader that knows all that was committed before it led.
        if now.role != Role::Leader || view.term != now.term {
            continue;
        }
        let Some(cluster) = &view.state.cluster else {
            continue;
        };
        let members: BTreeSet<u64> = cluster.members.keys().copied().collect();
        let change = next_change(&members, &now.membership, &now.progress, now.last_index);
        match change {
            None => {}
            // The next leader removes this node.
            Some(MembershipChange::Remove(node)) if node == now.node_id => raft.transfer(None),
            Some(change) => match raft.change(change).await {
                Ok(mark) => tracing::info!(?change, index = mark.index, "the membership changes"),
                Err(error) => {
                    tracing::debug!(?change, %error, "the membership does not change yet")
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(node_id: u64, matched: u64, is_active: bool) -> PeerProgress {
        PeerProgress {
            node_id,
            matched,
            is_active,
            gets_snapshot: false,
        }
    }

    fn membership(voters: &[u64], learners: &[u64]) -> Membership {
        Membership {
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            ..Membership::default()
        }
    }

    #[test]
    fn newcomers_follow_first_and_vote_when_they_have_caught_up() {
        let members = BTreeSet::from([1, 2]);
        let next = |membership: &Membership, progress: &[PeerProgress]| {
            next_change(&members, membership, progress, 1000)
        };
        assert_eq!(
            next(&membership(&[1], &[]), &[]),
            Some(MembershipChange::AddLearner(2))
        );
        let learning = membership(&[1], &[2]);
        assert_eq!(next(&learning, &[progress(2, 10, true)]), None);
        assert_eq!(next(&learning, &[progress(2, 990, false)]), None);
        assert_eq!(
            next(&learning, &[progress(2, 990, true)]),
            Some(MembershipChange::Promote(2))
        );
        assert_eq!(next(&membership(&[1, 2], &[]), &[]), None);
    }

    #[test]
    fn removed_nodes_leave_and_the_last_voter_stays() {
        let next = |members: &[u64], membership: &Membership| {
            next_change(&members.iter().copied().collect(), membership, &[], 5)
        };
        assert_eq!(
            next(&[1, 2], &membership(&[1, 2, 3], &[])),
            Some(MembershipChange::Remove(3))
        );
        assert_eq!(
            next(&[1], &membership(&[1], &[7])),
            Some(MembershipChange::Remove(7))
        );
        assert_eq!(
            next(&[2], &membership(&[1], &[])),
            Some(MembershipChange::AddLearner(2))
        );
        assert_eq!(next(&[], &membership(&[1], &[])), None);
    }

    #[test]
    fn nothing_is_done_inside_a_joint_membership() {
        let joint = Membership {
            voters_outgoing: vec![1],
            ..membership(&[1, 2], &[])
        };
        assert_eq!(next_change(&BTreeSet::from([1]), &joint, &[], 5), None);
    }
}
