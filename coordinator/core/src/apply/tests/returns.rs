//! Going back: fast rollbacks, rejected releases, scopes stopped and started again.

use tidegate_shared::error::Reason;
use tidegate_shared::id::DeploymentId;
use tidegate_shared::spec::{Kind, ReleaseStatus};
use tidegate_shared::weight::Weight;

use super::world::{World, cause, name, names, one, require_approval, set_status, stop, version};
use crate::command::{Action, Command, OnConflict, RollbackScope, ScopeName, Verb};
use crate::state::{LinkKind, ScopeStatus, Status};

fn rollback_to(release: Option<&str>, force: bool) -> Command {
    Command::RollbackScope(RollbackScope {
        name: name("web"),
        version: release.map(version),
        force,
        reason: if force {
            "no other way".to_owned()
        } else {
            String::new()
        },
    })
}

/// A fast rollback from `PENDING` to its end.
fn finish_fast(world: &mut World, id: DeploymentId) {
    world.run_up(id);
    assert_eq!(world.get(id).traffic.desired, Weight::FULL);
    world.step(id, Action::StepReached);
    world.step(id, Action::Finalize { unverified: false });
    world.step(id, Action::Drained);
    world.settle(id);
}

#[test]
fn a_return_is_fast_and_brings_the_old_parameters_back() {
    let mut world = World::new();
    world.must(world.object("greeting", Kind::Parameter, PARAMETER));
    let first = world.deploy("1.0.0");
    world.finish(first);
    world.must(world.object(
        "greeting",
        Kind::Parameter,
        &PARAMETER.replace("hello", "salut"),
    ));
    let second = world.deploy("2.0.0");
    world.finish(second);
    assert_eq!(
        world.get(second).origin.parameters["GREETING"].value,
        "salut"
    );
    let back = one(world.act(second, Verb::Rollback).unwrap());
    let origin = &world.get(back).origin;
    assert_eq!(origin.parameters["GREETING"].value, "hello");
    assert!(origin.fast);
    assert_eq!(origin.link.as_ref().unwrap().of, second);
    let requires = require_approval(world.now);
    assert!(world.advance(back, requires).is_err());
    finish_fast(&mut world, back);
    assert_eq!(world.outcome(back), "fast_rolled_back");
    assert_eq!(world.scope().kept, vec![back, second]);
}

const PARAMETER: &str =
    r#"{"variable": "GREETING", "value": "hello", "target": {"application": "shop"}}"#;

#[test]
fn returns_walk_backwards_and_never_to_what_was_returned_from() {
    let mut world = World::new();
    for release in ["1.0.0", "2.0.0", "3.0.0"] {
        let id = world.deploy(release);
        world.finish(id);
    }
    for expected in ["2.0.0", "1.0.0"] {
        let id = one(world.must(rollback_to(None, false)));
        assert_eq!(world.get(id).origin.version, version(expected));
        finish_fast(&mut world, id);
    }
    let rejection = world.refused(rollback_to(Some("4.0.0"), false));
    assert_eq!(rejection.reason, Reason::NotKept);
    assert!(rejection.message.contains("3.0.0"), "{rejection}");
    world.must(set_status("3.0.0", ReleaseStatus::Rejected));
    let rejection = world.refused(rollback_to(Some("3.0.0"), false));
    assert_eq!(rejection.reason, Reason::ReleaseRejected);
    let id = one(world.must(rollback_to(Some("3.0.0"), true)));
    finish_fast(&mut world, id);
    assert_eq!(world.scope().active, Some(id));
}

#[test]
fn a_return_makes_a_rollout_give_way() {
    let mut world = World::with_active();
    let second = world.deploy("2.0.0");
    world.finish(second);
    let third = world.deploy("3.0.0");
    world.run_up(third);
    assert_eq!(one(world.must(rollback_to(None, false))), third);
    assert_eq!(world.status(third), Status::RollingBack);
    let back = one(world.must(rollback_to(Some("1.0.0"), false)));
    world.settle(third);
    finish_fast(&mut world, back);
    assert_eq!(world.get(back).origin.version, version("1.0.0"));
}

#[test]
fn finalizing_cannot_be_turned_back_but_returns_at_its_end() {
    let (mut world, id) = World::at(Status::Finalizing, false);
    let old = world.scope().active.unwrap();
    world.step(
        id,
        Action::TakeBack {
            cause: cause("rule"),
            evidence: Vec::new(),
        },
    );
    assert_eq!(world.status(id), Status::Finalizing);
    world.act(id, Verb::Cancel).unwrap();
    world.step(id, Action::Drained);
    world.settle(id);
    assert_eq!(world.outcome(id), "promoted");
    let back = *world.scope().waiting.first().unwrap();
    let origin = &world.get(back).origin;
    assert!(origin.fast && origin.forced);
    assert_eq!(origin.version, world.get(old).origin.version);
    finish_fast(&mut world, back);
    let (mut world, id) = World::at(Status::Finalizing, true);
    world.act(id, Verb::Rollback).unwrap();
    world.settle(id);
    assert!(world.scope().waiting.is_empty());
}

#[test]
fn a_rejected_release_takes_its_deployments_back_and_flags_the_finalized() {
    let mut world = World::with_active();
    let active = world.scope().active.unwrap();
    let waiting = world.deploy("1.0.0");
    world.must(set_status("1.0.0", ReleaseStatus::Rejected));
    assert_eq!(world.status(waiting), Status::Cancelled);
    assert_eq!(world.status(active), Status::Finalized);
    assert_eq!(world.get(active).reason, "rejected");
    let refused = world.deploy_to("web", "1.0.0").unwrap_err();
    assert_eq!(refused.reason, Reason::ReleaseRejected);
    world.must(set_status("1.0.0", ReleaseStatus::Ready));
    let paused = world.deploy("2.0.0");
    world.must(set_status("2.0.0", ReleaseStatus::Paused));
    let participants = names(&["a1"]);
    assert!(
        world
            .advance(
                paused,
                Action::Start {
                    participants,
                    gates: None,
                }
            )
            .is_err()
    );
}

#[test]
fn a_scope_is_stopped_and_started_with_what_it_had() {
    let mut world = World::with_active();
    let first = world.scope().active.unwrap();
    let second = world.deploy("2.0.0");
    let rejection = world.refused(stop(false));
    assert_eq!(rejection.reason, Reason::Conflict);
    world.run_up(second);
    world.must(stop(true));
    assert_eq!(world.status(second), Status::Cancelling);
    assert_eq!(world.status(first), Status::Finalized);
    world.on_conflict = OnConflict::Queue;
    let refused = world.deploy_to("web", "3.0.0").unwrap_err();
    assert_eq!(refused.reason, Reason::ScopeStatus);
    world.on_conflict = OnConflict::Fail;
    world.settle(second);
    assert_eq!(world.status(first), Status::Deleting);
    world.settle(first);
    assert_eq!(
        (world.status(first), world.outcome(first)),
        (Status::Deleted, "deleted")
    );
    world.is(ScopeStatus::Stopped);
    world.must(stop(false));
    let start = Command::StartScope(ScopeName { name: name("web") });
    let again = one(world.must(start.clone()));
    assert_eq!(
        world.get(again).origin.link.as_ref().unwrap().kind,
        LinkKind::Start
    );
    world.finish(again);
    assert_eq!(world.get(again).replaces, None);
    world.is(ScopeStatus::Ready);
    assert_eq!(world.refused(start).reason, Reason::ScopeStatus);
    let restart = Command::RestartScope(ScopeName { name: name("web") });
    let restarted = one(world.must(restart));
    world.finish(restarted);
    assert_eq!(world.scope().kept, vec![restarted]);
}

#[test]
fn a_restart_while_a_start_is_under_way_names_it() {
    let mut world = World::with_active();
    let first = world.scope().active.unwrap();
    world.must(stop(false));
    world.settle(first);
    let restart = Command::RestartScope(ScopeName { name: name("web") });
    let nothing = world.refused(restart.clone());
    assert_eq!(nothing.reason, Reason::ScopeStatus);
    let start = Command::StartScope(ScopeName { name: name("web") });
    let started = one(world.must(start));
    let mut told = Vec::new();
    for move_on in [World::start, |world: &mut World, id| {
        world.step(id, Action::Staged);
    }] {
        told.push(world.refused(restart.clone()));
        move_on(&mut world, started);
    }
    told.push(world.refused(restart));
    for rejection in told {
        assert_eq!(rejection.reason, Reason::Conflict);
        let id = started.to_string();
        assert!(rejection.message.contains(&id), "{rejection}");
        assert!(!rejection.message.contains("stopped"), "{rejection}");
    }
}
