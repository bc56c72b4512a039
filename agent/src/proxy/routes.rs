//! What one listener does with a request right now: an immutable picture of a scope's versions and weights.
//!
//! The engine makes a new picture for every accepted table and swaps it in; a request takes the picture
//! that is current when it begins, so requests on old keep-alive connections follow new weights at once.
//! It chooses and does not send.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::ServerConfig;

use super::balance;
use super::table::{Protocol, StickySpec};
use super::upstream::{Instance, Lease};

/// The routes of one scope.
pub(super) struct Routes {
    pub(super) scope: String,
    pub(super) protocol: Protocol,
    pub(super) security: Security,
    pub(super) sticky: Option<StickySpec>,
    pub(super) demand: Option<Demand>,
    /// How many requests were spread so far; goes on from picture to picture, so shares stay exact over a
    /// change that does not concern the weights.
    pub(super) spread: Arc<AtomicU64>,
    /// Requests that found nobody.
    pub(super) unrouted: Arc<AtomicU64>,
    pub(super) silence: Duration,
    /// With their weights, which are above 0; a version without a healthy instance is not among them.
    pub(super) versions: Vec<RoutedVersion>,
    pub(super) weights: Vec<u16>,
}

/// What a listener does before it reads.
#[derive(Clone)]
pub(super) enum Security {
    Cleartext,
    Tls(Arc<ServerConfig>),
    /// It should speak TLS and cannot: nobody is let in.
    Broken,
}

/// Requests with a header go to one version.
pub(super) struct Demand {
    pub(super) header: HeaderName,
    pub(super) value: HeaderValue,
    pub(super) version: RoutedVersion,
}

/// A version that may get requests: at least one healthy instance.
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
    /// Nobody to send a request to: what a listener holds before its scope is known.
    pub(super) fn empty() -> Self {
        Self {
            scope: String::new(),
            protocol: Protocol::Http,
            security: Security::Broken,
            sticky: None,
            demand: None,
            spread: Arc::default(),
            unrouted: Arc::default(),
            silence: Duration::MAX,
            versions: Vec::new(),
            weights: Vec::new(),
        }
    }

    /// The version that a request asks for, by the scope's header or by the cookie of an earlier answer.
    pub(super) fn asked_for(
        &self,
        headers: &HeaderMap,
        pin: Option<&str>,
    ) -> Option<&RoutedVersion> {
        let demand = self.demand.as_ref();
        let demanded = demand.filter(|demand| headers.get(&demand.header) == Some(&demand.value));
        if let Some(demand) = demanded {
            return Some(&demand.version);
        }
        let pin = pin?;
        self.versions
            .iter()
            .find(|version| version.deployment == pin)
    }

    /// Every version that may take the next request, the one that it asked for first, then the one whose
    /// turn it is, then the others by falling weight.
    pub(super) fn order<'a>(
        &'a self,
        first: Option<&'a RoutedVersion>,
    ) -> impl Iterator<Item = &'a RoutedVersion> {
        let others = std::iter::once_with(|| self.by_weight()).flatten();
        let others = others.filter(move |version| {
            first.is_none_or(|first| first.deployment != version.deployment)
        });
        first.into_iter().chain(others)
    }

    /// Every version by weight, the one whose turn it is first, the others after it by falling weight.
    pub(super) fn by_weight(&self) -> impl Iterator<Item = &RoutedVersion> {
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
