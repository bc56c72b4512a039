//! Every value of `on_no_data` and `on_stall`: what it does, and how the wait before it ends.

use tidegate_shared::assignment::Counters;
use tidegate_shared::time::Span;
use tidegate_shared::verdict::threshold::Verdict;

use super::kind;
use crate::command::Action;
use crate::fixture::{START, World};
use crate::state::{Halted, Status};

/// One step of 10 % with a hold of 5 s, and a rule that wants 10 samples.
fn ruled(on_no_data: &str) -> World {
    let json = format!(
        r#"{{"bake":"10s","traffic":{{"steps":[{{"percent":10,"hold":"5s"}}]}},"on_no_data":{on_no_data},
            "rollback":{{"rules":[{{"metric":"http.error_rate","comparison":"greater_than",
                "threshold":0.1,"judge":"raw","window":"1m","min_samples":10}}]}}}}"#
    );
    let mut world = World::new(1, 1, &json, Status::Running);
    world.at_step(0, 10, Some(START));
    world.all_fulfilled();
    world
}

/// The agent tells of so many requests.
fn requests(world: &mut World, count: u64) {
    let new = world.new;
    world.report("a1", |report| {
        World::place_of(report, new).instances[0].counters = Counters {
            requests: count,
            ..Counters::default()
        };
    });
}

#[test]
fn on_no_data_waits_and_then_does_each_of_its_three() {
    for (count, verdict) in [(0, Verdict::NoData), (3, Verdict::Inconclusive)] {
        for (then, wanted) in [
            ("proceed", "StepDone"),
            ("halt", "Halt"),
            ("rollback", "TakeBack"),
        ] {
            let mut world = ruled(&format!(r#"{{"wait":"7s","then":"{then}"}}"#));
            world.now = START + Span::from_millis(11_999);
            requests(&mut world, count);
            assert_eq!(kind(world.action()), "nothing", "{then}, {verdict:?}");
            world.now = START + Span::from_secs(12);
            requests(&mut world, count);
            let action = world.action();
            match &action {
                Some(Action::StepDone { unverified }) => assert!(unverified),
                Some(Action::Halt { cause, evidence } | Action::TakeBack { cause, evidence }) => {
                    assert_eq!(cause.kind, "no_data");
                    assert_eq!(evidence[0].verdict, verdict);
                }
                other => panic!("{then}: {other:?}"),
            }
            assert_eq!(kind(action), wanted, "{then}, {verdict:?}");
        }
    }
}

#[test]
fn without_a_wait_of_its_own_on_no_data_waits_twice_the_hold() {
    let mut world = ruled(r#"{"then":"rollback"}"#);
    world.now = START + Span::from_millis(14_999);
    world.all_fulfilled();
    assert_eq!(kind(world.action()), "nothing");
    world.now = START + Span::from_secs(15);
    world.all_fulfilled();
    assert_eq!(kind(world.action()), "TakeBack");
}

#[test]
fn evidence_that_comes_while_it_waits_is_enough() {
    let mut world = ruled(r#"{"wait":"7s","then":"rollback"}"#);
    world.now = START + Span::from_secs(6);
    requests(&mut world, 10);
    assert_eq!(world.action(), Some(Action::StepDone { unverified: false }));
}

#[test]
fn a_halt_for_want_of_data_that_a_person_lifted_goes_on_unverified() {
    let mut world = ruled(r#"{"wait":"7s","then":"halt"}"#);
    world.now = START + Span::from_secs(12);
    world.all_fulfilled();
    let Some(Action::Halt { evidence, .. }) = world.action() else {
        panic!("{:?}", world.action());
    };
    world.change(|new| {
        new.evidence = evidence;
        new.halted = Some(Halted {
            since: START + Span::from_secs(12),
            kind: "no_data".to_owned(),
            message: String::new(),
        });
    });
    assert_eq!(kind(world.action()), "nothing", "it is halted");
    world.change(|new| new.halted = None);
    assert_eq!(world.action(), Some(Action::StepDone { unverified: true }));
}

/// Stuck at its only step: the agent does not hold the weight.
fn stuck(on_stall: &str) -> World {
    let json = format!(
        r#"{{"kind":"all_in","bake":"10s","deadlines":{{"stall":"1m"}},"on_stall":"{on_stall}"}}"#
    );
    let mut world = World::new(1, 1, &json, Status::Running);
    world.at_step(0, 100, Some(START));
    world
}

#[test]
fn on_stall_does_each_of_its_three() {
    for (on_stall, wanted) in [
        ("rollback", "TakeBack"),
        ("finalize", "Finalize"),
        ("halt", "Halt"),
    ] {
        let mut world = stuck(on_stall);
        let new = world.new;
        let not_held = |world: &mut World| {
            world.report("a1", |report| World::place_of(report, new).weight = None);
        };
        world.now = START + Span::from_millis(69_999);
        not_held(&mut world);
        assert_eq!(kind(world.action()), "nothing", "{on_stall}");
        world.now = START + Span::from_secs(70);
        not_held(&mut world);
        let action = world.action();
        match &action {
            Some(Action::TakeBack { cause, .. } | Action::Halt { cause, .. }) => {
                assert_eq!(cause.kind, "stall");
            }
            Some(Action::Finalize { unverified }) => assert!(!unverified, "nothing was asked"),
            other => panic!("{on_stall}: {other:?}"),
        }
        assert_eq!(kind(action), wanted, "{on_stall}");
    }
}

#[test]
fn a_stall_that_finalizes_says_what_was_not_verified() {
    let json = r#"{"kind":"all_in","bake":"10s","deadlines":{"stall":"1m"},"on_stall":"finalize",
        "on_no_data":{"wait":"0s"},
        "verification":[{"name":"smoke","http":{"path":"/","timeout":"1s"},"interval":"1s"}]}"#;
    let mut world = World::new(1, 1, json, Status::Running);
    world.at_step(0, 100, Some(START));
    world.now = START + Span::from_hours(1);
    let new = world.new;
    world.report("a1", |report| World::place_of(report, new).weight = None);
    assert_eq!(world.action(), Some(Action::Finalize { unverified: true }));
}
