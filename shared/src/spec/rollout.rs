//! How a deployment group rolls out: in what order, at what pace, behind which gate, and how many
//! failures it bears (product.md §3).
//!
//! Selectors of waves are texts here; that they can be understood is checked where they are
//! evaluated, at the coordinators' front.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::strategy::{count_or_share, optional_percent};
use super::{FieldErrors, VerificationSpec, When, percent, validate_checks};
use crate::id::Name;
use crate::time::Span;
use crate::weight::Weight;

/// Waves of a rollout.
const MOST_WAVES: usize = 50;
/// Characters of a selector.
const LONGEST_SELECTOR: usize = 4_096;
/// Scopes that are pinned first, or last.
const MOST_PINNED: usize = 1_000;
/// No interval and no bake is longer.
const LONGEST: Span = Span::from_days(366);

/// How a group rolls out, as written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RolloutSpec {
    /// At what pace members start.
    pub kind: RolloutKind,
    /// `linear`: from one member to the next; `linear_normalized`: for all of them together. 0 s to
    /// 366 d; only for these two, which need it.
    #[serde(alias = "time_scale_interval", skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// 1 to 50, only for `waves`. What no wave takes starts after the last one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<WaveSpec>,
    /// What has to hold between members and between waves.
    pub gate: RolloutGate,
    /// Checks that each member has to pass at its last step, besides those of its strategy, with
    /// other names; only with the gate `verified`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verification: Vec<VerificationSpec>,
    /// None: no failure at all for `linear`, `linear_normalized` and `waves`, any number for
    /// `all_at_once`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetSpec>,
    /// In what order members start.
    pub order: RolloutOrder,
    /// Scopes that start before or after all others.
    #[serde(skip_serializing_if = "Pinned::is_empty")]
    pub pinned: Pinned,
}

/// At what pace the members of a group start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RolloutKind {
    /// As soon as their own gates are open.
    #[default]
    AllAtOnce,
    /// One after another, so long apart.
    Linear,
    /// One after another, all of them within so long.
    LinearNormalized,
    /// In named sets, one after another.
    Waves,
}

impl RolloutKind {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllAtOnce => "all_at_once",
            Self::Linear => "linear",
            Self::LinearNormalized => "linear_normalized",
            Self::Waves => "waves",
        }
    }

    /// Whether members start one after another in time.
    pub const fn is_linear(self) -> bool {
        match self {
            Self::Linear | Self::LinearNormalized => true,
            Self::AllAtOnce | Self::Waves => false,
        }
    }
}

/// One wave: exactly one of `selector`, `count` and `percent` says what it takes of the members
/// that no earlier wave took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WaveSpec {
    /// Unique in the rollout.
    pub name: Name,
    /// CEL over the scope and the release: those that it holds for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// So many, in the order of the group; at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Such a share of all members, rounded up; above 0.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "optional_percent"
    )]
    #[cfg_attr(feature = "schema", schemars(with = "Option<super::schema::Percent>"))]
    pub percent: Option<Weight>,
    /// How long to wait after its last member has ended; up to 366 d.
    #[serde(default, skip_serializing_if = "Span::is_zero")]
    pub bake: Span,
}

/// What has to hold between members, and between waves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RolloutGate {
    /// Nothing but what the kind says.
    #[default]
    None,
    /// Those that started run the new version and are healthy now, or have ended otherwise.
    Healthy,
    /// Those that started are finalized with evidence, or have ended otherwise.
    Verified,
}

impl RolloutGate {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Healthy => "healthy",
            Self::Verified => "verified",
        }
    }
}

/// How many failures a group bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct BudgetSpec {
    /// More than these exceed it; a share is one of all members, rounded up.
    pub max_failures: Amount,
    /// It is not judged before so many members were executed.
    pub min_executed: Amount,
    /// What happens then, besides that nobody starts any more.
    pub on_breach: OnBreach,
}

/// What an exceeded failure budget does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnBreach {
    /// Stops the group and asks people.
    #[default]
    Halt,
    /// The whole group returns.
    Rollback,
}

impl OnBreach {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Halt => "halt",
            Self::Rollback => "rollback",
        }
    }
}

/// A count, or a share of all members (rounded up).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// So many.
    Count(u32),
    /// So large a share.
    Share(Weight),
}

impl Default for Amount {
    fn default() -> Self {
        Self::Count(0)
    }
}

count_or_share!(
    Amount,
    Self::Count,
    Self::Share,
    "a count such as 1, or a share such as 10%"
);

/// In what order members start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RolloutOrder {
    /// Pseudo-random, the same for the same group.
    #[default]
    Hash,
    /// By name of the scope.
    Name,
    /// As they were listed.
    Listed,
    /// By the value of a label of the scope, then by name; those without it last.
    Label(String),
}

impl RolloutOrder {
    /// Adds what is wrong with it, as a field `order`.
    pub(super) fn validate(&self, errors: &mut FieldErrors) {
        if let Self::Label(label) = self {
            errors.require(
                (1..=128).contains(&label.len()),
                "order.label",
                "want 1 to 128 characters",
            );
        }
    }
}

impl fmt::Display for RolloutOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hash => f.write_str("hash"),
            Self::Name => f.write_str("name"),
            Self::Listed => f.write_str("listed"),
            Self::Label(label) => write!(f, "label {label}"),
        }
    }
}

/// Scopes that start before, or after, all others. Those that are no members are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Pinned {
    /// Before all others, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<Name>,
    /// After all others, in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub last: Vec<Name>,
}

impl Pinned {
    /// Whether nothing is pinned.
    pub const fn is_empty(&self) -> bool {
        self.first.is_empty() && self.last.is_empty()
    }
}

impl RolloutSpec {
    /// The failures that it bears: as written, else as its kind has it; none: any number.
    pub fn budget(&self) -> Option<BudgetSpec> {
        match self.kind {
            RolloutKind::AllAtOnce => self.budget,
            RolloutKind::Linear | RolloutKind::LinearNormalized | RolloutKind::Waves => {
                Some(self.budget.unwrap_or_default())
            }
        }
    }

    /// What is wrong with its shape.
    pub fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let kind = self.kind.as_str();
        match (self.kind.is_linear(), self.interval) {
            (true, None) => errors.add("interval", format!("{kind} needs it, such as 60s")),
            (true, Some(interval)) => {
                errors.require(interval <= LONGEST, "interval", "want 0s to 366d");
            }
            (false, Some(_)) => errors.add("interval", format!("{kind} takes none")),
            (false, None) => {}
        }
        match self.kind {
            RolloutKind::Waves => errors.require(
                (1..=MOST_WAVES).contains(&self.waves.len()),
                "waves",
                format!("want 1 to {MOST_WAVES}"),
            ),
            RolloutKind::AllAtOnce | RolloutKind::Linear | RolloutKind::LinearNormalized => {
                errors.require(
                    self.waves.is_empty(),
                    "waves",
                    format!("{kind} takes none; only waves does"),
                );
            }
        }
        let mut names = BTreeSet::new();
        for (index, wave) in self.waves.iter().enumerate() {
            let prefix = format!("waves[{index}]");
            errors.nest(&prefix, wave.validate());
            errors.require(
                names.insert(&wave.name),
                format!("{prefix}.name"),
                format!("\"{}\" is the name of another wave", wave.name),
            );
        }
        errors.require(
            self.kind != RolloutKind::AllAtOnce || self.gate == RolloutGate::None,
            "gate",
            format!(
                "{kind} starts all members together, so there is nothing between them: want none"
            ),
        );
        self.check_verification(&mut errors);
        self.order.validate(&mut errors);
        self.check_pinned(&mut errors);
        errors
    }

    fn check_verification(&self, errors: &mut FieldErrors) {
        errors.require(
            self.verification.is_empty() || self.gate == RolloutGate::Verified,
            "verification",
            "nothing waits for it: want gate: verified",
        );
        errors.0.extend(validate_checks(&self.verification).0);
        for (position, check) in self.verification.iter().enumerate() {
            errors.require(
                check.when.iter().all(|when| *when == When::Last),
                format!("verification[{position}].when"),
                "between members a check is made at the last step of each: leave it out",
            );
        }
    }

    /// The checks of a member: its strategy's and those of the rollout.
    pub fn checks_of_member(&self, own: &[VerificationSpec]) -> Vec<VerificationSpec> {
        let added = self.verification.iter().map(|check| VerificationSpec {
            when: vec![When::Last],
            ..check.clone()
        });
        own.iter().cloned().chain(added).collect()
    }

    fn check_pinned(&self, errors: &mut FieldErrors) {
        let mut seen = BTreeSet::new();
        for (field, names) in [
            ("pinned.first", &self.pinned.first),
            ("pinned.last", &self.pinned.last),
        ] {
            errors.require(
                names.len() <= MOST_PINNED,
                field,
                format!("want at most {MOST_PINNED}"),
            );
            for name in names {
                errors.require(
                    seen.insert(name),
                    field,
                    format!("\"{name}\" is pinned twice"),
                );
            }
        }
    }
}

impl WaveSpec {
    fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let said = [
            self.selector.is_some(),
            self.count.is_some(),
            self.percent.is_some(),
        ];
        errors.require(
            said.into_iter().filter(|said| *said).count() == 1,
            "selector",
            "want exactly one of selector, count and percent",
        );
        if let Some(selector) = &self.selector {
            errors.require(
                !selector.trim().is_empty() && selector.len() <= LONGEST_SELECTOR,
                "selector",
                format!("want 1 to {LONGEST_SELECTOR} characters"),
            );
        }
        errors.require(self.count != Some(0), "count", "want at least 1");
        errors.require(
            self.percent != Some(Weight::ZERO),
            "percent",
            "want more than 0",
        );
        errors.require(self.bake <= LONGEST, "bake", "want at most 366d");
        errors
    }
}

#[cfg(test)]
mod tests;
