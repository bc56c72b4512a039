//! Which checks of a strategy are due at the present moment of a deployment, and how long they may
//! hold it up.
//!
//! A moment begins when a step is held everywhere, or with `RUNNING` for checks before traffic, and
//! ends with the step. It is told apart from every other by when the step began, so that a step
//! that comes again is checked again. A fast rollback skips checks, as it does all analysis; a
//! person's own weight has none, since the steps stand still.

use tidegate_shared::spec::{Hold, VerificationSpec, When};
use tidegate_shared::time::{Span, Timestamp};

use super::{phase, steps};
use crate::state::{CheckRecord, Deployment, Status, StepProgress};
use crate::strategy::is_batched;

/// A moment at which checks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// What tells it apart: when the step began, moved on by its number of milliseconds, since steps
    /// may follow each other in one instant.
    pub run: Timestamp,
    /// Index of the step; none: before traffic.
    pub step: Option<u32>,
    /// No step follows.
    pub last: bool,
    /// When it began.
    pub since: Timestamp,
}

/// The present moment; none where no check is made.
pub fn moment(deployment: &Deployment) -> Option<Moment> {
    let none = deployment.origin.strategy.verification.is_empty();
    if none || deployment.origin.fast || deployment.status != Status::Running {
        return None;
    }
    if deployment.traffic.manual.is_some() {
        return None;
    }
    match deployment.traffic.step {
        None => Some(Moment {
            run: deployment.status_since,
            step: None,
            last: false,
            since: deployment.status_since,
        }),
        Some(step) => step.reached_at.map(|since| Moment {
            run: run_of(&step),
            step: Some(step.index),
            last: steps::at_last(deployment),
            since,
        }),
    }
}

fn run_of(step: &StepProgress) -> Timestamp {
    step.started_at + Span::from_millis(u64::from(step.index) + 1)
}

/// Whether a check is made at a moment.
fn is_made_at(spec: &VerificationSpec, moment: &Moment) -> bool {
    let fits = |when: &When| match (when, moment.step) {
        (When::BeforeTraffic, step) => step.is_none(),
        (When::Step(number), Some(step)) => step.checked_add(1) == Some(*number),
        (When::EveryStep, step) => step.is_some(),
        (When::Last, Some(_)) => moment.last,
        (When::Step(_) | When::Last, None) => false,
    };
    if spec.when.is_empty() {
        fits(&When::EveryStep)
    } else {
        spec.when.iter().any(fits)
    }
}

/// The checks of the present moment, in the strategy's order.
pub fn due(deployment: &Deployment) -> impl Iterator<Item = (Moment, &VerificationSpec)> {
    let moment = moment(deployment);
    let checks = deployment.origin.strategy.verification.iter();
    checks.filter_map(move |spec| {
        let moment = moment.filter(|moment| is_made_at(spec, moment))?;
        Some((moment, spec))
    })
}

/// The checks that are made at the step where a deployment is, taken as its last.
pub fn at_the_last(deployment: &Deployment) -> impl Iterator<Item = &VerificationSpec> {
    let step = deployment.traffic.step.unwrap_or_default();
    let moment = Moment {
        run: run_of(&step),
        step: Some(step.index),
        last: true,
        since: step.started_at,
    };
    let checks = deployment.origin.strategy.verification.iter();
    checks.filter(move |spec| is_made_at(spec, &moment))
}

/// What is known of a check at a moment.
pub fn record<'a>(
    deployment: &'a Deployment,
    moment: &Moment,
    spec: &VerificationSpec,
) -> Option<&'a CheckRecord> {
    let mut records = deployment.checks.iter().rev();
    records.find(|record| record.name == spec.name && record.run == moment.run)
}

/// The checks that are being measured: due, and without a final answer.
pub fn under_way(deployment: &Deployment) -> impl Iterator<Item = (Moment, &VerificationSpec)> {
    due(deployment)
        .filter(|(moment, spec)| record(deployment, moment, spec).is_none_or(|r| !r.is_final()))
}

/// How long the present moment has lasted, pauses and halts not counted.
pub fn lasted(deployment: &Deployment, now: Timestamp) -> Span {
    match deployment.traffic.step {
        Some(_) => steps::held_for(deployment, now).unwrap_or_default(),
        None => {
            let stopped = phase::stopped_since(deployment);
            let until = stopped.map_or(now, |stopped| stopped.min(now));
            until.since(deployment.clock_since)
        }
    }
}

/// How long the present moment may last until checks without an answer are taken as inconclusive:
/// time for every measurement and for the hold, then the wait of `on_no_data`. Nothing without
/// checks.
pub fn patience(deployment: &Deployment) -> Span {
    let longest = due(deployment).map(|(_, spec)| spec.longest()).max();
    let Some(longest) = longest else {
        return Span::ZERO;
    };
    let hold = match steps::hold(deployment) {
        Hold::For(hold) => hold,
        Hold::Manual => Span::ZERO,
    };
    let wait = deployment.origin.strategy.on_no_data.wait;
    longest.max(planned(deployment)) + wait.unwrap_or(hold.times(2))
}

/// How long the present moment would last without checks.
fn planned(deployment: &Deployment) -> Span {
    let hold = match steps::hold(deployment) {
        Hold::For(hold) => hold,
        Hold::Manual => Span::ZERO,
    };
    if steps::at_last(deployment) {
        hold + steps::bake(deployment)
    } else {
        hold
    }
}

/// By how much checks may lengthen the present moment.
pub fn extra(deployment: &Deployment) -> Span {
    patience(deployment).saturating_sub(planned(deployment))
}

/// How people name a moment.
pub fn told(deployment: &Deployment, step: Option<u32>) -> String {
    match step {
        None => "before traffic".to_owned(),
        Some(step) if is_batched(deployment) => format!("batch {}", u64::from(step) + 1),
        Some(step) => format!("step {}", u64::from(step) + 1),
    }
}
