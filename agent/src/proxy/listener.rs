//! A listening socket, its connections, and the picture of routes that its requests follow.
//!
//! A listener belongs to an address, not to a scope: the engine may hand it from one scope to another
//! without closing it. It accepts, watches for connections that sleep too long, and ends them gently; it
//! knows nothing of versions.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hyper::Version;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::forward::forward;
use super::routes::{Routes, Security};
use super::table::Protocol;
use super::tcp;
use super::upstream::lock;

/// A client connection without a request is asked to end after this time…
const SLEEP_LIMIT: Duration = Duration::from_secs(75);
/// …and cut after this one: half a request head does not hold a connection for ever.
const SLEEP_CUT: Duration = Duration::from_secs(90);

/// While a door is left: a connection over which no request came for so long is ended.
const FAREWELL: Duration = Duration::from_secs(10);

/// How long a client may take to agree on TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Pause after a failed accept: the usual reason is that descriptors ran out, and that takes time to mend.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A held listener. [`Listener::close`] must be called to end it.
pub(super) struct Listener {
    pub(super) door: Arc<Door>,
    /// `None` once it was given away: the door stays for the connections that came through it.
    socket: Option<Arc<TcpListener>>,
    /// `None` while it does not accept.
    accept: Option<JoinHandle<()>>,
}

/// What the connections of one listener share.
pub(super) struct Door {
    routes: RwLock<Arc<Routes>>,
    connections: Mutex<HashMap<u64, Connection>>,
    next_id: AtomicU64,
    /// Nobody comes in any more and those inside shall go, see [`Door::leave`].
    leaving: AtomicBool,
}

struct Connection {
    /// Asks the connection to end after its open requests; taken when that was asked.
    end: Option<oneshot::Sender<()>>,
    task: AbortHandle,
    activity: Arc<Activity>,
}

/// One client connection, as its requests see it.
pub(super) struct Client {
    pub(super) door: Arc<Door>,
    pub(super) forwarded_for: HeaderValue,
    /// It came over TLS.
    pub(super) secure: bool,
    pub(super) activity: Arc<Activity>,
}

/// When a connection last had a request.
pub(super) struct Activity {
    born: Instant,
    active: AtomicUsize,
    last_ms: AtomicU64,
    /// Its requests come over HTTP/2, which can be told to go without a request being lost.
    http2: AtomicBool,
}

/// A request is under way on a connection while this lives: until the last byte of its answer.
pub(super) struct Active(Arc<Activity>);

impl Activity {
    fn new() -> Self {
        Self {
            born: Instant::now(),
            active: AtomicUsize::new(0),
            last_ms: AtomicU64::new(0),
            http2: AtomicBool::new(false),
        }
    }

    /// Remembers which protocol the client speaks.
    pub(super) fn speaks(&self, version: Version) {
        if version == Version::HTTP_2 {
            self.http2.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn begin(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Ordering::Relaxed);
        Active(Arc::clone(self))
    }

    fn asleep_for(&self) -> Duration {
        if self.active.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.born.elapsed().saturating_sub(last)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let now = self.0.born.elapsed().as_millis() as u64;
        self.0.last_ms.store(now, Ordering::Relaxed);
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Door {
    pub(super) fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_routes(&self, routes: Arc<Routes>) {
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes;
    }

    /// Connections that are open, not counting those that became tunnels.
    pub(super) fn connections(&self) -> usize {
        lock(&self.connections).len()
    }

    /// Asks every connection to end after its open requests.
    pub(super) fn end_connections(&self) {
        for connection in lock(&self.connections).values_mut() {
            connection.ask_to_end();
        }
    }

    /// Cuts every connection.
    pub(super) fn cut_connections(&self) {
        for connection in lock(&self.connections).values() {
            connection.task.abort();
        }
    }

    /// Sends every connection away without losing a request: HTTP/2 has a word for it; an HTTP/1
    /// connection hears of it in its next answer, because closing it while it is idle would race with a
    /// request that is on its way. One without a request for [`FAREWELL`] is ended by the sweep.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        self.sweep();
    }

    /// Whether answers shall tell clients to go.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Ends connections that slept for too long.
    pub(super) fn sweep(&self) {
        let leaving = self.is_leaving();
        let limit = if leaving { FAREWELL } else { SLEEP_LIMIT };
        for connection in lock(&self.connections).values_mut() {
            let asleep = connection.activity.asleep_for();
            let told = leaving && connection.activity.http2.load(Ordering::Relaxed);
            if asleep >= SLEEP_CUT {
                connection.task.abort();
            } else if asleep >= limit || told {
                connection.ask_to_end();
            }
        }
    }
}

impl Connection {
    fn ask_to_end(&mut self) {
        if let Some(end) = self.end.take() {
            // Fails when the connection has just ended by itself.
            end.send(()).ok();
        }
    }
}

impl Listener {
    /// Binds and begins to accept. Must be called within the runtime.
    ///
    /// # Errors
    /// What the system says about the address.
    pub(super) fn open(address: SocketAddr, routes: Arc<Routes>) -> io::Result<Self> {
        let mut listener = Self::of(StdListener::bind(address)?, routes)?;
        listener.resume();
        Ok(listener)
    }

    /// Holds a listening socket without accepting yet. Must be called within the runtime.
    ///
    /// # Errors
    /// What the system says about the socket.
    pub(super) fn of(socket: StdListener, routes: Arc<Routes>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket)?;
        let door = Arc::new(Door {
            routes: RwLock::new(routes),
            connections: Mutex::default(),
            next_id: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
        });
        Ok(Self {
            door,
            socket: Some(Arc::new(socket)),
            accept: None,
        })
    }

    /// The socket, if it is still here.
    pub(super) fn socket(&self) -> Option<Arc<TcpListener>> {
        self.socket.clone()
    }

    /// Accepts no more; connections wait in the socket until somebody accepts again.
    pub(super) async fn pause(&mut self) {
        if let Some(accept) = self.accept.take() {
            accept.abort();
            // An error here says that it was aborted.
            accept.await.ok();
        }
    }

    /// Accepts again.
    pub(super) fn resume(&mut self) {
        if let (None, Some(socket)) = (&self.accept, &self.socket) {
            let (socket, door) = (Arc::clone(socket), Arc::clone(&self.door));
            self.accept = Some(tokio::spawn(accept(socket, door)));
        }
    }

    /// Lets the socket go and sends the connections away.
    pub(super) async fn give_away(&mut self) {
        self.pause().await;
        self.socket = None;
        self.door.leave();
    }

    /// Closes the socket; when this returns the address is free. Connections go on.
    pub(super) async fn close(mut self) -> Arc<Door> {
        self.pause().await;
        self.door
    }
}

async fn accept(socket: Arc<TcpListener>, door: Arc<Door>) {
    let mut failing = false;
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => {
                failing = false;
                serve(stream, peer, &door);
            }
            Err(error) => {
                if !failing {
                    warn!(%error, "cannot accept connections, trying on");
                }
                failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Starts the task of one connection.
fn serve(stream: TcpStream, peer: SocketAddr, door: &Arc<Door>) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "the client was gone at once");
        return;
    }
    let ip = peer.ip().to_canonical().to_string();
    let Ok(forwarded_for) = HeaderValue::from_str(&ip) else {
        return;
    };
    let activity = Arc::new(Activity::new());
    let client = Client {
        door: Arc::clone(door),
        forwarded_for,
        secure: false,
        activity: Arc::clone(&activity),
    };
    let id = door.next_id.fetch_add(1, Ordering::Relaxed);
    let (end, ended) = oneshot::channel();
    // Held until the entry is in the map, so that the task cannot remove it before it is there.
    let mut connections = lock(&door.connections);
    let task = tokio::spawn(drive(
        stream,
        client,
        ended,
        Registered {
            id,
            door: Arc::clone(door),
        },
    ));
    let task = task.abort_handle();
    connections.insert(
        id,
        Connection {
            end: Some(end),
            task,
            activity,
        },
    );
}

/// Takes a connection out of the map when its task ends, however that happens.
struct Registered {
    id: u64,
    door: Arc<Door>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.door.connections).remove(&self.id);
    }
}

/// One connection from its first byte to its last, by the settings that the door has now.
async fn drive(
    stream: TcpStream,
    client: Client,
    ended: oneshot::Receiver<()>,
    registered: Registered,
) {
    let (security, protocol) = {
        let routes = client.door.routes();
        (routes.security.clone(), routes.protocol)
    };
    match security {
        Security::Cleartext => talk(stream, client, protocol, ended, registered).await,
        Security::Tls(config) => {
            let handshake = TlsAcceptor::from(config).accept(stream);
            match tokio::time::timeout(HANDSHAKE, handshake).await {
                Ok(Ok(stream)) => {
                    let client = Client {
                        secure: true,
                        ..client
                    };
                    talk(stream, client, protocol, ended, registered).await;
                }
                Ok(Err(error)) => debug!(%error, "no TLS"),
                Err(_) => debug!("no TLS in time"),
            }
        }
        Security::Broken => debug!("nobody is let in without a certificate"),
    }
}

async fn talk<S>(
    stream: S,
    client: Client,
    protocol: Protocol,
    mut ended: oneshot::Receiver<()>,
    registered: Registered,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    if protocol == Protocol::Tcp {
        // Nothing can be said to it; it ends by itself or is cut.
        return tcp::carry(&client, stream).await;
    }
    let client = Arc::new(client);
    let builder = auto::Builder::new(TokioExecutor::new());
    let service = service_fn(move |request| forward(Arc::clone(&client), request));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        biased;
        outcome = connection.as_mut() => outcome,
        _ = &mut ended => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    drop(registered);
    if let Err(error) = outcome {
        debug!(%error, "client connection broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_sleeps_only_between_requests() {
        let activity = Arc::new(Activity {
            born: Instant::now() - Duration::from_secs(100),
            active: AtomicUsize::new(0),
            last_ms: AtomicU64::new(0),
            http2: AtomicBool::new(false),
        });
        assert!(
            activity.asleep_for() >= Duration::from_secs(100),
            "no request ever came"
        );
        let (first, second) = (activity.begin(), activity.begin());
        drop(first);
        assert_eq!(
            activity.asleep_for(),
            Duration::ZERO,
            "an answer is still on its way"
        );
        drop(second);
        assert!(
            activity.asleep_for() < Duration::from_secs(50),
            "its sleep begins anew"
        );
    }
}
