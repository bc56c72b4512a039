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
//! control → engine → listener, routes → forward → upstream, body, tunnel
//!                                          ↘ headers, balance, stats
//! ```
//!
//! It speaks HTTP/1.0, HTTP/1.1, HTTP/2 with prior knowledge and upgraded connections to clients, HTTP/1.1
//! to instances. A TCP mode would be another `Protocol` with another task per connection; it is not there.

mod balance;
mod body;
pub mod control;
mod engine;
mod forward;
mod headers;
mod listener;
mod routes;
mod stats;
mod store;
pub mod table;
mod tunnel;
mod upstream;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use control::Server;
use engine::Engine;
use sd_notify::NotifyState;
use store::{FolderLock, LogFile, TableFile};

#[cfg(any(test, feature = "testing"))]
pub(crate) use balance::pick;
pub use store::FolderError;

use crate::service::tell;

/// How long open requests may go on after the proxy was told to end.
pub const GRACE: Duration = Duration::from_secs(30);

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
    /// Threads that serve requests.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub threads: u8,
}

/// Runs the proxy on a runtime of its own until it is told to end. For `main`: call it outside a runtime.
///
/// # Errors
/// When the folder is locked or unusable or the runtime cannot be started.
pub fn main(args: ProxyArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(usize::from(args.threads))
        .thread_name("proxy")
        .enable_all()
        .build()
        .context("cannot start the proxy's threads")?;
    let outcome = runtime.block_on(run(args));
    runtime.shutdown_background();
    outcome
}

/// Runs the proxy until SIGTERM, SIGINT or a `shutdown` request.
///
/// # Errors
/// When the folder is locked or unusable.
pub async fn run(args: ProxyArgs) -> anyhow::Result<()> {
    if args.detach {
        // Fails when this process leads a group already, and then it has left its caller's.
        rustix::process::setsid().ok();
    }
    let proxy = Proxy::start(args)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        // The end of a terminal is no reason to stop serving.
        while hang_up.recv().await.is_some() {}
    });
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
    control: JoinHandle<()>,
    stop: mpsc::Receiver<Duration>,
}

impl Proxy {
    fn start(args: ProxyArgs) -> anyhow::Result<Self> {
        let lock = FolderLock::take(&args.dir)?;
        let dir = args.dir.canonicalize()?;
        init_log(LogFile::open(&dir)?);
        raise_descriptor_limit();
        let engine = Arc::new(Engine::new(TableFile::new(&dir)));
        let server = Server::bind(&dir).map_err(|error| FolderError::Io {
            path: dir.join("control"),
            reason: error,
        })?;
        let (stop_sender, stop) = mpsc::channel(1);
        let (serving, tending) = (Arc::clone(&engine), Arc::clone(&engine));
        let control = tokio::spawn(async move {
            serving.restore().await;
            tokio::spawn(tend(tending));
            server.serve(serving, stop_sender).await;
        });
        info!(pid = std::process::id(), dir = %dir.display(), "proxy started");
        tell(&[NotifyState::Ready]);
        Ok(Self {
            dir,
            lock,
            engine,
            control,
            stop,
        })
    }

    /// Serves until `signal` or a `shutdown` request, then ends gently.
    async fn serve(mut self, signal: impl Future<Output = &'static str>) {
        let grace = tokio::select! {
            name = signal => {
                info!(name, "told to end");
                GRACE
            }
            grace = self.stop.recv() => {
                info!("told to end by the control socket");
                grace.unwrap_or(GRACE)
            }
        };
        self.engine.stop().await;
        self.control.abort();
        // From here on another proxy may take the folder and the ports; this one finishes what is open.
        if let Err(error) = std::fs::remove_file(self.dir.join("control")) {
            warn!(%error, "the control socket could not be removed");
        }
        drop(self.lock);
        let engine = Arc::clone(&self.engine);
        let finished = async move {
            while engine.open().await > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(grace, finished).await {
            Ok(()) => info!("ended, nothing was open"),
            Err(_) => warn!("ended, open requests were cut off after the time of grace"),
        }
    }
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
