//! Ended deployments that nothing needs any more leave the state.
//!
//! Asked after each command for the scopes that it touched, so that the work of an entry follows
//! from what it did. What stays is what other decisions read: see `stays`.

use std::sync::Arc;

use tidegate_shared::id::{DeploymentId, Name};

use crate::archive::{Archived, NEWEST_ENDED, Past};
use crate::state::{Archive, Scope, State};

/// From now on rows leave the state; the audit log so far leaves at once.
pub(super) fn begin(state: &mut State) -> Vec<Archived> {
    let events = std::mem::take(&mut state.events);
    state.archive = Some(Archive {
        events: u64::try_from(events.len()).unwrap_or(u64::MAX),
        deployments: 0,
    });
    let rows = events.values().cloned();
    rows.map(|event| Archived::Event(Box::new(event))).collect()
}

/// Whether decisions read an ended deployment of a scope: its active one, those that a return or a
/// start takes, those whose place is not observed gone yet, and present members of groups under way.
/// What one that goes on is linked to stays too: whether that was gone back from is noted at its end.
fn stays(state: &State, scope: &Scope, id: DeploymentId) -> bool {
    scope.active == Some(id)
        || scope.last_active == Some(id)
        || scope.kept.contains(&id)
        || scope.retired.contains(&id)
        || state
            .deployments
            .get(&id)
            .is_some_and(|deployment| state.membership(deployment).is_some())
}

/// The deployments that leave with a change of their scope, oldest first. All of a scope that was
/// deleted: nothing of it is under way or left over.
fn leaving(state: &State, name: &Name) -> Vec<(u64, DeploymentId)> {
    let scope = state.scopes.get(name);
    let mut ended = 0;
    let mut leaving = Vec::new();
    // Newest first: what goes on comes before what it was made of.
    let mut links = Vec::new();
    let of_scope = (name.clone(), 0)..=(name.clone(), u64::MAX);
    for ((_, made), id) in state.history.range(of_scope).rev() {
        let Some(deployment) = state.deployments.get(id) else {
            continue;
        };
        if !deployment.status.is_end() {
            links.extend(deployment.origin.link.as_ref().map(|link| link.of));
            continue;
        }
        ended += 1;
        let needed =
            |scope| ended <= NEWEST_ENDED || stays(state, scope, *id) || links.contains(id);
        if !scope.is_some_and(needed) {
            leaving.push((*made, *id));
        }
    }
    leaving.reverse();
    leaving
}

/// Takes out of the state what the scope needs no more; nothing before rows leave at all.
pub(super) fn leave(state: &mut State, index: u64, name: &Name) -> Vec<Archived> {
    let Some(mut archive) = state.archive else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    for (made, id) in leaving(state, name) {
        let Some(deployment) = state.deployments.remove(&id) else {
            continue;
        };
        state.history.remove(&(name.clone(), made));
        state.short_ids.remove(&deployment.short);
        archive.deployments = archive.deployments.saturating_add(1);
        rows.push(Archived::Deployment(Box::new(Past {
            number: archive.deployments,
            index,
            made,
            deployment: Arc::unwrap_or_clone(deployment),
        })));
    }
    state.archive = Some(archive);
    rows
}
