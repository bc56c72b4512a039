//! The built-in store of assets: one file per blob, named by its SHA-256.
//!
//! A blob appears under its name only when every byte of it was checked and is on disk; whatever
//! breaks off leaves at most a temporary file, which the next start removes. Spreading blobs over
//! the coordinators is done by [`crate::http`] and [`crate::blob_sync`], not here.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};
use tidegate_shared::digest::Digest;
use tidegate_shared::time::Timestamp;
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

/// Why a blob was not stored or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The bytes are not those of the digest.
    #[error("the bytes have the SHA-256 {found}, not {wanted}: nothing was kept")]
    DigestMismatch {
        /// What was asked for.
        wanted: Digest,
        /// What the bytes have.
        found: Digest,
    },
    /// More bytes than are taken.
    #[error("the blob is larger than the {limit} bytes that the store takes")]
    TooLarge {
        /// Bytes.
        limit: u64,
    },
    /// No room for it.
    #[error("the disk of the store is full ({free} bytes are free): nothing was kept")]
    DiskFull {
        /// Bytes.
        free: u64,
    },
    /// The system refused.
    #[error("cannot {action} blob {digest}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Of which blob.
        digest: Digest,
        /// The system's answer.
        source: io::Error,
    },
}

/// Free bytes for this user where a folder lies.
fn free(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The store of one coordinator. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blobs {
    folder: Arc<Path>,
    limit: u64,
    counter: Arc<AtomicU64>,
}

impl Blobs {
    /// Opens the store, making its folder and removing what earlier uploads left behind.
    ///
    /// # Errors
    /// The system's.
    pub fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                std::fs::remove_file(path)?;
            }
        }
        Ok(Self {
            folder: folder.into(),
            limit,
            counter: Arc::new(AtomicU64::new(0)),
        })
    }

    /// Bytes that a blob may have at most.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    fn failed(
        &self,
        action: &'static str,
        digest: Digest,
    ) -> impl FnOnce(io::Error) -> BlobError + use<> {
        let folder = self.folder.clone();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlobError::DiskFull {
                free: free(&folder),
            },
            _ => BlobError::Io {
                action,
                digest,
                source,
            },
        }
    }

    /// Refuses what cannot fit before any of it is taken.
    ///
    /// # Errors
    /// [`BlobError::TooLarge`], [`BlobError::DiskFull`].
    pub fn check_room(&self, bytes: u64) -> Result<(), BlobError> {
        if bytes > self.limit {
            return Err(BlobError::TooLarge { limit: self.limit });
        }
        let free = free(&self.folder);
        if bytes > free {
            return Err(BlobError::DiskFull { free });
        }
        Ok(())
    }

    /// Every blob that is here, with the time at which it was stored or last claimed.
    ///
    /// # Errors
    /// The system's.
    pub async fn list(&self) -> io::Result<Vec<(Digest, Timestamp)>> {
        let folder = self.folder.clone();
        let listing = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for entry in std::fs::read_dir(&folder)? {
                let entry = entry?;
                let name = entry.file_name();
                let Some(digest) = name.to_str().and_then(|name| name.parse().ok()) else {
                    continue;
                };
                // One that goes meanwhile is none.
                let Ok(changed) = entry.metadata().and_then(|data| data.modified()) else {
                    continue;
                };
                let since = changed.duration_since(std::time::UNIX_EPOCH);
                let millis = since.unwrap_or_default().as_millis();
                let at = Timestamp::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
                found.push((digest, at));
            }
            Ok(found)
        });
        listing
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// Somebody asks for a blob in order to use it: its time begins anew. Nothing is said if it is
    /// not here.
    pub fn claim(&self, digest: &Digest) {
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = rustix::fs::Timestamps {
            last_access: now,
            last_modification: now,
        };
        let flags = rustix::fs::AtFlags::empty();
        // A claim that cannot be written leaves the blob at least as long as before.
        rustix::fs::utimensat(rustix::fs::CWD, self.path(digest), &times, flags).ok();
    }

    /// Removes a blob; transfers that are under way come to their end.
    ///
    /// # Errors
    /// The system's.
    pub async fn remove(&self, digest: &Digest) -> io::Result<()> {
        match fs::remove_file(self.path(digest)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// The size of a blob, if it is here.
    pub async fn size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.path(digest)).await.ok().map(|m| m.len())
    }

    /// Begins to take a blob.
    ///
    /// # Errors
    /// [`BlobError::Io`], [`BlobError::DiskFull`].
    pub async fn receive(&self, digest: Digest) -> Result<Incoming, BlobError> {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let temporary = Temporary(self.folder.join(format!("{digest}.{number}.tmp")));
        let file = File::create(&temporary.0)
            .await
            .map_err(self.failed("write", digest))?;
        Ok(Incoming {
            blobs: self.clone(),
            digest,
            temporary,
            file,
            hash: Sha256::new(),
            length: 0,
        })
    }

    /// Opens a blob for reading from `start`.
    ///
    /// # Errors
    /// [`BlobError::Io`]; `NotFound` inside it when the blob is not here.
    pub async fn read(
        &self,
        digest: Digest,
        start: u64,
        length: u64,
    ) -> Result<tokio::io::Take<File>, BlobError> {
        let mut file = File::open(self.path(&digest))
            .await
            .map_err(self.failed("read", digest))?;
        file.seek(io::SeekFrom::Start(start))
            .await
            .map_err(self.failed("read", digest))?;
        Ok(file.take(length))
    }
}

/// A temporary file that goes with its value.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already after the rename; a file that stays is removed at the next start.
        std::fs::remove_file(&self.0).ok();
    }
}

/// A blob on its way in. Dropping it keeps nothing.
#[derive(Debug)]
pub struct Incoming {
    blobs: Blobs,
    digest: Digest,
    temporary: Temporary,
    file: File,
    hash: Sha256,
    length: u64,
}

impl Incoming {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.length += bytes.len() as u64;
        if self.length > self.blobs.limit {
            return Err(BlobError::TooLarge {
                limit: self.blobs.limit,
            });
        }
        self.hash.update(bytes);
        self.file
            .write_all(bytes)
            .await
            .map_err(self.blobs.failed("write", self.digest))
    }

    /// Checks the digest, puts everything on disk, and gives the blob its name: its size.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn finish(mut self) -> Result<u64, BlobError> {
        let found = Digest::from_bytes(self.hash.clone().finalize().into());
        if found != self.digest {
            return Err(BlobError::DigestMismatch {
                wanted: self.digest,
                found,
            });
        }
        let blobs = self.blobs.clone();
        let io = |action| blobs.failed(action, self.digest);
        self.file.flush().await.map_err(io("write"))?;
        self.file.sync_all().await.map_err(io("write"))?;
        fs::rename(&self.temporary.0, self.blobs.path(&self.digest))
            .await
            .map_err(io("name"))?;
        let folder = File::open(&self.blobs.folder).await.map_err(io("name"))?;
        folder.sync_all().await.map_err(io("name"))?;
        Ok(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store() -> (tempfile::TempDir, Blobs) {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path(), 1_000).unwrap();
        (folder, blobs)
    }

    fn files(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[tokio::test]
    async fn a_blob_reads_back_whole_and_in_part() {
        let (_folder, blobs) = store().await;
        let digest = Digest::of(b"hello world");
        let mut incoming = blobs.receive(digest).await.unwrap();
        incoming.push(b"hello ").await.unwrap();
        incoming.push(b"world").await.unwrap();
        assert_eq!(blobs.size(&digest).await, None);
        assert_eq!(incoming.finish().await.unwrap(), 11);
        assert_eq!(blobs.size(&digest).await, Some(11));
        let mut text = String::new();
        let mut part = blobs.read(digest, 6, 3).await.unwrap();
        part.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "wor");
    }

    #[tokio::test]
    async fn wrong_bytes_too_many_and_half_an_upload_leave_nothing() {
        let (folder, blobs) = store().await;
        let digest = Digest::of(b"right");
        let mut wrong = blobs.receive(digest).await.unwrap();
        wrong.push(b"wrong").await.unwrap();
        assert!(matches!(
            wrong.finish().await,
            Err(BlobError::DigestMismatch { .. })
        ));
        let mut large = blobs.receive(digest).await.unwrap();
        assert!(matches!(
            large.push(&[0; 1_001]).await,
            Err(BlobError::TooLarge { limit: 1_000 })
        ));
        drop(large);
        let mut half = blobs.receive(digest).await.unwrap();
        half.push(b"rig").await.unwrap();
        drop(half);
        assert_eq!(files(folder.path()), 0);
        assert_eq!(blobs.size(&digest).await, None);
    }

    #[tokio::test]
    async fn blobs_are_listed_claimed_and_removed() {
        let (folder, blobs) = store().await;
        let digest = Digest::of(b"hello");
        let mut incoming = blobs.receive(digest).await.unwrap();
        incoming.push(b"hello").await.unwrap();
        incoming.finish().await.unwrap();
        std::fs::write(folder.path().join("a-stranger"), b"x").unwrap();
        let file = File::open(blobs.path(&digest)).await.unwrap();
        let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(5);
        file.into_std().await.set_modified(long_ago).unwrap();
        let listed = blobs.list().await.unwrap();
        assert_eq!(listed, [(digest, Timestamp::from_millis(5_000))]);
        blobs.claim(&digest);
        blobs.claim(&Digest::ZERO);
        assert!(blobs.list().await.unwrap()[0].1 > Timestamp::from_millis(1_000_000));
        blobs.remove(&digest).await.unwrap();
        blobs.remove(&digest).await.unwrap();
        assert!(blobs.list().await.unwrap().is_empty());
        assert_eq!(files(folder.path()), 1);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_refused_before_it_comes() {
        let (_folder, blobs) = store().await;
        assert!(blobs.check_room(1_000).is_ok());
        assert!(matches!(
            blobs.check_room(1_001),
            Err(BlobError::TooLarge { limit: 1_000 })
        ));
        let large = Blobs {
            limit: u64::MAX,
            ..blobs
        };
        assert!(matches!(
            large.check_room(u64::MAX - 1),
            Err(BlobError::DiskFull { .. })
        ));
    }

    #[tokio::test]
    async fn leftovers_of_a_crash_go_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("abc.0.tmp"), b"half").unwrap();
        Blobs::open(folder.path(), 10).unwrap();
        assert_eq!(files(folder.path()), 0);
    }
}
