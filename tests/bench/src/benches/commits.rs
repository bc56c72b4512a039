//! Replicated, synced writes: three nodes each on the same disk, the same client over mutual TLS.
//!
//! Every repetition makes both clusters anew, so that neither side drags along what was written
//! before. The clients call the leader on both sides: what a follower adds is a matter of its own.

use tidegate_harness::Shape;

use crate::Effort;
use crate::etcd::Etcd;
use crate::ours::Ours;
use crate::report::{Better, Figure, Goal, Reference, Report};
use crate::store::{Outcome, Pressure, Work, closed_loop};

/// Values of one call in the batched form.
const BATCH: usize = 64;
/// Clients of the batched form.
const BATCH_CLIENTS: usize = 64;

/// One comparison, gathering the values of both sides.
struct Case {
    clients: usize,
    work: Work,
    goal: f64,
    ours: Vec<Outcome>,
    theirs: Vec<Outcome>,
}

impl Case {
    const fn new(clients: usize, work: Work, goal: f64) -> Self {
        Self {
            clients,
            work,
            goal,
            ours: Vec::new(),
            theirs: Vec::new(),
        }
    }

    fn pressure(&self, effort: Effort) -> Pressure {
        Pressure {
            clients: self.clients,
            warm_up: effort.warm_up,
            length: effort.length,
        }
    }

    fn figures(&self) -> Vec<Figure> {
        let of = |outcomes: &[Outcome], value: fn(&Outcome) -> f64, factor: f64| {
            outcomes
                .iter()
                .map(|o| value(o) * factor)
                .collect::<Vec<_>>()
        };
        let figure =
            |name: String, unit, better, value: fn(&Outcome) -> f64, factor, goal| Figure {
                name,
                unit,
                better,
                ours: of(&self.ours, value, factor),
                reference: Some(Reference {
                    name: "etcd".to_owned(),
                    samples: of(&self.theirs, value, factor),
                    computed: false,
                }),
                goal,
            };
        let (what, factor, p99) = match self.work {
            Work::PutMany(count) => (
                format!("values, {count} per call"),
                count as f64,
                Goal::None,
            ),
            Work::Put | Work::Get => ("writes".to_owned(), 1.0, Goal::RatioAtMost(0.5)),
        };
        let clients = match self.clients {
            1 => "1 client".to_owned(),
            count => format!("{count} clients"),
        };
        vec![
            figure(
                format!("{what}, {clients}"),
                "1/s",
                Better::Higher,
                Outcome::per_second,
                factor,
                Goal::RatioAtLeast(self.goal),
            ),
            figure(
                format!("p50 of a call, {clients}"),
                "ms",
                Better::Lower,
                |outcome| outcome.times.percentile(0.5).unwrap_or(f64::NAN),
                1.0,
                Goal::None,
            ),
            figure(
                format!("p99 of a call, {clients}"),
                "ms",
                Better::Lower,
                |outcome| outcome.times.percentile(0.99).unwrap_or(f64::NAN),
                1.0,
                p99,
            ),
        ]
    }
}

/// Measures.
pub(super) async fn run(effort: Effort) -> anyhow::Result<Report> {
    let many = if effort.short { 64 } else { 1_024 };
    let mut cases = vec![
        Case::new(1, Work::Put, 1.2),
        Case::new(64, Work::Put, 2.0),
        Case::new(many, Work::Put, 2.0),
        Case::new(BATCH_CLIENTS, Work::PutMany(BATCH), 5.0),
    ];
    for _ in 0..effort.repetitions {
        turn_of_etcd(&mut cases, effort).await?;
        turn_of_ours(&mut cases, effort).await?;
    }
    let mut notes = Vec::new();
    for case in &cases {
        for (who, outcomes) in [("Tidegate", &case.ours), ("etcd", &case.theirs)] {
            let failures: u64 = outcomes.iter().map(|outcome| outcome.failures).sum();
            let words = outcomes.iter().find_map(|outcome| outcome.failure.clone());
            if failures > 0 {
                let words = words.unwrap_or_default();
                notes.push(format!(
                    "{who}, {} clients: {failures} calls failed, the first: {words}",
                    case.clients
                ));
            }
        }
    }
    Ok(Report {
        bench: "commits",
        versions: vec![
            ("Tidegate".to_owned(), Ours::version()),
            ("etcd".to_owned(), Etcd::version()?),
        ],
        method: vec![
            format!(
                "3 nodes each with their defaults, made anew for each of {} turns; {} s counted after {} s; 256 byte values under 10,000 keys",
                effort.repetitions,
                effort.length.as_secs_f64(),
                effort.warm_up.as_secs_f64(),
            ),
            "one client program for both: gRPC over mutual TLS to the leader, 16 clients to a connection, the next call after the answer".to_owned(),
            format!("Tidegate: Objects.Apply of a parameter (checked, audited, remembered by its request id) and Objects.ApplyMany of {BATCH}; etcd: Put, and a transaction of {BATCH} puts"),
        ],
        figures: cases.iter().flat_map(Case::figures).collect(),
        notes,
    })
}

async fn turn_of_etcd(cases: &mut [Case], effort: Effort) -> anyhow::Result<()> {
    let etcd = Etcd::start(3).await?;
    let leader = etcd.leader().await?;
    for case in cases {
        let pressure = case.pressure(effort);
        let connections = etcd.connect(leader, pressure.connections())?;
        case.theirs
            .push(closed_loop(&connections, case.work, pressure).await?);
    }
    Ok(())
}

async fn turn_of_ours(cases: &mut [Case], effort: Effort) -> anyhow::Result<()> {
    let shape = Shape {
        coordinators: 3,
        agents: 0,
    };
    let ours = Ours::start(shape, super::DEFAULT_TICK).await?;
    let (ours, leader) = ours.leader().await?;
    for case in cases {
        let pressure = case.pressure(effort);
        let connections = ours.connect(leader, pressure.connections())?;
        case.ours
            .push(closed_loop(&connections, case.work, pressure).await?);
    }
    ours.end().await
}
