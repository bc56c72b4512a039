//! `tidegate application`.

use clap::Args;
use serde_json::{Map, Value};
use tidegate_shared::spec::Kind;

use super::objects::SpecFlags;
use crate::errors::Result;

/// What describes an application.
#[derive(Debug, Args)]
pub struct ApplicationFlags {
    /// For people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

impl SpecFlags for ApplicationFlags {
    const KIND: Kind = Kind::Application;

    fn fill(&self, spec: &mut Map<String, Value>) -> Result<()> {
        if let Some(description) = &self.description {
            spec.insert("description".to_owned(), Value::from(description.clone()));
        }
        Ok(())
    }
}
