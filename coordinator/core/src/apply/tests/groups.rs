//! Groups by commands alone: all or none, verbs with what they leave, turns, ends for good.

use std::collections::BTreeMap;

use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, GroupId};
use tidegate_shared::spec::{Kind, RolloutSpec};

use super::world::{
    SCOPE, World, cause, name, names, require_approval, user, verb_command, version,
};
use crate::command::{
    ActOnGroup, Action, Actor, AddToGroup, AdvanceGroup, Command, CreateDeployments, CreateGroup,
    DecideGroup, GateEvidence, GroupAction, GroupTurn, Item, OnConflict, Outcome, Reply,
    RequestKey, Verb,
};
use crate::rejection::Rejection;
use crate::state::{Fate, Group, GroupOutcome, GroupStatus, KEPT_GROUPS, Status};

const SCOPES: [&str; 3] = ["web", "api", "db"];

struct Groups {
    world: World,
    group: GroupId,
}

fn rollout(json: &str) -> RolloutSpec {
    serde_json::from_str(json).unwrap()
}

fn command(release: &str, scopes: &[&str], rollout: Option<RolloutSpec>) -> CreateGroup {
    CreateGroup {
        name: None,
        deployments: CreateDeployments {
            application: name("shop"),
            version: version(release),
            scopes: names(scopes),
            strategy: None,
            overrides: Default::default(),
            labels: BTreeMap::new(),
            on_conflict: OnConflict::Fail,
        },
        rollout,
    }
}

impl Groups {
    /// Version 1.0.0 is active in `web` and `api`; a group of 2.0.0 over these and `db` has begun.
    fn new(json: &str) -> Self {
        let mut world = World::with_active();
        let id = super::world::one(world.deploy_to("api", "1.0.0").unwrap());
        world.finish(id);
        world.must(world.object("db", Kind::Scope, SCOPE));
        let create = command("2.0.0", &SCOPES, Some(rollout(json)));
        let mut groups = Self {
            group: made(world.must(Command::CreateGroup(create))),
            world,
        };
        let waves = match groups.get().rollout.waves.len() {
            0 => Vec::new(),
            1 => vec![1, 2],
            more => panic!("{more} waves"),
        };
        let order = vec![0, 1, 2];
        groups.advance(GroupAction::Begin { order, waves }).unwrap();
        groups
    }

    fn get(&self) -> &Group {
        self.world.state.group(self.group).unwrap()
    }

    fn status(&self) -> GroupStatus {
        self.get().status(&self.world.state)
    }

    fn member(&self, scope: &str) -> DeploymentId {
        let group = self.get();
        group.members[&group.scopes[&name(scope)]].deployment
    }

    fn act(&mut self, verb: Verb) -> Outcome {
        let command = Command::ActOnGroup(ActOnGroup {
            group: self.group,
            verb,
            expected_revision: None,
            reason: String::new(),
        });
        self.world.run(command)
    }

    fn acted(&mut self, verb: Verb) -> (Vec<DeploymentId>, BTreeMap<String, String>) {
        match self.act(verb).unwrap() {
            Reply::GroupActed { done, left, .. } => {
                let left = left.into_iter();
                (
                    done,
                    left.map(|(scope, why)| (scope.to_string(), why)).collect(),
                )
            }
            other => panic!("{other:?}"),
        }
    }

    fn refused(&mut self, verb: Verb) -> Rejection {
        self.act(verb).unwrap_err()
    }

    fn advance(&mut self, action: GroupAction) -> Outcome {
        let revision = self.get().meta.revision;
        let key = format!("{} {revision} {}", self.group, self.world.index);
        let item = Item {
            actor: Actor::System,
            request: RequestKey::Planner(Digest::of(key.as_bytes())),
            command: Box::new(Command::AdvanceGroup(AdvanceGroup {
                group: self.group,
                revision,
                action,
            })),
        };
        self.world.apply(item).outcome
    }

    fn turn(&self, paced: bool) -> Action {
        Action::Start {
            participants: names(&["a1", "a2", "a3"]),
            gates: Some(GateEvidence {
                revision: self.world.state.gates_revision,
                counts: false,
                rules: Vec::new(),
                group: Some(GroupTurn {
                    revision: self.get().gates_revision,
                    paced,
                }),
            }),
        }
    }

    fn start(&mut self, scope: &str) -> Outcome {
        let (id, turn) = (self.member(scope), self.turn(false));
        self.world.advance(id, turn)
    }

    fn run_up(&mut self, scope: &str) {
        self.start(scope).unwrap();
        let id = self.member(scope);
        self.world.step(id, Action::Staged);
        self.world.step(id, Action::InstancesReady);
    }

    fn finish(&mut self, scope: &str) {
        self.run_up(scope);
        self.finish_running(scope);
    }

    fn finish_running(&mut self, scope: &str) {
        let id = self.member(scope);
        self.world.through_steps(id);
        self.world.step(id, Action::Finalize { unverified: false });
        if scope != "db" {
            self.world.step(id, Action::Drained);
        }
        self.world.settle(id);
    }

    /// Fails before any traffic moved.
    fn fail(&mut self, scope: &str) {
        self.start(scope).unwrap();
        let id = self.member(scope);
        let leftovers = Vec::new();
        self.world.step(id, Action::Expire { leftovers });
        assert_eq!(self.world.status(id), Status::Failed);
    }

    fn settle(&mut self, scope: &str) {
        let id = self.member(scope);
        self.world.settle(id);
    }
}

fn made(reply: Reply) -> GroupId {
    match reply {
        Reply::Group { group, .. } => group,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_group_is_made_as_a_whole_or_not_at_all() {
    let mut world = World::with_active();
    world.must(world.object("db", Kind::Scope, SCOPE));
    let busy = super::world::one(world.deploy_to("web", "2.0.0").unwrap());
    world.start(busy);
    let other = super::world::one(world.deploy_to("api", "2.0.0").unwrap());
    world.start(other);
    let create = |scopes: &[&str]| Command::CreateGroup(command("3.0.0", scopes, None));
    let refusal = world.refused(create(&SCOPES));
    assert_eq!(refusal.reason, Reason::Conflict);
    for part in [
        "2 of 3 scopes are busy: ",
        "api: deployment",
        "web: deployment",
        "by user:ann",
    ] {
        assert!(refusal.to_string().contains(part), "{refusal}");
    }
    for (scopes, reason) in [
        (vec!["db", "nowhere"], Reason::NotFound),
        (vec!["db", "db"], Reason::InvalidRequest),
        (vec![], Reason::InvalidRequest),
    ] {
        assert_eq!(world.refused(create(&scopes)).reason, reason);
    }
    let bad = command("3.0.0", &["db"], Some(rollout(r#"{"kind":"linear"}"#)));
    let refusal = world.refused(Command::CreateGroup(bad));
    assert_eq!(refusal.fields[0].field, "interval");
    let mut named = command("3.0.0", &["db"], None);
    named.name = Some(name("autumn"));
    let group = made(world.must(Command::CreateGroup(named.clone())));
    let refusal = world.refused(Command::CreateGroup(named));
    assert_eq!(refusal.reason, Reason::AlreadyExists);
    let found = world.state.group_called("autumn").unwrap();
    assert_eq!(found.id, group);
    assert_eq!(
        world.state.group_called(found.short.as_str()).unwrap().id,
        group
    );
    assert_eq!(found.status(&world.state), GroupStatus::Pending);
    let member = &found.members[&0];
    assert_eq!(world.get(member.deployment).group, Some(group));
}

#[test]
fn the_rollout_is_the_strategys_unless_the_request_says_otherwise() {
    let mut world = World::new();
    let spec = r#"{"rollout": {"kind": "linear", "interval": "9s"}}"#;
    world.must(world.object("slow", Kind::Strategy, spec));
    let mut create = command("1.0.0", &["web"], None);
    create.deployments.strategy = Some(name("slow"));
    let group = made(world.must(Command::CreateGroup(create.clone())));
    let kind = |world: &World, id: GroupId| world.state.groups[&id].rollout.kind.as_str();
    assert_eq!(kind(&world, group), "linear");
    create.rollout = Some(rollout("{}"));
    let group = made(world.must(Command::CreateGroup(create)));
    assert_eq!(kind(&world, group), "all_at_once");
}

#[test]
fn a_start_needs_its_turn() {
    let mut groups = Groups::new(
        r#"{"kind":"waves","waves":[{"name":"canary","count":1}],"budget":{"max_failures":0}}"#,
    );
    let web = groups.member("web");
    let bare = Action::Start {
        participants: names(&["a1", "a2", "a3"]),
        gates: None,
    };
    let refusal = groups.world.advance(web, bare).unwrap_err();
    assert_eq!(refusal.reason, Reason::Stale);
    let refusal = groups.start("api").unwrap_err();
    assert!(
        refusal.message.contains("its wave is not open"),
        "{refusal}"
    );
    groups.act(Verb::Pause).unwrap();
    let refusal = groups.start("web").unwrap_err();
    assert!(refusal.message.contains("paused"), "{refusal}");
    groups.act(Verb::Resume).unwrap();
    let early = groups.advance(GroupAction::OpenWave {
        wave: 1,
        why: String::new(),
    });
    let message = early.unwrap_err().message;
    assert!(
        message.contains("scope web of an earlier wave"),
        "{message}"
    );
    // Two starts that were decided on the same revision: the second one is stale.
    let turn = groups.turn(true);
    groups.world.advance(web, turn.clone()).unwrap();
    let api = groups.member("api");
    let refusal = groups.world.advance(api, turn).unwrap_err();
    assert_eq!(refusal.reason, Reason::Stale);
    groups.world.step(web, Action::Staged);
    groups.world.step(web, Action::InstancesReady);
    groups.finish_running("web");
    let open = GroupAction::OpenWave {
        wave: 1,
        why: String::new(),
    };
    groups.advance(open).unwrap();
    groups.fail("api");
    groups
        .advance(GroupAction::Failed { members: vec![1] })
        .unwrap();
    let refusal = groups.start("db").unwrap_err();
    assert!(refusal.message.contains("failure budget"), "{refusal}");
    groups.advance(GroupAction::Breach).unwrap();
    let refusal = groups.start("db").unwrap_err();
    assert!(refusal.message.contains("halted"), "{refusal}");
    // A person lets the failure pass, and the next one halts again.
    groups.act(Verb::Resume).unwrap();
    groups.fail("db");
    groups
        .advance(GroupAction::Failed { members: vec![2] })
        .unwrap();
    groups.advance(GroupAction::Breach).unwrap();
    groups.advance(GroupAction::End).unwrap();
    let group = groups.get();
    assert_eq!(groups.status(), GroupStatus::Finalized);
    assert_eq!(
        group.outcome(&groups.world.state),
        Some(GroupOutcome::Mixed)
    );
    assert_eq!(group.halted, None);
}

#[test]
fn a_group_is_cancelled_only_while_every_member_is_running() {
    let mut groups = Groups::new("{}");
    groups.run_up("web");
    groups.run_up("db");
    let refusal = groups.refused(Verb::Cancel);
    assert_eq!(refusal.reason, Reason::GroupNotRunning);
    let told = "RUNNING; 1 of 3 are in the way: api: is PENDING";
    assert!(refusal.to_string().ends_with(told), "{refusal}");
    assert_eq!(
        refusal.scopes,
        [(name("api"), "is PENDING".to_owned())],
        "and one by one"
    );
    groups.run_up("api");
    assert_eq!(groups.status(), GroupStatus::Running);
    let (done, left) = groups.acted(Verb::Cancel);
    assert_eq!((done.len(), left.len()), (3, 0));
    assert_eq!(groups.status(), GroupStatus::Cancelling);
    // Again, and a rollback: nothing changes.
    for verb in [Verb::Cancel, Verb::Rollback] {
        assert_eq!(groups.acted(verb).0, Vec::new());
    }
    let refusal = groups.advance(GroupAction::End).unwrap_err();
    assert_eq!(refusal.reason, Reason::WrongStatus);
    for scope in SCOPES {
        groups.settle(scope);
    }
    groups.advance(GroupAction::End).unwrap();
    assert_eq!(groups.status(), GroupStatus::Cancelled);
    assert_eq!(groups.refused(Verb::Pause).reason, Reason::GroupEnded);
    assert_eq!(groups.refused(Verb::Cancel).reason, Reason::GroupEnded);
    assert_eq!(
        groups.refused(Verb::Rollback).reason,
        Reason::GroupNothingToDo
    );
}

#[test]
fn a_rollback_takes_each_member_back_as_far_as_it_can() {
    let mut groups = Groups::new("{}");
    groups.finish("web");
    groups.run_up("api");
    let (web, api, db) = (
        groups.member("web"),
        groups.member("api"),
        groups.member("db"),
    );
    let (done, left) = groups.acted(Verb::Rollback);
    assert_eq!(left, BTreeMap::new());
    let status = |groups: &Groups, id| groups.world.status(id);
    assert_eq!(status(&groups, web), Status::Finalized);
    assert_eq!(status(&groups, api), Status::RollingBack);
    assert_eq!(status(&groups, db), Status::Cancelled);
    assert_eq!(groups.world.outcome(db), "cancelled");
    let back = *done.iter().find(|id| ![web, api, db].contains(id)).unwrap();
    let record = groups.world.get(back);
    assert!(record.origin.fast && record.origin.version == version("1.0.0"));
    assert_eq!(record.group, Some(groups.group));
    assert_eq!(groups.status(), GroupStatus::RollingBack);
    groups.settle("api");
    let refusal = groups.advance(GroupAction::End).unwrap_err();
    assert_eq!(refusal.reason, Reason::WrongStatus);
    groups.world.finish(back);
    groups.advance(GroupAction::End).unwrap();
    assert_eq!(groups.status(), GroupStatus::RolledBack);
    let closed = groups.get().closed.clone().unwrap();
    assert_eq!(
        closed.message,
        "1 finalized, 0 failed, 2 otherwise, 1 returned"
    );
}

#[test]
fn a_rollback_names_what_it_leaves() {
    let mut groups = Groups::new("{}");
    for scope in SCOPES {
        groups.finish(scope);
    }
    // Somebody deploys something else to `web` meanwhile.
    let newer = super::world::one(groups.world.deploy_to("web", "3.0.0").unwrap());
    groups.world.finish(newer);
    groups.advance(GroupAction::End).unwrap();
    assert_eq!(groups.status(), GroupStatus::Finalized);
    assert_eq!(
        groups.get().outcome(&groups.world.state),
        Some(GroupOutcome::Succeeded)
    );
    let (done, left) = groups.acted(Verb::Rollback);
    assert_eq!(done.len(), 1, "{done:?}");
    assert!(
        left["web"].starts_with("runs 3.0.0 by deployment"),
        "{left:?}"
    );
    assert!(left["db"].contains("no earlier good release"), "{left:?}");
    // A fixed status is broken by that alone.
    assert_eq!(groups.status(), GroupStatus::RollingBack);
    groups.world.finish(done[0]);
    groups.advance(GroupAction::End).unwrap();
    assert_eq!(groups.status(), GroupStatus::RolledBack);
}

#[test]
fn no_rollback_while_it_finalizes_and_a_member_that_does_returns_afterwards() {
    let mut groups = Groups::new("{}");
    groups.run_up("web");
    let web = groups.member("web");
    groups.world.through_steps(web);
    groups
        .world
        .step(web, Action::Finalize { unverified: false });
    groups.run_up("api");
    assert_eq!(groups.status(), GroupStatus::Running);
    let mut all = Groups {
        world: groups.world.clone(),
        group: groups.group,
    };
    for scope in ["api", "db"] {
        let id = all.member(scope);
        all.world.act(id, Verb::Cancel).unwrap();
        if scope == "api" {
            all.world.settle(id);
        }
    }
    assert_eq!(all.status(), GroupStatus::Finalizing);
    assert_eq!(all.refused(Verb::Rollback).reason, Reason::GroupFinalizing);
    // One of several that finalizes does not hold the others up.
    groups.act(Verb::Rollback).unwrap();
    groups.world.step(web, Action::Drained);
    groups.world.settle(web);
    groups.settle("api");
    let back = *groups.get().returns.keys().next().unwrap();
    assert_eq!(groups.world.status(back), Status::Pending);
    assert_eq!(groups.status(), GroupStatus::RollingBack);
    groups.world.finish(back);
    groups.advance(GroupAction::End).unwrap();
    assert_eq!(groups.status(), GroupStatus::RolledBack);
}

#[test]
fn verbs_act_on_those_that_take_them_and_report_the_rest() {
    let mut groups = Groups::new("{}");
    groups.run_up("web");
    let refusal = groups.refused(Verb::Retry);
    assert_eq!(refusal.reason, Reason::NotOffered);
    let (done, left) = groups.acted(Verb::PromoteFull);
    assert_eq!(done, vec![groups.member("web")]);
    assert_eq!(left.len(), 2);
    assert!(left["api"].contains("is PENDING"), "{left:?}");
    groups.finish_running("web");
    let refusal = groups.refused(Verb::Finalize);
    assert_eq!(refusal.reason, Reason::GroupNothingToDo);
    let told = "no member takes finalize: web: is FINALIZED";
    assert!(refusal.to_string().contains(told), "{refusal}");
    assert_eq!(refusal.scopes.len(), 3);
    let (done, left) = groups.acted(Verb::Pause);
    assert_eq!((done.len(), left.len()), (2, 1));
    let stale = Command::ActOnGroup(ActOnGroup {
        group: groups.group,
        verb: Verb::Resume,
        expected_revision: Some(1),
        reason: String::new(),
    });
    assert_eq!(groups.world.refused(stale).reason, Reason::Stale);
    groups.act(Verb::Resume).unwrap();
    let api = groups.member("api");
    assert!(groups.world.get(api).paused.is_none());
    assert_eq!(groups.get().paused, None);
}

#[test]
fn a_group_that_is_taken_back_is_not_paused_but_members_that_it_left_are() {
    let mut groups = Groups::new("{}");
    // A first release of a scope has nothing to return to: it is left.
    groups.run_up("web");
    groups.run_up("db");
    let (_, left) = groups.acted(Verb::Rollback);
    assert!(left["db"].contains("nothing to return to"), "{left:?}");
    assert_eq!(groups.status(), GroupStatus::RollingBack);
    let db = groups.member("db");
    let (done, left) = groups.acted(Verb::Pause);
    assert_eq!((done, left.len()), (vec![db], 2));
    assert!(groups.world.get(db).paused.is_some());
    assert_eq!(groups.get().paused, None);
    groups.acted(Verb::Resume);
    groups.world.act(db, Verb::Cancel).unwrap();
    let refusal = groups.refused(Verb::Pause);
    assert_eq!(refusal.reason, Reason::GroupNothingToDo);
    assert_eq!(refusal.scopes.len(), 3, "{refusal}");
}

#[test]
fn a_retry_takes_the_place_of_the_member_that_failed() {
    let mut groups = Groups::new(r#"{"budget":{"max_failures":0}}"#);
    groups.fail("web");
    let failed = groups.member("web");
    assert_eq!(
        groups.get().members[&0].ended.as_ref().unwrap().fate,
        Fate::Undecided
    );
    assert_eq!(groups.get().tally.ended, 0);
    groups.world.step(
        failed,
        Action::Retry {
            why: "a rule".to_owned(),
        },
    );
    let second = groups.member("web");
    let record = groups.world.get(second);
    assert_eq!((record.tries, record.group), (1, Some(groups.group)));
    assert_eq!(record.meta.created_by, user("ann"));
    assert_eq!(groups.get().members[&0].former, vec![failed]);
    groups.fail("web");
    groups
        .advance(GroupAction::Failed { members: vec![0] })
        .unwrap();
    assert!(groups.get().is_over_budget());
    // A person tries again: the failure is taken back.
    let second = groups.member("web");
    groups.world.act(second, Verb::Retry).unwrap();
    assert!(!groups.get().is_over_budget());
    groups.finish("web");
    assert_eq!(groups.get().tally.failures, 0);
    // Rolled back by a rule: counted at once.
    groups.run_up("api");
    let api = groups.member("api");
    groups.world.step(
        api,
        Action::TakeBack {
            cause: cause("rule"),
            evidence: Vec::new(),
        },
    );
    groups.settle("api");
    assert!(groups.get().is_over_budget());
    // Traffic had moved: a rule asks for no other try.
    let refused = groups
        .world
        .advance(api, Action::Retry { why: String::new() });
    assert_eq!(refused.unwrap_err().reason, Reason::WrongStatus);
}

#[test]
fn one_decision_is_about_every_member_that_waits_for_it() {
    let mut groups = Groups::new("{}");
    let decide = |groups: &Groups, granted| {
        Command::DecideGroup(DecideGroup {
            group: groups.group,
            granted,
            reason: String::new(),
            expected_revision: None,
        })
    };
    let nobody = groups.world.refused(decide(&groups, true));
    assert_eq!(nobody.reason, Reason::NoApprovalPending);
    assert_eq!(nobody.scopes.len(), 3, "{nobody}");
    for scope in ["web", "api", "db"] {
        let id = groups.member(scope);
        let asks = require_approval(groups.world.now);
        groups.world.step(id, asks);
    }
    assert_eq!(groups.status(), GroupStatus::CreatingApproval);
    let grant = decide(&groups, true);
    let reply = groups.world.run_as(user("bob"), grant).unwrap();
    assert!(matches!(reply, Reply::GroupActed { done, .. } if done.len() == 3));
    let web = groups.member("web");
    groups.world.step(web, Action::ApprovalSatisfied);
    assert_eq!(groups.status(), GroupStatus::Pending);
    // A second decision of the same person is none, and every member is named.
    let again = decide(&groups, false);
    let refusal = groups.world.run_as(user("bob"), again).unwrap_err();
    assert_eq!(refusal.reason, Reason::AlreadyDecided);
    assert_eq!(refusal.scopes.len(), 3, "{refusal}");
    let deny = decide(&groups, false);
    let reply = groups.world.run_as(user("eve"), deny.clone()).unwrap();
    assert!(matches!(reply, Reply::GroupActed { done, left, .. }
        if done.len() == 2 && left.len() == 1));
    groups.world.act(web, Verb::Cancel).unwrap();
    groups.advance(GroupAction::End).unwrap();
    assert_eq!(groups.status(), GroupStatus::Finalized);
    assert_eq!(
        groups.get().outcome(&groups.world.state),
        Some(GroupOutcome::Failed)
    );
    let refusal = groups.world.run_as(user("joe"), deny).unwrap_err();
    assert_eq!(refusal.reason, Reason::GroupEnded);
}

#[test]
fn who_is_added_comes_last() {
    let mut groups =
        Groups::new(r#"{"kind":"waves","waves":[{"name":"canary","count":1}],"order":"name"}"#);
    groups
        .world
        .must(groups.world.object("aaa", Kind::Scope, SCOPE));
    let add = |scopes: &[&str], group| {
        Command::AddToGroup(AddToGroup {
            group,
            scopes: names(scopes),
            expected_revision: None,
        })
    };
    let again = add(&["web"], groups.group);
    assert_eq!(groups.world.refused(again).reason, Reason::AlreadyExists);
    let more = add(&["aaa"], groups.group);
    groups.world.must(more);
    let last = groups.get().in_order().last().unwrap().1;
    assert_eq!((last.scope.as_str(), last.wave), ("aaa", Some(1)));
    groups.run_up("web");
    groups.act(Verb::Rollback).unwrap();
    let late = add(&["aaa"], groups.group);
    assert_eq!(groups.world.refused(late).reason, Reason::GroupTakenBack);
}

#[test]
fn who_adds_or_decides_may_say_which_revision_they_saw() {
    let mut groups = Groups::new("{}");
    groups
        .world
        .must(groups.world.object("aaa", Kind::Scope, SCOPE));
    let seen = groups.get().meta.revision;
    let add = |expected| {
        Command::AddToGroup(AddToGroup {
            group: groups.group,
            scopes: names(&["aaa"]),
            expected_revision: Some(expected),
        })
    };
    let decide = |expected| {
        Command::DecideGroup(DecideGroup {
            group: groups.group,
            granted: true,
            reason: String::new(),
            expected_revision: Some(expected),
        })
    };
    let (late, early, decide_late) = (add(seen + 1), add(seen), decide(seen));
    let stale = groups.world.refused(late);
    assert_eq!(stale.reason, Reason::Stale);
    assert!(stale.message.contains("changed meanwhile"), "{stale}");
    groups.world.must(early);
    assert!(groups.get().meta.revision > seen);
    assert_eq!(groups.get().members.len(), 4);
    let web = groups.member("web");
    let asks = require_approval(groups.world.now);
    groups.world.step(web, asks);
    let refusal = groups.world.run_as(user("bob"), decide_late).unwrap_err();
    assert_eq!(refusal.reason, Reason::Stale);
    let decide_seen = Command::DecideGroup(DecideGroup {
        group: groups.group,
        granted: true,
        reason: String::new(),
        expected_revision: Some(groups.get().meta.revision),
    });
    let reply = groups.world.run_as(user("bob"), decide_seen).unwrap();
    assert!(matches!(reply, Reply::GroupActed { done, .. } if done == [web]));
}

#[test]
fn a_budget_can_turn_the_whole_group_back() {
    let mut groups = Groups::new(r#"{"budget":{"max_failures":0,"on_breach":"rollback"}}"#);
    groups.finish("web");
    groups.fail("api");
    let early = groups.advance(GroupAction::Breach).unwrap_err();
    assert_eq!(early.reason, Reason::WrongStatus);
    groups
        .advance(GroupAction::Failed { members: vec![1] })
        .unwrap();
    groups.advance(GroupAction::Breach).unwrap();
    assert_eq!(groups.status(), GroupStatus::RollingBack);
    let db = groups.member("db");
    assert_eq!(groups.world.status(db), Status::Cancelled);
    let back = *groups.get().returns.keys().next().unwrap();
    groups.world.finish(back);
    groups.advance(GroupAction::End).unwrap();
    assert_eq!(groups.status(), GroupStatus::RolledBack);
}

#[test]
fn what_scopes_do_later_changes_no_group_that_has_ended() {
    let mut groups = Groups::new("{}");
    for scope in SCOPES {
        groups.finish(scope);
    }
    groups.advance(GroupAction::End).unwrap();
    groups.world.must(super::world::stop(false));
    assert_eq!(groups.world.status(groups.member("web")), Status::Deleting);
    assert_eq!(groups.status(), GroupStatus::Finalized);
    groups.settle("web");
    assert_eq!(groups.status(), GroupStatus::Finalized);
}

#[test]
fn the_newest_groups_that_ended_are_kept() {
    let mut world = World::new();
    let mut made_ones = Vec::new();
    for index in 0..KEPT_GROUPS + 3 {
        let mut create = command("1.0.0", &["web"], None);
        create.name = Some(name(&format!("g{index}")));
        create.deployments.on_conflict = OnConflict::Queue;
        let group = made(world.must(Command::CreateGroup(create)));
        made_ones.push(group);
        let member = world.state.groups[&group].members[&0].deployment;
        world.must(verb_command(member, Verb::Cancel));
        let mut groups = Groups { world, group };
        groups.advance(GroupAction::End).unwrap();
        world = groups.world;
    }
    assert_eq!(world.state.groups.len(), KEPT_GROUPS);
    assert!(
        made_ones[..3]
            .iter()
            .all(|id| !world.state.groups.contains_key(id))
    );
    assert!(world.state.group_called("g2").is_err());
    assert_eq!(world.state.group_called("g3").unwrap().id, made_ones[3]);
}

#[test]
fn members_take_the_checks_of_the_rollout_besides_their_own() {
    let mut world = World::new();
    world.must(world.object("api", Kind::Scope, SCOPE));
    let own = r#"{"verification": [{"name": "own", "http": {"path": "/"}, "when": [1]}]}"#;
    world.must(world.object("checked", Kind::Strategy, own));
    let json = r#"{"kind": "linear", "interval": "1s", "gate": "verified",
        "verification": [{"name": "front", "http": {"url": "http://example.com/"}}]}"#;
    let mut create = command("1.0.0", &["web"], Some(rollout(json)));
    create.deployments.strategy = Some(name("checked"));
    let group = made(world.must(Command::CreateGroup(create.clone())));
    world.must(Command::AddToGroup(AddToGroup {
        group,
        scopes: names(&["api"]),
        expected_revision: None,
    }));
    for member in world.state.groups[&group].members.values() {
        let strategy = &world.state.deployments[&member.deployment].origin.strategy;
        let checks = strategy.verification.iter();
        let checks: Vec<String> = checks
            .map(|check| format!("{} {:?}", check.name, check.when))
            .collect();
        assert_eq!(
            checks,
            ["own [Step(1)]", "front [Last]"],
            "{}",
            member.scope
        );
    }
    // Names are unique over both lists.
    let same = json.replace("front", "own");
    create.rollout = Some(rollout(&same));
    let refused = world.refused(Command::CreateGroup(create));
    assert_eq!(refused.reason, Reason::InvalidField);
    assert!(
        refused.message.contains("\"own\" is there twice"),
        "{}",
        refused.message
    );
}
