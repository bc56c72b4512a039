//! A large group in the largest state: what it costs to make it, to hear of one member, and to tell
//! people of it; and all of its members at once, without agents of their own.

use std::time::Duration;

use anyhow::Context as _;
use tidegate_shared::id::Name;
use tidegate_shared::time::Span;

use super::{Amounts, micros};
use crate::Effort;
use crate::measured::alone;
use crate::report::{Better, Figure, Goal};
use crate::stats::median;
use crate::world::{World, scope};

/// Members of the group: as many as one may have.
const MEMBERS: usize = 10_000;
/// One member every 10 s, so that all but a few wait.
const LINEAR: &str = r#"{"kind":"linear","interval":"10s","gate":"none"}"#;
const AT_ONCE: &str = r#"{"kind":"all_at_once"}"#;
/// 2,000 members a second.
const PER_MEMBER: f64 = 500.0;

/// One value per turn.
#[derive(Default)]
struct Costs {
    made: Vec<f64>,
    command: Vec<f64>,
    heard: Vec<f64>,
    idle: Vec<f64>,
    view: Vec<f64>,
    at_once: Vec<f64>,
}

/// Measures, and leaves the world with its groups at an end but one.
pub(super) fn figures(
    effort: Effort,
    amounts: &Amounts,
    world: &mut World,
) -> anyhow::Result<Vec<Figure>> {
    let members = MEMBERS.min(amounts.sizes[2]);
    let scopes = (0..members)
        .map(scope)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut costs = Costs::default();
    for turn in 0..effort.repetitions {
        let version = ["2.0.0", "1.0.0"][turn % 2];
        at_once(world, &scopes, version, &mut costs)?;
    }
    one_by_one(effort, amounts, world, &scopes, &mut costs)?;
    let figure = |name: &str, unit, samples, goal| {
        let name = format!("{name}, a group of {members}");
        alone(name, unit, Better::Lower, samples, goal)
    };
    Ok(vec![
        figure(
            "its entry, µs for each member",
            "µs",
            costs.made,
            Goal::None,
        ),
        figure(
            "a member's command",
            "µs",
            costs.command,
            Goal::AtMost(100.0),
        ),
        figure("planner: news of a member", "µs", costs.heard, Goal::None),
        figure(
            "planner: nothing is due",
            "µs",
            costs.idle,
            Goal::AtMost(1_000.0),
        ),
        figure("what people are told", "ms", costs.view, Goal::None),
        figure(
            "all at once, µs for each member until it has ended",
            "µs",
            costs.at_once,
            Goal::AtMost(PER_MEMBER),
        ),
    ])
}

fn at_once(
    world: &mut World,
    scopes: &[Name],
    version: &str,
    costs: &mut Costs,
) -> anyhow::Result<()> {
    let (group, made) = world.group(scopes.to_vec(), version, AT_ONCE)?;
    let took = world.drive_to_the_end(group)?;
    let each = |time: Duration| micros(time) / scopes.len() as f64;
    costs.made.push(each(made));
    costs.at_once.push(each(made + took));
    Ok(())
}

fn one_by_one(
    effort: Effort,
    amounts: &Amounts,
    world: &mut World,
    scopes: &[Name],
    costs: &mut Costs,
) -> anyhow::Result<()> {
    let (group, _) = world.group(scopes.to_vec(), "3.0.0", LINEAR)?;
    // It begins, and the first one starts.
    world.drive(Span::ZERO, 1)?;
    for _ in 0..effort.repetitions {
        let (mut entries, mut looks) = (Vec::new(), Vec::new());
        for _ in 0..amounts.turns.div_ceil(20) {
            let driven = world.drive(Span::from_secs(10), 1)?;
            entries.extend(driven.entries.into_iter().map(micros));
            looks.extend(driven.looks.into_iter().map(micros));
        }
        let idle: Vec<f64> = (0..amounts.turns).map(|_| micros(world.look())).collect();
        costs
            .command
            .push(median(&entries).context("nobody moved")?);
        costs.heard.push(median(&looks).context("nobody looked")?);
        costs.idle.extend(median(&idle));
        costs.view.push(micros(world.view_of(group)?) / 1_000.0);
    }
    Ok(())
}
