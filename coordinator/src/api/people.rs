//! `People`: who is in the cluster, with which roles.

use std::sync::Arc;

use tidegate_coordinator_core::command::{Command, RemovePerson, UpdatePerson};
use tidegate_proto::control::v1::people_server::People;
use tidegate_proto::control::v1::{
    GetPersonRequest, ListPeopleRequest, ListPeopleResponse, Person, RemovePersonRequest,
    RemovePersonResponse, UpdatePersonRequest,
};
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tonic::{Request, Response, Status};

use super::{Context, caller, convert, expected, paging, request_key, status};

/// The service.
pub struct PeopleApi(pub Arc<Context>);

impl PeopleApi {
    async fn present(&self, name: &Name) -> Result<Response<Person>, Status> {
        let view = self.0.read().await?;
        let found = view.state.people.get(name).ok_or_else(|| {
            status::refusal(Reason::NotFound, format!("there is no user \"{name}\""))
        })?;
        let shown = convert::people::person(&view.state, name, found);
        Ok(Response::new(shown))
    }
}

#[tonic::async_trait]
impl People for PeopleApi {
    async fn list(
        &self,
        request: Request<ListPeopleRequest>,
    ) -> Result<Response<ListPeopleResponse>, Status> {
        caller(&request)?;
        let message = request.into_inner();
        let selector = convert::selector(&message.selector)?;
        let view = self.0.read().await?;
        let people = view.state.people.iter();
        let rows = people
            .filter(|(_, found)| selector.matches(&found.meta.labels))
            .map(|(name, found)| (name.to_string(), (name, found)));
        let page = paging::page(message.page.as_ref(), rows)?;
        let shown = page.rows.iter();
        Ok(Response::new(ListPeopleResponse {
            people: shown
                .map(|(name, found)| convert::people::person(&view.state, name, found))
                .collect(),
            next_page_token: page.next,
        }))
    }

    async fn get(&self, request: Request<GetPersonRequest>) -> Result<Response<Person>, Status> {
        caller(&request)?;
        let name = convert::name("name", &request.into_inner().name)?;
        self.present(&name).await
    }

    async fn update(
        &self,
        request: Request<UpdatePersonRequest>,
    ) -> Result<Response<Person>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let name = convert::name("name", &message.name)?;
        let command = Command::UpdatePerson(UpdatePerson {
            name: name.clone(),
            roles: convert::people::roles("roles", &message.roles)?,
            labels: convert::labels(message.labels)?,
            expected_revision: expected(message.expected_revision),
        });
        let key = request_key(&message.request_id)?;
        self.0.propose(actor, key, command).await?;
        self.present(&name).await
    }

    async fn remove(
        &self,
        request: Request<RemovePersonRequest>,
    ) -> Result<Response<RemovePersonResponse>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let command = Command::RemovePerson(RemovePerson {
            name: convert::name("name", &message.name)?,
            expected_revision: expected(message.expected_revision),
        });
        let key = request_key(&message.request_id)?;
        self.0.propose(actor, key, command).await?;
        Ok(Response::new(RemovePersonResponse {}))
    }
}
