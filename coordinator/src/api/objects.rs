//! `Objects`: applications, environments, strategies, scopes, policies and parameters.

use std::sync::Arc;

use tidegate_coordinator_core::command::{Command, DeleteObject, PutObject};
use tidegate_coordinator_core::{Entry, Item, Reply};
use tidegate_proto::control::v1::apply_response::Change;
use tidegate_proto::control::v1::objects_server::Objects;
use tidegate_proto::control::v1::{
    ApplyRequest, ApplyResponse, DeleteObjectRequest, DeleteObjectResponse, GetObjectRequest,
    ListObjectsRequest, ListObjectsResponse, Object,
};
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::spec::{Kind, ObjectSpec};
use tonic::{Request, Response, Status};

use super::{Context, caller, convert, expected, paging, request_key, status};

/// The service.
pub struct ObjectsApi(pub Arc<Context>);

fn missing(kind: Kind, name: &Name) -> Status {
    status::refusal(Reason::NotFound, format!("there is no {kind} \"{name}\""))
}

#[tonic::async_trait]
impl Objects for ObjectsApi {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let kind = convert::kind(&message.kind)?;
        let name = convert::name("name", &message.name)?;
        let spec = convert::object_spec(kind, &name, &message.spec)?;
        if let ObjectSpec::Policy(policy) = &spec {
            let what = format!("policy \"{name}\"");
            tidegate_coordinator_core::policy::check::check(policy)
                .into_result()
                .map_err(|errors| status::wrong_fields(&what, errors))?;
        }
        let item = Item {
            actor,
            request: request_key(&message.request_id)?,
            command: Command::PutObject(PutObject {
                name: name.clone(),
                labels: convert::labels(message.labels)?,
                spec,
                expected_revision: expected(message.expected_revision),
                must_not_exist: message.must_not_exist,
            }),
        };
        let (reply, state) = if message.dry_run {
            // The same function on a copy that is thrown away.
            let view = self.0.read().await?;
            let mut state = view.state.clone();
            let entry = Entry {
                at: state.at.max(self.0.now()),
                items: vec![item],
            };
            let applied = tidegate_coordinator_core::apply(&mut state, view.index + 1, &entry);
            let outcome = applied
                .into_iter()
                .next()
                .ok_or_else(|| status::internal(&"a command without an outcome"))?
                .outcome;
            let reply = outcome.map_err(|rejection| status::from_rejection(&rejection))?;
            (reply, state)
        } else {
            let Item {
                actor,
                request,
                command,
            } = item;
            let reply = self.0.propose(actor, request, command).await?;
            (reply, self.0.read().await?.state.clone())
        };
        let change = match reply {
            Reply::Object { created: true, .. } => Change::Created,
            Reply::Object { changed: true, .. } => Change::Changed,
            Reply::Object { .. }
            | Reply::Done
            | Reply::Named(_)
            | Reply::Deployments(_)
            | Reply::Joined { .. } => Change::Unchanged,
        };
        Ok(Response::new(ApplyResponse {
            object: convert::object_of(&state, kind, &name),
            change: change.into(),
        }))
    }

    async fn get(&self, request: Request<GetObjectRequest>) -> Result<Response<Object>, Status> {
        let message = request.into_inner();
        let kind = convert::kind(&message.kind)?;
        let name = convert::name("name", &message.name)?;
        let view = self.0.read().await?;
        convert::object_of(&view.state, kind, &name)
            .map(Response::new)
            .ok_or_else(|| missing(kind, &name))
    }

    async fn list(
        &self,
        request: Request<ListObjectsRequest>,
    ) -> Result<Response<ListObjectsResponse>, Status> {
        let message = request.into_inner();
        let kinds = match message.kind.as_str() {
            "" => Kind::ALL.to_vec(),
            text => vec![convert::kind(text)?],
        };
        let selector = convert::selector(&message.selector)?;
        let view = self.0.read().await?;
        let rows = kinds.into_iter().enumerate().flat_map(|(rank, kind)| {
            convert::names_of(&view.state, kind)
                .into_iter()
                .filter(|(_, labels)| selector.matches(labels))
                .map(move |(name, _)| (format!("{rank}/{name}"), (kind, name)))
        });
        let page = paging::page(message.page.as_ref(), rows)?;
        Ok(Response::new(ListObjectsResponse {
            objects: page
                .rows
                .iter()
                .filter_map(|(kind, name)| convert::object_of(&view.state, *kind, name))
                .collect(),
            next_page_token: page.next,
        }))
    }

    async fn delete(
        &self,
        request: Request<DeleteObjectRequest>,
    ) -> Result<Response<DeleteObjectResponse>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let command = Command::DeleteObject(DeleteObject {
            kind: convert::kind(&message.kind)?,
            name: convert::name("name", &message.name)?,
            expected_revision: expected(message.expected_revision),
        });
        self.0
            .propose(actor, request_key(&message.request_id)?, command)
            .await?;
        Ok(Response::new(DeleteObjectResponse {}))
    }
}
