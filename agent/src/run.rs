//! The composition root of `tidegate-agent run`, and the end of everything, `stop-all`.
//!
//! SIGTERM and SIGINT end the agent alone: applications and the proxy go on, and the next agent
//! adopts them. Only `stop-all`, or `run --stop-everything-on-exit`, ends those too.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidegate_shared::error::Reason;
use tidegate_shared::health::HealthListen;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::asset::ReleaseStore;
use crate::asset::coordinated::Coordinated;
use crate::asset::places::Places;
use crate::asset::web::Web;
use crate::config::{ExecutorChoice, HEALTH_PORT, Layout, Settings};
use crate::error::AgentError;
use crate::executor::prepared::Prepared;
use crate::executor::process::{ProcessExecutor, end_group};
use crate::executor::systemd::{SystemdExecutor, end_unit};
use crate::executor::{Events, Executor};
use crate::health::{self, Health};
use crate::ledger::{self, Found, Ledger};
use crate::reconcile::{Outlets, Parts, Reconciler, find_process};
use crate::secrets::SecretStore;
use crate::service::{self, Attended, Reload};
use crate::session::{self, Coordinators, SessionParts};
use crate::systemd::Manager;
use crate::tls::Tls;
use crate::traffic::proxy::ProxyTraffic;
use crate::{files, identity, port_holder, telemetry};

/// Between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(10);
/// For open requests of a proxy that is told to end.
const PROXY_GRACE: Duration = Duration::from_secs(5);
/// How long `stop-all` waits for the proxy to be gone.
const PROXY_LIMIT: Duration = Duration::from_secs(8);

/// Only one agent may use a folder: the lock lasts as long as the value.
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// Another agent has it, or the folder cannot be used.
    pub fn take(layout: &Layout) -> Result<Self, AgentError> {
        let path = layout.lock();
        let failed = |error: io::Error| {
            let message = format!("{} cannot be used: {error}", path.display());
            AgentError::new(Reason::DataFolder, message)
        };
        let mut options = OpenOptions::new();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => {
                let message = format!(
                    "another tidegate-agent runs in {}; stop it first",
                    layout.dir.display()
                );
                Err(AgentError::new(Reason::AddressInUse, message))
            }
            Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// Runs the agent until a signal.
///
/// # Errors
/// What keeps it from starting.
pub async fn run(
    settings: Settings,
    stop_everything: bool,
    reload: Reload,
) -> Result<(), AgentError> {
    let layout = settings.layout.clone();
    let lock = FolderLock::take(&layout)?;
    let material = identity::load(&layout.identity())?;
    check_identity(&settings, &material.identity)?;
    let (ledger, complaint) = read_ledger(&layout)?;
    let folder_error = |error: io::Error| {
        let message = format!("{} cannot be used: {error}", layout.dir.display());
        AgentError::new(Reason::DataFolder, message)
    };
    let store = Arc::new(ReleaseStore::open(layout.releases()).map_err(folder_error)?);
    files::make_folder(&layout.instances(), 0o700).map_err(folder_error)?;
    let (secrets, lost_secrets) = SecretStore::open(&layout.dir);
    let secrets = Arc::new(secrets);
    let traffic = ProxyTraffic::new(layout.proxy()).map_err(folder_error)?;
    let traffic = Arc::new(traffic.under(settings.proxy_unit.clone()));
    let signals = Signals::new().map_err(folder_error)?;
    let hang_up = signal(SignalKind::hangup()).map_err(folder_error)?;

    let configured = Coordinators {
        control: settings.coordinators.clone(),
        http: settings.http.clone(),
    };
    let coordinators = watch::Sender::new(Coordinators::load(&layout, configured));
    let (material_sender, material) = watch::channel(material);
    let tls = Tls::new(material);
    let source = Arc::new(Places {
        store: Coordinated {
            tls: tls.clone(),
            coordinators: coordinators.subscribe(),
        },
        web: Web {
            roots: settings.source_roots.clone(),
        },
    });
    let (events, event_receiver) = mpsc::unbounded_channel();
    let executor = choose_executor(settings.executor, &layout, events.clone()).await?;
    let (reports, report_receiver) = watch::channel(None);
    let (generation, generation_receiver) = watch::channel(Default::default());
    let (instances, instance_receiver) = watch::channel(Arc::default());
    let (wishes, wish_receiver) = mpsc::channel(4);
    let capabilities = executor.capabilities();
    let asked = Arc::clone(&executor);
    let mut facts = telemetry::host::facts(settings.listen_address);
    facts.insert("executor".to_owned(), capabilities.name.to_owned());
    info!(
        agent = %settings.name,
        version = env!("CARGO_PKG_VERSION"),
        dir = %layout.dir.display(),
        "agent started"
    );
    let listen_address = settings.listen_address;
    let health = bind_health(&settings).await?;
    let connected = watch::Sender::new(None);
    let told = Health {
        reports: report_receiver.clone(),
        connected: connected.subscribe(),
        material: material_sender.subscribe(),
    };
    let attended = Attended {
        settings: settings.clone(),
        reports: report_receiver.clone(),
        connected: connected.subscribe(),
        coordinators: coordinators.clone(),
        material: material_sender.clone(),
    };
    let parts = Parts {
        settings,
        executor,
        traffic,
        store: Arc::clone(&store),
        secrets,
        source,
        events,
    };
    let outlets = Outlets {
        reports,
        generation,
        instances,
    };
    let mut reconciler = Reconciler::new(parts, outlets, ledger, complaint);
    if let Some(complaint) = lost_secrets {
        error!("{complaint}");
        reconciler.complain("secrets", complaint);
    }
    reconciler.resume().await;
    let pulse = reconciler.pulse();
    let session = tokio::spawn(session::run(SessionParts {
        tls,
        material: material_sender,
        coordinators,
        layout: layout.clone(),
        facts,
        start: reconciler.start(),
        generation: generation_receiver,
        reports: report_receiver,
        wishes,
        instances: instance_receiver,
        store,
        listen_address,
        executor: asked,
        connected,
    }));
    let attending = service::attend(attended, pulse, reload, hang_up);
    let telling = health.map(|listener| tokio::spawn(health::serve(listener, told)));
    reconciler
        .run(event_receiver, wish_receiver, signals.any())
        .await;
    service::stopping();
    drop(attending);
    session.abort();
    if let Some(telling) = telling {
        telling.abort();
    }
    drop(reconciler);
    if stop_everything {
        info!("the agent stops, and everything that it started with it");
        stop_in(&layout).await?;
    } else {
        info!(
            "the agent stops; applications and the proxy go on, `tidegate-agent stop-all` ends them"
        );
    }
    drop(lock);
    Ok(())
}

/// What runs instances on this host.
async fn choose_executor(
    choice: ExecutorChoice,
    layout: &Layout,
    events: Events,
) -> Result<Arc<dyn Executor>, AgentError> {
    let (dir, instances) = (layout.dir.clone(), layout.instances());
    let usable = match choice {
        ExecutorChoice::Process => false,
        ExecutorChoice::Systemd if !Manager::runs_host() => {
            let message = format!(
                "{}, key executor: systemd does not run this host; want auto or process",
                layout.config().display()
            );
            return Err(AgentError::new(Reason::Config, message));
        }
        ExecutorChoice::Systemd => true,
        ExecutorChoice::Auto => match SystemdExecutor::usable().await {
            Ok(()) => true,
            Err(reason) => {
                info!(
                    reason,
                    "instances are run as processes, not as units of systemd"
                );
                false
            }
        },
    };
    Ok(Arc::new(Prepared::new(
        layout.instances(),
        events,
        |events| -> Arc<dyn Executor> {
            if usable {
                Arc::new(SystemdExecutor::new(dir, instances, GRACE, events))
            } else {
                Arc::new(ProcessExecutor::new(instances, GRACE, events))
            }
        },
    )))
}

/// Binds the health listener. The usual address may be another agent's of this host, which is no
/// reason not to start.
async fn bind_health(settings: &Settings) -> Result<Option<TcpListener>, AgentError> {
    let (address, is_usual) = match settings.health {
        HealthListen::Off => return Ok(None),
        HealthListen::At(address) => (address, false),
        HealthListen::Usual => (SocketAddr::from(([127, 0, 0, 1], HEALTH_PORT)), true),
    };
    let error = match TcpListener::bind(address).await {
        Ok(listener) => {
            if let Ok(address) = listener.local_addr() {
                info!(%address, "health is told");
            }
            return Ok(Some(listener));
        }
        Err(error) => port_holder::why_not(address, &error),
    };
    if is_usual {
        warn!(
            error,
            "health is told nowhere; key health may name another address, or off"
        );
        return Ok(None);
    }
    let message = format!(
        "{}, key health: {error}",
        settings.layout.config().display()
    );
    Err(AgentError::new(Reason::AddressInUse, message))
}

fn check_identity(settings: &Settings, identity: &crate::tls::SpiffeId) -> Result<(), AgentError> {
    if identity.kind == "agent" && identity.name == settings.name.as_str() {
        return Ok(());
    }
    let message = format!(
        "{}, key name: \"{}\" does not fit the certificate, which is for the {} \"{}\"",
        settings.layout.config().display(),
        settings.name,
        identity.kind,
        identity.name
    );
    Err(AgentError::new(Reason::Config, message))
}

fn read_ledger(layout: &Layout) -> Result<(Ledger, Option<String>), AgentError> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let path = layout.ledger();
    match ledger::read(&path, now.as_millis() as u64) {
        Ok(Found::Nothing) => Ok((Ledger::default(), None)),
        Ok(Found::Good(ledger)) => Ok((*ledger, None)),
        Ok(Found::Damaged { aside, reason }) => {
            let line = format!(
                "the ledger {} was damaged ({reason}); it is kept as {}; what runs is adopted when the coordinators' wish arrives",
                path.display(),
                aside.display()
            );
            error!("{line}");
            Ok((Ledger::default(), Some(line)))
        }
        Err(error) => {
            let message = format!("{} cannot be read: {error}", path.display());
            Err(AgentError::new(Reason::DataFolder, message))
        }
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn any(mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        info!(signal = name, "told to end");
    }
}

/// Ends every instance and the proxy of an agent that does not run.
///
/// # Errors
/// The agent runs, or its ledger cannot be read.
pub async fn stop_all(layout: &Layout) -> Result<usize, AgentError> {
    let _lock = FolderLock::take(layout)?;
    stop_in(layout).await
}

async fn stop_in(layout: &Layout) -> Result<usize, AgentError> {
    let (mut ledger, _) = read_ledger(layout)?;
    let instances = layout.instances();
    let mut ends = tokio::task::JoinSet::new();
    for record in &ledger.instances {
        if let Some(process) = find_process(&instances, &record.instance, Some(record)) {
            let key = record.instance.clone();
            ends.spawn(async move {
                if Manager::runs_host()
                    && let Err(error) = end_unit(&key, GRACE).await
                {
                    warn!(instance = %key, %error, "its unit is not stopped; its processes are ended");
                }
                end_group(&process, GRACE).await;
            });
        }
    }
    let stopped = ends.len();
    while let Some(ended) = ends.join_next().await {
        if let Err(error) = ended {
            warn!(%error, "an instance was not waited for");
        }
    }
    stop_proxy(layout).await;
    if !ledger.instances.is_empty() {
        ledger.instances.clear();
        ledger.write(&layout.ledger()).map_err(|error| {
            let message = format!("{} cannot be written: {error}", layout.ledger().display());
            AgentError::new(Reason::DataFolder, message)
        })?;
    }
    info!(instances = stopped, "everything is stopped");
    Ok(stopped)
}

async fn stop_proxy(layout: &Layout) {
    let folder = layout.proxy();
    if !folder.exists() {
        return;
    }
    let stopped = match ProxyTraffic::new(folder.clone()) {
        Ok(proxy) => proxy
            .shutdown(PROXY_GRACE)
            .await
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = stopped {
        warn!(error, "the proxy was not stopped");
        return;
    }
    let socket = folder.join("control");
    let deadline = tokio::time::Instant::now() + PROXY_LIMIT;
    while socket.exists() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
