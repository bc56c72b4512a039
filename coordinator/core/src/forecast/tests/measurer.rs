//! Agents and a leader that measure as they are asked to, all of it well: the times are their own,
//! not those of the forecast.

use std::collections::BTreeMap;

use tidegate_shared::assignment::Report;
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::measurement::{CheckKind, CheckWish, ObservedCheck, Sample};
use tidegate_shared::time::{Span, Timestamp};

use crate::desired::desired;
use crate::fixture::name;
use crate::plan::tests::simulation::{AGENTS, Sim};
use crate::testing::fulfilled;
use crate::verification::{LeaderKind, leader_checks};

/// Who measures which check in which run, and what an agent is told of it.
type Key = (Option<Name>, DeploymentId, Name, Timestamp);

#[derive(Default)]
pub(super) struct Measurer {
    /// When the first measurement of a check was, or is, due.
    first: BTreeMap<Key, Timestamp>,
    next: Option<Timestamp>,
}

impl Measurer {
    /// When the next measurement is due.
    pub(super) fn next_event(&self) -> Option<Timestamp> {
        self.next
    }

    /// Every agent reports, with the last measurement of each check; the leader measures.
    pub(super) fn report(&mut self, sim: &mut Sim) {
        self.next = None;
        let now = sim.now;
        for agent in AGENTS {
            let agent = name(agent);
            let sequence = sim.next_sequence();
            let mut report = fulfilled(&sim.state, &agent, sequence);
            for item in desired(&sim.state, &agent).items {
                for wish in &item.checks {
                    let key = (
                        Some(agent.clone()),
                        item.deployment,
                        wish.name.clone(),
                        wish.run,
                    );
                    let first = self.first.entry(key);
                    let first = *first.or_insert(now + wish.initial_delay);
                    let made = self.made(first, wish.interval, now);
                    tell(&mut report, item.deployment, wish, made);
                }
            }
            sim.hear(&agent, report);
        }
        for check in leader_checks(&sim.state) {
            let made = self.made(check.begins, check.interval, now);
            if made == 0 {
                continue;
            }
            let sample = match check.what {
                LeaderKind::Http(_) => good(),
                LeaderKind::Prometheus(_) => Sample::Values(vec![1.0]),
            };
            let lanes = &mut sim.observed.verification;
            let (id, check, run) = (check.deployment, &check.name, check.run);
            lanes.measured(&sim.state, id, check, run, made, &sample, now);
        }
    }

    /// How many were made of those that began then.
    fn made(&mut self, first: Timestamp, interval: Span, now: Timestamp) -> u64 {
        let made = match first > now {
            true => 0,
            false => 1 + now.since(first).millis() / interval.millis(),
        };
        let next = first + interval.times(made);
        self.next = crate::plan::sooner(self.next, Some(next));
        made
    }
}

fn good() -> Sample {
    Sample::Http {
        status: 200,
        body: String::new(),
        cut: false,
    }
}

fn tell(report: &mut Report, deployment: DeploymentId, wish: &CheckWish, made: u64) {
    let mut places = report.places.iter_mut();
    let Some(place) = places.find(|place| place.deployment == deployment && made > 0) else {
        return;
    };
    let told = |instance: Option<u32>, sample: Sample| ObservedCheck {
        name: wish.name.clone(),
        run: wish.run,
        instance,
        sequence: made,
        sample,
    };
    match &wish.what {
        CheckKind::Http(_) => {
            let instances = place
                .instances
                .iter()
                .map(|i| told(Some(i.ordinal), good()));
            place.checks.extend(instances);
        }
        CheckKind::Command(_) => {
            let ended = Sample::Command {
                exit_code: 0,
                output: String::new(),
                cut: false,
            };
            place.checks.push(told(None, ended));
        }
    }
}
