//! Every bundle of the same files makes the same tree (J1).

use std::collections::BTreeMap;

use super::zip::{Zipped, zip};
use super::*;

/// Path → what it is, its content or target.
fn picture(tree: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![tree.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let data = std::fs::symlink_metadata(&path).unwrap();
            let mode = data.permissions().mode() & 0o7777;
            let text = if data.is_dir() {
                folders.push(path.clone());
                format!("folder {mode:o}")
            } else if data.is_symlink() {
                format!("→ {}", std::fs::read_link(&path).unwrap().display())
            } else {
                format!("{mode:o} {}", std::fs::read_to_string(&path).unwrap())
            };
            let name = path.strip_prefix(tree).unwrap().display().to_string();
            found.insert(name, text);
        }
    }
    found
}

pub(super) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

#[tokio::test]
async fn every_bundle_makes_the_same_tree() {
    let long = "a long text that repeats, ".repeat(400);
    let tarred = tarball(&[
        (EntryType::Directory, "bin/", "", 0o755, b""),
        (FILE, "bin/shop", "", 0o750, b"program"),
        (FILE, "etc/deep/shop.conf", "", 0o600, long.as_bytes()),
        (FILE, "empty", "", 0o644, b""),
        (LINK, "current", "bin/shop", 0o777, b""),
    ]);
    let zipped = zip(&[
        Zipped::new("bin/", 0o040_755, b""),
        Zipped::new("bin/shop", 0o100_750, b"program"),
        Zipped::new("etc/deep/shop.conf", 0o100_600, long.as_bytes()).deflated(),
        Zipped::new("empty", 0o100_644, b""),
        Zipped::new("current", 0o120_777, b"bin/shop"),
    ]);
    // Two frames with a skippable one between them, as parallel packers write.
    let (one, two) = tarred.split_at(1_000);
    let mut framed = zstd(one);
    framed.extend([0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
    framed.extend(zstd(two));
    let mut members = gzip(one);
    members.extend(gzip(two));
    let bundles = [
        ("tar", tarred.clone()),
        ("tar.gz", gzip(&tarred)),
        ("tar.gz of two members", members),
        ("tar.zst", zstd(&tarred)),
        ("tar.zst of two frames", framed),
        ("zip", zipped),
    ];
    let mut first = None;
    for (name, bytes) in bundles {
        let (_dir, result) = stage(&bytes).await;
        let picture = picture(&result.unwrap_or_else(|error| panic!("{name}: {error}")));
        assert_eq!(picture["bin/shop"], "755 program", "{name}");
        assert_eq!(picture["current"], "→ bin/shop", "{name}");
        assert_eq!(picture.len(), 7, "{name}");
        let first = first.get_or_insert_with(|| picture.clone());
        assert_eq!(&picture, first, "{name}");
    }
}

#[tokio::test]
async fn cut_and_damaged_bundles_of_every_kind_are_refused() {
    let tarred = tarball(&[(FILE, "f", "", 0o644, &[7; 4_096])]);
    let entries = [Zipped::new("f", 0o100_644, &[7; 4_096]).deflated()];
    for bytes in [
        gzip(&tarred),
        zstd(&tarred),
        zip(&entries),
        tarred[..1_024].to_vec(),
    ] {
        let (_dir, result) = stage(&bytes[..bytes.len() - bytes.len() / 4]).await;
        assert_eq!(
            result.unwrap_err().kind,
            Some(PermanentErrorKind::UnsafeArchive)
        );
    }
    for (bytes, words) in [
        (
            &b"MZ is no archive"[..],
            "neither tar, tar.gz, tar.zst nor zip",
        ),
        (&b"BZh91AY"[..], "neither tar"),
    ] {
        let (_dir, result) = stage(bytes).await;
        let error = result.unwrap_err();
        assert!(error.message.contains(words), "{error}");
    }
    // The checksum at the end of a frame is looked at.
    let mut wrong = zstd(&tarred);
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    let (_dir, result) = stage(&wrong).await;
    let error = result.unwrap_err();
    assert!(error.message.contains("checksum"), "{error}");
}
