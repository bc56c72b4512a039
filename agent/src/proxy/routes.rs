//! What one listener does with a request right now: an immutable picture of a scope's versions and weights.
//!
//! The engine makes a new picture for every accepted table and swaps it in; a request takes the picture
//! that is current when it begins, so requests on old keep-alive connections follow new weights at once.
//! It chooses and does not send.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::balance;
use super::upstream::{Instance, Lease};

/// The routes of one scope.
pub(super) struct Routes {
    pub(super) scope: String,
    /// How many requests were spread so far; goes on from picture to picture, so shares stay exact over a
    /// change that does not concern the weights.
    pub(super) spread: Arc<AtomicU64>,
    /// Requests that found nobody.
    pub(super) unrouted: Arc<AtomicU64>,
    pub(super) silence: Duration,
    versions: Vec<RoutedVersion>,
    weights: Vec<u16>,
}

/// A version that may get requests: weight above 0 and at least one healthy instance.
pub(super) struct RoutedVersion {
    pub(super) deployment: String,
    pub(super) instances: Vec<Arc<Instance>>,
    turn: AtomicUsize,
}

impl RoutedVersion {
    pub(super) fn new(deployment: String, instances: Vec<Arc<Instance>>) -> Self {
        Self {
            deployment,
            instances,
            turn: AtomicUsize::new(0),
        }
    }

    /// The instance with the fewest open requests among those not in `tried`, taking turns where they are
    /// equal; one that refused a connection lately only when there is no other.
    pub(super) fn lease(&self, tried: &[usize], started: Instant) -> Option<(usize, Lease)> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.instances.len();
        let best = (0..count)
            .map(|step| turn.wrapping_add(step) % count)
            .filter(|index| !tried.contains(index) && self.instances[*index].is_accepting())
            .min_by_key(|index| {
                let instance = &self.instances[*index];
                (instance.is_avoided(), instance.ledger.open())
            })?;
        Lease::take(&self.instances[best], started).map(|lease| (best, lease))
    }
}

impl Routes {
    /// `versions` with their weights; a version of weight 0 or without instances must not be among them.
    pub(super) fn new(
        scope: String,
        spread: Arc<AtomicU64>,
        unrouted: Arc<AtomicU64>,
        silence: Duration,
        versions: Vec<(u16, RoutedVersion)>,
    ) -> Self {
        let (weights, versions) = versions.into_iter().unzip();
        Self {
            scope,
            spread,
            unrouted,
            silence,
            versions,
            weights,
        }
    }

    /// Nobody to send a request to: what a listener holds before its scope is known.
    pub(super) fn empty() -> Self {
        let (spread, unrouted) = Default::default();
        Self::new(String::new(), spread, unrouted, Duration::MAX, Vec::new())
    }

    /// Every version that may take the next request, the one whose turn it is first, the others after it
    /// by falling weight.
    pub(super) fn next(&self) -> impl Iterator<Item = &RoutedVersion> {
        let n = if self.versions.len() > 1 {
            self.spread.fetch_add(1, Ordering::Relaxed)
        } else {
            0
        };
        let first = balance::pick(&self.weights, n);
        let others = (0..self.versions.len()).filter(move |index| Some(*index) != first);
        first
            .into_iter()
            .chain(others)
            .map(|index| &self.versions[index])
    }
}
