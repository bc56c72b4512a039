//! The running tallies of checks: one per instance, agent or leader that measures.
//!
//! Part of [`Observed`](crate::Observed), so not replicated. A level that was heard already, or
//! belongs to another run, changes nothing; one that was missed is made up by the next.

use std::collections::BTreeSet;

use tidegate_shared::assignment::Report;
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::measurement::Sample;
use tidegate_shared::spec::{Measurement, VerificationSpec};
use tidegate_shared::time::Timestamp;
use tidegate_shared::verdict::check::{Bounds, Class, Tally};

use super::conditions::classify;
use crate::deployment::checks::{self, Moment};
use crate::desired::is_participant;
use crate::state::{Deployment, State, Table};

/// Who measures.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Maker {
    /// An agent, of one of its instances or once.
    Agent {
        /// Which agent.
        agent: Name,
        /// Which instance; none: once on the agent.
        instance: Option<u32>,
    },
    /// The leading coordinator.
    Leader,
}

impl std::fmt::Display for Maker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent {
                agent,
                instance: Some(instance),
            } => write!(f, "{agent}/{instance}"),
            Self::Agent {
                agent,
                instance: None,
            } => agent.fmt(f),
            Self::Leader => f.write_str("the leader"),
        }
    }
}

/// One tally.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// Of which run.
    pub run: Timestamp,
    /// Start and number of the last measurement.
    last: (u64, u64),
    /// What they came to so far.
    pub tally: Tally,
    /// The last one, in a few words.
    pub told: String,
    /// When it was heard of.
    pub at: Timestamp,
}

/// Every tally, by deployment, check and maker.
#[derive(Debug, Clone, Default)]
pub struct Lanes(Table<(DeploymentId, Name, Maker), Lane>);

impl Lanes {
    /// Takes in what an agent tells of checks that it was asked to make.
    pub fn absorb(&mut self, state: &State, agent: &Name, report: &Report, now: Timestamp) {
        for place in report.places.iter().filter(|p| !p.checks.is_empty()) {
            let found = state.deployments.get(&place.deployment);
            let Some(deployment) = found.filter(|found| is_participant(found, agent)) else {
                continue;
            };
            for found in &place.checks {
                let Some((moment, spec)) = wanted(deployment, &found.name, found.run) else {
                    continue;
                };
                let fits = match spec.measurement() {
                    Some(Measurement::InstanceHttp(_)) => found.instance.is_some(),
                    Some(Measurement::Command(_)) => found.instance.is_none(),
                    Some(Measurement::LeaderHttp(_) | Measurement::Prometheus(_)) | None => false,
                };
                if fits {
                    let maker = Maker::Agent {
                        agent: agent.clone(),
                        instance: found.instance,
                    };
                    let number = (report.start, found.sequence);
                    self.push(deployment, spec, &moment, maker, number, &found.sample, now);
                }
            }
        }
    }

    /// Takes in a measurement of the leader's own; whether the check still wants any.
    #[allow(clippy::too_many_arguments, reason = "each is what tells it apart")]
    pub fn measured(
        &mut self,
        state: &State,
        deployment: DeploymentId,
        check: &Name,
        run: Timestamp,
        sequence: u64,
        sample: &Sample,
        now: Timestamp,
    ) -> bool {
        let found = state.deployments.get(&deployment);
        let Some((found, (moment, spec))) =
            found.and_then(|found| Some((found, wanted(found, check, run)?)))
        else {
            return false;
        };
        self.push(
            found,
            spec,
            &moment,
            Maker::Leader,
            (0, sequence),
            sample,
            now,
        );
        true
    }

    #[allow(clippy::too_many_arguments, reason = "each is what tells it apart")]
    fn push(
        &mut self,
        deployment: &Deployment,
        spec: &VerificationSpec,
        moment: &Moment,
        maker: Maker,
        number: (u64, u64),
        sample: &Sample,
        now: Timestamp,
    ) {
        let key = (deployment.id, spec.name.clone(), maker);
        let before = self.0.get(&key).filter(|lane| lane.run == moment.run);
        if before.is_some_and(|lane| number <= lane.last) {
            return;
        }
        let (class, told) = classify(spec, sample);
        self.count(key, spec, moment.run, (number, class, told), now);
    }

    fn count(
        &mut self,
        key: (DeploymentId, Name, Maker),
        spec: &VerificationSpec,
        run: Timestamp,
        (number, class, told): ((u64, u64), Class, String),
        now: Timestamp,
    ) {
        let before = self.0.get(&key).filter(|lane| lane.run == run);
        let tally = before.map_or_else(Tally::default, |lane| lane.tally);
        let lane = Lane {
            run,
            last: number,
            tally: tally.push(&Bounds::of(spec), class),
            told,
            at: now,
        };
        self.0.insert(key, lane);
    }

    /// A good measurement that nobody made, whatever the conditions ask for: what a rehearsal takes
    /// for granted.
    pub(crate) fn take_as_good(
        &mut self,
        deployment: DeploymentId,
        spec: &VerificationSpec,
        run: Timestamp,
        maker: Maker,
        now: Timestamp,
    ) {
        let key = (deployment, spec.name.clone(), maker);
        let before = self.0.get(&key).filter(|lane| lane.run == run);
        let number = before.map_or(1, |lane| lane.last.1.saturating_add(1));
        let good = ((0, number), Class::Success, "taken as good".to_owned());
        self.count(key, spec, run, good, now);
    }

    /// The tally of a maker in a run.
    pub fn lane(
        &self,
        deployment: DeploymentId,
        check: &Name,
        run: Timestamp,
        maker: &Maker,
    ) -> Option<&Lane> {
        let lane = self.0.get(&(deployment, check.clone(), maker.clone()))?;
        (lane.run == run).then_some(lane)
    }

    /// Keeps those of deployments that are under way.
    pub fn tidy(&mut self, under_way: &BTreeSet<DeploymentId>) {
        self.0.retain(|(id, ..), _| under_way.contains(id));
    }
}

/// The check of that name and run, if it is being measured.
fn wanted<'a>(
    deployment: &'a Deployment,
    check: &Name,
    run: Timestamp,
) -> Option<(Moment, &'a VerificationSpec)> {
    checks::under_way(deployment).find(|(moment, spec)| spec.name == *check && moment.run == run)
}
