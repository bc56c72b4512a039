//! `tidegate audit export`: the log as lines that can be verified without the cluster.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use tidegate_proto::control::v1 as api;
use tidegate_shared::audit::Event;
use tidegate_shared::audit::export::{FORMAT, Head, Tail, line_of};
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::time::Timestamp;

use crate::errors::{Failure, Result};
use crate::rpc;
use crate::session::Session;

/// Where to, and what of it.
#[derive(Debug, Args)]
#[command(
    after_help = "The file is lines of JSON: what it is, one line for each event, and where it ends. Whoever could\nrewrite all of it could rewrite its end too: note the last hash elsewhere, it is told at the end.\n\nExamples:\n  tidegate audit export --to audit.jsonl\n  tidegate audit export --after 4711.0 --to since.jsonl     only what came after that event\n  tidegate audit verify audit.jsonl"
)]
pub struct ExportArgs {
    /// File to write; - is standard output
    #[arg(long, value_name = "FILE", default_value = "-")]
    to: PathBuf,
    /// Only events after this position of the log, INDEX.ORDINAL
    #[arg(long, value_name = "POSITION")]
    after: Option<String>,
}

/// The position that a person named; 0, 0: none.
fn position(text: Option<&str>) -> Result<(u64, u32)> {
    let Some(text) = text else { return Ok((0, 0)) };
    let read = || {
        let (index, ordinal) = text.split_once('.')?;
        Some((index.parse().ok()?, ordinal.parse().ok()?))
    };
    read().ok_or_else(|| {
        Failure::usage(format!(
            "--after \"{text}\" is no position: want INDEX.ORDINAL, as `tidegate audit list` shows it"
        ))
    })
}

/// How far an export is, told to people in one line that is written over.
#[derive(Default)]
pub struct Progress {
    total: u64,
    told: u64,
    shown: bool,
}

/// Lines between two words about progress.
const STEP: u64 = 5_000;

impl Progress {
    /// Of so many events; none is told where nobody looks.
    pub fn new(session: &Session, total: u64) -> Self {
        use std::io::IsTerminal as _;
        let looked_at = session.output.is_for_people() && std::io::stderr().is_terminal();
        Self {
            total: if looked_at { total } else { 0 },
            ..Self::default()
        }
    }

    /// So many are done.
    pub fn at(&mut self, done: u64) {
        if self.total == 0 || done < self.told + STEP {
            return;
        }
        (self.told, self.shown) = (done, true);
        let percent = (done.saturating_mul(100) / self.total.max(1)).min(100);
        // Whether anybody sees it changes nothing.
        write!(
            std::io::stderr(),
            "\r{done} of {} events, {percent} %",
            self.total
        )
        .ok();
    }

    /// The line is done with.
    pub fn end(self) {
        if self.shown {
            writeln!(std::io::stderr()).ok();
        }
    }
}

/// Everything of the cluster's log, line by line; the head comes first. Gives what the head said.
///
/// # Errors
/// The cluster's, or what `take` answers.
pub async fn stream(
    session: &Session,
    after: (u64, u32),
    mut take: impl FnMut(&str) -> Result<()>,
) -> Result<Tail> {
    let client = session.client().await?;
    let request = api::ExportAuditRequest {
        after_index: after.0,
        after_ordinal: after.1,
    };
    let mut answers = rpc!(client, audit_client::AuditClient, export, request).await?;
    let broken = |what: &str| Failure::new(Reason::Internal, format!("the export {what}"));
    let first = answers.message().await.map_err(Failure::from)?;
    let head = first.and_then(|answer| answer.head);
    let head = head.ok_or_else(|| broken("has no beginning"))?;
    let previous: Digest = head
        .previous_hash
        .parse()
        .map_err(|_| broken("begins with a hash that is none"))?;
    let mut progress = Progress::new(session, head.events);
    let head = Head {
        tidegate_audit: FORMAT,
        cluster: head.cluster_id,
        exported_at: Timestamp::from_millis(head.at_ms),
        previous_hash: previous,
    };
    let text = line_of(&head).map_err(|error| broken(&error.to_string()))?;
    take(&text)?;
    let mut tail = Tail {
        events: 0,
        last_hash: previous,
        head: Digest::of(text.as_bytes()),
    };
    while let Some(answer) = answers.message().await.map_err(Failure::from)? {
        if let Some(last) = answer.lines.last() {
            let event: Event =
                serde_json::from_str(last).map_err(|error| broken(&error.to_string()))?;
            tail.last_hash = event.hash;
        }
        for line in &answer.lines {
            take(line)?;
            tail.events += 1;
        }
        progress.at(tail.events);
    }
    progress.end();
    let text = line_of(&tail).map_err(|error| broken(&error.to_string()))?;
    take(&text)?;
    Ok(tail)
}

impl ExportArgs {
    /// Does it. A file that is named is there whole, or as it was before.
    ///
    /// # Errors
    /// The cluster's, or the file's.
    pub async fn run(self, session: &Session) -> Result<()> {
        let after = position(self.after.as_deref())?;
        if self.to == Path::new("-") {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            stream(session, after, |line| {
                writeln!(out, "{line}").map_err(|error| Failure::output(&error))
            })
            .await?;
            return out.flush().map_err(|error| Failure::output(&error));
        }
        let tail = self.to_file(session, after).await?;
        session.output.note(&format!(
            "{} events written to {}; last hash {}",
            tail.events,
            self.to.display(),
            tail.last_hash
        ))
    }

    async fn to_file(&self, session: &Session, after: (u64, u32)) -> Result<Tail> {
        let wrong = |error: &std::io::Error| {
            Failure::new(
                Reason::InvalidRequest,
                format!("{} cannot be written: {error}", self.to.display()),
            )
            .hint("name another file with --to")
        };
        let folder = match self.to.parent() {
            Some(folder) if folder != Path::new("") => folder,
            Some(_) | None => Path::new("."),
        };
        let file = tempfile::NamedTempFile::new_in(folder).map_err(|error| wrong(&error))?;
        let mut out = std::io::BufWriter::new(file);
        let tail = stream(session, after, |line| {
            writeln!(out, "{line}").map_err(|error| wrong(&error))
        })
        .await?;
        let file = out.into_inner().map_err(|error| wrong(error.error()))?;
        file.as_file().sync_all().map_err(|error| wrong(&error))?;
        file.persist(&self.to)
            .map_err(|error| wrong(&error.error))?;
        Ok(tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_shown() {
        assert_eq!(position(None).unwrap(), (0, 0));
        assert_eq!(position(Some("4711.2")).unwrap(), (4711, 2));
        for wrong in ["", "4711", "a.b", "1.2.3", "-1.0"] {
            assert!(position(Some(wrong)).is_err(), "{wrong}");
        }
    }
}
