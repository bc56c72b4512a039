//! Requests are done once; the audit log is a chain.

use std::sync::Arc;

use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::time::Span;

use super::world::{World, create_release, user};
use crate::command::RequestKey;
use crate::event::verify_chain;
use crate::state::PACKED_LEVEL;

#[test]
fn a_request_is_done_once() {
    let mut world = World::new();
    let item = world.item(user("ann"), create_release("9.0.0"));
    let first = world.apply(item.clone());
    assert!(!first.events.is_empty());
    let before = world.state.clone();
    let second = world.apply(item.clone());
    assert_eq!(first.outcome, second.outcome);
    assert!(second.events.is_empty());
    assert_eq!(world.state, before);
    let mut other = item.clone();
    other.command = Box::new(create_release("9.0.1"));
    let reused = world.apply(other).outcome.unwrap_err();
    assert_eq!(reused.reason, Reason::RequestIdReused);
    world.wait(Span::from_hours(24) + Span::from_millis(1));
    let late = world.apply(item).outcome.unwrap_err();
    assert_eq!(late.reason, Reason::TooOld);
}

#[test]
fn refusals_are_remembered_too_and_times_are_bounded() {
    let mut world = World::new();
    let mut item = world.item(user("ann"), create_release("9.0.0"));
    world.now = world.now - Span::from_hours(2);
    world.state.at = world.now;
    let early = world.apply(item.clone()).outcome.unwrap_err();
    assert_eq!(early.reason, Reason::FromTheFuture);
    world.now = world.now + Span::from_hours(1);
    item.command = Box::new(super::world::stop(false));
    let refused = world.apply(item.clone()).outcome.unwrap_err();
    let events = world.state.events.len();
    assert_eq!(world.apply(item).outcome.unwrap_err(), refused);
    assert_eq!(world.state.events.len(), events);
}

#[test]
fn memory_of_requests_is_bounded() {
    let mut world = World::new();
    for round in 0..40 {
        world.must(create_release(&format!("9.0.{round}")));
        world.wait(Span::from_hours(1));
    }
    assert!(
        world.state.requests.len() <= 26,
        "{}",
        world.state.requests.len()
    );
    let id = world.deploy("1.0.0");
    world.finish(id);
    assert!(!world.state.planner_requests.is_empty());
    for _ in 0..10 {
        world.wait(Span::from_hours(1));
        world.must(super::world::join(&format!("b{}", world.index)));
    }
    assert!(world.state.planner_requests.is_empty());
}

#[test]
fn time_never_goes_back() {
    let mut world = World::new();
    let at = world.state.at;
    world.now = world.now - Span::from_mins(30);
    world.must(create_release("9.0.0"));
    assert_eq!(world.state.at, at);
}

#[test]
fn a_flipped_bit_in_the_audit_log_is_named() {
    let world = World::with_active();
    let events: Vec<_> = world.state.events.values().cloned().collect();
    assert_eq!(verify_chain(&events), Ok(world.state.last_hash.unwrap()));
    assert_eq!(world.state.verify_chain(), Ok(()));
    for position in 0..events.len() {
        let mut broken = events.clone();
        let text = std::mem::take(&mut broken[position].message);
        let mut bytes = text.into_bytes();
        bytes[0] ^= 1;
        broken[position].message = String::from_utf8(bytes).unwrap();
        let found = verify_chain(&broken).unwrap_err();
        assert_eq!(
            (found.index, found.ordinal),
            (events[position].index, events[position].ordinal)
        );
        if position + 1 < events.len() {
            let mut cut = events.clone();
            cut.remove(position);
            let found = verify_chain(&cut).unwrap_err();
            assert_eq!(found.index, events[position + 1].index);
        }
    }
}

#[test]
fn of_very_many_moves_of_the_planner_only_the_newest_are_remembered() {
    for (level, forgets) in [(PACKED_LEVEL - 1, false), (PACKED_LEVEL, true)] {
        let mut world = World::with_active();
        let known = world.state.planner_requests.get_max();
        let known = known.map(|(_, key)| world.state.requests[key].clone());
        let many = 11_000_u64;
        for number in 0..many {
            let key = RequestKey::Planner(Digest::of(&number.to_be_bytes()));
            world.state.planner_requests.insert((number, 1), key);
            world.state.requests.insert(key, known.clone().unwrap());
        }
        Arc::make_mut(world.state.cluster.as_mut().unwrap()).level = level;
        world.is_checked = false;
        let before = world.state.planner_requests.len();
        world.must(create_release("9.0.0"));
        let forgotten = before - world.state.planner_requests.len();
        assert_eq!(forgotten, if forgets { 4 } else { 0 });
        assert_eq!(world.state.planner_requests.contains_key(&(0, 1)), !forgets);
        let first = RequestKey::Planner(Digest::of(&0_u64.to_be_bytes()));
        assert_eq!(world.state.requests.contains_key(&first), !forgets);
    }
}
