//! `tidegate skip`, `freeze` and `thaw`: people's word over rules.

use clap::{Args, Subcommand};
use tidegate_proto::control::v1 as api;
use tidegate_shared::time::Span;

use crate::errors::{Failure, Result};
use crate::output::{Table, dash};
use crate::session::Session;
use crate::{entropy, rpc, time};

/// The verbs of skips.
#[derive(Debug, Subcommand)]
pub enum SkipCommand {
    /// Let a rule be passed over
    Create(CreateArgs),
    /// List those that act
    List,
    /// Let the rule count again
    Delete(DeleteArgs),
}

/// What to pass over.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate skip create production/windows --scope web-prod --for 2h --reason \"hotfix of TICKET-7\"\n  tidegate skip create production --application shop --version 2.1.0 --reason \"agreed by phone\""
)]
pub struct CreateArgs {
    /// A policy, its rules of a kind, or one of them: `production`, `production/windows`, `production/windows[0]`
    #[arg(value_name = "RULE")]
    rule: String,
    /// Only for releases of this application
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    application: String,
    /// Only for this version; needs --application
    #[arg(
        long,
        value_name = "VERSION",
        default_value = "",
        hide_default_value = true
    )]
    version: String,
    /// Only for this scope
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    scope: String,
    /// For so long, such as 2h; left out: until it is deleted
    #[arg(long = "for", value_name = "SPAN")]
    span: Option<String>,
    /// Why, for everybody to read
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// Which skip.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Its name, as `skip list` shows it
    name: String,
}

/// What to freeze.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate freeze --for 2h --reason \"incident 7\"\n  tidegate freeze --selector 'environment.name == \"production\"' --for 3d --reason holidays\n  tidegate freeze --list"
)]
pub struct FreezeArgs {
    /// CEL: which deployments; left out: all
    #[arg(
        long,
        value_name = "CEL",
        default_value = "",
        hide_default_value = true
    )]
    selector: String,
    /// For so long, such as 2h
    #[arg(long = "for", value_name = "SPAN", required_unless_present = "list")]
    span: Option<String>,
    /// Why, for everybody to read
    #[arg(long, value_name = "TEXT", required_unless_present = "list")]
    reason: Option<String>,
    /// Let deployments that are under way go on; left out: they halt at their next step
    #[arg(long)]
    let_run: bool,
    /// List what is frozen
    #[arg(long, conflicts_with_all = ["selector", "span", "reason", "let_run"])]
    list: bool,
}

/// What to thaw.
#[derive(Debug, Args)]
pub struct ThawArgs {
    /// Name of the freeze, as `freeze --list` shows it
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// Every freeze
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

fn span(text: &str) -> Result<u64> {
    let span: Span = text
        .parse()
        .map_err(|error| Failure::usage(format!("--for: {error}")))?;
    match span.millis() {
        0 => Err(Failure::usage("--for: want more than 0")),
        millis => Ok(millis),
    }
}

impl SkipCommand {
    /// Does it.
    ///
    /// # Errors
    /// A wrong flag, or the cluster's.
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Create(args) => create(session, args).await,
            Self::List => list(session).await,
            Self::Delete(args) => delete(session, args.name).await,
        }
    }
}

async fn create(session: &Session, args: CreateArgs) -> Result<()> {
    let for_ms = args.span.as_deref().map(span).transpose()?.unwrap_or(0);
    let client = session.client().await?;
    let request = api::CreateSkipRequest {
        request_id: entropy::request_id()?.to_string(),
        rule: args.rule,
        application: args.application,
        version: args.version,
        scope: args.scope,
        for_ms,
        reason: args.reason,
    };
    let answer = rpc!(
        client,
        governance_client::GovernanceClient,
        create_skip,
        request
    )
    .await?;
    session.output.emit(&answer, |_| {
        format!(
            "{}: rule {} is skipped {}\n",
            answer.name,
            answer.rule,
            end(answer.expires_at_ms)
        )
    })
}

fn end(expires_at_ms: u64) -> String {
    match expires_at_ms {
        0 => "until it is deleted".to_owned(),
        at => format!("until {}", time::stamp(at)),
    }
}

async fn list(session: &Session) -> Result<()> {
    let client = session.client().await?;
    let request = api::ListSkipsRequest {};
    let answer = rpc!(
        client,
        governance_client::GovernanceClient,
        list_skips,
        request
    )
    .await?;
    session.output.emit(&answer, |_| {
        let mut table = Table::new(&["NAME", "RULE", "FOR", "ENDS", "BY", "REASON"]);
        for skip in &answer.skips {
            let about = [&skip.application, &skip.version, &skip.scope];
            let about: Vec<&str> = about.into_iter().map(String::as_str).collect();
            let about = about.join(" ");
            table.row([
                skip.name.clone(),
                skip.rule.clone(),
                dash(about.trim()).to_owned(),
                match skip.expires_at_ms {
                    0 => "-".to_owned(),
                    at => time::stamp(at),
                },
                skip.created_by.clone(),
                skip.reason.clone(),
            ]);
        }
        table.render(session.output, "No rule is skipped.")
    })
}

async fn delete(session: &Session, name: String) -> Result<()> {
    let client = session.client().await?;
    let request = api::DeleteSkipRequest {
        request_id: entropy::request_id()?.to_string(),
        name: name.clone(),
    };
    let answer = rpc!(
        client,
        governance_client::GovernanceClient,
        delete_skip,
        request
    )
    .await?;
    session
        .output
        .emit(&answer, |_| format!("{name} is deleted\n"))
}

impl FreezeArgs {
    /// Freezes, or lists what is frozen.
    ///
    /// # Errors
    /// A wrong flag, or the cluster's.
    pub async fn run(self, session: &Session) -> Result<()> {
        if self.list {
            return list_freezes(session).await;
        }
        let for_ms = span(self.span.as_deref().unwrap_or_default())?;
        let client = session.client().await?;
        let request = api::FreezeRequest {
            request_id: entropy::request_id()?.to_string(),
            selector: self.selector,
            reason: self.reason.unwrap_or_default(),
            for_ms,
            let_run: self.let_run,
        };
        let answer = rpc!(client, governance_client::GovernanceClient, freeze, request).await?;
        session.output.emit(&answer, |_| {
            format!(
                "{} holds until {}; `tidegate thaw {}` ends it\n",
                answer.name,
                time::stamp(answer.until_ms),
                answer.name
            )
        })
    }
}

async fn frozen(session: &Session) -> Result<api::ListFreezesResponse> {
    let client = session.client().await?;
    let request = api::ListFreezesRequest {};
    rpc!(
        client,
        governance_client::GovernanceClient,
        list_freezes,
        request
    )
    .await
}

async fn list_freezes(session: &Session) -> Result<()> {
    let answer = frozen(session).await?;
    session.output.emit(&answer, |_| {
        let mut table = Table::new(&["NAME", "SELECTOR", "ENDS", "RUNNING", "BY", "REASON"]);
        for freeze in &answer.freezes {
            table.row([
                freeze.name.clone(),
                dash(&freeze.selector).to_owned(),
                time::stamp(freeze.until_ms),
                if freeze.let_run { "go on" } else { "halt" }.to_owned(),
                freeze.created_by.clone(),
                freeze.reason.clone(),
            ]);
        }
        table.render(session.output, "Nothing is frozen.")
    })
}

impl ThawArgs {
    /// Ends a freeze, or all.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn run(self, session: &Session) -> Result<()> {
        let names = match self.name {
            Some(name) => vec![name],
            None => {
                let answer = frozen(session).await?;
                answer.freezes.into_iter().map(|f| f.name).collect()
            }
        };
        let client = session.client().await?;
        let mut done = String::new();
        for name in names {
            let request = api::ThawRequest {
                request_id: entropy::request_id()?.to_string(),
                name: name.clone(),
            };
            rpc!(client, governance_client::GovernanceClient, thaw, request).await?;
            done.push_str(&format!("{name} is over\n"));
        }
        session.output.emit(&api::ThawResponse {}, |_| done.clone())
    }
}
