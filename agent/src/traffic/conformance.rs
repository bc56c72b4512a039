//! What every traffic provider must do, as one suite that all of them pass.
//!
//! A provider's tests make a [`Subject`] and call [`run`]. Each rule is a function of its own and starts
//! from an empty table. Failing is panicking: this is test code.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a failed rule is a panic"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{TrafficError, TrafficProvider};
use crate::proxy::table::{Held, InstanceRoute, Protocol, ScopeRoute, Table, VersionRoute};

/// A provider with a world around it.
pub trait Subject {
    /// The provider.
    fn provider(&self) -> &dyn TrafficProvider;

    /// A free address for a listener.
    fn listener(&mut self) -> SocketAddr;

    /// The address of a new instance that answers every request.
    fn instance(&mut self, id: &str) -> SocketAddr;

    /// Takes a free address away, so that nobody can listen there.
    fn occupied(&mut self) -> SocketAddr;

    /// Sends one request to a listener: the id of the instance that answered, `None` when none did.
    fn request(&self, listen: SocketAddr) -> impl Future<Output = Option<String>> + Send;
}

/// Runs every rule.
pub async fn run(subject: &mut impl Subject) {
    shares_are_exact_and_absolute(subject).await;
    doing_it_twice_changes_nothing(subject).await;
    weight_zero_ends_new_requests(subject).await;
    draining_and_unhealthy_get_nothing(subject).await;
    a_scope_that_is_not_named_is_dropped(subject).await;
    an_occupied_listener_concerns_its_scope_alone(subject).await;
    listeners_change_hands(subject).await;
    an_invalid_table_changes_nothing(subject).await;
    counters_are_cumulative(subject).await;
}

/// A scope with one instance per version.
fn scope(name: &str, listen: SocketAddr, versions: &[(&str, u16, SocketAddr)]) -> ScopeRoute {
    let versions = versions
        .iter()
        .map(|(deployment, weight, address)| VersionRoute {
            deployment: (*deployment).to_owned(),
            weight: *weight,
            on_demand: false,
            draining: false,
            close: false,
            instances: vec![InstanceRoute {
                instance: (*deployment).to_owned(),
                address: *address,
                healthy: true,
            }],
        });
    ScopeRoute {
        scope: name.to_owned(),
        listen,
        protocol: Protocol::Http,
        tls: None,
        http2: false,
        sticky: None,
        route: None,
        revision: String::new(),
        response_timeout_ms: 10_000,
        versions: versions.collect(),
    }
}

async fn hold(subject: &impl Subject, scopes: &[&ScopeRoute]) -> Held {
    let table = Table {
        scopes: scopes.iter().map(|scope| (*scope).clone()).collect(),
    };
    let held = subject
        .provider()
        .converge(table)
        .await
        .expect("the table is valid");
    assert_eq!(
        weights(&held),
        weights(&subject.provider().observe().await.expect("it runs"))
    );
    held
}

/// Scope, listener, deployment, weight of everything that is held.
fn weights(held: &Held) -> Vec<(String, Option<SocketAddr>, String, u16)> {
    let mut list = Vec::new();
    for scope in &held.scopes {
        for version in &scope.versions {
            let deployment = version.deployment.clone();
            list.push((
                scope.scope.clone(),
                scope.listen,
                deployment,
                version.weight,
            ));
        }
    }
    list
}

async fn count(
    subject: &impl Subject,
    listen: SocketAddr,
    requests: usize,
) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        let answered = subject
            .request(listen)
            .await
            .unwrap_or_else(|| "nobody".to_owned());
        *counts.entry(answered).or_default() += 1;
    }
    counts
}

fn counts<const N: usize>(expected: [(&str, usize); N]) -> BTreeMap<String, usize> {
    expected
        .into_iter()
        .map(|(id, count)| (id.to_owned(), count))
        .collect()
}

async fn shares_are_exact_and_absolute(subject: &mut impl Subject) {
    let (listen, blue, green) = (
        subject.listener(),
        subject.instance("blue"),
        subject.instance("green"),
    );
    for (share, percent) in [(1_000, 10), (5_000, 50), (2_500, 25), (10_000, 100), (0, 0)] {
        let route = scope(
            "a",
            listen,
            &[("blue", 10_000 - share, blue), ("green", share, green)],
        );
        let held = hold(subject, &[&route]).await;
        assert_eq!(held.acknowledged_weight("a", "green"), Some(share));
        assert_eq!(held.acknowledged_weight("a", "blue"), Some(10_000 - share));
        let mut expected = counts([("blue", 100 - percent), ("green", percent)]);
        expected.retain(|_, count| *count > 0);
        assert_eq!(count(subject, listen, 100).await, expected);
    }
    hold(subject, &[]).await;
}

async fn doing_it_twice_changes_nothing(subject: &mut impl Subject) {
    let (listen, blue) = (subject.listener(), subject.instance("blue"));
    let route = scope("a", listen, &[("blue", 10_000, blue)]);
    let once = hold(subject, &[&route]).await;
    count(subject, listen, 3).await;
    let counted = subject.provider().observe().await.expect("it runs");
    let twice = hold(subject, &[&route]).await;
    assert_eq!(weights(&once), weights(&twice));
    let requests = |held: &Held| held.scopes[0].versions[0].counters().requests;
    assert_eq!((requests(&counted), requests(&twice)), (3, 3));
    hold(subject, &[]).await;
}

async fn weight_zero_ends_new_requests(subject: &mut impl Subject) {
    let (listen, blue) = (subject.listener(), subject.instance("blue"));
    hold(subject, &[&scope("a", listen, &[("blue", 10_000, blue)])]).await;
    assert_eq!(count(subject, listen, 2).await, counts([("blue", 2)]));
    let held = hold(subject, &[&scope("a", listen, &[("blue", 0, blue)])]).await;
    assert_eq!(held.acknowledged_weight("a", "blue"), Some(0));
    assert_eq!(count(subject, listen, 2).await, counts([("nobody", 2)]));
    let held = subject.provider().observe().await.expect("it runs");
    assert_eq!(held.scopes[0].unrouted, 2);
    assert_eq!(held.scopes[0].versions[0].open_requests, 0);
    hold(subject, &[]).await;
}

async fn draining_and_unhealthy_get_nothing(subject: &mut impl Subject) {
    let (listen, blue, green) = (
        subject.listener(),
        subject.instance("blue"),
        subject.instance("green"),
    );
    let mut route = scope(
        "a",
        listen,
        &[("blue", 5_000, blue), ("green", 5_000, green)],
    );
    route.versions[1].draining = true;
    let held = hold(subject, &[&route]).await;
    assert_eq!(held.acknowledged_weight("a", "green"), Some(0));
    assert_eq!(count(subject, listen, 4).await, counts([("blue", 4)]));
    route.versions[1].draining = false;
    route.versions[0].instances[0].healthy = false;
    hold(subject, &[&route]).await;
    assert_eq!(count(subject, listen, 4).await, counts([("green", 4)]));
    hold(subject, &[]).await;
}

async fn a_scope_that_is_not_named_is_dropped(subject: &mut impl Subject) {
    let (one, two, blue) = (
        subject.listener(),
        subject.listener(),
        subject.instance("blue"),
    );
    let first = scope("a", one, &[("blue", 10_000, blue)]);
    let second = scope("b", two, &[("blue", 10_000, blue)]);
    hold(subject, &[&first, &second]).await;
    let held = hold(subject, &[&second]).await;
    assert_eq!(held.scopes.len(), 1);
    assert_eq!(held.acknowledged_weight("a", "blue"), None);
    assert_eq!(subject.request(one).await, None);
    assert_eq!(subject.request(two).await.as_deref(), Some("blue"));
    hold(subject, &[]).await;
}

async fn an_occupied_listener_concerns_its_scope_alone(subject: &mut impl Subject) {
    let (free, taken, blue) = (
        subject.listener(),
        subject.occupied(),
        subject.instance("blue"),
    );
    let good = scope("a", free, &[("blue", 10_000, blue)]);
    hold(subject, &[&good]).await;
    let held = hold(
        subject,
        &[&good, &scope("b", taken, &[("blue", 10_000, blue)])],
    )
    .await;
    assert_eq!(held.acknowledged_weight("a", "blue"), Some(10_000));
    assert_eq!(held.acknowledged_weight("b", "blue"), None);
    let problem = held
        .scope("b")
        .and_then(|scope| scope.problem.clone())
        .expect("it says so");
    assert!(problem.message.contains("scope b") && problem.message.contains(&taken.to_string()));
    assert_eq!(
        held.scope("a").map(|scope| scope.problem.is_none()),
        Some(true)
    );
    assert_eq!(subject.request(free).await.as_deref(), Some("blue"));
    hold(subject, &[]).await;
}

async fn listeners_change_hands(subject: &mut impl Subject) {
    let (one, two) = (subject.listener(), subject.listener());
    let (blue, green) = (subject.instance("blue"), subject.instance("green"));
    let pair = |first, second| {
        let a = scope("a", first, &[("blue", 10_000, blue)]);
        (a, scope("b", second, &[("green", 10_000, green)]))
    };
    let (a, b) = pair(one, two);
    hold(subject, &[&a, &b]).await;
    let (a, b) = pair(two, one);
    let held = hold(subject, &[&a, &b]).await;
    assert!(
        held.scopes.iter().all(|scope| scope.problem.is_none()),
        "{held:?}"
    );
    assert_eq!(subject.request(one).await.as_deref(), Some("green"));
    assert_eq!(subject.request(two).await.as_deref(), Some("blue"));
    hold(subject, &[]).await;
}

async fn an_invalid_table_changes_nothing(subject: &mut impl Subject) {
    let (listen, blue) = (subject.listener(), subject.instance("blue"));
    let good = scope("a", listen, &[("blue", 10_000, blue)]);
    let before = weights(&hold(subject, &[&good]).await);
    let mut bad = scope("b", subject.listener(), &[("green", 10_001, blue)]);
    bad.versions[0].instances.clear();
    let table = Table {
        scopes: vec![scope("a", listen, &[("blue", 0, blue)]), bad],
    };
    match subject.provider().converge(table).await {
        Err(TrafficError::Refused { reason, .. }) => assert!(reason.contains("10001"), "{reason}"),
        other => panic!("not refused: {other:?}"),
    }
    let held = subject.provider().observe().await.expect("it runs");
    assert_eq!(weights(&held), before);
    assert_eq!(subject.request(listen).await.as_deref(), Some("blue"));
    hold(subject, &[]).await;
}

async fn counters_are_cumulative(subject: &mut impl Subject) {
    let (listen, blue, green) = (
        subject.listener(),
        subject.instance("blue"),
        subject.instance("green"),
    );
    let mut since = None;
    for round in 1..=3_u64 {
        let share = 2_500 * round as u16;
        let versions = [("blue", 10_000 - share, blue), ("green", share, green)];
        hold(subject, &[&scope("a", listen, &versions)]).await;
        count(subject, listen, 4).await;
        let held = subject.provider().observe().await.expect("it runs");
        let versions = &held.scopes[0].versions;
        let sums = [versions[0].counters(), versions[1].counters()];
        assert_eq!(sums[0].requests + sums[1].requests, 4 * round);
        for sum in &sums {
            assert_eq!(
                sum.requests,
                sum.responses.iter().sum::<u64>() + sum.abandoned
            );
            assert_eq!(sum.latency_us.count(), sum.requests);
        }
        let stamp = *since.get_or_insert(sums[1].since_ms);
        assert_eq!(stamp, sums[1].since_ms);
    }
    hold(subject, &[]).await;
}
