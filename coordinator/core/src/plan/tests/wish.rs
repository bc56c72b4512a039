//! What agents are told meanwhile: weights, counts, batches, newcomers.

use std::sync::Arc;

use tidegate_shared::assignment::{InstanceState, WishedState};
use tidegate_shared::weight::Weight;

use super::{kind, world};
use crate::command::Action;
use crate::desired::desired;
use crate::fixture::{START, World, meta, name};
use crate::state::Status;

#[test]
fn weights_follow_the_status() {
    use WishedState::{Absent, Drained, Running, Staged};
    for (status, old, new) in [
        (Status::Pending, (Running, 10_000), None),
        (Status::Creating, (Running, 10_000), Some((Staged, 0))),
        (
            Status::WaitingForInstances,
            (Running, 10_000),
            Some((Running, 0)),
        ),
        (Status::Running, (Running, 9_000), Some((Running, 1_000))),
        (Status::Finalizing, (Drained, 0), Some((Running, 10_000))),
        (Status::RollingBack, (Running, 10_000), Some((Absent, 0))),
        (Status::Cancelling, (Running, 10_000), Some((Absent, 0))),
    ] {
        let mut world = world(status);
        if status == Status::Running {
            world.at_step(0, 10, None);
        }
        let found = desired(&world.state, &name("a1")).items;
        let of = |id| {
            let item = found.iter().find(|item| item.deployment == id)?;
            Some((item.state, item.weight.basis_points()))
        };
        assert_eq!(of(world.old), Some(old), "{status}");
        assert_eq!(of(world.new), new, "{status}");
    }
}

#[test]
fn a_newcomer_gets_the_active_version_and_follows_at_the_end() {
    let mut world = world(Status::Running);
    world.at_step(0, 10, None);
    let mut agent = world.state.agents[&name("a1")].clone();
    agent.meta = meta();
    world.state.agents.insert(name("b9"), agent);
    let wish = desired(&world.state, &name("b9"));
    assert_eq!(wish.items.len(), 1);
    assert_eq!(wish.items[0].deployment, world.old);
    assert_eq!(wish.items[0].weight, Weight::FULL);
    world.change(|new| {
        new.status = Status::Finalizing;
        new.drained = true;
    });
    world.all_fulfilled();
    assert_eq!(
        world.action(),
        Some(Action::Settled {
            leftovers: vec![name("b9")]
        })
    );
}

const ROLLING: &str = r#"{"kind":"rolling","batch":{"max_unavailable":2,"hold":"5s"}}"#;

/// (old, new, weight of new) per agent.
fn split(world: &World) -> Vec<(u32, u32, u16)> {
    let agents = ["a1", "a2", "a3"].into_iter();
    agents
        .map(|agent| {
            let wish = desired(&world.state, &name(agent));
            let of = |id| {
                let item = wish.items.iter().find(|item| item.deployment == id);
                item.map_or((0, 0), |item| (item.count, item.weight.basis_points()))
            };
            let (old, new) = (of(world.old), of(world.new));
            assert_eq!(old.1 + new.1, 10_000, "{wish:?}");
            (old.0, new.0, new.1)
        })
        .collect()
}

#[test]
fn rolling_starts_the_new_before_the_old_stops_and_the_other_way_back() {
    let mut world = World::new(3, 3, ROLLING, Status::WaitingForInstances);
    world.change(|new| new.traffic.replaced = 2);
    assert_eq!(split(&world), [(3, 2, 0), (3, 0, 0), (3, 0, 0)]);
    world.all_fulfilled();
    assert_eq!(world.action(), Some(Action::InstancesReady));
    world.change(|new| new.status = Status::Running);
    world.at_step(0, 0, Some(START));
    world.change(|new| new.traffic.desired = Weight::share(2, 9));
    assert_eq!(split(&world), [(1, 2, 6_666), (3, 0, 0), (3, 0, 0)]);
    world.change(|new| new.traffic.replaced = 4);
    assert_eq!(split(&world), [(1, 3, 6_666), (3, 1, 0), (3, 0, 0)]);
    assert_eq!(world.action(), None);
    world.all_fulfilled();
    assert_eq!(world.action(), Some(Action::BatchDone));
    world.change(|new| new.traffic.desired = Weight::share(4, 9));
    assert_eq!(split(&world), [(0, 3, 10_000), (2, 1, 3_333), (3, 0, 0)]);

    world.change(|new| {
        new.status = Status::RollingBack;
        new.traffic.replaced = 2;
        new.fewest_outstanding = Some(0);
    });
    assert_eq!(split(&world), [(1, 3, 10_000), (3, 1, 3_333), (3, 0, 0)]);
    world.wish_changed();
    assert_eq!(world.action(), None, "nobody has answered the new wish");
    let old = world.old;
    for agent in ["a1", "a2", "a3"] {
        world.report(agent, |report| {
            World::place_of(report, old).instances[0].state = InstanceState::Starting;
        });
    }
    assert_eq!(world.action(), None, "the old ones are not up yet");
    world.all_fulfilled();
    assert_eq!(world.action(), Some(Action::BatchDone));
    world.change(|new| {
        new.traffic.replaced = 0;
        new.traffic.desired = Weight::ZERO;
    });
    assert_eq!(split(&world), [(3, 0, 0), (3, 0, 0), (3, 0, 0)]);
    world.all_fulfilled();
    assert_eq!(kind(world.action()), "Settled");
}

#[test]
fn rolling_without_overlap_stops_the_old_first() {
    let strategy = r#"{"kind":"rolling","batch":{"max_unavailable":1,"overlap":false}}"#;
    let mut world = World::new(3, 1, strategy, Status::WaitingForInstances);
    world.change(|new| new.traffic.replaced = 1);
    assert_eq!(split(&world), [(0, 1, 10_000), (1, 0, 0), (1, 0, 0)]);
    let wish = desired(&world.state, &name("a1"));
    assert!(wish.items.iter().all(|item| item.may_interrupt));
    world.all_fulfilled();
    assert_eq!(world.action(), Some(Action::InstancesReady));
}

#[test]
fn parameters_go_before_the_assets_own_environment() {
    let mut world = world(Status::Running);
    world.change(|new| {
        let parameter = crate::state::ResolvedParameter {
            value: "scope".to_owned(),
            source: crate::state::Source::Scope,
            secret: None,
            file: None,
        };
        Arc::make_mut(&mut new.origin)
            .parameters
            .insert("A".to_owned(), parameter);
    });
    let wish = desired(&world.state, &name("a1"));
    let env = |id| {
        let item = wish.items.iter().find(|item| item.deployment == id);
        item.unwrap().run.env["A"].clone()
    };
    assert_eq!(env(world.old), "asset");
    assert_eq!(env(world.new), "scope");
}
