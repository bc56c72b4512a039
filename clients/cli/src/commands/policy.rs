//! `tidegate policy`.

use clap::Args;
use serde_json::{Map, Value, json};
use tidegate_shared::spec::Kind;

use super::objects::SpecFlags;
use crate::errors::Result;

/// What describes a policy.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tidegate policy create four-eyes --approvals 1 --selector 'environment.name == \"production\"'"
)]
pub struct PolicyFlags {
    /// Which deployments, for example 'environment.name == "production"'; empty: all
    #[arg(long, value_name = "EXPRESSION")]
    selector: Option<String>,
    /// So many different people must grant
    #[arg(long, value_name = "N")]
    approvals: Option<u32>,
    /// How long after the creation of a deployment decisions count
    #[arg(long, value_name = "SPAN", requires = "approvals")]
    expires: Option<String>,
    /// Order of display
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Switch it on or off without deleting it
    #[arg(long, value_name = "true|false")]
    enabled: Option<bool>,
}

impl SpecFlags for PolicyFlags {
    const KIND: Kind = Kind::Policy;

    fn fill(&self, spec: &mut Map<String, Value>) -> Result<()> {
        if let Some(selector) = &self.selector {
            spec.insert("selector".to_owned(), Value::from(selector.clone()));
        }
        if let Some(required) = self.approvals {
            let mut rule = json!({ "required": required });
            if let Some(expires) = &self.expires {
                rule["expires"] = Value::from(expires.clone());
            }
            spec.insert("approval".to_owned(), rule);
        }
        if let Some(priority) = self.priority {
            spec.insert("priority".to_owned(), Value::from(priority));
        }
        if let Some(enabled) = self.enabled {
            spec.insert("enabled".to_owned(), Value::from(enabled));
        }
        Ok(())
    }
}
