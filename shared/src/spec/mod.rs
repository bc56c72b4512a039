//! Specifications of objects as people write them in manifests, with their checks.
//!
//! One schema serves manifests, `export`, the API and the replicated state. A spec that passes
//! `validate` is internally sound; whether the objects it names exist is checked where it is
//! applied.

mod auto_deploy;
mod file;
mod health;
mod moment;
mod object;
mod parameter;
mod people;
mod policy;
mod release;
mod rollout;
mod run;
#[cfg(feature = "schema")]
pub mod schema;
mod scope;
mod scope_traffic;
mod source;
mod strategy;
mod verification;

pub use auto_deploy::AutoDeploy;
pub use file::{FileMode, FileModeError, FileSpec, OnCollision};
pub use health::{ExecProbe, HealthCheck, HttpProbe, Probe};
pub use moment::When;
pub use object::{ApplicationSpec, EnvironmentSpec, Kind, Manifest, ObjectSpec, validate_labels};
pub use parameter::{
    MAX_VALUE_BYTES, OnRollback, ParameterKind, ParameterSpec, ParameterTarget, ValueFrom,
    check_value, check_variable,
};
pub use people::{Role, RoleBindingSpec, TeamSpec};
pub use policy::{
    ApprovalRule, Approver, Approvers, Backoff, ConcurrencyRule, CooldownRule, DependencyRule,
    DependencyWhere, FirstDeployment, GradualRolloutRule, GradualType, GuardrailRule, Matching,
    OnEmpty, OnTrue, PolicySpec, ProgressionRule, ReleaseSelectorRule, RetryOn, RetryRule,
    WindowKind, WindowOutcome, WindowRule,
};
pub use release::{AssetKind, AssetSpec, ReleaseSpec, ReleaseStatus};
pub use rollout::{
    Amount, BudgetSpec, OnBreach, Pinned, RolloutGate, RolloutKind, RolloutOrder, RolloutSpec,
    WaveSpec,
};
pub use run::{Bytes, Cores, Hook, HookKind, Hooks, Limits, MAX_HOOKS, RunSpec};
pub use scope::{MetricsSpec, Port, ScopeSpec, ScopeType};
pub use scope_traffic::{HeaderRoute, Protocol, ScopeTraffic, StickySpec, TlsSpec};
pub use source::{AssetSource, Place, PlaceKind};
pub use strategy::{
    AppMetric, Batch, BatchSize, BatchSpec, Capacity, Comparison, Deadlines, DeadlinesSpec,
    FinalizeMode, Hold, Judge, MaxLost, Metric, NoDataAction, OnNoData, OnStall, Reading,
    RollbackSpec, Rule, RuleAction, Selector, Step, Strategy, StrategyKind, StrategySpec,
    TrafficSpec,
};
pub use verification::{
    CommandMeasurement, CommandPlace, HttpMeasurement, HttpMethod, MOST_CHECKS, Measurement,
    PLACEHOLDERS, PrometheusMeasurement, VerificationSpec, validate_checks,
};

use serde::{Deserialize, Serialize};

/// One thing wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// Path from the spec, as `traffic.steps[2].percent`.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Everything wrong with a spec, gathered so that a person sees all of it at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldErrors(pub Vec<FieldError>);

impl FieldErrors {
    /// Adds one.
    pub fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError {
            field: field.into(),
            message: message.into(),
        });
    }

    /// Adds one unless the condition holds.
    pub fn require(&mut self, holds: bool, field: impl Into<String>, message: impl Into<String>) {
        if !holds {
            self.add(field, message);
        }
    }

    /// Takes over another's, its paths prefixed.
    pub fn nest(&mut self, prefix: &str, inner: Self) {
        for error in inner.0 {
            self.add(format!("{prefix}.{}", error.field), error.message);
        }
    }

    /// Nothing wrong: the value.
    ///
    /// # Errors
    /// Itself, if anything was added.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

/// Percentages in manifests, basis points in values: `12.5` ⇄ `Weight(1250)`.
pub(crate) mod percent {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::decimal::Decimal;
    use crate::weight::Weight;

    pub(crate) fn serialize<S: Serializer>(
        weight: &Weight,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let basis_points = weight.basis_points();
        if !serializer.is_human_readable() {
            serializer.serialize_u16(basis_points)
        } else if basis_points.is_multiple_of(100) {
            serializer.serialize_u16(basis_points / 100)
        } else {
            serializer.serialize_f64(f64::from(basis_points) / 100.0)
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Weight, D::Error> {
        use serde::de::Error;
        if !deserializer.is_human_readable() {
            return Weight::deserialize(deserializer);
        }
        let decimal = Decimal::deserialize(deserializer)?;
        parse(decimal.as_str()).ok_or_else(|| {
            D::Error::custom(format!(
                "{decimal} is not a percentage: want 0 to 100 with at most two decimals"
            ))
        })
    }

    /// Exact: no float takes part.
    pub(crate) fn parse(text: &str) -> Option<Weight> {
        let text = text.trim().trim_end_matches('%').trim();
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if fraction.len() > 2 || whole.is_empty() {
            return None;
        }
        let whole: u64 = whole.parse().ok()?;
        let fraction: u64 = format!("{fraction:0<2}").parse().ok()?;
        Weight::from_basis_points(whole.checked_mul(100)?.checked_add(fraction)?).ok()
    }
}

/// Reads a percentage as people write it: `25`, `12.5`, `12.5%`.
pub fn parse_percent(text: &str) -> Option<crate::weight::Weight> {
    percent::parse(text)
}
