//! `Governance`: people's word over rules, skips and freezes.

use std::sync::Arc;

use tidegate_coordinator_core::Reply;
use tidegate_coordinator_core::command::{Command, CreateFreeze, CreateSkip, Named};
use tidegate_coordinator_core::policy::expression::{Expression, Subject};
use tidegate_coordinator_core::state::{Freeze as FreezeRecord, Skip as SkipRecord};
use tidegate_proto::control::v1::governance_server::Governance;
use tidegate_proto::control::v1::{
    CreateSkipRequest, DeleteSkipRequest, DeleteSkipResponse, Freeze, FreezeRequest,
    ListFreezesRequest, ListFreezesResponse, ListSkipsRequest, ListSkipsResponse, Skip,
    ThawRequest, ThawResponse,
};
use tidegate_shared::id::Name;
use tidegate_shared::time::{Span, Timestamp};
use tonic::{Request, Response, Status};

use super::{Context, caller, convert, request_key, status};

/// The service.
pub struct GovernanceApi(pub Arc<Context>);

fn optional<T>(
    field: &str,
    text: &str,
    read: impl Fn(&str, &str) -> Result<T, Status>,
) -> Result<Option<T>, Status> {
    match text {
        "" => Ok(None),
        text => read(field, text).map(Some),
    }
}

fn skip_view(name: &Name, skip: &SkipRecord) -> Skip {
    let text = |name: Option<&Name>| name.map_or(String::new(), Name::to_string);
    Skip {
        name: name.to_string(),
        rule: skip.rule.clone(),
        application: text(skip.application.as_ref()),
        version: skip
            .version
            .as_ref()
            .map_or(String::new(), ToString::to_string),
        scope: text(skip.scope.as_ref()),
        reason: skip.reason.clone(),
        created_by: skip.meta.created_by.to_string(),
        created_at_ms: skip.meta.created_at.millis(),
        expires_at_ms: skip.expires_at.map_or(0, Timestamp::millis),
    }
}

fn freeze_view(name: &Name, freeze: &FreezeRecord) -> Freeze {
    Freeze {
        name: name.to_string(),
        selector: freeze.selector.clone(),
        reason: freeze.reason.clone(),
        let_run: freeze.let_run,
        created_by: freeze.meta.created_by.to_string(),
        created_at_ms: freeze.meta.created_at.millis(),
        until_ms: freeze.until.millis(),
    }
}

/// The name that the state gave.
fn given(reply: Reply) -> Result<Name, Status> {
    match reply {
        Reply::Named(name) => Ok(name),
        Reply::Done
        | Reply::Object { .. }
        | Reply::Deployments(_)
        | Reply::Group { .. }
        | Reply::GroupActed { .. }
        | Reply::Joined { .. } => Err(status::internal(&"a name was not given")),
    }
}

#[tonic::async_trait]
impl Governance for GovernanceApi {
    async fn create_skip(
        &self,
        request: Request<CreateSkipRequest>,
    ) -> Result<Response<Skip>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let expires = (message.for_ms > 0).then_some(Span::from_millis(message.for_ms));
        let command = Command::CreateSkip(CreateSkip {
            rule: message.rule,
            application: optional("application", &message.application, convert::name)?,
            version: optional("version", &message.version, convert::version)?,
            scope: optional("scope", &message.scope, convert::name)?,
            reason: message.reason,
            expires_at: expires.map(|span| self.0.now() + span),
        });
        let key = request_key(&message.request_id)?;
        let name = given(self.0.propose(actor, key, command).await?)?;
        let view = self.0.read().await?;
        let found = view.state.skips.get(&name);
        found
            .map(|skip| Response::new(skip_view(&name, skip)))
            .ok_or_else(|| status::internal(&"the skip is gone again"))
    }

    async fn list_skips(
        &self,
        request: Request<ListSkipsRequest>,
    ) -> Result<Response<ListSkipsResponse>, Status> {
        caller(&request)?;
        let (view, now) = (self.0.read().await?, self.0.now());
        let acting = view.state.skips.iter();
        let acting = acting.filter(|(_, skip)| skip.expires_at.is_none_or(|end| now < end));
        Ok(Response::new(ListSkipsResponse {
            skips: acting.map(|(name, skip)| skip_view(name, skip)).collect(),
        }))
    }

    async fn delete_skip(
        &self,
        request: Request<DeleteSkipRequest>,
    ) -> Result<Response<DeleteSkipResponse>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let command = Command::DeleteSkip(Named {
            name: convert::name("name", &message.name)?,
        });
        let key = request_key(&message.request_id)?;
        self.0.propose(actor, key, command).await?;
        Ok(Response::new(DeleteSkipResponse {}))
    }

    async fn freeze(&self, request: Request<FreezeRequest>) -> Result<Response<Freeze>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        Expression::compile(&message.selector, Subject::Deployment)
            .map_err(|mistake| status::wrong_field("selector", mistake.to_string()))?;
        let command = Command::Freeze(CreateFreeze {
            selector: message.selector,
            reason: message.reason,
            until: self.0.now() + Span::from_millis(message.for_ms),
            let_run: message.let_run,
        });
        let key = request_key(&message.request_id)?;
        let name = given(self.0.propose(actor, key, command).await?)?;
        let view = self.0.read().await?;
        let found = view.state.freezes.get(&name);
        found
            .map(|freeze| Response::new(freeze_view(&name, freeze)))
            .ok_or_else(|| status::internal(&"the freeze is gone again"))
    }

    async fn list_freezes(
        &self,
        request: Request<ListFreezesRequest>,
    ) -> Result<Response<ListFreezesResponse>, Status> {
        caller(&request)?;
        let (view, now) = (self.0.read().await?, self.0.now());
        let holding = view.state.freezes.iter();
        let holding = holding.filter(|(_, freeze)| now < freeze.until);
        Ok(Response::new(ListFreezesResponse {
            freezes: holding
                .map(|(name, freeze)| freeze_view(name, freeze))
                .collect(),
        }))
    }

    async fn thaw(&self, request: Request<ThawRequest>) -> Result<Response<ThawResponse>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let command = Command::Thaw(Named {
            name: convert::name("name", &message.name)?,
        });
        let key = request_key(&message.request_id)?;
        self.0.propose(actor, key, command).await?;
        Ok(Response::new(ThawResponse {}))
    }
}
