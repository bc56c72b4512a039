//! Releases on disk: fetched, verified, unpacked, kept, removed.
//!
//! A release is there or not: everything happens in `releases/.work/`, is synced, and is renamed to
//! `releases/<digest>/` at the end. What a crash leaves in `.work` is removed at the next start,
//! but for downloads that were cut short: the next staging goes on where they end.
//! Nothing is activated here.

pub mod coordinated;
pub mod fetch;
pub(crate) mod pieces;
pub mod places;
pub mod unpack;
pub mod web;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use tidegate_shared::assignment::{AssetWish, PermanentErrorKind};
use tidegate_shared::digest::Digest;
use tidegate_shared::spec::AssetKind;
use tracing::info;

use crate::files;
use fetch::{Patience, Source};

/// Why a release is not there. Nothing of it is left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StageError {
    /// None: trying again may help.
    pub kind: Option<PermanentErrorKind>,
    /// One line for a person.
    pub message: String,
}

impl StageError {
    /// One that trying again may cure.
    pub fn transient(message: impl Into<String>) -> Self {
        Self {
            kind: None,
            message: message.into(),
        }
    }

    /// One that it will not.
    pub fn permanent(kind: PermanentErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind: Some(kind),
            message: message.into(),
        }
    }
}

/// The releases of an agent.
pub struct ReleaseStore {
    releases: PathBuf,
    /// Most bytes that one file may take; none: as many as the disk has. Tests set it.
    quota: Option<u64>,
    patience: Patience,
    /// One staging per digest at a time.
    locks: Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl ReleaseStore {
    /// The store in a folder; what an interrupted unpacking left is removed.
    ///
    /// # Errors
    /// The folder cannot be made or cleared.
    pub fn open(releases: PathBuf) -> io::Result<Self> {
        files::make_folder(&releases, 0o755)?;
        let work = releases.join(".work");
        files::make_folder(&work, 0o700)?;
        for entry in std::fs::read_dir(&work)? {
            let path = entry?.path();
            if !is_part(&path) {
                files::remove(&path)?;
            }
        }
        Ok(Self {
            releases,
            quota: None,
            patience: Patience::default(),
            locks: Mutex::default(),
        })
    }

    /// The same with a disk that holds `bytes` per file.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn with_quota(mut self, bytes: u64) -> Self {
        self.quota = Some(bytes);
        self
    }

    /// Where the release of a digest is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.releases.join(digest.to_string())
    }

    /// Whether it is there.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_dir()
    }

    /// Bytes left for releases.
    pub fn room(&self) -> u64 {
        free_bytes(&self.releases, self.quota)
    }

    /// Every release that is there.
    pub fn list(&self) -> Vec<Digest> {
        let entries = std::fs::read_dir(&self.releases).into_iter().flatten();
        let name = |entry: io::Result<std::fs::DirEntry>| {
            let name = entry.ok()?.file_name();
            name.to_str()?.parse().ok()
        };
        entries.filter_map(name).collect()
    }

    /// Downloads that were cut short, by whatever.
    pub fn parts(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.releases.join(".work"));
        let paths = entries.into_iter().flatten().flatten().map(|e| e.path());
        paths.filter(|path| is_part(path)).collect()
    }

    /// Removes the release of a digest; nothing there is no error.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self, digest: &Digest) -> io::Result<()> {
        // Renamed first, so that a removal that is cut short leaves no half of a release.
        let doomed = self.releases.join(".work").join(format!("gone-{digest}"));
        files::remove(&doomed)?;
        match std::fs::rename(self.path(digest), &doomed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        files::remove(&doomed)
    }

    /// Brings a release here: fetch, verify, unpack. Nothing to do if it is there.
    ///
    /// # Errors
    /// Why not; then no release was changed. What was fetched stays for the next try, unless no
    /// other try can help.
    pub async fn stage(&self, wish: &AssetWish, source: &dyn Source) -> Result<(), StageError> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(wish.sha256).or_default())
        };
        let _one_at_a_time = lock.lock().await;
        if self.has(&wish.sha256) {
            return Ok(());
        }
        let work = self.releases.join(".work");
        let part = work.join(format!("{}.part", wish.sha256));
        let tree = work.join(wish.sha256.to_string());
        let result = self.stage_into(wish, source, &part, &tree).await;
        let is_for_later = matches!(&result, Err(error) if error.kind.is_none())
            && std::fs::metadata(&part).is_ok_and(|found| found.len() > 0);
        for leftover in [(!is_for_later).then_some(&part), Some(&tree)]
            .into_iter()
            .flatten()
        {
            if let Err(error) = files::remove(leftover) {
                tracing::warn!(path = %leftover.display(), %error, "a leftover cannot be removed");
            }
        }
        if result.is_ok() {
            info!(asset = %wish.name, digest = %wish.sha256.short(), "release staged");
        }
        result
    }

    async fn stage_into(
        &self,
        wish: &AssetWish,
        source: &dyn Source,
        part: &Path,
        tree: &Path,
    ) -> Result<(), StageError> {
        let (path, folder) = (part.to_path_buf(), self.releases.clone());
        let (size, quota) = (wish.size, self.quota);
        let opened =
            tokio::task::spawn_blocking(move || PartWriter::open(path, folder, size, quota));
        let mut writer = opened
            .await
            .unwrap_or_else(|_| Err(StageError::transient("opening was interrupted")))?;
        let (free, needed) = (self.room(), wish.size - writer.held().1);
        if free < needed {
            return Err(disk_full(&self.releases, needed, free));
        }
        fetch::fetch(wish, source, &mut writer, self.patience).await?;
        writer.finish()?;
        let (kind, size) = (wish.kind, wish.size);
        let (part, tree) = (part.to_path_buf(), tree.to_path_buf());
        let target = self.path(&wish.sha256);
        let name = wish.name.to_string();
        let (folder, quota) = (self.releases.clone(), self.quota);
        let work = tokio::task::spawn_blocking(move || {
            let full = |error: &io::Error| {
                let needed = size.max(unpack::needed(error));
                disk_full(&folder, needed, free_bytes(&folder, quota))
            };
            match kind {
                AssetKind::Archive => unpack::unpack(&part, &tree, size, &full)?,
                AssetKind::Binary => unpack::place_binary(&part, &tree, &name, &full)?,
            }
            publish(&tree, &target).map_err(|error| storage_error(&error, &target, &full))
        });
        work.await
            .unwrap_or_else(|_| Err(StageError::transient("unpacking was interrupted")))
    }
}

/// Whether it is a download, whole or not.
fn is_part(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "part")
}

/// Makes an unpacked tree the release, durably.
fn publish(tree: &Path, target: &Path) -> io::Result<()> {
    let folder = File::open(tree)?;
    // One call for the whole file system is cheaper than one per file.
    rustix::fs::syncfs(&folder)?;
    std::fs::rename(tree, target)?;
    files::sync_parent(target)
}

/// Free bytes for this user on the file system of a folder.
pub fn free_bytes(folder: &Path, quota: Option<u64>) -> u64 {
    let free = rustix::fs::statvfs(folder)
        .map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    quota.map_or(free, |quota| quota.min(free))
}

fn disk_full(folder: &Path, needed: u64, free: u64) -> StageError {
    let message = format!(
        "the disk of {} is full: {needed} bytes are needed, {free} are free",
        folder.display()
    );
    StageError::permanent(PermanentErrorKind::DiskFull, message)
}

/// A full disk is told as that; anything else may pass.
fn storage_error(
    error: &io::Error,
    path: &Path,
    full: &dyn Fn(&io::Error) -> StageError,
) -> StageError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => full(error),
        _ => StageError::transient(format!("{}: {error}", path.display())),
    }
}

/// Takes the fetched bytes.
pub struct PartWriter {
    file: File,
    path: PathBuf,
    folder: PathBuf,
    size: u64,
    quota: Option<u64>,
    left: u64,
    /// Of what was there when it was opened, with how many bytes that is.
    held: (Sha256, u64),
}

impl PartWriter {
    /// Opens the file of a download, to go on at its end.
    fn open(
        path: PathBuf,
        folder: PathBuf,
        size: u64,
        quota: Option<u64>,
    ) -> Result<Self, StageError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let full = |_: &io::Error| disk_full(&folder, size, free_bytes(&folder, quota));
        let opened = options.mode(0o600).open(&path).and_then(|mut file| {
            let mut length = file.metadata()?.len();
            // One that is too long is of no use.
            if length > size {
                file.set_len(0)?;
                length = 0;
            }
            let mut hash = Sha256::new();
            let mut held = 0;
            let mut piece = vec![0; 64 * 1024];
            let mut whole = (&mut file).take(length);
            loop {
                match whole.read(&mut piece)? {
                    0 => break,
                    count => {
                        hash.update(&piece[..count]);
                        held += count as u64;
                    }
                }
            }
            Ok((file, (hash, held)))
        });
        let (file, held) = opened.map_err(|error| storage_error(&error, &path, &full))?;
        Ok(Self {
            file,
            left: quota.unwrap_or(u64::MAX).saturating_sub(held.1),
            path,
            folder,
            size,
            quota,
            held,
        })
    }

    /// The hash over what was there when it was opened, and how many bytes that is.
    pub fn held(&self) -> (Sha256, u64) {
        self.held.clone()
    }

    /// Writes a piece.
    ///
    /// # Errors
    /// The disk is full, or fails.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StageError> {
        let result = match self.left.checked_sub(bytes.len() as u64) {
            Some(left) => {
                self.left = left;
                self.file.write_all(bytes)
            }
            None => Err(io::Error::from(io::ErrorKind::StorageFull)),
        };
        result.map_err(|error| {
            storage_error(&error, &self.path, &|_| {
                disk_full(
                    &self.folder,
                    self.size,
                    free_bytes(&self.folder, self.quota),
                )
            })
        })
    }

    /// Forgets what was written.
    ///
    /// # Errors
    /// The disk fails.
    pub fn restart(&mut self) -> Result<(), StageError> {
        self.left = self.quota.unwrap_or(u64::MAX);
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(|error| StageError::transient(format!("{}: {error}", self.path.display())))
    }

    fn finish(self) -> Result<(), StageError> {
        self.file
            .sync_data()
            .map_err(|error| StageError::transient(format!("{}: {error}", self.path.display())))
    }
}
