//! What would become of a command that makes deployments, told before anything is made:
//! `tidegate plan`.
//!
//! Pure. The state machine and the planner themselves are run on a copy of the state, under a
//! virtual clock that jumps from one look of the planner to the next, with agents that do at once
//! (or after a stated time) what they are told. So the schedule is the one that will be followed if
//! nothing fails, and there is no second set of rules that could say something else. What has to be
//! assumed (people who act at once, rules that pass) is told as a remark. Nothing here is proposed,
//! and nothing promises that the world stays as it is.

mod followed;
mod looks;
mod measuring;
mod people;
mod remarks;
mod rests;
mod run;
#[cfg(test)]
mod tests;
mod waits;
mod world;

use tidegate_shared::id::{DeploymentId, Name, Version};
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::weight::Weight;

use crate::command::{Actor, Command};
use crate::observed::Observed;
use crate::rejection::Rejection;
use crate::state::{Deployment, State, Status};

/// How far a schedule is followed after the command.
pub const HORIZON: Span = Span::from_days(30);

/// How far ahead of now a command may be planned.
pub const FURTHEST: Span = Span::from_days(366);

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// Who would give the command.
    pub actor: Actor,
    /// A command that makes deployments.
    pub command: Command,
    /// When it would be given; not before `now`, at most [`FURTHEST`] after it.
    pub at: Timestamp,
    /// The present time of the cluster.
    pub now: Timestamp,
    /// How long hosts take.
    pub pace: Pace,
}

/// How long hosts are taken to need. Everything else that agents do happens at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    /// From being told of a release until it is staged.
    pub staging: Span,
    /// From being told to start an instance until it is healthy.
    pub startup: Span,
}

/// The schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// When the command would be given.
    pub at: Timestamp,
    /// In the order in which they start; those that never start last, as they were asked for.
    pub members: Vec<Member>,
    /// When the last member ends; none: not all of them end as far as the schedule was followed.
    pub ends_at: Option<Timestamp>,
    /// Up to here the schedule was followed.
    pub followed_to: Timestamp,
    /// Why it was followed no further, though not every member has ended; none: they have.
    pub cut: Option<Cut>,
    /// Warnings first.
    pub remarks: Vec<Remark>,
    /// What it took: commands, and questions to the planner.
    pub effort: u64,
}

/// Why a schedule was not followed to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It takes longer than [`HORIZON`].
    Horizon,
    /// It takes too much work.
    Work,
    /// Whoever asked waits no longer, or no longer than this.
    Patience,
    /// The planner never rested: a bug of ours.
    Restless,
}

impl Cut {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Horizon => "horizon",
            Self::Work | Self::Patience => "too_large",
            Self::Restless => "restless",
        }
    }
}

/// One deployment that would be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its scope.
    pub scope: Name,
    /// What it is called in the rehearsal alone.
    pub deployment: DeploymentId,
    /// The version that it replaces; none: the first of its scope, or it never starts.
    pub replaces: Option<Version>,
    /// Agents that take part; 0 if it never starts.
    pub agents: usize,
    /// The approval that it needs.
    pub approval: Option<Approval>,
    /// What holds it up before its start, in order.
    pub waits: Vec<Wait>,
    /// Everything that happens to it, in order.
    pub moments: Vec<Moment>,
    /// When it is `CREATING`; none: never, as far as the schedule was followed.
    pub starts_at: Option<Timestamp>,
    /// When it ends.
    pub ends_at: Option<Timestamp>,
    /// Where it ends, or is when the schedule is followed no further.
    pub status: Status,
    /// Why it ended otherwise than well; empty: it did not.
    pub message: String,
}

/// An approval that a member needs; the schedule takes it to be given at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// Policies that ask, with how many grants each needs.
    pub policies: Vec<(Name, u32)>,
    /// When it is asked for.
    pub at: Timestamp,
    /// Decisions from here on do not count.
    pub expires_at: Timestamp,
}

/// A closed gate before the start of a member: the first one in the way at the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// As of [`crate::plan::Gate`].
    pub kind: &'static str,
    /// The rule of a policy; empty: it is none.
    pub rule: String,
    /// Why, in one line.
    pub why: String,
    /// Since when it is the first one in the way.
    pub from: Timestamp,
    /// Until when; none: as far as the schedule was followed.
    pub until: Option<Timestamp>,
}

/// Something that happens to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// When.
    pub at: Timestamp,
    /// What.
    pub event: MomentEvent,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MomentEvent {
    /// It has this status now.
    Status(Status),
    /// A step, or batch, begins: its share is wished.
    Step {
        /// From 1.
        number: u32,
        /// The share of the new version.
        weight: Weight,
    },
    /// The data plane holds the step's share everywhere, or the batch is replaced: its hold begins.
    Held {
        /// From 1.
        number: u32,
        /// The share of the new version.
        weight: Weight,
    },
    /// A person has to do this; the schedule takes it to be done at once.
    Person(&'static str),
}

/// What people should know beside the times.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remark {
    /// How much it matters.
    pub weight: RemarkWeight,
    /// Stable word, as `window_too_short`.
    pub kind: &'static str,
    /// The member that it is about; none: all of it.
    pub scope: Option<Name>,
    /// One line.
    pub message: String,
}

/// How much a remark matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RemarkWeight {
    /// It will probably not go as whoever asks would like.
    Warning,
    /// What the schedule rests on.
    Assumption,
}

/// Follows a command through the copy of a state until every deployment that it makes has ended,
/// for at most [`HORIZON`] and a bounded amount of work; where that is not enough, a remark says so.
/// `goes_on` is asked now and then whether somebody still waits for the answer; when not, the
/// schedule ends there. `lost`: agents of which nothing is heard at present ([`lost`](fn@lost)).
///
/// # Errors
/// The refusal that the command itself would meet then.
pub fn forecast(
    state: &State,
    lost: &[Name],
    question: &Question,
    goes_on: &dyn Fn() -> bool,
) -> Result<Forecast, Rejection> {
    run::Run::new(state, question, goes_on).follow(lost)
}

/// Agents of which nothing is heard at present, in order of name.
pub fn lost(state: &State, observed: &Observed, now: Timestamp) -> Vec<Name> {
    let agents = state.agents.keys();
    agents
        .filter(|agent| observed.is_lost(agent, now))
        .cloned()
        .collect()
}

/// What a change of a deployment's record means for people who follow it; nothing if it is none that
/// they see. Of a new record `before` is none.
pub fn moments(before: Option<&Deployment>, after: &Deployment, at: Timestamp) -> Vec<Moment> {
    let mut events = Vec::new();
    if before.is_none_or(|before| before.status != after.status) {
        events.push(MomentEvent::Status(after.status));
    }
    let goes_up = match after.status {
        Status::Running | Status::Finalizing => true,
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Finalized
        | Status::Cancelling
        | Status::Cancelled
        | Status::RollingBack
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => false,
    };
    if let Some(step) = after.traffic.step.filter(|_| goes_up) {
        let known = before.and_then(|before| before.traffic.step);
        let same = known.filter(|known| known.index == step.index);
        let (number, weight) = (step.index + 1, after.traffic.desired);
        if same.is_none() {
            events.push(MomentEvent::Step { number, weight });
        }
        if step.reached_at.is_some() && same.is_none_or(|known| known.reached_at.is_none()) {
            events.push(MomentEvent::Held { number, weight });
        }
    }
    events
        .into_iter()
        .map(|event| Moment { at, event })
        .collect()
}
