//! The tree that entries become, whatever the format they came in: here stands every rule of what
//! an entry may be, may be called, and may do to what stands there already.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use tidegate_shared::archive::{MAX_ENTRIES, link_inside, path_inside, text_of};

use super::{Full, NoRoom, StageError, refuse};

/// What an entry is.
pub enum Node<'a> {
    /// A folder.
    Directory,
    /// A file.
    File {
        /// Bytes that it says to have.
        size: u64,
        /// They.
        content: &'a mut dyn Read,
    },
    /// A symbolic link.
    Symlink {
        /// Where to, as written.
        target: &'a [u8],
    },
    /// Another name of a file that came before.
    HardLink {
        /// Its path in the archive.
        target: &'a [u8],
    },
}

/// A refusal that names the entry.
pub fn bad(name: &[u8], what: &str) -> StageError {
    let text = String::from_utf8_lossy(name);
    let shown: String = text.chars().take(200).collect();
    refuse(format!("the entry \"{}\" {what}", shown.escape_debug()))
}

/// Makes a folder that everybody may read.
///
/// # Errors
/// The system's.
pub fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)
}

/// A tree that is being unpacked.
pub struct Tree<'a> {
    root: &'a Path,
    full: Full<'a>,
    limit: u64,
    bytes: u64,
    entries: u64,
}

impl<'a> Tree<'a> {
    /// An empty one in a folder that exists; `limit` bounds the bytes of all its files.
    pub const fn new(root: &'a Path, limit: u64, full: Full<'a>) -> Self {
        Self {
            root,
            full,
            limit,
            bytes: 0,
            entries: 0,
        }
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// It is refused, damaged, or the disk is full.
    pub fn take(&mut self, name: &[u8], mode: u32, node: Node<'_>) -> Result<(), StageError> {
        let bad = |what: &str| bad(name, what);
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(bad("is one more than the 100,000 that an archive may have"));
        }
        if let Node::File { size, .. } = node {
            self.bytes = self.bytes.saturating_add(size);
        }
        if self.bytes > self.limit {
            return Err(bad(&format!(
                "makes the unpacked archive larger than its limit of {} bytes",
                self.limit
            )));
        }
        if mode & 0o6000 != 0 {
            return Err(bad("has a set-uid or set-gid bit"));
        }
        let path = path_inside(name).map_err(bad)?;
        if path.as_os_str().is_empty() {
            return match node {
                Node::Directory => Ok(()),
                Node::File { .. } | Node::Symlink { .. } | Node::HardLink { .. } => {
                    Err(bad("has no name"))
                }
            };
        }
        self.parents(&path, &bad)?;
        let target = self.root.join(&path);
        let made = match node {
            Node::Directory => self.directory(&target, &bad)?,
            Node::File { size, content } => write_file(content, size, &target, mode),
            Node::Symlink { target: link } => {
                let link = text_of(link).map_err(bad)?;
                link_inside(&path, Path::new(link)).map_err(bad)?;
                std::os::unix::fs::symlink(link, &target)
            }
            Node::HardLink { target: link } => {
                let link = path_inside(link).map_err(bad)?;
                self.parents(&link, &bad)?;
                let original = self.root.join(link);
                let found = std::fs::symlink_metadata(&original);
                if !found.is_ok_and(|found| found.is_file()) {
                    return Err(bad("is a link to something that is not a file before it"));
                }
                std::fs::hard_link(original, &target)
            }
        };
        made.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => bad("stands there twice"),
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::Other => bad(&format!("cannot be read: {error}")),
            _ => crate::asset::storage_error(&error, &target, self.full),
        })
    }

    /// After the last entry.
    ///
    /// # Errors
    /// There was none.
    pub fn finish(self) -> Result<(), StageError> {
        if self.entries == 0 {
            return Err(refuse("the archive is empty".to_owned()));
        }
        Ok(())
    }

    fn directory(
        &self,
        target: &Path,
        bad: &dyn Fn(&str) -> StageError,
    ) -> Result<io::Result<()>, StageError> {
        match std::fs::symlink_metadata(target) {
            Ok(found) if found.is_dir() => Ok(Ok(())),
            Ok(_) => Err(bad("stands there twice")),
            Err(_) => Ok(make_dir(target)),
        }
    }

    /// Makes the folders above a path; each must be a real one, not a link.
    fn parents(&self, path: &Path, bad: &dyn Fn(&str) -> StageError) -> Result<(), StageError> {
        let mut folder = self.root.to_path_buf();
        for part in path.parent().into_iter().flat_map(Path::components) {
            folder.push(part);
            match std::fs::symlink_metadata(&folder) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Err(bad("goes through a link or a file")),
                Err(_) => make_dir(&folder)
                    .map_err(|error| crate::asset::storage_error(&error, &folder, self.full))?,
            }
        }
        Ok(())
    }
}

/// Of the mode, whether it can be run is kept. Who may read is not the archive's to say: instances
/// run as users of their own.
fn write_file(content: &mut dyn Read, size: u64, target: &Path, mode: u32) -> io::Result<()> {
    let mode = if mode & 0o111 == 0 { 0o644 } else { 0o755 };
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(target)?;
    super::tar::copy_exactly(content, &mut file, size).map_err(|error| match error.kind() {
        kind @ (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            io::Error::new(kind, NoRoom(size))
        }
        _ => error,
    })?;
    // The mask of the agent's process must not decide what a release may do.
    file.set_permissions(Permissions::from_mode(mode))
}
