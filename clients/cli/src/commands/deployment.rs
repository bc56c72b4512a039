//! `tidegate deployment`: what is in motion, why, and the verbs that steer it.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use tidegate_proto::control::v1 as api;
use tidegate_proto::control::v1::act_request::Verb;
use tidegate_shared::spec::Kind;

use super::audit;
use super::steering::{
    self, ActArgs, ActWaitArgs, Deployment, PromoteArgs, ReferenceArgs, TrafficArgs, WatchArgs,
};
use crate::errors::Result;
use crate::follow::follow;
use crate::output::{Output, Tone, printable, weight};
use crate::session::Session;
use crate::{entropy, pages, render, rpc, time};

/// The verbs of a deployment. DEPLOYMENT is an id, a short id, or the name of a scope (its
/// candidate, else its active one).
#[derive(Debug, Subcommand)]
pub enum DeploymentCommand {
    /// List them, newest first
    List(ListArgs),
    /// Show one: status, traffic, steps, instances, evidence
    Get(ReferenceArgs<Deployment>),
    /// Watch one live until its end; exit status as with deploy --wait
    Watch(WatchArgs<Deployment>),
    /// What happened to it, or every deployment of a scope
    History(HistoryArgs),
    /// Why is it where it is?
    Explain(ReferenceArgs<Deployment>),
    /// Stop its clock where it stands
    Pause(ActArgs<Deployment>),
    /// Go on
    Resume(ActArgs<Deployment>),
    /// End this step now
    Promote(PromoteArgs<Deployment>),
    /// Set the share of the new version, and pause there
    Traffic(TrafficArgs<Deployment>),
    /// Take it back, whatever it is doing before FINALIZING
    Cancel(ActWaitArgs<Deployment>),
    /// All traffic to the old version at once
    Rollback(ActWaitArgs<Deployment>),
    /// The same again as a new deployment, after a bad end
    Retry(ActWaitArgs<Deployment>),
    /// End the bake now
    Finalize(ActWaitArgs<Deployment>),
}

/// Which ones to list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those of this scope
    #[arg(
        short,
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    scope: String,
    /// And which of those.
    #[command(flatten)]
    of: steering::UnderWayArgs,
}

/// Whose history.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Id or short id: its events. Scope: its deployments, newest first
    #[arg(value_name = "DEPLOYMENT|SCOPE")]
    reference: String,
    /// At most so many; 0: all
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

impl DeploymentCommand {
    /// Does it; answers with the exit status.
    ///
    /// # Errors
    /// A wrong flag, or the cluster's refusal.
    pub async fn run(self, session: &Session) -> Result<u8> {
        match self {
            Self::List(args) => list(session, args).await?,
            Self::Get(args) => {
                let found = session.deployment(&args.reference).await?;
                session
                    .output
                    .emit(&found, |_| render::page(session.output, &found))?;
            }
            Self::Watch(args) => return watch(session, &args).await,
            Self::History(args) => history(session, &args).await?,
            Self::Explain(args) => {
                let found = session.deployment(&args.reference).await?;
                session
                    .output
                    .emit(&found, |_| explain(session.output, &found))?;
            }
            Self::Pause(args) => told(
                session,
                act(session, &args, Verb::Pause, 0).await?,
                "paused",
            )?,
            Self::Resume(args) => told(
                session,
                act(session, &args, Verb::Resume, 0).await?,
                "resumed",
            )?,
            Self::Promote(args) => {
                let acted = act(session, &args.act, args.verb(), 0).await?;
                told(session, acted, "promoted")?;
            }
            Self::Traffic(args) => traffic(session, &args).await?,
            Self::Cancel(args) => {
                return act_and_wait(session, args, Verb::Cancel, "being cancelled").await;
            }
            Self::Rollback(args) => {
                return act_and_wait(session, args, Verb::Rollback, "being rolled back").await;
            }
            Self::Retry(args) => return act_and_wait(session, args, Verb::Retry, "retried").await,
            Self::Finalize(args) => {
                return act_and_wait(session, args, Verb::Finalize, "being finalized").await;
            }
        }
        Ok(0)
    }
}

async fn list(session: &Session, args: ListArgs) -> Result<()> {
    let client = session.client().await?;
    let (scope, application) = (&args.scope, &args.of.application);
    let deployments = pages::gather(args.of.limit, |page| {
        let request = api::ListDeploymentsRequest {
            scope: scope.clone(),
            application: application.clone(),
            unfinished: args.of.unfinished,
            page,
        };
        async move {
            let answer = rpc!(client, deployments_client::DeploymentsClient, list, request).await?;
            Ok((answer.deployments, answer.next_page_token))
        }
    });
    let deployments = match deployments.await {
        Ok(deployments) => deployments,
        Err(failure) => {
            let given = [
                (Kind::Scope, scope.as_str()),
                (Kind::Application, application),
            ];
            let given: Vec<_> = given
                .into_iter()
                .filter(|(_, name)| !name.is_empty())
                .collect();
            return Err(session.suggest(failure, &given).await);
        }
    };
    let answer = api::ListDeploymentsResponse {
        deployments,
        next_page_token: String::new(),
    };
    session.output.emit(&answer, |wide| {
        let empty = "No deployment. Start one with `tidegate deploy APP VERSION --scope SCOPE`.";
        let active = render::active_among(&answer.deployments);
        render::list(session.output, &answer.deployments, &active, wide, empty)
    })
}

async fn watch(session: &Session, args: &WatchArgs<Deployment>) -> Result<u8> {
    let following = args.following()?;
    let found = session.deployment(args.reference()).await?;
    follow(session, &found.id, following).await
}

async fn history(session: &Session, args: &HistoryArgs) -> Result<()> {
    let client = session.client().await?;
    let by_id = args
        .reference
        .parse::<tidegate_shared::id::DeploymentId>()
        .is_ok()
        || args
            .reference
            .parse::<tidegate_shared::id::ShortId>()
            .is_ok();
    let (mut id, mut scope) = (String::new(), args.reference.clone());
    if by_id {
        // A scope may have a name that looks like a short id.
        let found = session.deployment(&args.reference).await?;
        if found.scope != args.reference {
            id = found.id;
            scope = String::new();
        }
    }
    let mut gathered = api::HistoryResponse::default();
    let mut token = String::new();
    loop {
        let request = api::HistoryRequest {
            id: id.clone(),
            scope: scope.clone(),
            page: Some(api::Page {
                size: pages::size(args.limit),
                token,
            }),
        };
        let answer = match rpc!(
            client,
            deployments_client::DeploymentsClient,
            history,
            request
        )
        .await
        {
            Ok(answer) => answer,
            Err(failure) => return Err(session.suggest(failure, &[(Kind::Scope, &scope)]).await),
        };
        gathered.events.extend(answer.events);
        gathered.deployments.extend(answer.deployments);
        token = answer.next_page_token;
        let count = gathered.events.len().max(gathered.deployments.len());
        if token.is_empty() || (args.limit > 0 && count >= args.limit) {
            break;
        }
    }
    session.output.emit(&gathered, |wide| {
        if id.is_empty() {
            let empty = format!("The scope \"{scope}\" has had no deployment yet.");
            let active = render::active_among(&gathered.deployments);
            render::list(session.output, &gathered.deployments, &active, wide, &empty)
        } else {
            audit::table(&gathered.events, wide)
                .render(session.output, "Nothing happened to it yet.")
        }
    })
}

/// Why a deployment is where it is, in sentences.
fn explain(output: Output, deployment: &api::Deployment) -> String {
    let now = time::now_ms();
    let status = deployment.status();
    let mut text = format!(
        "{} {} to {} has been {} for {}.\n",
        printable(&deployment.application),
        printable(&deployment.version),
        printable(&deployment.scope),
        output.paint(render::tone(status), status.as_str_name()),
        time::age(deployment.status_since_ms, now)
    );
    let mut say = |line: String| {
        writeln!(text, "{}", printable(&line)).ok();
    };
    if !deployment.outcome.is_empty() {
        let outcome = deployment.outcome.replace('_', " ");
        let unverified = if render::is_unverified(deployment) {
            ", unverified: there was no data"
        } else {
            ""
        };
        say(format!("Its outcome: {outcome}{unverified}."));
    }
    if !deployment.message.is_empty() {
        let message = time::told(&deployment.message, now);
        say(format!("{}.", message.trim_end_matches('.')));
    }
    if !deployment.waiting_for.is_empty() {
        let what = time::told(&deployment.waiting_for, now);
        say(format!("Waiting: {}.", what.trim_end_matches('.')));
    }
    for (word, hold) in [
        ("paused", &deployment.paused),
        ("halted", &deployment.halted),
    ] {
        if let Some(hold) = hold {
            say(format!("It is {word} {}.", render::hold_line(hold, now)));
        }
    }
    for gate in &deployment.gates {
        let needs = match gate.needs.as_str() {
            "" => String::new(),
            needs => format!(" It needs: {}.", time::told(needs, now)),
        };
        let since = match gate.satisfied_at_ms {
            0 => String::new(),
            at => format!(" since {}", time::instant(at, now)),
        };
        say(format!(
            "Gate {}: {}{since}: {}.{needs}",
            gate.kind,
            gate.answer,
            render::gate_line(gate, now).trim_end_matches('.')
        ));
    }
    if deployment.deadline_ms > 0 && !render::has_ended(status) {
        say(format!(
            "Its deadline is {}.",
            time::instant(deployment.deadline_ms, now)
        ));
    }
    if deployment.next_wakeup_ms > 0 && !render::has_ended(status) {
        say(format!(
            "The coordinators look at it next {}.",
            time::until(deployment.next_wakeup_ms, now)
        ));
    }
    for leftover in &deployment.leftovers {
        say(format!("Left over: {leftover}."));
    }
    text.push_str(&render::evidence(output, deployment));
    text.push_str(&render::causes(output, deployment));
    text
}

/// What a verb led to.
struct Acted {
    deployment: api::Deployment,
    /// A retry, and the return to a finalized release, make a linked deployment.
    is_another: bool,
}

async fn act(
    session: &Session,
    args: &ActArgs<Deployment>,
    verb: Verb,
    weight: u32,
) -> Result<Acted> {
    let found = match verb {
        // What ended badly is never the candidate nor the active one.
        Verb::Retry => session.newest_deployment(args.reference()).await?,
        _ => session.deployment(args.reference()).await?,
    };
    let client = session.client().await?;
    let request = api::ActRequest {
        request_id: entropy::request_id()?.to_string(),
        expected_revision: args.revision(),
        id: found.id.clone(),
        verb: verb.into(),
        weight,
        reason: args.reason(),
    };
    let deployment = rpc!(client, deployments_client::DeploymentsClient, act, request).await?;
    Ok(Acted {
        is_another: deployment.id != found.id,
        deployment,
    })
}

fn told(session: &Session, acted: Acted, word: &str) -> Result<()> {
    let deployment = acted.deployment;
    session.output.emit(&deployment, |_| {
        format!(
            "deployment {} ({} {} to {}) is {word}; status {}\n",
            deployment.short_id,
            deployment.application,
            deployment.version,
            deployment.scope,
            session.output.paint(
                render::tone(deployment.status()),
                deployment.status().as_str_name()
            )
        )
    })
}

async fn act_and_wait(
    session: &Session,
    args: ActWaitArgs<Deployment>,
    verb: Verb,
    word: &str,
) -> Result<u8> {
    args.wait.check()?;
    let answer = act(session, &args.act, verb, 0).await?;
    if args.wait.wait || answer.is_another {
        return args.wait.after(session, &[answer.deployment]).await;
    }
    told(session, answer, word)?;
    Ok(0)
}

async fn traffic(session: &Session, args: &TrafficArgs<Deployment>) -> Result<()> {
    let basis_points = args.share()?.basis_points();
    let acted = act(session, &args.act, Verb::Traffic, u32::from(basis_points)).await?;
    let answer = acted.deployment;
    session.output.emit(&answer, |_| {
        let note = session.output.paint(
            Tone::Faint,
            &format!(
                "go on with `tidegate deployment resume {}`",
                answer.short_id
            ),
        );
        format!(
            "traffic of deployment {} goes to {} and stays there; {note}\n",
            answer.short_id,
            weight(i64::from(basis_points))
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn explanations_are_sentences() {
        let mut deployment = render::tests::sample();
        deployment.gates = vec![api::Gate {
            kind: "approval".to_owned(),
            answer: "pending".to_owned(),
            why: "1 of 2 grants".to_owned(),
            ..api::Gate::default()
        }];
        let text = explain(Output::plain(Format::Table), &deployment);
        assert!(text.contains("Waiting: the hold of step 2.\n"), "{text}");
        assert!(
            text.contains("Gate approval: pending: 1 of 2 grants.\n"),
            "{text}"
        );
    }
}
