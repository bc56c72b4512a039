//! Answers to asks for logs: the last lines of instances' output, and what follows, from files or
//! from the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidegate_agent_core::place::InstanceKey;
use tidegate_proto::agent::v1 as wire;
use tokio::sync::{mpsc, watch};

use crate::executor::output::{self, Stream};
use crate::executor::systemd::{journal, unit_name};
use crate::executor::{OutputPlace, instance_dir};

/// Between two looks at files that are followed.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);
/// Most lines of history per file.
const MAX_TAIL: usize = 10_000;
/// Most lines in one message.
const MAX_LINES: usize = 500;
/// Most bytes that are read of one file at one look.
const MAX_READ: u64 = 256 << 10;

/// Where instances' output is.
#[derive(Debug, Clone)]
pub struct Output {
    /// Files or journal.
    pub place: OutputPlace,
    /// The folder with the files.
    pub instances: PathBuf,
}

/// Tells the lines into a channel; returns when all is told or nobody listens.
pub async fn tell(
    ask: &wire::LogsAsk,
    output: &Output,
    known: &watch::Receiver<Arc<Vec<InstanceKey>>>,
    chunks: &mpsc::Sender<wire::AnswerChunk>,
) {
    match output.place {
        OutputPlace::Files => tell_files(ask, &output.instances, known, chunks).await,
        OutputPlace::Journal => tell_journal(ask, known, chunks).await,
    }
}

/// Positions in the files that are told.
type Positions = BTreeMap<(InstanceKey, &'static str), u64>;

async fn tell_files(
    ask: &wire::LogsAsk,
    instances: &Path,
    known: &watch::Receiver<Arc<Vec<InstanceKey>>>,
    chunks: &mpsc::Sender<wire::AnswerChunk>,
) {
    let mut positions = Positions::new();
    let mut first = true;
    loop {
        let keys = Arc::clone(&known.borrow());
        for key in keys.iter().filter(|key| is_wanted(ask, key)) {
            for stream in Stream::ALL {
                let path = stream.path(&instance_dir(instances, key));
                let slot = (key.clone(), stream.as_str());
                let texts = match positions.get_mut(&slot) {
                    Some(position) => read_on(&path, position),
                    None => {
                        let length = std::fs::metadata(&path).map_or(0, |found| found.len());
                        let lines = if first {
                            ask.tail_lines as usize
                        } else {
                            MAX_TAIL
                        };
                        positions.insert(slot, length);
                        output::tail(&path, lines.min(MAX_TAIL))
                    }
                };
                if !send_lines(chunks, key, stream.as_str(), texts).await {
                    return;
                }
            }
        }
        if !ask.follow {
            return;
        }
        first = false;
        tokio::select! {
            () = chunks.closed() => return,
            () = tokio::time::sleep(FOLLOW_EVERY) => {}
        }
    }
}

fn is_wanted(ask: &wire::LogsAsk, key: &InstanceKey) -> bool {
    key.place.scope.as_str() == ask.scope
        && (ask.deployment.is_empty() || key.place.deployment.to_string() == ask.deployment)
}

/// As [`tell`], of what instances printed into the journal. It follows from a point before the last
/// lines, so that nothing falls between, and leaves out what was told with those.
async fn tell_journal(
    ask: &wire::LogsAsk,
    known: &watch::Receiver<Arc<Vec<InstanceKey>>>,
    chunks: &mpsc::Sender<wire::AnswerChunk>,
) {
    let point = journal::end().await;
    let mut told = BTreeSet::new();
    let keys = Arc::clone(&known.borrow());
    for key in keys.iter().filter(|key| is_wanted(ask, key)) {
        let lines = journal::tail(key, (ask.tail_lines as usize).min(MAX_TAIL)).await;
        let (cursors, texts): (Vec<_>, Vec<_>) = lines
            .into_iter()
            .map(|line| (line.cursor, line.text))
            .unzip();
        told.extend(cursors);
        if !send_lines(chunks, key, journal::STREAM, texts).await {
            return;
        }
    }
    if !ask.follow {
        return;
    }
    let Some(mut follow) = journal::Follow::begin(point.as_deref()) else {
        let chunk = wire::AnswerChunk {
            error: "the journal of this host cannot be read".to_owned(),
            ..wire::AnswerChunk::default()
        };
        chunks.send(chunk).await.ok();
        return;
    };
    loop {
        let line = tokio::select! {
            () = chunks.closed() => return,
            line = follow.next() => line,
        };
        let Some(line) = line else { return };
        let keys = Arc::clone(&known.borrow());
        let of = |key: &&InstanceKey| is_wanted(ask, key) && unit_name(key) == line.unit;
        let Some(key) = keys.iter().find(of) else {
            continue;
        };
        if told.remove(&line.cursor) {
            continue;
        }
        if !send_lines(chunks, key, journal::STREAM, vec![line.text]).await {
            return;
        }
    }
}

async fn send_lines(
    chunks: &mpsc::Sender<wire::AnswerChunk>,
    key: &InstanceKey,
    stream: &str,
    texts: Vec<String>,
) -> bool {
    for part in texts.chunks(MAX_LINES) {
        let lines = part.iter().map(|text| wire::LogLine {
            scope: key.place.scope.to_string(),
            deployment: key.place.deployment.to_string(),
            instance: key.id(),
            stream: stream.to_owned(),
            text: text.clone(),
        });
        let chunk = wire::AnswerChunk {
            lines: lines.collect(),
            ..wire::AnswerChunk::default()
        };
        if chunks.send(chunk).await.is_err() {
            return false;
        }
    }
    true
}

/// The whole lines after a position, which moves behind them. A file that became shorter was
/// rotated and is read from its beginning.
fn read_on(path: &Path, position: &mut u64) -> Vec<String> {
    let read = || -> std::io::Result<(u64, Vec<u8>)> {
        let mut file = std::fs::File::open(path)?;
        let from = if file.metadata()?.len() < *position {
            0
        } else {
            *position
        };
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(MAX_READ).read_to_end(&mut bytes)?;
        Ok((from, bytes))
    };
    let Ok((from, bytes)) = read() else {
        return Vec::new();
    };
    let whole = match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(last) => &bytes[..=last],
        // A line longer than a look is told in parts.
        None if bytes.len() as u64 == MAX_READ => &bytes[..],
        None => &[],
    };
    *position = from + whole.len() as u64;
    String::from_utf8_lossy(whole)
        .lines()
        .map(output::shorten)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::conformance::launch;
    use std::io::Write as _;
    use tidegate_shared::spec::RunSpec;

    async fn lines(chunks: &mut mpsc::Receiver<wire::AnswerChunk>, count: usize) -> Vec<String> {
        let mut texts = Vec::new();
        while texts.len() < count {
            let chunk = tokio::time::timeout(Duration::from_secs(20), chunks.recv()).await;
            let Some(chunk) = chunk.expect("lines in time") else {
                break;
            };
            texts.extend(chunk.lines.into_iter().map(|line| line.text));
        }
        texts
    }

    #[tokio::test]
    async fn a_tail_is_told_and_what_follows_also_after_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let key = launch(0, dir.path(), RunSpec::default()).instance;
        let path = Stream::Stdout.path(&instance_dir(dir.path(), &key));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut writer = output::open(&path).unwrap();
        writer.write_all(b"one\ntwo\nthree\n").unwrap();
        let (_known, known) = watch::channel(Arc::new(vec![key]));
        let mut ask = wire::LogsAsk {
            scope: "shop-eu".into(),
            tail_lines: 2,
            ..wire::LogsAsk::default()
        };

        let (sender, mut chunks) = mpsc::channel(4);
        tell_files(&ask, dir.path(), &known, &sender).await;
        drop(sender);
        assert_eq!(lines(&mut chunks, 9).await, ["two", "three"]);

        ask.follow = true;
        let (sender, mut chunks) = mpsc::channel(4);
        let instances = dir.path().to_path_buf();
        let teller = tokio::spawn(async move {
            tell_files(&ask, &instances, &known, &sender).await;
        });
        assert_eq!(lines(&mut chunks, 2).await, ["two", "three"]);
        writer.write_all(b"four\nhalf").unwrap();
        assert_eq!(lines(&mut chunks, 1).await, ["four"]);
        output::rotate(&path, 1).unwrap();
        writer.write_all(b"five\n").unwrap();
        assert_eq!(lines(&mut chunks, 1).await, ["five"]);
        drop(chunks);
        teller.await.unwrap();
    }
}
