//! One command's workspace: the state, the events to append, and what was touched.
//!
//! Handlers change `state` only through it; when one refuses, the state before it comes back.
//! `commit` raises the generations of agents whose wish changed and chains the events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_shared::assignment::Generation;
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, GroupId, Name};
use tidegate_shared::time::Timestamp;

use super::archive;
use crate::archive::{ARCHIVE_LEVEL, Archived};
use crate::command::{Actor, Command, Item};
use crate::event::Event;
use crate::people;
use crate::rejection::Rejection;
use crate::state::{Deployment, Group, Meta, Origin, Scope, State};
use crate::verification::wishes;

/// What an event says, before it has its place in the chain.
struct Draft {
    kind: String,
    object_kind: &'static str,
    object: String,
    message: String,
    details: BTreeMap<String, String>,
}

/// See the module.
pub(super) struct Tx<'a> {
    /// The state as it will be.
    pub(super) state: State,
    /// Time of the entry.
    pub(super) at: Timestamp,
    /// Who asked.
    pub(super) actor: &'a Actor,
    index: u64,
    item: u32,
    drafts: Vec<Draft>,
    scopes: BTreeSet<Name>,
    agents: BTreeSet<Name>,
    archived: Vec<Archived>,
    like: Option<Arc<Origin>>,
}

/// What an accepted command comes to.
pub(super) struct Committed {
    /// The state after it.
    pub(super) state: State,
    /// What happened, in order.
    pub(super) events: Vec<Event>,
    /// What left the state.
    pub(super) archived: Vec<Archived>,
}

impl<'a> Tx<'a> {
    pub(super) fn new(state: State, index: u64, item: u32, actor: &'a Actor) -> Self {
        Self {
            at: state.at,
            state,
            actor,
            index,
            item,
            drafts: Vec::new(),
            scopes: BTreeSet::new(),
            agents: BTreeSet::new(),
            archived: Vec::new(),
            like: None,
        }
    }

    /// What the last deployment that this command made was made with.
    pub(super) fn like(&self) -> Option<&Arc<Origin>> {
        self.like.as_ref()
    }

    /// Remembers what a deployment is made with: the next one shares what is equal.
    pub(super) fn made_with(&mut self, origin: Origin) -> Arc<Origin> {
        Arc::clone(self.like.insert(Arc::new(origin)))
    }

    /// From now on rows leave the state, if the cluster's level allows it and they do not already.
    pub(super) fn begin_archive(&mut self, level: u32) {
        if level < ARCHIVE_LEVEL || self.state.archive.is_some() {
            return;
        }
        self.archived.extend(archive::begin(&mut self.state));
        let scopes = self.state.history.keys().map(|(scope, _)| scope.clone());
        self.scopes.extend(scopes);
    }

    /// A revision that was never given before.
    pub(super) fn next_revision(&mut self) -> u64 {
        self.state.last_revision = self.state.last_revision.saturating_add(1);
        self.state.last_revision
    }

    /// What a new object carries.
    pub(super) fn new_meta(&mut self, labels: BTreeMap<String, String>) -> Meta {
        Meta {
            labels,
            created_at: self.at,
            created_by: self.actor.clone(),
            revision: self.next_revision(),
        }
    }

    /// Stores a deployment with a new revision.
    pub(super) fn put_deployment(&mut self, mut deployment: Deployment) {
        deployment.meta.revision = self.next_revision();
        self.scopes.insert(deployment.origin.scope.clone());
        self.state.deployments.insert(deployment.id, deployment);
    }

    /// Stores a scope with a new revision.
    pub(super) fn put_scope(&mut self, name: &Name, mut scope: Scope) {
        scope.meta.revision = self.next_revision();
        self.scopes.insert(name.clone());
        self.state.scopes.insert(name.clone(), scope);
    }

    /// Stores a group with a new revision.
    pub(super) fn put_group(&mut self, mut group: Group) {
        group.meta.revision = self.next_revision();
        self.set_group(group);
    }

    /// Stores what a member told its group: that changes nothing of the group itself.
    pub(super) fn set_group(&mut self, group: Group) {
        self.state.groups.insert(group.id, group);
    }

    /// An id for a new group: neither it nor its short form is that of another one in the state.
    pub(super) fn new_group_id(&self) -> GroupId {
        let mut attempt = 0_u32;
        loop {
            let parent = format!("group/{attempt}");
            let id = GroupId::derived(self.at, &parent, self.index, self.item);
            let short = id.short();
            let twin = self.state.groups.values().any(|g| g.short == short);
            if !twin && !self.state.groups.contains_key(&id) {
                return id;
            }
            attempt += 1;
        }
    }

    /// Does something that may be refused half done: then nothing of it stays.
    pub(super) fn attempt<T>(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<T, Rejection>,
    ) -> Result<T, Rejection> {
        let (state, drafts) = (self.state.clone(), self.drafts.len());
        let done = act(self);
        if done.is_err() {
            self.state = state;
            self.drafts.truncate(drafts);
        }
        done
    }

    /// What decisions about a scope read may have changed otherwise than through it.
    pub(super) fn touch_scope(&mut self, name: &Name) {
        self.scopes.insert(name.clone());
    }

    /// Appends an event about a group; application and release stand in its details.
    pub(super) fn note_group(
        &mut self,
        kind: impl Into<String>,
        group: &Group,
        message: impl Into<String>,
    ) {
        let mut details = vec![
            ("application", group.application.to_string()),
            ("release", group.version.to_string()),
        ];
        if let Some(name) = &group.name {
            details.push(("name", name.to_string()));
        }
        if let Some(closed) = &group.closed {
            details.push(("status", closed.status.to_string()));
            if let Some(outcome) = closed.outcome {
                details.push(("outcome", outcome.as_str().to_owned()));
            }
        }
        let kind = format!("group_{}", kind.into());
        self.note_with(kind, "group", group.id, message, &details);
    }

    /// Forgets a scope.
    pub(super) fn remove_scope(&mut self, name: &Name) {
        self.scopes.insert(name.clone());
        self.state.scopes.remove(name);
        self.state.tracks.remove(name);
        self.state.auto.remove(name);
    }

    /// The wish for this agent may have changed otherwise than through a scope.
    pub(super) fn touch_agent(&mut self, name: &Name) {
        self.agents.insert(name.clone());
    }

    /// An id for a new deployment of a scope: derived from the log position; neither it nor its
    /// short form is that of another one in the state. One that has left it may share the short
    /// form: nothing of it is left on any host.
    pub(super) fn new_deployment_id(&self, scope: &Name) -> DeploymentId {
        let mut attempt = 0_u32;
        loop {
            let parent = format!("{scope}/{attempt}");
            let id = DeploymentId::derived(self.at, &parent, self.index, self.item);
            let taken = self.state.deployments.contains_key(&id)
                || self.state.short_ids.contains_key(&id.short());
            if !taken {
                return id;
            }
            attempt += 1;
        }
    }

    /// Appends an event.
    pub(super) fn note(
        &mut self,
        kind: impl Into<String>,
        object_kind: &'static str,
        object: impl ToString,
        message: impl Into<String>,
    ) {
        self.note_with(kind, object_kind, object, message, &[]);
    }

    /// Appends an event with figures.
    pub(super) fn note_with(
        &mut self,
        kind: impl Into<String>,
        object_kind: &'static str,
        object: impl ToString,
        message: impl Into<String>,
        details: &[(&str, String)],
    ) {
        self.drafts.push(Draft {
            kind: kind.into(),
            object_kind,
            object: object.to_string(),
            message: message.into(),
            details: details
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
        });
    }

    /// Appends an event about a deployment; scope, release and status stand in its details.
    pub(super) fn note_deployment(
        &mut self,
        kind: impl Into<String>,
        deployment: &Deployment,
        message: impl Into<String>,
    ) {
        let origin = &deployment.origin;
        let mut details = vec![
            ("application", origin.application.to_string()),
            ("release", origin.version.to_string()),
            ("scope", origin.scope.to_string()),
            ("status", deployment.status.to_string()),
        ];
        if let Some(outcome) = &deployment.outcome {
            details.push(("outcome", outcome.clone()));
        }
        if !deployment.reason.is_empty() {
            details.push(("reason", deployment.reason.clone()));
        }
        if people::in_force(&self.state) {
            details.extend(people_of(deployment, self.actor));
        }
        let kind = format!("deployment_{}", kind.into());
        self.note_with(kind, "deployment", deployment.id, message, &details);
    }

    /// The state as it is now, and the events of the command in their places. `before` is the state
    /// before the command; none: a command that touches neither scopes nor agents.
    pub(super) fn commit(
        mut self,
        before: Option<&State>,
        ordinal: u32,
        command: &Command,
    ) -> Committed {
        match before {
            Some(before) => self.raise_generations(before),
            None => debug_assert!(self.scopes.is_empty() && self.agents.is_empty()),
        }
        for scope in &self.scopes {
            let rows = archive::leave(&mut self.state, self.index, scope);
            self.archived.extend(rows);
        }
        if self.drafts.is_empty() {
            let (kind, object_kind, object) = command.subject();
            self.note(kind, object_kind, object, "nothing changed");
        }
        let mut events = Vec::with_capacity(self.drafts.len());
        for (position, draft) in std::mem::take(&mut self.drafts).into_iter().enumerate() {
            let position = u32::try_from(position).unwrap_or(u32::MAX);
            let event = Event {
                index: self.index,
                ordinal: ordinal.saturating_add(position),
                at: self.at,
                actor: self.actor.clone(),
                kind: draft.kind,
                object_kind: draft.object_kind.to_owned(),
                object: draft.object,
                outcome: "ok".to_owned(),
                message: draft.message,
                details: draft.details,
                previous_hash: Digest::ZERO,
                hash: Digest::ZERO,
            };
            events.push(append(&mut self.state, event));
        }
        Committed {
            state: self.state,
            events,
            archived: self.archived,
        }
    }

    fn raise_generations(&mut self, before: &State) {
        let mut agents = std::mem::take(&mut self.agents);
        for scope in &self.scopes {
            if !same_wish(before, &self.state, scope) {
                agents.extend(before.agents_of_scope(scope));
                agents.extend(self.state.agents_of_scope(scope));
            }
        }
        let epoch = self.state.cluster.as_ref().map_or(0, |c| c.epoch);
        let generation = Generation {
            epoch,
            index: self.index,
        };
        for name in agents {
            if let Some(agent) = self.state.agents.beside_terms(&name) {
                agent.generation = agent.generation.max(generation);
            }
        }
    }
}

/// Who asked for a deployment and who approved it, where that is not who moves it now.
fn people_of(deployment: &Deployment, actor: &Actor) -> Vec<(&'static str, String)> {
    let mut people = Vec::new();
    let by = &deployment.meta.created_by;
    if by != actor {
        people.push(("requested_by", by.to_string()));
    }
    let decisions = deployment.required.iter().flat_map(|r| &r.decisions);
    let granted = decisions.filter(|decision| decision.granted);
    let granted: Vec<String> = granted.map(|decision| decision.by.to_string()).collect();
    if !granted.is_empty() {
        people.push(("approved_by", granted.join(", ")));
    }
    people
}

/// Whether nothing of a scope changed that `desired` reads, so that no agent's wish changed by it.
fn same_wish(before: &State, after: &State, name: &Name) -> bool {
    let (old, new) = match (before.scopes.get(name), after.scopes.get(name)) {
        (Some(old), Some(new)) => (old, new),
        (None, None) => return true,
        (Some(_), None) | (None, Some(_)) => return false,
    };
    let roles = |scope: &Scope| (scope.status, scope.active, scope.candidate);
    roles(old) == roles(new)
        && old.spec == new.spec
        && old.retired == new.retired
        && new
            .active
            .iter()
            .chain(&new.candidate)
            .chain(&new.retired)
            .all(
                |id| match (before.deployments.get(id), after.deployments.get(id)) {
                    (Some(old), Some(new)) => same_place(old, new),
                    (None, None) => true,
                    (Some(_), None) | (None, Some(_)) => false,
                },
            )
}

/// Whether a deployment's record asks the same of every agent as before.
fn same_place(old: &Deployment, new: &Deployment) -> bool {
    let traffic = |d: &Deployment| {
        let traffic = &d.traffic;
        (traffic.desired, traffic.replaced, traffic.total)
    };
    old.status == new.status
        && old.replaces == new.replaces
        && old.drained == new.drained
        && traffic(old) == traffic(new)
        && old.participants == new.participants
        && old.lost == new.lost
        && old.leftovers == new.leftovers
        && old.origin == new.origin
        && wishes(old) == wishes(new)
}

/// Appends the line that says why a command was refused; the state is else unchanged.
pub(super) fn append_refusal(
    state: &mut State,
    index: u64,
    ordinal: u32,
    item: &Item,
    rejection: &Rejection,
) -> Event {
    let (kind, object_kind, object) = item.command.subject();
    let event = Event {
        index,
        ordinal,
        at: state.at,
        actor: item.actor.clone(),
        kind: format!("{kind}_refused"),
        object_kind: object_kind.to_owned(),
        object,
        outcome: rejection.reason.code().to_owned(),
        message: rejection.to_string(),
        details: BTreeMap::from([("reason".to_owned(), rejection.reason.as_str().to_owned())]),
        previous_hash: Digest::ZERO,
        hash: Digest::ZERO,
    };
    append(state, event)
}

fn append(state: &mut State, mut event: Event) -> Event {
    event.previous_hash = state.last_hash.unwrap_or(Digest::ZERO);
    let event = event.sealed();
    state.last_hash = Some(event.hash);
    match &mut state.archive {
        Some(archive) => archive.events = archive.events.saturating_add(1),
        None => {
            let key = (event.index, event.ordinal);
            state.events.insert(key, event.clone());
        }
    }
    event
}

/// `STALE` unless nothing was expected, or just this.
pub(super) fn expect_revision(
    what: &str,
    expected: Option<u64>,
    present: u64,
) -> Result<(), Rejection> {
    match expected {
        Some(expected) if expected != present => Err(Rejection::new(
            Reason::Stale,
            format!("{what} changed meanwhile: it is at revision {present}, not {expected}"),
        )),
        Some(_) | None => Ok(()),
    }
}
