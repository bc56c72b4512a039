//! `tidegate role`: role bindings, which say who has which role where.

use clap::Args;
use serde_json::{Map, Value};
use tidegate_shared::spec::{Kind, Role};

use super::objects::SpecFlags;
use super::team::changed;
use crate::errors::{Failure, Result};

/// What describes a role binding.
#[derive(Debug, Args)]
#[command(
    after_help = "Roles: viewer sees; deployer deploys too; operator operates too; approver sees and approves;\nadmin does everything. Roles that hold everywhere can be a person's own: `tidegate user update`.\n\nExamples:\n  tidegate role create shop-deployers --role deployer --team shop --selector 'application.name == \"shop\"'\n  tidegate role update shop-deployers --add-user ann\n  tidegate role delete shop-deployers"
)]
pub struct RoleFlags {
    /// viewer, deployer, approver, operator or admin
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// People who have it; all of them
    #[arg(long = "user", value_name = "USER")]
    users: Vec<String>,
    /// Who gets it too
    #[arg(long, value_name = "USER", conflicts_with = "users")]
    add_user: Vec<String>,
    /// Who loses it
    #[arg(long, value_name = "USER", conflicts_with = "users")]
    remove_user: Vec<String>,
    /// Teams whose members have it; all of them
    #[arg(long = "team", value_name = "TEAM")]
    teams: Vec<String>,
    /// Where, over application, environment and scope; empty: everywhere
    #[arg(long, value_name = "EXPRESSION")]
    selector: Option<String>,
}

impl SpecFlags for RoleFlags {
    const KIND: Kind = Kind::RoleBinding;

    fn fill(&self, spec: &mut Map<String, Value>) -> Result<()> {
        if let Some(role) = &self.role {
            role.parse::<Role>()
                .map_err(|error| Failure::usage(format!("--role: {error}")))?;
            spec.insert("role".to_owned(), Value::from(role.clone()));
        }
        let users = changed(
            spec.get("users"),
            &self.users,
            &self.add_user,
            &self.remove_user,
        );
        let teams = changed(spec.get("teams"), &self.teams, &[], &[]);
        for (field, names) in [("users", users), ("teams", teams)] {
            spec.insert(field.to_owned(), Value::Array(names));
        }
        if let Some(selector) = &self.selector {
            spec.insert("selector".to_owned(), Value::from(selector.clone()));
        }
        Ok(())
    }
}
