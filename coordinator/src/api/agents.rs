//! `Agents`: who acts for scopes, and how they do.

use std::sync::Arc;

use tidegate_coordinator_core::State;
use tidegate_coordinator_core::command::{AgentName, Command};
use tidegate_coordinator_core::state::Agent as Known;
use tidegate_proto::control::v1::agents_client::AgentsClient;
use tidegate_proto::control::v1::agents_server::Agents;
use tidegate_proto::control::v1::{
    Agent, DrainingProxy, GetAgentRequest, ListAgentsRequest, ListAgentsResponse, ProxyStatus,
    RemoveAgentRequest, RemoveAgentResponse,
};
use tidegate_shared::assignment::ProxyReport;
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tonic::{Request, Response, Status};

use super::convert::deployment::{Picture, place_view};
use super::relay::ask_leader;
use super::{Context, caller, convert, paging, request_key, status};

/// The service.
pub struct AgentsApi(pub Arc<Context>);

fn missing(name: &Name) -> Status {
    status::refusal(Reason::NotFound, format!("there is no agent \"{name}\""))
}

fn agent_view(picture: &Picture<'_>, name: &Name, found: &Known) -> Agent {
    let known = picture
        .observed
        .and_then(|observed| observed.agents.get(name));
    let report = known.and_then(|known| known.report.as_deref());
    let host = report.map(|report| report.host).unwrap_or_default();
    let lost = picture
        .observed
        .is_some_and(|observed| observed.is_lost(name, picture.now));
    let wanted = |scope: &Name| wanted_of(picture.state, scope);
    Agent {
        metadata: Some(convert::metadata(name.as_str(), &found.meta)),
        kind: "host".to_owned(),
        facts: convert::to_map(&found.facts),
        version: found.version.clone(),
        connected: known.is_some_and(|known| known.coordinator.is_some()),
        lost,
        last_contact_ms: known.map_or(0, |known| known.last_contact.millis()),
        coordinator: known
            .and_then(|known| known.coordinator.as_ref())
            .map(Name::to_string)
            .unwrap_or_default(),
        certificate_not_after_ms: picture.certificates.get(name).map_or(0, |end| end.millis()),
        cpu_basis_points: host.cpu_basis_points,
        memory_total: host.memory_total,
        memory_used: host.memory_used,
        disk_total: host.disk_total,
        disk_available: host.disk_available,
        complaints: report.map_or_else(Vec::new, |report| report.complaints.clone()),
        proxy: report.and_then(|report| report.proxy.as_ref().map(proxy_view)),
        places: report.map_or_else(Vec::new, |report| {
            report
                .places
                .iter()
                .map(|place| place_view(name, Some(place), lost, wanted(&place.scope)))
                .collect()
        }),
    }
}

fn proxy_view(found: &ProxyReport) -> ProxyStatus {
    let draining = found.draining.iter().map(|old| DrainingProxy {
        pid: old.pid,
        version: old.version.clone(),
        since_ms: old.since.millis(),
        until_ms: old.until.millis(),
        open: old.open,
    });
    ProxyStatus {
        pid: found.pid,
        version: found.version.clone(),
        started_at_ms: found.started_at.millis(),
        connections: found.connections,
        draining: draining.collect(),
    }
}

fn wanted_of(state: &State, scope: &Name) -> u32 {
    state
        .scopes
        .get(scope)
        .map_or(0, |scope| scope.spec.instances_per_agent)
}

#[tonic::async_trait]
impl Agents for AgentsApi {
    async fn list(
        &self,
        request: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        if let Some(answer) = ask_leader!(self.0, caller, AgentsClient, list, message.clone()) {
            return Ok(answer);
        }
        let selector = convert::selector(&message.selector)?;
        let view = self.0.read().await?;
        let rows = view
            .state
            .agents
            .iter()
            .filter(|(_, found)| selector.matches(&found.meta.labels))
            .map(|(name, found)| (name.to_string(), (name, found)));
        let page = paging::page(message.page.as_ref(), rows)?;
        let agents = self.0.live.picture(&self.0, &view.state, |picture| {
            page.rows
                .iter()
                .map(|(name, found)| agent_view(&picture, name, found))
                .collect()
        });
        Ok(Response::new(ListAgentsResponse {
            agents,
            next_page_token: page.next,
        }))
    }

    async fn get(&self, request: Request<GetAgentRequest>) -> Result<Response<Agent>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let name = convert::name("name", &message.name)?;
        if let Some(answer) = ask_leader!(self.0, caller, AgentsClient, get, message) {
            return Ok(answer);
        }
        let view = self.0.read().await?;
        let found = view.state.agents.get(&name).ok_or_else(|| missing(&name))?;
        Ok(Response::new(self.0.live.picture(
            &self.0,
            &view.state,
            |picture| agent_view(&picture, &name, found),
        )))
    }

    async fn remove(
        &self,
        request: Request<RemoveAgentRequest>,
    ) -> Result<Response<RemoveAgentResponse>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let name = convert::name("name", &message.name)?;
        let command = Command::RemoveAgent(AgentName { name });
        self.0
            .propose(actor, request_key(&message.request_id)?, command)
            .await?;
        Ok(Response::new(RemoveAgentResponse {}))
    }
}
