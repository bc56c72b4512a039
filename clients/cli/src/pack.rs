//! Packs a folder as a tar.gz: the same files make the same bytes, whoever packs them, wherever and
//! whenever. What an agent would refuse to unpack is told here, before anything is uploaded.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};
use tempfile::NamedTempFile;
use tidegate_shared::archive::{MAX_ENTRIES, link_inside, path_inside};
use tidegate_shared::error::Reason;

use crate::errors::{Failure, Result};

/// Packs a folder into a temporary file, which goes with the value.
///
/// # Errors
/// Something in it cannot be read, or agents would refuse it; the folder is empty.
pub fn pack(folder: &Path) -> Result<NamedTempFile> {
    let entries = list(folder)?;
    if entries.is_empty() {
        return Err(Failure::new(
            Reason::InvalidRequest,
            format!("{} is an empty folder", folder.display()),
        )
        .hint("name the folder that was built"));
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let failed = |error: io::Error| Failure::file(Reason::DataFolder, folder, "packed", &error);
    let file = tempfile::Builder::new()
        .prefix(&format!("{name}."))
        .suffix(".tar.gz")
        .tempfile()
        .map_err(failed)?;
    let mut builder = Builder::new(GzEncoder::new(file, Compression::default()));
    for path in entries {
        add(&mut builder, folder, &path)?;
    }
    builder
        .into_inner()
        .and_then(GzEncoder::finish)
        .map_err(failed)
}

/// Everything below a folder, relative to it, in order of the paths' bytes.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(below) = waiting.pop() {
        let place = folder.join(&below);
        let unreadable =
            |error: io::Error| Failure::file(Reason::InvalidRequest, &place, "read", &error);
        for entry in std::fs::read_dir(&place).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let path = below.join(entry.file_name());
            if entry.file_type().map_err(unreadable)?.is_dir() {
                waiting.push(path.clone());
            }
            found.push(path);
            if found.len() as u64 > MAX_ENTRIES {
                return Err(Failure::new(
                    Reason::UnsafeArchive,
                    format!(
                        "{} has more than the 100,000 entries that an archive may have",
                        folder.display()
                    ),
                ));
            }
        }
    }
    found.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(found)
}

fn add<W: io::Write>(builder: &mut Builder<W>, folder: &Path, path: &Path) -> Result<()> {
    let place = folder.join(path);
    let refused = |why: &str| {
        Failure::new(
            Reason::UnsafeArchive,
            format!("{} {why}", place.display().to_string().escape_debug()),
        )
    };
    let unreadable =
        |error: io::Error| Failure::file(Reason::InvalidRequest, &place, "read", &error);
    path_inside(path.as_os_str().as_bytes()).map_err(refused)?;
    let found = std::fs::symlink_metadata(&place).map_err(unreadable)?;
    let kind = found.file_type();
    let mode = found.permissions().mode();
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_size(0);
    if kind.is_symlink() {
        let target = std::fs::read_link(&place).map_err(unreadable)?;
        link_inside(path, &target).map_err(refused)?;
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(0o777);
        return builder
            .append_link(&mut header, path, target)
            .map_err(unreadable);
    }
    if mode & 0o6000 != 0 && !kind.is_dir() {
        return Err(refused("has a set-uid or set-gid bit"));
    }
    if kind.is_dir() {
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o755);
        return builder
            .append_data(&mut header, path, io::empty())
            .map_err(unreadable);
    }
    if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
        return Err(refused("is a device, a pipe or a socket"));
    }
    let file = File::open(&place).map_err(unreadable)?;
    header.set_mode(if mode & 0o111 == 0 { 0o644 } else { 0o755 });
    header.set_size(found.len());
    let mut content = Counted {
        inner: file.take(found.len()),
        read: 0,
    };
    builder
        .append_data(&mut header, path, &mut content)
        .map_err(unreadable)?;
    if content.read != found.len() {
        return Err(refused("changed while it was packed"));
    }
    Ok(())
}

struct Counted<R> {
    inner: R,
    read: u64,
}

impl<R: io::Read> io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, create_dir_all, set_permissions, write};
    use std::os::unix::fs::symlink;

    fn filled() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("deep/{}/{}", "x".repeat(90), "y".repeat(90));
        create_dir_all(dir.path().join("bin")).unwrap();
        create_dir_all(dir.path().join(&long).parent().unwrap()).unwrap();
        write(dir.path().join(long), "long").unwrap();
        write(dir.path().join("bin/run"), "#!/bin/sh\n").unwrap();
        let mode = Permissions::from_mode(0o700);
        set_permissions(dir.path().join("bin/run"), mode).unwrap();
        symlink("bin/run", dir.path().join("current")).unwrap();
        dir
    }

    #[test]
    fn the_same_files_make_the_same_bytes() {
        let (one, two) = (filled(), filled());
        std::fs::File::options()
            .append(true)
            .open(two.path().join("bin/run"))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
        let bytes =
            |dir: &tempfile::TempDir| std::fs::read(pack(dir.path()).unwrap().path()).unwrap();
        assert_eq!(bytes(&one), bytes(&two));
        let packed = bytes(&one);
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&packed[..]));
        let names: Vec<(String, u32)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let mode = entry.header().mode().unwrap();
                (entry.path().unwrap().display().to_string(), mode)
            })
            .collect();
        assert_eq!(names[0], ("bin".to_owned(), 0o755));
        assert_eq!(names[1], ("bin/run".to_owned(), 0o755));
        assert_eq!(names[2], ("current".to_owned(), 0o777));
        assert_eq!(names.len(), 6);
    }

    #[test]
    fn what_agents_would_refuse_is_told_before() {
        let told = |make: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            make(dir.path());
            pack(dir.path()).unwrap_err().to_string()
        };
        let link = told(&|dir| symlink("/etc/passwd", dir.join("l")).unwrap());
        assert!(link.contains("is a link out of the archive"), "{link}");
        let bits = told(&|dir| {
            write(dir.join("su"), "x").unwrap();
            set_permissions(dir.join("su"), Permissions::from_mode(0o4755)).unwrap();
        });
        assert!(bits.contains("su has a set-uid or set-gid bit"), "{bits}");
        let socket = told(&|dir| {
            drop(std::os::unix::net::UnixListener::bind(dir.join("s")).unwrap());
        });
        assert!(
            socket.contains("is a device, a pipe or a socket"),
            "{socket}"
        );
        let empty = told(&|_| {});
        assert!(empty.contains("is an empty folder"), "{empty}");
    }
}
