//! Shares, shifts, drains and balancing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::{Client, Proxy, SCOPE, Server, free_address, route, until};

#[tokio::test]
async fn shares_are_exact_and_keep_alive_connections_follow() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (blue, green) = (Server::start("blue").await, Server::start("green").await);
    proxy
        .hold(route(listen, &[(10_000, &[&blue]), (0, &[&green])]))
        .await;
    let mut client = Client::connect(listen).await;
    for (share, expected) in [(1_000, 100), (5_000, 500), (10_000, 1_000), (0, 0)] {
        let held = proxy
            .hold(route(
                listen,
                &[(10_000 - share, &[&blue]), (share, &[&green])],
            ))
            .await;
        assert_eq!(held.acknowledged_weight(SCOPE, "green"), Some(share));
        let mut hits = 0;
        for _ in 0..1_000 {
            hits += usize::from(client.id().await == "green");
        }
        assert_eq!(hits, expected, "at {share} basis points");
    }
    let (blue, green) = (proxy.version("blue").await, proxy.version("green").await);
    assert_eq!(
        (blue.counters().requests, green.counters().requests),
        (2_400, 1_600)
    );
    assert_eq!(green.counters().responses, [0, 1_600, 0, 0, 0]);
    assert_eq!(green.counters().latency_us.count(), 1_600);
    assert!(green.counters().latency_us.p99() > green.counters().latency_us.p50().map(|p| p / 2));
}

/// Sends requests without pause until `stop`; answers with how many it sent.
async fn load(
    listen: std::net::SocketAddr,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    keep_alive: bool,
) {
    let mut client = Client::connect(listen).await;
    while !stop.load(Ordering::Relaxed) {
        client.id().await;
        sent.fetch_add(1, Ordering::Relaxed);
        if !keep_alive {
            client = Client::connect(listen).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_replaced_under_load_without_one_failed_request() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let mut old = Server::start("v0").await;
    proxy.hold(route(listen, &[(10_000, &[&old])])).await;
    let (stop, sent) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let loads: Vec<_> = (0..8)
        .map(|n| {
            tokio::spawn(load(
                listen,
                Arc::clone(&stop),
                Arc::clone(&sent),
                n % 4 != 0,
            ))
        })
        .collect();
    let more = async |count: u64| {
        let target = sent.load(Ordering::Relaxed) + count;
        until("more requests", || async {
            sent.load(Ordering::Relaxed) >= target
        })
        .await;
    };
    for round in 1..=5 {
        let new = Server::start(&format!("v{round}")).await;
        for share in [0, 1_000, 5_000, 10_000] {
            proxy
                .hold(route(
                    listen,
                    &[(10_000 - share, &[&old]), (share, &[&new])],
                ))
                .await;
            more(200).await;
        }
        proxy.until_open(&old.id, 0).await;
        let served = old.served();
        old.die().await;
        more(100).await;
        assert_eq!(old.served(), served, "a drained version got a request");
        assert_eq!(proxy.version(&old.id).await.counters().connect_errors, 0);
        proxy.hold(route(listen, &[(10_000, &[&new])])).await;
        old = new;
    }
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.expect("no request failed");
    }
    let held = proxy.version("v5").await;
    assert_eq!((held.counters().errors(), held.first_error_at), (0, None));
}

#[tokio::test]
async fn open_requests_of_a_drained_version_end_in_their_own_time() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (blue, green) = (Server::start("blue").await, Server::start("green").await);
    proxy.hold(route(listen, &[(10_000, &[&blue])])).await;
    let mut slow = Client::connect(listen).await;
    let waiting = tokio::spawn(async move { slow.get("/wait").await });
    proxy.until_open("blue", 1).await;
    let held = proxy
        .hold(route(listen, &[(0, &[&blue]), (10_000, &[&green])]))
        .await;
    assert_eq!(
        held.scope(SCOPE)
            .and_then(|s| s.version("blue"))
            .map(|v| v.open_requests),
        Some(1)
    );
    assert_eq!(Client::connect(listen).await.id().await, "green");
    blue.let_go();
    let answer = waiting.await.expect("no panic").expect("an answer");
    assert_eq!(answer, (200, "blue".to_owned()));
    proxy.until_open("blue", 0).await;
    assert_eq!(blue.served(), 1);
}

#[tokio::test]
async fn close_cuts_what_is_open() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (blue, green) = (Server::start("blue").await, Server::start("green").await);
    proxy.hold(route(listen, &[(10_000, &[&blue])])).await;
    let mut slow = Client::connect(listen).await;
    let waiting = tokio::spawn(async move { slow.get("/wait").await });
    proxy.until_open("blue", 1).await;
    let mut table = route(listen, &[(0, &[&blue]), (10_000, &[&green])]);
    table.versions[0].close = true;
    proxy.hold(table).await;
    proxy.until_open("blue", 0).await;
    let (status, text) = waiting.await.expect("no panic").expect("an answer");
    assert_eq!(status, 502);
    assert!(text.contains("scope shop/eu"), "{text}");
    let counters = proxy.version("blue").await.counters();
    assert_eq!(
        (counters.errors(), counters.abandoned),
        (0, 1),
        "a cut is not the version's error"
    );
    assert_eq!(Client::connect(listen).await.id().await, "green");
}

#[tokio::test]
async fn instances_of_a_version_share_alike_and_the_least_busy_is_preferred() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (one, two) = (Server::start("blue-1").await, Server::start("blue-2").await);
    proxy.hold(route(listen, &[(10_000, &[&one, &two])])).await;
    let mut client = Client::connect(listen).await;
    let mut hits: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..100 {
        *hits.entry(client.id().await).or_default() += 1;
    }
    assert_eq!(hits.into_values().collect::<Vec<_>>(), [50, 50]);
    let mut slow = Client::connect(listen).await;
    let waiting = tokio::spawn(async move { slow.get("/wait").await });
    proxy.until_open("blue", 1).await;
    let version = proxy.version("blue").await;
    let busy = version
        .instances
        .iter()
        .find(|held| held.open_requests == 1)
        .expect("one waits");
    let (busy, other) = if busy.instance == "blue-1" {
        (one, two)
    } else {
        (two, one)
    };
    for _ in 0..20 {
        assert_eq!(client.id().await, other.id);
    }
    busy.let_go();
    waiting.await.expect("no panic").expect("an answer");
}

#[tokio::test]
async fn a_dead_instance_costs_no_request_while_another_lives() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (one, two) = (Server::start("blue-1").await, Server::start("blue-2").await);
    let green = Server::start("green").await;
    let table = route(listen, &[(5_000, &[&one, &two]), (5_000, &[&green])]);
    proxy.hold(table).await;
    let mut client = Client::connect(listen).await;
    one.die().await;
    for _ in 0..40 {
        assert_ne!(client.id().await, "blue-1");
    }
    let counters = proxy.version("blue").await.counters();
    assert!(counters.connect_errors > 0);
    assert_eq!(
        counters.errors(),
        0,
        "another instance of the version answered"
    );
    two.die().await;
    for _ in 0..10 {
        assert_eq!(client.id().await, "green");
    }
    let blue = proxy.version("blue").await;
    assert_eq!(blue.counters().errors(), 5, "its share counts against it");
    assert!(blue.first_error_at.is_some() && blue.first_error_at <= blue.last_error_at);
    green.die().await;
    let (status, text) = client.get("/").await.expect("an answer");
    assert_eq!(status, 502);
    assert!(
        text.contains("scope shop/eu: no healthy instance"),
        "{text}"
    );
}

#[tokio::test]
async fn without_a_healthy_instance_the_scope_is_named() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let blue = Server::start("blue").await;
    let mut table = route(listen, &[(10_000, &[&blue])]);
    table.versions[0].instances[0].healthy = false;
    let held = proxy.hold(table).await;
    assert_eq!(held.acknowledged_weight(SCOPE, "blue"), Some(10_000));
    let (status, text) = Client::connect(listen)
        .await
        .get("/")
        .await
        .expect("an answer");
    assert_eq!(
        (status, text.as_str()),
        (503, "tidegate: scope shop/eu: no healthy instance\n")
    );
    assert_eq!(blue.served(), 0);
}

#[tokio::test]
async fn counters_stay_when_an_instance_moves_or_leaves() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (first, second) = (Server::start("blue").await, Server::start("blue").await);
    proxy.hold(route(listen, &[(10_000, &[&first])])).await;
    let mut client = Client::connect(listen).await;
    client.id().await;
    let since = proxy.version("blue").await.counters().since_ms;
    proxy.hold(route(listen, &[(10_000, &[&second])])).await;
    client.id().await;
    let moved = proxy.version("blue").await;
    assert_eq!(
        (moved.counters().requests, moved.counters().since_ms),
        (2, since)
    );
    assert_eq!(moved.instances[0].address, second.address);
    let mut table = route(listen, &[(10_000, &[&second])]);
    table.versions[0].instances.clear();
    proxy.hold(table).await;
    let left = proxy.version("blue").await;
    assert_eq!(left.counters().requests, 2);
    assert!(!left.instances[0].listed && !left.instances[0].healthy);
    let wait = tokio::time::timeout(Duration::from_secs(30), client.get("/"))
        .await
        .expect("no hang");
    assert_eq!(wait.expect("an answer").0, 503);
}
