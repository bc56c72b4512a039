//! `tidegate audit verify`: whether a log is as the cluster wrote it. A file is checked without any
//! cluster.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use tidegate_shared::audit::export::{Checker, Flaw, Seen, Verified};
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;

use super::export;
use crate::errors::{Failure, Result};
use crate::session::Session;
use crate::time;

/// The longest line that is read: a longer one is none of an export.
const LONGEST: u64 = 4 * 1024 * 1024;

/// What to check.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate audit verify audit.jsonl\n  tidegate audit verify audit.jsonl --last-hash 1f2c…     ends where it ended when that was noted\n  tidegate audit verify                                   the log of the cluster itself"
)]
pub struct VerifyArgs {
    /// A file that `tidegate audit export` wrote; none: the cluster's log
    file: Option<PathBuf>,
    /// The hash that its last event must have
    #[arg(long, value_name = "SHA256")]
    last_hash: Option<Digest>,
}

impl VerifyArgs {
    /// Does it.
    ///
    /// # Errors
    /// The first flaw, with its line.
    pub async fn run(self, session: &Session) -> Result<()> {
        let (what, verified) = match &self.file {
            Some(path) => (path.display().to_string(), of_file(path)?),
            None => (
                "the cluster's audit log".to_owned(),
                of_cluster(session).await?,
            ),
        };
        if let Some(wanted) = self.last_hash.filter(|hash| *hash != verified.last_hash) {
            return Err(Failure::new(
                Reason::AuditBroken,
                format!(
                    "{what} ends in hash {}, not in {wanted}: it is another log, or not all of it",
                    verified.last_hash
                ),
            ));
        }
        session.output.emit(&verified, |_| told(&what, &verified))
    }
}

fn told(what: &str, found: &Verified) -> String {
    let seen = |word: &str, seen: Option<Seen>| {
        seen.map_or(String::new(), |seen| {
            let at = time::stamp(seen.at.millis());
            format!("{word:<9} {}.{} at {at}\n", seen.index, seen.ordinal)
        })
    };
    let begins = match found.previous_hash == Digest::ZERO {
        true => "from the beginning of the log".to_owned(),
        false => format!("behind the event with hash {}", found.previous_hash),
    };
    format!(
        "{what} is sound: {} events of cluster {}, {begins}\n{}{}last hash {}\n",
        found.events,
        found.cluster,
        seen("first", found.first),
        seen("last", found.last),
        found.last_hash
    )
}

/// A flaw as it is told; tampering and other files have codes of their own.
fn failure(what: &str, flaw: &Flaw) -> Failure {
    let reason = match flaw.is_tampering() {
        true => Reason::AuditBroken,
        false => Reason::AuditFile,
    };
    Failure::new(reason, format!("{what}: {flaw}"))
}

fn of_file(path: &Path) -> Result<Verified> {
    let what = path.display().to_string();
    let unreadable = |error: &std::io::Error| {
        Failure::new(Reason::AuditFile, format!("{what} cannot be read: {error}"))
    };
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    let mut reader = BufReader::new(file);
    let mut checker = Checker::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = reader.by_ref().take(LONGEST);
        let read = limited.read_until(b'\n', &mut line);
        let read = read.map_err(|error| unreadable(&error))?;
        if read == 0 {
            break;
        }
        let checked = match line.strip_suffix(b"\n") {
            Some(whole) => checker.line(whole),
            None if read as u64 == LONGEST => checker.line(&line),
            None => checker.unended(&line),
        };
        checked.map_err(|flaw| failure(&what, &flaw))?;
    }
    checker.finish().map_err(|flaw| failure(&what, &flaw))
}

async fn of_cluster(session: &Session) -> Result<Verified> {
    let what = "the cluster's audit log";
    let mut checker = Checker::default();
    export::stream(session, (0, 0), |line| {
        let checked = checker.line(line.as_bytes());
        checked.map_err(|flaw| failure(what, &flaw))
    })
    .await?;
    checker.finish().map_err(|flaw| failure(what, &flaw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_told_apart_from_broken_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let said = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            of_file(&path).unwrap_err().render(false)
        };
        assert!(said(b"").contains("it is empty") && said(b"").contains("TG-1583"));
        assert!(said(b"kind: scope\n").contains("is not the beginning"));
        assert!(said(&[0xff; 100]).contains("TG-1583"));
        let missing = of_file(&folder.path().join("none")).unwrap_err();
        assert!(missing.render(false).contains("cannot be read"));
    }
}
