//! `tidegate audit`: who did what, in the order of the log, and whether it is as it was written.

use clap::{Args, Subcommand};
use tidegate_proto::control::v1 as api;
use tidegate_shared::time::Span;

use crate::errors::{Failure, Result};
use crate::output::{Table, Tone, dash, printable};
use crate::session::Session;
use crate::{rpc, time};

mod export;
mod verify;

/// The verbs of the audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List events, the newest last
    List(ListArgs),
    /// Write the log with its chain of hashes to a file
    Export(export::ExportArgs),
    /// Check an exported file, without any cluster; or the cluster's own log
    Verify(verify::VerifyArgs),
}

/// Which events.
#[derive(Debug, Args)]
#[command(
    after_help = "Times are spans back from now (2h, 7d) or UTC: 2026-01-05 or 2026-01-05T09:00:00Z.\n\nExamples:\n  tidegate audit list --since 2h\n  tidegate audit list --actor ann --kind approval_granted\n  tidegate audit list --object scope/web-prod --limit 20\n  tidegate audit list --object 4k2m9xqa          a deployment by its short id"
)]
pub struct ListArgs {
    /// From this time on
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Who: a name, or user:NAME, agent:NAME, system
    #[arg(
        long,
        value_name = "WHO",
        default_value = "",
        hide_default_value = true
    )]
    actor: String,
    /// On what: KIND/NAME, a name or id, or a kind of object
    #[arg(
        long,
        value_name = "OBJECT",
        default_value = "",
        hide_default_value = true
    )]
    object: String,
    /// What happened, or its first words: deployment_running, approval
    #[arg(
        long,
        value_name = "KIND",
        default_value = "",
        hide_default_value = true
    )]
    kind: String,
    /// Only the newest so many; 0: all
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

impl AuditCommand {
    /// Does it.
    ///
    /// # Errors
    /// The cluster's, or a flaw of a log.
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::List(args) => list(session, args).await,
            Self::Export(args) => args.run(session).await,
            Self::Verify(args) => args.run(session).await,
        }
    }
}

/// A time as people write it, in Unix milliseconds; 0: none was given.
fn instant(flag: &str, text: Option<&str>) -> Result<u64> {
    let Some(text) = text else { return Ok(0) };
    if let Ok(span) = text.parse::<Span>() {
        return Ok(time::now_ms().saturating_sub(span.millis()).max(1));
    }
    time::parse_utc(text).ok_or_else(|| {
        Failure::usage(format!(
            "{flag} \"{text}\" is no time: want a span back from now such as 2h or 7d, or UTC such as 2026-01-05T09:00:00Z"
        ))
    })
}

async fn list(session: &Session, args: ListArgs) -> Result<()> {
    let client = session.client().await?;
    let (since_ms, until_ms) = (
        instant("--since", args.since.as_deref())?,
        instant("--until", args.until.as_deref())?,
    );
    if until_ms > 0 && since_ms >= until_ms {
        return Err(Failure::usage("--since is not before --until"));
    }
    let mut newest_first = Vec::new();
    let mut token = String::new();
    loop {
        let left = match args.limit {
            0 => 1_000,
            limit => limit - newest_first.len(),
        };
        let request = api::ListAuditRequest {
            since_ms,
            until_ms,
            actor: args.actor.clone(),
            object: args.object.clone(),
            kind: args.kind.clone(),
            page: Some(api::Page {
                size: u32::try_from(left.min(1_000)).unwrap_or(1_000),
                token,
            }),
        };
        let answer = rpc!(client, audit_client::AuditClient, list, request).await?;
        newest_first.extend(answer.events);
        token = answer.next_page_token;
        let is_full = args.limit > 0 && newest_first.len() >= args.limit;
        if token.is_empty() || is_full {
            break;
        }
    }
    newest_first.reverse();
    let gathered = api::EventsResponse {
        events: newest_first,
    };
    session.output.emit(&gathered, |wide| {
        table(&gathered.events, wide).render(session.output, "Nothing of that happened.")
    })
}

/// Events as a table.
pub fn table(events: &[api::Event], wide: bool) -> Table {
    let mut headings = vec![
        "POSITION", "TIME", "WHO", "WHAT", "OBJECT", "OUTCOME", "MESSAGE",
    ];
    if wide {
        headings.push("HASH");
    }
    let mut table = Table::new(&headings);
    for event in events {
        let good = event.outcome == "ok" || event.outcome.is_empty();
        let object = [event.object_kind.as_str(), event.object.as_str()].join(" ");
        let mut cells = vec![
            (Tone::Faint, format!("{}.{}", event.index, event.ordinal)),
            (Tone::Plain, time::stamp(event.at_ms)),
            (Tone::Plain, dash(&event.actor).to_owned()),
            (Tone::Strong, event.kind.clone()),
            (Tone::Plain, dash(object.trim()).to_owned()),
            (
                if good { Tone::Good } else { Tone::Bad },
                dash(&event.outcome).to_owned(),
            ),
            (Tone::Plain, printable(&event.message)),
        ];
        if wide {
            cells.push((Tone::Faint, event.hash.chars().take(12).collect()));
        }
        table.toned(cells);
    }
    table
}
