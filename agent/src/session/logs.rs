//! Answers to asks for logs: the last lines of instances' output, and what follows.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidegate_agent_core::place::InstanceKey;
use tidegate_proto::agent::v1 as wire;
use tokio::sync::{mpsc, watch};

use crate::executor::instance_dir;
use crate::executor::output::{self, Stream};

/// Between two looks at files that are followed.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);
/// Most lines of history per file.
const MAX_TAIL: usize = 10_000;
/// Most lines in one message.
const MAX_LINES: usize = 500;
/// Most bytes that are read of one file at one look.
const MAX_READ: u64 = 256 << 10;

/// Positions in the files that are told.
type Positions = BTreeMap<(InstanceKey, &'static str), u64>;

/// Tells the lines into a channel; returns when all is told or nobody listens.
pub async fn tell(
    ask: &wire::LogsAsk,
    instances: &Path,
    known: &watch::Receiver<Arc<Vec<InstanceKey>>>,
    chunks: &mpsc::Sender<wire::AnswerChunk>,
) {
    let mut positions = Positions::new();
    let mut first = true;
    loop {
        let keys = Arc::clone(&known.borrow());
        let wanted = keys.iter().filter(|key| {
            key.place.scope.as_str() == ask.scope
                && (ask.deployment.is_empty() || key.place.deployment.to_string() == ask.deployment)
        });
        for key in wanted {
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
                if !send_lines(chunks, key, stream, texts).await {
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

async fn send_lines(
    chunks: &mpsc::Sender<wire::AnswerChunk>,
    key: &InstanceKey,
    stream: Stream,
    texts: Vec<String>,
) -> bool {
    for part in texts.chunks(MAX_LINES) {
        let lines = part.iter().map(|text| wire::LogLine {
            scope: key.place.scope.to_string(),
            deployment: key.place.deployment.to_string(),
            instance: key.id(),
            stream: stream.as_str().to_owned(),
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
        tell(&ask, dir.path(), &known, &sender).await;
        drop(sender);
        assert_eq!(lines(&mut chunks, 9).await, ["two", "three"]);

        ask.follow = true;
        let (sender, mut chunks) = mpsc::channel(4);
        let instances = dir.path().to_path_buf();
        let teller = tokio::spawn(async move {
            tell(&ask, &instances, &known, &sender).await;
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
