//! Which assets the built-in store has to hold, and which releases have been out of use for so long
//! that theirs may go.
//!
//! Pure. [`needed`] is what every coordinator keeps (and fetches if it lacks it); [`review`] is what
//! the leader proposes now and then. Whatever a scope runs, is about to run, waits for or could
//! return to is in use: active, candidate, waiting, retired, kept, the last one of a stopped scope,
//! and every deployment that has not ended. Only rows that the state holds are looked at; the past
//! is of no interest. `apply` checks each release of a review again, so that a proposal that comes
//! late takes nothing from anybody.

use std::collections::BTreeSet;

use tidegate_shared::digest::Digest;
use tidegate_shared::id::{Name, Version};
use tidegate_shared::spec::ReleaseStatus;
use tidegate_shared::time::{Span, Timestamp};

use crate::command::ReviewReleases;
use crate::state::{Deployment, State};

/// Releases in one review at most; the next one takes the rest.
const MOST: usize = 1_000;

/// Deployments whose release is in use.
fn in_use(state: &State) -> impl Iterator<Item = &Deployment> {
    let held = state.scopes.values().flat_map(|scope| {
        let places = scope.active.iter().chain(&scope.candidate);
        let lists = scope
            .waiting
            .iter()
            .chain(&scope.retired)
            .chain(&scope.kept);
        places.chain(lists).chain(&scope.last_active)
    });
    let held = held.filter_map(|id| state.deployments.get(id));
    let moving = state
        .deployments
        .values()
        .filter(|deployment| !deployment.status.is_end());
    held.chain(moving)
}

/// Releases that some scope runs, waits for or could return to.
pub fn used(state: &State) -> BTreeSet<(Name, Version)> {
    in_use(state)
        .map(|deployment| {
            let origin = &deployment.origin;
            (origin.application.clone(), origin.version.clone())
        })
        .collect()
}

/// Assets that the store has to hold: those of releases that may be deployed, and those in use
/// whatever their release is.
pub fn needed(state: &State) -> BTreeSet<Digest> {
    let offered = state
        .releases
        .values()
        .filter(|release| match release.status {
            ReleaseStatus::Building | ReleaseStatus::Ready | ReleaseStatus::Paused => true,
            ReleaseStatus::Rejected | ReleaseStatus::Collected => false,
        });
    let assets = offered.flat_map(|release| &release.spec.assets);
    let used = in_use(state).map(|deployment| &*deployment.origin.asset);
    assets
        .chain(used)
        .filter(|asset| asset.source.needs_store())
        .map(|asset| asset.sha256)
        .collect()
}

/// What the leader should propose of releases now: which have gone out of use since the last look,
/// and which have been for `keep` and give up their assets. None: nothing.
pub fn review(state: &State, now: Timestamp, keep: Span) -> Option<ReviewReleases> {
    let used = used(state);
    let mut review = ReviewReleases::default();
    for (key, release) in &state.releases {
        match release.status {
            ReleaseStatus::Ready | ReleaseStatus::Paused => {}
            // Not all there yet, or nothing held for it any more.
            ReleaseStatus::Building | ReleaseStatus::Rejected | ReleaseStatus::Collected => {
                continue;
            }
        }
        let stored = |asset: &tidegate_shared::spec::AssetSpec| asset.source.needs_store();
        if used.contains(key) || !release.spec.assets.iter().any(stored) {
            continue;
        }
        match release.idle_since {
            None if review.idle.len() < MOST => review.idle.push(key.clone()),
            Some(since) if now.since(since) >= keep && review.collected.len() < MOST => {
                review.collected.push(key.clone());
            }
            None | Some(_) => {}
        }
    }
    (review != ReviewReleases::default()).then_some(review)
}
