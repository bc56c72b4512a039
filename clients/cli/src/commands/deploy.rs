//! `tidegate deploy`: publishes a release to scopes.

use clap::{Args, ValueEnum};
use tidegate_proto::control::v1 as api;
use tidegate_shared::error::Reason;
use tidegate_shared::spec::{Kind, StrategySpec};

use super::{WaitArgs, objects, release};
use crate::errors::{Failure, Result};
use crate::session::{self, Session};
use crate::{entropy, rpc, set};

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

/// What to deploy, where and how.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status with --wait: 0 finalized, 3 rolled back, 4 denied, 5 failed or cancelled, 6 timed out.\nCtrl-C ends the waiting and leaves the deployment running.\n\nExamples:\n  tidegate deploy web 1.4.0 --scope web-prod --wait\n  tidegate deploy web 1.4.0 --scope web-eu --scope web-us --strategy careful\n  tidegate deploy web 1.4.0 --scope web-prod --set traffic.steps=10:30s,50:1m,100 --set bake=30s\n  tidegate deploy web 1.4.0 --scope web-prod \\\n      --set 'rollback.rules=[{metric: http.error_rate, comparison: greater_than, threshold: 0.05, judge: raw}]'"
)]
pub struct DeployArgs {
    /// Name of the application
    application: String,
    /// Version of the release
    version: String,
    /// Where to; may be given several times: all or none is accepted
    #[arg(
        short,
        long = "scope",
        value_name = "NAME",
        required = true,
        value_delimiter = ','
    )]
    scopes: Vec<String>,
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
    /// Whether to wait.
    #[command(flatten)]
    wait: WaitArgs,
}

impl DeployArgs {
    /// Does it; answers with the exit status.
    ///
    /// # Errors
    /// A wrong flag, or the cluster's refusal.
    pub async fn run(self, session: &Session) -> Result<u8> {
        self.wait.check()?;
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
        let overrides = if self.settings.is_empty() {
            String::new()
        } else {
            serde_json::to_string(&overrides)
                .map_err(|error| Failure::new(Reason::Internal, error.to_string()))?
        };
        let request = api::CreateDeploymentRequest {
            request_id: entropy::request_id()?.to_string(),
            application: self.application.clone(),
            version: self.version.clone(),
            scopes: self.scopes.clone(),
            strategy: self.strategy.clone(),
            overrides,
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
        let client = session.client().await?;
        let answer = rpc!(
            client,
            deployments_client::DeploymentsClient,
            create,
            request
        )
        .await;
        match answer {
            Ok(answer) => self.wait.after(session, &answer.deployments).await,
            Err(failure) => Err(self.explain(session, failure).await),
        }
    }

    /// Names what is not there.
    async fn explain(&self, session: &Session, failure: Failure) -> Failure {
        if !failure.is(Reason::NotFound) {
            return failure;
        }
        let mut given = vec![(Kind::Application, self.application.as_str())];
        given.extend(
            self.scopes
                .iter()
                .map(|scope| (Kind::Scope, scope.as_str())),
        );
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
