//! From `FINALIZING` and the way back to the end, and what is left after it.

use tidegate_shared::assignment::{Role, WishedState};
use tidegate_shared::time::Span;
use tidegate_shared::weight::Weight;

use super::{kind, world};
use crate::command::Action;
use crate::desired::desired;
use crate::fixture::{START, World, name};
use crate::state::Status;

#[test]
fn finalizing_drains_then_stops_then_settles() {
    let mut world = world(Status::Finalizing);
    assert_eq!(world.action(), None);
    let old = world.old;
    for agent in ["a1", "a2", "a3"] {
        world.report(agent, |report| World::place_of(report, old).drained = false);
    }
    assert_eq!(world.action(), None);
    assert!(world.waits_for().contains("drains"));
    world.all_fulfilled();
    assert_eq!(world.action(), Some(Action::Drained));
    world.change(|new| new.drained = true);
    assert_eq!(world.action(), None, "the old version is still there");
    world.report("a1", |_| {});
    world.report("a2", |_| {});
    assert_eq!(world.action(), None);
    world.now = START + Span::from_secs(31);
    world.report("a1", |_| {});
    world.report("a2", |_| {});
    assert_eq!(
        world.action(),
        Some(Action::Settled {
            leftovers: vec![name("a3")]
        })
    );
}

#[test]
fn going_back_settles_when_the_loser_is_gone_and_the_winner_holds_all() {
    for status in [Status::RollingBack, Status::Cancelling] {
        let mut world = world(status);
        let (old, new) = (world.old, world.new);
        world.change(|new| new.fewest_outstanding = Some(0));
        for agent in ["a1", "a2", "a3"] {
            world.report(agent, |report| {
                World::place_of(report, old).weight = Some(Weight::share(9, 10));
            });
        }
        assert_eq!(world.action(), None);
        assert!(world.waits_for().contains("100 % of the active"));
        world.all_fulfilled();
        let settled = Action::Settled {
            leftovers: Vec::new(),
        };
        assert_eq!(world.action(), Some(settled));
        world.report("a2", |report| {
            let mut place = World::place_of(report, old).clone();
            place.deployment = new;
            report.places.push(place);
        });
        assert_eq!(world.action(), None);
        world.now = START + Span::from_mins(15);
        world.observed.leading_since = world.now;
        let Some(Action::Expire { leftovers }) = world.action() else {
            panic!("{:?}", world.action());
        };
        assert_eq!(leftovers, vec![name("a2")]);
    }
}

#[test]
fn leftovers_go_when_they_are_seen_gone() {
    let mut world = world(Status::RolledBack);
    let new = world.new;
    world.change(|new| new.leftovers = vec![name("a1"), name("a2"), name("gone")]);
    world.scope(|scope| {
        scope.candidate = None;
        scope.retired = vec![new];
    });
    world.report("a1", |_| {});
    assert_eq!(
        world.action(),
        Some(Action::LeftoversGone {
            agents: vec![name("a1"), name("gone")]
        })
    );
    let wish = desired(&world.state, &name("a2"));
    assert_eq!(wish.items[1].state, WishedState::Absent);
    assert_eq!(wish.items[1].role, Role::Retired);
}

#[test]
fn deleting_settles_when_nothing_is_left() {
    let mut world = world(Status::Pending);
    let old = world.old;
    world.scope(|scope| {
        scope.waiting.clear();
        scope.status = crate::state::ScopeStatus::Stopping;
    });
    let delete = |old: &mut crate::state::Deployment| old.status = Status::Deleting;
    world.state.deployments.change(&old, delete).unwrap();
    world.report("a1", |_| {});
    world.report("a2", |_| {});
    assert_eq!(world.action(), None);
    world.report("a3", |_| {});
    assert_eq!(kind(world.action()), "Settled");
}

#[test]
fn every_unfinished_status_says_what_it_waits_for() {
    for status in Status::ALL.into_iter().filter(|status| !status.is_end()) {
        if status == Status::Deleting {
            continue;
        }
        let mut world = world(status);
        assert!(!world.waits_for().is_empty(), "{status}");
        world.all_fulfilled();
        assert!(!world.waits_for().is_empty(), "{status}");
        let plan = world.plan();
        assert!(plan.next_wakeup.is_none_or(|at| at > world.now), "{status}");
    }
}
