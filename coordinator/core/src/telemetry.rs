//! What the counters in agents' reports come to over time, and what the rules say of it.
//!
//! Fed by [`Observed::absorb`](crate::Observed::absorb). Per version there is a series of sums over
//! its instances; a window is the difference of two of them, so a lost report only moves its counts
//! into a later window. Nothing here is replicated: a new leader takes the first levels that it
//! hears as baselines, not as an interval.
//!
//! The series keeps its recent past closely and its distant past in ever wider steps (a sample that
//! is `a` old has a neighbour within `a / 64`), so `for` over hours stays cheap: a break of the
//! comparison that was shorter than that may be missed, as with any rule that is looked at now and
//! then.

use std::collections::{BTreeSet, VecDeque};

use tidegate_shared::assignment::{Counters, HostMetrics, ObservedInstance, Report};
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::spec::{Metric, Rule};
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::verdict::app::AppLast;
use tidegate_shared::verdict::threshold::{self, Evidence, Measured, Verdict};

use crate::state::{Deployment, Status, Table};

/// Reports that arrive within this time share a sample.
const SLOT: Span = Span::from_millis(25);

/// The longest `for` and the longest window together.
const HISTORY: Span = Span::from_hours(25);

/// How much of the past is kept of versions that no rollout concerns: enough for display.
const IDLE_HISTORY: Span = Span::from_mins(2);

/// Samples are thinned out when so many have come since the last time.
const THIN_AFTER: usize = 64;

/// Sums per version, and the last counters of instances that vanished from reports.
#[derive(Debug, Clone, Default)]
pub struct Telemetry {
    series: Table<DeploymentId, Series>,
    /// An agent that starts again may report before it has found its instances: they are no news
    /// when they come back.
    vanished: Table<(DeploymentId, Name, u32), (Timestamp, Counters)>,
    /// Last values of what applications expose, per instance.
    app: Table<(DeploymentId, Name, u32), AppLast>,
}

/// What a version did, for display.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct VersionFigures {
    /// Answered, over all instances that were heard of since this node leads.
    pub requests: u64,
    /// Of them 4xx.
    pub client_errors: u64,
    /// Of them 5xx.
    pub server_errors: u64,
    /// Over the window.
    pub requests_per_minute: f64,
    /// Fraction over the window; none without requests.
    pub error_rate: Option<f64>,
    /// Mean over the window, ms.
    pub response_time: Option<f64>,
    /// Median over the window, ms.
    pub response_time_p50: Option<f64>,
    /// 95th percentile over the window, ms.
    pub response_time_p95: Option<f64>,
    /// 99th percentile over the window, ms.
    pub response_time_p99: Option<f64>,
    /// Per cent of one core, mean over the instances.
    pub cpu_percentage: Option<f64>,
    /// Per cent of the host's memory, mean over the instances.
    pub memory_percentage: Option<f64>,
    /// First 5xx that an instance of it told of.
    pub first_error: Option<Timestamp>,
}

#[derive(Debug, Clone)]
struct Sample {
    /// The first and the last report in it.
    opened: Timestamp,
    at: Timestamp,
    total: Measured,
}

#[derive(Debug, Clone)]
struct Series {
    started: Timestamp,
    /// Counted before this node heard of the instances for the first time.
    before: Measured,
    /// Sum at the last sample that was dropped.
    floor: Measured,
    samples: VecDeque<Sample>,
    since_thinned: usize,
    first_error: Option<Timestamp>,
}

impl Telemetry {
    /// Takes in a report, `held` being the one before it of the same agent.
    pub fn absorb(&mut self, agent: &Name, held: Option<&Report>, report: &Report, now: Timestamp) {
        for place in &report.places {
            let before = held.and_then(|held| crate::observed::place_in(held, place.deployment));
            let before = before.map_or(&[][..], |place| &place.instances);
            let mut added = Measured::default();
            let mut baseline = Measured::default();
            let mut first_error = None;
            for instance in &place.instances {
                let known = before.iter().find(|i| i.ordinal == instance.ordinal);
                let key = (place.deployment, agent.clone(), instance.ordinal);
                let vanished = self.vanished.remove(&key);
                let last = known.map(|i| (i.start_stamp, &i.counters)).or(vanished
                    .as_deref()
                    .map(|(stamp, counters)| (*stamp, counters)));
                match (last, held) {
                    (None, None) => baseline.add(&counted(&instance.counters)),
                    (last, _) => added.add(&grown(last, instance)),
                }
                add_gauges(&mut added, instance, &report.host);
                let key = (place.deployment, agent.clone(), instance.ordinal);
                self.add_app(&mut added, key, instance);
                first_error = earliest(first_error, instance.counters.first_error);
            }
            if !self.series.contains_key(&place.deployment) {
                self.series.insert(place.deployment, Series::new(now));
            }
            if let Some(series) = self.series.get_mut(&place.deployment) {
                series.before.add(&baseline);
                series.first_error = earliest(series.first_error, first_error);
                series.push(&added, now);
            }
        }
        self.remember_vanished(agent, held, report);
    }

    /// Values that the application told: how much they grew since this node heard of them last. A
    /// first one is a baseline, a lower one the count of a process that began anew.
    fn add_app(
        &mut self,
        added: &mut Measured,
        key: (DeploymentId, Name, u32),
        instance: &ObservedInstance,
    ) {
        if instance.app.is_empty() {
            return;
        }
        if !self.app.contains_key(&key) {
            self.app.insert(key.clone(), AppLast::default());
        }
        if let Some(last) = self.app.get_mut(&key) {
            for sample in &instance.app {
                added.app.sample(last, sample);
            }
        }
    }

    fn remember_vanished(&mut self, agent: &Name, held: Option<&Report>, report: &Report) {
        for place in held.map_or(&[][..], |held| &held.places) {
            let still = crate::observed::place_in(report, place.deployment);
            let still = still.map_or(&[][..], |place| &place.instances);
            for instance in &place.instances {
                if !still.iter().any(|i| i.ordinal == instance.ordinal) {
                    let key = (place.deployment, agent.clone(), instance.ordinal);
                    let last = (instance.start_stamp, instance.counters.clone());
                    self.vanished.insert(key, last);
                }
            }
        }
    }

    /// What every rule of a deployment says of its new version, in the rules' order. Empty without
    /// rules.
    pub fn judge(&self, deployment: &Deployment, now: Timestamp) -> Vec<Evidence> {
        // What an instance used up before it was up and running is not held against the version.
        let from = match deployment.status {
            Status::Running => deployment.status_since,
            Status::CreatingApproval
            | Status::CreatingApprovalDenied
            | Status::Pending
            | Status::Creating
            | Status::WaitingForInstances
            | Status::Finalizing
            | Status::Finalized
            | Status::Cancelling
            | Status::Cancelled
            | Status::RollingBack
            | Status::RolledBack
            | Status::Failed
            | Status::Deleting
            | Status::Deleted => Timestamp::ZERO,
        };
        let empty = Series::new(now);
        let series = self.series.get(&deployment.id).unwrap_or(&empty);
        let step = deployment.traffic.step.map_or(0, |step| step.index);
        let rules = deployment.origin.strategy.rules.iter();
        rules
            .map(|rule| series.judge(rule, from, now, step))
            .collect()
    }

    /// What a version did over the last `window`, and in all.
    pub fn version_figures(
        &self,
        deployment: DeploymentId,
        window: Span,
        now: Timestamp,
    ) -> Option<VersionFigures> {
        let series = self.series.get(&deployment)?;
        let measured = series.window(now, window, Timestamp::ZERO);
        let length = now.since(series.started).clamp(Span::from_secs(1), window);
        let read = |metric: Metric| threshold::read(&metric, &measured, length).value;
        let total = series.total();
        Some(VersionFigures {
            requests: series.before.requests.saturating_add(total.requests),
            client_errors: series
                .before
                .client_errors
                .saturating_add(total.client_errors),
            server_errors: series
                .before
                .server_errors
                .saturating_add(total.server_errors),
            requests_per_minute: read(Metric::Rpm).unwrap_or(0.0),
            error_rate: read(Metric::ErrorRate),
            response_time: read(Metric::ResponseTime),
            response_time_p50: read(Metric::ResponseTimeP50),
            response_time_p95: read(Metric::ResponseTimeP95),
            response_time_p99: read(Metric::ResponseTimeP99),
            cpu_percentage: read(Metric::CpuUsagePercentage),
            memory_percentage: read(Metric::MemoryUsagePercentage),
            first_error: series.first_error,
        })
    }

    /// Drops versions that are in neither set, and the distant past of those not `watched`.
    pub fn tidy(
        &mut self,
        kept: &BTreeSet<DeploymentId>,
        watched: &BTreeSet<DeploymentId>,
        now: Timestamp,
    ) {
        let known = |id: &DeploymentId| kept.contains(id) || watched.contains(id);
        self.series.retain(|id, _| known(id));
        self.vanished.retain(|(id, _, _), _| known(id));
        self.app.retain(|(id, _, _), _| known(id));
        let idle = self.series.keys().filter(|id| !watched.contains(id));
        for id in idle.copied().collect::<Vec<_>>() {
            if let Some(series) = self.series.get_mut(&id) {
                series.forget_before(now - IDLE_HISTORY);
            }
        }
    }
}

impl Series {
    fn new(started: Timestamp) -> Self {
        Self {
            started,
            before: Measured::default(),
            floor: Measured::default(),
            samples: VecDeque::new(),
            since_thinned: 0,
            first_error: None,
        }
    }

    fn total(&self) -> &Measured {
        self.samples.back().map_or(&self.floor, |last| &last.total)
    }

    fn push(&mut self, added: &Measured, now: Timestamp) {
        if let Some(last) = self.samples.back_mut()
            && (now <= last.at || now.since(last.opened) < SLOT)
        {
            last.at = last.at.max(now);
            last.total.add(added);
            return;
        }
        let mut total = self.total().clone();
        total.add(added);
        self.samples.push_back(Sample {
            opened: now,
            at: now,
            total,
        });
        self.since_thinned += 1;
        if self.since_thinned >= THIN_AFTER {
            self.thin(now);
        }
    }

    fn thin(&mut self, now: Timestamp) {
        self.since_thinned = 0;
        self.forget_before(now - HISTORY);
        let mut kept: Option<Timestamp> = None;
        self.samples.retain(|sample| {
            let distance = now.since(sample.at).millis() / 64;
            let keep = kept.is_none_or(|kept| sample.at.since(kept).millis() >= distance);
            if keep {
                kept = Some(sample.at);
            }
            keep
        });
    }

    fn forget_before(&mut self, before: Timestamp) {
        while self.samples.len() > 1 && self.samples.front().is_some_and(|s| s.at < before) {
            if let Some(sample) = self.samples.pop_front() {
                self.floor = sample.total;
            }
        }
    }

    /// The sum as it stood at an instant.
    fn total_at(&self, at: Timestamp) -> &Measured {
        let after = self.samples.partition_point(|sample| sample.at <= at);
        match after.checked_sub(1).and_then(|last| self.samples.get(last)) {
            Some(sample) => &sample.total,
            None => &self.floor,
        }
    }

    /// What was measured in the `window` that ends at `at`, and not before `from`.
    fn window(&self, at: Timestamp, window: Span, from: Timestamp) -> Measured {
        let begins = (at - window).max(from);
        self.total_at(at).since(self.total_at(begins))
    }

    fn judge(&self, rule: &Rule, from: Timestamp, now: Timestamp, step: u32) -> Evidence {
        let look = |at: Timestamp| {
            let measured = self.window(at, rule.window, from);
            let whole = self.started.max(from) + rule.window <= at;
            threshold::look(rule, &measured, whole)
        };
        let (mut verdict, reading) = look(now);
        if verdict == Verdict::Fail && !self.held(rule, from, now, &look) {
            verdict = Verdict::Inconclusive;
        }
        let value = reading.value.map_or_else(String::new, |value| {
            threshold::decimal(value, rule.threshold.to_f64())
        });
        Evidence {
            metric: rule.metric.clone(),
            comparison: rule.comparison,
            threshold: rule.threshold.as_str().to_owned(),
            verdict,
            value,
            samples: reading.samples,
            errors: reading.errors,
            window: rule.window,
            at: now,
            action: rule.action,
            dry_run: rule.dry_run,
            step,
        }
    }

    /// Whether the comparison has held for the rule's `for` without a break.
    fn held(
        &self,
        rule: &Rule,
        from: Timestamp,
        now: Timestamp,
        look: &impl Fn(Timestamp) -> (Verdict, threshold::Reading),
    ) -> bool {
        let begins = now - rule.hold;
        if rule.hold.is_zero() {
            return true;
        }
        if begins < self.started.max(from) {
            return false;
        }
        let within = |sample: &&Sample| sample.at >= begins && sample.at <= now;
        let mut looks = self.samples.iter().rev().filter(within).map(|s| s.at);
        looks.all(|at| look(at).0 == Verdict::Fail) && look(begins).0 == Verdict::Fail
    }
}

/// The counters of an instance as a sum of their own.
fn counted(counters: &Counters) -> Measured {
    Measured {
        requests: counters.requests,
        client_errors: counters.client_errors,
        server_errors: counters.server_errors,
        health_checks: counters.health_checks,
        health_check_failures: counters.health_check_failures,
        latency: counters.latency.clone(),
        ..Measured::default()
    }
}

/// What an instance counted since its last known counters; all of it if they began again.
fn grown(last: Option<(Timestamp, &Counters)>, instance: &ObservedInstance) -> Measured {
    let present = counted(&instance.counters);
    match last {
        Some((stamp, counters)) if stamp == instance.start_stamp => {
            present.since(&counted(counters))
        }
        Some(_) | None => present,
    }
}

fn add_gauges(added: &mut Measured, instance: &ObservedInstance, host: &HostMetrics) {
    if instance.pid == 0 {
        return;
    }
    let memory = u128::from(instance.memory_bytes) * 10_000;
    let memory = memory.checked_div(u128::from(host.memory_total));
    let memory = memory.and_then(|m| u64::try_from(m).ok()).unwrap_or(0);
    added.cpu = added.cpu.saturating_add(instance.cpu_basis_points.into());
    added.memory = added.memory.saturating_add(memory);
    added.gauges = added.gauges.saturating_add(1);
}

fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, None) => one,
        (None, other) => other,
    }
}

#[cfg(test)]
mod tests;
