//! What Raft's thread tells of itself.

use raft::StateRole;

use super::Driver;
use crate::raft::{PeerProgress, RaftStatus, Role};

impl Driver {
    /// How far the others are, as a leader sees it.
    pub(super) fn progress(&self) -> Vec<PeerProgress> {
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

    /// Brings the status up to date: role, leader and term at once, the rest with `everything`.
    pub(super) fn publish(&mut self, everything: bool) {
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
