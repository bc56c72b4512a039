//! Checks between steps: they gate the step, take it back, and are gone on without; what every
//! value of `on_no_data` does with them.

use tidegate_shared::measurement::{ObservedCheck, Sample};
use tidegate_shared::time::Span;
use tidegate_shared::verdict::check::Outcome;

use super::kind;
use crate::command::{Action, Actor};
use crate::deployment::checks::moment;
use crate::fixture::{START, World, name};
use crate::observed::Observed;
use crate::state::{CheckRecord, Halted, Paused, Status};

fn checked(rest: &str) -> World {
    let json = format!(
        r#"{{"bake":"10s","traffic":{{"steps":[{{"percent":10,"hold":"2s"}}]}},
            "verification":[{{"name":"smoke","http":{{"path":"/"}},"interval":"1s",
                             "consecutive_successes":2,"failure_limit":1}}]{rest}}}"#
    );
    let mut world = World::new(2, 1, &json, Status::Running);
    world.at_step(0, 10, Some(START));
    world.now = START + Span::from_secs(2);
    world.all_fulfilled();
    world
}

fn status(status: u16) -> Sample {
    Sample::Http {
        status,
        body: String::new(),
        cut: false,
    }
}

/// The agent's next measurement of its only instance.
fn measured(world: &mut World, agent: &str, sequence: u64, sample: Sample) {
    let new = world.new;
    let run = moment(world.candidate()).unwrap().run;
    world.report(agent, |report| {
        World::place_of(report, new).checks = vec![ObservedCheck {
            name: name("smoke"),
            run,
            instance: Some(0),
            sequence,
            sample,
        }];
    });
}

fn noted(world: &World) -> Vec<CheckRecord> {
    match world.action() {
        Some(Action::NoteChecks { checks }) => checks,
        other => panic!("{other:?}"),
    }
}

/// As `apply` does.
fn note(world: &mut World) {
    let records = noted(world);
    world.change(|new| new.checks = records);
}

#[test]
fn a_step_is_not_left_before_every_agent_has_succeeded() {
    let mut world = checked("");
    assert_eq!(world.action(), None);
    assert_eq!(
        world.waits_for(),
        format!(
            "check smoke: 0 of 2 successes, 0 of 2 are done, next at {START}, not measured yet, until {}",
            START + Span::from_secs(4 * 5 + 5 + 2 * 2)
        )
    );
    for sequence in 1..=2 {
        measured(&mut world, "a1", sequence, status(200));
    }
    assert_eq!(world.action(), None);
    measured(&mut world, "a2", 1, status(503));
    let line = world.waits_for();
    let next = world.now + Span::from_secs(1);
    let wanted = format!(
        "check smoke: 0 of 2 successes, 1 of 1 bad ones borne, 1 of 2 are done, next at {next}, last: a2/0: HTTP 503"
    );
    assert!(line.starts_with(&wanted), "{line}");
    // The same level again is no further measurement.
    measured(&mut world, "a2", 1, status(503));
    assert_eq!(world.action(), None);
    measured(&mut world, "a2", 2, status(200));
    assert_eq!(world.action(), None);
    measured(&mut world, "a2", 3, status(200));
    let records = noted(&world);
    assert_eq!(records[0].outcome, Outcome::Success);
    assert_eq!(
        records[0].message,
        "check smoke succeeded: 2 of 2 measurements good, last: a1/0: HTTP 200"
    );
    note(&mut world);
    assert_eq!(world.action(), Some(Action::StepDone { unverified: false }));
}

#[test]
fn one_agent_that_fails_takes_it_back_even_while_paused() {
    let mut world = checked("");
    world.change(|new| {
        new.paused = Some(Paused {
            since: START,
            by: Actor::System,
            reason: String::new(),
        });
    });
    for sequence in 1..=2 {
        measured(&mut world, "a1", sequence, status(200));
        measured(
            &mut world,
            "a2",
            sequence,
            Sample::Unanswered("no answer in 5s".to_owned()),
        );
    }
    let records = noted(&world);
    assert_eq!(records[0].outcome, Outcome::Failure);
    note(&mut world);
    let Some(Action::TakeBack { cause, .. }) = world.action() else {
        panic!("{:?}", world.action());
    };
    assert_eq!(cause.kind, "verification");
    assert_eq!(
        cause.message,
        "check smoke failed: 2 bad measurements (1 borne), last: a2/0: no answer in 5s, step 1"
    );
}

#[test]
fn a_failure_of_a_step_before_takes_nothing_back() {
    let mut world = checked("");
    world.change(|new| {
        new.checks = vec![CheckRecord {
            name: name("smoke"),
            run: START - Span::from_secs(60),
            step: Some(0),
            outcome: Outcome::Failure,
            measurements: 2,
            failures: 2,
            at: START,
            message: "as told".to_owned(),
        }];
    });
    assert_eq!(world.action(), None);
}

/// Past every wait: 2 · (1 s or 5 s) per row, twice, 5 s for reports, and twice the hold.
fn much_later(world: &mut World) {
    world.now = START + Span::from_secs(60);
    world.all_fulfilled();
}

#[test]
fn without_an_answer_it_proceeds_unverified() {
    let mut world = checked("");
    measured(&mut world, "a1", 1, Sample::NotMade("no route".to_owned()));
    assert_eq!(world.action(), None, "it is measured on");
    assert!(
        world.waits_for().contains("inconclusive so far"),
        "{}",
        world.waits_for()
    );
    much_later(&mut world);
    let records = noted(&world);
    assert_eq!(records[0].outcome, Outcome::Inconclusive);
    assert!(!records[0].is_final());
    note(&mut world);
    assert_eq!(world.action(), Some(Action::StepDone { unverified: true }));
    // An answer that comes after all replaces it.
    for agent in ["a1", "a2"] {
        measured(&mut world, agent, 2, status(200));
        measured(&mut world, agent, 3, status(200));
    }
    note(&mut world);
    assert_eq!(world.action(), Some(Action::StepDone { unverified: false }));
}

#[test]
fn without_an_answer_it_rolls_back_if_told_so() {
    let mut world = checked(r#","on_no_data":{"wait":"3s","then":"rollback"}"#);
    much_later(&mut world);
    note(&mut world);
    let Some(Action::TakeBack { cause, .. }) = world.action() else {
        panic!("{:?}", world.action());
    };
    assert_eq!(cause.kind, "no_data");
    assert_eq!(
        cause.message,
        "check smoke is inconclusive: 0 of 2 good measurements, it was not measured"
    );
}

#[test]
fn without_an_answer_it_halts_once_and_a_person_may_wave_it_on() {
    let mut world = checked(r#","on_no_data":{"then":"halt"}"#);
    much_later(&mut world);
    let Some(Action::Halt { cause, .. }) = world.action() else {
        panic!("{:?}", world.action());
    };
    assert_eq!(cause.kind, "no_data");
    world.change(|new| {
        new.halted = Some(Halted {
            since: START + Span::from_secs(60),
            kind: "no_data".to_owned(),
            message: cause.message.clone(),
        });
    });
    note(&mut world);
    assert_eq!(world.action(), None, "halted");
    world.change(|new| new.halted = None);
    assert_eq!(world.action(), Some(Action::StepDone { unverified: true }));
}

#[test]
fn a_new_leader_makes_running_checks_anew_and_keeps_what_is_settled() {
    let mut world = checked("");
    for agent in ["a1", "a2"] {
        measured(&mut world, agent, 7, status(200));
    }
    world.observed = Observed::new(world.now);
    world.all_fulfilled();
    assert!(
        world.waits_for().contains("0 of 2 successes"),
        "{}",
        world.waits_for()
    );
    for agent in ["a1", "a2"] {
        measured(&mut world, agent, 8, status(200));
        measured(&mut world, agent, 9, status(200));
    }
    note(&mut world);
    world.observed = Observed::new(world.now);
    world.all_fulfilled();
    assert_eq!(world.action(), Some(Action::StepDone { unverified: false }));
}

#[test]
fn a_lost_agent_that_may_be_lost_holds_nothing_up() {
    let json = r#"{"bake":"10s","max_lost":1,"traffic":{"steps":[{"percent":10,"hold":"2s"}]},
        "verification":[{"name":"smoke","http":{"path":"/"},"interval":"1s"}]}"#;
    let mut world = World::new(2, 1, json, Status::Running);
    world.at_step(0, 10, Some(START));
    world.all_fulfilled();
    world.now = START + Span::from_secs(31);
    world.report("a1", |_| {});
    measured(&mut world, "a1", 1, status(200));
    world.change(|new| new.lost = vec![name("a2")]);
    note(&mut world);
    assert_eq!(world.action(), Some(Action::StepDone { unverified: false }));
}

#[test]
fn checks_before_traffic_come_before_the_first_step() {
    let json = r#"{"traffic":{"steps":[{"percent":10,"hold":"2s"}]},
        "verification":[{"name":"smoke","http":{"path":"/"},"interval":"1s","when":["before_traffic"]}]}"#;
    let mut world = World::new(1, 1, json, Status::Running);
    world.all_fulfilled();
    assert_eq!(world.action(), None);
    assert!(world.waits_for().starts_with("check smoke: 0 of 1 success"));
    measured(&mut world, "a1", 1, status(200));
    note(&mut world);
    assert_eq!(world.action(), Some(Action::StepDone { unverified: false }));
    // Its own moment alone.
    world.at_step(0, 10, Some(START));
    world.now = START + Span::from_secs(2);
    world.all_fulfilled();
    assert_eq!(world.action(), Some(Action::StepDone { unverified: false }));
}

#[test]
fn the_last_step_is_checked_before_the_old_version_goes() {
    let mut world = checked(r#","bake_share":2"#);
    world.at_step(1, 98, Some(START));
    world.now = START + Span::from_secs(13);
    world.all_fulfilled();
    assert_eq!(world.action(), None);
    for agent in ["a1", "a2"] {
        measured(&mut world, agent, 1, status(200));
        measured(&mut world, agent, 2, status(200));
    }
    note(&mut world);
    assert_eq!(world.action(), Some(Action::Finalize { unverified: false }));
}

#[test]
fn a_stall_waits_for_checks_and_then_says_that_they_are_open() {
    let mut world = checked(
        r#","on_stall":"finalize","finalize":"auto","deadlines":{"stall":"1s"},"on_no_data":{"then":"halt","wait":"1h"}"#,
    );
    world.at_step(1, 100, Some(START));
    much_later(&mut world);
    assert_eq!(kind(world.action()), "nothing");
    world.now = START + Span::from_hours(2);
    world.change(|new| new.halted = None);
    // Its agents are lost by then, but for what they say now.
    world.all_fulfilled();
    assert_eq!(
        kind(world.action()),
        "Halt",
        "no_data comes before the stall"
    );
}
