//! `tidegate parameter`.

use clap::Args;
use serde_json::{Map, Value};
use tidegate_shared::spec::Kind;

use super::objects::SpecFlags;
use crate::errors::Result;
use crate::session;

/// What describes a parameter.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate parameter create web-color --application web --variable COLOR --value blue\n  tidegate parameter create eu-color --dimension region=eu --variable COLOR --value green"
)]
pub struct ParameterFlags {
    /// Name of the environment variable
    #[arg(long, value_name = "NAME")]
    variable: Option<String>,
    /// Its value
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    value: Option<String>,
    /// For every scope of this application
    #[arg(long, value_name = "NAME")]
    application: Option<String>,
    /// For every scope of this environment
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// For every scope with this dimension
    #[arg(long = "dimension", value_name = "K=V")]
    dimensions: Vec<String>,
    /// For one scope alone
    #[arg(long, value_name = "NAME", conflicts_with_all = ["application", "environment", "dimensions"])]
    scope: Option<String>,
}

impl SpecFlags for ParameterFlags {
    const KIND: Kind = Kind::Parameter;

    fn fill(&self, spec: &mut Map<String, Value>) -> Result<()> {
        for (name, value) in [("variable", &self.variable), ("value", &self.value)] {
            if let Some(value) = value {
                spec.insert(name.to_owned(), Value::from(value.clone()));
            }
        }
        let mut target = Map::new();
        for (name, value) in [
            ("application", &self.application),
            ("environment", &self.environment),
            ("scope", &self.scope),
        ] {
            if let Some(value) = value {
                target.insert(name.to_owned(), Value::from(value.clone()));
            }
        }
        let dimensions = session::pairs("--dimension", &self.dimensions, true)?;
        if !dimensions.is_empty() {
            let fields = dimensions.into_iter().map(|(k, v)| (k, Value::from(v)));
            target.insert("dimensions".to_owned(), Value::Object(fields.collect()));
        }
        if !target.is_empty() {
            spec.insert("target".to_owned(), Value::Object(target));
        }
        Ok(())
    }
}
