//! Steps of traffic: written as a list or as an increment.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::optional_percent;
use crate::spec::{FieldErrors, percent};
use crate::time::Span;
use crate::weight::Weight;

/// How traffic moves: either `steps`, or `increment` with `interval`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TrafficSpec {
    /// Rising percentages, 1 to 100 of them; the last is raised to 100 − `bake_share`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// "10 % every 30 s": the 10 %.
    #[serde(skip_serializing_if = "Option::is_none", with = "optional_percent")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<crate::spec::schema::Percent>")
    )]
    pub increment: Option<Weight>,
    /// "10 % every 30 s": the 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
}

/// One step of traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Share of the new version.
    #[serde(rename = "percent", with = "percent")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::spec::schema::Percent"))]
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

impl TrafficSpec {
    pub(super) fn resolve(&self) -> Vec<Step> {
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

    pub(super) fn validate(&self) -> FieldErrors {
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

/// 5, 25, 50, 100 %, 60 s each.
pub(super) fn default_steps() -> Vec<Step> {
    [(1, 20), (1, 4), (1, 2), (1, 1)]
        .into_iter()
        .map(|(part, whole)| Step {
            weight: Weight::share(part, whole),
            hold: Hold::default(),
        })
        .collect()
}
