//! The link: one stream to any coordinator, kept up for ever.
//!
//! It carries levels: assignments down, the latest report up. A first pick at random, then the next
//! one with a jittered wait that doubles from 0.2 s to 10 s. The list of coordinators is refreshed
//! by the cluster and kept on disk. A message that is malformed or too large ends the session with
//! a reason, never the process. What a coordinator refuses is told once, with its code and the next
//! step, and tried seldom if trying cannot cure it; applications go on. Certificates renew over the connection of the session. What an
//! assignment means is the reconcile loop's business.

mod checks;
pub mod convert;
mod host;
pub mod logs;
mod refusal;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tidegate_agent_core::place::InstanceKey;
use tidegate_proto::agent::v1 as wire;
use tidegate_proto::agent::v1::agent_link_client::AgentLinkClient;
use tidegate_shared::assignment::{Assignments, Facts, Generation, Report};
use tidegate_shared::digest::Digest;
use tidegate_shared::secret::Secret;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tracing::{debug, error, info, warn};

use crate::asset::ReleaseStore;
use crate::config::{Layout, check_address};
use crate::executor::Executor;
use crate::tls::{Material, Tls};
use crate::{files, identity, jitter};
use logs::Output;
use refusal::{Attempts, End};

/// Largest message from a coordinator: 16 MiB.
const MAX_MESSAGE: usize = 16 << 20;
/// Most coordinators in a list.
const MAX_COORDINATORS: usize = 64;
/// A session of that length has the waits begin anew.
const GOOD_SESSION: Duration = Duration::from_secs(10);
/// Between two attempts to renew.
const RENEW_AGAIN: Duration = Duration::from_secs(60);
/// Most unanswered asks at a time.
const MAX_ASKS: usize = 32;

/// Where the coordinators listen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Coordinators {
    /// Control listeners.
    pub control: Vec<String>,
    /// HTTP listeners.
    pub http: Vec<String>,
}

impl Coordinators {
    /// The list that the cluster told last, or the configured one.
    pub fn load(layout: &Layout, configured: Self) -> Self {
        let path = layout.coordinators();
        let Ok(bytes) = std::fs::read(&path) else {
            return configured;
        };
        match serde_json::from_slice::<Self>(&bytes) {
            // Both: an operator's edit helps when every address of the kept list is dead.
            Ok(mut kept) => {
                kept.add(configured);
                kept
            }
            Err(error) => {
                warn!(path = %path.display(), %error, "the kept list of coordinators is not used");
                configured
            }
        }
    }

    /// Adds those of another list that are not in this one; whether there were any.
    pub fn add(&mut self, other: Self) -> bool {
        let mut added = false;
        for (list, more) in [
            (&mut self.control, other.control),
            (&mut self.http, other.http),
        ] {
            for address in more {
                if !list.contains(&address) {
                    list.push(address);
                    added = true;
                }
            }
        }
        added
    }

    fn received(from: wire::Coordinators) -> Result<Self, String> {
        if from.control.is_empty() || from.control.len().max(from.http.len()) > MAX_COORDINATORS {
            return Err("a list of coordinators has none, or more than 64".to_owned());
        }
        for address in from.control.iter().chain(&from.http) {
            check_address(address)?;
        }
        Ok(Self {
            control: from.control,
            http: from.http,
        })
    }
}

/// Values of secrets by version. They go into the store of secrets and nowhere else.
pub type Secrets = BTreeMap<Digest, Secret>;

/// What the cluster wishes of this agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// These versions, and the values of the secrets that they name.
    Assignments(Assignments, Secrets),
    /// Nothing any more: it was taken out.
    Removed,
}

/// What the session needs of the rest of the agent.
pub struct SessionParts {
    /// Its certificate.
    pub tls: Tls,
    /// Renewed certificates go here.
    pub material: watch::Sender<Arc<Material>>,
    /// The list that is in use.
    pub coordinators: watch::Sender<Coordinators>,
    /// The agent's files.
    pub layout: Layout,
    /// Told at each connection.
    pub facts: Facts,
    /// The start counter.
    pub start: u64,
    /// Highest generation held.
    pub generation: watch::Receiver<Generation>,
    /// The latest report.
    pub reports: watch::Receiver<Option<Arc<Report>>>,
    /// What the cluster wishes goes here.
    pub wishes: mpsc::Sender<Wish>,
    /// The instances that the agent knows, for asks for logs.
    pub instances: watch::Receiver<Arc<Vec<InstanceKey>>>,
    /// Releases on disk, for asks about the host.
    pub store: Arc<ReleaseStore>,
    /// Where the proxy listens, for asks about the host.
    pub listen_address: IpAddr,
    /// What runs the instances.
    pub executor: Arc<dyn Executor>,
    /// Told the coordinator of the session that is up, and nothing while there is none.
    pub connected: watch::Sender<Option<String>>,
}

/// Keeps a session up until the wishes' receiver is gone.
pub async fn run(mut parts: SessionParts) {
    let first = parts.coordinators.borrow().control.len() as u64;
    let mut pick = jitter::below(first.max(1)) as usize;
    let mut attempts = Attempts::new();
    while !parts.wishes.is_closed() {
        let list = parts.coordinators.borrow().control.clone();
        let Some(address) = list.get(pick % list.len().max(1)).cloned() else {
            error!("no coordinator is known; put one into agent.toml, key coordinators");
            return;
        };
        pick = pick.wrapping_add(1);
        let began = tokio::time::Instant::now();
        let ended = session(&mut parts, &address).await;
        parts
            .connected
            .send_if_modified(|held| held.take().is_some());
        if began.elapsed() >= GOOD_SESSION {
            attempts.was_good();
        }
        match ended {
            Ok(End::Plain(reason)) => info!(coordinator = address, reason, "the session ended"),
            Err(End::Plain(reason)) => {
                warn!(coordinator = address, reason, "no session");
                complain_about_certificate(&parts.tls.material());
            }
            Ok(End::Refused(refusal)) | Err(End::Refused(refusal)) => {
                let refusal::Refusal {
                    code,
                    message: reason,
                    hint,
                    ..
                } = &refusal;
                if refusal.is_removal() && parts.wishes.send(Wish::Removed).await.is_err() {
                    return;
                }
                if !attempts.is_news(&refusal) {
                    debug!(coordinator = address, reason, code, "refused again");
                } else if refusal.is_removal() {
                    error!(
                        coordinator = address,
                        reason,
                        code,
                        hint,
                        "this agent was taken out of the cluster; its applications drain and stop"
                    );
                } else if refusal.is_final {
                    error!(
                        coordinator = address,
                        reason,
                        code,
                        hint,
                        "this agent is refused; applications and the proxy go on"
                    );
                } else {
                    warn!(coordinator = address, reason, code, hint, "no session");
                }
            }
        }
        tokio::time::sleep(jitter::jittered(attempts.next_wait())).await;
    }
}

fn unix_seconds() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

fn complain_about_certificate(material: &Material) {
    if material.not_after <= unix_seconds() {
        error!(
            "this agent's certificate has ended; make a token with `tidegate token create agent --name {}`, with its labels, run `tidegate-agent join` again with it and restart the agent: applications and the proxy go on meanwhile",
            material.identity.name
        );
    }
}

/// One session; answers with why it ended, or why there was none.
async fn session(parts: &mut SessionParts, address: &str) -> Result<End, End> {
    let channel = parts.tls.channel(address).await?;
    let mut client = AgentLinkClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    let (up, outgoing) = mpsc::channel(4);
    send(&up, wire::up::Kind::Hello(hello(parts))).await?;
    let opened = client.session(ReceiverStream::new(outgoing)).await;
    let mut down = opened
        .map_err(|status| End::of_status(&status))?
        .into_inner();
    info!(coordinator = address, "session up");
    parts.connected.send_replace(Some(address.to_owned()));
    let mut reports = parts.reports.clone();
    reports.mark_changed();
    let mut renewal = Box::pin(tokio::time::sleep(until_renewal(&parts.tls.material())));
    let asks = Arc::new(tokio::sync::Semaphore::new(MAX_ASKS));
    loop {
        tokio::select! {
            message = down.next() => match message {
                None => return Ok("the coordinator closed it".to_owned().into()),
                Some(Err(status)) => return Ok(End::of_status(&status)),
                Some(Ok(message)) => {
                    if let Some(end) = take(parts, message, &channel, &asks).await? {
                        return Ok(end);
                    }
                }
            },
            changed = reports.changed() => {
                if changed.is_err() {
                    return Ok("the agent stops".to_owned().into());
                }
                let report = reports.borrow_and_update().clone();
                if let Some(report) = report {
                    send(&up, wire::up::Kind::Report(convert::report(&report))).await?;
                }
            }
            () = &mut renewal => {
                let next = match renew(parts, &channel).await {
                    Ok(material) => until_renewal(&material),
                    Err(reason) => {
                        warn!(reason, "the certificate is not renewed; the next attempt comes in a minute");
                        RENEW_AGAIN
                    }
                };
                renewal.as_mut().reset(tokio::time::Instant::now() + next);
            }
        }
    }
}

async fn send(up: &mpsc::Sender<wire::Up>, kind: wire::up::Kind) -> Result<(), String> {
    let sent = up.send(wire::Up { kind: Some(kind) }).await;
    sent.map_err(|_| "the stream up has ended".to_owned())
}

fn hello(parts: &SessionParts) -> wire::Hello {
    wire::Hello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: [
            "hooks",
            "logs",
            "parameters",
            parts.executor.capabilities().name,
            "proxy",
        ]
        .map(str::to_owned)
        .to_vec(),
        facts: parts.facts.clone().into_iter().collect(),
        start: parts.start,
        generation: Some(convert::generation(*parts.generation.borrow())),
    }
}

/// Takes one message; answers with the reason if it ends the session.
async fn take(
    parts: &mut SessionParts,
    message: wire::Down,
    channel: &Channel,
    asks: &Arc<tokio::sync::Semaphore>,
) -> Result<Option<End>, String> {
    match message.kind {
        Some(wire::down::Kind::Assignments(wish)) => match convert::assignments(wish) {
            Ok((wish, secrets)) => {
                debug!(generation = ?wish.generation, items = wish.items.len(), "assignments");
                let wish = Wish::Assignments(wish, secrets);
                if parts.wishes.send(wish).await.is_err() {
                    return Ok(Some("the agent stops".to_owned().into()));
                }
            }
            Err(error) => return Err(format!("malformed assignments: {error}")),
        },
        Some(wire::down::Kind::Coordinators(list)) => {
            let list = Coordinators::received(list)?;
            keep(parts, list);
        }
        Some(wire::down::Kind::Lease(lease)) => debug!(term = lease.term, "contact"),
        Some(wire::down::Kind::Ask(ask)) => match Arc::clone(asks).try_acquire_owned() {
            Ok(slot) => {
                let told = Told {
                    output: Output {
                        place: parts.executor.capabilities().output,
                        instances: parts.layout.instances(),
                    },
                    known: parts.instances.clone(),
                    store: Arc::clone(&parts.store),
                    listen_address: parts.listen_address,
                    executor: Arc::clone(&parts.executor),
                };
                let channel = channel.clone();
                tokio::spawn(async move {
                    let _slot = slot;
                    answer(ask, told, channel).await;
                });
            }
            Err(_) => warn!("too many asks at once; one is not answered"),
        },
        Some(wire::down::Kind::Close(close)) => {
            return Ok(Some(End::of_close(&close.code, close.reason)));
        }
        // A message of a newer coordinator: nothing that this agent could be wrong about.
        None => debug!("a message of an unknown kind is ignored"),
    }
    Ok(None)
}

/// What asks are answered from.
struct Told {
    output: Output,
    known: watch::Receiver<Arc<Vec<InstanceKey>>>,
    store: Arc<ReleaseStore>,
    listen_address: IpAddr,
    executor: Arc<dyn Executor>,
}

/// Answers an ask on a stream of its own, until everything is told or nobody listens.
async fn answer(ask: wire::Ask, told: Told, channel: Channel) {
    let (chunks, outgoing) = mpsc::channel(16);
    let id = ask.id.clone();
    let teller = tokio::spawn(async move {
        let first = wire::AnswerChunk {
            ask_id: ask.id,
            ..wire::AnswerChunk::default()
        };
        if chunks.send(first).await.is_err() {
            return;
        }
        let only = match ask.kind {
            Some(wire::ask::Kind::Logs(logs)) => {
                return logs::tell(&logs, &told.output, &told.known, &chunks).await;
            }
            Some(wire::ask::Kind::Host(host)) => wire::AnswerChunk {
                host: Some(host::look(
                    &host,
                    &told.store,
                    told.listen_address,
                    &*told.executor,
                )),
                ..wire::AnswerChunk::default()
            },
            None => wire::AnswerChunk {
                error: "this agent does not know that kind of ask".to_owned(),
                ..wire::AnswerChunk::default()
            },
        };
        chunks.send(only).await.ok();
    });
    let mut client = AgentLinkClient::new(channel);
    if let Err(status) = client.answer(ReceiverStream::new(outgoing)).await {
        debug!(ask = id, %status, "the answer was not heard to its end");
    }
    teller.abort();
}

fn keep(parts: &SessionParts, list: Coordinators) {
    if *parts.coordinators.borrow() == list {
        return;
    }
    info!(coordinators = ?list.control, "the list of coordinators changed");
    let path: PathBuf = parts.layout.coordinators();
    let written = serde_json::to_vec(&list)
        .map_err(std::io::Error::other)
        .and_then(|bytes| files::replace(&path, &bytes, 0o644));
    if let Err(error) = written {
        warn!(path = %path.display(), %error, "the list of coordinators is not kept");
    }
    parts.coordinators.send_replace(list);
}

fn until_renewal(material: &Material) -> Duration {
    let left = identity::renew_at(material).saturating_sub(unix_seconds());
    Duration::from_secs(u64::try_from(left).unwrap_or(0))
}

async fn renew(parts: &SessionParts, channel: &Channel) -> Result<Arc<Material>, String> {
    let folder = parts.layout.identity();
    let request = identity::Request::again(&folder).map_err(|error| error.to_string())?;
    let mut client = AgentLinkClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    let csr = request.csr.into();
    let response = client.renew(wire::RenewRequest { csr }).await;
    let response = response
        .map_err(|status| End::of_status(&status).to_string())?
        .into_inner();
    let chain = &response.certificate_chain;
    let material = identity::store(&folder, &request.key, chain, &response.roots)
        .map_err(|error| error.to_string())?;
    parts.material.send_replace(Arc::clone(&material));
    info!(not_after_ms = response.not_after_ms, "certificate renewed");
    Ok(material)
}
