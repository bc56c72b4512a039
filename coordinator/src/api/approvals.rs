//! `Approvals`: what waits for people, and their answers.

use std::sync::Arc;

use tidegate_coordinator_core::command::{Command, Decide};
use tidegate_coordinator_core::state::Status as DeploymentStatus;
use tidegate_proto::control::v1::approvals_client::ApprovalsClient;
use tidegate_proto::control::v1::approvals_server::Approvals;
use tidegate_proto::control::v1::{
    DecideRequest, Deployment, ListApprovalsRequest, ListDeploymentsResponse,
};
use tonic::{Request, Response, Status};

use super::relay::ask_leader;
use super::{Context, authz, caller, past, request_key};

/// The service.
pub struct ApprovalsApi(pub Arc<Context>);

#[tonic::async_trait]
impl Approvals for ApprovalsApi {
    async fn list(
        &self,
        request: Request<ListApprovalsRequest>,
    ) -> Result<Response<ListDeploymentsResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        if let Some(answer) = ask_leader!(self.0, caller, ApprovalsClient, list, message) {
            return Ok(answer);
        }
        let view = self.0.read().await?;
        let sight = self.0.sight(&caller, &view.state);
        let deployments = self.0.live.picture(&self.0, &view.state, |picture| {
            view.state
                .scopes
                .values()
                .flat_map(|scope| &scope.waiting)
                .filter_map(|id| view.state.deployments.get(id))
                .filter(|found| found.status == DeploymentStatus::CreatingApproval)
                .filter(|found| {
                    let place = authz::place_of(&view.state, &found.origin);
                    sight.is_whole() || sight.sees(&view.state, &place)
                })
                .map(|found| picture.deployment(found))
                .collect()
        });
        Ok(Response::new(ListDeploymentsResponse {
            deployments,
            next_page_token: String::new(),
        }))
    }

    async fn decide(
        &self,
        request: Request<DecideRequest>,
    ) -> Result<Response<Deployment>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let key = request_key(&message.request_id)?;
        let view = self.0.read().await?;
        let id = past::live(&self.0, &view, &message.id).await?;
        let command = Command::Decide(Decide {
            deployment: id,
            granted: message.grant,
            reason: message.reason,
        });
        self.0.propose(actor, key, command).await?;
        super::deployments::present(&self.0, id).await
    }
}
