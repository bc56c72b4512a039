//! Strategies: how a deployment rolls out.
//!
//! `StrategySpec` is what people write, every field optional; `Strategy` is what a deployment
//! carries, every default resolved. Overrides of one deployment are a `StrategySpec` too.

mod app_metric;
mod batch;
mod deadlines;
mod rule;
mod traffic;

pub use app_metric::{AppMetric, Reading, Selector};
pub(crate) use batch::count_or_share;
pub use batch::{Batch, BatchSize, BatchSpec, MaxLost};
pub use deadlines::{Deadlines, DeadlinesSpec};
pub use rule::{Comparison, Judge, Metric, RollbackSpec, Rule, RuleAction};
pub use traffic::{Hold, Step, TrafficSpec};

use serde::{Deserialize, Serialize};

use super::{FieldErrors, RolloutSpec, percent};
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
            keep_releases,
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
