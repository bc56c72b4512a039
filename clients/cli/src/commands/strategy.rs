//! `tidegate strategy`.

use clap::Args;
use serde_json::{Map, Value};
use tidegate_shared::error::Reason;
use tidegate_shared::spec::{Kind, StrategySpec};

use super::objects::SpecFlags;
use crate::errors::{Failure, Result};
use crate::set;

/// What describes a strategy.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate strategy create careful --set traffic.steps=10:30s,50:1m,100 --set bake=2m\n  tidegate strategy create watched \\\n      --set 'rollback.rules=[{metric: http.error_rate, comparison: greater_than, threshold: 0.05, judge: raw}]'"
)]
pub struct StrategyFlags {
    /// How versions are exchanged: blue_green, all_in or rolling
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Any field of the spec as YAML, for example traffic.steps=10:30s,50:1m,100
    #[arg(long = "set", value_name = "PATH=VALUE")]
    settings: Vec<String>,
}

impl SpecFlags for StrategyFlags {
    const KIND: Kind = Kind::Strategy;

    fn fill(&self, spec: &mut Map<String, Value>) -> Result<()> {
        let internal = |error: serde_json::Error| Failure::new(Reason::Internal, error.to_string());
        let base: StrategySpec =
            serde_json::from_value(Value::Object(spec.clone())).map_err(internal)?;
        let mut settings = self.settings.clone();
        if let Some(kind) = &self.kind {
            settings.insert(0, format!("kind={kind}"));
        }
        let whole = base.overridden_by(&set::overrides(&base, &settings)?);
        if let Value::Object(fields) = serde_json::to_value(whole).map_err(internal)? {
            *spec = fields;
        }
        Ok(())
    }
}
