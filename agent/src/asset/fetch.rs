//! Fetching an asset from any coordinator, hashed and counted while it streams.
//!
//! A source that breaks is followed by the next one, which goes on where the last one ended. Bytes
//! of a wrong digest are never used, and that is told with both digests.

use std::pin::Pin;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::header::{HOST, RANGE};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tidegate_shared::assignment::{AssetWish, PermanentErrorKind};
use tidegate_shared::digest::Digest;
use tokio::sync::watch;
use tracing::debug;

use super::{PartWriter, StageError};
use crate::session::Coordinators;
use crate::tls::Tls;

/// Rounds over all sources before the fetch is given up for this time.
const ROUNDS: u32 = 3;

/// Longest silence of a source.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// A future of a source.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where assets come from.
pub trait Source: Send + Sync {
    /// The places that have assets, in the order in which they should be asked.
    fn mirrors(&self) -> Vec<String>;

    /// Opens the blob at one of them, from a byte on.
    fn open<'a>(&'a self, mirror: &'a str, digest: Digest, from: u64) -> Answer<'a, Opened>;
}

/// What a place answered.
pub enum Opened {
    /// The bytes from `from` on; it may be less than was asked for.
    Body {
        /// Position of the first byte.
        from: u64,
        /// The rest of the blob.
        body: Box<dyn Pieces>,
    },
    /// It does not have the blob.
    Missing,
    /// It could not answer.
    Failed(String),
}

/// A stream of pieces.
pub trait Pieces: Send {
    /// The next piece; none at the end.
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, String>>>;
}

/// Fetches the wish into the writer.
///
/// # Errors
/// Wrong bytes, a full disk, nobody has it, or it broke for now.
pub async fn fetch(
    wish: &AssetWish,
    source: &dyn Source,
    writer: &mut PartWriter,
) -> Result<(), StageError> {
    let mut progress = Progress {
        hash: Sha256::new(),
        received: 0,
    };
    let mirrors = source.mirrors();
    if mirrors.is_empty() {
        return Err(StageError::transient(
            "no coordinator's HTTP address is known",
        ));
    }
    let mut trouble = String::new();
    for _ in 0..ROUNDS {
        let mut missing = 0;
        for mirror in &mirrors {
            match source.open(mirror, wish.sha256, progress.received).await {
                Opened::Missing => missing += 1,
                Opened::Failed(why) => trouble = format!("{mirror}: {why}"),
                Opened::Body { from, body } => {
                    match progress.take(wish, from, body, writer).await? {
                        Ok(()) => return progress.judge(wish, mirror),
                        Err(why) => trouble = format!("{mirror}: {why}"),
                    }
                }
            }
        }
        if missing == mirrors.len() {
            let message = format!(
                "no coordinator has the asset {} ({})",
                wish.name, wish.sha256
            );
            return Err(StageError::permanent(
                PermanentErrorKind::AssetMissing,
                message,
            ));
        }
        debug!(asset = %wish.name, trouble, "the fetch goes on with the next source");
    }
    Err(StageError::transient(format!(
        "the asset {} cannot be fetched: {trouble}",
        wish.name
    )))
}

struct Progress {
    hash: Sha256,
    received: u64,
}

impl Progress {
    /// Takes what comes; the inner error is the source's, the outer one ends the fetch.
    async fn take(
        &mut self,
        wish: &AssetWish,
        from: u64,
        mut body: Box<dyn Pieces>,
        writer: &mut PartWriter,
    ) -> Result<Result<(), String>, StageError> {
        // A source that cannot resume begins at zero: what is here already is skipped.
        let Some(mut skip) = self.received.checked_sub(from) else {
            return Ok(Err(
                "it answered with another part than was asked for".to_owned()
            ));
        };
        loop {
            let piece = match tokio::time::timeout(SILENCE, body.next()).await {
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(why))) => return Ok(Err(why)),
                // A connection that broke is an error; a clean end is the blob's own, and the
                // digest tells whether it is the right one.
                Ok(None) => return Ok(Ok(())),
                Err(_) => return Ok(Err("was silent for 30 s".to_owned())),
            };
            let skipped = skip.min(piece.len() as u64);
            skip -= skipped;
            let fresh = &piece[usize::try_from(skipped).unwrap_or(piece.len())..];
            if self.received + fresh.len() as u64 > wish.size {
                let message = format!(
                    "the asset {} is longer than the {} bytes of its release",
                    wish.name, wish.size
                );
                return Err(StageError::permanent(
                    PermanentErrorKind::DigestMismatch,
                    message,
                ));
            }
            writer.write(fresh)?;
            self.hash.update(fresh);
            self.received += fresh.len() as u64;
        }
    }

    fn judge(&self, wish: &AssetWish, mirror: &str) -> Result<(), StageError> {
        let got = Digest::from_bytes(self.hash.clone().finalize().into());
        if got == wish.sha256 {
            return Ok(());
        }
        let message = format!(
            "the asset {} has a wrong digest: expected {} ({} bytes), got {got} ({} bytes, from {mirror})",
            wish.name, wish.sha256, wish.size, self.received
        );
        Err(StageError::permanent(
            PermanentErrorKind::DigestMismatch,
            message,
        ))
    }
}

/// The coordinators' own store, over mutual TLS.
pub struct Coordinated {
    /// The agent's certificate.
    pub tls: Tls,
    /// The coordinators as they are known now.
    pub coordinators: watch::Receiver<Coordinators>,
}

impl Source for Coordinated {
    fn mirrors(&self) -> Vec<String> {
        let mut mirrors = self.coordinators.borrow().http.clone();
        // Agents begin at different ones, so that a rollout spreads over all coordinators.
        if !mirrors.is_empty() {
            let start = crate::jitter::below(mirrors.len() as u64) as usize;
            mirrors.rotate_left(start);
        }
        mirrors
    }

    fn open<'a>(&'a self, mirror: &'a str, digest: Digest, from: u64) -> Answer<'a, Opened> {
        Box::pin(async move {
            match tokio::time::timeout(SILENCE, self.get(mirror, digest, from)).await {
                Ok(Ok(opened)) => opened,
                Ok(Err(why)) => Opened::Failed(why),
                Err(_) => Opened::Failed("was silent for 30 s".to_owned()),
            }
        })
    }
}

impl Coordinated {
    async fn get(&self, mirror: &str, digest: Digest, from: u64) -> Result<Opened, String> {
        let stream = self
            .tls
            .connect(mirror, b"http/1.1")
            .await
            .map_err(|e| e.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
                .await
                .map_err(|e| e.to_string())?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "the connection to a coordinator's store ended");
            }
        });
        let mut request = Request::get(format!("/v1/blobs/{digest}")).header(HOST, mirror);
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let request = request.body(Empty::new()).map_err(|e| e.to_string())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())?;
        let from = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => from,
            StatusCode::NOT_FOUND => return Ok(Opened::Missing),
            other => return Err(format!("answered {other}")),
        };
        let body = Box::new(HttpPieces {
            body: response.into_body(),
            _sender: sender,
            driver,
        });
        Ok(Opened::Body { from, body })
    }
}

struct HttpPieces {
    body: Incoming,
    _sender: hyper::client::conn::http1::SendRequest<Empty<Bytes>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for HttpPieces {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Pieces for HttpPieces {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, String>>> {
        Box::pin(async move {
            loop {
                match self.body.frame().await? {
                    Ok(frame) => {
                        if let Ok(data) = frame.into_data() {
                            return Some(Ok(data));
                        }
                    }
                    Err(error) => return Some(Err(error.to_string())),
                }
            }
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
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
        fn mirrors(&self) -> Vec<String> {
            (0..self.mirrors.len()).map(|n| n.to_string()).collect()
        }

        fn open<'a>(&'a self, mirror: &'a str, _: Digest, from: u64) -> Answer<'a, Opened> {
            let number: usize = mirror.parse().unwrap();
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
            (vec![(Some(good.clone()), Some(1))], None, None, "0: reset"),
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

    #[test]
    fn a_writer_on_a_full_disk_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let store = ReleaseStore::open(dir.path().join("releases")).unwrap();
        // The kernel's own full disk.
        let mut writer = store.writer(std::path::Path::new("/dev/full"), 5).unwrap();
        let error = writer.write(b"bytes").unwrap_err();
        assert_eq!(error.kind, Some(PermanentErrorKind::DiskFull));
    }
}
