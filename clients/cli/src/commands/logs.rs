//! `tidegate logs`: what instances print.

use clap::Args;
use tidegate_proto::control::v1 as api;
use tidegate_shared::id::{DeploymentId, ShortId};
use tidegate_shared::spec::Kind;
use tokio_stream::StreamExt as _;

use crate::connect::failure_of;
use crate::errors::Result;
use crate::output::{Format, Tone, to_json};
use crate::rpc;
use crate::session::Session;

/// Whose logs.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate logs web-prod --tail 50\n  tidegate logs q69g5fav -f\n  tidegate logs web-prod -o json | jq -r .text"
)]
pub struct LogsArgs {
    /// A scope (all its versions), or a deployment's id or short id
    #[arg(value_name = "SCOPE|DEPLOYMENT")]
    reference: String,
    /// Go on with what is printed from now on
    #[arg(short, long)]
    follow: bool,
    /// The last lines of each instance
    #[arg(long, value_name = "N", default_value_t = 100)]
    tail: u32,
}

impl LogsArgs {
    /// Does it.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn run(self, session: &Session) -> Result<()> {
        let (mut scope, mut deployment) = (self.reference.clone(), String::new());
        let by_id = self.reference.parse::<DeploymentId>().is_ok()
            || self.reference.parse::<ShortId>().is_ok();
        if by_id {
            let found = session.deployment(&self.reference).await?;
            if found.scope != self.reference {
                scope = String::new();
                deployment = found.id;
            }
        }
        let client = session.client().await?;
        let request = api::LogsRequest {
            scope: scope.clone(),
            deployment,
            tail_lines: self.tail,
            follow: self.follow,
        };
        let mut lines = match rpc!(client, scopes_client::ScopesClient, logs, request).await {
            Ok(lines) => lines,
            Err(failure) => return Err(session.suggest(failure, &[(Kind::Scope, &scope)]).await),
        };
        loop {
            let next = tokio::select! {
                next = lines.next() => next,
                _ = tokio::signal::ctrl_c() => return Ok(()),
            };
            match next {
                Some(Ok(line)) => print(session, &line)?,
                Some(Err(status)) => return Err(failure_of(status)),
                None => return Ok(()),
            }
        }
    }
}

/// `q69g5fav-0` of `tidegate-web-prod-q69g5fav-0`: the deployment and the instance's number. The
/// scope is known to whoever asks.
fn short(instance: &str) -> &str {
    if !instance.starts_with("tidegate-") {
        return instance;
    }
    let mut hyphens = instance.rmatch_indices('-').skip(1);
    hyphens
        .next()
        .map_or(instance, |(position, _)| &instance[position + 1..])
}

fn print(session: &Session, line: &api::LogLine) -> Result<()> {
    let output = session.output;
    if matches!(output.format, Format::Json | Format::Yaml) {
        // One object per line, so that it can be read while it runs.
        let text: String = to_json(line)?.lines().map(str::trim).collect();
        return output.line(&text);
    }
    let tone = if line.stream == "stderr" {
        Tone::Bad
    } else {
        Tone::Faint
    };
    let from = output.paint(tone, &format!("{}/{}", line.agent, short(&line.instance)));
    // What an application prints must not steer the terminal.
    let text: String = line
        .text
        .chars()
        .filter(|c| !c.is_control() || *c == '\t')
        .collect();
    output.line(&format!("{from} {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_called_by_deployment_and_number() {
        assert_eq!(short("tidegate-web-prod-q69g5fav-0"), "q69g5fav-0");
        assert_eq!(short("something-else"), "something-else");
        assert_eq!(short("tidegate-x"), "tidegate-x");
    }
}
