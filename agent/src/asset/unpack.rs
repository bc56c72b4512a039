//! Unpacking: an archive of unknown making becomes a tree that cannot reach outside itself.
//!
//! Refused, naming the entry: absolute paths and `..`, links that lead out, writing through links,
//! devices and pipes, set-uid and set-gid bits, entries that stand there twice, too many or too
//! large ones. A refused archive leaves nothing: the caller removes the tree.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entry, EntryType};
use tidegate_shared::assignment::PermanentErrorKind;

use super::StageError;

/// Most entries of an archive.
pub const MAX_ENTRIES: u64 = 100_000;
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

/// Unpacks a tar.gz of `compressed` bytes into `tree`, which must not exist.
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
    make_dir(tree).map_err(local)?;
    let file = File::open(archive).map_err(local)?;
    let limit = MAX_BYTES.min(compressed.saturating_mul(MAX_RATIO).max(RATIO_FLOOR));
    let mut unpacker = Unpacker {
        tree,
        full,
        limit,
        bytes: 0,
        entries: 0,
    };
    // The decoder itself is bounded too: sparse files and headers count as well.
    let bounded = MultiGzDecoder::new(file).take(limit.saturating_mul(2));
    let mut archive = Archive::new(bounded);
    let damaged = |error: io::Error| refuse(format!("the archive cannot be read: {error}"));
    for entry in archive.entries().map_err(damaged)? {
        unpacker.entry(entry.map_err(damaged)?)?;
    }
    if unpacker.entries == 0 {
        return Err(refuse("the archive is empty".to_owned()));
    }
    Ok(())
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
        make_dir(tree)?;
        let target = tree.join(name);
        std::fs::rename(part, &target)?;
        std::fs::set_permissions(&target, Permissions::from_mode(0o755))
    };
    place().map_err(|error| super::storage_error(&error, tree, full))
}

fn refuse(message: String) -> StageError {
    StageError::permanent(PermanentErrorKind::UnsafeArchive, message)
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)
}

struct Unpacker<'a> {
    tree: &'a Path,
    full: Full<'a>,
    limit: u64,
    bytes: u64,
    entries: u64,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), StageError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let shown: String = name.chars().take(200).collect();
        let bad = |what: &str| refuse(format!("the entry \"{}\" {what}", shown.escape_debug()));
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(bad("is one more than the 100,000 that an archive may have"));
        }
        self.bytes = self.bytes.saturating_add(entry.size());
        if self.bytes > self.limit {
            return Err(bad(&format!(
                "makes the unpacked archive larger than its limit of {} bytes",
                self.limit
            )));
        }
        let mode = entry
            .header()
            .mode()
            .map_err(|_| bad("has no readable mode"))?;
        if mode & 0o6000 != 0 {
            return Err(bad("has a set-uid or set-gid bit"));
        }
        let path = inside(Path::new(&name)).map_err(bad)?;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        self.parents(&path, &bad)?;
        let target = self.tree.join(&path);
        let done = match kind {
            EntryType::Directory => self.directory(&target, &bad)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                write_file(&mut entry, &target, mode)
            }
            EntryType::Symlink => {
                let link = link_name(&entry, &bad)?;
                stays_inside(&path, &link).map_err(bad)?;
                std::os::unix::fs::symlink(link, &target)
            }
            EntryType::Link => {
                let link = inside(&link_name(&entry, &bad)?).map_err(bad)?;
                self.parents(&link, &bad)?;
                let original = self.tree.join(link);
                let found = std::fs::symlink_metadata(&original);
                if !found.is_ok_and(|found| found.is_file()) {
                    return Err(bad("is a link to something that is not a file before it"));
                }
                std::fs::hard_link(original, &target)
            }
            _ => return Err(bad("is a device, a pipe or something else that is no file")),
        };
        done.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => bad("stands there twice"),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                bad(&format!("cannot be read: {error}"))
            }
            io::ErrorKind::InvalidInput if kind != EntryType::Regular => {
                bad(&format!("cannot be read: {error}"))
            }
            _ => super::storage_error(&error, &target, self.full),
        })
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
        let mut folder = self.tree.to_path_buf();
        for part in path.parent().into_iter().flat_map(Path::components) {
            folder.push(part);
            match std::fs::symlink_metadata(&folder) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => return Err(bad("goes through a link or a file")),
                Err(_) => make_dir(&folder)
                    .map_err(|error| super::storage_error(&error, &folder, self.full))?,
            }
        }
        Ok(())
    }
}

fn link_name<R: Read>(
    entry: &Entry<'_, R>,
    bad: &dyn Fn(&str) -> StageError,
) -> Result<PathBuf, StageError> {
    match entry.link_name() {
        Ok(Some(name)) => Ok(name.into_owned()),
        Ok(None) | Err(_) => Err(bad("is a link to nowhere")),
    }
}

fn write_file<R: Read>(entry: &mut Entry<'_, R>, target: &Path, mode: u32) -> io::Result<()> {
    let mode = if mode & 0o111 == 0 { 0o644 } else { 0o755 };
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(target)?;
    let size = entry.size();
    io::copy(entry, &mut file).map_err(|error| match error.kind() {
        kind @ (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            io::Error::new(kind, NoRoom(size))
        }
        _ => error,
    })?;
    // The mask of the agent's process must not decide what a release may do.
    file.set_permissions(Permissions::from_mode(mode))
}

/// A path that stays where it is put: relative, without `..`.
fn inside(path: &Path) -> Result<PathBuf, &'static str> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return Err("has an absolute path"),
            Component::ParentDir => return Err("has \"..\" in its path"),
        }
    }
    Ok(clean)
}

/// Whether a symbolic link at `path` stays inside: some `..` first, no more than there are folders
/// above it, then only names. A `..` after a name could step out of another link's target.
fn stays_inside(path: &Path, link: &Path) -> Result<(), &'static str> {
    const OUT: &str = "is a link out of the archive";
    let mut room = path.components().count().saturating_sub(1);
    let mut named = false;
    for part in link.components() {
        match part {
            Component::Normal(_) => named = true,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return Err(OUT),
            Component::ParentDir if named => return Err(OUT),
            Component::ParentDir => room = room.checked_sub(1).ok_or(OUT)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asset::ReleaseStore;
    use crate::asset::fetch::tests::{scripted, wish};
    use std::io::Write as _;
    use tidegate_shared::spec::AssetKind;

    type Spec<'a> = (EntryType, &'a str, &'a str, u32, &'a [u8]);

    /// Writes names as they are, which the library's own builder would refuse.
    fn archive(entries: &[Spec<'_>]) -> Vec<u8> {
        let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        let mut builder = tar::Builder::new(gzip);
        for (kind, name, link, mode, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_size(content.len() as u64);
            let raw = header.as_gnu_mut().unwrap();
            raw.name[..name.len()].copy_from_slice(name.as_bytes());
            raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    const FILE: EntryType = EntryType::Regular;
    const LINK: EntryType = EntryType::Symlink;

    async fn stage(bytes: &[u8]) -> (tempfile::TempDir, Result<PathBuf, StageError>) {
        let dir = tempfile::tempdir().unwrap();
        let store = ReleaseStore::open(dir.path().join("releases")).unwrap();
        let wish = wish(bytes, AssetKind::Archive);
        let source = scripted(vec![(Some(bytes.to_vec()), None)]);
        let result = store.stage(&wish, &source).await;
        if result.is_err() {
            assert!(!store.has(&wish.sha256));
            assert_eq!(
                std::fs::read_dir(dir.path().join("releases/.work"))
                    .unwrap()
                    .count(),
                0
            );
            assert_eq!(
                std::fs::read_dir(dir.path()).unwrap().count(),
                1,
                "something got out"
            );
        }
        let path = store.path(&wish.sha256);
        (dir, result.map(|()| path))
    }

    #[tokio::test]
    async fn an_honest_archive_is_unpacked_as_it_is() {
        let bytes = archive(&[
            (EntryType::Directory, "./", "", 0o755, b""),
            (EntryType::Directory, "bin/", "", 0o755, b""),
            (FILE, "bin/shop", "", 0o755, b"program"),
            (FILE, "etc/deep/shop.conf", "", 0o600, b"x"),
            (LINK, "current", "bin/shop", 0o777, b""),
            (LINK, "etc/deep/up", "../../bin", 0o777, b""),
            (EntryType::Link, "twin", "bin/shop", 0o755, b""),
        ]);
        let (_dir, result) = stage(&bytes).await;
        let tree = result.unwrap();
        assert_eq!(std::fs::read(tree.join("current")).unwrap(), b"program");
        assert_eq!(
            std::fs::read(tree.join("etc/deep/up/shop")).unwrap(),
            b"program"
        );
        assert_eq!(std::fs::read(tree.join("twin")).unwrap(), b"program");
        let mode = |name: &str| {
            std::fs::metadata(tree.join(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o7777
        };
        assert_eq!(
            (mode("bin/shop"), mode("etc/deep/shop.conf")),
            (0o755, 0o644)
        );
    }

    #[tokio::test]
    async fn every_way_out_is_refused_by_the_name_of_its_entry() {
        let cases: [(&[Spec<'_>], &str); 15] = [
            (
                &[(FILE, "/etc/passwd", "", 0o644, b"x")],
                "\"/etc/passwd\" has an absolute path",
            ),
            (
                &[(FILE, "a/../../b", "", 0o644, b"x")],
                "\"a/../../b\" has \"..\" in its path",
            ),
            (
                &[(LINK, "l", "/etc", 0o777, b"")],
                "\"l\" is a link out of the archive",
            ),
            (&[(LINK, "l", "../x", 0o777, b"")], "\"l\" is a link out"),
            (
                &[(LINK, "d/l", "../../x", 0o777, b"")],
                "\"d/l\" is a link out",
            ),
            (
                &[
                    (LINK, "d", ".", 0o777, b""),
                    (LINK, "e", "d/..", 0o777, b""),
                ],
                "\"e\" is a link out",
            ),
            (
                &[(LINK, "d", "x", 0o777, b""), (FILE, "d/f", "", 0o644, b"x")],
                "\"d/f\" goes through a link",
            ),
            (
                &[(EntryType::Link, "h", "/etc/passwd", 0o644, b"")],
                "\"h\" has an absolute path",
            ),
            (
                &[(EntryType::Link, "h", "../x", 0o644, b"")],
                "\"h\" has \"..\"",
            ),
            (
                &[
                    (LINK, "l", "x", 0o777, b""),
                    (EntryType::Link, "h", "l", 0o644, b""),
                ],
                "\"h\" is a link to something",
            ),
            (
                &[(EntryType::Char, "null", "", 0o666, b"")],
                "\"null\" is a device",
            ),
            (
                &[(EntryType::Fifo, "pipe", "", 0o666, b"")],
                "\"pipe\" is a device, a pipe",
            ),
            (&[(FILE, "su", "", 0o4755, b"x")], "\"su\" has a set-uid"),
            (
                &[(FILE, "sg", "", 0o2755, b"x")],
                "\"sg\" has a set-uid or set-gid",
            ),
            (
                &[(FILE, "f", "", 0o644, b"1"), (FILE, "f", "", 0o644, b"2")],
                "\"f\" stands there twice",
            ),
        ];
        for (entries, words) in cases {
            let (_dir, result) = stage(&archive(entries)).await;
            let error = result.unwrap_err();
            assert_eq!(
                error.kind,
                Some(PermanentErrorKind::UnsafeArchive),
                "{error}"
            );
            assert!(error.message.contains(words), "{error} lacks {words}");
        }
    }

    #[tokio::test]
    async fn bombs_and_damage_are_refused() {
        let zeroes = vec![0_u8; 8 << 20];
        let (_dir, result) = stage(&archive(&[(FILE, "zeroes", "", 0o644, &zeroes)])).await;
        let error = result.unwrap_err();
        assert!(
            error
                .message
                .contains("\"zeroes\" makes the unpacked archive larger"),
            "{error}"
        );

        let mut cut = archive(&[(FILE, "f", "", 0o644, &[7; 4_096])]);
        cut.truncate(cut.len() / 2);
        for bytes in [cut, b"no archive at all".to_vec(), Vec::new()] {
            let (_dir, result) = stage(&bytes).await;
            let error = result.unwrap_err();
            assert_eq!(
                error.kind,
                Some(PermanentErrorKind::UnsafeArchive),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_lying_size_does_not_help() {
        // The header claims a byte, the content goes on: the rest is read as a header and refused.
        let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        let mut builder = tar::Builder::new(gzip);
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        header.set_path("f").unwrap();
        header.set_cksum();
        builder.append(&header, &b"x"[..]).unwrap();
        builder.get_mut().write_all(&[0x41; 1_024]).unwrap();
        let bytes = builder.into_inner().unwrap().finish().unwrap();
        let (_dir, result) = stage(&bytes).await;
        assert_eq!(
            result.unwrap_err().kind,
            Some(PermanentErrorKind::UnsafeArchive)
        );
    }
}
