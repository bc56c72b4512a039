//! Unpacking: an archive of unknown making becomes a tree that cannot reach outside itself.
//!
//! What it is, is found by its first bytes, never by its name: tar, tar.gz, tar.zst or zip. Each
//! format has a reader that tells entries one after another; one `Tree` takes the entries of all
//! of them and holds every rule, so that the same files make the same tree whatever they came in.
//!
//! Refused, naming the entry: absolute paths and `..`, links that lead out, writing through links,
//! devices and pipes, set-uid and set-gid bits, encrypted entries, entries that stand there twice,
//! names that are too long, too many or too large ones. A refused archive leaves nothing: the
//! caller removes the tree.

mod budget;
mod tar;
#[cfg(test)]
mod tests;
mod tree;
mod zip;
mod zstd;

use std::fs::{File, Permissions};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use tidegate_shared::archive::{Format, START};
use tidegate_shared::assignment::PermanentErrorKind;
use tidegate_shared::error::Reason;

use super::StageError;
use budget::Budget;
use tree::Tree;

/// Most bytes of an unpacked archive: 16 GiB …
pub const MAX_BYTES: u64 = 16 << 30;
/// … or so many times its compressed size.
pub const MAX_RATIO: u64 = 200;
/// The ratio does not bind below that: 1 MiB.
const RATIO_FLOOR: u64 = 1 << 20;

/// Makes the answer to a full disk.
pub type Full<'a> = &'a dyn Fn(&io::Error) -> StageError;

/// An entry that did not fit on the disk, inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("no room for an entry of {0} bytes")]
struct NoRoom(u64);

/// The bytes that the entry needed which did not fit; 0: not known.
pub fn needed(error: &io::Error) -> u64 {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<NoRoom>());
    inner.map_or(0, |NoRoom(bytes)| *bytes)
}

/// Unpacks an archive of `compressed` bytes into `tree`, which must not exist.
///
/// # Errors
/// It is unsafe, damaged, or the disk is full.
pub fn unpack(
    archive: &Path,
    tree: &Path,
    compressed: u64,
    full: Full<'_>,
) -> Result<(), StageError> {
    let local = |error: io::Error| super::storage_error(&error, tree, full);
    tree::make_dir(tree).map_err(local)?;
    let mut file = File::open(archive).map_err(local)?;
    let mut start = Vec::with_capacity(START);
    (&mut file)
        .take(START as u64)
        .read_to_end(&mut start)
        .and_then(|_| file.rewind())
        .map_err(local)?;
    let limit = MAX_BYTES.min(compressed.saturating_mul(MAX_RATIO).max(RATIO_FLOOR));
    let mut tree = Tree::new(tree, limit, full);
    // The decoders are bounded as well: what they make counts even where no entry holds it.
    let budget = Budget::new(limit.saturating_mul(2));
    match Format::recognise(&start) {
        Some(Format::Tar) => tar::read(file, &budget, &mut tree)?,
        Some(Format::TarGz) => tar::read(MultiGzDecoder::new(file), &budget, &mut tree)?,
        Some(Format::TarZst) => tar::read(zstd::Frames::new(file), &budget, &mut tree)?,
        Some(Format::Zip) => zip::read(file, compressed, &mut tree)?,
        Some(Format::TarXz | Format::TarBz2) | None => {
            let message = "the archive is neither tar, tar.gz, tar.zst nor zip";
            return Err(refuse(message.to_owned()));
        }
    }
    tree.finish()
}

/// Puts a single executable into `tree`.
///
/// # Errors
/// The disk is full, or fails.
pub fn place_binary(
    part: &Path,
    tree: &Path,
    name: &str,
    full: Full<'_>,
) -> Result<(), StageError> {
    let place = || {
        tree::make_dir(tree)?;
        let target = tree.join(name);
        std::fs::rename(part, &target)?;
        std::fs::set_permissions(&target, Permissions::from_mode(0o755))
    };
    place().map_err(|error| super::storage_error(&error, tree, full))
}

fn refuse(message: String) -> StageError {
    let code = Reason::UnsafeArchive.code();
    StageError::permanent(
        PermanentErrorKind::UnsafeArchive,
        format!("{message} ({code})"),
    )
}

fn damaged(error: &io::Error) -> StageError {
    refuse(format!("the archive cannot be read: {error}"))
}
