//! `RUNNING`: steps, rules, lost agents, the bake.

use std::sync::Arc;

use tidegate_shared::assignment::Counters;
use tidegate_shared::time::Span;

use super::{kind, world};
use crate::command::{Action, Actor};
use crate::fixture::{START, World, name};
use crate::state::{EndCause, Halted, Paused, Status};

#[test]
fn running_opens_steps_holds_and_bakes() {
    let mut world = world(Status::Running);
    world.all_fulfilled();
    assert_eq!(world.action(), Some(Action::StepDone { unverified: false }));
    world.at_step(0, 10, None);
    assert_eq!(world.action(), None, "the reports hold 0 %");
    world.all_fulfilled();
    assert_eq!(world.action(), Some(Action::StepReached));
    world.at_step(0, 10, Some(START));
    assert_eq!(world.action(), None);
    assert_eq!(world.plan().next_wakeup, Some(START + Span::from_secs(5)));
    world.now = START + Span::from_secs(5);
    world.all_fulfilled();
    assert_eq!(world.action(), Some(Action::StepDone { unverified: false }));
    world.at_step(1, 100, Some(START));
    world.all_fulfilled();
    assert_eq!(world.action(), None, "a manual hold");
    assert!(world.waits_for().contains("promote"));
    world.change(|new| new.traffic.step.as_mut().unwrap().promoted = true);
    assert!(world.waits_for().contains("bake"), "{}", world.waits_for());
    world.now = START + Span::from_secs(10);
    world.all_fulfilled();
    assert_eq!(world.action(), Some(Action::Finalize { unverified: false }));
}

#[test]
fn an_old_acknowledgement_does_not_count() {
    let mut world = world(Status::Running);
    world.at_step(0, 10, None);
    world.all_fulfilled();
    world.at_step(0, 10, None);
    world.wish_changed();
    assert_eq!(world.action(), None);
    world.report("a1", |_| {});
    world.report("a3", |_| {});
    assert_eq!(world.action(), None);
    world.report("a2", |_| {});
    assert_eq!(world.action(), Some(Action::StepReached));
}

#[test]
fn lost_agents_halt_and_let_go() {
    let mut world = world(Status::Running);
    world.at_step(0, 10, Some(START));
    world.all_fulfilled();
    world.now = START + Span::from_secs(31);
    world.report("a1", |_| {});
    let Some(Action::Halt { cause, .. }) = world.action() else {
        panic!("{:?}", world.action());
    };
    assert_eq!(cause.kind, "lost_agents");
    world.change(|new| {
        new.halted = Some(Halted {
            since: START,
            kind: "lost_agents".to_owned(),
            message: String::new(),
        });
        new.lost = vec![name("a2"), name("a3")];
    });
    assert_eq!(world.action(), None);
    world.report("a2", |_| {});
    assert_eq!(world.action(), Some(Action::Unhalt));
}

const RULED: &str = r#"{"bake":"10s","traffic":{"steps":[{"percent":10,"hold":"5s"}]},"rollback":{"rules":[
    {"metric":"http.error_rate","comparison":"greater_than","threshold":0.1,"judge":"raw","window":"1s"}]}}"#;

fn requests(world: &mut World, count: u64, errors: u64) {
    let new = world.new;
    world.report("a1", |report| {
        World::place_of(report, new).instances[0].counters = Counters {
            requests: count,
            server_errors: errors,
            ..Counters::default()
        };
    });
}

#[test]
fn a_rule_that_is_met_takes_it_back_even_if_paused() {
    let mut world = World::new(1, 1, RULED, Status::Running);
    world.at_step(0, 10, Some(START));
    world.change(|new| {
        new.paused = Some(Paused {
            since: START,
            by: Actor::System,
            reason: String::new(),
        });
    });
    world.now = START + Span::from_millis(100);
    requests(&mut world, 0, 0);
    world.now = START + Span::from_millis(350);
    requests(&mut world, 201, 43);
    let Some(Action::TakeBack { cause, evidence }) = world.action() else {
        panic!("{:?}", world.action());
    };
    assert_eq!(
        cause.message,
        "http.error_rate 0.214 > 0.1 over 1s: 43 of 201 requests failed, step 1 (10 %)"
    );
    assert_eq!((evidence[0].samples, evidence[0].errors), (201, 43));
    world.change(|new| new.status = Status::Finalizing);
    assert_eq!(kind(world.action()), "TakeBack");
    world.change(|new| new.return_at_finalized = Some(EndCause::Rule));
    assert_eq!(kind(world.action()), "NoteEvidence");
    world.change(|new| new.evidence = evidence);
    assert_ne!(kind(world.action()), "NoteEvidence", "noted once");
}

#[test]
fn a_step_without_data_waits_and_goes_on_unverified() {
    let mut world = World::new(1, 1, RULED, Status::Running);
    world.at_step(0, 10, Some(START));
    world.now = START + Span::from_secs(5);
    world.all_fulfilled();
    assert_eq!(world.action(), None);
    assert!(
        world.waits_for().contains("evidence"),
        "{}",
        world.waits_for()
    );
    world.now = START + Span::from_secs(15);
    world.all_fulfilled();
    assert_eq!(world.action(), Some(Action::StepDone { unverified: true }));
}

#[test]
fn a_fast_one_skips_the_analysis() {
    let mut world = World::new(1, 1, RULED, Status::Running);
    world.change(|new| Arc::make_mut(&mut new.origin).fast = true);
    world.at_step(0, 100, Some(START));
    requests(&mut world, 0, 0);
    world.now = START + Span::from_millis(350);
    requests(&mut world, 100, 100);
    assert_eq!(world.action(), Some(Action::Finalize { unverified: false }));
}
