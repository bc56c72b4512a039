//! `AgentLink`: one session, certificates of agents, and their answers to asks.
//!
//! A session sends levels down: the complete assignments, first after a read index so that a node
//! that is behind cannot send an old wish, then whenever their generation changes. An agent that
//! was removed is sent away as soon as the state says so. Whatever is malformed ends the session
//! with a reason, never the process.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tidegate_coordinator_core::State;
use tidegate_coordinator_core::command::{Command, UpdateAgent};
use tidegate_coordinator_core::desired::desired;
use tidegate_proto::agent::v1::agent_link_server::AgentLink;
use tidegate_proto::agent::v1::{
    AnswerChunk, AnswerResponse, Close, Coordinators, Down, Hello, Lease, RenewRequest,
    RenewResponse, Up, down, up,
};
use tidegate_shared::assignment::{Facts, Generation};
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::secret::Secret;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::admission::Crowded;
use super::{DOWN_QUEUE, Heard, Registered, Stamp};
use crate::api::authn::Caller;
use crate::api::convert::link;
use crate::api::{Context, caller, status};
use crate::ca::Subject;
use crate::replica::{Glimpses, View};
use crate::secrets;

/// Between two looks at the state: a wish reaches its agent within it.
const REST: Duration = Duration::from_millis(10);
/// The first message must come so soon.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// An agent that takes nothing for so long is sent away.
const SEND_LIMIT: Duration = Duration::from_secs(20);
/// Reports of one session per second.
const MOST_REPORTS: u32 = 100;
/// Bytes of the reports of one session per second.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// Largest message of an agent.
pub const MAX_MESSAGE: usize = 2 * 1024 * 1024;
/// Lines in one chunk of an answer.
const MOST_LINES: usize = 10_000;

/// The service.
pub struct AgentLinkApi(pub Arc<Context>);

#[tonic::async_trait]
impl AgentLink for AgentLinkApi {
    type SessionStream = ReceiverStream<Result<Down, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<Up>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = caller(&request)?;
        let name = name_of(&caller)?;
        self.0
            .sessions
            .admit(&name)
            .map_err(|crowded| too_many(crowded, &name))?;
        let (down, receiver) = mpsc::channel(DOWN_QUEUE);
        let session = Session {
            context: self.0.clone(),
            caller,
            name,
            down,
            sent: None,
            coordinators: Coordinators::default(),
        };
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        let caller = caller(&request)?;
        let identity = caller
            .identity
            .as_ref()
            .ok_or_else(|| status::internal(&"an agent without an identity"))?;
        let view = self.0.read().await?;
        // The gate may have asked an older state: who is removed must not get a fresh certificate.
        caller
            .check_known(&view.state)
            .map_err(|refused| status::refusal(refused.reason, refused.message))?;
        let subject = Subject {
            identity,
            hosts: &[],
            life: self.0.config.certificate_life.agent,
        };
        let issued = self
            .0
            .ca(&view.state)?
            .sign_request(
                &request.get_ref().csr,
                &subject,
                self.0.issue_time(&view.state),
            )
            .map_err(|error| status::from_ca(&error))?;
        tracing::info!(%identity, not_after = %issued.not_after, "a certificate was renewed");
        Ok(Response::new(RenewResponse {
            certificate_chain: issued.chain,
            roots: issued.roots,
            not_after_ms: issued.not_after.millis(),
        }))
    }

    async fn answer(
        &self,
        request: Request<Streaming<AnswerChunk>>,
    ) -> Result<Response<AnswerResponse>, Status> {
        let name = name_of(&caller(&request)?)?;
        let mut stream = request.into_inner();
        let mut answers = None;
        while let Some(chunk) = stream.message().await? {
            let sender = match &answers {
                Some(sender) => sender,
                None => {
                    answers.insert(self.0.sessions.answer_to(&chunk.ask_id, &name).ok_or_else(
                        || {
                            status::refusal(
                                Reason::NotFound,
                                format!("nobody waits for ask \"{}\" any more", chunk.ask_id),
                            )
                        },
                    )?)
                }
            };
            if chunk.lines.len() > MOST_LINES {
                return Err(status::refusal(
                    Reason::TooLarge,
                    format!("a chunk has more than {MOST_LINES} lines"),
                ));
            }
            let part = if chunk.error.is_empty() {
                Ok(chunk)
            } else {
                Err(status::refusal(
                    Reason::NotFound,
                    format!("agent \"{name}\": {}", chunk.error),
                ))
            };
            if sender.send(part).await.is_err() {
                return Err(status::refusal(Reason::NotFound, "nobody listens any more"));
            }
        }
        Ok(Response::new(AnswerResponse {}))
    }
}

fn too_many(crowded: Crowded, name: &Name) -> Status {
    let message = match crowded {
        Crowded::Agent => {
            format!("agent \"{name}\" connects too often; try again in a moment")
        }
        Crowded::Node => "too many agents connect at once; try again in a moment".to_owned(),
    };
    status::refusal(Reason::QueueFull, message)
}

fn name_of(caller: &Caller) -> Result<Name, Status> {
    caller
        .name
        .clone()
        .ok_or_else(|| status::internal(&"an agent without a name"))
}

/// Why a session ends, for the agent.
struct End {
    code: &'static str,
    reason: String,
}

impl End {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            code: reason.as_str(),
            reason: message.into(),
        }
    }

    /// The agent is gone: nobody to tell.
    fn silent() -> Self {
        Self {
            code: "",
            reason: String::new(),
        }
    }
}

struct Session {
    context: Arc<Context>,
    caller: Caller,
    name: Name,
    down: mpsc::Sender<Result<Down, Status>>,
    sent: Option<Generation>,
    coordinators: Coordinators,
}

impl Session {
    async fn run(mut self, mut up: Streaming<Up>) {
        let hello = match self.hello(&mut up).await {
            Ok(hello) => hello,
            Err(end) => return self.close(end).await,
        };
        let facts = match link::facts(hello.facts.clone()) {
            Ok(facts) => facts,
            Err(error) => {
                return self
                    .close(End::new(Reason::InvalidField, error.to_string()))
                    .await;
            }
        };
        let registered = self.context.sessions.register(
            &self.name,
            self.caller.validity.not_after,
            self.down.clone(),
        );
        tracing::info!(agent = %self.name, version = %hello.version, from = %self.caller.remote, "an agent connected");
        tokio::spawn(update(
            self.context.clone(),
            self.name.clone(),
            hello.version,
            facts,
            registered.over.clone(),
        ));
        let end = self.serve(&mut up, &registered).await;
        tracing::info!(agent = %self.name, reason = %end.reason, "an agent's session ended");
        drop(registered);
        self.close(end).await;
    }

    async fn hello(&self, up: &mut Streaming<Up>) -> Result<Hello, End> {
        let first = tokio::select! {
            first = tokio::time::timeout(HELLO_LIMIT, up.message()) => first,
            () = self.context.stop.cancelled() => return Err(stopping()),
        };
        match first {
            Ok(Ok(Some(Up {
                kind: Some(up::Kind::Hello(hello)),
            }))) => Ok(hello),
            Ok(Ok(Some(_))) => Err(End::new(
                Reason::InvalidRequest,
                "the first message of a session must be hello",
            )),
            Ok(Ok(None) | Err(_)) => Err(End::silent()),
            Err(_) => Err(End::new(Reason::InvalidRequest, "no hello came")),
        }
    }

    async fn serve(&mut self, up: &mut Streaming<Up>, registered: &Registered) -> End {
        let mut views = Glimpses::new(self.context.query.views(), REST);
        let mut lease = self.context.sessions.lease();
        lease.mark_unchanged();
        let mut first = Some(first_read(self.context.clone()));
        let mut rate = Rate::default();
        let left = self
            .caller
            .validity
            .not_after
            .since(self.context.now())
            .to_std();
        let ran_out = tokio::time::sleep(left);
        tokio::pin!(ran_out);
        // Cut off from the others, or taken out of the cluster without hearing of it: the agent
        // does better elsewhere, and loses its contact here anyhow.
        let patience = self.context.config.lost_after.to_std() / 2;
        let alone = tokio::time::sleep(patience);
        tokio::pin!(alone);
        loop {
            let step = tokio::select! {
                view = wait_first(&mut first) => {
                    first = None;
                    alone.set(tokio::time::sleep(patience));
                    self.begin(&view).await
                }
                next = views.next() => match next {
                    Ok(view) => self.follow(&view.state, first.is_none()).await,
                    Err(_) => Err(stopping()),
                },
                stamp = next_stamp(&mut lease) => {
                    alone.set(tokio::time::sleep(patience));
                    self.lease(stamp).await
                }
                () = &mut alone => Err(End::new(
                    Reason::NoLeader,
                    "this coordinator hears of no leader; try another one",
                )),
                message = up.message() => self.take(message, &mut rate),
                () = registered.over.cancelled() => Err(End {
                    code: "REPLACED",
                    reason: "a newer session of this agent is open".to_owned(),
                }),
                () = self.context.stop.cancelled() => Err(stopping()),
                () = &mut ran_out => Err(End::new(
                    Reason::Unauthenticated,
                    "the certificate of this connection ran out; connect with the renewed one",
                )),
                () = self.down.closed() => Err(End::silent()),
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// The first level, after a read index: it cannot be an old wish.
    async fn begin(&mut self, view: &View) -> Result<(), End> {
        self.check_known(&view.state)?;
        self.send_coordinators(&view.state).await?;
        self.send_assignments(&view.state).await?;
        let term = self.context.status.borrow().term;
        self.lease(Stamp { term, number: 0 }).await
    }

    async fn follow(&mut self, state: &State, has_begun: bool) -> Result<(), End> {
        if !has_begun {
            // This node may be behind; the gate asked the newest state.
            return Ok(());
        }
        self.check_known(state)?;
        let wished = state.agents.get(&self.name).map(|agent| agent.generation);
        if wished > self.sent {
            self.send_assignments(state).await?;
        }
        self.send_coordinators(state).await
    }

    fn check_known(&self, state: &State) -> Result<(), End> {
        self.caller
            .check_known(state)
            .map_err(|refused| End::new(refused.reason, refused.message))
    }

    async fn send_assignments(&mut self, state: &State) -> Result<(), End> {
        let wish = desired(state, &self.name);
        self.sent = Some(wish.generation);
        let message = link::assignments(&wish, &|item, variable| {
            self.open_secret(state, item.deployment, variable)
        });
        self.send(down::Kind::Assignments(message)).await
    }

    /// A secret of one of this agent's own assignments. One that does not open is sent without its
    /// value: its instances cannot start, everything else goes on.
    fn open_secret(&self, state: &State, id: DeploymentId, variable: &str) -> Option<Secret> {
        let deployment = state.deployments.get(&id)?;
        let parameter = deployment.origin.parameters.get(variable)?;
        let secret = parameter.secret.as_ref()?;
        let key = self.context.authority.key();
        match secrets::open(key, &secret.parameter, &secret.target, &secret.sealed) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::error!(
                    parameter = %secret.parameter, deployment = %id,
                    code = Reason::Credentials.code(), "{error}"
                );
                None
            }
        }
    }

    async fn send_coordinators(&mut self, state: &State) -> Result<(), End> {
        let members = || {
            state
                .cluster
                .iter()
                .flat_map(|cluster| cluster.members.values())
        };
        let now = Coordinators {
            control: members().map(|m| m.addresses.control.clone()).collect(),
            http: members().map(|m| m.addresses.http.clone()).collect(),
        };
        if now == self.coordinators {
            return Ok(());
        }
        self.coordinators = now.clone();
        self.send(down::Kind::Coordinators(now)).await
    }

    async fn lease(&self, stamp: Stamp) -> Result<(), End> {
        self.send(down::Kind::Lease(Lease {
            term: stamp.term,
            lost_after_ms: self.context.config.lost_after.millis(),
        }))
        .await
    }

    async fn send(&self, kind: down::Kind) -> Result<(), End> {
        let message = Ok(Down { kind: Some(kind) });
        match tokio::time::timeout(SEND_LIMIT, self.down.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::silent()),
            Err(_) => Err(End::new(Reason::QueueFull, "the agent does not keep up")),
        }
    }

    fn take(&self, message: Result<Option<Up>, Status>, rate: &mut Rate) -> Result<(), End> {
        let report = match message {
            Ok(Some(Up {
                kind: Some(up::Kind::Report(report)),
            })) => report,
            Ok(Some(_)) => {
                return Err(End::new(
                    Reason::InvalidRequest,
                    "only reports may follow hello",
                ));
            }
            Ok(None) => return Err(End::silent()),
            Err(error) if error.code() == tonic::Code::OutOfRange => {
                return Err(End::new(Reason::TooLarge, error.message()));
            }
            Err(_) => return Err(End::silent()),
        };
        if !rate.admits(self.context.clock.monotonic(), report.encoded_len()) {
            return Err(End::new(
                Reason::QueueFull,
                format!("more than {MOST_REPORTS} reports or {MOST_BYTES} bytes in a second"),
            ));
        }
        let report = link::report(report)
            .map_err(|error| End::new(Reason::InvalidField, error.to_string()))?;
        self.context
            .sessions
            .tell(Heard::Report(self.name.clone(), Box::new(report)));
        Ok(())
    }

    async fn close(&self, end: End) {
        if end.code.is_empty() {
            return;
        }
        let close = down::Kind::Close(Close {
            code: end.code.to_owned(),
            reason: end.reason,
        });
        let message = Ok(Down { kind: Some(close) });
        let sent = tokio::time::timeout(Duration::from_secs(1), self.down.send(message));
        // Whether it still arrives does not matter: the stream ends now.
        sent.await.ok();
    }
}

fn stopping() -> End {
    End::new(Reason::ShuttingDown, "this coordinator is stopping")
}

#[derive(Default)]
struct Rate {
    second: u64,
    count: u32,
    bytes: usize,
}

impl Rate {
    fn admits(&mut self, now: Duration, bytes: usize) -> bool {
        if now.as_secs() != self.second {
            *self = Self {
                second: now.as_secs(),
                ..Self::default()
            };
        }
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.count <= MOST_REPORTS && self.bytes <= MOST_BYTES
    }
}

type FirstRead = Pin<Box<dyn Future<Output = Arc<View>> + Send>>;

/// Reads until a leader confirms it.
fn first_read(context: Arc<Context>) -> FirstRead {
    Box::pin(async move {
        loop {
            match context.query.linearizable().await {
                Ok(view) => return view,
                Err(error) => {
                    tracing::debug!(%error, "the first assignments of a session wait");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    })
}

async fn wait_first(first: &mut Option<FirstRead>) -> Arc<View> {
    match first {
        Some(read) => read.await,
        None => std::future::pending().await,
    }
}

async fn next_stamp(lease: &mut watch::Receiver<Option<Stamp>>) -> Stamp {
    loop {
        if lease.changed().await.is_err() {
            return std::future::pending().await;
        }
        if let Some(stamp) = *lease.borrow_and_update() {
            return stamp;
        }
    }
}

/// Tells the log what changed about an agent, when it is its turn and its session still lives;
/// tried again while nobody leads.
async fn update(
    context: Arc<Context>,
    name: Name,
    version: String,
    facts: Facts,
    over: CancellationToken,
) {
    let mut has_turn = false;
    for _ in 0..10 {
        let Ok(view) = context.query.linearizable().await else {
            continue;
        };
        let is_known = view
            .state
            .agents
            .get(&name)
            .is_none_or(|agent| agent.version == version && agent.facts == facts);
        if is_known {
            return;
        }
        if has_turn && over.is_cancelled() {
            // A newer session tells newer facts.
            return;
        }
        if !has_turn {
            if !context.sessions.facts_turn(&name, &over).await {
                return;
            }
            has_turn = true;
        }
        let Ok(key) = context.own_request() else {
            return;
        };
        let command = Command::UpdateAgent(UpdateAgent {
            name: name.clone(),
            version: version.clone(),
            facts: facts.clone(),
        });
        let actor = tidegate_coordinator_core::Actor::Agent(name.clone());
        match context.propose(actor, key, command).await {
            Ok(_) => return,
            Err(error) if error.code() == tonic::Code::Unavailable => {
                tracing::debug!(agent = %name, %error, "facts are not in the log yet");
            }
            Err(error) => {
                tracing::warn!(agent = %name, %error, "facts were refused");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_limited_by_number_and_by_bytes_and_begin_anew_each_second() {
        let at = Duration::from_secs(7);
        let mut rate = Rate::default();
        let admitted = (0..1_000).filter(|_| rate.admits(at, 10)).count();
        assert_eq!(admitted, MOST_REPORTS as usize);
        let mut rate = Rate::default();
        assert!(rate.admits(at, MOST_BYTES));
        assert!(!rate.admits(at, 1));
        assert!(rate.admits(at + Duration::from_secs(1), 1));
    }
}
