//! `Groups`: one release published to many scopes, with one view and one handle.
//!
//! A selection is resolved here, at the front: the log carries the names of scopes. What each member
//! does is told by [`convert::group`].

use std::sync::Arc;

use tidegate_coordinator_core::command::{
    ActOnGroup, AddToGroup, Command, CreateDeployments, CreateGroup, DecideGroup,
};
use tidegate_coordinator_core::people::Place;
use tidegate_coordinator_core::policy::selection::{Selected, Selection};
use tidegate_coordinator_core::state::{Group as Grouped, MOST_MEMBERS};
use tidegate_coordinator_core::{Actor, Reply, State};
use tidegate_proto::control::v1::groups_client::GroupsClient;
use tidegate_proto::control::v1::groups_server::Groups;
use tidegate_proto::control::v1::{
    ActOnGroupRequest, AddToGroupRequest, CreateGroupRequest, CreateGroupResponse,
    DecideGroupRequest, GetGroupRequest, Group, GroupActed, GroupExplanation, LeftAlone,
    ListGroupsRequest, ListGroupsResponse, Reached, WatchGroupRequest,
};
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, GroupId, Name, Version};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::authn::Caller;
use super::authz::Sight;
use super::deployments::optional_name;
use super::relay::{self, ask_leader};
use super::watching::{self, Watched};
use super::{Context, caller, convert, expected, paging, request_key, status};
use crate::replica::View;

/// The service.
pub struct GroupsApi(pub Arc<Context>);

/// What a request says instead of scopes, or with them.
pub struct Target<'a> {
    /// The application.
    pub application: &'a Name,
    /// The release.
    pub version: &'a Version,
    /// Names.
    pub scopes: &'a [String],
    /// CEL; empty: none.
    pub selector: &'a str,
    /// Empty: none.
    pub environment: &'a str,
}

impl Target<'_> {
    /// The scopes that are meant, with those that a selection leaves out.
    ///
    /// # Errors
    /// Neither names nor a selection, or both; a wrong name or selector; nothing is found.
    pub fn resolve(
        &self,
        context: &Context,
        state: &State,
        actor: &Actor,
    ) -> Result<Selected, Status> {
        let is_selection = !self.selector.trim().is_empty() || !self.environment.is_empty();
        match (self.scopes.is_empty(), is_selection) {
            (true, false) => Err(status::wrong_field(
                "scopes",
                "are missing: want names of scopes, a selector, or an environment",
            )),
            (false, true) => Err(status::wrong_field(
                "scopes",
                "want either names of scopes, or a selector and an environment",
            )),
            (false, false) => self.named(),
            (true, true) => self.selected(context, state, actor),
        }
    }

    fn named(&self) -> Result<Selected, Status> {
        if self.scopes.len() > MOST_MEMBERS {
            return Err(status::wrong_field(
                "scopes",
                format!("want at most {MOST_MEMBERS} scopes"),
            ));
        }
        let scopes = self.scopes.iter().enumerate();
        let scopes = scopes
            .map(|(position, text)| convert::name(&format!("scopes[{position}]"), text))
            .collect::<Result<_, _>>()?;
        Ok(Selected {
            scopes,
            left: Vec::new(),
        })
    }

    fn selected(
        &self,
        context: &Context,
        state: &State,
        actor: &Actor,
    ) -> Result<Selected, Status> {
        let selection = Selection {
            application: self.application.clone(),
            version: self.version.clone(),
            selector: Some(self.selector.to_owned()).filter(|text| !text.trim().is_empty()),
            environment: optional_name("environment", self.environment)?,
        };
        let user = match actor {
            Actor::User(name) => Some(name),
            Actor::System | Actor::Agent(_) | Actor::Coordinator(_) | Actor::Token(_) => None,
        };
        let found = selection
            .find(state, user, context.now().max(state.at))
            .map_err(|rejection| status::from_rejection(&rejection))?;
        if found.scopes.len() > MOST_MEMBERS {
            let count = found.scopes.len();
            return Err(status::wrong_field(
                "selector",
                format!("finds {count} scopes: want at most {MOST_MEMBERS}"),
            ));
        }
        Ok(found)
    }
}

/// The command that a request comes to, as far as state has to be asked for it, and what its
/// selection leaves out.
///
/// # Errors
/// A wrong field, or a selection that finds nothing.
pub fn wanted(
    context: &Context,
    state: &State,
    actor: &Actor,
    message: &CreateGroupRequest,
) -> Result<(CreateGroup, Vec<LeftAlone>), Status> {
    let application = convert::name("application", &message.application)?;
    let version = convert::version("version", &message.version)?;
    let rollout = convert::group::rollout(&message.rollout)?;
    let overrides = convert::overrides(&message.overrides)?;
    convert::group::check_strategy("overrides", &overrides)?;
    let target = Target {
        application: &application,
        version: &version,
        scopes: &message.scopes,
        selector: &message.selector,
        environment: &message.environment,
    };
    let selected = target.resolve(context, state, actor)?;
    let group = CreateGroup {
        name: optional_name("name", &message.name)?,
        deployments: CreateDeployments {
            scopes: selected.scopes,
            strategy: optional_name("strategy", &message.strategy)?,
            overrides,
            labels: convert::labels(message.labels.clone())?,
            on_conflict: convert::on_conflict(&message.on_conflict)?,
            application,
            version,
        },
        rollout,
    };
    Ok((group, left_alone(selected.left)))
}

fn left_alone(left: Vec<(Name, String)>) -> Vec<LeftAlone> {
    let each = left.into_iter().map(|(scope, why)| LeftAlone {
        scope: scope.to_string(),
        why,
    });
    each.collect()
}

/// A group with its members.
fn show(context: &Context, state: &State, id: GroupId) -> Result<Group, Status> {
    let found = state.group(id).map_err(|r| status::from_rejection(&r))?;
    let look = |picture: convert::deployment::Picture<'_>| picture.group(found);
    Ok(context.live.picture(context, state, look))
}

/// A group as this node sees it now, at or after everything that was answered before.
async fn present(context: &Context, id: GroupId) -> Result<Group, Status> {
    let view = context.read().await?;
    show(context, &view.state, id)
}

/// The group that people mean: by its name, its id, its short id, or what it is called where it has
/// no name.
fn called(state: &State, text: &str) -> Result<GroupId, Status> {
    if text.is_empty() {
        return Err(status::wrong_field("id", "is missing"));
    }
    let short = text.rsplit_once('-').map(|(_, short)| short);
    let unnamed = short
        .and_then(|short| state.group_called(short).ok())
        .filter(|group| convert::group::called(group) == text);
    match (state.group_called(text), unnamed) {
        (Ok(group), _) | (Err(_), Some(group)) => Ok(group.id),
        (Err(rejection), None) => Err(status::from_rejection(&rejection)),
    }
}

/// Whether all members of a group are seen.
fn sees(sight: &Sight, state: &State, group: &Grouped) -> bool {
    let mut scopes = group.scopes.keys();
    sight.is_whole() || scopes.all(|name| sight.sees(state, &Place::Scope(name.clone())))
}

/// Whether a caller sees a group: all of its members.
fn may_see(context: &Context, caller: &Caller, state: &State, id: GroupId) -> Result<(), Status> {
    let sight = context.sight(caller, state);
    let group = state.groups.get(&id).filter(|_| !sight.is_whole());
    for name in group.into_iter().flat_map(|group| group.scopes.keys()) {
        sight
            .check(state, &Place::Scope(name.clone()))
            .map_err(|refused| status::from_rejection(&refused))?;
    }
    Ok(())
}

fn group_of(reply: &Reply) -> Result<GroupId, Status> {
    match reply {
        Reply::Group { group, .. } | Reply::GroupActed { group, .. } => Ok(*group),
        Reply::Done
        | Reply::Named(_)
        | Reply::Object { .. }
        | Reply::Joined { .. }
        | Reply::Deployments(_) => Err(status::internal(&"a command on a group named none")),
    }
}

impl GroupsApi {
    /// What a verb or a decision came to, with the group after it.
    async fn acted(&self, reply: Reply) -> Result<Response<GroupActed>, Status> {
        let id = group_of(&reply)?;
        let (done, left) = match reply {
            Reply::GroupActed { done, left, .. } => (done, left),
            Reply::Group { deployments, .. } => (deployments, Vec::new()),
            Reply::Done
            | Reply::Named(_)
            | Reply::Object { .. }
            | Reply::Joined { .. }
            | Reply::Deployments(_) => (Vec::new(), Vec::new()),
        };
        let view = self.0.read().await?;
        let reached = |id: &DeploymentId| {
            let found = view.state.deployments.get(id)?;
            Some(Reached {
                scope: found.origin.scope.to_string(),
                deployment: id.to_string(),
                status: convert::deployment::status(found.status).into(),
            })
        };
        Ok(Response::new(GroupActed {
            group: Some(show(&self.0, &view.state, id)?),
            done: done.iter().filter_map(reached).collect(),
            left: left_alone(left),
        }))
    }
}

#[tonic::async_trait]
impl Groups for GroupsApi {
    type WatchStream = ReceiverStream<Result<Group, Status>>;

    async fn create(
        &self,
        request: Request<CreateGroupRequest>,
    ) -> Result<Response<CreateGroupResponse>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let key = request_key(&message.request_id)?;
        let view = self.0.read().await?;
        let (group, left) = wanted(&self.0, &view.state, &actor, &message)?;
        let command = Command::CreateGroup(group);
        let reply = self.0.propose(actor, key, command).await?;
        let group = present(&self.0, group_of(&reply)?).await?;
        Ok(Response::new(CreateGroupResponse {
            group: Some(group),
            left,
        }))
    }

    async fn get(&self, request: Request<GetGroupRequest>) -> Result<Response<Group>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        if let Some(answer) = ask_leader!(self.0, caller, GroupsClient, get, message.clone()) {
            return Ok(answer);
        }
        let view = self.0.read().await?;
        let id = called(&view.state, &message.id)?;
        may_see(&self.0, &caller, &view.state, id)?;
        show(&self.0, &view.state, id).map(Response::new)
    }

    async fn list(
        &self,
        request: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        if let Some(answer) = ask_leader!(self.0, caller, GroupsClient, list, message.clone()) {
            return Ok(answer);
        }
        let view = self.0.read().await?;
        let state = &view.state;
        let application = optional_name("application", &message.application)?;
        if let Some(name) = application
            .as_ref()
            .filter(|name| !state.applications.contains_key(*name))
        {
            let missing = format!("there is no application \"{name}\"");
            return Err(status::refusal(Reason::NotFound, missing));
        }
        let sight = self.0.sight(&caller, state);
        let groups = state.groups.values().rev().filter(|group| {
            sees(&sight, state, group)
                && application
                    .as_ref()
                    .is_none_or(|name| *name == group.application)
                && !(message.unfinished && group.closed.is_some())
        });
        let rows = groups.map(|group| {
            let key = paging::descending(u128::from(group.id.ulid()));
            (key, group)
        });
        let page = paging::page(message.page.as_ref(), rows)?;
        let groups = self.0.live.picture(&self.0, state, |picture| {
            page.rows
                .iter()
                .map(|group| picture.group_summary(group))
                .collect()
        });
        Ok(Response::new(ListGroupsResponse {
            groups,
            next_page_token: page.next,
        }))
    }

    async fn watch(
        &self,
        request: Request<WatchGroupRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller(&request)?;
        let mut message = request.into_inner();
        let view = self.0.read().await?;
        let id = called(&view.state, &message.id)?;
        may_see(&self.0, &caller, &view.state, id)?;
        // A name or short id may mean another one later.
        message.id = id.to_string();
        let interval = message.interval_ms;
        let stream = watching::open(&self.0, caller, message, interval, WatchedGroup(id));
        Ok(Response::new(stream))
    }

    async fn act(
        &self,
        request: Request<ActOnGroupRequest>,
    ) -> Result<Response<GroupActed>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let key = request_key(&message.request_id)?;
        let view = self.0.read().await?;
        let command = Command::ActOnGroup(ActOnGroup {
            group: called(&view.state, &message.id)?,
            verb: convert::verb(message.verb(), message.weight)?,
            expected_revision: expected(message.expected_revision),
            reason: message.reason,
        });
        let reply = self.0.propose(actor, key, command).await?;
        self.acted(reply).await
    }

    async fn add(
        &self,
        request: Request<AddToGroupRequest>,
    ) -> Result<Response<CreateGroupResponse>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let key = request_key(&message.request_id)?;
        let view = self.0.read().await?;
        let id = called(&view.state, &message.id)?;
        let group = view
            .state
            .group(id)
            .map_err(|rejection| status::from_rejection(&rejection))?;
        let target = Target {
            application: &group.application,
            version: &group.version,
            scopes: &message.scopes,
            selector: &message.selector,
            environment: &message.environment,
        };
        let mut selected = target.resolve(&self.0, &view.state, &actor)?;
        if message.scopes.is_empty() {
            selected
                .scopes
                .retain(|name| !group.scopes.contains_key(name));
            if selected.scopes.is_empty() {
                return Err(status::refusal(
                    Reason::NothingSelected,
                    "nothing is selected: every scope that it is about is a member already",
                ));
            }
        }
        let command = Command::AddToGroup(AddToGroup {
            group: id,
            scopes: selected.scopes,
            expected_revision: expected(message.expected_revision),
        });
        let reply = self.0.propose(actor, key, command).await?;
        let group = present(&self.0, group_of(&reply)?).await?;
        Ok(Response::new(CreateGroupResponse {
            group: Some(group),
            left: left_alone(selected.left),
        }))
    }

    async fn decide(
        &self,
        request: Request<DecideGroupRequest>,
    ) -> Result<Response<GroupActed>, Status> {
        let actor = caller(&request)?.actor();
        let message = request.into_inner();
        let key = request_key(&message.request_id)?;
        let view = self.0.read().await?;
        let command = Command::DecideGroup(DecideGroup {
            group: called(&view.state, &message.id)?,
            granted: message.grant,
            reason: message.reason,
            expected_revision: expected(message.expected_revision),
        });
        let reply = self.0.propose(actor, key, command).await?;
        self.acted(reply).await
    }

    async fn explain(
        &self,
        request: Request<GetGroupRequest>,
    ) -> Result<Response<GroupExplanation>, Status> {
        let caller = caller(&request)?;
        let message = request.into_inner();
        if let Some(answer) = ask_leader!(self.0, caller, GroupsClient, explain, message.clone()) {
            return Ok(answer);
        }
        let view = self.0.read().await?;
        let id = called(&view.state, &message.id)?;
        may_see(&self.0, &caller, &view.state, id)?;
        let found = view
            .state
            .group(id)
            .map_err(|rejection| status::from_rejection(&rejection))?;
        let look = |picture: convert::deployment::Picture<'_>| picture.group_explanation(found);
        Ok(Response::new(self.0.live.picture(
            &self.0,
            &view.state,
            look,
        )))
    }
}

/// A group that is watched.
struct WatchedGroup(GroupId);

impl Watched for WatchedGroup {
    type Message = WatchGroupRequest;
    type Seen = Group;
    /// Revisions of the group and of its members' deployments.
    type Mark = Option<Vec<u64>>;

    async fn open(
        channel: tonic::transport::Channel,
        request: Request<WatchGroupRequest>,
    ) -> Result<Response<tonic::Streaming<Group>>, Status> {
        let client = GroupsClient::new(channel);
        let mut client = client.max_decoding_message_size(relay::MAX_MESSAGE);
        client.watch(request).await
    }

    async fn look(&self, context: &Context, view: &Arc<View>) -> Result<Group, Status> {
        show(context, &view.state, self.0)
    }

    fn mark(&self, state: &State) -> Option<Vec<u64>> {
        let group = state.groups.get(&self.0)?;
        let members = group.members.values().map(|member| member.deployment);
        let returns = group.returns.keys().copied();
        let revision = |id| state.deployments.get(&id).map_or(0, |d| d.meta.revision);
        let mut marks = vec![group.meta.revision];
        marks.extend(members.chain(returns).map(revision));
        Some(marks)
    }

    fn has_ended(&self, state: &State) -> bool {
        let found = state.groups.get(&self.0);
        found.is_none_or(|group| group.closed.is_some())
    }

    fn check(&self, context: &Context, caller: &Caller, state: &State) -> Result<(), Status> {
        may_see(context, caller, state, self.0)
    }
}
