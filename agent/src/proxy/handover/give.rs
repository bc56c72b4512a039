//! The predecessor's side: offers everything, takes it back when the successor falls silent, and after the
//! hand-over finishes what is open. The process calls it.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Channel, FromPredecessor, FromSuccessor, LEVEL_EVERY, Level, Offer, SILENCE};
use crate::proxy::engine::Engine;
use crate::proxy::stats::unix_ms;
use crate::proxy::store::FolderLock;

/// What is given beside the listeners.
pub(in crate::proxy) struct Gift<'a> {
    pub(in crate::proxy) engine: &'a Engine,
    pub(in crate::proxy) lock: &'a FolderLock,
    pub(in crate::proxy) control: &'a UnixListener,
}

/// Hands everything over. `pause` stops answering the control socket.
///
/// When this returns well, the sockets are the successor's. On an error they are still this process's, and
/// it accepts connections again; answering the control socket is the caller's to resume.
pub(in crate::proxy) async fn give(
    gift: &Gift<'_>,
    channel: &mut Channel,
    pause: impl AsyncFnOnce(),
) -> io::Result<()> {
    let Gift { engine, .. } = gift;
    // No table comes in between: the successor begins with the one that is offered.
    let _gate = engine.freeze().await;
    let (sockets, served) = engine.sockets().await;
    let offer = Offer {
        process: engine.process().await,
        table: engine.table().await,
        listeners: sockets.iter().map(|(address, _)| *address).collect(),
        served,
        held: engine.observe().await,
    };
    channel
        .say(&FromPredecessor::Offer(Box::new(offer)))
        .await?;
    let mut descriptors = vec![gift.lock.as_fd(), gift.control.as_fd()];
    descriptors.extend(sockets.iter().map(|(_, socket)| socket.as_fd()));
    channel.pass(&descriptors).await?;
    expect(channel, |word| matches!(word, FromSuccessor::Ready)).await?;
    pause().await;
    engine.pause().await;
    let answer = async {
        let level = FromPredecessor::Level(Box::new(level(engine, unix_ms(), unix_ms()).await));
        channel.say(&level).await?;
        expect(channel, |word| matches!(word, FromSuccessor::Serving)).await
    };
    if let Err(error) = answer.await {
        engine.resume().await;
        return Err(error);
    }
    drop(sockets);
    engine.retire().await;
    // A successor that is gone by now is started again by the agent.
    channel.say(&FromPredecessor::Released).await.ok();
    Ok(())
}

async fn expect(channel: &mut Channel, is: impl Fn(&FromSuccessor) -> bool) -> io::Result<()> {
    let word: FromSuccessor = channel.hear(SILENCE).await?;
    if is(&word) {
        return Ok(());
    }
    let reason = format!("the successor said something else: {word:?}");
    let reason: String = reason.chars().take(200).collect();
    Err(io::Error::new(io::ErrorKind::InvalidData, reason))
}

async fn level(engine: &Engine, since: u64, until: u64) -> Level {
    Level {
        held: engine.observe().await,
        open: engine.open().await,
        since,
        until,
    }
}

/// Finishes what is open, for at most `limit`; `told` resolves when the process is told to end and gives
/// the time that is left then. Tells the successor how it stands as long as that listens.
pub(in crate::proxy) async fn drain(
    engine: &Engine,
    channel: Channel,
    limit: Duration,
    told: impl Future<Output = Duration>,
) {
    let since = unix_ms();
    let mut deadline = Instant::now() + limit;
    let mut told = std::pin::pin!(told);
    let mut was_told = false;
    let mut channel = Some(channel);
    let mut interval = tokio::time::interval(LEVEL_EVERY);
    let mut last = Level::default();
    loop {
        tokio::select! {
            grace = &mut told, if !was_told => {
                was_told = true;
                deadline = deadline.min(Instant::now() + grace);
            }
            word = next(&mut channel), if channel.is_some() => match word {
                Ok(FromSuccessor::Table { table }) => engine.follow(table).await,
                Ok(FromSuccessor::End { grace_ms }) => {
                    let grace = Duration::from_millis(grace_ms);
                    engine.wish_end(grace);
                    deadline = deadline.min(Instant::now() + grace);
                }
                Ok(FromSuccessor::Ready | FromSuccessor::Serving) => {}
                Err(error) => {
                    debug!(%error, "the successor listens no more");
                    channel = None;
                }
            },
            _ = interval.tick() => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            warn!("the time is over, what was still open is cut off");
            engine.cut().await;
        }
        let until = last.until.max(since);
        let ends = unix_ms() + left.as_millis() as u64;
        // The end moves only when somebody moves it: the clock's own drift is no news.
        let ends = if ends.abs_diff(until) < 1_000 {
            until
        } else {
            ends
        };
        let now = level(engine, since, ends).await;
        let done = now.open == 0 || left.is_zero();
        if now != last {
            tell(&mut channel, &now).await;
            last = now;
        }
        if done {
            info!("the replaced proxy ends");
            return;
        }
    }
}

async fn next(channel: &mut Option<Channel>) -> io::Result<FromSuccessor> {
    match channel {
        Some(channel) => channel.hear(Duration::MAX / 4).await,
        None => Err(io::ErrorKind::NotConnected.into()),
    }
}

async fn tell(channel: &mut Option<Channel>, level: &Level) {
    let word = FromPredecessor::Level(Box::new(level.clone()));
    if let Some(open) = channel
        && let Err(error) = open.say(&word).await
    {
        debug!(%error, "the successor listens no more");
        *channel = None;
    }
}
