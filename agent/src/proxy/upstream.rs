//! One instance of a version: its pooled connections, and the sending of one request over one of them.
//!
//! What may be sent again is decided here, and only this: a request of which nothing was written goes to
//! another connection; a request that may be repeated and whose *reused* connection ended before an answer
//! goes out once more on a fresh one, because an instance may close an idle connection at any moment.
//! Everything else is the instance's failure and is counted as one. Which instance is asked is not decided
//! here. The forwarding calls this; the engine owns the instances.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::header::{HOST, UPGRADE};
use hyper::http::uri::{Authority, PathAndQuery};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::AbortHandle;

use super::body::{Progress, RequestBody};
use super::stats::{ErrorMarks, Stats};

/// The sending half of a connection to an instance.
pub(super) enum Sender {
    /// For one request at a time.
    Http1(http1::SendRequest<RequestBody>),
    /// For many; the instance keeps it.
    Http2,
}

/// How long a connection may take to be accepted.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that were idle for longer are not used again: many servers close theirs after five seconds,
/// and a request that cannot be repeated must not meet that moment.
pub(super) const IDLE_LIMIT: Duration = Duration::from_secs(4);

/// Most idle connections that are kept per instance.
const IDLE_MAX: usize = 512;

/// How long other instances are preferred after one refused a connection.
const AVOID: Duration = Duration::from_secs(1);

/// Locks a mutex whose holders cannot leave it half-changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The part of an instance that outlives a change of its address: counts and running connections.
pub(super) struct Ledger {
    pub(super) stats: Stats,
    /// Requests and tunnels that are open.
    open: AtomicU64,
    /// Tasks that drive connections and tunnels; ended ones are swept out now and then.
    tasks: Mutex<Vec<AbortHandle>>,
    /// Set when the connections were cut on purpose: what then fails is not the instance's fault.
    closed: AtomicBool,
    marks: Arc<ErrorMarks>,
}

impl Ledger {
    pub(super) fn new(marks: Arc<ErrorMarks>, now_ms: u64) -> Self {
        Self {
            stats: Stats::new(now_ms),
            open: AtomicU64::new(0),
            tasks: Mutex::default(),
            closed: AtomicBool::new(false),
            marks,
        }
    }

    pub(super) fn open(&self) -> u64 {
        self.open.load(Ordering::SeqCst)
    }

    /// Counts a request that began at `started` and got no answer. Where connections were cut on purpose
    /// that is not the instance's fault.
    pub(super) fn failed(&self, started: Instant) {
        if self.closed.load(Ordering::SeqCst) {
            self.stats.abandoned(started.elapsed());
        } else {
            self.stats.failed(started.elapsed(), &self.marks);
        }
    }

    /// Remembers a task so that [`Self::close`] ends it.
    pub(super) fn adopt(&self, task: AbortHandle) {
        let mut tasks = lock(&self.tasks);
        if tasks.len() == tasks.capacity() {
            tasks.retain(|task| !task.is_finished());
        }
        if self.closed.load(Ordering::SeqCst) {
            task.abort();
        }
        tasks.push(task);
    }

    /// Cuts every connection and tunnel, and those that are made from now on.
    pub(super) fn close(&self) {
        let tasks = lock(&self.tasks);
        self.closed.store(true, Ordering::SeqCst);
        for task in tasks.iter() {
            task.abort();
        }
    }

    /// Lets connections live again after a [`Self::close`].
    pub(super) fn reopen(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }
}

/// One instance at one address.
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) address: SocketAddr,
    pub(super) ledger: Arc<Ledger>,
    /// False: no new requests. Read after `open` was raised and written before `open` is read, so that a
    /// drained instance with no open request never gets another one.
    accepting: AtomicBool,
    /// It is spoken to in HTTP/2, but for upgrades.
    http2: bool,
    idle: Mutex<Vec<Idle>>,
    /// The connection that all requests in HTTP/2 share.
    shared: AsyncMutex<Option<http2::SendRequest<RequestBody>>>,
    /// Microseconds after `born` until which other instances are preferred.
    avoid_until: AtomicU64,
    born: Instant,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

/// Why a request got no answer.
pub(super) enum Failure {
    /// No connection could be made and nothing was sent: the request can go elsewhere.
    Connect {
        request: Box<Request<RequestBody>>,
        reason: String,
    },
    /// It was sent, or may have been, and no answer came.
    Lost { reason: String },
    /// The instance was silent for too long.
    Timeout,
}

/// An answer with what it needs at its end.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) sender: Sender,
    pub(super) progress: Option<Arc<Progress>>,
}

impl Instance {
    pub(super) fn new(id: String, address: SocketAddr, http2: bool, ledger: Arc<Ledger>) -> Self {
        Self {
            id,
            address,
            ledger,
            accepting: AtomicBool::new(false),
            http2,
            idle: Mutex::default(),
            shared: AsyncMutex::default(),
            avoid_until: AtomicU64::new(0),
            born: Instant::now(),
        }
    }

    /// Whether it is this one.
    pub(super) fn is_at(&self, address: SocketAddr, http2: bool) -> bool {
        self.address == address && self.http2 == http2
    }

    pub(super) fn is_accepting(&self) -> bool {
        self.accepting.load(Ordering::SeqCst)
    }

    /// Opens or ends the stream of new requests. At the end idle connections are closed, so that an
    /// instance that is asked to stop does not wait for them.
    pub(super) fn set_accepting(&self, accepting: bool) {
        self.accepting.store(accepting, Ordering::SeqCst);
        if !accepting {
            lock(&self.idle).clear();
            // Somebody who holds it is about to use it; it then closes with the last of its requests.
            if let Ok(mut shared) = self.shared.try_lock() {
                *shared = None;
            }
        }
    }

    /// Closes connections that were idle for too long.
    pub(super) fn sweep(&self, now: Instant) {
        lock(&self.idle).retain(|idle| now.duration_since(idle.since) < IDLE_LIMIT);
    }

    pub(super) fn is_avoided(&self) -> bool {
        let until = self.avoid_until.load(Ordering::Relaxed);
        until != 0 && (self.born.elapsed().as_micros() as u64) < until
    }

    pub(super) fn avoid(&self) {
        let until = (self.born.elapsed() + AVOID).as_micros() as u64;
        self.avoid_until.store(until, Ordering::Relaxed);
    }

    /// Takes back a connection whose answer is complete.
    pub(super) fn give_back(&self, sender: Sender) {
        let Sender::Http1(sender) = sender else {
            return;
        };
        if sender.is_closed() || !self.is_accepting() {
            return;
        }
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE_MAX {
            idle.push(Idle {
                sender,
                since: Instant::now(),
            });
        }
        drop(idle);
        if !self.is_accepting() {
            lock(&self.idle).clear();
        }
    }

    fn take_idle(&self) -> Option<http1::SendRequest<RequestBody>> {
        let mut idle = lock(&self.idle);
        while let Some(Idle { sender, since }) = idle.pop() {
            if since.elapsed() >= IDLE_LIMIT {
                // The ones below it are older still.
                idle.clear();
                return None;
            }
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    /// Sends one request and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        request: Request<RequestBody>,
        silence: Duration,
    ) -> Result<Answer, Failure> {
        let progress = request.body().progress();
        if self.http2 && !request.headers().contains_key(UPGRADE) {
            return self.send_http2(request, progress, silence).await;
        }
        let repeatable = progress.is_none() && is_idempotent(request.method());
        let mut request = request;
        while let Some(mut sender) = self.take_idle() {
            // Its last answer ended a moment ago and its task may not have noticed yet.
            if !sender.is_ready() && sender.ready().await.is_err() {
                continue;
            }
            let copy = repeatable.then(|| copy_of(&request));
            let answer = sender.try_send_request(request);
            match exchange(answer, progress.as_deref(), silence).await {
                Ok(response) => {
                    return Ok(Answer {
                        response,
                        sender: Sender::Http1(sender),
                        progress,
                    });
                }
                Err(Broken::Unsent(unsent)) => request = *unsent,
                Err(Broken::Silent) => return Err(Failure::Timeout),
                Err(Broken::Lost(reason)) => match copy {
                    Some(copy) if !self.ledger.closed.load(Ordering::SeqCst) => {
                        request = copy;
                        break;
                    }
                    Some(_) | None => return Err(Failure::Lost { reason }),
                },
            }
        }
        let mut sender = match self.connect().await {
            Ok(sender) => sender,
            Err(reason) => {
                return Err(Failure::Connect {
                    request: Box::new(request),
                    reason,
                });
            }
        };
        let answer = sender.try_send_request(request);
        match exchange(answer, progress.as_deref(), silence).await {
            Ok(response) => Ok(Answer {
                response,
                sender: Sender::Http1(sender),
                progress,
            }),
            Err(Broken::Unsent(request)) => {
                let reason = "the connection was closed as soon as it was accepted".to_owned();
                Err(Failure::Connect { request, reason })
            }
            Err(Broken::Lost(reason)) => Err(Failure::Lost { reason }),
            Err(Broken::Silent) => Err(Failure::Timeout),
        }
    }

    /// Sends one request over the connection that all share, which is made anew when it has ended.
    async fn send_http2(
        &self,
        request: Request<RequestBody>,
        progress: Option<Arc<Progress>>,
        silence: Duration,
    ) -> Result<Answer, Failure> {
        let mut request = with_authority(request, self.address);
        // A connection may end between its choice and its use; a fresh one that does is refused.
        for attempt in 0..2 {
            let mut sender = match self.shared(attempt > 0).await {
                Ok(sender) => sender,
                Err(reason) => {
                    let request = Box::new(request);
                    return Err(Failure::Connect { request, reason });
                }
            };
            let answer = sender.try_send_request(request);
            match exchange(answer, progress.as_deref(), silence).await {
                Ok(response) => {
                    return Ok(Answer {
                        response,
                        sender: Sender::Http2,
                        progress,
                    });
                }
                Err(Broken::Unsent(unsent)) => request = *unsent,
                Err(Broken::Lost(reason)) => return Err(Failure::Lost { reason }),
                Err(Broken::Silent) => return Err(Failure::Timeout),
            }
        }
        let reason = "the connection was closed as soon as it was accepted".to_owned();
        let request = Box::new(request);
        Err(Failure::Connect { request, reason })
    }

    /// The connection that requests in HTTP/2 share; a new one if there is none, or if `fresh`.
    async fn shared(&self, fresh: bool) -> Result<http2::SendRequest<RequestBody>, String> {
        let mut shared = self.shared.lock().await;
        if let Some(sender) = shared.as_ref().filter(|s| !fresh && !s.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = self.reach().await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).adaptive_window(true);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| error.to_string())?;
        let task = tokio::spawn(async move {
            // An error here is also the answer to the requests that are under way.
            connection.await.ok();
        });
        self.ledger.adopt(task.abort_handle());
        if self.is_accepting() {
            *shared = Some(sender.clone());
        }
        Ok(sender)
    }

    async fn reach(&self) -> Result<TcpStream, String> {
        let stream =
            match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(self.address)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => {
                    return Err(format!(
                        "no connection within {} s",
                        CONNECT_TIMEOUT.as_secs()
                    ));
                }
            };
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        Ok(stream)
    }

    async fn connect(&self) -> Result<http1::SendRequest<RequestBody>, String> {
        let stream = self.reach().await?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| error.to_string())?;
        let task = tokio::spawn(async move {
            // An error here is also the answer to the request that is under way.
            connection.with_upgrades().await.ok();
        });
        self.ledger.adopt(task.abort_handle());
        Ok(sender)
    }
}

/// How an exchange ended without an answer.
enum Broken {
    Unsent(Box<Request<RequestBody>>),
    Lost(String),
    Silent,
}

async fn exchange(
    answer: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
    progress: Option<&Progress>,
    silence: Duration,
) -> Result<Response<Incoming>, Broken> {
    let mut answer = std::pin::pin!(answer);
    let mut seen = progress.map(Progress::now);
    loop {
        match tokio::time::timeout(silence, answer.as_mut()).await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(mut error)) => {
                return Err(match error.take_message() {
                    Some(request) => Broken::Unsent(Box::new(request)),
                    None => Broken::Lost(error.into_error().to_string()),
                });
            }
            // A long upload is not silence as long as it moves.
            Err(_) if progress.map(Progress::now) != seen => seen = progress.map(Progress::now),
            Err(_) => return Err(Broken::Silent),
        }
    }
}

/// The request as HTTP/2 wants it: whom it is for stands in its target, not in `Host`.
fn with_authority(mut request: Request<RequestBody>, address: SocketAddr) -> Request<RequestBody> {
    *request.version_mut() = Version::HTTP_2;
    if request.uri().authority().is_some() {
        return request;
    }
    let host = request.headers_mut().remove(HOST);
    let named = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let path = request.uri().path_and_query().cloned();
    let uri = Uri::builder()
        .scheme("http")
        .path_and_query(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    let uri = match named {
        Some(authority) => uri.authority(authority),
        None => uri.authority(address.to_string()),
    };
    // All its parts are valid.
    if let Ok(uri) = uri.build() {
        *request.uri_mut() = uri;
    }
    request
}

/// Methods that may be sent twice (RFC 9110 §9.2.2).
fn is_idempotent(method: &Method) -> bool {
    [
        Method::GET,
        Method::HEAD,
        Method::OPTIONS,
        Method::PUT,
        Method::DELETE,
        Method::TRACE,
    ]
    .contains(method)
}

fn copy_of(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// The right to send one request to an instance; the instance counts as busy while it lives.
pub(super) struct Lease {
    instance: Arc<Instance>,
    started: Instant,
    settled: bool,
    /// The request's body, whose bytes are counted at the end.
    body: Option<Arc<Progress>>,
}

impl Lease {
    /// `None` when the instance takes no new requests any more.
    pub(super) fn take(instance: &Arc<Instance>, started: Instant) -> Option<Self> {
        instance.ledger.open.fetch_add(1, Ordering::SeqCst);
        let lease = Self {
            instance: Arc::clone(instance),
            started,
            settled: false,
            body: None,
        };
        if instance.is_accepting() {
            return Some(lease);
        }
        lease.cancel();
        None
    }

    pub(super) fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// Counts the bytes of a request's body when the lease ends.
    pub(super) fn carries(&mut self, body: Option<Arc<Progress>>) {
        self.body = body;
    }

    /// The instance took a raw connection: no status will come.
    pub(super) fn taken(mut self) -> Self {
        self.settled = true;
        self
    }

    /// Nothing was sent; nothing is counted.
    pub(super) fn cancel(mut self) {
        self.settled = true;
    }

    /// The head of the answer came.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.settled = true;
        let ledger = &self.instance.ledger;
        ledger
            .stats
            .answered(status, self.started.elapsed(), &ledger.marks);
    }

    /// No answer came.
    pub(super) fn failed(mut self) {
        self.settled = true;
        self.instance.ledger.failed(self.started);
    }

    /// The answer broke off after its head.
    pub(super) fn aborted(self) {
        if !self.instance.ledger.closed.load(Ordering::SeqCst) {
            self.instance.ledger.stats.aborted();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.settled {
            self.instance.ledger.stats.abandoned(self.started.elapsed());
        }
        if let Some(body) = &self.body {
            self.instance.ledger.stats.received(body.bytes());
        }
        self.instance.ledger.open.fetch_sub(1, Ordering::SeqCst);
    }
}
