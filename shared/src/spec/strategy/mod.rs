//! Strategies: how a deployment rolls out.
//!
//! `StrategySpec` is what people write, every field optional; `Strategy` is what a deployment
//! carries, every default resolved. Overrides of one deployment are a `StrategySpec` too.

mod app_metric;
mod batch;
mod checks;
mod deadlines;
mod rule;
mod traffic;

pub use app_metric::{AppMetric, Reading, Selector};
pub(crate) use batch::count_or_share;
pub use batch::{Batch, BatchSize, BatchSpec, MaxLost};
pub use checks::Capacity;
pub use deadlines::{Deadlines, DeadlinesSpec};
pub use rule::{Comparison, Judge, Metric, RollbackSpec, Rule, RuleAction};
pub use traffic::{Hold, Step, TrafficSpec};

use serde::{Deserialize, Serialize};

use super::{FieldErrors, RolloutSpec, VerificationSpec, percent};
use crate::time::Span;
use crate::weight::Weight;

/// How versions are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<crate::spec::schema::Percent>")
    )]
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
    /// Checks between steps, at most 16; the list of an override replaces the whole list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<Vec<VerificationSpec>>,
    /// Default `full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// How groups that are made with it roll out, unless they say it themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSpec>,
}

/// A percentage that may be left out.
pub(crate) mod optional_percent {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::spec::percent;
    use crate::weight::Weight;

    #[derive(Deserialize)]
    struct Wrapped(#[serde(with = "percent")] Weight);

    pub(crate) fn serialize<S: Serializer>(
        weight: &Option<Weight>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match weight {
            Some(weight) => percent::serialize(weight, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Weight>, D::Error> {
        Wrapped::deserialize(deserializer).map(|wrapped| Some(wrapped.0))
    }
}

/// What the end of a step without evidence does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// Checks between steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verification: Vec<VerificationSpec>,
    /// Instances of the new version.
    #[serde(default, skip_serializing_if = "Capacity::is_default")]
    pub capacity: Capacity,
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
            keep_releases,
            verification,
            capacity,
            rollout
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
            rules: rules.into_iter().map(Rule::resolve).collect(),
            on_no_data: self.on_no_data.unwrap_or_default(),
            bake: self.bake.unwrap_or(Span::from_mins(5)),
            bake_share,
            finalize: self.finalize.unwrap_or_default(),
            drain: self.drain.unwrap_or(Span::from_secs(30)),
            deadlines: self.deadlines.unwrap_or_default().resolve(),
            on_stall: self.on_stall.unwrap_or_default(),
            max_lost: self.max_lost.unwrap_or_default(),
            keep_releases: self.keep_releases.unwrap_or(3),
            verification: self.verification.clone().unwrap_or_default(),
            capacity: self.capacity.unwrap_or_default(),
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
                None => traffic::default_steps(),
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
        let checks = self.verification.as_deref().unwrap_or_default();
        let share = self.bake_share.unwrap_or(Weight::ZERO);
        let steps = self.resolve_steps(kind, share.complement()).len();
        errors.0.extend(checks::validate(checks, kind, steps).0);
        if let Some(rollout) = &self.rollout {
            errors.nest("rollout", rollout.validate());
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

#[cfg(test)]
mod tests;
