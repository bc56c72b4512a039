//! `Audit`: the log of who did what, looked through from its end and exported as it stands.

use std::sync::Arc;

use tidegate_coordinator_core::Event;
use tidegate_proto::control::v1::audit_server::Audit;
use tidegate_proto::control::v1::{
    AuditHead, ExportAuditRequest, ExportAuditResponse, ListAuditRequest, ListAuditResponse,
};
use tidegate_shared::audit::export::line_of;
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::time::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::authn::Caller;
use super::{Context, authz, caller, convert, paging, past, status};
use crate::replica::View;

/// Lines that are looked at for one page.
const MOST_SCANNED: usize = 50_000;
/// Lines that are read at once.
const BATCH: usize = 500;

/// The service.
pub struct AuditApi(pub Arc<Context>);

/// Which lines a list shows.
struct Filter {
    since: Timestamp,
    until: Timestamp,
    actor: String,
    object: String,
    kind: String,
}

impl Filter {
    fn new(message: &ListAuditRequest) -> Self {
        Self {
            since: Timestamp::from_millis(message.since_ms),
            until: Timestamp::from_millis(match message.until_ms {
                0 => u64::MAX,
                until => until,
            }),
            actor: message.actor.clone(),
            object: message.object.clone(),
            kind: message.kind.clone(),
        }
    }

    fn fits(&self, event: &Event) -> bool {
        event.at >= self.since
            && event.at < self.until
            && self.fits_actor(event)
            && self.fits_object(event)
            && self.fits_kind(event)
    }

    fn fits_actor(&self, event: &Event) -> bool {
        let actor = event.actor.to_string();
        let name = actor
            .split_once(':')
            .map_or(actor.as_str(), |(_, name)| name);
        self.actor.is_empty() || self.actor == actor || self.actor == name
    }

    fn fits_object(&self, event: &Event) -> bool {
        let wanted = self.object.as_str();
        let short = |id: &str| {
            let id = id.to_ascii_lowercase();
            event.object_kind == "deployment" && wanted.len() == 8 && id.ends_with(wanted)
        };
        match wanted.split_once('/') {
            _ if wanted.is_empty() => true,
            Some((kind, object)) => event.object_kind == kind && event.object == object,
            None => wanted == event.object || wanted == event.object_kind || short(&event.object),
        }
    }

    fn fits_kind(&self, event: &Event) -> bool {
        let rest = event.kind.strip_prefix(self.kind.as_str());
        self.kind.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    }
}

impl AuditApi {
    /// The hash that an export begins behind.
    async fn previous_hash(
        &self,
        view: &Arc<View>,
        after: Option<(u64, u32)>,
    ) -> Result<Digest, Status> {
        let Some((index, ordinal)) = after else {
            return Ok(Digest::ZERO);
        };
        let found = past::events_before(&self.0, view, Some((index, ordinal.saturating_add(1))), 1);
        match found.await?.first() {
            Some(event) if event.position() == (index, ordinal) => Ok(event.hash),
            Some(_) | None => Err(status::wrong_field(
                "after",
                format!("there is no event {index}.{ordinal}"),
            )),
        }
    }
}

#[tonic::async_trait]
impl Audit for AuditApi {
    type ExportStream = ReceiverStream<Result<ExportAuditResponse, Status>>;

    async fn list(
        &self,
        request: Request<ListAuditRequest>,
    ) -> Result<Response<ListAuditResponse>, Status> {
        caller(&request)?;
        let message = request.into_inner();
        let (size, after) = paging::bounds(message.page.as_ref())?;
        let mut before = after.as_deref().map(paging::position).transpose()?;
        let filter = Filter::new(&message);
        let view = self.0.read().await?;
        let mut answer = ListAuditResponse::default();
        loop {
            let events = past::events_before(&self.0, &view, before, BATCH).await?;
            let is_last = events.len() < BATCH;
            for event in &events {
                if event.at < filter.since {
                    return Ok(Response::new(answer));
                }
                if filter.fits(event) {
                    answer.events.push(convert::event(event));
                }
                answer.scanned += 1;
                before = Some(event.position());
                if answer.events.len() == size {
                    answer.next_page_token = hex::encode(paging::at(event.index, event.ordinal));
                    return Ok(Response::new(answer));
                }
            }
            if is_last {
                return Ok(Response::new(answer));
            }
            if answer.scanned >= MOST_SCANNED as u64 {
                let (index, ordinal) = before.unwrap_or_default();
                answer.next_page_token = hex::encode(paging::at(index, ordinal));
                return Ok(Response::new(answer));
            }
        }
    }

    async fn export(
        &self,
        request: Request<ExportAuditRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let after = (message.after_index, message.after_ordinal);
        let after = (after != (0, 0)).then_some(after);
        let view = self.0.read().await?;
        let state = &view.state;
        let events = match &state.archive {
            Some(archive) => archive.events,
            None => u64::try_from(state.events.len()).unwrap_or(u64::MAX),
        };
        let head = AuditHead {
            cluster_id: self.0.identity.cluster_id.clone(),
            previous_hash: self.previous_hash(&view, after).await?.to_string(),
            events,
            at_ms: self.0.now().millis(),
        };
        let (sender, receiver) = mpsc::channel(4);
        let export = Export {
            context: self.0.clone(),
            caller,
            view,
            sender,
        };
        tokio::spawn(export.run(head, after));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// An export under way: of the log as it stood when it was asked for.
struct Export {
    context: Arc<Context>,
    caller: Caller,
    view: Arc<View>,
    sender: mpsc::Sender<Result<ExportAuditResponse, Status>>,
}

impl Export {
    async fn run(self, head: AuditHead, after: Option<(u64, u32)>) {
        let first = ExportAuditResponse {
            head: Some(head),
            lines: Vec::new(),
        };
        if self.sender.send(Ok(first)).await.is_err() {
            return;
        }
        if let Err(refused) = self.lines(after).await {
            // The reader may be gone already.
            self.sender.send(Err(refused)).await.ok();
        }
    }

    async fn lines(&self, mut after: Option<(u64, u32)>) -> Result<(), Status> {
        loop {
            self.still_may()?;
            let events = past::events(&self.context, &self.view, after, BATCH).await?;
            let Some(last) = events.last() else {
                return Ok(());
            };
            after = Some(last.position());
            let lines: Result<Vec<String>, _> = events.iter().map(line_of).collect();
            let answer = ExportAuditResponse {
                head: None,
                lines: lines.map_err(|error| status::internal(&error))?,
            };
            tokio::select! {
                sent = self.sender.send(Ok(answer)) => if sent.is_err() { return Ok(()) },
                () = self.context.stop.cancelled() => {
                    return Err(status::refusal(Reason::ShuttingDown, "this coordinator is stopping"));
                }
            }
        }
    }

    /// A person who was removed, or lost the role, sees no more.
    fn still_may(&self) -> Result<(), Status> {
        let view = self.context.query.stale();
        self.caller
            .check_known(&view.state)
            .map_err(|refused| status::refusal(refused.reason, refused.message))?;
        let Some(name) = &self.caller.name else {
            return Ok(());
        };
        let path = format!("/{}Audit/Export", authz::table::PACKAGE);
        authz::may_call(&view.state, name, &path)
            .map_err(|rejection| status::from_rejection(&rejection))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use tidegate_coordinator_core::Actor;
    use tidegate_shared::id::Name;

    #[test]
    fn filters_take_words_as_people_write_them() {
        let event = Event {
            index: 1,
            ordinal: 0,
            at: Timestamp::from_millis(1_000),
            actor: Actor::User(Name::new("ann").unwrap()),
            kind: "deployment_running".to_owned(),
            object_kind: "deployment".to_owned(),
            object: "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
            outcome: "ok".to_owned(),
            message: String::new(),
            details: BTreeMap::new(),
            previous_hash: Digest::ZERO,
            hash: Digest::ZERO,
        };
        let asked = |change: fn(&mut ListAuditRequest)| {
            let mut message = ListAuditRequest::default();
            change(&mut message);
            Filter::new(&message).fits(&event)
        };
        assert!(asked(|_| {}));
        assert!(asked(|m| m.actor = "ann".to_owned()));
        assert!(asked(|m| m.actor = "user:ann".to_owned()));
        assert!(!asked(|m| m.actor = "an".to_owned()));
        assert!(asked(|m| m.kind = "deployment".to_owned()));
        assert!(asked(|m| m.kind = "deployment_running".to_owned()));
        assert!(!asked(|m| m.kind = "deploy".to_owned()));
        assert!(asked(|m| m.object = "deployment".to_owned()));
        assert!(asked(|m| m.object = "q69g5fav".to_owned()));
        assert!(asked(
            |m| m.object = "deployment/01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned()
        ));
        assert!(!asked(|m| m.object = "scope/web".to_owned()));
        assert!(asked(|m| m.since_ms = 1_000) && !asked(|m| m.since_ms = 1_001));
        assert!(asked(|m| m.until_ms = 1_001) && !asked(|m| m.until_ms = 1_000));
    }
}
