//! The leader dies, or hands over: how long until somebody's next write is accepted.
//!
//! Killed: every 10 ms a new write is begun at each survivor, so that neither side is charged for
//! its client's patience; the first one answered counts. Planned: clients at the nodes write without
//! a pause, and the longest time that one of them had to wait is told, with every call that failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tidegate_harness::Shape;
use tidegate_harness::cluster::text;
use tidegate_proto::control::v1 as api;
use tidegate_proto::control::v1::cluster_client::ClusterClient;
use tokio::task::JoinSet;

use crate::Effort;
use crate::etcd::Etcd;
use crate::measured::{Pair, alone};
use crate::ours::Ours;
use crate::report::{Better, Goal, Report};
use crate::stats::Numbers;
use crate::store::Store;

/// Between two attempts at each survivor.
const ATTEMPT_EVERY: Duration = Duration::from_millis(10);
/// An attempt that takes longer is given up; the others go on.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(2);
/// Nobody accepted a write: the bench is over.
const LIMIT: Duration = Duration::from_secs(60);
/// Clients at each node during a hand-over.
const CLIENTS: usize = 4;
/// The lower tick that the guide advises for a local network.
const LAN_TICK: &str = "20ms";

/// Measures.
pub(super) async fn run(effort: Effort) -> anyhow::Result<Report> {
    let rounds = if effort.short {
        1
    } else {
        effort.repetitions * 3
    };
    let mut notes = Vec::new();
    let theirs = of_etcd(rounds, effort, &mut notes).await?;
    let ours = of_ours(super::DEFAULT_TICK, rounds, effort, &mut notes).await?;
    let lan = of_ours(LAN_TICK, rounds, effort, &mut notes).await?;
    let pair = |ours: &[f64], theirs: &[f64]| Pair {
        ours: ours.to_vec(),
        theirs: theirs.to_vec(),
    };
    let lower = Better::Lower;
    let third = 1.0 / 3.0;
    let figures = vec![
        pair(&ours.killed, &theirs.killed).figure(
            "leader killed until the next write, tick 25 ms",
            "ms",
            lower,
            "etcd",
            Goal::AtMostAndRatio(500.0, third),
        ),
        pair(&lan.killed, &theirs.killed).figure(
            "the same, tick 20 ms",
            "ms",
            lower,
            "etcd",
            Goal::AtMostAndRatio(500.0, third),
        ),
        pair(&ours.moved, &theirs.moved).figure(
            "longest write while the lead is handed over",
            "ms",
            lower,
            "etcd",
            Goal::AtMost(50.0),
        ),
        pair(&ours.stopped, &theirs.stopped).figure(
            "longest write at the others while the leader is stopped by SIGTERM",
            "ms",
            lower,
            "etcd",
            Goal::AtMost(50.0),
        ),
        pair(&[ours.failures as f64], &[theirs.failures as f64]).figure(
            "writes that failed in all planned hand-overs",
            "calls",
            lower,
            "etcd",
            Goal::AtMost(0.0),
        ),
        alone(
            "writes that were answered in all planned hand-overs",
            "calls",
            Better::Higher,
            vec![ours.answered as f64],
            Goal::None,
        ),
    ];
    Ok(Report {
        bench: "failover",
        versions: vec![
            ("Tidegate".to_owned(), Ours::version()),
            ("etcd".to_owned(), Etcd::version()?),
        ],
        method: vec![
            format!("3 nodes each, {rounds} rounds of each kind; etcd with its defaults (heartbeat 100 ms, election 1,000 ms)"),
            "killed: kill -9, then a new write begins every 10 ms at each survivor; time from the signal to the first answer".to_owned(),
            format!("planned: {CLIENTS} clients at each node write one after the other; by order (TransferLeadership, MoveLeader) and by SIGTERM to the leader, with clients at the others alone"),
        ],
        figures,
        notes,
    })
}

/// What the rounds of one side came to, in milliseconds and calls.
#[derive(Debug, Default)]
struct Found {
    killed: Vec<f64>,
    moved: Vec<f64>,
    stopped: Vec<f64>,
    failures: usize,
    answered: usize,
}

impl Found {
    fn add(&mut self, who: &str, writes: &Writes, notes: &mut Vec<String>) {
        self.failures += writes.failures;
        self.answered += writes.answered;
        if let Some(words) = &writes.failure {
            notes.push(format!(
                "{who}: {} writes failed, the first: {words}",
                writes.failures
            ));
        }
    }
}

async fn of_ours(
    tick: &'static str,
    rounds: usize,
    effort: Effort,
    notes: &mut Vec<String>,
) -> anyhow::Result<Found> {
    let shape = Shape {
        coordinators: 3,
        agents: 0,
    };
    let mut ours = Ours::start(shape, tick).await?;
    let mut found = Found::default();
    for _ in 0..rounds {
        let leader;
        (ours, leader) = ours.leader().await?;
        let survivors = connect(leader, 1, |node, count| ours.connect(node, count))?;
        warm(&survivors).await?;
        let began = Instant::now();
        (ours, ()) = ours
            .with_cluster(move |cluster| cluster.kill_coordinator(leader))
            .await?;
        found.killed.push(first_accepted(&survivors, began).await?);
        ours = back(ours, leader).await?;

        let leader;
        (ours, leader) = ours.leader().await?;
        let everybody = connect(usize::MAX, CLIENTS, |node, count| ours.connect(node, count))?;
        let mut client = ClusterClient::new(ours.channel(leader)?);
        let writes = while_writing(&everybody, effort, async {
            let request = api::TransferLeadershipRequest { to: 0 };
            client.transfer_leadership(request).await?;
            Ok(())
        })
        .await?;
        found.moved.push(writes.longest);
        found.add("Tidegate, handed over", &writes, notes);

        let leader;
        (ours, leader) = ours.leader().await?;
        let others = connect(leader, CLIENTS, |node, count| ours.connect(node, count))?;
        let mut whole = Some(ours);
        let writes = while_writing(&others, effort, async {
            let taken = whole.take().context("the cluster is there")?;
            let (taken, _) = taken
                .with_cluster(move |cluster| cluster.stop_coordinator(leader))
                .await?;
            whole = Some(taken);
            Ok(())
        })
        .await?;
        ours = whole.context("the cluster is back")?;
        found.stopped.push(writes.longest);
        found.add("Tidegate, stopped", &writes, notes);
        ours = back(ours, leader).await?;
    }
    ours.end().await?;
    Ok(found)
}

/// Starts a coordinator again and waits until all agree.
async fn back(ours: Ours, position: usize) -> anyhow::Result<Ours> {
    let (ours, ()) = ours
        .with_cluster(move |cluster| {
            cluster.start_coordinator(position)?;
            tidegate_harness::poll::until("all members", LIMIT, || {
                let status = cluster.tidegate(&["cluster", "status"])?.json()?;
                let members = status["members"].as_array().cloned().unwrap_or_default();
                let up = members
                    .iter()
                    .filter(|member| ["leader", "follower"].contains(&text(member, "role")));
                tidegate_harness::poll::holds(up.count() == 3, || status.to_string())
            })?;
            cluster.agree()?;
            Ok(())
        })
        .await?;
    Ok(ours)
}

async fn of_etcd(rounds: usize, effort: Effort, notes: &mut Vec<String>) -> anyhow::Result<Found> {
    let mut etcd = Etcd::start(3).await?;
    etcd.whole().await?;
    let mut found = Found::default();
    for _ in 0..rounds {
        let leader = etcd.leader().await?;
        let survivors = connect(leader, 1, |node, count| etcd.connect(node, count))?;
        warm(&survivors).await?;
        let began = Instant::now();
        etcd.kill_member(leader)?;
        found.killed.push(first_accepted(&survivors, began).await?);
        etcd.start_member(leader)?;
        etcd.whole().await?;

        let leader = etcd.leader().await?;
        let everybody = connect(usize::MAX, CLIENTS, |node, count| etcd.connect(node, count))?;
        let moved = etcd.move_leader(leader, (leader + 1) % 3);
        let writes = while_writing(&everybody, effort, moved).await?;
        found.moved.push(writes.longest);
        found.add("etcd, handed over", &writes, notes);

        let leader = etcd.leader().await?;
        let others = connect(leader, CLIENTS, |node, count| etcd.connect(node, count))?;
        let writes = while_writing(&others, effort, async { etcd.stop_member(leader) }).await?;
        found.stopped.push(writes.longest);
        found.add("etcd, stopped", &writes, notes);
        etcd.wait_member(leader)?;
        etcd.start_member(leader)?;
        etcd.whole().await?;
    }
    Ok(found)
}

/// Connections to every node but one.
fn connect<S>(
    but: usize,
    count: usize,
    connect: impl Fn(usize, usize) -> anyhow::Result<Vec<S>>,
) -> anyhow::Result<Vec<S>> {
    let mut all = Vec::new();
    for node in (0..3).filter(|node| *node != but) {
        all.extend(connect(node, count)?);
    }
    Ok(all)
}

/// Opens the connections.
async fn warm<S: Store>(stores: &[S]) -> anyhow::Result<()> {
    let mut numbers = Numbers::new(11);
    for store in stores {
        store.put(&mut numbers).await?;
    }
    Ok(())
}

/// Milliseconds from `began` to the first answered write of those that begin from now on.
async fn first_accepted<S: Store>(stores: &[S], began: Instant) -> anyhow::Result<f64> {
    let mut attempts = JoinSet::new();
    let mut timer = tokio::time::interval(ATTEMPT_EVERY);
    let mut seed = 1_000;
    let mut last = None;
    while began.elapsed() < LIMIT {
        tokio::select! {
            _ = timer.tick() => {
                for store in stores {
                    seed += 1;
                    let (store, mut numbers) = (store.clone(), Numbers::new(seed));
                    attempts.spawn(async move {
                        tokio::time::timeout(ATTEMPT_LIMIT, store.put(&mut numbers)).await?
                    });
                }
            }
            Some(attempt) = attempts.join_next() => match attempt? {
                Ok(()) => return Ok(began.elapsed().as_secs_f64() * 1e3),
                Err(error) => last = Some(error),
            },
        }
    }
    bail!("no write was accepted within {LIMIT:?}: {last:?}")
}

/// What clients saw during a hand-over.
#[derive(Debug, Default)]
struct Writes {
    /// Milliseconds of the longest write that was under way after the hand-over began.
    longest: f64,
    answered: usize,
    failures: usize,
    failure: Option<String>,
}

/// Lets one client per connection write, before, while and after `act` is done.
async fn while_writing<S: Store>(
    stores: &[S],
    effort: Effort,
    act: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Writes> {
    warm(stores).await?;
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for (number, store) in stores.iter().enumerate() {
        let (store, over) = (store.clone(), over.clone());
        clients.spawn(async move {
            let mut numbers = Numbers::new(500 + number as u64);
            let mut seen = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                let result = store.put(&mut numbers).await;
                seen.push((began, Instant::now(), result));
            }
            seen
        });
    }
    tokio::time::sleep(effort.warm_up).await;
    let began = Instant::now();
    act.await?;
    tokio::time::sleep(effort.warm_up.max(Duration::from_millis(500))).await;
    over.store(true, Ordering::Relaxed);
    let mut writes = Writes::default();
    while let Some(seen) = clients.join_next().await {
        for (from, to, result) in seen? {
            match result {
                Ok(()) => writes.answered += 1,
                Err(error) => {
                    writes.failures += 1;
                    writes.failure.get_or_insert_with(|| format!("{error:#}"));
                }
            }
            if to >= began {
                let took = to.saturating_duration_since(from).as_secs_f64() * 1e3;
                writes.longest = writes.longest.max(took);
            }
        }
    }
    Ok(writes)
}
