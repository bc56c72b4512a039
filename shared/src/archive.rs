//! Archives of releases: what they are packed as, and what an entry may be called. One set of rules
//! for those who pack and those who unpack.

use std::path::{Component, Path, PathBuf};

/// Most entries of an archive.
pub const MAX_ENTRIES: u64 = 100_000;
/// Longest path of an entry, and target of a link, in bytes.
pub const MAX_PATH: usize = 2_048;
/// Longest name between two slashes, in bytes: what file systems take.
pub const MAX_NAME: usize = 255;
/// Most folders above an entry.
pub const MAX_DEPTH: usize = 100;
/// Bytes of a file's start that [`Format::recognise`] wants to see.
pub const START: usize = 512;

/// What an archive is packed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Plain.
    Tar,
    /// With gzip.
    TarGz,
    /// With Zstandard.
    TarZst,
    /// Zip.
    Zip,
    /// With xz; not read.
    TarXz,
    /// With bzip2; not read.
    TarBz2,
}

impl Format {
    /// Tells formats apart by their first bytes. Tar has its mark in the first header, so that a
    /// compressed file is taken for what it would be if it held a tar.
    pub fn recognise(start: &[u8]) -> Option<Self> {
        match start {
            [0x1f, 0x8b, ..] => Some(Self::TarGz),
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Some(Self::Zip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Some(Self::TarZst)
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::TarXz),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some(Self::TarBz2),
            _ if start.get(257..262) == Some(b"ustar") => Some(Self::Tar),
            _ => None,
        }
    }

    /// Whether agents can unpack it.
    pub const fn is_read(self) -> bool {
        match self {
            Self::Tar | Self::TarGz | Self::TarZst | Self::Zip => true,
            Self::TarXz | Self::TarBz2 => false,
        }
    }

    /// How people call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tar => "tar",
            Self::TarGz => "tar.gz",
            Self::TarZst => "tar.zst",
            Self::Zip => "zip",
            Self::TarXz => "tar.xz",
            Self::TarBz2 => "tar.bz2",
        }
    }
}

/// A text that can be a path in every tool that looks at the tree.
///
/// # Errors
/// What is wrong with it, to be put behind its name.
pub fn text_of(name: &[u8]) -> Result<&str, &'static str> {
    if name.len() > MAX_PATH {
        return Err("has a path of more than 2,048 bytes");
    }
    if name.contains(&0) {
        return Err("has a NUL in its path");
    }
    std::str::from_utf8(name).map_err(|_| "has a path that is not UTF-8")
}

/// A path that stays where it is put: relative, without `..`, neither long nor deep.
///
/// # Errors
/// What is wrong with it, to be put behind its name.
pub fn path_inside(name: &[u8]) -> Result<PathBuf, &'static str> {
    let mut clean = PathBuf::new();
    let mut depth = 0;
    for part in Path::new(text_of(name)?).components() {
        match part {
            Component::Normal(part) => {
                if part.len() > MAX_NAME {
                    return Err("has a name of more than 255 bytes in its path");
                }
                depth += 1;
                clean.push(part);
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return Err("has an absolute path"),
            Component::ParentDir => return Err("has \"..\" in its path"),
        }
    }
    if depth > MAX_DEPTH {
        return Err("lies more than 100 folders deep");
    }
    Ok(clean)
}

/// Whether a symbolic link at `path` stays inside: some `..` first, no more than there are folders
/// above it, then only names. A `..` after a name could step out of another link's target.
///
/// # Errors
/// What is wrong with it, to be put behind its name.
pub fn link_inside(path: &Path, link: &Path) -> Result<(), &'static str> {
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

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        let mut tar = [0; START];
        tar[257..262].copy_from_slice(b"ustar");
        for (start, format) in [
            (&[0x1f, 0x8b, 8][..], Some(Format::TarGz)),
            (b"PK\x03\x04", Some(Format::Zip)),
            (b"\x28\xb5\x2f\xfd", Some(Format::TarZst)),
            (b"\xfd7zXZ\0", Some(Format::TarXz)),
            (b"BZh9", Some(Format::TarBz2)),
            (&tar, Some(Format::Tar)),
            (b"\x7fELF", None),
            (b"#!/bin/sh", None),
            (b"", None),
        ] {
            assert_eq!(Format::recognise(start), format);
        }
    }

    #[test]
    fn paths_and_links_stay_inside() {
        assert_eq!(path_inside(b"./a//b/").as_deref(), Ok(Path::new("a/b")));
        for (name, words) in [
            (&b"/a"[..], "absolute"),
            (b"a/../b", "\"..\""),
            (b"a\0", "NUL"),
            (b"\xff", "UTF-8"),
        ] {
            assert!(path_inside(name).unwrap_err().contains(words));
        }
        let link = |path: &str, link: &str| link_inside(Path::new(path), Path::new(link)).is_ok();
        assert!(link("a/b", "../c") && link("a", "b/c") && link("a/b/c", "../../d"));
        assert!(!link("a", "../b") && !link("a/b", "c/../..") && !link("a", "/b"));
    }
}
