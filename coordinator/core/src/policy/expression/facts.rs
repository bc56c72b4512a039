//! What is known of a deployment when an expression is evaluated.

use std::collections::BTreeMap;

use cel::Context;
use serde::Serialize;
use tidegate_shared::time::{Span, Timestamp};

/// Labels, and dimensions.
pub type Labels = BTreeMap<String, String>;

/// Everything that expressions may ask; what is not known is not declared.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The application that is deployed.
    pub application: Option<ApplicationFacts>,
    /// The release that is deployed.
    pub release: Option<ReleaseFacts>,
    /// Where to.
    pub scope: Option<ScopeFacts>,
    /// The scope's environment.
    pub environment: Option<EnvironmentFacts>,
    /// Who asked for it.
    pub user: Option<UserFacts>,
    /// How it is rolled out.
    pub strategy: Option<StrategyFacts>,
    /// The present time.
    pub now: Option<Timestamp>,
}

/// `application`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ApplicationFacts {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
}

/// `release`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ReleaseFacts {
    /// The same as `version`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its labels.
    pub labels: Labels,
    /// For people.
    pub notes: String,
    /// `building`, `ready`, `paused` or `rejected`.
    pub status: String,
    /// SHA-256 in hexadecimal.
    pub digest: String,
}

/// `scope`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ScopeFacts {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// `hosts`, `kubernetes` or `function`.
    pub r#type: String,
    /// Name of its application.
    pub application: String,
    /// Name of its environment.
    pub environment: String,
    /// Region, country, zone …
    pub dimensions: Labels,
    /// Instances on each agent.
    pub instances_per_agent: i64,
}

/// `environment`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct EnvironmentFacts {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Order of promotion.
    pub tier: i64,
}

/// `user`: who asked for the deployment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct UserFacts {
    /// The name in the certificate.
    pub name: String,
    /// Teams of that person.
    pub teams: Vec<String>,
    /// Roles of that person where the deployment goes.
    pub roles: Vec<String>,
}

/// `strategy`: the snapshot that the deployment would carry.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StrategyFacts {
    /// Its name; empty: none was named.
    pub name: String,
    /// `blue_green`, `all_in` or `rolling`.
    pub kind: String,
    /// Shares of the new version, in percent.
    pub steps: Vec<f64>,
    /// How many rollback rules it has that act.
    pub rollback_rules: i64,
    /// How many checks it has.
    pub checks: i64,
    /// `auto` or `manual`.
    pub finalize: String,
    /// Time at the last step.
    #[serde(serialize_with = "duration")]
    pub bake: Span,
}

fn duration<S: serde::Serializer>(span: &Span, serializer: S) -> Result<S::Ok, S::Error> {
    let millis = i64::try_from(span.millis()).unwrap_or(i64::MAX / 1_000_000);
    cel::Duration(chrono::Duration::milliseconds(millis)).serialize(serializer)
}

impl Facts {
    pub(super) fn fill(&self, context: &mut Context<'_, '_>) -> Result<(), String> {
        add(context, "application", self.application.as_ref())?;
        add(context, "release", self.release.as_ref())?;
        add(context, "scope", self.scope.as_ref())?;
        add(context, "environment", self.environment.as_ref())?;
        add(context, "user", self.user.as_ref())?;
        add(context, "strategy", self.strategy.as_ref())?;
        let now = self.now.map(|now| {
            let millis = i64::try_from(now.millis()).unwrap_or(i64::MAX);
            chrono::DateTime::from_timestamp_millis(millis).unwrap_or_default()
        });
        add(
            context,
            "now",
            now.map(|now| cel::Timestamp(now.fixed_offset())).as_ref(),
        )
    }
}

fn add<T: Serialize>(
    context: &mut Context<'_, '_>,
    name: &str,
    value: Option<&T>,
) -> Result<(), String> {
    if let Some(value) = value {
        let value = cel::to_value(value).map_err(|error| format!("{name}: {error}"))?;
        context.add_variable_from_value(name, value);
    }
    Ok(())
}
