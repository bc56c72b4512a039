//! Places that answer by script.

use super::*;
use crate::asset::ReleaseStore;
use std::sync::Mutex;
use tidegate_shared::id::Name;
use tidegate_shared::spec::AssetKind;

/// Mirrors that answer by script: what each serves, and after how many bytes it breaks.
pub struct Scripted {
    pub mirrors: Vec<(Option<Vec<u8>>, Option<usize>)>,
    pub asked: Mutex<Vec<(usize, u64)>>,
}

struct Script(Vec<Result<Bytes, String>>);

impl Pieces for Script {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, String>>> {
        let next = if self.0.is_empty() {
            None
        } else {
            Some(self.0.remove(0))
        };
        Box::pin(async move { next })
    }
}

impl Source for Scripted {
    fn places(&self, _: &AssetWish) -> Vec<String> {
        (0..self.mirrors.len()).map(|n| n.to_string()).collect()
    }

    fn open<'a>(&'a self, place: &'a str, part: Part<'a>) -> Answer<'a, Opened> {
        let from = part.from;
        let number: usize = place.parse().unwrap();
        self.asked.lock().unwrap().push((number, from));
        let (content, breaks) = self.mirrors[number].clone();
        Box::pin(async move {
            let Some(content) = content else {
                return Opened::Missing;
            };
            let end = breaks.map_or(content.len(), |after| {
                (from as usize + after).min(content.len())
            });
            let mut pieces = vec![Ok(Bytes::copy_from_slice(&content[from as usize..end]))];
            if breaks.is_some() {
                pieces.push(Err("reset".to_owned()));
            }
            Opened::Body {
                from,
                size: None,
                version: None,
                body: Box::new(Script(pieces)),
            }
        })
    }
}

pub fn scripted(mirrors: Vec<(Option<Vec<u8>>, Option<usize>)>) -> Scripted {
    Scripted {
        mirrors,
        asked: Mutex::default(),
    }
}

pub fn wish(content: &[u8], kind: AssetKind) -> AssetWish {
    AssetWish {
        name: Name::new("shop").unwrap(),
        kind,
        sha256: Digest::of(content),
        size: content.len() as u64,
        sources: Vec::new(),
    }
}

fn leftovers(store: &std::path::Path) -> usize {
    std::fs::read_dir(store.join(".work")).unwrap().count()
}

#[tokio::test]
async fn a_broken_source_is_followed_by_the_next_from_there_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = ReleaseStore::open(dir.path().join("releases")).unwrap();
    let content = b"#!/bin/sh\nexit 0\n".to_vec();
    let source = scripted(vec![
        (Some(content.clone()), Some(5)),
        (Some(content.clone()), None),
    ]);
    let wish = wish(&content, AssetKind::Binary);
    store.stage(&wish, &source).await.unwrap();
    assert_eq!(*source.asked.lock().unwrap(), [(0, 0), (1, 5)]);
    let path = store.path(&wish.sha256).join("shop");
    assert_eq!(std::fs::read(&path).unwrap(), content);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    store.stage(&wish, &scripted(vec![])).await.unwrap();
    store.remove(&wish.sha256).unwrap();
    store.remove(&wish.sha256).unwrap();
    assert!(!store.has(&wish.sha256));
    assert_eq!(leftovers(&dir.path().join("releases")), 0);
}

#[tokio::test]
async fn a_fetch_goes_on_where_the_last_agent_ended() {
    let dir = tempfile::tempdir().unwrap();
    let releases = dir.path().join("releases");
    let content = b"#!/bin/sh\nexit 0\n".to_vec();
    let wish = wish(&content, AssetKind::Binary);
    let part = releases.join(".work").join(format!("{}.part", wish.sha256));
    let longer = [&content[..], b"more"].concat();
    // What lies there, and from where on the rest is asked for.
    let cases = [
        (&content[..7], vec![7]),
        (&content, vec![]),
        (b"", vec![0]),
        (&longer, vec![0]),
        // Torn by a power cut: noticed at the end, and fetched as a whole.
        (b"torn...", vec![7, 0]),
    ];
    for (held, from) in cases {
        drop(ReleaseStore::open(releases.clone()).unwrap());
        std::fs::write(&part, held).unwrap();
        std::fs::create_dir(releases.join(".work/half-a-tree")).unwrap();
        let store = ReleaseStore::open(releases.clone()).unwrap();
        assert_eq!(store.parts(), std::slice::from_ref(&part));
        let source = scripted(vec![(Some(content.clone()), None)]);
        store.stage(&wish, &source).await.unwrap();
        let asked: Vec<(usize, u64)> = from.into_iter().map(|byte| (0, byte)).collect();
        assert_eq!(*source.asked.lock().unwrap(), asked, "{held:?}");
        assert_eq!(leftovers(&releases), 0);
        store.remove(&wish.sha256).unwrap();
    }
}

#[tokio::test]
async fn refusals_name_the_cause_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let releases = dir.path().join("releases");
    let good = b"the good bytes".to_vec();
    let other = b"not the bytes!".to_vec();
    let long = b"the good bytes and more".to_vec();
    let wish = wish(&good, AssetKind::Binary);
    let (expected, got) = (wish.sha256, Digest::of(&other));
    let digests = format!("expected {expected} (14 bytes), got {got} (14 bytes");
    let short = format!(
        "expected {expected} (14 bytes), got {} (3 bytes",
        Digest::of(b"the")
    );
    let cases = [
        (
            vec![(Some(other), None)],
            None,
            Some(PermanentErrorKind::DigestMismatch),
            digests.as_str(),
        ),
        (
            vec![(Some(b"the".to_vec()), None)],
            None,
            Some(PermanentErrorKind::DigestMismatch),
            short.as_str(),
        ),
        (
            vec![(Some(long), None)],
            None,
            Some(PermanentErrorKind::DigestMismatch),
            "longer than the 14 bytes",
        ),
        (
            vec![(None, None)],
            None,
            Some(PermanentErrorKind::AssetMissing),
            "no coordinator has the asset shop",
        ),
        (vec![(Some(good.clone()), Some(0))], None, None, "0: reset"),
        (vec![], None, None, "no coordinator's HTTP address is known"),
        (
            vec![(Some(good.clone()), None)],
            Some(9),
            Some(PermanentErrorKind::DiskFull),
            "14 bytes are needed, 9 are free",
        ),
    ];
    for (mirrors, quota, kind, words) in cases {
        let mut store = ReleaseStore::open(releases.clone()).unwrap();
        if let Some(bytes) = quota {
            store = store.with_quota(bytes);
        }
        let error = store.stage(&wish, &scripted(mirrors)).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(words), "{error} lacks {words}");
        assert!(!store.has(&wish.sha256));
        assert_eq!(leftovers(&releases), 0);
    }
}

#[tokio::test]
async fn a_place_that_breaks_again_and_again_is_asked_for_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let store = ReleaseStore::open(dir.path().join("releases")).unwrap();
    let content = b"0123456789".to_vec();
    let source = scripted(vec![(Some(content.clone()), Some(4)), (None, None)]);
    let wish = wish(&content, AssetKind::Binary);
    store.stage(&wish, &source).await.unwrap();
    assert_eq!(
        *source.asked.lock().unwrap(),
        [(0, 0), (1, 4), (0, 4), (1, 8), (0, 8)]
    );
}

#[tokio::test]
async fn a_place_with_wrong_bytes_does_not_spoil_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = ReleaseStore::open(dir.path().join("releases")).unwrap();
    let content = b"0123456789".to_vec();
    let other = b"abcdefghij".to_vec();
    // The first gives half of something else, the second goes on: together they are wrong, and
    // then each is asked for the whole.
    let source = scripted(vec![
        (Some(other.clone()), Some(5)),
        (Some(content.clone()), None),
    ]);
    let wish = wish(&content, AssetKind::Binary);
    store.stage(&wish, &source).await.unwrap();
    assert_eq!(
        *source.asked.lock().unwrap(),
        [(0, 0), (1, 5), (0, 0), (1, 0)]
    );
    // One that is wrong alone is not asked again.
    store.remove(&wish.sha256).unwrap();
    let source = scripted(vec![(Some(other), None), (Some(content), None)]);
    store.stage(&wish, &source).await.unwrap();
    assert_eq!(*source.asked.lock().unwrap(), [(0, 0), (1, 0)]);
}

#[test]
fn a_slow_place_is_noticed_once_per_window() {
    let patience = Patience {
        silence: Duration::ZERO,
        least: 10,
        ..Patience::default()
    };
    let mut rate = Rate::new();
    assert!(rate.is_below(9, patience));
    assert!(!rate.is_below(10, patience));
    let patient = Patience {
        silence: Duration::from_secs(3_600),
        ..patience
    };
    assert!(!rate.is_below(0, patient));
}

#[test]
fn a_writer_on_a_full_disk_says_so() {
    let dir = tempfile::tempdir().unwrap();
    // The kernel's own full disk.
    let mut writer = PartWriter::open("/dev/full".into(), dir.path().into(), 5, None).unwrap();
    let error = writer.write(b"bytes").unwrap_err();
    assert_eq!(error.kind, Some(PermanentErrorKind::DiskFull));
}
