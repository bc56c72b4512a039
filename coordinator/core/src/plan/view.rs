//! What is known of one deployment right now: its record beside the reports of its participants.
//!
//! Built afresh for each look; the evaluators of the planner and `explain` read nothing else.

use tidegate_shared::assignment::{
    InstanceState, ObservedPlace, PermanentErrorKind, Report, WishedState,
};
use tidegate_shared::id::Name;
use tidegate_shared::time::Timestamp;
use tidegate_shared::weight::Weight;

use crate::desired::{self, Wish};
use crate::observed::{Observed, healthy, place_in};
use crate::state::{Agent, Deployment, InstanceCause, Scope, State, Status};

/// A deployment with everything that a decision about it may rest on.
#[derive(Debug, Clone)]
pub(crate) struct View<'a> {
    pub(crate) state: &'a State,
    pub(crate) observed: &'a Observed,
    pub(crate) now: Timestamp,
    pub(crate) scope: &'a Scope,
    pub(crate) deployment: &'a Deployment,
    /// Those that are still in the cluster, in order of name.
    pub(crate) participants: Vec<Participant<'a>>,
}

/// One participant.
#[derive(Debug, Clone)]
pub(crate) struct Participant<'a> {
    pub(crate) name: &'a Name,
    pub(crate) agent: &'a Agent,
    /// Its instances count as unknown.
    pub(crate) lost: bool,
    /// Its last report, if that was made against its present assignments.
    pub(crate) present: Option<&'a Report>,
    /// What it last said about this deployment's place.
    pub(crate) place: Option<&'a ObservedPlace>,
    /// What is wished of this deployment there.
    pub(crate) wish: Option<Wish>,
    /// Trying again will not help there.
    pub(crate) failed: bool,
}

impl<'a> View<'a> {
    pub(crate) fn new(
        state: &'a State,
        observed: &'a Observed,
        now: Timestamp,
        scope: &'a Scope,
        deployment: &'a Deployment,
    ) -> Self {
        let known = deployment.participants.iter();
        let participants = known
            .filter_map(|name| {
                let agent = state.agents.get(name)?;
                let place = observed.place(name, deployment.id);
                let wish = if scope.candidate == Some(deployment.id) {
                    desired::candidate_wish(state, scope, name)
                } else {
                    desired::active_wish(state, scope, name, agent)
                };
                Some(Participant {
                    name,
                    agent,
                    lost: observed.is_lost(name, now),
                    present: observed.present_report(state, name),
                    place,
                    wish,
                    failed: place.is_some_and(is_failed),
                })
            })
            .collect();
        Self {
            state,
            observed,
            now,
            scope,
            deployment,
            participants,
        }
    }

    /// How many participants may be lost or failed and still count as done.
    pub(crate) fn max_lost(&self) -> usize {
        let count = u32::try_from(self.participants.len()).unwrap_or(u32::MAX);
        self.deployment.origin.strategy.max_lost.of(count) as usize
    }

    /// Participants that neither answer nor can get any further.
    pub(crate) fn out(&self) -> usize {
        let out = self.participants.iter().filter(|p| p.lost || p.failed);
        out.count()
    }

    /// Whether no more are lost or failed than may be.
    pub(crate) fn within_max_lost(&self) -> bool {
        self.out() <= self.max_lost()
    }

    /// Those that a phase has to wait for: all, less the lost and failed ones if they are few enough.
    pub(crate) fn counting(&self) -> impl Iterator<Item = &Participant<'a>> {
        let excused = self.within_max_lost();
        let all = self.participants.iter();
        all.filter(move |p| !(excused && (p.lost || p.failed)))
    }

    /// Names of the lost ones.
    pub(crate) fn lost(&self) -> Vec<Name> {
        let lost = self.participants.iter().filter(|p| p.lost);
        lost.map(|p| p.name.clone()).collect()
    }

    /// Instances that should be up and are not found healthy, on those that count.
    pub(crate) fn outstanding(&self) -> u32 {
        self.counting().map(Participant::outstanding).sum()
    }

    /// The same over all participants: a lost one's instances are unknown, so they stay outstanding.
    pub(crate) fn outstanding_everywhere(&self) -> u32 {
        let all = self.participants.iter();
        all.map(Participant::outstanding).sum()
    }

    /// Instances that should be up.
    pub(crate) fn wanted(&self) -> u32 {
        self.participants.iter().map(Participant::wanted).sum()
    }

    /// Whether any instance is up: being few enough to be excused is no reason to go on with none.
    pub(crate) fn any_healthy(&self) -> bool {
        self.outstanding_everywhere() < self.wanted()
    }

    /// Whether every participant that should have instances has failed for good.
    fn all_failed(&self) -> bool {
        let mut asked = self.participants.iter().filter(|p| p.wanted() > 0);
        self.wanted() > 0 && asked.all(|p| p.failed)
    }

    /// Whether the data plane holds the wished weight on all that count.
    pub(crate) fn is_weight_held(&self) -> bool {
        self.counting().all(Participant::holds_wish)
    }

    /// The share of the traffic that is acknowledged: the worst agent counts; `rolling`: the mean.
    pub(crate) fn actual(&self) -> Weight {
        let held = |p: &Participant<'_>| p.place.and_then(|place| place.weight).unwrap_or_default();
        let counting = self.counting().filter(|p| !p.lost).map(held);
        if crate::strategy::is_batched(self.deployment) {
            let (mut sum, mut count) = (0, 0_u64);
            for weight in counting {
                sum += u64::from(weight.basis_points());
                count += 1;
            }
            let mean = sum.checked_div(count).unwrap_or(0);
            return Weight::from_basis_points(mean).unwrap_or_default();
        }
        let desired = self.deployment.traffic.desired.basis_points();
        let worst = counting.max_by_key(|held| held.basis_points().abs_diff(desired));
        worst.unwrap_or_default()
    }

    /// The first causes that participants tell of, one per instance.
    pub(crate) fn causes(&self) -> Vec<InstanceCause> {
        let mut causes = Vec::new();
        for participant in self.participants.iter().filter(|p| !p.lost) {
            let Some(place) = participant.place else {
                continue;
            };
            if let Some(error) = &place.permanent_error {
                causes.push(InstanceCause {
                    agent: participant.name.clone(),
                    instance: String::new(),
                    kind: error.kind.as_str().to_owned(),
                    message: error.message.clone(),
                });
            }
            for instance in &place.instances {
                let ended = match instance.state {
                    InstanceState::Backoff | InstanceState::Failed => true,
                    InstanceState::Starting
                    | InstanceState::Healthy
                    | InstanceState::Unhealthy
                    | InstanceState::Stopping => false,
                };
                if let Some(exit) = instance.last_exit.as_ref().filter(|_| ended) {
                    causes.push(InstanceCause {
                        agent: participant.name.clone(),
                        instance: instance.id.clone(),
                        kind: "EXITED".to_owned(),
                        message: exit.clone(),
                    });
                }
            }
        }
        causes
    }

    /// Permanent errors that end the phase at once: a wrong digest anywhere, any on more
    /// participants than may be lost, or on all that should have instances. One line with the
    /// first cause.
    pub(crate) fn permanent(&self) -> Option<String> {
        let failed = || self.participants.iter().filter(|p| p.failed && !p.lost);
        let kind = |p: &&Participant<'_>| {
            let error = p.place.and_then(|place| place.permanent_error.as_ref());
            error.is_some_and(|error| error.kind == PermanentErrorKind::DigestMismatch)
        };
        let count = failed().count();
        let first = match failed().find(kind) {
            Some(wrong) => wrong,
            None if count > self.max_lost() || self.all_failed() => failed().next()?,
            None => return None,
        };
        let of = self.participants.len();
        Some(format!(
            "{}: {} ({count} of {of} agents failed, {} may)",
            first.name,
            first.trouble().unwrap_or_default(),
            self.max_lost()
        ))
    }

    /// Why those that are not ready are not, in one line; empty if nothing is known.
    pub(crate) fn troubles(&self) -> String {
        let mut lines = self.participants.iter().filter_map(|p| {
            if p.lost {
                return Some(format!("{} is lost", p.name));
            }
            let trouble = p.trouble().filter(|_| p.outstanding() > 0 || p.failed)?;
            Some(format!("{}: {trouble}", p.name))
        });
        let first = lines.next().unwrap_or_default();
        match lines.count() {
            0 => first,
            more => format!("{first} (and {more} more)"),
        }
    }
}

impl Participant<'_> {
    /// Instances that should be up here.
    pub(crate) fn wanted(&self) -> u32 {
        match self.wish {
            Some(wish) if wish.state == WishedState::Running => wish.count,
            Some(_) | None => 0,
        }
    }

    /// Of them those that are not found healthy.
    pub(crate) fn outstanding(&self) -> u32 {
        let healthy = match self.place {
            Some(place) if !self.lost => healthy(place),
            Some(_) | None => 0,
        };
        self.wanted().saturating_sub(healthy)
    }

    /// Whether the data plane holds what is wished now.
    pub(crate) fn holds_wish(&self) -> bool {
        let wished = self.wish.map_or(Weight::ZERO, |wish| wish.weight);
        self.present.is_some() && !self.lost && self.holds(wished)
    }

    fn holds(&self, wished: Weight) -> bool {
        match self.place {
            Some(place) => place.weight == Some(wished),
            None => wished == Weight::ZERO,
        }
    }

    /// What is wrong here, in words.
    pub(crate) fn trouble(&self) -> Option<String> {
        let place = self.place?;
        if let Some(error) = &place.permanent_error {
            return Some(format!("{}: {}", error.kind.as_str(), error.message));
        }
        let instance = place.instances.iter().find_map(|instance| {
            let exit = instance.last_exit.as_ref()?;
            (instance.state != InstanceState::Healthy)
                .then(|| format!("{} {}: {exit}", instance.id, instance.state.as_str()))
        });
        instance.or_else(|| place.transient_error.clone())
    }
}

fn is_failed(place: &ObservedPlace) -> bool {
    place.permanent_error.is_some()
        || place
            .instances
            .iter()
            .any(|instance| instance.state == InstanceState::Failed)
}

/// Whether an agent, asked after it took its present wish, holds nothing of a deployment any more.
pub(crate) fn is_gone(
    state: &State,
    observed: &Observed,
    agent: &Name,
    deployment: &Deployment,
) -> bool {
    let present = observed.present_report(state, agent);
    present.is_some_and(|report| place_in(report, deployment.id).is_none())
}

/// Agents that may hold something of a version and are not known to be rid of it. Of a version that
/// was never active only the participants may.
pub(crate) fn not_gone(state: &State, observed: &Observed, loser: &Deployment) -> Vec<Name> {
    let finalized = match loser.status {
        Status::Finalized | Status::Deleting | Status::Deleted => true,
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalizing
        | Status::Cancelling
        | Status::Cancelled
        | Status::RollingBack
        | Status::RolledBack
        | Status::Failed => false,
    };
    let concerned: Vec<&Name> = if finalized {
        let concerned = state.agents_concerned(loser).into_iter();
        concerned.map(|(name, _)| name).collect()
    } else {
        let participants = loser.participants.iter();
        let here = participants.filter(|name| state.agents.contains_key(*name));
        here.collect()
    };
    let left = concerned.into_iter();
    left.filter(|name| !is_gone(state, observed, name, loser))
        .cloned()
        .collect()
}
