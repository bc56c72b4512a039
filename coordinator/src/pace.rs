//! Transfers that must go on: who sends or takes too slowly is let go, so that nobody holds a place
//! for ever. No clock is read; a timer is all that is needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::BodyExt as _;

use crate::storage::blobs::{BlobError, Incoming};

/// The least that has to come.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Looked at so often.
    pub window: Duration,
    /// Bytes in that time.
    pub least: u64,
}

impl Default for Pace {
    /// 4 KiB per second, over 30 seconds.
    fn default() -> Self {
        Self {
            window: Duration::from_secs(30),
            least: 30 * 4_096,
        }
    }
}

/// Why a transfer into the store ended early.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The sender went.
    #[error("the transfer broke off: {0}")]
    Off(String),
    /// The sender was too slow.
    #[error("the transfer was too slow: {} bytes came in {:?}, at least {} are wanted", .0.0, .0.1.window, .0.1.least)]
    Slow((u64, Pace)),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] BlobError),
}

/// Takes a body into the store.
///
/// # Errors
/// [`Broken`].
pub async fn receive<B>(body: &mut B, incoming: &mut Incoming, pace: Pace) -> Result<(), Broken>
where
    B: hyper::body::Body<Data = bytes::Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let window = tokio::time::sleep(pace.window);
    tokio::pin!(window);
    let mut came = 0_u64;
    loop {
        tokio::select! {
            frame = body.frame() => match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        came += data.len() as u64;
                        incoming.push(&data).await?;
                    }
                }
                Some(Err(error)) => return Err(Broken::Off(error.to_string())),
                None => return Ok(()),
            },
            () = &mut window => {
                if came < pace.least {
                    return Err(Broken::Slow((came, pace)));
                }
                came = 0;
                window.set(tokio::time::sleep(pace.window));
            }
        }
    }
}

/// How much of something was sent.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// So much more.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Resolves when two windows in a row brought nothing: one may go by while the other side puts
    /// everything on its disk.
    pub async fn stalls(&self, pace: Pace) {
        let mut quiet = 0;
        let mut before = 0;
        while quiet < 2 {
            tokio::time::sleep(pace.window).await;
            let sent = self.0.load(Ordering::Relaxed);
            quiet = if sent == before { quiet + 1 } else { 0 };
            before = sent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::blobs::Blobs;
    use hyper::body::Frame;
    use std::convert::Infallible;
    use tidegate_shared::digest::Digest;

    type Piece = Result<Frame<bytes::Bytes>, Infallible>;

    #[tokio::test]
    async fn a_sender_that_stalls_is_let_go_and_nothing_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path(), 1_000).unwrap();
        let mut incoming = blobs.receive(Digest::of(b"hello")).await.unwrap();
        let (sender, receiver) = tokio::sync::mpsc::channel::<Piece>(4);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut body = http_body_util::StreamBody::new(stream);
        sender
            .send(Ok(Frame::data(bytes::Bytes::from_static(b"hel"))))
            .await
            .unwrap();
        let pace = Pace {
            window: Duration::from_millis(20),
            least: 1,
        };
        let error = receive(&mut body, &mut incoming, pace).await.unwrap_err();
        assert!(error.to_string().contains("0 bytes came"), "{error}");
        drop(incoming);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_receiver_that_stalls_is_noticed() {
        let progress = Progress::default();
        progress.add(5);
        let pace = Pace {
            window: Duration::from_millis(5),
            least: 1,
        };
        progress.stalls(pace).await;
    }
}
