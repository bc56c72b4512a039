//! `tidegate rollback`: a scope back to a release that it had before.

use clap::Args;
use tidegate_proto::control::v1 as api;
use tidegate_shared::spec::Kind;

use super::WaitArgs;
use crate::errors::Result;
use crate::session::Session;
use crate::{entropy, rpc};

/// What to return to.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate rollback web-prod --wait            the release before the active one\n  tidegate rollback web-prod 1.3.9 --reason 'checkout is broken'"
)]
pub struct RollbackArgs {
    /// Name of the scope
    scope: String,
    /// Release to return to; default: the one before the active one
    #[arg(default_value = "", hide_default_value = true)]
    version: String,
    /// Even if the release was rejected or others depend on the present one; needs --reason
    #[arg(long, requires = "reason")]
    force: bool,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Whether to wait.
    #[command(flatten)]
    wait: WaitArgs,
}

impl RollbackArgs {
    /// Does it; answers with the exit status.
    ///
    /// # Errors
    /// A wrong flag, or the cluster's refusal.
    pub async fn run(self, session: &Session) -> Result<u8> {
        self.wait.check()?;
        let client = session.client().await?;
        let request = api::RollbackScopeRequest {
            request_id: entropy::request_id()?.to_string(),
            name: self.scope.clone(),
            version: self.version.clone(),
            force: self.force,
            reason: self.reason.clone().unwrap_or_default(),
        };
        match rpc!(client, scopes_client::ScopesClient, rollback, request).await {
            Ok(deployment) => self.wait.after(session, &[deployment]).await,
            Err(failure) => Err(session
                .suggest(failure, &[(Kind::Scope, &self.scope)])
                .await),
        }
    }
}
