//! The control socket: `DIR/control`, mode 0600, one JSON object per line each way.
//!
//! Requests and answers are [`ControlRequest`] and [`ControlReply`], answered in order. A line that is too
//! long or cannot be read gets `malformed` with the reason, and that connection ends; the process and every
//! other connection go on. The end of a connection changes nothing. Both ends of the socket are here: the
//! server for the proxy, the client for the agent.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::engine::Engine;
use super::handover::Channel;
use super::table::{ControlReply, ControlRequest};

/// Longest line of a request, in bytes.
pub const REQUEST_LIMIT: u64 = 4 * 1024 * 1024;

/// Longest line of an answer that a client takes, in bytes.
const REPLY_LIMIT: u64 = 64 * 1024 * 1024;

/// Most control connections at a time; more wait.
const CONNECTIONS: usize = 32;

/// Longest path of a unix socket, without the closing zero.
const PATH_LIMIT: usize = 107;

/// A path to the socket that is short enough for the kernel. A long one goes through the open folder's
/// entry in `/proc`, so the folder must stay open while the path is used.
struct SocketPath {
    path: PathBuf,
    _folder: Option<fs::File>,
}

impl SocketPath {
    fn in_folder(dir: &Path) -> io::Result<Self> {
        let path = dir.join("control");
        if path.as_os_str().len() <= PATH_LIMIT {
            return Ok(Self {
                path,
                _folder: None,
            });
        }
        let folder = fs::File::open(dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/control", folder.as_raw_fd()));
        Ok(Self {
            path,
            _folder: Some(folder),
        })
    }
}

/// What the control socket asks of the process.
pub(super) enum Order {
    /// End after the open requests, at most after this time.
    Shutdown(Duration),
    /// Hand over to whoever is at the other end, and finish what is open within the time.
    HandOver(Channel, Duration),
}

/// The listening end.
#[derive(Clone)]
pub(super) struct Server {
    socket: Arc<UnixListener>,
}

impl Server {
    /// Binds the socket, in place of one that an ended proxy left. The caller holds the folder's lock.
    pub(super) fn bind(dir: &Path) -> io::Result<Self> {
        let path = SocketPath::in_folder(dir)?;
        match fs::remove_file(&path.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let socket = UnixListener::bind(&path.path)?;
        // The folder is 0700, so nobody came in before this line.
        fs::set_permissions(&path.path, fs::Permissions::from_mode(0o600))?;
        Ok(Self {
            socket: Arc::new(socket),
        })
    }

    /// Takes the socket of the proxy before.
    pub(super) fn adopt(socket: std::os::unix::net::UnixListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = UnixListener::from_std(socket)?;
        Ok(Self {
            socket: Arc::new(socket),
        })
    }

    /// The socket itself.
    pub(super) fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// Serves until the task is aborted, which ends every control connection too: what a proxy answers
    /// that is about to end would mislead. What concerns the whole process is handed on as an [`Order`].
    pub(super) async fn serve(self, engine: Arc<Engine>, orders: mpsc::Sender<Order>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut conversations = JoinSet::new();
        loop {
            // Those that have ended; a panic in one concerns nobody else.
            while conversations.try_join_next().is_some() {}
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let stream = match self.socket.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "cannot accept control connections, trying on");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (engine, orders) = (Arc::clone(&engine), orders.clone());
            conversations.spawn(async move {
                if let Err(error) = converse(stream, &engine, &orders).await {
                    debug!(%error, "control connection broke");
                }
                drop(place);
            });
        }
    }
}

async fn converse(
    stream: UnixStream,
    engine: &Engine,
    orders: &mpsc::Sender<Order>,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let request = match read_line(&mut read, REQUEST_LIMIT).await {
            Ok(None) => return Ok(()),
            Ok(Some(line)) => serde_json::from_slice(&line).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error.to_string()),
            Err(error) => return Err(error),
        };
        let reply = match request {
            Ok(ControlRequest::Shutdown { grace_ms }) => {
                write_line(&mut write, &ControlReply::Stopping).await?;
                // Fails only when the proxy is stopping already.
                let grace = Duration::from_millis(grace_ms);
                orders.send(Order::Shutdown(grace)).await.ok();
                return Ok(());
            }
            Ok(ControlRequest::HandOver { drain_ms }) => {
                // Whoever asks for it says nothing more before it has heard the offer.
                let stream = read.into_inner().reunite(write);
                let channel = Channel::new(stream.map_err(io::Error::other)?);
                let drain = Duration::from_millis(drain_ms);
                // Fails only when the proxy is stopping.
                orders.send(Order::HandOver(channel, drain)).await.ok();
                return Ok(());
            }
            Ok(ControlRequest::Ping) => ControlReply::Pong(engine.process().await),
            Ok(ControlRequest::Observe) => ControlReply::Held(engine.observe().await),
            Ok(ControlRequest::Converge { table }) => match engine.converge(table).await {
                Ok(held) => ControlReply::Held(held),
                Err(error) => ControlReply::Refused {
                    message: error.to_string(),
                },
            },
            Err(reason) => {
                warn!(reason, "malformed control message, its connection is ended");
                let message = format!("not a control message: {reason}");
                return write_line(&mut write, &ControlReply::Malformed { message }).await;
            }
        };
        write_line(&mut write, &reply).await?;
    }
}

/// One line without its end; `None` at the end of the stream. `InvalidData` when the line is too long or
/// cut off.
async fn read_line(read: &mut BufReader<OwnedReadHalf>, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    (&mut *read)
        .take(limit + 1)
        .read_until(b'\n', &mut line)
        .await?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() == Some(b'\n') {
        return Ok(Some(line));
    }
    let reason = if line.len() as u64 >= limit {
        format!("a line is longer than {limit} bytes")
    } else {
        "the line is cut off".to_owned()
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, reason))
}

async fn write_line<T: serde::Serialize>(
    write: &mut OwnedWriteHalf,
    message: &T,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    write.write_all(&line).await
}

/// A connection to the proxy of a folder.
pub(super) async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let path = SocketPath::in_folder(dir)?;
    UnixStream::connect(&path.path).await
}

/// One connection to a running proxy.
#[derive(Debug)]
pub struct ControlClient {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl ControlClient {
    /// Connects to the proxy of a folder.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused` when no proxy runs there.
    pub async fn connect(dir: &Path) -> io::Result<Self> {
        let (read, write) = connect(dir).await?.into_split();
        Ok(Self {
            read: BufReader::new(read),
            write,
        })
    }

    /// Sends one request and waits for its answer. After an error the connection is of no more use. Give
    /// it a time limit from outside.
    ///
    /// # Errors
    /// When the connection breaks or the answer cannot be read.
    pub async fn ask(&mut self, request: &ControlRequest) -> io::Result<ControlReply> {
        write_line(&mut self.write, request).await?;
        let line = read_line(&mut self.read, REPLY_LIMIT).await?;
        let line = line.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(serde_json::from_slice(&line)?)
    }
}
