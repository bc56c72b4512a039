//! `Deployments`: making, seeing and steering them.

use std::sync::Arc;

use tidegate_coordinator_core::command::{ActOnDeployment, Command, CreateDeployments};
use tidegate_coordinator_core::guard::made_by;
use tidegate_coordinator_core::people::Place;
use tidegate_coordinator_core::{Reply, State};
use tidegate_proto::control::v1::deployments_client::DeploymentsClient;
use tidegate_proto::control::v1::deployments_server::Deployments;
use tidegate_proto::control::v1::{
    ActRequest, CreateDeploymentRequest, CreateDeploymentResponse, Deployment,
    GetDeploymentRequest, HistoryRequest, HistoryResponse, ListDeploymentsRequest,
    ListDeploymentsResponse, WatchDeploymentRequest,
};
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::authn::Caller;
use super::relay::{self, ask_leader};
use super::watching::{self, Watched};
use super::{Context, authz, caller, convert, expected, past, request_key, status};
use crate::replica::View;

/// Scopes that one request may deploy to.
const MOST_SCOPES: usize = 1_000;

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
    let id = made_by(reply).last().copied();
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

/// What a request to deploy asks for.
///
/// # Errors
/// A field that cannot be read.
pub fn command_of(message: &CreateDeploymentRequest) -> Result<CreateDeployments, Status> {
    let strategy = match message.strategy.as_str() {
        "" => None,
        text => Some(convert::name("strategy", text)?),
    };
    Ok(CreateDeployments {
        application: convert::name("application", &message.application)?,
        version: convert::version("version", &message.version)?,
        scopes: scopes_of(&message.scopes)?,
        strategy,
        overrides: convert::overrides(&message.overrides)?,
        labels: convert::labels(message.labels.clone())?,
        on_conflict: convert::on_conflict(&message.on_conflict)?,
    })
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
        let command = Command::CreateDeployments(command_of(&message)?);
        let key = request_key(&message.request_id)?;
        let reply = self.0.propose(actor, key, command).await?;
        let ids = made_by(&reply);
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
        let interval = message.interval_ms;
        let stream = watching::open(&self.0, caller, message, interval, WatchedDeployment(id));
        Ok(Response::new(stream))
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

/// A name, or none where the text is empty.
///
/// # Errors
/// The field and what would be right.
pub fn optional_name(field: &str, text: &str) -> Result<Option<Name>, Status> {
    match text {
        "" => Ok(None),
        text => convert::name(field, text).map(Some),
    }
}

/// A deployment that is watched.
struct WatchedDeployment(DeploymentId);

impl Watched for WatchedDeployment {
    type Message = WatchDeploymentRequest;
    type Seen = Deployment;
    type Mark = Option<u64>;

    async fn open(
        channel: tonic::transport::Channel,
        request: Request<WatchDeploymentRequest>,
    ) -> Result<Response<tonic::Streaming<Deployment>>, Status> {
        let client = DeploymentsClient::new(channel);
        let mut client = client.max_decoding_message_size(relay::MAX_MESSAGE);
        client.watch(request).await
    }

    async fn look(&self, context: &Context, view: &Arc<View>) -> Result<Deployment, Status> {
        show_any(context, view, self.0).await
    }

    fn mark(&self, state: &State) -> Option<u64> {
        let found = state.deployments.get(&self.0);
        found.map(|found| found.meta.revision)
    }

    fn has_ended(&self, state: &State) -> bool {
        let found = state.deployments.get(&self.0);
        found.is_none_or(|found| found.status.is_end())
    }

    fn check(&self, context: &Context, caller: &Caller, state: &State) -> Result<(), Status> {
        may_see(context, caller, state, state, self.0)
    }
}
