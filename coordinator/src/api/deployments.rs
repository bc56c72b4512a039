//! `Deployments`: making, seeing and steering them.

use std::sync::Arc;
use std::time::Duration;

use tidegate_coordinator_core::command::{ActOnDeployment, Command, CreateDeployments};
use tidegate_coordinator_core::people::Place;
use tidegate_coordinator_core::policy::guardrail;
use tidegate_coordinator_core::{Actor, Entry, Item, Reply, RequestKey, State};
use tidegate_proto::control::v1::deployments_client::DeploymentsClient;
use tidegate_proto::control::v1::deployments_server::Deployments;
use tidegate_proto::control::v1::{
    ActRequest, CreateDeploymentRequest, CreateDeploymentResponse, Deployment,
    GetDeploymentRequest, HistoryRequest, HistoryResponse, ListDeploymentsRequest,
    ListDeploymentsResponse, WatchDeploymentRequest,
};
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::authn::Caller;
use super::relay::{self, ask_leader};
use super::{Context, authz, caller, convert, expected, past, request_key, status};
use crate::replica::View;

/// Scopes that one request may deploy to.
const MOST_SCOPES: usize = 1_000;
/// Shortest interval of a watch's live figures.
const FASTEST_WATCH: Duration = Duration::from_millis(100);
/// What a watch takes when nothing is said.
const USUAL_WATCH: Duration = Duration::from_secs(1);

/// The service.
pub struct DeploymentsApi(pub Arc<Context>);

/// A deployment as this node sees it now, at or after everything that was answered before.
///
/// # Errors
/// No leader in time, or it is gone.
pub async fn present(context: &Context, id: DeploymentId) -> Result<Response<Deployment>, Status> {
    let view = context.read().await?;
    show_any(context, &view, id).await.map(Response::new)
}

/// A deployment wherever it is kept.
async fn show_any(
    context: &Context,
    view: &Arc<View>,
    id: DeploymentId,
) -> Result<Deployment, Status> {
    let state = past::with_deployment(context, view, id).await?;
    show(context, &state, id)
}

/// Whether a caller sees a deployment, which stands in `state`, by the roles in `now`.
///
/// # Errors
/// Who lacks which role where.
pub fn may_see(
    context: &Context,
    caller: &Caller,
    now: &State,
    state: &State,
    id: DeploymentId,
) -> Result<(), Status> {
    let Some(found) = state.deployments.get(&id) else {
        return Ok(());
    };
    context
        .sight(caller, now)
        .check(now, &authz::place_of(now, &found.origin))
        .map_err(|refused| status::from_rejection(&refused))
}

fn show(context: &Context, state: &State, id: DeploymentId) -> Result<Deployment, Status> {
    let found = state.deployments.get(&id).ok_or_else(|| {
        status::refusal(Reason::NotFound, format!("there is no deployment \"{id}\""))
    })?;
    Ok(context
        .live
        .picture(context, state, |picture| picture.deployment(found)))
}

/// The one deployment that a command made or acted on: the newest of its answer.
///
/// # Errors
/// The answer names none: a bug.
pub fn made(reply: &Reply) -> Result<DeploymentId, Status> {
    let id = match reply {
        Reply::Deployments(ids) => ids.last().copied(),
        Reply::Done | Reply::Named(_) | Reply::Object { .. } | Reply::Joined { .. } => None,
    };
    id.ok_or_else(|| status::internal(&"a command on a deployment named none"))
}

fn scopes_of(names: &[String]) -> Result<Vec<Name>, Status> {
    if names.is_empty() || names.len() > MOST_SCOPES {
        return Err(status::wrong_field(
            "scopes",
            format!("want 1 to {MOST_SCOPES} scopes"),
        ));
    }
    names
        .iter()
        .enumerate()
        .map(|(position, text)| convert::name(&format!("scopes[{position}]"), text))
        .collect()
}

impl DeploymentsApi {
    /// Guardrails are asked on a copy of the state that is thrown away: they look at the deployments
    /// as they would be, and `apply` may not evaluate them.
    async fn guard(
        &self,
        actor: &Actor,
        request: RequestKey,
        command: &Command,
    ) -> Result<(), Status> {
        let view = self.0.read().await?;
        if !guardrail::is_any(&view.state) {
            return Ok(());
        }
        let mut state = view.state.clone();
        let at = state.at.max(self.0.now());
        let entry = Entry {
            at,
            items: vec![Item {
                actor: actor.clone(),
                request,
                command: command.clone(),
            }],
        };
        let applied = tidegate_coordinator_core::apply(&mut state, view.index + 1, &entry);
        for one in applied {
            // A refusal is told by the log, where it is remembered.
            let Ok(Reply::Deployments(ids)) = one.outcome else {
                continue;
            };
            for made in ids.iter().filter_map(|id| state.deployments.get(id)) {
                guardrail::check_all(&state, made, at)
                    .map_err(|rejection| status::from_rejection(&rejection))?;
            }
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Deployments for DeploymentsApi {
    type WatchStream = ReceiverStream<Result<Deployment, Status>>;

    async fn create(
        &self,
        request: Request<CreateDeploymentRequest>,
    ) -> Result<Response<CreateDeploymentResponse>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let strategy = match message.strategy.as_str() {
            "" => None,
            text => Some(convert::name("strategy", text)?),
        };
        let command = Command::CreateDeployments(CreateDeployments {
            application: convert::name("application", &message.application)?,
            version: convert::version("version", &message.version)?,
            scopes: scopes_of(&message.scopes)?,
            strategy,
            overrides: convert::overrides(&message.overrides)?,
            labels: convert::labels(message.labels)?,
            on_conflict: convert::on_conflict(&message.on_conflict)?,
        });
        let key = request_key(&message.request_id)?;
        self.guard(&actor, key, &command).await?;
        let reply = self.0.propose(actor, key, command).await?;
        let ids = match reply {
            Reply::Deployments(ids) => ids,
            Reply::Done | Reply::Named(_) | Reply::Object { .. } | Reply::Joined { .. } => {
                Vec::new()
            }
        };
        let view = self.0.read().await?;
        let deployments = self.0.live.picture(&self.0, &view.state, |picture| {
            ids.iter()
                .filter_map(|id| view.state.deployments.get(id))
                .map(|found| picture.deployment(found))
                .collect()
        });
        Ok(Response::new(CreateDeploymentResponse { deployments }))
    }

    async fn get(
        &self,
        request: Request<GetDeploymentRequest>,
    ) -> Result<Response<Deployment>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        if let Some(answer) = ask_leader!(self.0, caller, DeploymentsClient, get, message.clone()) {
            return Ok(answer);
        }
        let view = self.0.read().await?;
        let (state, id) = past::find(&self.0, &view, &message.id).await?;
        may_see(&self.0, &caller, &view.state, &state, id)?;
        show(&self.0, &state, id).map(Response::new)
    }

    async fn list(
        &self,
        request: Request<ListDeploymentsRequest>,
    ) -> Result<Response<ListDeploymentsResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        if let Some(answer) = ask_leader!(self.0, caller, DeploymentsClient, list, message.clone())
        {
            return Ok(answer);
        }
        let view = self.0.read().await?;
        let wanted = past::Wanted {
            scope: optional_name("scope", &message.scope)?,
            application: optional_name("application", &message.application)?,
            unfinished: message.unfinished,
            sight: Some(self.0.sight(&caller, &view.state)),
        };
        // Newest first.
        let (state, page) = past::list(&self.0, &view, wanted, message.page).await?;
        let deployments = summaries(&self.0, &state, &page.rows);
        Ok(Response::new(ListDeploymentsResponse {
            deployments,
            next_page_token: page.next,
        }))
    }

    async fn watch(
        &self,
        request: Request<WatchDeploymentRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller(&request)?;
        let mut message = request.into_inner();
        let view = self.0.read().await?;
        let (state, id) = past::find(&self.0, &view, &message.id).await?;
        may_see(&self.0, &caller, &view.state, &state, id)?;
        // A short id may mean another one later.
        message.id = id.to_string();
        let (sender, receiver) = mpsc::channel(4);
        let watch = Watch {
            context: self.0.clone(),
            caller,
            message,
            id,
            sender,
        };
        tokio::spawn(watch.run());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<HistoryResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let view = self.0.read().await?;
        match (message.id.as_str(), message.scope.as_str()) {
            (id, "") if !id.is_empty() => {
                let (state, id) = past::find(&self.0, &view, id).await?;
                may_see(&self.0, &caller, &view.state, &state, id)?;
                let page = past::events_of(&self.0, &view, id, message.page).await?;
                Ok(Response::new(HistoryResponse {
                    events: page.rows.iter().map(convert::event).collect(),
                    deployments: Vec::new(),
                    next_page_token: page.next,
                }))
            }
            ("", scope) if !scope.is_empty() => {
                let scope = convert::name("scope", scope)?;
                self.0
                    .sight(&caller, &view.state)
                    .check(&view.state, &Place::Scope(scope.clone()))
                    .map_err(|refused| status::from_rejection(&refused))?;
                let (state, page) = past::of_scope(&self.0, &view, scope, message.page).await?;
                Ok(Response::new(HistoryResponse {
                    events: Vec::new(),
                    deployments: summaries(&self.0, &state, &page.rows),
                    next_page_token: page.next,
                }))
            }
            _ => Err(status::wrong_field("id", "give either id or scope")),
        }
    }

    async fn act(&self, request: Request<ActRequest>) -> Result<Response<Deployment>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let key = request_key(&message.request_id)?;
        let view = self.0.read().await?;
        let id = past::live(&self.0, &view, &message.id).await?;
        let command = Command::ActOnDeployment(ActOnDeployment {
            deployment: id,
            verb: convert::verb(message.verb(), message.weight)?,
            expected_revision: expected(message.expected_revision),
            reason: message.reason,
        });
        let reply = match self.0.propose(actor, key, command).await {
            Ok(reply) => reply,
            Err(refused) => return Err(past::explain_refusal(&self.0, id, refused).await),
        };
        // A retry or a fast rollback makes a new one, which is then what the caller wants to see.
        present(&self.0, made(&reply).unwrap_or(id)).await
    }
}

fn summaries(context: &Context, state: &State, ids: &[DeploymentId]) -> Vec<Deployment> {
    context.live.picture(context, state, |picture| {
        ids.iter()
            .filter_map(|id| state.deployments.get(id))
            .map(|found| picture.summary(found))
            .collect()
    })
}

fn optional_name(field: &str, text: &str) -> Result<Option<Name>, Status> {
    match text {
        "" => Ok(None),
        text => convert::name(field, text).map(Some),
    }
}

/// One open watch. Where this node leads it looks itself, else it passes on the leader's; when the
/// lead moves it goes on with the new leader.
struct Watch {
    context: Arc<Context>,
    caller: Caller,
    message: WatchDeploymentRequest,
    id: DeploymentId,
    sender: mpsc::Sender<Result<Deployment, Status>>,
}

impl Watch {
    async fn run(self) {
        loop {
            let done = match relay::leader_channel(&self.context, &self.caller) {
                Some(channel) => self.pass_on(channel).await,
                None => self.look().await,
            };
            match done {
                Ok(true) => return,
                // The coordinator that passes this on finds the new leader; here nothing live is
                // seen any more.
                Ok(false) if self.caller.relayed => {
                    let moved = status::refusal(Reason::NoLeader, "another coordinator leads now");
                    self.sender.send(Err(moved)).await.ok();
                    return;
                }
                Ok(false) => {}
                Err(status) => {
                    self.sender.send(Err(status)).await.ok();
                    return;
                }
            }
            if self.sender.is_closed() || self.context.stop.is_cancelled() {
                return;
            }
            tokio::time::sleep(FASTEST_WATCH).await;
        }
    }

    fn interval(&self) -> Duration {
        match self.message.interval_ms {
            0 => USUAL_WATCH,
            millis => Duration::from_millis(u64::from(millis)).max(FASTEST_WATCH),
        }
    }

    /// Passes on what the leader streams; true: it is all told.
    async fn pass_on(&self, channel: tonic::transport::Channel) -> Result<bool, Status> {
        let mut client =
            DeploymentsClient::new(channel).max_decoding_message_size(relay::MAX_MESSAGE);
        let request = relay::request_for(&self.caller, self.message.clone())?;
        let Some(answer) = relay::answered(client.watch(request).await)? else {
            return Ok(false);
        };
        let mut stream = answer.into_inner();
        let mut views = self.context.query.views();
        loop {
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(deployment)) => {
                        if self.sender.send(Ok(deployment)).await.is_err() {
                            return Ok(true);
                        }
                    }
                    Ok(None) => {
                        let view = self.context.query.stale();
                        return Ok(self.has_ended(&view.state));
                    }
                    Err(_) => return Ok(false),
                },
                changed = views.changed() => {
                    if changed.is_err() {
                        return Ok(true);
                    }
                    let view = views.borrow_and_update().clone();
                    self.check_caller(&view.state)?;
                }
                () = self.context.stop.cancelled() => return Err(stopping()),
                () = self.sender.closed() => return Ok(true),
            }
        }
    }

    fn has_ended(&self, state: &State) -> bool {
        state
            .deployments
            .get(&self.id)
            .is_none_or(|found| found.status.is_end())
    }

    /// A person who was removed, or has no role there any more, sees no more.
    fn check_caller(&self, state: &State) -> Result<(), Status> {
        self.caller
            .check_known(state)
            .map_err(|refused| status::refusal(refused.reason, refused.message))?;
        may_see(&self.context, &self.caller, state, state, self.id)
    }

    /// Looks itself; true: it is all told.
    async fn look(&self) -> Result<bool, Status> {
        let mut views = self.context.query.views();
        let mut leadership = self.context.status.clone();
        let led = self.context.leads();
        if self.caller.relayed && !led {
            return Ok(false);
        }
        let mut timer = tokio::time::interval(self.interval());
        // The first look needs no tick.
        timer.reset();
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last: Option<Deployment> = None;
        loop {
            let view = views.borrow_and_update().clone();
            self.check_caller(&view.state)?;
            let shown = show_any(&self.context, &view, self.id).await?;
            let is_over = self.has_ended(&view.state);
            if last.as_ref() != Some(&shown) {
                last = Some(shown.clone());
                if self.sender.send(Ok(shown)).await.is_err() {
                    return Ok(true);
                }
            }
            if is_over {
                return Ok(true);
            }
            // Changes of other things wake it too; then only the record is compared.
            let revision = revision_of(&view.state, self.id);
            loop {
                tokio::select! {
                    changed = views.changed() => {
                        if changed.is_err() {
                            return Ok(true);
                        }
                        let view = views.borrow_and_update().clone();
                        if self.check_caller(&view.state).is_err()
                            || revision_of(&view.state, self.id) != revision
                        {
                            break;
                        }
                    }
                    _ = timer.tick() => break,
                    changed = leadership.changed() => {
                        if changed.is_err() {
                            return Ok(true);
                        }
                        if self.context.leads() != led
                            || relay::leader_channel(&self.context, &self.caller).is_some()
                        {
                            return Ok(false);
                        }
                    }
                    () = self.context.stop.cancelled() => return Err(stopping()),
                    () = self.sender.closed() => return Ok(true),
                }
            }
        }
    }
}

fn revision_of(state: &State, id: DeploymentId) -> Option<u64> {
    state.deployments.get(&id).map(|found| found.meta.revision)
}

fn stopping() -> Status {
    status::refusal(Reason::ShuttingDown, "this coordinator is stopping")
}
