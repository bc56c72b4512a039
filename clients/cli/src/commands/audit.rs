//! `tidegate audit`: who did what, in the order of the log.

use clap::{Args, Subcommand};
use tidegate_proto::control::v1 as api;

use crate::errors::Result;
use crate::output::{Table, Tone, dash, printable};
use crate::session::Session;
use crate::{rpc, time};

/// The verbs of the audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List events, oldest first
    List(ListArgs),
}

/// Which events.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// After this position of the log
    #[arg(
        long,
        value_name = "INDEX",
        default_value_t = 0,
        hide_default_value = true
    )]
    after: u64,
    /// Only the last so many; 0: all
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

impl AuditCommand {
    /// Does it.
    ///
    /// # Errors
    /// The cluster's.
    pub async fn run(self, session: &Session) -> Result<()> {
        let Self::List(args) = self;
        let client = session.client().await?;
        let (mut index, mut ordinal) = (args.after, if args.after > 0 { u32::MAX } else { 0 });
        let mut gathered = api::EventsResponse::default();
        loop {
            let request = api::EventsRequest {
                after_index: index,
                after_ordinal: ordinal,
                limit: 1_000,
            };
            let answer = rpc!(client, cluster_client::ClusterClient, events, request).await?;
            let Some(last) = answer.events.last() else {
                break;
            };
            (index, ordinal) = (last.index, last.ordinal);
            gathered.events.extend(answer.events);
            if args.limit > 0 && gathered.events.len() > args.limit {
                let surplus = gathered.events.len() - args.limit;
                gathered.events.drain(..surplus);
            }
        }
        session.output.emit(&gathered, |wide| {
            table(&gathered.events, wide).render(session.output, "Nothing happened.")
        })
    }
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
