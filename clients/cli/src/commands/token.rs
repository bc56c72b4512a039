//! `tidegate token`: how newcomers get in.

use std::io::Write as _;

use clap::{Args, Subcommand, ValueEnum};
use tidegate_proto::control::v1 as api;
use tidegate_shared::time::Span;

use crate::errors::{Failure, Result};
use crate::output::{Format, Table, Tone, dash, pairs};
use crate::session::{self, Session};
use crate::{entropy, rpc, time};

/// The verbs of a token.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make one; it is shown once
    Create(CreateArgs),
    /// List them; their secrets are not kept
    List,
    /// Make one worthless
    Delete(DeleteArgs),
}

/// Who may join by a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TokenKind {
    /// A host that runs releases
    Agent,
    /// A person
    User,
    /// Another member of the cluster
    Coordinator,
}

/// What the token is to allow.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate token create agent --labels role=web,region=eu --ttl 1h --uses 10\n  tidegate token create user --name ann --role deployer\n  tidegate token create coordinator"
)]
pub struct CreateArgs {
    /// Who may join by it
    #[arg(value_enum)]
    kind: TokenKind,
    /// Labels that the joiner gets and cannot change
    #[arg(long = "labels", alias = "label", value_name = "K=V,…")]
    labels: Vec<String>,
    /// How long it can be used, at most 30d
    #[arg(long, value_name = "SPAN", default_value = "1h")]
    ttl: String,
    /// How often it can be used: 1 to 10000
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    uses: u32,
    /// The name that the joiner must take; required for a user
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    name: String,
    /// A user's role everywhere: viewer, deployer, approver, operator or admin [default: viewer]
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
}

/// Whom to invite.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tidegate user create ann --role deployer\n  tidegate login --server HOST:PORT --token TOKEN     what ann does with it"
)]
pub struct InviteArgs {
    /// Its name
    name: String,
    /// A role everywhere: viewer, deployer, approver, operator or admin [default: viewer]
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// Labels
    #[arg(long = "labels", alias = "label", value_name = "K=V,…")]
    labels: Vec<String>,
    /// How long the token can be used, at most 30d
    #[arg(long, value_name = "SPAN", default_value = "1h")]
    ttl: String,
}

/// Invites a person.
///
/// # Errors
/// A wrong flag, or the cluster's.
pub async fn invite(session: &Session, args: InviteArgs) -> Result<()> {
    let token = CreateArgs {
        kind: TokenKind::User,
        labels: args.labels,
        ttl: args.ttl,
        uses: 1,
        name: args.name,
        roles: args.roles,
    };
    create(session, &token).await
}

/// Which token.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Its id, as `token list` shows it
    id: String,
}

impl TokenCommand {
    /// Does it.
    ///
    /// # Errors
    /// A wrong flag, or the cluster's.
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Create(args) => create(session, &args).await,
            Self::List => list(session).await,
            Self::Delete(args) => delete(session, &args.id).await,
        }
    }
}

async fn create(session: &Session, args: &CreateArgs) -> Result<()> {
    let ttl: Span = args
        .ttl
        .parse()
        .map_err(|error| Failure::usage(format!("--ttl: {error}")))?;
    if ttl.is_zero() || ttl > Span::from_days(30) {
        return Err(Failure::usage(format!(
            "--ttl {}: want more than 0 and at most 30d",
            args.ttl
        )));
    }
    if args.kind == TokenKind::User && args.name.is_empty() {
        return Err(
            Failure::usage("a user's token needs --name: whom it is for")
                .hint("for example `tidegate token create user --name ann`"),
        );
    }
    let kind = match args.kind {
        TokenKind::Agent => "agent",
        TokenKind::User => "user",
        TokenKind::Coordinator => "coordinator",
    };
    super::user::check_roles(&args.roles)?;
    if !args.roles.is_empty() && args.kind != TokenKind::User {
        return Err(Failure::usage("--role is for a user's token"));
    }
    let request = api::CreateTokenRequest {
        uses: args.uses,
        name: args.name.clone(),
        roles: args.roles.clone(),
        ..request_of(kind, &args.labels, ttl)?
    };
    let client = session.client().await?;
    let answer = rpc!(client, tokens_client::TokensClient, create, request).await?;
    session
        .output
        .emit(&answer, |_| format!("{}\n", answer.token))?;
    if session.output.is_for_people() {
        let enroll = session_enroll(session);
        let program = match args.kind {
            TokenKind::Agent => "tidegate-agent join",
            TokenKind::User => "tidegate login",
            TokenKind::Coordinator => "tidegate-coordinator join",
        };
        let uses = if args.uses == 1 {
            "once".to_owned()
        } else {
            format!("{} times", args.uses)
        };
        // Beside the output, so that TOKEN=$(tidegate token create …) holds the token alone.
        let note = format!(
            "shown only now; works {uses} until {}; next: {program} --server {enroll} --token TOKEN",
            time::stamp(answer.expires_at_ms)
        );
        writeln!(std::io::stderr(), "{note}").ok();
    }
    Ok(())
}

/// An enrolment address for the hint.
fn session_enroll(session: &Session) -> String {
    let context = session
        .config_folder()
        .and_then(|folder| crate::context::select(&folder, session.wanted_context()));
    context
        .ok()
        .and_then(|context| context.description.enroll.first().cloned())
        .unwrap_or_else(|| "HOST:PORT".to_owned())
}

/// Makes a token.
///
/// # Errors
/// The cluster's.
pub async fn make(
    session: &Session,
    kind: &str,
    labels: &[String],
    ttl: Span,
    uses: u32,
    name: &str,
) -> Result<api::CreateTokenResponse> {
    let client = session.client().await?;
    let request = api::CreateTokenRequest {
        uses,
        name: name.to_owned(),
        ..request_of(kind, labels, ttl)?
    };
    rpc!(client, tokens_client::TokensClient, create, request).await
}

fn request_of(kind: &str, labels: &[String], ttl: Span) -> Result<api::CreateTokenRequest> {
    Ok(api::CreateTokenRequest {
        request_id: entropy::request_id()?.to_string(),
        kind: kind.to_owned(),
        labels: session::pairs("--labels", labels, true)?
            .into_iter()
            .collect(),
        ttl_ms: ttl.millis(),
        ..api::CreateTokenRequest::default()
    })
}

async fn list(session: &Session) -> Result<()> {
    let client = session.client().await?;
    let answer = rpc!(
        client,
        tokens_client::TokensClient,
        list,
        api::ListTokensRequest {}
    )
    .await?;
    session.output.emit(&answer, |wide| {
        let mut headings = vec!["ID", "KIND", "NAME", "ROLES", "USED", "EXPIRES", "LABELS"];
        if session.output.format == Format::Wide {
            headings.extend(["CREATED", "BY"]);
        }
        let now = time::now_ms();
        let mut table = Table::new(&headings);
        for token in &answer.tokens {
            let spent = token.used >= token.uses || token.expires_at_ms <= now;
            let tone = if spent { Tone::Faint } else { Tone::Plain };
            let expires = if token.expires_at_ms <= now {
                "expired".to_owned()
            } else {
                time::until(token.expires_at_ms, now)
            };
            let mut cells = vec![
                (tone, token.id.clone()),
                (tone, token.kind.clone()),
                (tone, dash(&token.name).to_owned()),
                (tone, dash(&token.roles.join(",")).to_owned()),
                (tone, format!("{}/{}", token.used, token.uses)),
                (tone, expires),
                (tone, pairs(&token.labels)),
            ];
            if wide {
                cells.push((tone, time::stamp(token.created_at_ms)));
                cells.push((tone, dash(&token.created_by).to_owned()));
            }
            table.toned(cells);
        }
        table.render(
            session.output,
            "No token. Make one with `tidegate token create agent|user|coordinator`.",
        )
    })
}

async fn delete(session: &Session, id: &str) -> Result<()> {
    id.parse::<tidegate_shared::id::TokenId>()
        .map_err(|error| {
            Failure::usage(error.to_string()).hint("`tidegate token list` shows the ids")
        })?;
    let client = session.client().await?;
    let request = api::DeleteTokenRequest {
        request_id: entropy::request_id()?.to_string(),
        id: id.to_owned(),
    };
    let answer = rpc!(client, tokens_client::TokensClient, delete, request)
        .await
        .map_err(|failure| failure.hint("`tidegate token list` shows the ids"))?;
    session
        .output
        .emit(&answer, |_| format!("token {id} deleted\n"))
}
