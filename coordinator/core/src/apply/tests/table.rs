//! The transition table walked exhaustively, against a second writing of it (product.md §2).

use tidegate_shared::error::Reason;
use tidegate_shared::weight::Weight;

use super::world::{World, cause, names, require_approval, verb_command};
use crate::command::{Action, Command, Verb};
use crate::deployment::phase;
use crate::state::{Halted, InstanceCause, Status};

const VERBS: [Verb; 9] = [
    Verb::Pause,
    Verb::Resume,
    Verb::Promote,
    Verb::PromoteFull,
    Verb::Traffic(Weight::FULL),
    Verb::Finalize,
    Verb::Cancel,
    Verb::Rollback,
    Verb::Retry,
];

/// Columns: pause, resume, promote, promote full, traffic, finalize, cancel, rollback, retry, for a
/// deployment that replaces another; the last step is held where it is `RUNNING`.
/// `x` acts, `=` is accepted without change, `.` is refused. `t` acts before the last step only.
const REPLACING: [(Status, &str); 15] = [
    (Status::CreatingApproval, "......x.."),
    (Status::CreatingApprovalDenied, "........x"),
    (Status::Pending, "x=....x.."),
    (Status::Creating, "x=....xx."),
    (Status::WaitingForInstances, "x=....xx."),
    (Status::Running, "x=xxxxxx."),
    (Status::Finalizing, "......xx."),
    (Status::Finalized, ".......x."),
    (Status::Cancelling, "......==."),
    (Status::Cancelled, "........x"),
    (Status::RollingBack, "......==."),
    (Status::RolledBack, "........x"),
    (Status::Failed, "........x"),
    (Status::Deleting, "........."),
    (Status::Deleted, "........."),
];

/// The same for one without a version before it: nothing to share with, nothing to return to.
const INITIAL: [(Status, &str); 12] = [
    (Status::CreatingApproval, "......x.."),
    (Status::CreatingApprovalDenied, "........x"),
    (Status::Pending, "x=....x.."),
    (Status::Creating, "x=....x.."),
    (Status::WaitingForInstances, "x=....x.."),
    (Status::Running, "x=xx.xx.."),
    (Status::Finalizing, "......xx."),
    (Status::Finalized, "........."),
    (Status::Cancelling, "......==."),
    (Status::Cancelled, "........x"),
    (Status::Failed, "........x"),
    (Status::Deleted, "........."),
];

fn walk(rows: &[(Status, &str)], initial: bool) {
    for (status, row) in rows {
        let (mut start, id) = World::at(*status, initial);
        if *status == Status::Running {
            start.through_steps(id);
        }
        for (verb, expected) in VERBS.iter().zip(row.chars()) {
            let mut world = start.clone();
            let what = format!("{status} {verb:?} (initial: {initial})");
            let before = world.state.clone();
            match expected {
                '.' => {
                    let rejection = world.refused(verb_command(id, *verb));
                    assert!(!rejection.message.is_empty(), "{what}");
                }
                '=' => {
                    world.act(id, *verb).expect(&what);
                    world.unchanged_since(&before);
                }
                'x' => {
                    world.act(id, *verb).expect(&what);
                    assert_ne!(world.state.deployments, before.deployments, "{what}");
                }
                other => panic!("{other}"),
            }
        }
    }
}

#[test]
fn every_verb_in_every_status_of_a_replacing_deployment() {
    walk(&REPLACING, false);
}

#[test]
fn every_verb_in_every_status_of_an_initial_deployment() {
    walk(&INITIAL, true);
}

/// Actions with arguments that fit wherever the status does.
fn actions(world: &World) -> Vec<Action> {
    let participants = names(&["a1", "a2", "a3"]);
    vec![
        require_approval(world.now),
        Action::ApprovalSatisfied,
        Action::ApprovalDenied { expired: false },
        Action::Start {
            participants,
            gates: None,
        },
        Action::Staged,
        Action::Progress { outstanding: 1 },
        Action::InstancesReady,
        Action::StepReached,
        Action::StepDone { unverified: false },
        Action::BatchDone,
        Action::Finalize { unverified: true },
        Action::Drained,
        Action::Settled {
            leftovers: names(&["a1"]),
        },
        Action::TakeBack {
            cause: cause("rule"),
            evidence: Vec::new(),
        },
        Action::Expire {
            leftovers: names(&["a2"]),
        },
        Action::Halt {
            cause: cause("rule"),
            evidence: Vec::new(),
        },
        Action::Unhalt,
        Action::MarkLost {
            lost: names(&["a3"]),
        },
        Action::NoteErrors {
            causes: vec![InstanceCause {
                agent: super::world::name("a1"),
                instance: String::new(),
                kind: "DISK_FULL".to_owned(),
                message: "no room".to_owned(),
            }],
        },
        Action::NoteEvidence {
            evidence: Vec::new(),
        },
        Action::LeftoversGone {
            agents: names(&["a1", "a2", "a3"]),
        },
        Action::Retry {
            why: "a rule".to_owned(),
        },
    ]
}

/// For each status (at the first step where `RUNNING`, replacing) the actions that lead somewhere,
/// in the order of [`actions`], with where; `-` stays. What is not named is refused.
const MOVES: [(Status, &[(&str, Status)]); 15] = {
    use Status as S;
    [
        (
            S::CreatingApproval,
            &[
                ("approval_satisfied", S::Pending),
                ("approval_denied", S::CreatingApprovalDenied),
                ("expire", S::CreatingApprovalDenied),
            ],
        ),
        (S::CreatingApprovalDenied, &[]),
        (
            S::Pending,
            &[
                ("require_approval", S::CreatingApproval),
                ("start", S::Creating),
                ("expire", S::Cancelled),
            ],
        ),
        (
            S::Creating,
            &[
                ("staged", S::WaitingForInstances),
                ("take_back", S::Failed),
                ("expire", S::Failed),
                ("mark_lost", S::Creating),
                ("note_errors", S::Creating),
            ],
        ),
        (
            S::WaitingForInstances,
            &[
                ("progress", S::WaitingForInstances),
                ("instances_ready", S::Running),
                ("take_back", S::RollingBack),
                ("mark_lost", S::WaitingForInstances),
                ("note_errors", S::WaitingForInstances),
            ],
        ),
        (
            S::Running,
            &[
                ("step_done", S::Running),
                ("take_back", S::RollingBack),
                ("halt", S::Running),
                ("mark_lost", S::Running),
                ("note_errors", S::Running),
            ],
        ),
        (
            S::Finalizing,
            &[
                ("drained", S::Finalizing),
                ("take_back", S::Finalizing),
                ("expire", S::Finalized),
                ("mark_lost", S::Finalizing),
                ("note_errors", S::Finalizing),
            ],
        ),
        (S::Finalized, &[]),
        (
            S::Cancelling,
            &[
                ("progress", S::Cancelling),
                ("drained", S::Cancelling),
                ("settled", S::Cancelled),
                ("expire", S::Failed),
                ("mark_lost", S::Cancelling),
                ("note_errors", S::Cancelling),
            ],
        ),
        (S::Cancelled, &[]),
        (
            S::RollingBack,
            &[
                ("progress", S::RollingBack),
                ("drained", S::RollingBack),
                ("settled", S::RolledBack),
                ("expire", S::Failed),
                ("mark_lost", S::RollingBack),
                ("note_errors", S::RollingBack),
            ],
        ),
        (S::RolledBack, &[]),
        (S::Failed, &[("retry", S::Failed)]),
        (
            S::Deleting,
            &[
                ("drained", S::Deleting),
                ("settled", S::Deleted),
                ("expire", S::Deleted),
                ("mark_lost", S::Deleting),
                ("note_errors", S::Deleting),
            ],
        ),
        (S::Deleted, &[]),
    ]
};

#[test]
fn every_action_in_every_status_leads_where_it_is_written() {
    for (status, moves) in MOVES {
        let (start, id) = World::at(status, false);
        for action in actions(&start) {
            let mut world = start.clone();
            let before = world.state.clone();
            let outcome = world.advance(id, action.clone());
            let wanted = moves.iter().find(|(word, _)| *word == action.as_str());
            match wanted {
                Some((_, to)) => {
                    outcome.unwrap_or_else(|r| panic!("{status} {action:?}: {r}"));
                    assert_eq!(world.status(id), *to, "{status} {action:?}");
                    let from = before.deployment(id).unwrap().status;
                    let fits = *to == from || phase::leads_to(from).contains(to);
                    assert!(fits, "{from} does not lead to {to}");
                }
                None => {
                    let rejection = outcome.expect_err(&format!("{status} {action:?}"));
                    assert_eq!(rejection.reason, Reason::WrongStatus);
                    world.unchanged_since(&before);
                }
            }
        }
    }
}

#[test]
fn a_move_for_another_revision_is_stale_and_leaves_no_line() {
    let (mut world, id) = World::at(Status::Pending, true);
    let before = world.state.clone();
    let mut item = world.item(
        crate::command::Actor::System,
        crate::command::Command::Advance(crate::command::Advance {
            deployment: id,
            revision: 1,
            action: Action::Staged,
        }),
    );
    item.request = crate::command::RequestKey::Planner(tidegate_shared::digest::Digest::ZERO);
    let applied = world.apply(item);
    assert_eq!(applied.outcome.unwrap_err().reason, Reason::Stale);
    assert_eq!(world.state, before);
}

#[test]
fn a_pause_keeps_who_and_why_until_it_goes_on() {
    let (mut world, id) = World::at(Status::Running, false);
    let because = |verb: Verb, reason: &str| {
        let Command::ActOnDeployment(mut act) = verb_command(id, verb) else {
            panic!("a verb is another command");
        };
        act.reason = reason.to_owned();
        Command::ActOnDeployment(act)
    };
    let why = |world: &World| world.get(id).paused.as_ref().map(|p| p.reason.clone());
    world.must(because(Verb::Pause, "the shop's sale"));
    assert_eq!(why(&world).as_deref(), Some("the shop's sale"));
    // A second pause changes nothing, so the first reason stays.
    world.must(because(Verb::Pause, "lunch"));
    assert_eq!(why(&world).as_deref(), Some("the shop's sale"));
    world.must(because(Verb::Resume, "it is over"));
    assert_eq!(why(&world), None);
    world.must(because(Verb::Pause, ""));
    assert_eq!(why(&world).as_deref(), Some(""));
}

#[test]
fn nothing_goes_on_while_it_is_paused_or_halted() {
    for status in [
        Status::Pending,
        Status::Creating,
        Status::WaitingForInstances,
        Status::Running,
    ] {
        let (mut world, id) = World::at(status, false);
        world.act(id, Verb::Pause).unwrap();
        for action in actions(&world) {
            let forward = matches!(
                action,
                Action::Start { .. }
                    | Action::Staged
                    | Action::InstancesReady
                    | Action::StepDone { .. }
                    | Action::Finalize { .. }
            );
            if forward {
                let before = world.state.clone();
                assert!(world.advance(id, action).is_err());
                world.unchanged_since(&before);
            }
        }
    }
    let (mut world, id) = World::at(Status::Running, false);
    let kind = "rule";
    world.step(
        id,
        Action::Halt {
            cause: cause(kind),
            evidence: Vec::new(),
        },
    );
    assert!(matches!(&world.get(id).halted, Some(Halted { kind, .. }) if kind == "rule"));
    assert!(
        world
            .advance(id, Action::StepDone { unverified: false })
            .is_err()
    );
    world.act(id, Verb::Resume).unwrap();
    world.step(id, Action::StepDone { unverified: false });
}
