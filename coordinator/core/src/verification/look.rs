//! How far the checks of a deployment are, for the planner and for people.

use tidegate_shared::id::Name;
use tidegate_shared::measurement::MOST_INSTANCES;
use tidegate_shared::spec::{Measurement, VerificationSpec};
use tidegate_shared::time::Timestamp;
use tidegate_shared::verdict::check::{Bounds, Outcome, Tally, together};

use super::lanes::{Lane, Maker};
use crate::deployment::checks::{self, Moment};
use crate::plan::view::View;
use crate::state::CheckRecord;

/// Where a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViewState {
    /// It is being measured.
    Running,
    /// Good.
    Success,
    /// Bad.
    Failure,
    /// No answer so far; it is measured on.
    Inconclusive,
}

impl ViewState {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Inconclusive => "inconclusive",
        }
    }

    const fn of(outcome: Option<Outcome>) -> Self {
        match outcome {
            None => Self::Running,
            Some(Outcome::Success) => Self::Success,
            Some(Outcome::Failure) => Self::Failure,
            Some(Outcome::Inconclusive) => Self::Inconclusive,
        }
    }
}

/// One check as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckView {
    /// Which check.
    pub name: Name,
    /// `http`, `command` or `prometheus`.
    pub kind: &'static str,
    /// Which run.
    pub run: Timestamp,
    /// Index of the step; none: before traffic.
    pub step: Option<u32>,
    /// Where it is.
    pub state: ViewState,
    /// What is known of it in the log.
    pub recorded: Option<Outcome>,
    /// The tally of whoever is furthest from a success.
    pub tally: Tally,
    /// Good ones of that tally that count.
    pub counted: u32,
    /// Good ones that make a success.
    pub needed: u32,
    /// Bad ones that are borne.
    pub failure_limit: u32,
    /// The last measurement of that tally, with who made it; empty: none yet.
    pub last: String,
    /// When it was heard of.
    pub last_at: Option<Timestamp>,
    /// When the next one begins, about.
    pub next_at: Option<Timestamp>,
    /// How many measure it.
    pub makers: u32,
    /// How many of them have succeeded.
    pub succeeded: u32,
}

impl CheckView {
    /// One line for a person. It changes when something is measured, not with time.
    pub fn line(&self) -> String {
        let mut parts = vec![match self.state {
            ViewState::Success => format!("check {} succeeded", self.name),
            ViewState::Failure => self.failed(),
            ViewState::Running | ViewState::Inconclusive => {
                let successes = if self.needed == 1 {
                    "success"
                } else {
                    "successes"
                };
                format!(
                    "check {}: {} of {} {successes}",
                    self.name, self.counted, self.needed
                )
            }
        }];
        if matches!(self.state, ViewState::Running | ViewState::Inconclusive) {
            if self.tally.failures > 0 {
                parts.push(format!(
                    "{} of {} bad ones borne",
                    self.tally.failures, self.failure_limit
                ));
            }
            if self.tally.rounds > 0 {
                parts.push("inconclusive so far".to_owned());
            }
            if self.makers > 1 {
                parts.push(format!("{} of {} are done", self.succeeded, self.makers));
            }
            if let Some(next) = self.next_at {
                parts.push(format!("next at {next}"));
            }
        }
        if self.last.is_empty() {
            parts.push("not measured yet".to_owned());
        } else {
            parts.push(format!("last: {}", self.last));
        }
        parts.join(", ")
    }

    fn failed(&self) -> String {
        let bad = match self.tally.failures {
            1 => "1 bad measurement".to_owned(),
            many => format!("{many} bad measurements"),
        };
        format!(
            "check {} failed: {bad} ({} borne)",
            self.name, self.failure_limit
        )
    }

    /// The record of its present answer.
    pub(crate) fn record(&self, outcome: Outcome, now: Timestamp) -> CheckRecord {
        let last = if self.last.is_empty() {
            "it was not measured".to_owned()
        } else {
            format!("last: {}", self.last)
        };
        let message = match outcome {
            Outcome::Success => format!(
                "check {} succeeded: {} of {} measurements good, {last}",
                self.name, self.counted, self.tally.measurements
            ),
            Outcome::Failure => format!("{}, {last}", self.failed()),
            Outcome::Inconclusive => format!(
                "check {} is inconclusive: {} of {} good measurements, {last}",
                self.name, self.counted, self.needed
            ),
        };
        CheckRecord {
            name: self.name.clone(),
            run: self.run,
            step: self.step,
            outcome,
            measurements: self.tally.measurements,
            failures: self.tally.failures,
            at: now,
            message,
        }
    }
}

/// The checks of the present moment, in the strategy's order.
pub(crate) fn look(view: &View<'_>) -> Vec<CheckView> {
    checks::due(view.deployment)
        .filter_map(|(moment, spec)| one(view, &moment, spec))
        .collect()
}

fn one(view: &View<'_>, moment: &Moment, spec: &VerificationSpec) -> Option<CheckView> {
    let measurement = spec.measurement()?;
    let bounds = Bounds::of(spec);
    let makers = makers(view, measurement);
    let lanes: Vec<(&Maker, Option<&Lane>)> = makers
        .iter()
        .map(|maker| {
            let known = &view.observed.verification;
            let lane = known.lane(view.deployment.id, &spec.name, moment.run, maker);
            (maker, lane)
        })
        .collect();
    let outcome = |lane: &Option<&Lane>| lane.and_then(|lane| lane.tally.outcome);
    let measured = match lanes.is_empty() {
        true => None,
        false => together(lanes.iter().map(|(_, lane)| outcome(lane))),
    };
    let worst = lanes.iter().min_by_key(|(_, lane)| {
        let tally = lane.map_or_else(Tally::default, |lane| lane.tally);
        let rank = match tally.outcome {
            Some(Outcome::Failure) => 0,
            Some(Outcome::Inconclusive) => 1,
            None => 2,
            Some(Outcome::Success) => 3,
        };
        (rank, tally.counted(&bounds))
    });
    let recorded = checks::record(view.deployment, moment, spec).map(|record| record.outcome);
    let settled = recorded.filter(|outcome| *outcome != Outcome::Inconclusive);
    let lane = worst.and_then(|(_, lane)| *lane);
    let tally = lane.map_or_else(Tally::default, |lane| lane.tally);
    let succeeded = lanes
        .iter()
        .filter(|(_, lane)| outcome(lane) == Some(Outcome::Success));
    let state = ViewState::of(settled.or(measured));
    let goes_on = matches!(state, ViewState::Running | ViewState::Inconclusive);
    let first = moment.since + spec.initial_delay;
    Some(CheckView {
        name: spec.name.clone(),
        kind: measurement.as_str(),
        run: moment.run,
        step: moment.step,
        state,
        recorded,
        tally,
        counted: tally.counted(&bounds),
        needed: bounds.needed(),
        failure_limit: bounds.failures,
        last: match (worst, lane) {
            (Some((maker, _)), Some(lane)) => format!("{maker}: {}", lane.told),
            (Some(_) | None, _) => String::new(),
        },
        last_at: lane.map(|lane| lane.at),
        next_at: goes_on.then(|| lane.map_or(first, |lane| lane.at + spec.interval)),
        makers: u32::try_from(lanes.len()).unwrap_or(u32::MAX),
        succeeded: u32::try_from(succeeded.count()).unwrap_or(u32::MAX),
    })
}

/// Whose measurements the answer needs: of every participant that counts and runs the new version.
pub(crate) fn makers(view: &View<'_>, measurement: Measurement<'_>) -> Vec<Maker> {
    if !measurement.is_on_agents() {
        return vec![Maker::Leader];
    }
    let mut makers = Vec::new();
    for participant in view.counting().filter(|p| p.wanted() > 0) {
        let maker = |instance| Maker::Agent {
            agent: participant.name.clone(),
            instance,
        };
        match measurement {
            Measurement::InstanceHttp(_) => {
                let instances = participant.wanted().min(MOST_INSTANCES);
                makers.extend((0..instances).map(|ordinal| maker(Some(ordinal))));
            }
            Measurement::Command(_) | Measurement::LeaderHttp(_) | Measurement::Prometheus(_) => {
                makers.push(maker(None))
            }
        }
    }
    makers
}
