//! The proxy's folder: the lock that keeps it to one process, the stored table, the log file.
//!
//! ```text
//! DIR/lock        locked by the running proxy, holds its process id
//! DIR/control     unix socket, mode 0600 (control.rs)
//! DIR/table.json  the last accepted table
//! DIR/proxy.log   the log, one older file beside it
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::FlockOperation;
use tidegate_shared::error::Reason;
use tracing::error;
use tracing_subscriber::fmt::MakeWriter;

use super::table::Table;

/// The log begins a new file at this size; one older file is kept.
const LOG_LIMIT: u64 = 8 * 1024 * 1024;

/// Why the proxy cannot have its folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another process holds the lock.
    #[error("another proxy{holder} runs in {dir}: stop it first, or use another folder ({code})", code = self.reason().code())]
    Locked {
        /// The folder.
        dir: PathBuf,
        /// " (pid N)", empty when unknown.
        holder: String,
    },
    /// The folder cannot be used.
    #[error("cannot use {path}: {reason} ({code})", code = self.reason().code())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
}

impl FolderError {
    /// Its entry in the table of error codes.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Locked { .. } | Self::Io { .. } => Reason::DataFolder,
        }
    }
}

/// The lock of a folder; free again when dropped.
#[derive(Debug)]
pub(super) struct FolderLock {
    /// The lock lives as long as an open descriptor of the file, here or in the proxy that it was passed to.
    file: File,
}

impl AsFd for FolderLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl FolderLock {
    /// Makes the folder if need be and locks it.
    pub(super) fn take(dir: &Path) -> Result<Self, FolderError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |reason| FolderError::Io { path, reason }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed(dir))?;
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let mut file = options.open(&path).map_err(failed(&path))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut text = String::new();
            // The id is a courtesy to the reader of the message.
            file.read_to_string(&mut text).ok();
            let holder = match text.trim().parse::<u32>() {
                Ok(pid) => format!(" (pid {pid})"),
                Err(_) => String::new(),
            };
            return Err(FolderError::Locked {
                dir: dir.to_owned(),
                holder,
            });
        }
        let mut lock = Self { file };
        lock.name_holder().map_err(failed(&path))?;
        Ok(lock)
    }

    /// Takes the lock that another proxy has passed.
    pub(super) fn adopt(descriptor: OwnedFd) -> Self {
        Self {
            file: File::from(descriptor),
        }
    }

    /// Writes who holds it, for people.
    pub(super) fn name_holder(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(self.file, "{}", std::process::id())
    }
}

/// The stored table.
#[derive(Clone, Debug)]
pub(super) struct TableFile {
    dir: PathBuf,
}

impl TableFile {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The stored table, `None` when there is none. One that cannot be read is set aside as
    /// `table.json.bad`, with an error in the log: serving nothing until the agent comes is better than
    /// not starting, and its content is not lost.
    pub(super) fn load(&self) -> Option<Table> {
        let path = self.dir.join("table.json");
        let reason = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(table) => return Some(table),
                Err(error) => error.to_string(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error.to_string(),
        };
        error!(path = %path.display(), reason, "the stored table cannot be read and is set aside");
        if let Err(error) = fs::rename(&path, self.dir.join("table.json.bad")) {
            error!(%error, "it could not be set aside");
        }
        None
    }

    /// Writes beside, syncs, renames, syncs the folder.
    pub(super) fn store(&self, table: &Table) -> io::Result<()> {
        let (beside, path) = (self.dir.join("table.json.new"), self.dir.join("table.json"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(table)?)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(&self.dir)?.sync_all()
    }
}

/// The log file, shared by every thread that logs.
#[derive(Clone)]
pub(super) struct LogFile(Arc<Mutex<Log>>);

struct Log {
    path: PathBuf,
    file: File,
    size: u64,
}

impl LogFile {
    pub(super) fn open(dir: &Path) -> Result<Self, FolderError> {
        let path = dir.join("proxy.log");
        let failed = |reason| FolderError::Io {
            path: path.clone(),
            reason,
        };
        let file = append_to(&path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        Ok(Self(Arc::new(Mutex::new(Log { path, file, size }))))
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if log.size >= LOG_LIMIT {
            fs::rename(&log.path, log.path.with_extension("log.1"))?;
            log.file = append_to(&log.path)?;
            log.size = 0;
        }
        let written = log.file.write(bytes)?;
        log.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogFile {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_per_folder_and_the_second_is_told_which() {
        let dir = tempfile::tempdir().expect("a folder");
        let held = FolderLock::take(dir.path()).expect("free");
        let error = FolderLock::take(dir.path()).expect_err("held").to_string();
        assert!(
            error.contains(&format!("another proxy (pid {})", std::process::id())),
            "{error}"
        );
        drop(held);
        FolderLock::take(dir.path()).expect("free again");
    }

    #[test]
    fn a_broken_table_is_set_aside_not_lost() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = TableFile::new(dir.path());
        assert_eq!(file.load(), None);
        file.store(&Table::default()).expect("stored");
        assert_eq!(file.load(), Some(Table::default()));
        fs::write(dir.path().join("table.json"), "{ half").expect("written");
        assert_eq!(file.load(), None);
        let kept = fs::read_to_string(dir.path().join("table.json.bad")).expect("set aside");
        assert_eq!(kept, "{ half");
    }

    #[test]
    fn the_log_begins_a_new_file_when_it_is_full() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut log = LogFile::open(dir.path()).expect("opens");
        log.0.lock().expect("not poisoned").size = LOG_LIMIT;
        log.write_all(b"next\n").expect("written");
        assert!(dir.path().join("proxy.log.1").exists());
        let text = fs::read_to_string(dir.path().join("proxy.log")).expect("read");
        assert_eq!(text, "next\n");
    }
}
