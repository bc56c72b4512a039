//! Up to `RUNNING`: gates, approval, staging, instances.

use tidegate_shared::assignment::{InstanceState, PermanentErrorKind, Report};
use tidegate_shared::spec::ReleaseStatus;
use tidegate_shared::time::Span;

use super::{broken, kind, world};
use crate::command::{Action, Actor, Command};
use crate::fixture::{START, World, name};
use crate::state::{Decision, Paused, Required, Status};

#[test]
fn pending_starts_when_every_gate_is_open() {
    let mut world = world(Status::Pending);
    assert_eq!(
        world.action(),
        Some(Action::Start {
            participants: vec![name("a1"), name("a2"), name("a3")],
            gates: None,
        })
    );
    let key = (name("shop"), world.candidate().origin.version.clone());
    for status in [
        ReleaseStatus::Building,
        ReleaseStatus::Paused,
        ReleaseStatus::Rejected,
    ] {
        world.state.releases.get_mut(&key).unwrap().status = status;
        assert_eq!(world.action(), None, "{status}");
        assert!(world.waits_for().contains(status.as_str()));
    }
    world.state.releases.get_mut(&key).unwrap().status = ReleaseStatus::Ready;
    let other = world.old;
    world.scope(|scope| scope.candidate = Some(other));
    assert_eq!(world.action(), None);
    world.scope(|scope| scope.candidate = None);
    world.state.agents = Default::default();
    assert_eq!(world.action(), None);
    assert!(
        world.waits_for().contains("no_agents"),
        "{}",
        world.waits_for()
    );
    world.now = START + Span::from_days(7);
    assert_eq!(kind(world.action()), "Expire");
}

#[test]
fn a_pause_from_the_beginning_starts_nothing() {
    let mut world = world(Status::Pending);
    world.change(|new| {
        new.paused = Some(Paused {
            since: START,
            by: Actor::User(name("ann")),
            reason: String::new(),
        });
    });
    assert_eq!(world.action(), None);
    assert!(world.waits_for().contains("paused by user:ann"));
}

#[test]
fn the_newest_that_may_start_does() {
    let mut world = world(Status::Pending);
    let mut newer = world.candidate().clone();
    newer.id = tidegate_shared::id::DeploymentId::derived(START, "web", 3, 0);
    let id = newer.id;
    world.state.deployments.insert(id, newer);
    world.scope(|scope| scope.waiting.push(id));
    let plan = world.plan();
    assert_eq!(plan.commands.len(), 1);
    let Command::Advance(advance) = &*plan.commands[0].command else {
        panic!("{plan:?}");
    };
    assert_eq!(advance.deployment, id);
}

fn decided(world: &mut World, decisions: &[(&str, bool)]) {
    let decisions = decisions.iter().map(|(person, granted)| Decision {
        by: Actor::User(name(person)),
        granted: *granted,
        at: START,
        reason: String::new(),
        binding: crate::apply::binding(&world.candidate().origin),
    });
    let decisions = decisions.collect();
    world.change(|new| {
        new.required = Some(Required {
            policies: vec![(name("two-eyes"), 2)],
            expires_at: START + Span::from_hours(72),
            decisions,
        });
    });
}

#[test]
fn approval_is_asked_for_and_counted() {
    let mut world = world(Status::Pending);
    world.policy("two-eyes", "scope.name == \"web\"", 2);
    world.policy("elsewhere", "scope.name == \"api\"", 9);
    let Some(Action::RequireApproval {
        policies,
        expires_at,
        ..
    }) = world.action()
    else {
        panic!("{:?}", world.action());
    };
    assert_eq!(policies, vec![(name("two-eyes"), 2)]);
    assert_eq!(expires_at, START + Span::from_hours(72));
    world.change(|new| new.status = Status::CreatingApproval);
    decided(&mut world, &[("ann", true)]);
    assert_eq!(world.action(), None);
    assert!(
        world.waits_for().contains("1 granted"),
        "{}",
        world.waits_for()
    );
    decided(&mut world, &[("ann", true), ("bob", true)]);
    assert_eq!(world.action(), Some(Action::ApprovalSatisfied));
    decided(&mut world, &[("ann", true), ("bob", false)]);
    let message = "denied by user:bob".to_owned();
    assert_eq!(world.action(), Some(Action::Deny { message }));
    decided(&mut world, &[]);
    world.now = START + Span::from_hours(72);
    assert_eq!(
        world.action(),
        Some(Action::ApprovalDenied { expired: true })
    );
}

#[test]
fn a_policy_that_cannot_be_evaluated_blocks() {
    let mut world = world(Status::Pending);
    world.policy("odd", "user.nam == \"ann\"", 1);
    assert_eq!(world.action(), None);
    assert!(world.waits_for().contains("policy odd cannot be evaluated"));
}

#[test]
fn creating_ends_when_staged_everywhere() {
    let mut world = world(Status::Creating);
    assert_eq!(world.action(), None);
    world.report("a1", |_| {});
    world.report("a2", |_| {});
    assert_eq!(world.action(), None);
    world.report("a3", |_| {});
    assert_eq!(world.action(), Some(Action::Staged));
    world.now = START + Span::from_secs(29);
    world.report("a1", |_| {});
    world.report("a2", |_| {});
    world.now = START + Span::from_secs(31);
    assert_eq!(kind(world.action()), "Staged", "one of three may be lost");
}

#[test]
fn a_wrong_digest_anywhere_ends_it_other_errors_above_max_lost() {
    let mut world = world(Status::Creating);
    let new = world.new;
    world.report("a1", |report| {
        World::place_of(report, new).staged = false;
        World::place_of(report, new).permanent_error = broken(PermanentErrorKind::DiskFull);
    });
    assert_eq!(kind(world.action()), "NoteErrors", "one of three may fail");
    world.report("a2", |report| {
        World::place_of(report, new).permanent_error = broken(PermanentErrorKind::DigestMismatch);
    });
    let Some(Action::NoteErrors { causes }) = world.action() else {
        panic!("{:?}", world.action());
    };
    assert_eq!(causes.len(), 2);
    world.change(|new| new.causes = causes);
    let Some(Action::TakeBack { cause, .. }) = world.action() else {
        panic!("{:?}", world.action());
    };
    assert_eq!(cause.kind, "permanent_errors");
    assert!(
        cause.message.contains("a2: DIGEST_MISMATCH: as told"),
        "{}",
        cause.message
    );
}

#[test]
fn instances_come_up_one_after_another() {
    let mut world = world(Status::WaitingForInstances);
    let new = world.new;
    let starting = |count: usize| {
        move |report: &mut Report| {
            let place = World::place_of(report, new);
            for instance in &mut place.instances[..count] {
                instance.state = InstanceState::Starting;
            }
        }
    };
    for agent in ["a1", "a2", "a3"] {
        world.report(agent, starting(2));
    }
    assert_eq!(world.action(), None);
    world.report("a1", starting(1));
    assert_eq!(world.action(), Some(Action::Progress { outstanding: 5 }));
    world.change(|new| new.fewest_outstanding = Some(5));
    assert_eq!(world.action(), None);
    world.now = START + Span::from_secs(40);
    world.report("a2", starting(0));
    world.report("a1", starting(0));
    assert_eq!(
        kind(world.action()),
        "InstancesReady",
        "a3 is lost, one of three may be"
    );
}

#[test]
fn the_progress_deadline_tells_why() {
    let mut world = world(Status::WaitingForInstances);
    let new = world.new;
    world.now = START + Span::from_mins(10);
    for agent in ["a1", "a2", "a3"] {
        world.report(agent, |report| {
            let place = World::place_of(report, new);
            for instance in &mut place.instances {
                instance.state = InstanceState::Backoff;
                instance.last_exit = Some("exited with 1".to_owned());
            }
        });
    }
    let Some(Action::NoteErrors { causes }) = world.action() else {
        panic!("{:?}", world.action());
    };
    world.change(|new| new.causes = causes);
    let Some(Action::TakeBack { cause, .. }) = world.action() else {
        panic!("{:?}", world.action());
    };
    assert_eq!(cause.kind, "progress_deadline");
    assert!(cause.message.contains("exited with 1"), "{}", cause.message);
}
