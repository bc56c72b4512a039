//! What is to be published where and how: the arguments of everything that makes deployments or
//! plans them, and the request that they come to.

use clap::{Args, ValueEnum};
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;
use tidegate_shared::spec::{Kind, StrategySpec};

use super::rollout::{Rollout, RolloutArgs};
use super::{objects, release};
use crate::errors::{Failure, Result};
use crate::session::{self, Session};
use crate::{entropy, set};

/// What a deployment does when another one of the scope is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum OnConflict {
    /// Refuse, naming it
    #[default]
    Fail,
    /// Wait for its end
    Queue,
    /// Roll it back first
    Supersede,
}

/// Where to.
#[derive(Debug, Clone, Args)]
#[group(id = "selection", required = true, multiple = true)]
pub struct SelectionArgs {
    /// Where to; may be given several times: all or none is accepted
    #[arg(short, long = "scope", value_name = "NAME", value_delimiter = ',', conflicts_with_all = ["selector", "environment"])]
    pub scopes: Vec<String>,
    /// To the application's scopes that this condition in CEL holds for; stopped ones are left out
    #[arg(long, value_name = "CEL")]
    pub selector: Option<String>,
    /// To the application's scopes of this environment; with --selector: those of both
    #[arg(short, long, value_name = "NAME")]
    pub environment: Option<String>,
}

/// What, where to, and how.
#[derive(Debug, Clone, Args)]
pub struct WishArgs {
    /// Name of the application
    application: String,
    /// Version of the release
    version: String,
    /// Where to.
    #[command(flatten)]
    selection: SelectionArgs,
    /// Name of the strategy; default: blue_green with 5, 25, 50, 100 %
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    strategy: String,
    /// A field of the strategy for this deployment only, as YAML
    #[arg(long = "set", value_name = "PATH=VALUE")]
    settings: Vec<String>,
    /// When another deployment of the scope is under way
    #[arg(long, value_enum, default_value_t)]
    on_conflict: OnConflict,
    /// Labels
    #[arg(long = "label", value_name = "K=V")]
    labels: Vec<String>,
    /// Make a group of this name; several scopes, a selection and a rollout make one anyway
    #[arg(long, value_name = "NAME", help_heading = "Rollout of a group")]
    group: Option<String>,
    /// In what order and at what pace.
    #[command(flatten)]
    rollout: RolloutArgs,
}

/// A wish that is ready to be sent.
#[derive(Debug)]
pub struct Prepared {
    /// As a group would be made of it.
    pub request: api::CreateGroupRequest,
    rollout: Option<Rollout>,
}

impl SelectionArgs {
    /// Whether the cluster finds the scopes.
    pub fn is_by_condition(&self) -> bool {
        self.selector.is_some() || self.environment.is_some()
    }

    /// Names that were given, for suggestions.
    pub fn given(&self) -> Vec<(Kind, &str)> {
        let mut given: Vec<_> = self
            .scopes
            .iter()
            .map(|scope| (Kind::Scope, scope.as_str()))
            .collect();
        given.extend(
            self.environment
                .iter()
                .map(|name| (Kind::Environment, name.as_str())),
        );
        given
    }
}

impl WishArgs {
    /// Whether it makes a group: one handle on several deployments, or on what a condition finds.
    pub fn is_group(&self) -> bool {
        self.selection.scopes.len() > 1
            || self.selection.is_by_condition()
            || self.group.is_some()
            || self.rollout.is_given()
    }

    /// Checks what can be checked here, and asks the cluster for what is needed to do it.
    ///
    /// # Errors
    /// A wrong flag, or a strategy that is not there.
    pub async fn prepare(&self, session: &Session) -> Result<Prepared> {
        let rollout = self.rollout.read()?;
        let overrides = self.overrides(session).await?;
        let request = api::CreateGroupRequest {
            request_id: entropy::request_id()?.to_string(),
            name: self.group.clone().unwrap_or_default(),
            application: self.application.clone(),
            version: self.version.clone(),
            scopes: self.selection.scopes.clone(),
            selector: self.selection.selector.clone().unwrap_or_default(),
            environment: self.selection.environment.clone().unwrap_or_default(),
            strategy: self.strategy.clone(),
            overrides,
            rollout: rollout
                .as_ref()
                .map(|rollout| rollout.json.clone())
                .unwrap_or_default(),
            labels: session::pairs("--label", &self.labels, true)?
                .into_iter()
                .collect(),
            on_conflict: match self.on_conflict {
                OnConflict::Fail => "fail",
                OnConflict::Queue => "queue",
                OnConflict::Supersede => "supersede",
            }
            .to_owned(),
        };
        Ok(Prepared { request, rollout })
    }

    /// Fields of the strategy that differ, as JSON; empty: none.
    async fn overrides(&self, session: &Session) -> Result<String> {
        let base = if self.strategy.is_empty() || self.settings.is_empty() {
            // Checked before the cluster is asked for anything.
            set::overrides(&StrategySpec::default(), &self.settings)?;
            StrategySpec::default()
        } else {
            let object = objects::fetch(session, Kind::Strategy, &self.strategy).await?;
            serde_json::from_str(&object.spec).map_err(|error| {
                Failure::new(
                    Reason::NotSupported,
                    format!(
                        "the strategy \"{}\" has fields that this program does not know: {error}",
                        self.strategy
                    ),
                )
                .hint("use the program of the cluster's version")
            })?
        };
        let overrides = set::overrides(&base, &self.settings)?;
        set::check(&base, &overrides)?;
        if self.settings.is_empty() {
            return Ok(String::new());
        }
        serde_json::to_string(&overrides)
            .map_err(|error| Failure::new(Reason::Internal, error.to_string()))
    }

    /// Names what is not there.
    pub async fn explain(&self, session: &Session, failure: Failure) -> Failure {
        if !failure.is(Reason::NotFound) {
            return failure;
        }
        let mut given = vec![(Kind::Application, self.application.as_str())];
        given.extend(self.selection.given());
        if !self.strategy.is_empty() {
            given.push((Kind::Strategy, &self.strategy));
        }
        let before = failure.clone();
        let suggested = session.suggest(failure, &given).await;
        if suggested == before {
            return release::suggest_version(session, suggested, &self.application, &self.version)
                .await;
        }
        suggested
    }
}

impl Prepared {
    /// The same for one scope without a group.
    pub fn alone(&self) -> api::CreateDeploymentRequest {
        let request = self.request.clone();
        api::CreateDeploymentRequest {
            request_id: request.request_id,
            application: request.application,
            version: request.version,
            scopes: request.scopes,
            strategy: request.strategy,
            overrides: request.overrides,
            labels: request.labels,
            on_conflict: request.on_conflict,
        }
    }

    /// Says where the fields that a refusal names stand in the rollout's file.
    pub fn locate(&self, failure: Failure) -> Failure {
        match &self.rollout {
            Some(rollout) => failure.locate(|field| rollout.locate(field)),
            None => failure,
        }
    }
}
