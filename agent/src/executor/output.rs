//! The output of instances: files that the processes write themselves, so that they go on when the
//! agent is gone; kept small by the agent, and read back for errors and for people.
//!
//! The files are opened for appending. Rotation copies the file to `.1` and cuts it to nothing,
//! which an appending writer does not notice; lines written in between may be lost from the copy.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A file that grows above this is rotated: 10 MiB.
pub const ROTATE_AT: u64 = 10 << 20;

/// Most bytes that are read back from the end at once.
const TAIL_BYTES: u64 = 1 << 20;

/// Lines that go into the story of an exit.
const LAST_LINES: usize = 10;

/// Longest line that is told.
const MAX_LINE: usize = 4_096;

/// One of the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// What hooks print; written by the agent.
    Hooks,
}

impl Stream {
    /// All.
    pub const ALL: [Self; 3] = [Self::Stdout, Self::Stderr, Self::Hooks];

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Hooks => "hooks",
        }
    }

    /// The stream's file for an instance, beside its own folder.
    pub fn path(self, instance_dir: &Path) -> PathBuf {
        let mut name = instance_dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.log", self.as_str()));
        instance_dir.with_file_name(name)
    }
}

/// Opens a stream's file for a process to append to.
///
/// # Errors
/// What the system says.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Rotates a file that has grown too large.
///
/// # Errors
/// What the system says; the file then stays as it is.
pub fn rotate(path: &Path, limit: u64) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if found.len() > limit => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".1");
    std::fs::copy(path, path.with_file_name(name))?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

/// The last lines of a file, oldest first; nothing if it is not there.
pub fn tail(path: &Path, lines: usize) -> Vec<String> {
    read_tail(path, lines).unwrap_or_default()
}

fn read_tail(path: &Path, lines: usize) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    Ok(all[from..].iter().map(|line| shorten(line)).collect())
}

/// A line of bearable length.
pub fn shorten(line: &str) -> String {
    let mut end = line.len().min(MAX_LINE);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line[..end].to_owned()
}

/// The last words of an instance, for the story of its exit: of standard error, or of standard
/// output if that is empty.
pub fn last_words(instance_dir: &Path) -> Option<String> {
    let of = |stream: Stream| tail(&stream.path(instance_dir), LAST_LINES);
    let lines = Some(of(Stream::Stderr))
        .filter(|lines| !lines.is_empty())
        .unwrap_or_else(|| of(Stream::Stdout));
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn an_appending_writer_survives_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = Stream::Stdout.path(&dir.path().join("0"));
        let mut writer = open(&path).unwrap();
        writer.write_all(b"one\ntwo\nthree\n").unwrap();
        assert_eq!(tail(&path, 2), ["two", "three"]);
        rotate(&path, 100).unwrap();
        assert_eq!(tail(&path, 9).len(), 3);
        rotate(&path, 5).unwrap();
        writer.write_all(b"four\n").unwrap();
        assert_eq!(tail(&path, 9), ["four"]);
        assert_eq!(tail(&dir.path().join("0.stdout.log.1"), 9).len(), 3);
    }
}
