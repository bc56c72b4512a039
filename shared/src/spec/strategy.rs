//! Strategies: how a deployment rolls out.
//!
//! `StrategySpec` is what people write, every field optional; `Strategy` is what a deployment
//! carries, every default resolved. Overrides of one deployment are a `StrategySpec` too.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{FieldErrors, percent};
use crate::decimal::Decimal;
use crate::time::Span;
use crate::weight::Weight;

/// How versions are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrategyKind {
    /// Both versions up, traffic moves by steps.
    #[default]
    BlueGreen,
    /// The same with one step of 100 %.
    AllIn,
    /// Replaced batch by batch.
    Rolling,
}

impl StrategyKind {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BlueGreen => "blue_green",
            Self::AllIn => "all_in",
            Self::Rolling => "rolling",
        }
    }
}

/// A strategy as written: what is not said takes the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StrategySpec {
    /// Default `blue_green`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<StrategyKind>,
    /// Not for `rolling` and `all_in`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficSpec>,
    /// Only for `rolling`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchSpec>,
    /// When a new version is taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollbackSpec>,
    /// What an end of a step without evidence does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_no_data: Option<OnNoData>,
    /// Time at the last step before finalizing; default 5 min.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bake: Option<Span>,
    /// Share left on the old version while baking; default 0.
    #[serde(skip_serializing_if = "Option::is_none", with = "optional_percent")]
    pub bake_share: Option<Weight>,
    /// Default `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finalize: Option<FinalizeMode>,
    /// Time for open requests on the old version; default 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<Span>,
    /// Deadlines of the states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadlines: Option<DeadlinesSpec>,
    /// Default `rollback`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_stall: Option<OnStall>,
    /// Lost or failed participants that count as done; default 10 %, at least 1 of 3 or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_lost: Option<MaxLost>,
    /// Finalized releases that stay on the hosts; 1 to 100, default 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_releases: Option<u32>,
}

mod optional_percent {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::spec::percent;
    use crate::weight::Weight;

    #[derive(Deserialize)]
    struct Wrapped(#[serde(with = "percent")] Weight);

    pub(super) fn serialize<S: Serializer>(
        weight: &Option<Weight>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match weight {
            Some(weight) => percent::serialize(weight, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Weight>, D::Error> {
        Wrapped::deserialize(deserializer).map(|wrapped| Some(wrapped.0))
    }
}

/// How traffic moves: either `steps`, or `increment` with `interval`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrafficSpec {
    /// Rising percentages, 1 to 100 of them; the last is raised to 100 − `bake_share`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// "10 % every 30 s": the 10 %.
    #[serde(skip_serializing_if = "Option::is_none", with = "optional_percent")]
    pub increment: Option<Weight>,
    /// "10 % every 30 s": the 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
}

/// One step of traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Share of the new version.
    #[serde(rename = "percent", with = "percent")]
    pub weight: Weight,
    /// How long it stays; default 60 s.
    #[serde(default)]
    pub hold: Hold,
}

/// How long a step stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// So long.
    For(Span),
    /// Until a person promotes; counts as a pause.
    Manual,
}

impl Default for Hold {
    fn default() -> Self {
        Self::For(Span::from_secs(60))
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(span) => span.fmt(f),
            Self::Manual => f.pad("manual"),
        }
    }
}

impl Serialize for Hold {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hold {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "manual" {
            return Ok(Self::Manual);
        }
        text.parse()
            .map(Self::For)
            .map_err(|error| serde::de::Error::custom(format!("{error}, or manual")))
    }
}

/// [`Batch`] as written: what is not said takes the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchSpec {
    /// Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<BatchSize>,
    /// Default `true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap: Option<bool>,
    /// Default 60 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<Span>,
}

impl BatchSpec {
    fn overridden_by(&self, overrides: &Self) -> Self {
        Self {
            max_unavailable: overrides.max_unavailable.or(self.max_unavailable),
            overlap: overrides.overlap.or(self.overlap),
            hold: overrides.hold.or(self.hold),
        }
    }

    fn resolve(&self) -> Batch {
        let Batch {
            max_unavailable,
            overlap,
            hold,
        } = Batch::default();
        Batch {
            max_unavailable: self.max_unavailable.unwrap_or(max_unavailable),
            overlap: self.overlap.unwrap_or(overlap),
            hold: self.hold.unwrap_or(hold),
        }
    }
}

/// How `rolling` replaces instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Instances at a time.
    pub max_unavailable: BatchSize,
    /// Start the new instance before the old one stops; `false` for single consumers.
    pub overlap: bool,
    /// After each batch.
    pub hold: Span,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_unavailable: BatchSize::Count(1),
            overlap: true,
            hold: Span::from_secs(60),
        }
    }
}

/// A count, or a share of all instances (rounded up to at least 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchSize {
    /// So many; at least 1.
    Count(u32),
    /// So large a share; above 0 %.
    Share(Weight),
}

impl BatchSize {
    /// Of so many instances, 1 to `total` (0 only of 0).
    pub fn of(self, total: u32) -> u32 {
        let wanted = match self {
            Self::Count(count) => count,
            Self::Share(share) => share_of(share, total),
        };
        wanted.max(1).min(total)
    }
}

fn share_of(share: Weight, total: u32) -> u32 {
    let product = u64::from(total) * u64::from(share.basis_points());
    // A share of a u32 fits a u32.
    product.div_ceil(10_000) as u32
}

/// Lost or permanently failed participants that count as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaxLost {
    /// 10 %, but at least 1 of 3 or more.
    #[default]
    Default,
    /// So many.
    Count(u32),
    /// So large a share, rounded down.
    Share(Weight),
}

impl MaxLost {
    /// Of so many participants.
    pub fn of(self, participants: u32) -> u32 {
        match self {
            Self::Default if participants >= 3 => (participants / 10).max(1),
            Self::Default => 0,
            Self::Count(count) => count,
            Self::Share(share) => {
                let product = u64::from(participants) * u64::from(share.basis_points());
                // A share of a u32 fits a u32.
                (product / 10_000) as u32
            }
        }
    }
}

macro_rules! count_or_share {
    ($type:ident, $count:path, $share:path, $example:literal $(, $default:path)?) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $($default => f.write_str("default"),)?
                    $count(count) => count.fmt(f),
                    $share(share) => {
                        let (whole, rest) = (share.basis_points() / 100, share.basis_points() % 100);
                        if rest == 0 {
                            write!(f, "{whole}%")
                        } else {
                            write!(f, "{whole}.{rest:02}%")
                        }
                    }
                }
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                $(if text == "default" {
                    return Ok($default);
                })?
                let parsed = match text.strip_suffix('%') {
                    Some(_) => percent::parse(text).map($share),
                    None => text.parse().ok().map($count),
                };
                parsed.ok_or_else(|| {
                    format!("\"{text}\" is neither a count nor a percentage: want {}", $example)
                })
            }
        }

        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($example)
                    }

                    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<$type, E> {
                        self.visit_str(&value.to_string())
                    }

                    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<$type, E> {
                        self.visit_str(&value.to_string())
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

count_or_share!(
    BatchSize,
    Self::Count,
    Self::Share,
    "a count such as 2, or a share such as 25%"
);
count_or_share!(
    MaxLost,
    Self::Count,
    Self::Share,
    "a count such as 2, a share such as 10%, or default",
    Self::Default
);

/// When a new version is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RollbackSpec {
    /// Any rule met acts; at most 32.
    pub rules: Vec<Rule>,
}

/// A metric compared with a threshold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Metrics of host scopes (product.md §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Metric {
    /// Per cent of one core's capacity times cores, mean over the version's instances.
    #[serde(rename = "system.cpu_usage_percentage")]
    CpuUsagePercentage,
    /// Per cent of the host's memory, mean over the version's instances.
    #[serde(rename = "system.memory_usage_percentage")]
    MemoryUsagePercentage,
    /// Requests per minute.
    #[serde(rename = "http.rpm")]
    Rpm,
    /// Fraction 0–1 of 4xx and 5xx over all requests.
    #[serde(rename = "http.error_rate")]
    ErrorRate,
    /// Fraction 0–1 of 5xx over all requests.
    #[serde(rename = "http.server_error_rate")]
    ServerErrorRate,
    /// Milliseconds, mean.
    #[serde(rename = "http.response_time")]
    ResponseTime,
    /// Milliseconds, median.
    #[serde(rename = "http.response_time.p50")]
    ResponseTimeP50,
    /// Milliseconds, 95th percentile.
    #[serde(rename = "http.response_time.p95")]
    ResponseTimeP95,
    /// Milliseconds, 99th percentile.
    #[serde(rename = "http.response_time.p99")]
    ResponseTimeP99,
    /// Health checks made in the window.
    #[serde(rename = "http.healthcheck_count")]
    HealthcheckCount,
    /// Health checks failed in the window.
    #[serde(rename = "http.healthcheck_fail")]
    HealthcheckFail,
}

impl Metric {
    /// Every metric.
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

    /// The name in manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
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
        }
    }

    /// Whether it is a share of requests, for which `judge: evidence` is the default.
    pub const fn is_rate(self) -> bool {
        matches!(self, Self::ErrorRate | Self::ServerErrorRate)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a metric is compared with a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[serde(rename_all = "snake_case")]
pub enum Judge {
    /// The literal comparison.
    Raw,
    /// Proved by the sequential test; not yet supported.
    Evidence,
}

/// What a rule that is met does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleAction {
    /// Back to the active version.
    #[default]
    Rollback,
    /// Stop where it is and ask people.
    Halt,
}

/// What the end of a step without evidence does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnNoData {
    /// How long to wait for evidence; none: twice the step's hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<Span>,
    /// What happens then.
    pub then: NoDataAction,
}

impl Default for OnNoData {
    fn default() -> Self {
        Self {
            wait: None,
            then: NoDataAction::Proceed,
        }
    }
}

/// See [`OnNoData`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoDataAction {
    /// Go on, marked `unverified`.
    Proceed,
    /// Stop where it is and ask people.
    Halt,
    /// Back to the active version.
    Rollback,
}

/// Whether the bake ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalizeMode {
    /// When the bake is over.
    #[default]
    Auto,
    /// When a person says so.
    Manual,
}

/// What a stalled deployment does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnStall {
    /// Back to the active version.
    #[default]
    Rollback,
    /// As if all had gone well.
    Finalize,
    /// Stop where it is and ask people.
    Halt,
}

macro_rules! deadlines {
    ($($(#[$doc:meta])* $field:ident = $default:expr;)*) => {
        /// Deadlines of the states (product.md §2). Each 1 s to 366 d.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Deadlines {
            $($(#[$doc])* pub $field: Span,)*
        }

        /// [`Deadlines`] as written: what is not said takes the default.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct DeadlinesSpec {
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<Span>,)*
        }

        impl Default for Deadlines {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl DeadlinesSpec {
            fn overridden_by(&self, overrides: &Self) -> Self {
                Self { $($field: overrides.$field.or(self.$field),)* }
            }

            fn resolve(&self) -> Deadlines {
                Deadlines { $($field: self.$field.unwrap_or($default),)* }
            }

            fn validate(&self) -> FieldErrors {
                let mut errors = FieldErrors::default();
                $(errors.require(
                    self.$field.is_none_or(|span| {
                        (1_000..=366 * 86_400_000).contains(&span.millis())
                    }),
                    stringify!($field),
                    "want 1s to 366d",
                );)*
                errors
            }
        }
    };
}

deadlines! {
    /// `CREATING_APPROVAL`; default 72 h.
    approval = Span::from_hours(72);
    /// `PENDING`; default 7 d.
    pending = Span::from_days(7);
    /// `CREATING`; default 15 min.
    staging = Span::from_mins(15);
    /// `WAITING_FOR_INSTANCES`, without progress; default 10 min.
    progress = Span::from_mins(10);
    /// `RUNNING`, past the planned end; default 2 h.
    stall = Span::from_hours(2);
    /// `FINALIZING`; default 15 min.
    finalizing = Span::from_mins(15);
    /// `CANCELLING` and `ROLLING_BACK`, without progress; default 15 min.
    returning = Span::from_mins(15);
    /// `DELETING`; default 15 min.
    deleting = Span::from_mins(15);
    /// A halt; default 24 h.
    halt_max = Span::from_hours(24);
    /// A person's pause; default 7 d.
    pause_max = Span::from_days(7);
    /// Waiting for a manual finalize; default 72 h.
    finalize_max = Span::from_hours(72);
}

/// A strategy with every default resolved: the snapshot that a deployment carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Strategy {
    /// How versions are exchanged.
    pub kind: StrategyKind,
    /// Steps of traffic; empty for `rolling`. The last one is 100 − `bake_share`.
    pub steps: Vec<Step>,
    /// How `rolling` replaces.
    pub batch: Batch,
    /// Rules, each with `judge` resolved.
    pub rules: Vec<Rule>,
    /// See [`OnNoData`].
    pub on_no_data: OnNoData,
    /// Time at the last step.
    pub bake: Span,
    /// Share left on the old version meanwhile.
    #[serde(with = "percent")]
    pub bake_share: Weight,
    /// Whether the bake ends by itself.
    pub finalize: FinalizeMode,
    /// Time for open requests.
    pub drain: Span,
    /// Deadlines of the states.
    pub deadlines: Deadlines,
    /// What a stalled deployment does.
    pub on_stall: OnStall,
    /// Participants that may be lost.
    pub max_lost: MaxLost,
    /// Finalized releases that stay on the hosts.
    pub keep_releases: u32,
}

impl StrategySpec {
    /// This one with every field that `overrides` names taken from there; `batch` and `deadlines`
    /// field by field.
    pub fn overridden_by(&self, overrides: &Self) -> Self {
        macro_rules! pick {
            ($($field:ident),*) => {
                Self {
                    batch: both(self.batch, overrides.batch, |a, b| a.overridden_by(&b)),
                    deadlines: both(self.deadlines, overrides.deadlines, |a, b| {
                        a.overridden_by(&b)
                    }),
                    $($field: overrides.$field.clone().or_else(|| self.$field.clone())),*
                }
            };
        }
        pick!(
            kind,
            traffic,
            rollback,
            on_no_data,
            bake,
            bake_share,
            finalize,
            drain,
            on_stall,
            max_lost,
            keep_releases
        )
    }

    /// Every default filled in. Of a spec that does not `validate` the result is sound but
    /// arbitrary.
    pub fn resolve(&self) -> Strategy {
        let kind = self.kind.unwrap_or_default();
        let bake_share = self.bake_share.unwrap_or(Weight::ZERO);
        let rules = self.rollback.clone().unwrap_or_default().rules;
        Strategy {
            kind,
            steps: self.resolve_steps(kind, bake_share.complement()),
            batch: self.batch.unwrap_or_default().resolve(),
            rules: rules.into_iter().map(resolve_rule).collect(),
            on_no_data: self.on_no_data.unwrap_or_default(),
            bake: self.bake.unwrap_or(Span::from_mins(5)),
            bake_share,
            finalize: self.finalize.unwrap_or_default(),
            drain: self.drain.unwrap_or(Span::from_secs(30)),
            deadlines: self.deadlines.unwrap_or_default().resolve(),
            on_stall: self.on_stall.unwrap_or_default(),
            max_lost: self.max_lost.unwrap_or_default(),
            keep_releases: self.keep_releases.unwrap_or(3),
        }
    }

    fn resolve_steps(&self, kind: StrategyKind, last: Weight) -> Vec<Step> {
        let at_once = Step {
            weight: last,
            hold: Hold::For(Span::ZERO),
        };
        let mut steps = match kind {
            StrategyKind::Rolling => return Vec::new(),
            StrategyKind::AllIn => return vec![at_once],
            StrategyKind::BlueGreen => match &self.traffic {
                Some(traffic) => traffic.resolve(),
                None => default_steps(),
            },
        };
        steps.retain(|step| step.weight < last);
        let hold = match &self.traffic {
            // The last step that was written keeps its own hold.
            Some(traffic) => traffic
                .steps
                .last()
                .map_or(Hold::For(Span::ZERO), |s| s.hold),
            None => Hold::default(),
        };
        steps.push(Step { weight: last, hold });
        steps
    }

    /// What is wrong with it.
    pub fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let kind = self.kind.unwrap_or_default();
        if let Some(traffic) = &self.traffic {
            errors.require(
                kind == StrategyKind::BlueGreen,
                "traffic",
                format!("{} takes no traffic steps", kind.as_str()),
            );
            errors.nest("traffic", traffic.validate());
        }
        errors.require(
            self.batch.is_none() || kind == StrategyKind::Rolling,
            "batch",
            format!("{} takes no batch; only rolling does", kind.as_str()),
        );
        errors.require(
            self.bake_share
                .is_none_or(|share| share <= Weight::share(1, 2)),
            "bake_share",
            "want 0 to 50",
        );
        let rules = self.rollback.as_ref().map_or(&[][..], |r| &r.rules);
        errors.require(rules.len() <= 32, "rollback.rules", "more than 32 rules");
        for (position, rule) in rules.iter().enumerate() {
            errors.nest(&format!("rollback.rules[{position}]"), rule.validate());
        }
        errors.require(
            self.keep_releases
                .is_none_or(|keep| (1..=100).contains(&keep)),
            "keep_releases",
            "want 1 to 100",
        );
        if let Some(deadlines) = &self.deadlines {
            errors.nest("deadlines", deadlines.validate());
        }
        errors
    }
}

/// What both have, merged; what one has, as it is.
fn both<T>(base: Option<T>, over: Option<T>, merge: impl Fn(T, T) -> T) -> Option<T> {
    match (base, over) {
        (Some(base), Some(over)) => Some(merge(base, over)),
        (base, over) => over.or(base),
    }
}

fn default_steps() -> Vec<Step> {
    [(1, 20), (1, 4), (1, 2), (1, 1)]
        .into_iter()
        .map(|(part, whole)| Step {
            weight: Weight::share(part, whole),
            hold: Hold::default(),
        })
        .collect()
}

fn resolve_rule(mut rule: Rule) -> Rule {
    rule.judge = Some(rule.judge.unwrap_or(if rule.metric.is_rate() {
        Judge::Evidence
    } else {
        Judge::Raw
    }));
    rule
}

impl TrafficSpec {
    fn resolve(&self) -> Vec<Step> {
        let (Some(increment), Some(interval)) = (self.increment, self.interval) else {
            return self.steps.clone();
        };
        let increment = increment.basis_points().max(1);
        let mut steps = Vec::new();
        let mut reached = increment;
        while reached < Weight::FULL.basis_points() {
            steps.push(Step {
                weight: Weight::share(u64::from(reached), 10_000),
                hold: Hold::For(interval),
            });
            reached = reached.saturating_add(increment);
        }
        steps.push(Step {
            weight: Weight::FULL,
            hold: Hold::For(Span::ZERO),
        });
        steps
    }

    fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let incremental = self.increment.is_some() || self.interval.is_some();
        errors.require(
            self.steps.is_empty() == incremental,
            "steps",
            "want either steps, or increment with interval",
        );
        errors.require(
            self.increment.is_some() == self.interval.is_some(),
            "increment",
            "increment and interval go together",
        );
        errors.require(
            self.increment
                .is_none_or(|share| share >= Weight::share(1, 100)),
            "increment",
            "want 1 to 100",
        );
        errors.require(self.steps.len() <= 100, "steps", "more than 100 steps");
        for (position, pair) in self.steps.windows(2).enumerate() {
            errors.require(
                pair[0].weight < pair[1].weight,
                format!("steps[{}].percent", position + 1),
                "must be greater than the step before",
            );
        }
        errors.require(
            self.steps
                .first()
                .is_none_or(|step| step.weight > Weight::ZERO),
            "steps[0].percent",
            "must be greater than 0",
        );
        errors
    }
}

impl Rule {
    fn validate(&self) -> FieldErrors {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> StrategySpec {
        serde_json::from_str(json).unwrap()
    }

    fn weights(strategy: &Strategy) -> Vec<u16> {
        strategy
            .steps
            .iter()
            .map(|step| step.weight.basis_points())
            .collect()
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let strategy = StrategySpec::default().resolve();
        assert_eq!(weights(&strategy), [500, 2_500, 5_000, 10_000]);
        assert!(
            strategy
                .steps
                .iter()
                .all(|step| step.hold == Hold::For(Span::from_secs(60)))
        );
        assert_eq!(strategy.bake, Span::from_mins(5));
        assert_eq!(strategy.deadlines.progress, Span::from_mins(10));
        assert_eq!(strategy.keep_releases, 3);
    }

    #[test]
    fn the_last_step_leaves_the_bake_share() {
        let strategy = spec(
            r#"{"traffic": {"steps": [{"percent": 10}, {"percent": 100, "hold": "5s"}]}, "bake_share": 2}"#,
        )
        .resolve();
        assert_eq!(weights(&strategy), [1_000, 9_800]);
        assert_eq!(strategy.steps[1].hold, Hold::For(Span::from_secs(5)));
    }

    #[test]
    fn increments_become_steps() {
        let json = r#"{"traffic": {"increment": 40, "interval": "30s"}}"#;
        assert_eq!(spec(json).validate(), FieldErrors::default());
        assert_eq!(weights(&spec(json).resolve()), [4_000, 8_000, 10_000]);
    }

    #[test]
    fn all_in_is_one_step_and_rolling_none() {
        assert_eq!(weights(&spec(r#"{"kind": "all_in"}"#).resolve()), [10_000]);
        assert!(spec(r#"{"kind": "rolling"}"#).resolve().steps.is_empty());
    }

    #[test]
    fn overrides_leave_what_they_do_not_name() {
        let base = spec(r#"{"bake": "1s", "deadlines": {"stall": "3s", "progress": "4s"}}"#);
        let over = spec(r#"{"drain": "2s", "deadlines": {"progress": "9s"}}"#);
        let strategy = base.overridden_by(&over).resolve();
        assert_eq!(strategy.bake, Span::from_secs(1));
        assert_eq!(strategy.drain, Span::from_secs(2));
        assert_eq!(strategy.deadlines.stall, Span::from_secs(3));
        assert_eq!(strategy.deadlines.progress, Span::from_secs(9));
    }

    #[test]
    fn wrong_fields_are_named() {
        let rule =
            r#"{"metric": "http.error_rate", "comparison": "greater_than", "threshold": 0.1"#;
        for (json, field) in [
            (
                r#"{"traffic": {"steps": [{"percent": 50}, {"percent": 50}]}}"#.to_owned(),
                "traffic.steps[1].percent",
            ),
            (
                r#"{"traffic": {"steps": [{"percent": 0}]}}"#.to_owned(),
                "traffic.steps[0].percent",
            ),
            (r#"{"traffic": {}}"#.to_owned(), "traffic.steps"),
            (
                r#"{"kind": "rolling", "traffic": {"steps": [{"percent": 50}]}}"#.to_owned(),
                "traffic",
            ),
            (r#"{"batch": {"overlap": false}}"#.to_owned(), "batch"),
            (r#"{"bake_share": 51}"#.to_owned(), "bake_share"),
            (
                r#"{"deadlines": {"stall": "1ms"}}"#.to_owned(),
                "deadlines.stall",
            ),
            (
                format!(r#"{{"rollback": {{"rules": [{rule}}}]}}}}"#),
                "rollback.rules[0].judge",
            ),
            (
                format!(r#"{{"rollback": {{"rules": [{rule}, "judge": "evidence"}}]}}}}"#),
                "rollback.rules[0].judge",
            ),
            (
                format!(
                    r#"{{"rollback": {{"rules": [{rule}, "judge": "raw", "worse_than_baseline": {{}}}}]}}}}"#
                ),
                "rollback.rules[0].worse_than_baseline",
            ),
        ] {
            let errors = spec(&json).validate();
            assert!(
                errors.0.iter().any(|error| error.field == field),
                "{json}: {errors:?}"
            );
        }
    }

    #[test]
    fn percentages_over_100_and_unknown_fields_are_refused() {
        for json in [
            r#"{"traffic": {"steps": [{"percent": 101}]}}"#,
            r#"{"traffic": {"steps": [{"percent": -1}]}}"#,
            r#"{"traffic": {"steps": [{"percent": 1.001}]}}"#,
            r#"{"trafic": {}}"#,
        ] {
            assert!(
                serde_json::from_str::<StrategySpec>(json).is_err(),
                "{json}"
            );
        }
    }

    #[test]
    fn shares_round_up_for_batches_and_down_for_losses() {
        assert_eq!(BatchSize::Share(Weight::share(1, 4)).of(10), 3);
        assert_eq!(BatchSize::Count(5).of(3), 3);
        assert_eq!(MaxLost::Default.of(2), 0);
        assert_eq!(MaxLost::Default.of(3), 1);
        assert_eq!(MaxLost::Default.of(40), 4);
        assert_eq!(MaxLost::Share(Weight::share(1, 4)).of(7), 1);
    }

    #[test]
    fn a_resolved_strategy_reads_back() {
        let strategy = spec(r#"{"bake_share": 12.5, "max_lost": "20%", "batch": null}"#).resolve();
        let json = serde_json::to_string(&strategy).unwrap();
        assert_eq!(serde_json::from_str::<Strategy>(&json).unwrap(), strategy);
    }
}
