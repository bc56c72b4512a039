//! The successor's side: asks for everything, begins to serve with it, and listens to the predecessor until
//! that has finished. The process calls it at its start.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, test_kill_process};
use tracing::{debug, info, warn};

use super::{Channel, FromPredecessor, FromSuccessor, Level, Offer, Predecessor, SILENCE};
use crate::proxy::control::connect;
use crate::proxy::engine::Engine;
use crate::proxy::store::FolderLock;
use crate::proxy::table::{ControlRequest, Held, ProxyProcess, Table};

/// What was taken over and is not in use yet.
pub(in crate::proxy) struct Estate {
    pub(in crate::proxy) lock: FolderLock,
    pub(in crate::proxy) control: UnixListener,
    sockets: BTreeMap<SocketAddr, TcpListener>,
    served: BTreeMap<String, SocketAddr>,
    table: Table,
    held: Held,
    process: ProxyProcess,
    channel: Channel,
}

/// Asks the proxy that runs in a folder for everything; `None` when none runs there, or it ends while it is
/// asked.
///
/// # Errors
/// When it runs and does not hand over, in words for a person.
pub(in crate::proxy) async fn ask(dir: &Path, drain: Duration) -> io::Result<Option<Estate>> {
    let stream = match connect(dir).await {
        Ok(stream) => stream,
        Err(error) => {
            debug!(%error, "nobody to take over from");
            return Ok(None);
        }
    };
    let channel = Channel::new(stream);
    let drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
    let offered = async {
        channel.say(&ControlRequest::HandOver { drain_ms }).await?;
        receive(channel).await
    };
    match offered.await {
        Ok(estate) => Ok(Some(estate)),
        Err(error) if is_end(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

async fn receive(mut channel: Channel) -> io::Result<Estate> {
    let FromPredecessor::Offer(offer) = channel.hear(SILENCE).await? else {
        return Err(io::Error::other("the running proxy offers nothing"));
    };
    let Offer {
        process,
        table,
        listeners,
        served,
        held,
    } = *offer;
    table.validate().map_err(io::Error::other)?;
    let descriptors = channel.take(listeners.len() + 2, SILENCE).await?;
    let mut descriptors = descriptors.into_iter();
    let (Some(lock), Some(control)) = (descriptors.next(), descriptors.next()) else {
        return Err(io::Error::other("the running proxy passed no descriptors"));
    };
    let sockets = listeners
        .into_iter()
        .zip(descriptors.map(TcpListener::from))
        .collect();
    Ok(Estate {
        lock: FolderLock::adopt(lock),
        control: UnixListener::from(control),
        sockets,
        served,
        table,
        held,
        process,
        channel,
    })
}

/// What [`settle`] leaves.
pub(in crate::proxy) struct Settled {
    pub(in crate::proxy) lock: FolderLock,
    pub(in crate::proxy) control: UnixListener,
    /// `None` when the predecessor is gone already.
    pub(in crate::proxy) channel: Option<Channel>,
}

/// Begins to serve with what was taken over.
///
/// # Errors
/// When the predecessor has taken everything back; what this process accepted meanwhile is finished before.
pub(in crate::proxy) async fn settle(estate: Estate, engine: &Engine) -> io::Result<Settled> {
    let Estate {
        lock,
        control,
        sockets,
        served,
        table,
        held,
        process,
        mut channel,
    } = estate;
    let pid = process.pid;
    engine.inherit(table, sockets, served).await?;
    let last = match prepare(&mut channel).await {
        Ok(level) => Some(level),
        Err(error) if goes_on(pid).await => return Err(error),
        Err(error) => {
            warn!(%error, pid, "the predecessor is gone, its latest counts are lost");
            None
        }
    };
    let gone = last.is_none();
    let level = last.unwrap_or(Level {
        held,
        ..Level::default()
    });
    engine.succeed(Predecessor::new(process, level));
    engine.resume().await;
    let released = async {
        channel.say(&FromSuccessor::Serving).await?;
        match channel.hear(SILENCE).await? {
            FromPredecessor::Released => Ok(()),
            FromPredecessor::Offer(_) | FromPredecessor::Level(_) => {
                Err(io::Error::other("the predecessor lost the thread"))
            }
        }
    };
    match released.await {
        _ if gone => engine.predecessor_ended(),
        Ok(()) => {
            info!(pid, "taken over");
            return Ok(Settled {
                lock,
                control,
                channel: Some(channel),
            });
        }
        Err(error) if goes_on(pid).await => {
            engine.stop().await;
            engine.finish(crate::proxy::GRACE).await;
            return Err(error);
        }
        Err(error) => {
            warn!(%error, pid, "the predecessor ended in the middle");
            engine.predecessor_ended();
        }
    }
    Ok(Settled {
        lock,
        control,
        channel: None,
    })
}

async fn prepare(channel: &mut Channel) -> io::Result<Level> {
    channel.say(&FromSuccessor::Ready).await?;
    match channel.hear(SILENCE).await? {
        FromPredecessor::Level(level) => Ok(*level),
        FromPredecessor::Offer(_) | FromPredecessor::Released => {
            Err(io::Error::other("the predecessor lost the thread"))
        }
    }
}

/// Whether a process whose connection has ended goes on: one that is killed closes its sockets a moment
/// before it is gone.
async fn goes_on(pid: u32) -> bool {
    for _ in 0..100 {
        if !is_running(pid) {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

/// Whether a process runs; one that ended and was not waited for yet does not.
fn is_running(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let zombie = state
        .rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
    !zombie && id.is_some_and(|id| test_kill_process(id).is_ok())
}

/// Listens to the predecessor until it has ended, and passes the wishes on.
pub(in crate::proxy) async fn follow(engine: &Engine, mut channel: Channel) {
    let mut wishes = engine.wishes();
    let mut told = wishes.borrow_and_update().clone();
    loop {
        tokio::select! {
            word = channel.hear(Duration::MAX / 4) => match word {
                Ok(FromPredecessor::Level(level)) => engine.predecessor_says(*level),
                Ok(FromPredecessor::Offer(_) | FromPredecessor::Released) => {}
                Err(error) => {
                    debug!(%error, "the predecessor has ended");
                    engine.predecessor_ended();
                    return;
                }
            },
            changed = wishes.changed() => {
                let new = wishes.borrow_and_update().clone();
                let table = new.table.clone().filter(|_| new.table != told.table);
                let end = new.end.filter(|_| new.end != told.end);
                told = new;
                if changed.is_err() {
                    return;
                }
                let words = table.map(|table| FromSuccessor::Table { table });
                let end = end.map(|grace| FromSuccessor::End {
                    grace_ms: grace.as_millis() as u64,
                });
                for word in words.into_iter().chain(end) {
                    if let Err(error) = channel.say(&word).await {
                        // Its end is heard next.
                        debug!(%error, "the predecessor was not told");
                    }
                }
            }
        }
    }
}
