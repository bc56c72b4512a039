//! `tidegate plan`: the whole schedule of a deployment, before anything is made.

use std::time::Duration;

use clap::Args;
use tidegate_proto::control::v1 as api;
use tidegate_proto::control::v1::plan_request::Wish;
use tidegate_proto::control::v1::planning_client::PlanningClient;
use tidegate_shared::time::{Span, Timestamp};

use super::deploy::tell_left;
use super::wish::WishArgs;
use crate::errors::{Failure, Result};
use crate::render::plan;
use crate::session::Session;
use crate::time;

/// A plan of thousands of scopes takes seconds; a coordinator gives up by itself before that.
const PATIENCE: Duration = Duration::from_secs(30);

/// Largest plan that is read, in bytes.
const LARGEST: usize = 64 << 20;

/// What to plan, and for when.
#[derive(Debug, Args)]
#[command(
    after_help = "Takes the arguments of `tidegate deploy` and makes nothing. The schedule is that of the coordinators' own planner,\nrun on a copy of the cluster's state: if nothing fails and nobody changes anything, it is what happens.\nApprovals and manual steps are taken to be given at once; remarks say so.\n\nExit status: 0 every deployment would be finalized, 5 not all would.\n\nExamples:\n  tidegate plan web 1.4.0 --scope web-prod\n  tidegate plan web 1.4.0 --scope web-eu --scope web-us --strategy careful --at 2026-11-23T09:00:00+01:00\n  tidegate plan web 1.4.0 --environment production --rollout linear --interval 10m --at +2h\n  tidegate plan web 1.4.0 --scope web-prod --staging 40s --startup 15s -o json"
)]
pub struct PlanArgs {
    /// What, where to, and how.
    #[command(flatten)]
    wish: WishArgs,
    /// When it would be asked for: 2026-11-23T09:00:00Z, or +2h from now; left out: now
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<String>,
    /// What hosts need to fetch and unpack the release
    #[arg(
        long,
        value_name = "SPAN",
        default_value = "0s",
        hide_default_value = true
    )]
    staging: String,
    /// What an instance needs from its start until it is healthy
    #[arg(
        long,
        value_name = "SPAN",
        default_value = "0s",
        hide_default_value = true
    )]
    startup: String,
    /// Everything that happens to each scope, not its steps of traffic alone
    #[arg(long)]
    full: bool,
}

/// `+2h`, or an instant.
fn instant(text: &str, now_ms: u64) -> Result<u64> {
    if let Some(span) = text.strip_prefix('+') {
        let span: Span = span
            .parse()
            .map_err(|error| Failure::usage(format!("--at: {error}")))?;
        return Ok(now_ms.saturating_add(span.millis()));
    }
    match Timestamp::parse(text) {
        Some(at) if at > Timestamp::ZERO => Ok(at.millis()),
        Some(_) | None => Err(Failure::usage(format!(
            "--at: \"{text}\" is no instant: want 2026-11-23T09:00:00Z, with another offset such as +01:00, or +2h from now"
        ))),
    }
}

/// The flag that a field of the request is given by.
fn flag(field: &str) -> Option<String> {
    let flag = match field {
        "at_ms" => "--at",
        "staging_ms" => "--staging",
        "startup_ms" => "--startup",
        _ => return None,
    };
    Some(flag.to_owned())
}

fn span(flag: &str, text: &str) -> Result<u64> {
    let span: Span = text
        .parse()
        .map_err(|error| Failure::usage(format!("{flag}: {error}")))?;
    Ok(span.millis())
}

impl PlanArgs {
    /// Asks and tells; answers with the exit status.
    ///
    /// # Errors
    /// A wrong flag, or what the cluster would answer to the same `deploy`.
    pub async fn run(self, session: &Session) -> Result<u8> {
        let at_ms = match &self.at {
            Some(text) => instant(text, time::now_ms())?,
            None => 0,
        };
        let staging_ms = span("--staging", &self.staging)?;
        let startup_ms = span("--startup", &self.startup)?;
        let prepared = self.wish.prepare(session).await?;
        let wish = match self.wish.is_group() {
            true => Wish::Group(prepared.request.clone()),
            false => Wish::Deployment(prepared.alone()),
        };
        let request = api::PlanRequest {
            wish: Some(wish),
            at_ms,
            staging_ms,
            startup_ms,
        };
        let client = session.client().await?;
        let asked = client.call_for(PATIENCE, move |channel| {
            let request = request.clone();
            async move {
                PlanningClient::new(channel)
                    .max_decoding_message_size(LARGEST)
                    .plan(request)
                    .await
            }
        });
        let answer = match asked.await {
            Ok(answer) => answer,
            Err(failure) => {
                let failure = prepared.locate(failure).locate(flag);
                return Err(self.wish.explain(session, failure).await);
            }
        };
        tell_left(session, &answer.left)?;
        let output = session.output;
        output.emit(&answer, |wide| {
            plan::told(output, &answer, self.full || wide, time::now_ms())
        })?;
        Ok(plan::exit_status(&answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_given_in_two_ways() {
        assert_eq!(instant("+2h", 1_000).unwrap(), 7_201_000);
        assert_eq!(instant("1970-01-02T00:00:00Z", 5).unwrap(), 86_400_000);
        assert_eq!(instant("1970-01-02T01:00:00+01:00", 5).unwrap(), 86_400_000);
        for wrong in [
            "tomorrow",
            "2h",
            "2026-11-23",
            "+",
            "+x",
            "1970-01-01T00:00:00Z",
        ] {
            let failure = instant(wrong, 5).unwrap_err();
            assert!(failure.render(false).contains("--at"), "{wrong}");
        }
    }
}
