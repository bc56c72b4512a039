//! What the life of a deployment looks like from its commands: roles, conflicts, labels, approvals,
//! steps and batches, parameters.

use std::collections::BTreeMap;

use tidegate_shared::error::Reason;
use tidegate_shared::id::DeploymentId;
use tidegate_shared::spec::{Kind, ReleaseStatus};
use tidegate_shared::time::Span;
use tidegate_shared::weight::Weight;

use super::world::{World, cause, name, names, one, set_status, user, version};
use crate::command::{Action, Actor, Command, Decide, OnConflict, Verb};
use crate::state::{EndCause, ScopeStatus, Status};

#[test]
fn an_initial_deployment_gets_all_traffic_and_becomes_active() {
    let (mut world, id) = World::at(Status::Running, true);
    assert_eq!(world.get(id).traffic.desired, Weight::FULL);
    world.is(ScopeStatus::Creating);
    world.step(id, Action::StepReached);
    world.step(id, Action::Finalize { unverified: true });
    world.settle(id);
    assert_eq!(world.outcome(id), "promoted");
    assert!(world.get(id).unverified);
    assert_eq!(world.scope().active, Some(id));
    world.is(ScopeStatus::Ready);
}

#[test]
fn leftovers_of_the_replaced_version_stay_listed_until_they_are_gone() {
    let (mut world, id) = World::at(Status::Finalizing, false);
    let old = world.scope().active.unwrap();
    world.step(id, Action::Drained);
    let leftovers = names(&["a2", "a3", "gone-already"]);
    world.step(id, Action::Settled { leftovers });
    assert_eq!(world.scope().retired, vec![old]);
    assert_eq!(world.get(old).leftovers, names(&["a2", "a3"]));
    world.step(
        old,
        Action::LeftoversGone {
            agents: names(&["a2"]),
        },
    );
    let remove = Command::RemoveAgent(crate::command::AgentName { name: name("a3") });
    world.must(remove);
    assert!(world.scope().retired.is_empty());
}

#[test]
fn conflicts_name_what_is_in_the_way() {
    let (mut world, id) = World::at(Status::Running, false);
    let before = world.state.clone();
    let rejection = world.deploy_to("web", "3.0.0").unwrap_err();
    assert_eq!(rejection.reason, Reason::Conflict);
    assert!(rejection.message.contains(&id.to_string()), "{rejection}");
    assert!(rejection.message.contains("user:ann"), "{rejection}");
    world.unchanged_since(&before);
    world.on_conflict = OnConflict::Queue;
    let queued = world.deploy("3.0.0");
    let participants = names(&["a1", "a2", "a3"]);
    assert!(
        world
            .advance(
                queued,
                Action::Start {
                    participants,
                    gates: None,
                }
            )
            .is_err()
    );
    world.on_conflict = OnConflict::Supersede;
    let newer = world.deploy("4.0.0");
    assert_eq!(world.status(id), Status::RollingBack);
    world.settle(id);
    assert_eq!(world.outcome(id), "superseded");
    world.start(newer);
    assert_eq!(world.status(queued), Status::Cancelled);
    assert_eq!(world.outcome(queued), "superseded");
}

#[test]
fn superseding_waits_out_finalizing() {
    let (mut world, id) = World::at(Status::Finalizing, false);
    world.on_conflict = OnConflict::Supersede;
    let newer = world.deploy("3.0.0");
    assert_eq!(world.get(id).return_at_finalized, None);
    world.step(id, Action::Drained);
    world.settle(id);
    world.finish(newer);
    assert_eq!(world.scope().active, Some(newer));
}

/// What happens to a running deployment, and how it ends.
type Case = (
    &'static str,
    fn(&mut World, DeploymentId),
    Status,
    &'static str,
);

#[test]
fn labels_follow_the_cause() {
    let cases: [Case; 6] = [
        (
            "cancel before traffic",
            |w, id| {
                w.act(id, Verb::Cancel).unwrap();
            },
            Status::Cancelled,
            "cancelled",
        ),
        (
            "cancel with traffic",
            |w, id| {
                w.step(id, Action::StepDone { unverified: false });
                w.act(id, Verb::Cancel).unwrap();
            },
            Status::RolledBack,
            "cancelled",
        ),
        (
            "rollback",
            |w, id| {
                w.act(id, Verb::Rollback).unwrap();
            },
            Status::RolledBack,
            "rolled_back",
        ),
        (
            "rule",
            |w, id| {
                w.step(
                    id,
                    Action::TakeBack {
                        cause: cause("rule"),
                        evidence: Vec::new(),
                    },
                );
            },
            Status::RolledBack,
            "rolled_back",
        ),
        (
            "rejected",
            |w, _| {
                w.must(set_status("2.0.0", ReleaseStatus::Rejected));
            },
            Status::RolledBack,
            "rolled_back",
        ),
        (
            "superseded",
            |w, _| {
                w.on_conflict = OnConflict::Supersede;
                w.deploy("3.0.0");
            },
            Status::RolledBack,
            "superseded",
        ),
    ];
    for (what, act, end, label) in cases {
        let (mut world, id) = World::at(Status::Running, false);
        act(&mut world, id);
        assert_eq!(world.get(id).traffic.desired, Weight::ZERO, "{what}");
        world.settle(id);
        assert_eq!(
            (world.status(id), world.outcome(id)),
            (end, label),
            "{what}"
        );
    }
    let (mut world, id) = World::at(Status::Running, false);
    world.act(id, Verb::PromoteFull).unwrap();
    world.step(id, Action::StepReached);
    world.step(id, Action::Finalize { unverified: false });
    world.step(id, Action::Drained);
    world.settle(id);
    assert_eq!(world.outcome(id), "fast_promoted");
}

#[test]
fn an_initial_deployment_that_fails_leaves_nothing_active() {
    let (mut world, id) = World::at(Status::Running, true);
    world.step(
        id,
        Action::TakeBack {
            cause: cause("permanent_errors"),
            evidence: Vec::new(),
        },
    );
    assert_eq!(
        (world.status(id), world.outcome(id)),
        (Status::Failed, "failed")
    );
    assert_eq!(world.get(id).end_cause, Some(EndCause::Errors));
    assert_eq!(world.scope().retired, vec![id]);
    let good = world.deploy("3.0.0");
    world.finish(good);
    assert_eq!(world.scope().active, Some(good));
}

#[test]
fn approvals_are_counted_and_denials_final() {
    let (mut world, id) = World::at(Status::Pending, true);
    let policies = vec![(name("four-eyes"), 2)];
    world.must(world.object(
        "four-eyes",
        Kind::Policy,
        r#"{"approval": {"required": 2}}"#,
    ));
    let expires_at = world.now + Span::from_hours(1);
    world.step(
        id,
        Action::RequireApproval {
            policies,
            expires_at,
            withdrawn: Vec::new(),
        },
    );
    let decide = |granted| {
        Command::Decide(Decide {
            deployment: id,
            granted,
            reason: "because".to_owned(),
        })
    };
    world.run_as(user("ann"), decide(true)).unwrap();
    let twice = world.run_as(user("ann"), decide(false)).unwrap_err();
    assert_eq!(twice.reason, Reason::AlreadyDecided);
    let nobody = world.run_as(Actor::System, decide(true)).unwrap_err();
    assert_eq!(nobody.reason, Reason::PermissionDenied);
    assert!(world.advance(id, Action::ApprovalSatisfied).is_err());
    let mut denied = world.clone();
    denied.run_as(user("bob"), decide(false)).unwrap();
    assert_eq!(
        (denied.status(id), denied.outcome(id)),
        (Status::CreatingApprovalDenied, "denied")
    );
    let again = one(denied.act(id, Verb::Retry).unwrap());
    assert_eq!(
        denied.get(again).required.as_ref().unwrap().decisions.len(),
        1
    );
    world.run_as(user("bob"), decide(true)).unwrap();
    world.step(id, Action::ApprovalSatisfied);
    world.start(id);
    let late = world.run_as(user("cid"), decide(true)).unwrap_err();
    assert_eq!(late.reason, Reason::NoApprovalPending);
}

#[test]
fn a_weight_set_by_a_person_pauses_and_goes_on_above_it() {
    let (mut world, id) = World::at(Status::Running, false);
    let weight = |percent| Weight::share(percent, 100);
    world.act(id, Verb::Traffic(weight(30))).unwrap();
    assert_eq!(world.get(id).traffic.desired, weight(30));
    assert!(world.get(id).paused.is_some());
    world.act(id, Verb::Resume).unwrap();
    assert_eq!(world.get(id).traffic.desired, weight(50));
    world.act(id, Verb::Traffic(weight(1))).unwrap();
    world.act(id, Verb::Promote).unwrap();
    assert_eq!(world.get(id).traffic.desired, weight(5));
    assert!(world.get(id).paused.is_none());
    world.act(id, Verb::Traffic(Weight::FULL)).unwrap();
    assert!(world.act(id, Verb::Finalize).is_err());
    world.act(id, Verb::Resume).unwrap();
    world.step(id, Action::StepReached);
    world.act(id, Verb::Finalize).unwrap();
}

#[test]
fn rolling_replaces_and_returns_batch_by_batch() {
    let mut world = World::with_active();
    world.strategy(r#"{"kind": "rolling"}"#);
    let id = world.deploy("2.0.0");
    world.bring(id, Status::WaitingForInstances);
    let traffic = |world: &World| {
        let traffic = world.get(id).traffic;
        (traffic.replaced, traffic.desired)
    };
    assert_eq!(traffic(&world), (1, Weight::ZERO));
    world.step(id, Action::InstancesReady);
    assert_eq!(traffic(&world), (1, Weight::share(1, 3)));
    world.step(id, Action::StepDone { unverified: false });
    assert_eq!(traffic(&world), (2, Weight::share(1, 3)));
    assert_eq!(
        world.act(id, Verb::Promote).unwrap_err().reason,
        Reason::NotOffered
    );
    world.step(id, Action::BatchDone);
    assert_eq!(traffic(&world), (2, Weight::share(2, 3)));
    let refused = world.act(id, Verb::Traffic(Weight::ZERO)).unwrap_err();
    assert_eq!(refused.reason, Reason::NotOffered);
    world.act(id, Verb::Rollback).unwrap();
    assert_eq!(traffic(&world), (1, Weight::share(2, 3)));
    let leftovers = Vec::new();
    assert!(world.advance(id, Action::Settled { leftovers }).is_err());
    world.step(id, Action::BatchDone);
    assert_eq!(traffic(&world), (0, Weight::share(1, 3)));
    world.step(id, Action::BatchDone);
    assert_eq!(traffic(&world), (0, Weight::ZERO));
    world.settle(id);
    assert_eq!(world.outcome(id), "rolled_back");
}

#[test]
fn edits_of_a_scope_rescale_what_is_under_way() {
    let mut world = World::with_active();
    world.strategy(r#"{"kind": "rolling"}"#);
    let id = world.deploy("2.0.0");
    world.run_up(id);
    let wider = super::world::SCOPE.replacen('{', "{\"instances_per_agent\": 4,", 1);
    world.must(world.object("web", Kind::Scope, &wider));
    let traffic = world.get(id).traffic;
    assert_eq!((traffic.total, traffic.replaced), (12, 4));
    assert_eq!(traffic.desired, Weight::share(1, 3));
}

#[test]
fn parameters_take_the_most_specific_value() {
    let mut world = World::new();
    let targets = [
        ("p1", r#"{"application": "shop"}"#),
        ("p2", r#"{"environment": "production"}"#),
        (
            "p3",
            r#"{"environment": "production", "application": "shop"}"#,
        ),
        ("p4", r#"{"dimensions": {"region": "eu"}}"#),
        (
            "p5",
            r#"{"dimensions": {"region": "eu"}, "application": "shop"}"#,
        ),
        ("p6", r#"{"dimensions": {"region": "us"}}"#),
        ("p7", r#"{"scope": "web"}"#),
    ];
    let expected = ["p1", "p2", "p3", "p4", "p5", "p5", "p7"];
    for ((parameter, target), winner) in targets.iter().zip(expected) {
        let spec = format!(r#"{{"variable": "V", "value": "{parameter}", "target": {target}}}"#);
        world.must(world.object(parameter, Kind::Parameter, &spec));
        let id = world.deploy("1.0.0");
        assert_eq!(world.get(id).origin.parameters["V"].value, winner);
    }
    let own = super::world::SCOPE.replacen('{', "{\"parameters\": {\"V\": \"own\"},", 1);
    world.must(world.object("web", Kind::Scope, &own));
    let id = world.deploy("1.0.0");
    assert_eq!(world.get(id).origin.parameters["V"].value, "own");
}

#[test]
fn workers_roll() {
    let mut world = World::new();
    let worker = super::world::SCOPE.replace("8080", "\"none\"");
    world.must(world.object("queue", Kind::Scope, &worker));
    let id = one(world.deploy_to("queue", "1.0.0").unwrap());
    assert_eq!(world.get(id).origin.strategy.kind.as_str(), "rolling");
    world.strategy(r#"{"kind": "all_in"}"#);
    let refused = world.deploy_to("queue", "1.0.0").unwrap_err();
    assert_eq!(refused.reason, Reason::NotOffered);
}

#[test]
fn a_worker_with_rules_on_metrics_of_its_own_says_where_they_are() {
    let mut world = World::new();
    let worker = super::world::SCOPE.replace("8080", "\"none\"");
    world.must(world.object("queue", Kind::Scope, &worker));
    world.strategy(
        r#"{"rollback": {"rules": [{"metric": "app.rate(jobs_failed_total)", "comparison": "greater_than", "threshold": "1"}]}}"#,
    );
    let refused = world.deploy_to("queue", "1.0.0").unwrap_err();
    assert_eq!(refused.reason, Reason::NotOffered);
    assert!(refused.message.contains("metrics.port"), "{refused}");
    let told = worker.replacen('{', "{\"metrics\": {\"port\": 9100},", 1);
    world.must(world.object("queue", Kind::Scope, &told));
    world.deploy_to("queue", "1.0.0").unwrap();
}

#[test]
fn several_scopes_are_all_or_none() {
    let (mut world, id) = World::at(Status::Running, false);
    let command = |scopes: &[&str]| {
        Command::CreateDeployments(crate::command::CreateDeployments {
            application: name("shop"),
            version: version("3.0.0"),
            scopes: names(scopes),
            strategy: None,
            overrides: tidegate_shared::spec::StrategySpec::default(),
            labels: BTreeMap::new(),
            on_conflict: OnConflict::Fail,
        })
    };
    let rejection = world.refused(command(&["api", "web"]));
    assert!(rejection.message.contains(&id.to_string()));
    assert_eq!(
        world.refused(command(&["api", "api"])).reason,
        Reason::InvalidRequest
    );
    assert_eq!(
        world.refused(command(&["api", "nowhere"])).reason,
        Reason::NotFound
    );
    world.must(command(&["api"]));
}

#[test]
fn a_deployment_whose_agents_are_all_removed_still_ends() {
    for status in Status::ALL.into_iter().filter(|status| !status.is_end()) {
        let mut world = World::with_active();
        world.strategy(r#"{"kind": "rolling"}"#);
        let id = world.deploy("2.0.0");
        world.bring(id, status);
        for agent in ["a1", "a2", "a3"] {
            let agent = name(agent);
            world.must(Command::RemoveAgent(crate::command::AgentName {
                name: agent,
            }));
        }
        for _ in 0..10 {
            if world.status(id).is_end() {
                break;
            }
            world.expire(id);
        }
        assert!(world.status(id).is_end(), "{status}");
    }
}
