//! What a group is doing, derived from its members (product.md §3), and what its budget says.
//!
//! Asked by `apply` when a group acts or ends, by the planner once a look, and for people.

use tidegate_shared::spec::{self, GradualType, RolloutKind};
use tidegate_shared::time::Timestamp;

use super::budget::{Amount, Budget, Tally};
use super::schedule::Pace;
use crate::state::{
    Counts, Deployment, EndCause, Fate, GivenVerb, Group, GroupMember, GroupOutcome, GroupStatus,
    State, Status,
};

/// Where one member is, as far as its group's status follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberState {
    /// Its status, or the one that it ended with.
    pub status: Status,
    /// It is at an end, and no further try follows.
    pub is_over: bool,
    /// It, or a try before it, has reached `CREATING`.
    pub has_started: bool,
}

/// The status that follows from the members: the first line of the table that fits.
pub fn derive(
    given: Option<GivenVerb>,
    members: &[MemberState],
    returns_move: bool,
) -> GroupStatus {
    let all = |of: &dyn Fn(&MemberState) -> bool| members.iter().all(of);
    let over = all(&|m| m.is_over);
    let moves = !over || returns_move;
    match given {
        Some(GivenVerb::Rollback) if moves => return GroupStatus::RollingBack,
        Some(GivenVerb::Cancel) if moves => return GroupStatus::Cancelling,
        Some(_) | None => {}
    }
    if !over {
        let finalizing = |m: &MemberState| m.status == Status::Finalizing;
        return if all(&|m| m.status == Status::CreatingApproval) {
            GroupStatus::CreatingApproval
        } else if all(&|m| !m.has_started) {
            GroupStatus::Pending
        } else if members.iter().any(finalizing) && all(&|m| m.is_over || finalizing(m)) {
            GroupStatus::Finalizing
        } else {
            GroupStatus::Running
        };
    }
    match given {
        Some(GivenVerb::Rollback) => GroupStatus::RolledBack,
        Some(GivenVerb::Cancel) => GroupStatus::Cancelled,
        None if all(&|m| m.status == Status::Cancelled) => GroupStatus::Cancelled,
        None if all(&|m| m.status == Status::CreatingApprovalDenied) => {
            GroupStatus::CreatingApprovalDenied
        }
        None => GroupStatus::Finalized,
    }
}

/// What the end of a deployment means to its group. A rule may ask for another try of what failed
/// before any traffic moved, so that end is undecided.
pub fn fate(deployment: &Deployment) -> Fate {
    let by_itself = match deployment.end_cause {
        Some(EndCause::Rule | EndCause::Deadline | EndCause::Errors) | None => true,
        Some(
            EndCause::Cancel
            | EndCause::Rollback
            | EndCause::Superseded
            | EndCause::Rejected
            | EndCause::ScopeStopped,
        ) => false,
    };
    match deployment.status {
        Status::Finalized if deployment.unverified => Fate::Unverified,
        Status::Finalized => Fate::Good,
        Status::RolledBack if by_itself => Fate::Failed,
        Status::Failed if by_itself && !deployment.traffic.got_traffic => Fate::Undecided,
        Status::Failed if by_itself => Fate::Failed,
        Status::RolledBack
        | Status::Failed
        | Status::Cancelled
        | Status::CreatingApprovalDenied
        | Status::Deleted
        | Status::CreatingApproval
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalizing
        | Status::Cancelling
        | Status::RollingBack
        | Status::Deleting => Fate::Neutral,
    }
}

impl Fate {
    /// Whether no further try follows.
    pub const fn is_decided(self) -> bool {
        match self {
            Self::Undecided => false,
            Self::Good | Self::Unverified | Self::Failed | Self::Neutral => true,
        }
    }

    /// Whether the release is there.
    pub const fn is_good(self) -> bool {
        match self {
            Self::Good | Self::Unverified => true,
            Self::Undecided | Self::Failed | Self::Neutral => false,
        }
    }
}

impl Counts {
    /// Counts an end, or takes it back when another try replaces it.
    pub fn count(&mut self, fate: Fate, back: bool) {
        let step = |counter: &mut u32| {
            *counter = if back {
                counter.saturating_sub(1)
            } else {
                counter.saturating_add(1)
            };
        };
        match fate {
            Fate::Undecided => {}
            Fate::Neutral => step(&mut self.ended),
            Fate::Good | Fate::Unverified => {
                step(&mut self.ended);
                step(&mut self.executed);
            }
            Fate::Failed => {
                step(&mut self.ended);
                step(&mut self.executed);
                step(&mut self.failures);
            }
        }
    }
}

impl GroupMember {
    /// Whether it is at an end, and no further try follows.
    pub fn is_over(&self) -> bool {
        self.ended.as_ref().is_some_and(|end| end.fate.is_decided())
    }

    /// Whether it failed, and nobody knows yet whether another try follows.
    pub fn is_undecided(&self) -> bool {
        self.ended
            .as_ref()
            .is_some_and(|end| !end.fate.is_decided())
    }

    /// Where it is.
    pub fn state(&self, state: &State) -> MemberState {
        let status = match &self.ended {
            Some(end) => end.status,
            None => state
                .deployments
                .get(&self.deployment)
                .map_or(Status::Cancelled, |d| d.status),
        };
        MemberState {
            status,
            is_over: self.is_over(),
            has_started: self.started_at.is_some(),
        }
    }
}

impl Group {
    /// What people call it: its name, or application, release and short id.
    pub fn title(&self) -> String {
        match &self.name {
            Some(name) => format!(
                "group {name} ({} {} to {} scopes)",
                self.application,
                self.version,
                self.members.len()
            ),
            None => format!(
                "group {} ({} {} to {} scopes)",
                self.short,
                self.application,
                self.version,
                self.members.len()
            ),
        }
    }

    /// The number of the member that a deployment is at present.
    pub fn number_of(&self, deployment: &Deployment) -> Option<u32> {
        let number = *self.scopes.get(&deployment.origin.scope)?;
        let member = self.members.get(&number)?;
        (member.deployment == deployment.id).then_some(number)
    }

    /// Members with their numbers in the order in which they start; as they were listed as long as
    /// that is not fixed.
    pub fn in_order(&self) -> impl Iterator<Item = (u32, &GroupMember)> {
        let fixed = self.order.values().copied();
        let listed = self.members.keys().copied();
        let listed = listed.filter(|_| self.order.is_empty());
        fixed
            .chain(listed)
            .filter_map(|number| Some((number, self.members.get(&number)?)))
    }

    /// Its status.
    pub fn status(&self, state: &State) -> GroupStatus {
        if let Some(closed) = &self.closed {
            return closed.status;
        }
        let members: Vec<MemberState> = self.members.values().map(|m| m.state(state)).collect();
        let returns_move = self.returns.values().any(|back| back.ended.is_none());
        derive(self.given.as_ref().map(|g| g.verb), &members, returns_move)
    }

    /// How it fares, or fared; only of a group that is `FINALIZED`.
    pub fn outcome(&self, state: &State) -> Option<GroupOutcome> {
        if let Some(closed) = &self.closed {
            return closed.outcome;
        }
        if self.status(state) != GroupStatus::Finalized {
            return None;
        }
        let good = |member: &&GroupMember| member.ended.as_ref().is_some_and(|e| e.fate.is_good());
        let count = self.members.values().filter(good).count();
        Some(match count {
            0 => GroupOutcome::Failed,
            count if count == self.members.len() => GroupOutcome::Succeeded,
            _ => GroupOutcome::Mixed,
        })
    }

    /// The pace that its own rollout asks for; none: all at once, or wave by wave.
    pub fn pace(&self) -> Option<Pace> {
        let kind = match self.rollout.kind {
            RolloutKind::Linear => GradualType::Linear,
            RolloutKind::LinearNormalized => GradualType::LinearNormalized,
            RolloutKind::AllAtOnce | RolloutKind::Waves => return None,
        };
        Some(Pace {
            kind,
            interval: self.rollout.interval.unwrap_or_default(),
        })
    }

    /// When a member would start if nothing but the group's own pace counted.
    pub fn planned_start(&self, number: u32) -> Timestamp {
        let position = self.members.get(&number).and_then(|member| member.position);
        let offset = self
            .pace()
            .zip(position)
            .map(|(pace, position)| pace.offset(self.members.len() as u64, u64::from(position)));
        self.meta.created_at + offset.unwrap_or_default()
    }

    /// The failures that it bears; none: any number.
    pub fn budget(&self) -> Option<Budget> {
        let written = self.rollout.budget()?;
        Some(Budget {
            max_failures: amount(written.max_failures),
            min_executed: amount(written.min_executed),
        })
    }

    /// How members fared, failures that people have let pass left out.
    pub fn tally(&self) -> Tally {
        let counts = &self.tally;
        Tally {
            members: self.members.len() as u64,
            executed: u64::from(counts.executed),
            failures: u64::from(counts.failures.saturating_sub(counts.excused)),
        }
    }

    /// Whether more members failed than it bears.
    pub fn is_over_budget(&self) -> bool {
        let tally = self.tally();
        self.budget().is_some_and(|b| b.is_exceeded(tally))
    }
}

fn amount(written: spec::Amount) -> Amount {
    match written {
        spec::Amount::Count(count) => Amount::Count(u64::from(count)),
        spec::Amount::Share(share) => Amount::Share(share),
    }
}

#[cfg(test)]
mod tests;
