//! What the planner proposes in each status under scripted reports, and what it wishes meanwhile.

use tidegate_shared::assignment::{
    Counters, InstanceState, PermanentError, PermanentErrorKind, Report, Role, WishedState,
};
use tidegate_shared::spec::ReleaseStatus;
use tidegate_shared::time::Span;
use tidegate_shared::weight::Weight;

use crate::command::{Action, Actor, Command};
use crate::desired::desired;
use crate::fixture::{START, World, meta, name};
use crate::state::{Decision, EndCause, Halted, Paused, Required, Status};

const PLAIN: &str = r#"{"bake":"10s","traffic":{"steps":[{"percent":10,"hold":"5s"},{"percent":100,"hold":"manual"}]}}"#;

fn world(status: Status) -> World {
    World::new(3, 2, PLAIN, status)
}

fn kind(action: Option<Action>) -> String {
    action.map_or_else(
        || "nothing".to_owned(),
        |action| {
            let text = format!("{action:?}");
            let end = text.find([' ', '{']).unwrap_or(text.len());
            text[..end].to_owned()
        },
    )
}

fn broken(kind: PermanentErrorKind) -> Option<PermanentError> {
    Some(PermanentError {
        kind,
        message: "as told by the agent".to_owned(),
    })
}

#[test]
fn pending_starts_when_every_gate_is_open() {
    let mut world = world(Status::Pending);
    assert_eq!(
        world.action(),
        Some(Action::Start {
            participants: vec![name("a1"), name("a2"), name("a3")]
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
    world.state.agents.clear();
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
    let Command::Advance(advance) = &plan.commands[0].command else {
        panic!("{plan:?}");
    };
    assert_eq!(advance.deployment, id);
}

fn decided(world: &mut World, decisions: &[(&str, bool)]) {
    let decisions = decisions.iter().map(|(person, granted)| Decision {
        by: Actor::User(name(person)),
        granted: *granted,
        at: START + Span::from_secs(1),
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
    assert_eq!(
        world.action(),
        Some(Action::ApprovalDenied { expired: false })
    );
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
    world.policy("odd", "user.name == \"ann\"", 1);
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
    world.change(|new| new.origin.fast = true);
    world.at_step(0, 100, Some(START));
    requests(&mut world, 0, 0);
    world.now = START + Span::from_millis(350);
    requests(&mut world, 100, 100);
    assert_eq!(world.action(), Some(Action::Finalize { unverified: false }));
}

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
    world.state.deployments.get_mut(&old).unwrap().status = Status::Deleting;
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
        };
        new.origin.parameters.insert("A".to_owned(), parameter);
    });
    let wish = desired(&world.state, &name("a1"));
    let env = |id| {
        let item = wish.items.iter().find(|item| item.deployment == id);
        item.unwrap().run.env["A"].clone()
    };
    assert_eq!(env(world.old), "asset");
    assert_eq!(env(world.new), "scope");
}
