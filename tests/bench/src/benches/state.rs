//! The state machine and the planner in one process, without a network: what a command and a look of
//! the planner cost at growing sizes, and what a snapshot and a restart cost at the largest.
//!
//! The reference of each line is the same work where there is least, in the same run.

mod groups;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tidegate_coordinator::raft::snapshot::{read_state, write_state};
use tidegate_coordinator::storage::disk::FolderDisk;
use tidegate_coordinator::storage::history::HistoryStore;
use tidegate_coordinator::storage::log::{Mark, Membership};
use tidegate_coordinator::storage::snapshot::SnapshotStore;
use tidegate_coordinator_core::state::Archive;
use tidegate_coordinator_core::{Archived, Past};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::DeploymentId;

use crate::Effort;
use crate::measured::{Pair, alone};
use crate::report::{Better, Goal, Report};
use crate::stats::{Numbers, median};
use crate::world::{World, scope};

/// Scopes, from the fewest to the most.
const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
const SHORT_SIZES: [usize; 3] = [20, 40, 80];
/// Ended deployments in the history.
const ENDED: u64 = 1_000_000;
/// Parameters that are written into an empty cluster.
const PARAMETERS: u64 = 60_000;
/// Rows in one write to the history.
const ROWS: u64 = 5_000;
const CLUSTER: &str = "01BENCH";

/// How much is done of each.
struct Amounts {
    sizes: [usize; 3],
    ended: u64,
    parameters: u64,
    /// Of each kind in one turn.
    turns: usize,
}

impl Amounts {
    const fn of(effort: Effort) -> Self {
        if effort.short {
            Self {
                sizes: SHORT_SIZES,
                ended: 500,
                parameters: 400,
                turns: 10,
            }
        } else {
            Self {
                sizes: SIZES,
                ended: ENDED,
                parameters: PARAMETERS,
                turns: 200,
            }
        }
    }
}

/// Measures.
pub(super) async fn run(effort: Effort) -> anyhow::Result<Report> {
    tokio::task::spawn_blocking(move || measure(effort)).await?
}

fn measure(effort: Effort) -> anyhow::Result<Report> {
    let amounts = Amounts::of(effort);
    let mut figures = parameters(effort, &amounts)?;
    let mut worlds = Vec::new();
    for size in amounts.sizes {
        worlds.push(World::with_scopes(size)?);
    }
    figures.extend(growth(effort, &amounts, &mut worlds)?);
    let mut largest = worlds.pop().context("no size")?;
    drop(worlds);
    // The snapshot is one of a state without groups.
    let settled = largest.state.clone();
    figures.extend(groups::figures(effort, &amounts, &mut largest)?);
    largest.state = settled;
    let (more, notes) = restart(effort, &amounts, largest)?;
    figures.extend(more);
    Ok(Report {
        bench: "state",
        versions: vec![(
            "tidegate".to_owned(),
            crate::ours::Ours::version(),
        )],
        method: vec![
            "One thread, no network, no log: a command is what `apply` does with it, and the view that readers get.".to_owned(),
            format!(
                "Scopes: each with an active deployment, ten of them on one agent. The reference is the same with {} scopes.",
                amounts.sizes[0]
            ),
            format!(
                "The history holds {} ended deployments, made from one that was rolled out, each with one line of the audit log.",
                amounts.ended
            ),
        ],
        figures,
        notes,
    })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// An empty cluster takes parameters.
fn parameters(effort: Effort, amounts: &Amounts) -> anyhow::Result<Vec<crate::report::Figure>> {
    let mut figures = Vec::new();
    for batch in [1_u64, 64] {
        let mut samples = Vec::new();
        for _ in 0..effort.repetitions {
            let mut world = World::new()?;
            let mut numbers = Numbers::new(batch);
            let mut took = Duration::ZERO;
            for first in (0..amounts.parameters).step_by(batch as usize) {
                let items = (first..first + batch)
                    .map(|number| world.parameter(number, &mut numbers))
                    .collect::<anyhow::Result<Vec<_>>>()?;
                took += world.enter(items)?.0;
            }
            let count = amounts.parameters.next_multiple_of(batch);
            samples.push(micros(took) / count as f64);
        }
        figures.push(alone(
            format!(
                "one of {} new parameters, {batch} in an entry",
                amounts.parameters
            ),
            "µs",
            Better::Lower,
            samples,
            Goal::AtMost(100.0),
        ));
    }
    Ok(figures)
}

/// One kind of cost.
type Cost = fn(&Costs) -> &Vec<f64>;

/// One value per turn of what is done at one size.
#[derive(Default)]
struct Costs {
    parameter: Vec<f64>,
    rollout: Vec<f64>,
    look: Vec<f64>,
    wish: Vec<f64>,
    idle: Vec<f64>,
    idle_waiting: Vec<f64>,
    heard: Vec<f64>,
}

fn growth(
    effort: Effort,
    amounts: &Amounts,
    worlds: &mut [World],
) -> anyhow::Result<Vec<crate::report::Figure>> {
    let mut costs: Vec<Costs> = worlds.iter().map(|_| Costs::default()).collect();
    for turn in 0..effort.repetitions {
        for (position, world) in worlds.iter_mut().enumerate() {
            let size = amounts.sizes[position];
            turn_of(amounts, world, size, turn, &mut costs[position])?;
        }
    }
    for (position, world) in worlds.iter_mut().enumerate() {
        let waiting = amounts.sizes[position] / 10;
        let scopes = (0..waiting)
            .map(scope)
            .collect::<anyhow::Result<Vec<_>>>()?;
        world.have_wait(scopes)?;
        world.look();
        for _ in 0..effort.repetitions {
            let looks: Vec<f64> = (0..amounts.turns).map(|_| micros(world.look())).collect();
            costs[position].idle_waiting.extend(median(&looks));
        }
    }
    let mut figures = Vec::new();
    let (first, more) = costs.split_first().context("no size")?;
    let reference = "the fewest scopes";
    for (position, cost) in more.iter().enumerate() {
        let size = amounts.sizes[position + 1];
        let kinds: [(&str, Cost, Goal); 7] = [
            (
                "a parameter written anew",
                |c| &c.parameter,
                Goal::AtMostAndRatio(100.0, 1.3),
            ),
            (
                "a command of a rollout",
                |c| &c.rollout,
                Goal::AtMostAndRatio(100.0, 1.3),
            ),
            (
                "planner: nothing is due",
                |c| &c.idle,
                Goal::AtMost(1_000.0),
            ),
            (
                "planner: nothing is due, a tenth wait",
                |c| &c.idle_waiting,
                Goal::AtMost(1_000.0),
            ),
            ("planner: news of one agent", |c| &c.heard, Goal::None),
            (
                "planner: news of one scope",
                |c| &c.look,
                Goal::RatioAtMost(1.3),
            ),
            ("the wish of one agent", |c| &c.wish, Goal::RatioAtMost(1.3)),
        ];
        for (name, values, goal) in kinds {
            let pair = Pair {
                ours: values(cost).clone(),
                theirs: values(first).clone(),
            };
            figures.push(pair.figure(
                format!("{name}, {size} scopes"),
                "µs",
                Better::Lower,
                reference,
                goal,
            ));
        }
    }
    Ok(figures)
}

fn turn_of(
    amounts: &Amounts,
    world: &mut World,
    size: usize,
    turn: usize,
    costs: &mut Costs,
) -> anyhow::Result<()> {
    let mut numbers = Numbers::new(turn as u64 + 1);
    let (mut commands, mut rollouts) = (Vec::new(), Vec::new());
    for _ in 0..amounts.turns {
        let item = world.parameter(numbers.draw() % 1_000, &mut numbers)?;
        commands.push(micros(world.enter(vec![item])?.0));
    }
    let (mut looks, mut wishes) = (Vec::new(), Vec::new());
    for _ in 0..amounts.turns / 10 {
        let number = (numbers.draw() % size as u64) as usize;
        let done = world.roll_out(number)?;
        rollouts.extend(done.commands.into_iter().map(micros));
        looks.extend(done.looks.into_iter().map(micros));
        wishes.extend(done.wishes.into_iter().map(micros));
    }
    let idle: Vec<f64> = (0..amounts.turns).map(|_| micros(world.look())).collect();
    let mut heard = Vec::new();
    for _ in 0..amounts.turns {
        world.report((numbers.draw() % size as u64) as usize / 10)?;
        heard.push(micros(world.look()));
    }
    costs.parameter.extend(median(&commands));
    costs.rollout.extend(median(&rollouts));
    costs.look.extend(median(&looks));
    costs.wish.extend(median(&wishes));
    costs.idle.extend(median(&idle));
    costs.heard.extend(median(&heard));
    Ok(())
}

/// The largest state goes to the disk and comes back, with a history beside it.
fn restart(
    effort: Effort,
    amounts: &Amounts,
    mut world: World,
) -> anyhow::Result<(Vec<crate::report::Figure>, Vec<String>)> {
    let folder = tempfile::Builder::new().prefix("tidegate-").tempdir()?;
    let past = folder.path().join("history.redb");
    fill(&past, amounts.ended, &mut world)?;
    let disk = Arc::new(FolderDisk::new(&folder.path().join("snapshots"))?);
    let store = SnapshotStore::new(disk, CLUSTER);
    let mark = Mark {
        index: world.index,
        term: 1,
    };
    let membership = Membership::default();
    let (mut written, mut read, mut started) = (Vec::new(), Vec::new(), Vec::new());
    let mut bytes = 0;
    for _ in 0..effort.repetitions {
        let began = Instant::now();
        bytes = write_state(&store, mark, &membership, &world.state)?.length;
        written.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        let found = store.usable(|_| {})?;
        let file = found.first().context("no snapshot was found")?;
        let state = read_state(&store, file)?;
        read.push(began.elapsed().as_secs_f64());
        let needed = state.extent().context("nothing has left the state")?;
        let history = HistoryStore::open(&past, CLUSTER, Some((needed, world.index)))?;
        started.push(began.elapsed().as_secs_f64());
        ensure!(
            history.tail()?.deployments == needed.deployments,
            "rows are missing"
        );
        ensure!(state == world.state, "another state came back");
        history.close();
    }
    let size = amounts.sizes[2];
    let figure = |name: &str, samples, most| {
        alone(
            format!("{name}, {size} scopes"),
            "s",
            Better::Lower,
            samples,
            Goal::AtMost(most),
        )
    };
    let figures = vec![
        figure("a snapshot is written", written, 3.0),
        figure("a snapshot is checked and read", read, 5.0),
        figure("a node has its state and history back", started, 5.0),
    ];
    let file = std::fs::metadata(&past)?.len();
    let notes = vec![format!(
        "the snapshot has {} MiB, the history {} MiB",
        bytes >> 20,
        file >> 20
    )];
    Ok((figures, notes))
}

/// A history of so many ended deployments, to which the state is told to belong.
fn fill(path: &Path, ended: u64, world: &mut World) -> anyhow::Result<()> {
    let history = HistoryStore::open(path, CLUSTER, None)?;
    let deployment = world.state.deployments.values().next();
    let model = deployment.context("nothing was deployed")?.clone();
    let (_, applied) = {
        let item = world.parameter(0, &mut Numbers::new(3))?;
        world.enter(vec![item])?
    };
    let events = applied.into_iter().flat_map(|applied| applied.events);
    let mut event = events.last().context("nothing happened")?;
    let mut hash = Digest::ZERO;
    for first in (1..=ended).step_by(ROWS as usize) {
        let mut rows = Vec::new();
        for number in first..(first + ROWS).min(ended + 1) {
            let mut past = Past {
                number,
                index: number,
                made: number,
                deployment: model.clone(),
            };
            past.deployment.id = DeploymentId::derived(model.meta.created_at, "past", number, 0);
            past.deployment.short = past.deployment.id.short();
            rows.push(Archived::Deployment(Box::new(past)));
            event.index = number;
            event.ordinal = 0;
            event.previous_hash = hash;
            event = event.sealed();
            hash = event.hash;
            rows.push(Archived::Event(Box::new(event.clone())));
        }
        history.write(rows.iter().map(Archived::row))?;
    }
    history.sync()?;
    history.close();
    world.index = world.index.max(ended) + 1;
    world.state.last_hash = Some(hash);
    world.state.archive = Some(Archive {
        events: ended,
        deployments: ended,
    });
    Ok(())
}
