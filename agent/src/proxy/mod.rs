//! The data plane: a process of its own that listens for a host's scopes and spreads their requests over
//! the versions' instances by weight.
//!
//! One per agent, `tidegate-agent proxy --dir DIR`, started detached by the agent and independent of it
//! from then on: it goes on serving when the agent is killed, restarted or upgraded, and comes back with
//! its last table when it is restarted itself. It is told complete tables over a unix socket (`table.rs`,
//! `control.rs`) and decides nothing: which version deserves which weight is settled elsewhere. It ends on
//! SIGTERM, SIGINT or a `shutdown` request, after the open requests or a time of grace.
//!
//! ```text
//! control → engine, scope → listener, routes → forward, tcp → upstream, body, tunnel
//!    ↘ handover ↗              ↘ tls            ↘ headers, balance, stats, meter
//! ```
//!
//! With `--take-over` it takes table, sockets and counts from the proxy that runs in the folder, which then
//! finishes its open connections and ends: no connection is refused or dropped (`handover/`).
//!
//! It speaks HTTP/1.0, HTTP/1.1, HTTP/2 and upgraded connections to clients, HTTP/1.1 or HTTP/2 to instances,
//! or carries raw connections (`tcp`); with clients in cleartext or over TLS (`tls`).

mod background;
mod balance;
mod body;
pub mod control;
mod engine;
mod forward;
mod handover;
mod headers;
mod listener;
mod meter;
mod routes;
mod scope;
mod stats;
pub mod status;
mod store;
pub mod table;
mod tcp;
mod tls;
mod tunnel;
mod upstream;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use control::{Order, Server};
use engine::Engine;
use handover::{Channel, Gift};
use sd_notify::NotifyState;
use stats::unix_ms;
use store::{FolderLock, LogFile, TableFile};
use table::ProxyProcess;

#[cfg(any(test, feature = "testing"))]
pub(crate) use balance::pick;
pub use store::FolderError;

use crate::service::tell;

/// How long open requests may go on after the proxy was told to end.
pub const GRACE: Duration = Duration::from_secs(30);

/// How long a replaced proxy may finish its open connections, unless it is told otherwise.
pub const DRAIN: Duration = Duration::from_secs(600);

/// How often listeners that could not be had are tried again and sleeping connections are looked for.
const TEND_EVERY: Duration = Duration::from_secs(1);

/// Arguments of `tidegate-agent proxy`.
#[derive(Clone, Debug, clap::Args)]
pub struct ProxyArgs {
    /// Folder of the proxy: control socket, stored table, lock and log. Made when it is not there.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Leave the session of the caller, so that its end and its signals do not reach the proxy.
    #[arg(long)]
    pub detach: bool,
    /// Threads that serve requests [default: one per processor that it may use, at most 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub threads: Option<u8>,
    /// Take the sockets of the proxy that runs in the folder, without a connection being refused or
    /// dropped; that one finishes what is open and ends.
    #[arg(long)]
    pub take_over: bool,
    /// Come back once the successor serves, with a failure if it does not: for `systemctl reload`.
    #[arg(long, requires = "take_over")]
    pub background: bool,
    /// How long the replaced proxy may finish open connections, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = DRAIN.as_secs())]
    pub drain: u64,
}

/// Which file a program is: the same until it is replaced. Empty when that cannot be told.
#[must_use]
pub fn build_of(program: &Path) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let told = std::fs::metadata(program);
    told.map_or_else(
        |_| String::new(),
        |file| {
            format!(
                "{:x}-{:x}.{:x}",
                file.size(),
                file.mtime(),
                file.mtime_nsec()
            )
        },
    )
}

/// Runs the proxy on a runtime of its own until it is told to end. For `main`: call it outside a runtime.
///
/// # Errors
/// When the folder is locked or unusable or the runtime cannot be started.
pub fn main(args: ProxyArgs) -> anyhow::Result<()> {
    let threads = args.threads.map_or_else(usable_processors, usize::from);
    // A second thread on one processor only takes turns with the first, and a single one needs no locks
    // between its tasks.
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder
        .worker_threads(threads)
        .thread_name("proxy")
        .enable_all()
        .build()
        .context("cannot start the proxy's threads")?;
    let outcome = runtime.block_on(run(args));
    runtime.shutdown_background();
    outcome
}

/// Processors that this process may use, by affinity and cgroup too.
fn usable_processors() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().min(8))
}

/// Runs the proxy until SIGTERM, SIGINT or a `shutdown` request.
///
/// # Errors
/// When the folder is locked or unusable.
pub async fn run(args: ProxyArgs) -> anyhow::Result<()> {
    if args.background {
        return background::run(&args).await;
    }
    if args.detach {
        // Fails when this process leads a group already, and then it has left its caller's.
        rustix::process::setsid().ok();
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        // The end of a terminal is no reason to stop serving.
        while hang_up.recv().await.is_some() {}
    });
    // Told to end while it starts: a predecessor takes back what it was giving.
    let proxy = tokio::select! {
        started = Proxy::start(args) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    proxy
        .serve(async move {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        })
        .await;
    Ok(())
}

/// A running proxy, apart from the signals of its process.
struct Proxy {
    dir: PathBuf,
    lock: FolderLock,
    engine: Arc<Engine>,
    server: Server,
    control: JoinHandle<()>,
    orders: mpsc::Receiver<Order>,
    order_sender: mpsc::Sender<Order>,
}

impl Proxy {
    async fn start(args: ProxyArgs) -> anyhow::Result<Self> {
        let drain = Duration::from_secs(args.drain);
        let estate = match args.take_over {
            true => handover::ask(&args.dir, drain)
                .await
                .with_context(|| format!("the proxy in {} goes on", args.dir.display()))?,
            false => None,
        };
        let lock = match &estate {
            None => Some(FolderLock::take(&args.dir)?),
            Some(_) => None,
        };
        let dir = args.dir.canonicalize()?;
        init_log(LogFile::open(&dir)?);
        raise_descriptor_limit();
        let process = ProxyProcess {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build: build_of(Path::new("/proc/self/exe")),
            started_at: unix_ms(),
            connections: 0,
        };
        let engine = Arc::new(Engine::new(TableFile::new(&dir), process));
        let failed = |reason| FolderError::Io {
            path: dir.join("control"),
            reason,
        };
        let (lock, server) = match (lock, estate) {
            (_, Some(estate)) => {
                let settled = handover::settle(estate, &engine).await;
                let settled = settled.context("the proxy before goes on")?;
                if let Some(channel) = settled.channel {
                    let engine = Arc::clone(&engine);
                    tokio::spawn(async move { handover::follow(&engine, channel).await });
                }
                let mut lock = settled.lock;
                // A courtesy to whoever reads the file: the lock itself is held.
                lock.name_holder().ok();
                (lock, Server::adopt(settled.control).map_err(failed)?)
            }
            (Some(lock), None) => {
                let server = Server::bind(&dir).map_err(failed)?;
                engine.restore().await;
                (lock, server)
            }
            (None, None) => anyhow::bail!("no lock was taken"),
        };
        tokio::spawn(tend(Arc::clone(&engine)));
        let (order_sender, orders) = mpsc::channel(1);
        let control = serve_control(&server, &engine, &order_sender);
        info!(pid = std::process::id(), dir = %dir.display(), "proxy started");
        // Where a unit runs the proxy, the manager follows the successor.
        tell(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]);
        Ok(Self {
            dir,
            lock,
            engine,
            server,
            control,
            orders,
            order_sender,
        })
    }

    /// Serves until `signal` or a `shutdown` request, then ends gently; or until a successor has taken over
    /// and nothing is open any more.
    async fn serve(mut self, signal: impl Future<Output = &'static str>) {
        let mut signal = std::pin::pin!(signal);
        loop {
            let order = tokio::select! {
                name = signal.as_mut() => {
                    info!(name, "told to end");
                    Order::Shutdown(GRACE)
                }
                order = self.orders.recv() => order.unwrap_or(Order::Shutdown(GRACE)),
            };
            match order {
                Order::Shutdown(grace) => return self.end(grace).await,
                Order::HandOver(mut channel, limit) => match self.hand_over(&mut channel).await {
                    Ok(()) => {
                        info!("handed over, finishing what is open");
                        let Self {
                            engine,
                            server,
                            lock,
                            ..
                        } = self;
                        // The folder is the successor's.
                        drop((server, lock));
                        let told = async move {
                            let name = signal.await;
                            info!(name, "told to end");
                            GRACE
                        };
                        return handover::drain(&engine, channel, limit, told).await;
                    }
                    Err(error) => warn!(%error, "a hand-over was begun and taken back"),
                },
            }
        }
    }

    async fn hand_over(&mut self, channel: &mut Channel) -> std::io::Result<()> {
        let gift = Gift {
            engine: &self.engine,
            lock: &self.lock,
            control: self.server.socket(),
        };
        let control = &mut self.control;
        let outcome = handover::give(&gift, channel, async || {
            control.abort();
            // An error here says that it was aborted.
            control.await.ok();
        });
        let outcome = outcome.await;
        if outcome.is_err() && self.control.is_finished() {
            self.control = serve_control(&self.server, &self.engine, &self.order_sender);
        }
        outcome
    }

    async fn end(self, grace: Duration) {
        info!("ending");
        self.engine.wish_end(grace);
        self.engine.stop().await;
        self.control.abort();
        // From here on another proxy may take the folder and the ports; this one finishes what is open.
        if let Err(error) = std::fs::remove_file(self.dir.join("control")) {
            warn!(%error, "the control socket could not be removed");
        }
        drop((self.server, self.lock));
        if self.engine.finish(grace).await {
            info!("ended, nothing was open");
        } else {
            warn!("ended, open requests were cut off after the time of grace");
        }
    }
}

fn serve_control(
    server: &Server,
    engine: &Arc<Engine>,
    orders: &mpsc::Sender<Order>,
) -> JoinHandle<()> {
    let (engine, orders) = (Arc::clone(engine), orders.clone());
    tokio::spawn(server.clone().serve(engine, orders))
}

async fn tend(engine: Arc<Engine>) {
    let mut interval = tokio::time::interval(TEND_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        engine.tend().await;
    }
}

fn init_log(file: LogFile) {
    let filter = EnvFilter::try_from_env("TIDEGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(file);
    // Fails when the embedding program logs already; its log then has our lines.
    subscriber.try_init().ok();
}

/// Two descriptors per request under way: the usual soft limit of 1,024 is soon reached.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "the limit of open files could not be raised");
    }
}
