//! Manifests: `kind`, `name`, `labels`, `spec`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    FieldErrors, ParameterSpec, PolicySpec, RoleBindingSpec, ScopeSpec, StrategySpec, TeamSpec,
};
use crate::id::Name;
use crate::selector::{Labels, check_label};

/// Kinds of objects that manifests describe, in the order in which they refer to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A program that is deployed.
    Application,
    /// `development`, `staging`, `production` …
    Environment,
    /// Reusable rules of how to roll out.
    Strategy,
    /// A place where one application runs.
    Scope,
    /// Rules of whether and when.
    Policy,
    /// A configuration value.
    Parameter,
    /// People who have something in common.
    Team,
    /// A role for people and teams.
    RoleBinding,
}

impl Kind {
    /// Every kind, in order of reference.
    pub const ALL: [Self; 8] = [
        Self::Application,
        Self::Environment,
        Self::Strategy,
        Self::Scope,
        Self::Policy,
        Self::Parameter,
        Self::Team,
        Self::RoleBinding,
    ];

    /// The word on the wire and in manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Environment => "environment",
            Self::Strategy => "strategy",
            Self::Scope => "scope",
            Self::Policy => "policy",
            Self::Parameter => "parameter",
            Self::Team => "team",
            Self::RoleBinding => "role_binding",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| {
                format!(
                    "\"{text}\" is not a kind: want application, environment, strategy, scope, policy, parameter, team or role_binding"
                )
            })
    }
}

/// A manifest with its spec typed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest<S> {
    /// What it describes.
    pub kind: Kind,
    /// Unique in the cluster among its kind.
    pub name: Name,
    /// For selection and order.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The wish.
    pub spec: S,
}

/// The spec of an object of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectSpec {
    /// See [`ApplicationSpec`].
    Application(ApplicationSpec),
    /// See [`EnvironmentSpec`].
    Environment(EnvironmentSpec),
    /// See [`StrategySpec`].
    Strategy(StrategySpec),
    /// See [`ScopeSpec`].
    Scope(ScopeSpec),
    /// See [`PolicySpec`].
    Policy(PolicySpec),
    /// See [`ParameterSpec`].
    Parameter(ParameterSpec),
    /// See [`TeamSpec`].
    Team(TeamSpec),
    /// See [`RoleBindingSpec`].
    RoleBinding(RoleBindingSpec),
}

impl ObjectSpec {
    /// The kind that it is a spec of.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Application(_) => Kind::Application,
            Self::Environment(_) => Kind::Environment,
            Self::Strategy(_) => Kind::Strategy,
            Self::Scope(_) => Kind::Scope,
            Self::Policy(_) => Kind::Policy,
            Self::Parameter(_) => Kind::Parameter,
            Self::Team(_) => Kind::Team,
            Self::RoleBinding(_) => Kind::RoleBinding,
        }
    }

    /// Everything wrong with it that can be seen without other objects.
    pub fn validate(&self) -> FieldErrors {
        match self {
            Self::Application(spec) => spec.validate(),
            Self::Environment(spec) => spec.validate(),
            Self::Strategy(spec) => spec.validate(),
            Self::Scope(spec) => spec.validate(),
            Self::Policy(spec) => spec.validate(),
            Self::Parameter(spec) => spec.validate(),
            Self::Team(spec) => spec.validate(),
            Self::RoleBinding(spec) => spec.validate(),
        }
    }

    /// Reads the JSON of a spec; unknown fields are errors.
    ///
    /// # Errors
    /// The parser's message.
    pub fn from_json(kind: Kind, json: &str) -> Result<Self, serde_json::Error> {
        let json = if json.trim().is_empty() { "{}" } else { json };
        Ok(match kind {
            Kind::Application => Self::Application(serde_json::from_str(json)?),
            Kind::Environment => Self::Environment(serde_json::from_str(json)?),
            Kind::Strategy => Self::Strategy(serde_json::from_str(json)?),
            Kind::Scope => Self::Scope(serde_json::from_str(json)?),
            Kind::Policy => Self::Policy(serde_json::from_str(json)?),
            Kind::Parameter => Self::Parameter(serde_json::from_str(json)?),
            Kind::Team => Self::Team(serde_json::from_str(json)?),
            Kind::RoleBinding => Self::RoleBinding(serde_json::from_str(json)?),
        })
    }

    /// The spec as JSON, as `from_json` reads it.
    ///
    /// # Errors
    /// None that a valid spec could cause.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        match self {
            Self::Application(spec) => serde_json::to_string(spec),
            Self::Environment(spec) => serde_json::to_string(spec),
            Self::Strategy(spec) => serde_json::to_string(spec),
            Self::Scope(spec) => serde_json::to_string(spec),
            Self::Policy(spec) => serde_json::to_string(spec),
            Self::Parameter(spec) => serde_json::to_string(spec),
            Self::Team(spec) => serde_json::to_string(spec),
            Self::RoleBinding(spec) => serde_json::to_string(spec),
        }
    }
}

/// A program that is deployed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ApplicationSpec {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
}

impl ApplicationSpec {
    fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(
            self.description.len() <= 4_096,
            "description",
            "is longer than 4,096 bytes",
        );
        errors
    }
}

/// `development`, `staging`, `production` …
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct EnvironmentSpec {
    /// Order of promotion, low first.
    pub tier: u32,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
}

impl EnvironmentSpec {
    fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(self.tier <= 1_000, "tier", "want 0 to 1000");
        errors
    }
}

/// What is wrong with an object's labels.
pub fn validate_labels(labels: &Labels) -> FieldErrors {
    let mut errors = FieldErrors::default();
    errors.require(labels.len() <= 64, "labels", "more than 64 labels");
    for (key, value) in labels {
        if let Err(message) = check_label(key, value) {
            errors.add("labels", message);
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors_of(kind: Kind, json: &str) -> Vec<String> {
        let spec = ObjectSpec::from_json(kind, json).unwrap();
        spec.validate()
            .0
            .into_iter()
            .map(|error| error.field)
            .collect()
    }

    #[test]
    fn a_spec_reads_back_what_it_writes() {
        for (kind, json) in [
            (Kind::Application, r#"{"description": "shop"}"#),
            (Kind::Environment, r#"{"tier": 3}"#),
            (
                Kind::Strategy,
                r#"{"kind": "rolling", "batch": {"max_unavailable": "25%"}}"#,
            ),
            (
                Kind::Scope,
                r#"{"application": "web", "environment": "production", "type": "hosts", "port": 8080,
                    "agents": "role=web", "health_check": {"http": {"path": "/healthz"}}}"#,
            ),
            (
                Kind::Policy,
                r#"{"selector": "", "approval": {"required": 2}}"#,
            ),
            (
                Kind::Parameter,
                r#"{"variable": "COLOR", "value": "red", "target": {"scope": "web-prod"}}"#,
            ),
            (Kind::Team, r#"{"members": ["ann", "bob"]}"#),
            (
                Kind::RoleBinding,
                r#"{"role": "deployer", "teams": ["sre"], "selector": "environment.name != \"production\""}"#,
            ),
        ] {
            let spec = ObjectSpec::from_json(kind, json).unwrap();
            assert_eq!(spec.kind(), kind);
            assert_eq!(spec.validate(), FieldErrors::default(), "{json}");
            let again = ObjectSpec::from_json(kind, &spec.to_json().unwrap()).unwrap();
            assert_eq!(again, spec);
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        for kind in Kind::ALL {
            let error = ObjectSpec::from_json(kind, r#"{"colour": 1}"#).unwrap_err();
            assert!(
                error.to_string().contains("unknown field `colour`"),
                "{kind}: {error}"
            );
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        let scope = r#"{"application": "web", "environment": "production", "port": "none",
            "instances_per_agent": 0, "max_restarts": 1001, "parameters": {"PORT": "1"},
            "health_check": {"http": {"path": "x", "status": 99}, "tcp": true, "interval": "1ms"}}"#;
        assert_eq!(
            errors_of(Kind::Scope, scope),
            [
                "instances_per_agent",
                "max_restarts",
                "parameters",
                "health_check.http",
                "health_check.http.path",
                "health_check.http.status",
                "health_check.interval",
            ]
        );
        assert_eq!(errors_of(Kind::Policy, "{}"), ["approval"]);
        let both =
            r#"{"variable": "A", "value": "", "target": {"scope": "s", "environment": "e"}}"#;
        assert_eq!(errors_of(Kind::Parameter, both), ["target"]);
        let none = r#"{"variable": "1A", "value": "", "target": {}}"#;
        assert_eq!(errors_of(Kind::Parameter, none), ["variable", "target"]);
        let nobody = r#"{"role": "admin"}"#;
        assert_eq!(errors_of(Kind::RoleBinding, nobody), ["users"]);
    }

    #[test]
    fn ports_are_numbers_or_none() {
        let scope = |port: &str| {
            let json = format!(r#"{{"application": "a", "environment": "e", "port": {port}}}"#);
            ObjectSpec::from_json(Kind::Scope, &json)
        };
        assert!(scope("8080").is_ok() && scope("\"none\"").is_ok());
        for wrong in ["0", "65536", "-1", "\"http\"", "null"] {
            assert!(scope(wrong).is_err(), "{wrong}");
        }
    }
}
