//! `Objects`: applications, environments, strategies, scopes, policies, parameters, teams and role
//! bindings.

use std::sync::Arc;

use tidegate_coordinator_core::command::{Command, DeleteObject, PutObject};
use tidegate_coordinator_core::people::{Place, Reach};
use tidegate_coordinator_core::policy::expression::{Expression, Subject};
use tidegate_coordinator_core::{Actor, Entry, Item, Outcome, Reply, State};
use tidegate_proto::control::v1::objects_server::Objects;
use tidegate_proto::control::v1::{
    ApplyManyRequest, ApplyManyResponse, ApplyRequest, ApplyResponse, DeleteObjectRequest,
    DeleteObjectResponse, GetObjectRequest, ListObjectsRequest, ListObjectsResponse, Object,
    SecretValue,
};
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::secret::Secret;
use tidegate_shared::spec::{FieldErrors, Kind, ObjectSpec, ParameterKind, check_value};
use tonic::{Request, Response, Status};

use super::{
    Context, allowed, authz, caller, convert, every, expected, paging, request_key, status,
};
use crate::replica::View;
use crate::secrets;

/// Most objects and deletions of one call.
const MOST_OBJECTS: usize = 1_000;

/// The service.
pub struct ObjectsApi(pub Arc<Context>);

impl ObjectsApi {
    /// Puts the sealed value of a secret into its spec: from here on nothing holds the value.
    fn seal(
        &self,
        name: &Name,
        spec: &mut ObjectSpec,
        value: Option<SecretValue>,
    ) -> Result<(), Status> {
        let value = value.map(|value| Secret::new(value.text));
        let ObjectSpec::Parameter(parameter) = spec else {
            return match value {
                None => Ok(()),
                Some(_) => Err(status::wrong_field("secret", "is for parameters only")),
            };
        };
        for (field, is_set) in [
            ("spec.sealed", parameter.sealed.is_some()),
            ("spec.value_from", parameter.value_from.is_some()),
        ] {
            if is_set {
                let message = "is not for the API; a secret's value goes into the field secret of the request";
                return Err(status::wrong_field(field, message));
            }
        }
        let Some(value) = value else { return Ok(()) };
        if parameter.kind != ParameterKind::Secret {
            let message = "came with a parameter that is not of kind secret";
            return Err(status::wrong_field("secret", message));
        }
        check_value(&parameter.variable, value.expose())
            .map_err(|message| status::wrong_field("secret", message))?;
        let sealed = secrets::seal(self.0.authority.key(), name, &parameter.target, &value);
        parameter.sealed = Some(sealed.map_err(|error| status::internal(&error))?);
        Ok(())
    }
}

fn missing(kind: Kind, name: &Name) -> Status {
    status::refusal(Reason::NotFound, format!("there is no {kind} \"{name}\""))
}

/// Where an object is seen; strategies, policies and the like belong to nobody.
fn place_of(state: &State, kind: Kind, name: &Name) -> Place {
    match kind {
        Kind::Application => Place::Application(name.clone(), Reach::Any),
        Kind::Environment => Place::Environment(name.clone(), Reach::Any),
        Kind::Scope => Place::Scope(name.clone()),
        Kind::Parameter => state
            .parameters
            .get(name)
            .map_or(Place::Somewhere, |object| {
                authz::place_of_target(&object.spec.target)
            }),
        Kind::Strategy | Kind::Policy | Kind::Team | Kind::RoleBinding => Place::Somewhere,
    }
}

/// An object as it was asked for.
struct Wanted {
    item: Item,
    kind: Kind,
    name: Name,
}

impl ObjectsApi {
    fn wanted(&self, actor: Actor, message: ApplyRequest) -> Result<Wanted, Status> {
        let kind = convert::kind(&message.kind)?;
        let name = convert::name("name", &message.name)?;
        let mut spec = convert::object_spec(kind, &name, &message.spec)?;
        self.seal(&name, &mut spec, message.secret)?;
        if let ObjectSpec::Policy(policy) = &spec {
            let what = format!("policy \"{name}\"");
            tidegate_coordinator_core::policy::check::check(policy)
                .into_result()
                .map_err(|errors| status::wrong_fields(&what, errors))?;
        }
        if let ObjectSpec::RoleBinding(binding) = &spec {
            let what = format!("role_binding \"{name}\"");
            Expression::compile(&binding.selector, Subject::Place).map_err(|mistake| {
                let mut errors = FieldErrors::default();
                errors.add("selector", mistake.to_string());
                status::wrong_fields(&what, errors)
            })?;
        }
        if let ObjectSpec::Strategy(strategy) = &spec {
            let what = format!("strategy \"{name}\"");
            convert::check_conditions(&what, strategy)?;
            convert::group::check_strategy(&what, strategy)?;
        }
        if let ObjectSpec::Scope(scope) = &spec {
            tidegate_coordinator_core::policy::check::check_scope(scope)
                .into_result()
                .map_err(|errors| status::wrong_fields(&format!("scope \"{name}\""), errors))?;
        }
        let item = Item {
            actor,
            request: request_key(&message.request_id)?,
            command: Box::new(Command::PutObject(PutObject {
                name: name.clone(),
                labels: convert::labels(message.labels)?,
                spec,
                expected_revision: expected(message.expected_revision),
                must_not_exist: message.must_not_exist,
            })),
        };
        Ok(Wanted { item, kind, name })
    }

    fn deletion(actor: Actor, message: &DeleteObjectRequest) -> Result<Item, Status> {
        Ok(Item {
            actor,
            request: request_key(&message.request_id)?,
            command: Box::new(Command::DeleteObject(DeleteObject {
                kind: convert::kind(&message.kind)?,
                name: convert::name("name", &message.name)?,
                expected_revision: expected(message.expected_revision),
            })),
        })
    }

    /// The commands of a call, in its order, and whether it is a dry run.
    fn many(&self, actor: &Actor, call: ApplyManyRequest) -> Result<(Vec<Item>, bool), Status> {
        let ApplyManyRequest { objects, deletions } = call;
        let count = objects.len() + deletions.len();
        if count == 0 || count > MOST_OBJECTS {
            let message = format!("{count} were sent: want 1 to {MOST_OBJECTS}");
            return Err(status::wrong_field("objects", message));
        }
        let dry = |object: &ApplyRequest| object.dry_run;
        let dry_run = match (objects.first(), deletions.first()) {
            (Some(object), _) => dry(object),
            (None, deletion) => deletion.is_some_and(|deletion| deletion.dry_run),
        };
        let differs = |place: &str| {
            let message = "differs from that of the first one";
            Err(status::wrong_field(&format!("{place}.dry_run"), message))
        };
        let mut items = Vec::with_capacity(count);
        for (position, object) in objects.into_iter().enumerate() {
            let place = format!("objects[{position}]");
            if object.dry_run != dry_run {
                return differs(&place);
            }
            let wanted = self.wanted(actor.clone(), object);
            items.push(wanted.map_err(|error| status::within(&place, &error))?.item);
        }
        for (position, deletion) in deletions.iter().enumerate() {
            let place = format!("deletions[{position}]");
            if deletion.dry_run != dry_run {
                return differs(&place);
            }
            let item = Self::deletion(actor.clone(), deletion);
            items.push(item.map_err(|error| status::within(&place, &error))?);
        }
        Ok((items, dry_run))
    }

    /// Outcomes of commands, and a view that holds their effects; in a dry run one that is thrown
    /// away.
    async fn answers(
        &self,
        items: Vec<Item>,
        dry_run: bool,
    ) -> Result<(Vec<Outcome>, Arc<View>), Status> {
        if !dry_run {
            return self.0.propose_and_see(items).await;
        }
        // The same function on a copy.
        let may = self.0.may_give(&items).await?;
        let mut view = View::clone(&*self.0.read().await?);
        view.index += 1;
        let at = view.state.at.max(self.0.now());
        let items = allowed(items, &may);
        let entry = Entry { at, items };
        let applied = tidegate_coordinator_core::apply(&mut view.state, view.index, &entry);
        let outcomes = applied.into_iter().map(|one| one.outcome).collect();
        Ok((every(may, outcomes), Arc::new(view)))
    }

    /// As [`Self::answers`], of one command.
    async fn answer(&self, item: Item, dry_run: bool) -> Result<(Reply, Arc<View>), Status> {
        let (outcomes, view) = self.answers(vec![item], dry_run).await?;
        let reply = outcomes
            .into_iter()
            .next()
            .ok_or_else(|| status::internal(&"a command without an outcome"))?
            .map_err(|rejection| status::from_rejection(&rejection))?;
        Ok((reply, view))
    }
}

#[tonic::async_trait]
impl Objects for ObjectsApi {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let dry_run = message.dry_run;
        let Wanted { item, kind, name } = self.wanted(actor, message)?;
        let (reply, view) = self.answer(item, dry_run).await?;
        Ok(Response::new(ApplyResponse {
            object: convert::object_of(&view.state, kind, &name),
            change: convert::change(&reply).into(),
        }))
    }

    async fn apply_many(
        &self,
        request: Request<ApplyManyRequest>,
    ) -> Result<Response<ApplyManyResponse>, Status> {
        let actor = caller(&request)?.actor();
        let (items, dry_run) = self.many(&actor, request.into_inner())?;
        let (outcomes, _) = self.answers(items, dry_run).await?;
        let results = outcomes.iter().map(convert::apply_result).collect();
        Ok(Response::new(ApplyManyResponse { results }))
    }

    async fn get(&self, request: Request<GetObjectRequest>) -> Result<Response<Object>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let kind = convert::kind(&message.kind)?;
        let name = convert::name("name", &message.name)?;
        let view = self.0.read().await?;
        self.0
            .sight(&caller, &view.state)
            .check(&view.state, &place_of(&view.state, kind, &name))
            .map_err(|refused| status::from_rejection(&refused))?;
        convert::object_of(&view.state, kind, &name)
            .map(Response::new)
            .ok_or_else(|| missing(kind, &name))
    }

    async fn list(
        &self,
        request: Request<ListObjectsRequest>,
    ) -> Result<Response<ListObjectsResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        let kinds = match message.kind.as_str() {
            "" => Kind::ALL.to_vec(),
            text => vec![convert::kind(text)?],
        };
        let selector = convert::selector(&message.selector)?;
        let view = self.0.read().await?;
        let sight = self.0.sight(&caller, &view.state);
        let seen = |kind: Kind, name: &Name| {
            sight.is_whole() || sight.sees(&view.state, &place_of(&view.state, kind, name))
        };
        let rows = kinds.into_iter().enumerate().flat_map(|(rank, kind)| {
            convert::names_of(&view.state, kind)
                .into_iter()
                .filter(|(_, labels)| selector.matches(labels))
                .filter(|(name, _)| seen(kind, name))
                .collect::<Vec<_>>()
                .into_iter()
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
        let item = Self::deletion(actor, &message)?;
        self.answer(item, message.dry_run).await?;
        Ok(Response::new(DeleteObjectResponse {}))
    }
}
