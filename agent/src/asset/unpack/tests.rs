//! The rules of unpacking, over every format; archives are written by hand so that they can lie.

mod formats;
mod hostile;
mod zip;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ::tar::{Builder, EntryType, Header};
use tidegate_shared::assignment::PermanentErrorKind;
use tidegate_shared::spec::AssetKind;

use crate::asset::fetch::tests::{scripted, wish};
use crate::asset::{ReleaseStore, StageError};

type Spec<'a> = (EntryType, &'a str, &'a str, u32, &'a [u8]);

/// Writes names as they are, which the library's own builder would refuse.
fn tarball(entries: &[Spec<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, link, mode, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_size(content.len() as u64);
        let raw = header.as_gnu_mut().unwrap();
        raw.name[..name.len()].copy_from_slice(name.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn archive(entries: &[Spec<'_>]) -> Vec<u8> {
    gzip(&tarball(entries))
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
        assert!(error.message.ends_with("(TG-1006)"), "{error}");
    }
}

#[tokio::test]
async fn names_have_bounds() {
    let long = "n".repeat(256);
    let deep = "d/".repeat(101) + "f";
    let path = "some/".repeat(450) + "f";
    for (name, words) in [
        (long.as_bytes(), "a name of more than 255 bytes"),
        (deep.as_bytes(), "more than 100 folders deep"),
        (path.as_bytes(), "a path of more than 2,048 bytes"),
        (b"caf\xe9", "a path that is not UTF-8"),
    ] {
        let mut header = Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        // As GNU tar writes what does not fit a header: an entry of its own in front.
        let mut first = Header::new_gnu();
        first.set_entry_type(EntryType::GNULongName);
        first.set_size(name.len() as u64);
        first.set_cksum();
        header.set_cksum();
        let mut builder = Builder::new(Vec::new());
        builder.append(&first, name).unwrap();
        builder.append(&header, &b"x"[..]).unwrap();
        let (_dir, result) = stage(&gzip(&builder.into_inner().unwrap())).await;
        let error = result.unwrap_err();
        assert!(error.message.contains(words), "{error} lacks {words}");
    }
}

#[tokio::test]
async fn a_header_that_unpacks_to_much_is_not_read_into_memory() {
    let mut first = Header::new_gnu();
    first.set_entry_type(EntryType::GNULongName);
    let name = vec![b'a'; 2 << 20];
    first.set_size(name.len() as u64);
    first.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&first, &name[..]).unwrap();
    let (_dir, result) = stage(&gzip(&builder.into_inner().unwrap())).await;
    let error = result.unwrap_err();
    assert!(error.message.contains("larger than it may be"), "{error}");
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
    let mut builder = Builder::new(gzip);
    let mut header = Header::new_gnu();
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
