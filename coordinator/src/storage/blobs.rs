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
    #[error("the disk of the store is full: nothing was kept")]
    DiskFull,
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

impl BlobError {
    fn io(action: &'static str, digest: Digest) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            if source.kind() == io::ErrorKind::StorageFull {
                Self::DiskFull
            } else {
                Self::Io {
                    action,
                    digest,
                    source,
                }
            }
        }
    }
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

    /// The size of a blob, if it is here.
    pub async fn size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.path(digest)).await.ok().map(|m| m.len())
    }

    /// Begins to take a blob.
    ///
    /// # Errors
    /// [`BlobError::DiskFull`], [`BlobError::Io`].
    pub async fn receive(&self, digest: Digest) -> Result<Incoming, BlobError> {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let temporary = Temporary(self.folder.join(format!("{digest}.{number}.tmp")));
        let file = File::create(&temporary.0)
            .await
            .map_err(BlobError::io("write", digest))?;
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
            .map_err(BlobError::io("read", digest))?;
        file.seek(io::SeekFrom::Start(start))
            .await
            .map_err(BlobError::io("read", digest))?;
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
            .map_err(BlobError::io("write", self.digest))
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
        let io = |action| BlobError::io(action, self.digest);
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
    async fn leftovers_of_a_crash_go_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("abc.0.tmp"), b"half").unwrap();
        Blobs::open(folder.path(), 10).unwrap();
        assert_eq!(files(folder.path()), 0);
    }
}
