//! `Scopes`: one scope on one screen, its verbs, and the logs of its instances.

use std::sync::Arc;
use std::time::Duration;

use tidegate_coordinator_core::State;
use tidegate_coordinator_core::command::{Command, RollbackScope, ScopeName, StopScope};
use tidegate_coordinator_core::desired::scope_items;
use tidegate_coordinator_core::observed::place_in;
use tidegate_coordinator_core::people::Place;
use tidegate_coordinator_core::state::Scope;
use tidegate_proto::agent::v1::{AnswerChunk, LogsAsk, ask};
use tidegate_proto::control::v1::scopes_client::ScopesClient;
use tidegate_proto::control::v1::scopes_server::Scopes;
use tidegate_proto::control::v1::{
    CheckScopeRequest, CheckScopeResponse, Deployment, Leftover, LogLine, LogsRequest,
    RollbackScopeRequest, ScopeAgent, ScopeRequest, ScopeVerbRequest, ScopeView, StopScopeRequest,
};
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::authn::Caller;
use super::convert::deployment::Picture;
use super::relay::{self, ask_leader};
use super::{Context, caller, convert, deployments, past, request_key, status};
use crate::agents::host_check;

/// Ended deployments on the screen of a scope.
const RECENT: usize = 10;
/// Lines that may be asked for from each instance.
const MOST_LINES: u32 = 10_000;

/// The service.
pub struct ScopesApi(pub Arc<Context>);

fn find<'a>(state: &'a State, name: &Name) -> Result<&'a Scope, Status> {
    state
        .scopes
        .get(name)
        .ok_or_else(|| status::refusal(Reason::NotFound, format!("there is no scope \"{name}\"")))
}

fn scope_view(picture: &Picture<'_>, name: &Name, scope: &Scope) -> ScopeView {
    let state = picture.state;
    let full = |id: Option<DeploymentId>| {
        id.and_then(|id| state.deployments.get(&id))
            .map(|found| picture.deployment(found))
    };
    let mut leftovers = Vec::new();
    for id in &scope.retired {
        let Some(retired) = state.deployments.get(id) else {
            continue;
        };
        leftovers.extend(retired.leftovers.iter().map(|agent| Leftover {
            deployment: id.to_string(),
            agent: agent.to_string(),
            what: format!(
                "{} of {} is not yet observed gone",
                retired.origin.version, retired.origin.application
            ),
        }));
    }
    let agents: Vec<ScopeAgent> = state
        .agents
        .iter()
        .filter(|(agent, known)| {
            scope.spec.agents.matches(&known.meta.labels)
                || !scope_items(state, name, agent).0.is_empty()
        })
        .map(|(agent, _)| scope_agent(picture, scope, agent))
        .collect();
    let recent = state
        .history
        .range((name.clone(), 0)..=(name.clone(), u64::MAX))
        .rev()
        .filter_map(|(_, id)| state.deployments.get(id))
        .filter(|found| found.status.is_end() && scope.active != Some(found.id))
        .take(RECENT)
        .map(|found| picture.summary(found))
        .collect();
    ScopeView {
        scope: Some(convert::scope_object(name, scope)),
        active: full(scope.active),
        candidate: full(scope.candidate),
        waiting: scope
            .waiting
            .iter()
            .filter_map(|id| full(Some(*id)))
            .collect(),
        leftovers,
        lost_agents: agents
            .iter()
            .filter(|agent| agent.lost)
            .map(|agent| agent.name.clone())
            .collect(),
        next_wakeup_ms: picture.next_wakeup.map_or(0, |at| at.millis()),
        agents,
        kept_releases: scope
            .kept
            .iter()
            .filter_map(|id| state.deployments.get(id))
            .map(|found| found.origin.version.to_string())
            .collect(),
        recent,
        auto_deploy: tidegate_coordinator_core::auto::view(state, picture.now, name)
            .map(convert::plan::auto_deploy),
    }
}

fn scope_agent(picture: &Picture<'_>, scope: &Scope, agent: &Name) -> ScopeAgent {
    let known = picture
        .observed
        .and_then(|observed| observed.agents.get(agent));
    let weight = |id: Option<DeploymentId>| {
        let report = known?.report.as_deref()?;
        let weight = place_in(report, id?)?.weight?;
        Some(i32::from(weight.basis_points()))
    };
    ScopeAgent {
        name: agent.to_string(),
        connected: known.is_some_and(|known| known.coordinator.is_some()),
        lost: picture
            .observed
            .is_some_and(|observed| observed.is_lost(agent, picture.now)),
        last_contact_ms: known.map_or(0, |known| known.last_contact.millis()),
        active_weight: weight(scope.active).unwrap_or(-1),
        candidate_weight: weight(scope.candidate).unwrap_or(-1),
    }
}

impl ScopesApi {
    async fn present(&self, name: &Name) -> Result<Response<ScopeView>, Status> {
        let view = self.0.read().await?;
        find(&view.state, name)?;
        let state = past::with_newest(&self.0, &view, name.clone(), None, RECENT).await?;
        let scope = find(&state, name)?;
        Ok(Response::new(self.0.live.picture(
            &self.0,
            &state,
            |picture| scope_view(&picture, name, scope),
        )))
    }

    /// A relayed request was asked by the coordinator that passes it on; this one asks again.
    async fn may_see(&self, caller: &Caller, name: &Name) -> Result<(), Status> {
        let place = Place::Scope(name.clone());
        let state = &self.0.query.stale().state;
        if self.0.sight(caller, state).check(state, &place).is_ok() {
            return Ok(());
        }
        let view = self.0.read().await?;
        self.0
            .sight(caller, &view.state)
            .check(&view.state, &place)
            .map_err(|refused| status::from_rejection(&refused))
    }

    async fn verb(
        &self,
        caller: &Caller,
        request_id: &str,
        command: Command,
    ) -> Result<Response<Deployment>, Status> {
        let key = request_key(request_id)?;
        let reply = self.0.propose(caller.actor(), key, command).await?;
        deployments::present(&self.0, deployments::made(&reply)?).await
    }
}

#[tonic::async_trait]
impl Scopes for ScopesApi {
    type LogsStream = ReceiverStream<Result<LogLine, Status>>;

    async fn view(&self, request: Request<ScopeRequest>) -> Result<Response<ScopeView>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let name = convert::name("name", &message.name)?;
        if let Some(answer) = ask_leader!(self.0, caller, ScopesClient, view, message) {
            return Ok(answer);
        }
        self.may_see(&caller, &name).await?;
        self.present(&name).await
    }

    async fn stop(
        &self,
        request: Request<StopScopeRequest>,
    ) -> Result<Response<ScopeView>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let name = convert::name("name", &message.name)?;
        let command = Command::StopScope(StopScope {
            name: name.clone(),
            cancel: message.cancel,
        });
        self.0
            .propose(actor, request_key(&message.request_id)?, command)
            .await?;
        self.present(&name).await
    }

    async fn start(
        &self,
        request: Request<ScopeVerbRequest>,
    ) -> Result<Response<Deployment>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let name = convert::name("name", &message.name)?;
        let command = Command::StartScope(ScopeName { name });
        self.verb(&caller, &message.request_id, command).await
    }

    async fn restart(
        &self,
        request: Request<ScopeVerbRequest>,
    ) -> Result<Response<Deployment>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let name = convert::name("name", &message.name)?;
        let command = Command::RestartScope(ScopeName { name });
        self.verb(&caller, &message.request_id, command).await
    }

    async fn rollback(
        &self,
        request: Request<RollbackScopeRequest>,
    ) -> Result<Response<Deployment>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let version = match message.version.as_str() {
            "" => None,
            text => Some(convert::version("version", text)?),
        };
        let command = Command::RollbackScope(RollbackScope {
            name: convert::name("name", &message.name)?,
            version,
            force: message.force,
            reason: message.reason,
        });
        self.verb(&caller, &message.request_id, command).await
    }

    async fn check(
        &self,
        request: Request<CheckScopeRequest>,
    ) -> Result<Response<CheckScopeResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        if let Some(answer) = ask_leader!(self.0, caller, ScopesClient, check, message.clone()) {
            return Ok(answer);
        }
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let wanted = host_check::Wanted {
            scope: convert::name("name", &message.name)?,
            version: given(&message.version)
                .map(|text| convert::version("version", &text))
                .transpose()?,
            strategy: given(&message.strategy)
                .map(|text| convert::name("strategy", &text))
                .transpose()?,
        };
        self.may_see(&caller, &wanted.scope).await?;
        let (version, findings) = host_check::check(&self.0, &wanted).await?;
        Ok(Response::new(CheckScopeResponse {
            version: version
                .map(|version| version.to_string())
                .unwrap_or_default(),
            findings: findings.into_iter().map(convert::finding).collect(),
        }))
    }

    async fn logs(
        &self,
        request: Request<LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        if message.tail_lines > MOST_LINES {
            return Err(status::wrong_field(
                "tail_lines",
                format!("want at most {MOST_LINES}"),
            ));
        }
        let view = self.0.read().await?;
        let state = match message.deployment.as_str() {
            "" => view.state.clone(),
            text => past::find(&self.0, &view, text).await?.0,
        };
        let (scope, deployment) = logs_of(&state, &message)?;
        self.may_see(&caller, &scope).await?;
        let (sender, receiver) = mpsc::channel(64);
        let mut asked = self.ask_own(&state, &scope, deployment, &message, &sender);
        if !caller.relayed {
            for node in self.0.peers.directory().others() {
                asked |= self.ask_other(node, &caller, &message, &sender).await;
            }
        }
        if !asked {
            return Err(status::refusal(
                Reason::AgentNotConnected,
                format!("no agent that acts for scope \"{scope}\" is connected"),
            ));
        }
        if message.follow {
            tokio::spawn(end_when_revoked(self.0.clone(), caller, sender.downgrade()));
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Ends a stream that is followed when its reader is removed from the cluster, or the node stops.
async fn end_when_revoked(
    context: Arc<Context>,
    caller: Caller,
    lines: mpsc::WeakSender<Result<LogLine, Status>>,
) {
    let mut views = context.query.views();
    loop {
        // The agents' answers keep the stream open, not this watch over it.
        let Some(lines) = lines.upgrade() else {
            return;
        };
        let known = caller.check_known(&views.borrow_and_update().state);
        if let Err(refused) = known {
            let end = status::refusal(refused.reason, refused.message);
            // The reader may be gone already.
            lines.send(Err(end)).await.ok();
            return;
        }
        drop(lines);
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
            () = context.stop.cancelled() => return,
        }
    }
}

/// Whose logs: a scope, or one deployment of it.
fn logs_of(state: &State, message: &LogsRequest) -> Result<(Name, Option<DeploymentId>), Status> {
    if message.deployment.is_empty() {
        let scope = convert::name("scope", &message.scope)?;
        find(state, &scope)?;
        return Ok((scope, None));
    }
    let id = convert::deployment_id(state, &message.deployment)?;
    let found = state.deployments.get(&id).ok_or_else(|| {
        status::refusal(Reason::NotFound, format!("there is no deployment \"{id}\""))
    })?;
    Ok((found.origin.scope.clone(), Some(id)))
}

impl ScopesApi {
    /// Asks the agents whose sessions are here; whether there are any.
    fn ask_own(
        &self,
        state: &State,
        scope: &Name,
        deployment: Option<DeploymentId>,
        message: &LogsRequest,
        lines: &mpsc::Sender<Result<LogLine, Status>>,
    ) -> bool {
        let concerned = |agent: &Name| {
            let participant = deployment
                .and_then(|id| state.deployments.get(&id))
                .is_some_and(|found| found.participants.contains(agent));
            participant || !scope_items(state, scope, agent).0.is_empty()
        };
        let ask = LogsAsk {
            scope: scope.to_string(),
            deployment: deployment.map(|id| id.to_string()).unwrap_or_default(),
            tail_lines: message.tail_lines,
            follow: message.follow,
        };
        let mut asked = false;
        for agent in self.0.sessions.connected() {
            if !concerned(&agent) {
                continue;
            }
            match self.0.sessions.ask(&agent, ask::Kind::Logs(ask.clone())) {
                Ok(answers) => {
                    asked = true;
                    tokio::spawn(pass_on_own(agent, answers, lines.clone()));
                }
                Err(error) => tracing::debug!(%agent, %error, "an agent was not asked for logs"),
            }
        }
        asked
    }

    /// Asks another coordinator for the lines of the agents whose sessions it has.
    async fn ask_other(
        &self,
        node: u64,
        caller: &Caller,
        message: &LogsRequest,
        lines: &mpsc::Sender<Result<LogLine, Status>>,
    ) -> bool {
        let Ok(channel) = self.0.peers.channel(node) else {
            return false;
        };
        let Ok(mut request) = relay::request_for(caller, message.clone()) else {
            return false;
        };
        if !message.follow {
            request.set_timeout(Duration::from_secs(30));
        }
        let mut client = ScopesClient::new(channel);
        let answer = tokio::time::timeout(Duration::from_secs(5), client.logs(request)).await;
        match answer {
            Ok(Ok(answer)) => {
                tokio::spawn(pass_on_other(answer.into_inner(), lines.clone()));
                true
            }
            Ok(Err(error)) => {
                tracing::debug!(node, %error, "a coordinator has no logs to give");
                false
            }
            Err(_) => {
                tracing::debug!(node, "a coordinator did not answer for its agents' logs");
                false
            }
        }
    }
}

async fn pass_on_own(
    agent: Name,
    mut answers: mpsc::Receiver<Result<AnswerChunk, Status>>,
    lines: mpsc::Sender<Result<LogLine, Status>>,
) {
    while let Some(answer) = answers.recv().await {
        let chunk = match answer {
            Ok(chunk) => chunk,
            Err(error) => {
                lines.send(Err(error)).await.ok();
                return;
            }
        };
        for line in chunk.lines {
            let line = LogLine {
                agent: agent.to_string(),
                deployment: line.deployment,
                instance: line.instance,
                stream: line.stream,
                text: line.text,
            };
            if lines.send(Ok(line)).await.is_err() {
                return;
            }
        }
    }
}

async fn pass_on_other(
    mut stream: tonic::Streaming<LogLine>,
    lines: mpsc::Sender<Result<LogLine, Status>>,
) {
    loop {
        tokio::select! {
            message = stream.message() => match message {
                Ok(Some(line)) => {
                    if lines.send(Ok(line)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%error, "logs of another coordinator ended");
                    return;
                }
            },
            () = lines.closed() => return,
        }
    }
}
