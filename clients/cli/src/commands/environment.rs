//! `tidegate environment`.

use clap::Args;
use serde_json::{Map, Value};
use tidegate_shared::spec::Kind;

use super::objects::SpecFlags;
use crate::errors::Result;

/// What describes an environment.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tidegate environment create staging --tier 2")]
pub struct EnvironmentFlags {
    /// Order of promotion, low first: 0 to 1000
    #[arg(long, value_name = "N")]
    tier: Option<u32>,
    /// For people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

impl SpecFlags for EnvironmentFlags {
    const KIND: Kind = Kind::Environment;

    fn fill(&self, spec: &mut Map<String, Value>) -> Result<()> {
        if let Some(tier) = self.tier {
            spec.insert("tier".to_owned(), Value::from(tier));
        }
        if let Some(description) = &self.description {
            spec.insert("description".to_owned(), Value::from(description.clone()));
        }
        Ok(())
    }
}
