//! Rules: a metric compared with a threshold.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::app_metric::{self, AppMetric};
use crate::decimal::Decimal;
use crate::spec::FieldErrors;
use crate::time::Span;

/// When a new version is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RollbackSpec {
    /// Any rule met acts; at most 32.
    pub rules: Vec<Rule>,
}

/// A metric compared with a threshold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What is measured.
    pub metric: Metric,
    /// How it is compared.
    pub comparison: Comparison,
    /// In the metric's unit.
    pub threshold: Decimal,
    /// Stored resolved; for now only `raw` is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<Judge>,
    /// The metric is taken over this time up to now; 250 ms to 1 h.
    #[serde(default = "default_window")]
    pub window: Span,
    /// Requests (or samples) in the window below which there is no verdict; default 1.
    #[serde(default = "default_min_samples")]
    pub min_samples: u64,
    /// How long the comparison must hold without a break; default at once.
    #[serde(default, rename = "for", skip_serializing_if = "Span::is_zero")]
    pub hold: Span,
    /// Default `rollback`.
    #[serde(default)]
    pub action: RuleAction,
    /// Only report.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Not yet supported; refused by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worse_than_baseline: Option<serde_json::Value>,
}

const fn default_window() -> Span {
    Span::from_secs(30)
}

const fn default_min_samples() -> u64 {
    1
}

/// Metrics of host scopes (product.md §4), and those of the application itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Per cent of one core's capacity times cores, mean over the version's instances.
    CpuUsagePercentage,
    /// Per cent of the host's memory, mean over the version's instances.
    MemoryUsagePercentage,
    /// Requests per minute.
    Rpm,
    /// Fraction 0–1 of 4xx and 5xx over all requests.
    ErrorRate,
    /// Fraction 0–1 of 5xx over all requests.
    ServerErrorRate,
    /// Milliseconds, mean.
    ResponseTime,
    /// Milliseconds, median.
    ResponseTimeP50,
    /// Milliseconds, 95th percentile.
    ResponseTimeP95,
    /// Milliseconds, 99th percentile.
    ResponseTimeP99,
    /// Health checks made in the window.
    HealthcheckCount,
    /// Health checks failed in the window.
    HealthcheckFail,
    /// What the application exposes on `/metrics`.
    App(AppMetric),
}

impl Metric {
    /// Every metric that the platform measures itself.
    pub const ALL: [Self; 11] = [
        Self::CpuUsagePercentage,
        Self::MemoryUsagePercentage,
        Self::Rpm,
        Self::ErrorRate,
        Self::ServerErrorRate,
        Self::ResponseTime,
        Self::ResponseTimeP50,
        Self::ResponseTimeP95,
        Self::ResponseTimeP99,
        Self::HealthcheckCount,
        Self::HealthcheckFail,
    ];

    /// Whether it is taken from requests and their answers, which raw connections do not have.
    pub const fn is_of_requests(&self) -> bool {
        match self {
            Self::Rpm
            | Self::ErrorRate
            | Self::ServerErrorRate
            | Self::ResponseTime
            | Self::ResponseTimeP50
            | Self::ResponseTimeP95
            | Self::ResponseTimeP99 => true,
            Self::CpuUsagePercentage
            | Self::MemoryUsagePercentage
            | Self::HealthcheckCount
            | Self::HealthcheckFail
            | Self::App(_) => false,
        }
    }

    /// The name in manifests, of those that the platform measures itself.
    const fn word(&self) -> Option<&'static str> {
        Some(match self {
            Self::CpuUsagePercentage => "system.cpu_usage_percentage",
            Self::MemoryUsagePercentage => "system.memory_usage_percentage",
            Self::Rpm => "http.rpm",
            Self::ErrorRate => "http.error_rate",
            Self::ServerErrorRate => "http.server_error_rate",
            Self::ResponseTime => "http.response_time",
            Self::ResponseTimeP50 => "http.response_time.p50",
            Self::ResponseTimeP95 => "http.response_time.p95",
            Self::ResponseTimeP99 => "http.response_time.p99",
            Self::HealthcheckCount => "http.healthcheck_count",
            Self::HealthcheckFail => "http.healthcheck_fail",
            Self::App(_) => return None,
        })
    }

    /// What the application exposes itself, if it is that.
    pub const fn app(&self) -> Option<&AppMetric> {
        match self {
            Self::App(metric) => Some(metric),
            Self::CpuUsagePercentage
            | Self::MemoryUsagePercentage
            | Self::Rpm
            | Self::ErrorRate
            | Self::ServerErrorRate
            | Self::ResponseTime
            | Self::ResponseTimeP50
            | Self::ResponseTimeP95
            | Self::ResponseTimeP99
            | Self::HealthcheckCount
            | Self::HealthcheckFail => None,
        }
    }

    /// Whether it is a share of requests, for which `judge: evidence` is the default.
    pub const fn is_rate(&self) -> bool {
        matches!(self, Self::ErrorRate | Self::ServerErrorRate)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App(metric) => f.pad(&metric.to_string()),
            other => f.pad(other.word().unwrap_or_default()),
        }
    }
}

impl std::str::FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with(app_metric::PREFIX) {
            return text.parse().map(Self::App);
        }
        let known = Self::ALL.iter().find(|metric| metric.word() == Some(text));
        known.cloned().ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().filter_map(Self::word).collect();
            format!(
                "\"{}\" is not a metric: want one of {}, or app.NAME of the application's own",
                text.escape_debug(),
                names.join(", ")
            )
        })
    }
}

impl Serialize for Metric {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How a metric is compared with a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// Strictly greater.
    GreaterThan,
    /// Strictly less.
    LessThan,
    /// Equal.
    Equal,
}

impl Comparison {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GreaterThan => "greater_than",
            Self::LessThan => "less_than",
            Self::Equal => "equal",
        }
    }
}

/// How the comparison is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Judge {
    /// The literal comparison.
    Raw,
    /// Proved by the sequential test; not yet supported.
    Evidence,
}

/// What a rule that is met does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RuleAction {
    /// Back to the active version.
    #[default]
    Rollback,
    /// Stop where it is and ask people.
    Halt,
}

impl Rule {
    /// With the judge that counts when none is written.
    pub(super) fn resolve(mut self) -> Self {
        self.judge = Some(self.judge.unwrap_or(if self.metric.is_rate() {
            Judge::Evidence
        } else {
            Judge::Raw
        }));
        self
    }

    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(
            self.worse_than_baseline.is_none(),
            "worse_than_baseline",
            "is not supported yet; use comparison and threshold with judge: raw",
        );
        match (self.judge, self.metric.is_rate()) {
            (Some(Judge::Evidence), _) => {
                errors.add("judge", "evidence is not supported yet; use judge: raw")
            }
            (None, true) => errors.add(
                "judge",
                "the default of a rate is evidence, which is not supported yet; say judge: raw",
            ),
            (None, false) | (Some(Judge::Raw), _) => {}
        }
        errors.require(
            (250..=3_600_000).contains(&self.window.millis()),
            "window",
            "want 250ms to 1h",
        );
        errors.require(
            (1..=1_000_000_000).contains(&self.min_samples),
            "min_samples",
            "want 1 to 1000000000",
        );
        errors.require(self.hold <= Span::from_hours(24), "for", "want at most 24h");
        errors
    }
}
