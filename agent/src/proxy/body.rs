//! The bodies that pass through: requests that can be sent again when they are empty, and answers that give
//! their connection back when they end. Bytes are handed on frame by frame; nothing is gathered.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::listener::Active;
use super::upstream::{Lease, Sender};

/// How far a request's body has come, seen by the one who waits for the answer.
#[derive(Default)]
pub(super) struct Progress {
    /// Frames, or [`DONE`].
    frames: AtomicU64,
    bytes: AtomicU64,
}

/// The body is completely handed over.
const DONE: u64 = u64::MAX;

impl Progress {
    /// A figure that changes while the body moves.
    pub(super) fn now(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Bytes that were handed over.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn is_done(&self) -> bool {
        self.now() == DONE
    }
}

/// The body of a request on its way to an instance.
pub(super) enum RequestBody {
    /// None: the request may be sent again.
    Empty,
    /// The client's body.
    Stream {
        body: Incoming,
        progress: Arc<Progress>,
    },
}

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        Self::Stream {
            body,
            progress: Arc::default(),
        }
    }
}

impl RequestBody {
    pub(super) fn progress(&self) -> Option<Arc<Progress>> {
        match self {
            Self::Empty => None,
            Self::Stream { progress, .. } => Some(Arc::clone(progress)),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Stream { body, progress } => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(context));
                if let Some(data) = data_of(&frame) {
                    progress.bytes.fetch_add(data, Ordering::Relaxed);
                }
                if frame.is_none() || body.is_end_stream() {
                    progress.frames.store(DONE, Ordering::Relaxed);
                } else {
                    progress.frames.fetch_add(1, Ordering::Relaxed);
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream { body, .. } => body.size_hint(),
        }
    }
}

/// Bytes of data in a frame.
fn data_of(frame: &Option<Result<Frame<Bytes>, hyper::Error>>) -> Option<u64> {
    let frame = frame.as_ref()?.as_ref().ok()?;
    frame.data_ref().map(|data| data.len() as u64)
}

/// What an answer from an instance holds until its last byte is handed over.
pub(super) struct Ending {
    pub(super) lease: Lease,
    pub(super) sender: Sender,
    /// The request's body, when it had one: a connection on which it is not finished is not used again.
    pub(super) progress: Option<Arc<Progress>>,
}

impl Ending {
    fn complete(self) {
        if self.progress.is_none_or(|progress| progress.is_done()) {
            self.lease.instance().give_back(self.sender);
        }
    }
}

/// The body of an answer on its way to a client.
pub(super) struct ResponseBody {
    source: Source,
    /// Keeps the client's connection awake until this body is gone.
    _active: Active,
}

enum Source {
    /// A text of the proxy's own.
    Text(Option<Bytes>),
    /// The instance's body. `ending` is taken when it is complete; while it is there, dropping the body
    /// closes the connection to the instance.
    Stream {
        body: Incoming,
        ending: Option<Ending>,
    },
}

impl ResponseBody {
    pub(super) fn empty(active: Active) -> Self {
        Self {
            source: Source::Text(None),
            _active: active,
        }
    }

    pub(super) fn text(text: String, active: Active) -> Self {
        Self {
            source: Source::Text(Some(text.into())),
            _active: active,
        }
    }

    pub(super) fn stream(body: Incoming, ending: Ending, active: Active) -> Self {
        let ending = if body.is_end_stream() {
            ending.complete();
            None
        } else {
            Some(ending)
        };
        Self {
            source: Source::Stream { body, ending },
            _active: active,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let (body, ending) = match &mut self.get_mut().source {
            Source::Text(text) => {
                return Poll::Ready(text.take().map(|text| Ok(Frame::data(text))));
            }
            Source::Stream { body, ending } => (body, ending),
        };
        let frame = ready!(Pin::new(&mut *body).poll_frame(context));
        if let (Some(data), Some(ending)) = (data_of(&frame), ending.as_ref()) {
            ending.lease.instance().ledger.stats.sent(data);
        }
        match &frame {
            Some(Err(_)) => {
                if let Some(ending) = ending.take() {
                    ending.lease.aborted();
                }
            }
            Some(Ok(_)) if !body.is_end_stream() => {}
            Some(Ok(_)) | None => {
                if let Some(ending) = ending.take() {
                    ending.complete();
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Text(text) => text.is_none(),
            Source::Stream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Source::Stream { body, .. } => body.size_hint(),
        }
    }
}
