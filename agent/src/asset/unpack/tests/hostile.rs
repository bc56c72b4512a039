//! Archives with random damage and random entries: whatever they are, nothing gets out of the tree,
//! nothing in it could be run as somebody else, and nobody panics.

use proptest::prelude::*;

use super::formats::zstd;
use super::zip::{Zipped, zip};
use super::*;
use crate::asset::unpack::unpack;

fn bundles() -> Vec<Vec<u8>> {
    let content = b"some content, some content, ".repeat(20);
    let tarred = tarball(&[
        (EntryType::Directory, "d/", "", 0o755, b""),
        (FILE, "d/f", "", 0o755, &content),
        (LINK, "d/l", "f", 0o777, b""),
        (EntryType::Link, "h", "d/f", 0o644, b""),
        (EntryType::Directory, "e/", "", 0o755, b""),
        (FILE, "e/g", "", 0o644, b"x"),
    ]);
    let zipped = zip(&[
        Zipped::new("d/", 0o040_755, b""),
        Zipped::new("d/f", 0o100_755, &content).deflated(),
        Zipped::new("d/l", 0o120_777, b"f"),
        Zipped::new("e/g", 0o100_644, b"x"),
    ]);
    vec![gzip(&tarred), zstd(&tarred), zipped, tarred]
}

/// Unpacks beside a canary and looks at what became of both.
fn hold(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let (archive, tree) = (dir.path().join("archive"), dir.path().join("a/b/tree"));
    std::fs::create_dir_all(tree.parent().unwrap()).unwrap();
    std::fs::write(&archive, bytes).unwrap();
    let full = |error: &std::io::Error| StageError::transient(error.to_string());
    let refused = unpack(&archive, &tree, bytes.len() as u64, &full).is_err();
    let count = |path: &Path| std::fs::read_dir(path).unwrap().count();
    assert_eq!((count(dir.path()), count(&dir.path().join("a"))), (2, 1));
    assert_eq!(count(&dir.path().join("a/b")), 1);
    if refused {
        return;
    }
    let root = tree.canonicalize().unwrap();
    let mut folders = vec![tree];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let data = std::fs::symlink_metadata(&path).unwrap();
            assert_eq!(data.permissions().mode() & 0o6000, 0);
            if data.is_symlink() {
                if let Ok(target) = path.canonicalize() {
                    assert!(target.starts_with(&root), "{}", target.display());
                }
            } else if data.is_dir() {
                folders.push(path);
            } else {
                assert!(data.is_file());
            }
        }
    }
}

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("..".to_owned()),
        Just(".".to_owned()),
        Just(String::new()),
        "[a-c]{1}",
    ]
}

fn path() -> impl Strategy<Value = String> {
    (any::<bool>(), prop::collection::vec(piece(), 1..5)).prop_map(|(absolute, pieces)| {
        let lead = if absolute && pieces.len() > 3 {
            "/"
        } else {
            ""
        };
        format!("{lead}{}", pieces.join("/"))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_damage_does_no_harm(
        kind in 0_usize..4,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = bundles().swap_remove(kind);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        hold(&bytes);
    }

    #[test]
    fn random_entries_stay_inside(
        entries in prop::collection::vec((0_usize..4, path(), path(), any::<u16>()), 1..8),
    ) {
        let kinds = [FILE, LINK, EntryType::Link, EntryType::Directory];
        let specs: Vec<Spec<'_>> = entries
            .iter()
            .map(|(kind, name, link, mode)| {
                let content: &[u8] = if *kind == 0 { b"x" } else { b"" };
                (kinds[*kind], name.as_str(), link.as_str(), u32::from(*mode & 0o777), content)
            })
            .collect();
        hold(&tarball(&specs));
        let types = [0o100_000, 0o120_000, 0o100_000, 0o040_000];
        let zipped: Vec<Zipped<'_>> = entries
            .iter()
            .map(|(kind, name, link, mode)| {
                let mode = types[*kind] | u32::from(*mode & 0o777);
                Zipped::new(name, mode, link.as_bytes())
            })
            .collect();
        hold(&zip(&zipped));
    }
}
