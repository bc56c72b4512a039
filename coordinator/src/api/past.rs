//! The present and the past in one: the state of a view with rows of the history put back into it.
//!
//! An answer about deployments is made from a clone of the view's state, which costs nothing, in
//! which those that it names stand again; so lists, pictures and pages need not know where a row
//! is kept. The history may be ahead of the view: it is asked for what had left by then, and what
//! the view still holds stays as it is there. Reads run off the async threads.

use std::sync::Arc;

use tidegate_coordinator_core::state::Deployment;
use tidegate_coordinator_core::{Event, Past, State};
use tidegate_proto::control::v1::Page;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name, ShortId};
use tonic::Status;

use super::authz::Sight;
use super::paging::{self, Slice};
use super::{Context, authz, convert, status};
use crate::replica::View;
use crate::storage::history::read::Filter;
use crate::storage::history::{HistoryError, HistoryStore};

/// Asks the history; nothing of it is read on an async thread.
async fn ask<T: Send + 'static>(
    context: &Context,
    view: &Arc<View>,
    work: impl FnOnce(&HistoryStore, &View) -> Result<T, HistoryError> + Send + 'static,
) -> Result<T, Status> {
    let (history, view) = (context.history.clone(), view.clone());
    let done = tokio::task::spawn_blocking(move || work(&history, &view)).await;
    done.map_err(|error| status::internal(&error))?
        .map_err(|error| from_history(&error))
}

fn from_history(error: &HistoryError) -> Status {
    match error {
        HistoryError::Closed => {
            status::refusal(Reason::ShuttingDown, "this coordinator is stopping")
        }
        HistoryError::Engine { .. }
        | HistoryError::Damaged { .. }
        | HistoryError::Foreign { .. }
        | HistoryError::Incomplete { .. }
        | HistoryError::Gap(_)
        | HistoryError::Row(_) => status::internal(error),
    }
}

/// Puts a deployment back; one that the state still holds stays as it is there.
fn put_back(state: &mut State, past: Past) {
    let Past {
        made, deployment, ..
    } = past;
    let id = deployment.id;
    if state.deployments.contains_key(&id) {
        return;
    }
    let scope = deployment.origin.scope.clone();
    state.history.insert((scope, made), id);
    state.deployments.insert(id, deployment);
}

/// Puts back what the deployments of these ids replaced: it is named beside them.
fn put_back_replaced(
    state: &mut State,
    history: &HistoryStore,
    ids: &[DeploymentId],
) -> Result<(), HistoryError> {
    let replaced = |id: &DeploymentId| state.deployments.get(id)?.replaces;
    let mut missing: Vec<DeploymentId> = ids.iter().filter_map(replaced).collect();
    missing.retain(|id| !state.deployments.contains_key(id));
    for id in missing {
        if let Some(past) = history.deployment(id)? {
            put_back(state, past);
        }
    }
    Ok(())
}

fn is_missing(refused: &Status) -> bool {
    status::reason_of(refused).as_deref() == Some(Reason::NotFound.as_str())
}

/// The state with a deployment of this id in it, wherever it is kept.
///
/// # Errors
/// There never was one.
pub async fn with_deployment(
    context: &Context,
    view: &Arc<View>,
    id: DeploymentId,
) -> Result<State, Status> {
    let here = view.state.deployments.get(&id);
    if here.is_some_and(|found| {
        let replaces = found.replaces.as_ref();
        replaces.is_none_or(|old| view.state.deployments.contains_key(old))
    }) {
        return Ok(view.state.clone());
    }
    let state = ask(context, view, move |history, view| {
        let mut state = view.state.clone();
        if !state.deployments.contains_key(&id)
            && let Some(past) = history.deployment(id)?
        {
            put_back(&mut state, past);
        }
        put_back_replaced(&mut state, history, &[id])?;
        Ok(state)
    })
    .await?;
    if state.deployments.contains_key(&id) {
        Ok(state)
    } else {
        Err(status::refusal(
            Reason::NotFound,
            format!("there is no deployment \"{id}\""),
        ))
    }
}

/// The deployment that a ULID or short id names, with a state that has it.
///
/// # Errors
/// The text is neither, or there never was one.
pub async fn find(
    context: &Context,
    view: &Arc<View>,
    text: &str,
) -> Result<(State, DeploymentId), Status> {
    let known = match convert::deployment_id(&view.state, text) {
        Ok(id) => Some(id),
        Err(refused) if !is_missing(&refused) => {
            return Err(refused);
        }
        Err(refused) => match text.parse::<ShortId>() {
            Ok(short) => {
                let id = ask(context, view, move |history, _| history.by_short(&short)).await?;
                Some(id.ok_or(refused)?)
            }
            Err(_) => text.parse().ok(),
        },
    };
    let id = known.ok_or_else(|| {
        status::refusal(
            Reason::NotFound,
            format!("there is no deployment \"{text}\""),
        )
    })?;
    Ok((with_deployment(context, view, id).await?, id))
}

/// The deployment that a command may still act on.
///
/// # Errors
/// `ARCHIVED` for one that has left the state; else as [`find`].
pub async fn live(context: &Context, view: &Arc<View>, text: &str) -> Result<DeploymentId, Status> {
    let (state, id) = find(context, view, text).await?;
    if view.state.deployments.contains_key(&id) {
        return Ok(id);
    }
    Err(archived(&state, id))
}

fn archived(state: &State, id: DeploymentId) -> Status {
    let Some(found) = state.deployments.get(&id) else {
        return status::refusal(Reason::NotFound, format!("there is no deployment \"{id}\""));
    };
    let origin = &found.origin;
    status::refusal(
        Reason::Archived,
        format!(
            "deployment {} ({} {} to {}) ended as {} and is history: it can be looked at, and nothing can be done with it",
            found.short, origin.application, origin.version, origin.scope, found.status
        ),
    )
}

/// A refusal of a command on a deployment that left the state just before it: says so instead of
/// "there is none".
pub async fn explain_refusal(context: &Context, id: DeploymentId, refused: Status) -> Status {
    if !is_missing(&refused) {
        return refused;
    }
    let view = context.query.stale();
    if view.state.deployments.contains_key(&id) {
        return refused;
    }
    match with_deployment(context, &view, id).await {
        Ok(state) => archived(&state, id),
        Err(_) => refused,
    }
}

/// Which deployments a list shows.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Of this scope.
    pub scope: Option<Name>,
    /// Of this application.
    pub application: Option<Name>,
    /// Only those that have not ended.
    pub unfinished: bool,
    /// Only what is seen; none: everything is.
    pub sight: Option<Sight>,
}

impl Wanted {
    fn fits(&self, now: &State, found: &Deployment) -> bool {
        let scope = self.scope.as_ref();
        let application = self.application.as_ref();
        scope.is_none_or(|scope| *scope == found.origin.scope)
            && application.is_none_or(|name| *name == found.origin.application)
            && !(self.unfinished && found.status.is_end())
            && self.is_seen(now, found)
    }

    fn is_seen(&self, now: &State, found: &Deployment) -> bool {
        let sight = self.sight.as_ref();
        sight.is_none_or(|sight| {
            sight.is_whole() || sight.sees(now, &authz::place_of(now, &found.origin))
        })
    }
}

/// One page of deployments, newest first, with a state that has them.
///
/// # Errors
/// The page is wrong, or the history cannot be read.
pub async fn list(
    context: &Context,
    view: &Arc<View>,
    wanted: Wanted,
    page: Option<Page>,
) -> Result<(State, Slice<DeploymentId>), Status> {
    let (size, after) = paging::bounds(page.as_ref())?;
    let before = after.as_deref().map(paging::number).transpose()?;
    let asked = wanted.clone();
    let mut state = ask(context, view, move |history, view| {
        let mut state = view.state.clone();
        if !asked.unfinished {
            let filter = Filter {
                scope: asked.scope.clone(),
                application: asked.application.clone(),
            };
            let (mut before, mut count) = (before, 0);
            // Who sees a part only may have to be looked for further back.
            while count <= size {
                let batch = history.deployments(&filter, before, view.index, size + 1)?;
                let is_last = batch.len() <= size;
                for past in batch {
                    before = Some(u128::from(past.deployment.id.ulid()));
                    if asked.is_seen(&view.state, &past.deployment) {
                        count += 1;
                        put_back(&mut state, past);
                    }
                }
                if is_last {
                    break;
                }
            }
        }
        Ok(state)
    })
    .await?;
    let rows = state
        .deployments
        .values()
        .rev()
        .filter(|found| wanted.fits(&view.state, found))
        .map(|found| {
            let key = paging::descending(u128::from(found.id.ulid()));
            (key, found.id)
        });
    let slice = paging::page(page.as_ref(), rows)?;
    state = complete(context, view, state, &slice.rows).await?;
    Ok((state, slice))
}

async fn complete(
    context: &Context,
    view: &Arc<View>,
    mut state: State,
    ids: &[DeploymentId],
) -> Result<State, Status> {
    let ids = ids.to_vec();
    ask(context, view, move |history, _| {
        put_back_replaced(&mut state, history, &ids)?;
        Ok(state)
    })
    .await
}

/// One page of a scope's deployments, newest first, with a state that has them.
///
/// # Errors
/// As [`list`].
pub async fn of_scope(
    context: &Context,
    view: &Arc<View>,
    scope: Name,
    page: Option<Page>,
) -> Result<(State, Slice<DeploymentId>), Status> {
    let (size, after) = paging::bounds(page.as_ref())?;
    let before = after.as_deref().map(paging::number).transpose()?;
    let before = before.map(|number| u64::try_from(number).unwrap_or(u64::MAX));
    let state = with_newest(context, view, scope.clone(), before, size + 1).await?;
    let rows = state
        .history
        .range((scope.clone(), 0)..=(scope, u64::MAX))
        .rev()
        .map(|((_, made), id)| (paging::descending(u128::from(*made)), *id));
    let slice = paging::page(page.as_ref(), rows)?;
    let state = complete(context, view, state, &slice.rows).await?;
    Ok((state, slice))
}

/// The state with so many of a scope's newest past deployments, of those made before a revision.
///
/// # Errors
/// The history cannot be read.
pub async fn with_newest(
    context: &Context,
    view: &Arc<View>,
    scope: Name,
    before: Option<u64>,
    count: usize,
) -> Result<State, Status> {
    ask(context, view, move |history, view| {
        let mut state = view.state.clone();
        for past in history.of_scope(&scope, before, view.index, count)? {
            put_back(&mut state, past);
        }
        Ok(state)
    })
    .await
}

/// Lines of the audit log behind a position, oldest first.
///
/// # Errors
/// The history cannot be read.
pub async fn events(
    context: &Context,
    view: &Arc<View>,
    after: Option<(u64, u32)>,
    limit: usize,
) -> Result<Vec<Event>, Status> {
    ask(context, view, move |history, view| {
        if view.state.archive.is_some() {
            return history.events(after, view.index, limit);
        }
        let events = view.state.events.iter();
        let behind = events.filter(|(at, _)| after.is_none_or(|after| **at > after));
        Ok(behind.take(limit).map(|(_, event)| event.clone()).collect())
    })
    .await
}

/// Lines of the audit log before a position, newest first.
///
/// # Errors
/// The history cannot be read.
pub async fn events_before(
    context: &Context,
    view: &Arc<View>,
    before: Option<(u64, u32)>,
    limit: usize,
) -> Result<Vec<Event>, Status> {
    ask(context, view, move |history, view| {
        if view.state.archive.is_some() {
            return history.events_before(before, view.index, limit);
        }
        let events = view.state.events.iter().rev();
        let earlier = events.filter(|(at, _)| before.is_none_or(|before| **at < before));
        Ok(earlier
            .take(limit)
            .map(|(_, event)| event.clone())
            .collect())
    })
    .await
}

/// One page of the lines about a deployment, oldest first.
///
/// # Errors
/// As [`list`].
pub async fn events_of(
    context: &Context,
    view: &Arc<View>,
    id: DeploymentId,
    page: Option<Page>,
) -> Result<Slice<Event>, Status> {
    let (size, after) = paging::bounds(page.as_ref())?;
    let after = after.as_deref().map(paging::position).transpose()?;
    let found = ask(context, view, move |history, view| {
        if view.state.archive.is_some() {
            return history.events_of(id, after, view.index, size + 1);
        }
        let object = id.to_string();
        let events = view.state.events.values();
        let about = events.filter(|e| e.object_kind == "deployment" && e.object == object);
        Ok(about.cloned().collect())
    })
    .await?;
    let rows = found
        .into_iter()
        .map(|event| (paging::at(event.index, event.ordinal), event));
    paging::page(page.as_ref(), rows)
}
