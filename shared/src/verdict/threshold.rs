//! Raw threshold rules: the literal comparison of a metric over a window (verdict.md §2).
//!
//! No data is neither pass nor fail. Pure arithmetic over [`Measured`]: who gathers it (the leader's
//! telemetry, an agent's guard, a replay) keeps the history and asks [`look`] for one instant;
//! `for` is asking at more instants. Floats appear here and nowhere in replicated state: what is
//! kept of a verdict is [`Evidence`], decimal texts.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::app::AppSums;
use crate::spec::{Comparison, Metric, Rule, RuleAction};
use crate::time::{Span, Timestamp};
use crate::verdict::histogram::Histogram;
use crate::weight::Weight;

/// What a rule says of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The comparison does not hold.
    Pass,
    /// The comparison holds, for long enough.
    Fail,
    /// Fewer samples than the rule asks for, or the comparison does not hold for long enough yet.
    Inconclusive,
    /// Nothing was measured.
    NoData,
}

impl Verdict {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
            Self::NoData => "no_data",
        }
    }
}

/// A verdict with the numbers that it was taken from. Decimal texts: no float is replicated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// What was measured.
    pub metric: Metric,
    /// How it was compared.
    pub comparison: Comparison,
    /// With what.
    pub threshold: String,
    /// What came out.
    pub verdict: Verdict,
    /// The value, in the metric's unit; empty without data.
    pub value: String,
    /// Requests (or samples) in the window.
    pub samples: u64,
    /// Of them errors, for rates.
    pub errors: u64,
    /// The window.
    pub window: Span,
    /// When it was judged.
    pub at: Timestamp,
    /// What the rule does when met.
    pub action: RuleAction,
    /// It only reports.
    pub dry_run: bool,
    /// The step that it was judged in, from 0.
    pub step: u32,
}

impl Evidence {
    /// One line for people, without the weight of the step: see [`Evidence::line`].
    pub fn message(&self) -> String {
        self.line(None)
    }

    /// One line for people: "http.error_rate 0.214 > 0.1 over 1s: 43 of 201 requests failed, step 2
    /// (50 %)".
    pub fn line(&self, weight: Option<Weight>) -> String {
        let sign = match (self.comparison, self.verdict) {
            (Comparison::GreaterThan, Verdict::Pass) => "≤",
            (Comparison::GreaterThan, _) => ">",
            (Comparison::LessThan, Verdict::Pass) => "≥",
            (Comparison::LessThan, _) => "<",
            (Comparison::Equal, Verdict::Pass) => "≠",
            (Comparison::Equal, _) => "=",
        };
        let (metric, threshold, window) = (&self.metric, &self.threshold, self.window);
        let found = match self.verdict {
            Verdict::Pass | Verdict::Fail => {
                format!("{metric} {} {sign} {threshold} over {window}", self.value)
            }
            Verdict::Inconclusive => format!(
                "{metric} {sign} {threshold} over {window} is not decided yet (now {})",
                self.value
            ),
            Verdict::NoData => {
                format!("{metric} {sign} {threshold} over {window} has no data")
            }
        };
        let counted = match samples_of(&self.metric) {
            Samples::Errors => format!("{} of {} requests failed", self.errors, self.samples),
            Samples::Requests => format!("{} requests", self.samples),
            Samples::Checks => format!("{} health checks", self.samples),
            Samples::Gauges => format!("{} samples", self.samples),
        };
        let step = self.step + 1;
        let at = weight.map_or_else(String::new, |weight| format!(" ({weight})"));
        format!("{found}: {counted}, step {step}{at}")
    }
}

/// What a version did and used, summed over its instances. Counts are since whenever the sum
/// began; a window is the difference of two of these.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measured {
    /// Answered requests.
    pub requests: u64,
    /// Of them 4xx.
    pub client_errors: u64,
    /// Of them 5xx, and those never answered.
    pub server_errors: u64,
    /// Health checks made.
    pub health_checks: u64,
    /// Of them failed.
    pub health_check_failures: u64,
    /// Microseconds of answered requests.
    pub latency: Histogram,
    /// Sum of CPU samples, each in basis points of one core.
    pub cpu: u64,
    /// Sum of memory samples, each in basis points of the host's memory.
    pub memory: u64,
    /// How many samples of CPU and memory there were.
    pub gauges: u64,
    /// What the application exposes itself.
    pub app: AppSums,
}

impl Measured {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.client_errors = self.client_errors.saturating_add(other.client_errors);
        self.server_errors = self.server_errors.saturating_add(other.server_errors);
        self.health_checks = self.health_checks.saturating_add(other.health_checks);
        self.health_check_failures = self
            .health_check_failures
            .saturating_add(other.health_check_failures);
        self.latency.merge(&other.latency);
        self.cpu = self.cpu.saturating_add(other.cpu);
        self.memory = self.memory.saturating_add(other.memory);
        self.gauges = self.gauges.saturating_add(other.gauges);
        self.app.add(&other.app);
    }

    /// What came since `earlier`, an older value of the same sum.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            client_errors: self.client_errors.saturating_sub(earlier.client_errors),
            server_errors: self.server_errors.saturating_sub(earlier.server_errors),
            health_checks: self.health_checks.saturating_sub(earlier.health_checks),
            health_check_failures: self
                .health_check_failures
                .saturating_sub(earlier.health_check_failures),
            latency: self.latency.since(&earlier.latency).unwrap_or_default(),
            cpu: self.cpu.saturating_sub(earlier.cpu),
            memory: self.memory.saturating_sub(earlier.memory),
            gauges: self.gauges.saturating_sub(earlier.gauges),
            app: self.app.since(&earlier.app),
        }
    }
}

enum Samples {
    Errors,
    Requests,
    Checks,
    Gauges,
}

fn samples_of(metric: &Metric) -> Samples {
    match metric {
        Metric::ErrorRate | Metric::ServerErrorRate => Samples::Errors,
        Metric::Rpm
        | Metric::ResponseTime
        | Metric::ResponseTimeP50
        | Metric::ResponseTimeP95
        | Metric::ResponseTimeP99 => Samples::Requests,
        Metric::HealthcheckCount | Metric::HealthcheckFail => Samples::Checks,
        Metric::CpuUsagePercentage | Metric::MemoryUsagePercentage | Metric::App(_) => {
            Samples::Gauges
        }
    }
}

/// The value of a metric over a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// In the metric's unit; none: nothing was measured.
    pub value: Option<f64>,
    /// Requests, checks or samples that it rests on.
    pub samples: u64,
    /// Of them errors, for rates.
    pub errors: u64,
}

/// Reads a metric off what was measured over a window of that length. CPU is in per cent of one
/// core, so that a busy instance on two cores reads 200.
pub fn read(metric: &Metric, measured: &Measured, window: Span) -> Reading {
    let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let millis = |micros: Option<u64>| micros.map(|micros| micros as f64 / 1_000.0);
    let failed = measured
        .client_errors
        .saturating_add(measured.server_errors);
    let latency = &measured.latency;
    let counted = |count: u64| (measured.health_checks > 0).then_some(count as f64);
    let (value, samples, errors) = match metric {
        Metric::App(app) => {
            let (value, samples) = measured.app.read(app, window);
            (value, samples, 0)
        }
        Metric::CpuUsagePercentage => (
            ratio(measured.cpu, measured.gauges.saturating_mul(100)),
            measured.gauges,
            0,
        ),
        Metric::MemoryUsagePercentage => (
            ratio(measured.memory, measured.gauges.saturating_mul(100)),
            measured.gauges,
            0,
        ),
        Metric::Rpm => (
            ratio(
                measured.requests.saturating_mul(60_000),
                window.millis().max(1),
            )
            .filter(|_| measured.requests > 0),
            measured.requests,
            0,
        ),
        Metric::ErrorRate => (ratio(failed, measured.requests), measured.requests, failed),
        Metric::ServerErrorRate => (
            ratio(measured.server_errors, measured.requests),
            measured.requests,
            measured.server_errors,
        ),
        Metric::ResponseTime => (
            ratio(latency.sum(), latency.count().saturating_mul(1_000)),
            latency.count(),
            0,
        ),
        Metric::ResponseTimeP50 => (millis(latency.p50()), latency.count(), 0),
        Metric::ResponseTimeP95 => (millis(latency.p95()), latency.count(), 0),
        Metric::ResponseTimeP99 => (millis(latency.p99()), latency.count(), 0),
        Metric::HealthcheckCount => (counted(measured.health_checks), measured.health_checks, 0),
        Metric::HealthcheckFail => (
            counted(measured.health_check_failures),
            measured.health_checks,
            measured.health_check_failures,
        ),
    };
    Reading {
        value,
        samples,
        errors,
    }
}

/// Whether the comparison holds. Exactly at the threshold only `equal` does.
pub fn holds(comparison: Comparison, value: f64, threshold: f64) -> bool {
    match comparison {
        Comparison::GreaterThan => value > threshold,
        Comparison::LessThan => value < threshold,
        Comparison::Equal => value == threshold,
    }
}

/// What a rule says of one window, with the figures. `whole` is false while less than a window of
/// history exists: what grows with time (counts, requests per minute) then cannot yet be found too
/// small, nor equal.
///
/// `Fail` here means that the comparison holds at this instant; whether it has held for the rule's
/// `for` is the caller's to find out by looking at earlier instants.
pub fn look(rule: &Rule, measured: &Measured, whole: bool) -> (Verdict, Reading) {
    let reading = read(&rule.metric, measured, rule.window);
    let Some(value) = reading.value else {
        return (Verdict::NoData, reading);
    };
    let grows = match &rule.metric {
        Metric::App(app) => app.grows(),
        Metric::Rpm | Metric::HealthcheckCount | Metric::HealthcheckFail => true,
        Metric::CpuUsagePercentage
        | Metric::MemoryUsagePercentage
        | Metric::ErrorRate
        | Metric::ServerErrorRate
        | Metric::ResponseTime
        | Metric::ResponseTimeP50
        | Metric::ResponseTimeP95
        | Metric::ResponseTimeP99 => false,
    };
    let early = match rule.comparison {
        Comparison::GreaterThan => false,
        Comparison::LessThan | Comparison::Equal => grows && !whole,
    };
    let verdict = if reading.samples < rule.min_samples || early {
        Verdict::Inconclusive
    } else if holds(rule.comparison, value, rule.threshold.to_f64()) {
        Verdict::Fail
    } else {
        Verdict::Pass
    };
    (verdict, reading)
}

/// A number as people read it: three significant digits, more where the rounding would blur on
/// which side of the threshold it lies.
pub fn decimal(value: f64, threshold: f64) -> String {
    let text = |digits: i32| {
        let magnitude = if value == 0.0 {
            0
        } else {
            value.abs().log10().floor() as i32
        };
        let places = (digits - 1 - magnitude).clamp(0, 12) as usize;
        let text = format!("{value:.places$}");
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        }
    };
    let same_side = |text: &str| {
        let shown: f64 = text.parse().unwrap_or(f64::NAN);
        shown.partial_cmp(&threshold) == value.partial_cmp(&threshold)
    };
    let texts = (3..=12).map(text).collect::<Vec<_>>();
    let exact = texts.iter().find(|text| same_side(text));
    exact.or(texts.last()).cloned().unwrap_or_default()
}
