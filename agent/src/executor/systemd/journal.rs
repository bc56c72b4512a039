//! The output of instances as the journal has it, read back with journalctl: the last words of one
//! that ended, lines for people who ask for logs.
//!
//! The journal does not tell standard output and error apart; both are told as one stream.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tidegate_agent_core::place::InstanceKey;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;
use tracing::debug;

use super::super::output::shorten;
use super::unit_name;

/// The word on the wire for what an instance printed.
pub const STREAM: &str = "journal";

/// Lines that go into the story of an exit.
const LAST_LINES: &str = "10";
/// How long journalctl may take.
const LIMIT: Duration = Duration::from_secs(10);

/// One line of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its unit.
    pub unit: String,
    /// Where it is in the journal.
    pub cursor: String,
    /// What was printed.
    pub text: String,
}

/// The last lines that a unit printed since `since` (microseconds since 1970), oldest first; nothing:
/// it printed nothing, or there is no journal to read. The time tells runs apart, because lines of
/// a process that was gone when the journal read them carry the unit but not the run.
pub async fn last_words(unit: &str, since: u64) -> Option<String> {
    // What was printed a moment ago may still be on its way into the journal.
    journalctl(&["--sync"]).await;
    let own = format!("_SYSTEMD_UNIT={unit}");
    let since = format!("--since=@{}.{:06}", since / 1_000_000, since % 1_000_000);
    read(&["--output=cat", "--lines", LAST_LINES, &since, &own]).await
}

/// What systemd itself said last about a run of a unit.
pub async fn of_manager(unit: &str, invocation: &str) -> Option<String> {
    journalctl(&["--sync"]).await;
    let unit = format!("UNIT={unit}");
    let run = format!("INVOCATION_ID={invocation}");
    let said = read(&["--output=cat", "--lines", "4", "_PID=1", &unit, &run]).await?;
    // The cause comes first; that the unit failed is known.
    let line = said.lines().find(|line| line.contains("Failed"));
    let line = line.or_else(|| said.lines().next())?;
    Some(shorten(line))
}

/// The last lines of an instance, over all its runs.
pub async fn tail(key: &InstanceKey, lines: usize) -> Vec<Line> {
    let own = format!("_SYSTEMD_UNIT={}", unit_name(key));
    let lines = lines.to_string();
    let text = read(&["--output=json", "--lines", &lines, &own]).await;
    let text = text.unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

/// Where the journal ends now.
pub async fn end() -> Option<String> {
    let text = read(&["--output=json", "--lines=1"]).await?;
    text.lines().find_map(cursor_of)
}

fn cursor_of(line: &str) -> Option<String> {
    let entry: Entry = serde_json::from_str(line).ok()?;
    Some(entry.cursor)
}

/// Lines of all instances of the host, and of other units, as they come.
pub struct Follow {
    /// Ends journalctl with this value.
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Follow {
    /// Begins behind `cursor`, or with what comes from now on. None: there is no journal to read.
    pub fn begin(cursor: Option<&str>) -> Option<Self> {
        let mut command = command();
        command.args(["--follow", "--output=json"]);
        match cursor {
            Some(cursor) => command
                .arg("--lines=all")
                .arg(format!("--after-cursor={cursor}")),
            None => command.arg("--lines=0"),
        };
        // Lines of a process that is gone already carry their unit, but not its slice.
        command.args(["_SYSTEMD_SLICE=tidegate.slice", "+", "_TRANSPORT=stdout"]);
        let mut child = command.stderr(Stdio::null()).spawn().ok()?;
        let stdout = child.stdout.take()?;
        Some(Self {
            _child: child,
            lines: BufReader::new(stdout).lines(),
        })
    }

    /// The next line; none: journalctl has ended.
    pub async fn next(&mut self) -> Option<Line> {
        loop {
            let line = self.lines.next_line().await.ok()??;
            if let Some(line) = parse(&line) {
                return Some(line);
            }
        }
    }
}

fn command() -> Command {
    let mut command = Command::new("journalctl");
    command
        .args(["--no-pager", "--quiet"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// What journalctl prints; none: it could not.
async fn journalctl(arguments: &[&str]) -> Option<String> {
    let output = timeout(LIMIT, command().args(arguments).output()).await;
    match output {
        Ok(Ok(output)) if output.status.success() => {
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            debug!(said, "the journal cannot be read");
            None
        }
        Ok(Err(error)) => {
            debug!(%error, "journalctl cannot be run");
            None
        }
        Err(_) => {
            debug!("journalctl does not end");
            None
        }
    }
}

async fn read(arguments: &[&str]) -> Option<String> {
    let text = journalctl(arguments).await?;
    let lines: Vec<String> = text.lines().map(shorten).collect();
    let text = if arguments.contains(&"--output=json") {
        text
    } else {
        lines.join("\n")
    };
    (!text.is_empty()).then_some(text)
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "__CURSOR")]
    cursor: String,
    #[serde(rename = "_SYSTEMD_UNIT", default)]
    unit: String,
    #[serde(rename = "MESSAGE", default)]
    message: Message,
}

/// A text; or, if it was none, its bytes.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Message {
    Text(String),
    Bytes(Vec<u8>),
    #[default]
    Nothing,
}

fn parse(line: &str) -> Option<Line> {
    let entry: Entry = serde_json::from_str(line).ok()?;
    let text = match entry.message {
        Message::Text(text) => text,
        Message::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Message::Nothing => return None,
    };
    Some(Line {
        unit: entry.unit,
        cursor: entry.cursor,
        text: shorten(&text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_also_when_they_are_no_text() {
        let line = parse(
            r#"{"__CURSOR":"s=1;i=2","_SYSTEMD_UNIT":"tidegate-a-b-0.service","MESSAGE":"one"}"#,
        );
        let line = line.unwrap();
        assert_eq!(
            (line.text.as_str(), line.cursor.as_str()),
            ("one", "s=1;i=2")
        );
        assert_eq!(line.unit, "tidegate-a-b-0.service");
        let bytes = parse(r#"{"__CURSOR":"c","MESSAGE":[104,105,255]}"#).unwrap();
        assert_eq!(bytes.text, "hi\u{fffd}");
        assert_eq!(parse(r#"{"__CURSOR":"c","MESSAGE":null}"#), None);
        assert_eq!(parse("-- No entries --"), None);
    }
}
