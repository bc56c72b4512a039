//! `tidegate deploy`: publishes a release to a scope, or to many as a group.

use clap::Args;
use tidegate_proto::control::v1 as api;

use super::WaitArgs;
use super::wish::{Prepared, WishArgs};
use crate::errors::Result;
use crate::output::printable;
use crate::rpc;
use crate::session::Session;

/// What to deploy, where and how.
#[derive(Debug, Args)]
#[command(
    after_help = "Several scopes, --selector, --environment, --group and --rollout make a group: one view and one handle,\nsee `tidegate group --help`. Without a rollout all its members start at once.\n\nExit status with --wait: 0 finalized, 3 rolled back, 4 denied, 5 failed or cancelled, 6 timed out. Of a group\n0 means that every member went well; some well and some not is 5.\nCtrl-C ends the waiting and leaves what was started running.\n\nExamples:\n  tidegate deploy web 1.4.0 --scope web-prod --wait\n  tidegate deploy web 1.4.0 --scope web-eu --scope web-us --strategy careful\n  tidegate deploy web 1.4.0 --scope web-prod --set traffic.steps=10:30s,50:1m,100 --set bake=30s\n  tidegate deploy web 1.4.0 --scope web-prod \\\n      --set 'rollback.rules=[{metric: http.error_rate, comparison: greater_than, threshold: 0.05, judge: raw}]'\n\nExamples of groups:\n  one scope every 10 minutes, in order of name, the next only once the last is up; stop at the second failure:\n    tidegate deploy web 1.4.0 --environment production --group spring \\\n        --rollout linear --interval 10m --order name --gate healthy --max-failures 1\n  one scope, an hour of looking at it, then Europe, then the rest; back everywhere at the first failure:\n    tidegate deploy web 1.4.0 --selector 'environment.tier >= 3' --on-breach rollback \\\n        --wave canary=1:1h --wave europe='scope.dimensions.region == \"eu\"':10m\n  the same from a file, waiting for the end:\n    tidegate deploy web 1.4.0 --environment production --rollout waves.yaml --wait --timeout 8h"
)]
pub struct DeployArgs {
    /// What, where to, and how.
    #[command(flatten)]
    wish: WishArgs,
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
        let prepared = self.wish.prepare(session).await?;
        if self.wish.is_group() {
            return self.group(session, prepared).await;
        }
        let client = session.client().await?;
        let answer = rpc!(
            client,
            deployments_client::DeploymentsClient,
            create,
            prepared.alone()
        )
        .await;
        match answer {
            Ok(answer) => self.wait.after(session, &answer.deployments).await,
            Err(failure) => Err(self.wish.explain(session, failure).await),
        }
    }

    async fn group(&self, session: &Session, prepared: Prepared) -> Result<u8> {
        let client = session.client().await?;
        let request = prepared.request.clone();
        let answer = match rpc!(client, groups_client::GroupsClient, create, request).await {
            Ok(answer) => answer,
            Err(failure) => {
                let failure = prepared.locate(failure);
                return Err(self.wish.explain(session, failure).await);
            }
        };
        tell_left(session, &answer.left)?;
        let group = answer.group.unwrap_or_default();
        self.wait.after_group(session, &group).await
    }
}

/// Tells of scopes that a selection left out: nobody should believe that they were deployed to.
///
/// # Errors
/// The output cannot be written.
pub fn tell_left(session: &Session, left: &[api::LeftAlone]) -> Result<()> {
    for left in left {
        let line = format!("left out: {}: {}", left.scope, left.why);
        session.output.note(&printable(&line))?;
    }
    Ok(())
}
