//! Every wait ends: from every status, with nothing but the clock going on.

use tidegate_shared::spec::Hold;
use tidegate_shared::time::Span;
use tidegate_shared::weight::Weight;

use super::world::{World, cause};
use crate::command::{Action, Verb};
use crate::deployment::{phase, steps};
use crate::state::Status;

fn ends(mut world: World, id: tidegate_shared::id::DeploymentId, what: &str) -> Status {
    let began = world.now;
    for _ in 0..50 {
        if world.status(id).is_end() {
            // The longest: a pause of 7 d before a rollback without progress, and some slack.
            assert!(world.now.since(began) <= Span::from_days(15), "{what}");
            return world.status(id);
        }
        world.expire(id);
    }
    panic!("{what} does not end");
}

const KINDS: [&str; 7] = [
    "{}",
    r#"{"kind": "all_in", "on_stall": "halt"}"#,
    r#"{"kind": "rolling", "on_stall": "finalize"}"#,
    r#"{"kind": "rolling", "batch": {"max_unavailable": 1, "overlap": false}}"#,
    r#"{"traffic": {"steps": [{"percent": 10, "hold": "manual"}]}, "bake_share": 10}"#,
    r#"{"finalize": "manual"}"#,
    r#"{"verification": [{"name": "smoke", "http": {"path": "/"}, "when": ["before_traffic", "last"]}], "on_stall": "halt"}"#,
];

#[test]
fn every_status_ends_under_a_fair_clock() {
    for kind in KINDS {
        for initial in [true, false] {
            for status in Status::ALL {
                let returns = matches!(status, Status::RollingBack | Status::RolledBack);
                if status.is_end() || (initial && returns) {
                    continue;
                }
                let mut world = if initial {
                    World::new()
                } else {
                    World::with_active()
                };
                world.strategy(kind);
                let id = world.deploy("2.0.0");
                world.bring(id, status);
                ends(world.clone(), id, &format!("{kind} {status}"));
                if world.act(id, Verb::Pause).is_ok() {
                    ends(world.clone(), id, &format!("{kind} {status} paused"));
                }
                if status == Status::Running {
                    let halt = Action::Halt {
                        cause: cause("rule"),
                        evidence: Vec::new(),
                    };
                    world.step(id, halt);
                    ends(world, id, &format!("{kind} {status} paused and halted"));
                }
            }
        }
    }
}

#[test]
fn a_running_deployment_ends_from_every_step() {
    for kind in KINDS {
        let mut world = World::with_active();
        world.strategy(kind);
        let id = world.deploy("2.0.0");
        world.run_up(id);
        for step in 0..200 {
            ends(world.clone(), id, &format!("{kind} step {step}"));
            let open = world
                .get(id)
                .traffic
                .step
                .is_some_and(|s| s.reached_at.is_none());
            if open {
                world.step(id, Action::StepReached);
            } else if steps::at_last(world.get(id)) {
                break;
            } else {
                world.step(id, Action::StepDone { unverified: false });
            }
        }
        assert!(steps::last_is_reached(world.get(id)));
    }
}

#[test]
fn declared_outcomes_of_deadlines() {
    let outcome = |status, initial| {
        let (mut world, id) = World::at(status, initial);
        let reason = |world: &World| world.get(id).reason.clone();
        world.expire(id);
        let first = (world.status(id), reason(&world));
        let end = ends(world, id, "declared");
        (first.0, first.1, end)
    };
    let failed = |word: &str, end| (Status::Failed, word.to_owned(), end);
    assert_eq!(
        outcome(Status::Creating, false),
        failed("staging_deadline", Status::Failed)
    );
    assert_eq!(
        outcome(Status::WaitingForInstances, true),
        failed("progress_deadline", Status::Failed)
    );
    assert_eq!(
        outcome(Status::WaitingForInstances, false),
        (
            Status::RollingBack,
            "progress_deadline".to_owned(),
            Status::Failed
        )
    );
    assert_eq!(
        outcome(Status::Running, false),
        (Status::RollingBack, "stall".to_owned(), Status::Failed)
    );
    assert_eq!(
        outcome(Status::Running, true),
        failed("stall", Status::Failed)
    );
    assert_eq!(
        outcome(Status::Pending, true),
        (Status::Cancelled, "expired".to_owned(), Status::Cancelled)
    );
    assert_eq!(
        outcome(Status::CreatingApproval, true),
        (
            Status::CreatingApprovalDenied,
            "expired".to_owned(),
            Status::CreatingApprovalDenied
        )
    );
    assert_eq!(outcome(Status::Finalizing, false).0, Status::Finalized);
    assert_eq!(outcome(Status::Cancelling, false).0, Status::Failed);
    assert_eq!(outcome(Status::RollingBack, false).0, Status::Failed);
    assert_eq!(outcome(Status::Deleting, false).0, Status::Deleted);
}

#[test]
fn pauses_and_halts_stop_the_clock() {
    let (mut world, id) = World::at(Status::WaitingForInstances, false);
    let due = phase::deadline(world.get(id)).unwrap();
    world.wait(Span::from_mins(5));
    world.act(id, Verb::Pause).unwrap();
    world.wait(Span::from_hours(3));
    assert_eq!(
        phase::deadline(world.get(id)).unwrap(),
        world.now - Span::from_hours(3) + Span::from_days(7)
    );
    world.act(id, Verb::Resume).unwrap();
    assert_eq!(
        phase::deadline(world.get(id)).unwrap(),
        due + Span::from_hours(3)
    );
    // Each instance that becomes healthy extends it; one that does not adds nothing.
    world.wait(Span::from_mins(1));
    world.step(id, Action::Progress { outstanding: 2 });
    assert_eq!(
        phase::deadline(world.get(id)).unwrap(),
        world.now + Span::from_mins(10)
    );
    assert!(
        world
            .advance(id, Action::Progress { outstanding: 2 })
            .is_err()
    );
}

#[test]
fn a_hold_counts_no_pause_even_if_halts_overlap() {
    let (mut world, id) = World::at(Status::Running, false);
    world.step(id, Action::StepDone { unverified: false });
    world.step(id, Action::StepReached);
    let held = |world: &World| steps::held_for(world.get(id), world.now).unwrap();
    world.wait(Span::from_secs(10));
    world.act(id, Verb::Pause).unwrap();
    world.wait(Span::from_secs(10));
    let halt = Action::Halt {
        cause: cause("rule"),
        evidence: Vec::new(),
    };
    world.step(id, halt);
    world.wait(Span::from_secs(10));
    assert_eq!(held(&world), Span::from_secs(10));
    world.step(id, Action::Unhalt);
    world.wait(Span::from_secs(10));
    assert_eq!(held(&world), Span::from_secs(10));
    world.act(id, Verb::Resume).unwrap();
    world.wait(Span::from_secs(7));
    assert_eq!(held(&world), Span::from_secs(17));
    assert_eq!(steps::hold(world.get(id)), Hold::For(Span::from_secs(60)));
    let spent = world.get(id).durations;
    assert_eq!(spent.manual_pause, Span::from_secs(30));
}

#[test]
fn a_stall_that_halted_gets_its_whole_time_again() {
    let mut world = World::with_active();
    world.strategy(r#"{"on_stall": "halt"}"#);
    let id = world.deploy("2.0.0");
    world.run_up(id);
    world.expire(id);
    assert_eq!(world.get(id).halted.as_ref().unwrap().kind, "stall");
    world.wait(Span::from_hours(1));
    world.act(id, Verb::Resume).unwrap();
    assert!(phase::deadline(world.get(id)).unwrap() > world.now + Span::from_hours(2));
}

#[test]
fn manual_finalize_and_manual_holds_wait_for_people_and_count_as_pauses() {
    let mut world = World::with_active();
    world.strategy(r#"{"finalize": "manual", "traffic": {"steps": [{"percent": 100, "hold": "0s"}]}, "bake": "60s"}"#);
    let id = world.deploy("2.0.0");
    world.run_up(id);
    world.through_steps(id);
    assert_eq!(
        phase::deadline(world.get(id)).unwrap(),
        world.now + Span::from_secs(60) + Span::from_hours(72)
    );
    world.wait(Span::from_secs(90));
    world.act(id, Verb::Finalize).unwrap();
    let spent = world.get(id).durations;
    assert_eq!(spent.manual_pause, Span::from_secs(30));
    assert_eq!(spent.progression, Span::from_secs(60));
    assert_eq!(world.get(id).traffic.desired, Weight::FULL);
}
