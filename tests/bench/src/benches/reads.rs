//! Linearizable reads: three nodes each, the same client over mutual TLS, the leader is asked.

use tidegate_harness::Shape;

use crate::Effort;
use crate::etcd::{self, Etcd};
use crate::measured::Pair;
use crate::ours::{self, Ours};
use crate::report::{Better, Goal, Report};
use crate::store::{Outcome, Pressure, Work, closed_loop};

/// Measures.
pub(super) async fn run(effort: Effort) -> anyhow::Result<Report> {
    let counts: &[usize] = if effort.short { &[8] } else { &[1, 64, 1_024] };
    let shape = Shape {
        coordinators: 3,
        agents: 0,
    };
    let reference = Etcd::start(3).await?;
    let ours = Ours::start(shape, super::DEFAULT_TICK).await?;
    let (ours, our_leader) = ours.leader().await?;
    let their_leader = reference.leader().await?;
    for store in reference.connect(their_leader, 1)? {
        etcd::fill(&store).await?;
    }
    for store in ours.connect(our_leader, 1)? {
        ours::fill(&store).await?;
    }
    let mut figures = Vec::new();
    let mut notes = Vec::new();
    for &clients in counts {
        let pressure = Pressure {
            clients,
            warm_up: effort.warm_up,
            length: effort.length,
        };
        let (mut rate, mut p99) = (Pair::default(), Pair::default());
        for _ in 0..effort.repetitions {
            let connections = reference.connect(their_leader, pressure.connections())?;
            let theirs = closed_loop(&connections, Work::Get, pressure).await?;
            let connections = ours.connect(our_leader, pressure.connections())?;
            let found = closed_loop(&connections, Work::Get, pressure).await?;
            for (who, outcome) in [("Tidegate", &found), ("etcd", &theirs)] {
                if let Some(words) = &outcome.failure {
                    let count = outcome.failures;
                    notes.push(format!(
                        "{who}, {clients} clients: {count} calls failed, the first: {words}"
                    ));
                }
            }
            rate.ours.push(found.per_second());
            rate.theirs.push(theirs.per_second());
            let slow = |outcome: &Outcome| outcome.times.percentile(0.99).unwrap_or(f64::NAN);
            p99.ours.push(slow(&found));
            p99.theirs.push(slow(&theirs));
        }
        let many = Better::Higher;
        let goal = Goal::RatioAtLeast(4.0);
        figures.push(rate.figure(
            format!("reads, {clients} clients"),
            "1/s",
            many,
            "etcd",
            goal,
        ));
        let name = format!("p99 of a read, {clients} clients");
        figures.push(p99.figure(name, "ms", Better::Lower, "etcd", Goal::None));
    }
    ours.end().await?;
    Ok(Report {
        bench: "reads",
        versions: vec![
            ("Tidegate".to_owned(), Ours::version()),
            ("etcd".to_owned(), Etcd::version()?),
        ],
        method: vec![
            format!(
                "3 nodes each with their defaults, {} turns by turns of {} s counted after {} s; 10,000 keys with 256 byte values",
                effort.repetitions,
                effort.length.as_secs_f64(),
                effort.warm_up.as_secs_f64(),
            ),
            "one client program for both: gRPC over mutual TLS to the leader, 16 clients to a connection, the next call after the answer".to_owned(),
            "Tidegate: Objects.Get of a parameter, which is always linearizable; etcd: Range of one key with its default, linearizable".to_owned(),
        ],
        figures,
        notes,
    })
}
