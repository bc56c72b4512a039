//! Objects, members, tokens and newcomers.

use std::collections::BTreeMap;

use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::spec::Kind;
use tidegate_shared::time::Span;

use super::world::{SCOPE, World, create_release, init, join, name, release_spec, token, version};
use crate::command::{
    AgentName, Command, CreateRelease, DeleteObject, Join, MemberId, PutObject, RaiseLevel, Reply,
    TokenKind, UpdateMember,
};
use crate::policy::REFERENCES_LEVEL;
use crate::state::Addresses;

fn delete(kind: Kind, object: &str) -> Command {
    Command::DeleteObject(DeleteObject {
        kind,
        name: name(object),
        expected_revision: None,
    })
}

fn invite(id: &str, kind: TokenKind, bound: Option<&str>, uses: u32, world: &World) -> Command {
    Command::CreateToken(crate::command::CreateToken {
        id: id.parse().unwrap(),
        kind,
        secret_hash: Digest::of(b"other"),
        labels: BTreeMap::new(),
        expires_at: world.now + Span::from_hours(1),
        uses,
        name: bound.map(name),
        roles: Vec::new(),
    })
}

fn join_with(id: &str, newcomer: &str, secret: &[u8]) -> Command {
    Command::Join(Join {
        token: id.parse().unwrap(),
        secret_hash: Digest::of(secret),
        name: name(newcomer),
        facts: BTreeMap::new(),
        addresses: Some(Addresses::default()),
    })
}

const OTHER: &str = "01ARZ3NDEKTSV4RRFFQ69G5FB0";

#[test]
fn nothing_is_done_before_init_and_init_once() {
    let mut world = World::empty();
    let early = world.refused(create_release("1.0.0"));
    assert!(early.message.contains("not initialised"));
    world.must(Command::InitCluster(init()));
    let again = world.refused(Command::InitCluster(init()));
    assert_eq!(again.reason, Reason::AlreadyExists);
}

#[test]
fn writing_the_same_changes_nothing_and_revisions_guard() {
    let mut world = World::new();
    let write = world.object("web", Kind::Scope, SCOPE);
    let Reply::Object {
        revision, changed, ..
    } = world.must(write.clone())
    else {
        panic!("no object");
    };
    assert!(!changed);
    let Command::PutObject(put) = write else {
        panic!("no write")
    };
    let stale = PutObject {
        expected_revision: Some(revision - 1),
        ..put.clone()
    };
    assert_eq!(
        world.refused(Command::PutObject(stale)).reason,
        Reason::Stale
    );
    let fresh = PutObject {
        must_not_exist: true,
        ..put
    };
    assert_eq!(
        world.refused(Command::PutObject(fresh)).reason,
        Reason::AlreadyExists
    );
    world.must(world.object("staging", Kind::Environment, "{}"));
    let moved = world.object("web", Kind::Scope, &SCOPE.replace("production", "staging"));
    assert_eq!(world.refused(moved).reason, Reason::Immutable);
    let lost = world.object("new", Kind::Scope, &SCOPE.replace("production", "nowhere"));
    let rejection = world.refused(lost);
    assert_eq!(rejection.reason, Reason::NotFound);
    assert_eq!(rejection.fields[0].field, "environment");
}

/// A policy as it is written, and at a level.
fn dependent(world: &World, on: &str) -> Command {
    let spec = format!(r#"{{"dependencies": [{{"application": "{on}", "version": ">=1"}}]}}"#);
    world.object("needs", Kind::Policy, &spec)
}

fn raise(world: &mut World, level: u32) {
    world.must(Command::UpdateMember(UpdateMember {
        node: 1,
        addresses: Addresses::default(),
        version: "next".to_owned(),
        level,
    }));
    world.must(Command::RaiseLevel(RaiseLevel { level }));
}

#[test]
fn a_policy_holds_on_to_the_applications_that_it_names_from_its_level_on() {
    let mut world = World::new();
    // Entries of before are applied as they were.
    world.must(dependent(&world, "nobody"));
    world.must(world.object("db", Kind::Application, "{}"));
    world.must(dependent(&world, "db"));
    world.must(delete(Kind::Application, "db"));
    raise(&mut world, REFERENCES_LEVEL);
    let before = world.state.policies.clone();
    let refused = world.refused(dependent(&world, "db"));
    assert_eq!(refused.reason, Reason::NotFound);
    assert_eq!(refused.fields[0].field, "dependencies[0].application");
    assert_eq!(
        refused.message,
        "policy \"needs\": dependencies[0].application: there is no application \"db\""
    );
    assert!(world.state.policies == before, "something was written");
    world.must(world.object("db", Kind::Application, "{}"));
    world.must(delete(Kind::Policy, "needs"));
    world.must(dependent(&world, "db"));
    let refused = world.refused(delete(Kind::Application, "db"));
    assert_eq!(refused.reason, Reason::InUse);
    assert!(refused.message.contains("policy \"needs\""), "{refused}");
    world.must(delete(Kind::Policy, "needs"));
    world.must(delete(Kind::Application, "db"));
}

#[test]
fn what_is_referred_to_stays() {
    let mut world = World::with_active();
    for (kind, object, referrer) in [
        (Kind::Application, "shop", "scope \"api\""),
        (Kind::Environment, "production", "scope \"api\""),
        (Kind::Scope, "web", "shop 1.0.0 runs there"),
    ] {
        let rejection = world.refused(delete(kind, object));
        assert_eq!(rejection.reason, Reason::InUse);
        assert!(rejection.message.contains(referrer), "{rejection}");
    }
    world.must(delete(Kind::Scope, "api"));
    world.must(super::world::stop(false));
    let active = world.scope().active.unwrap();
    world.settle(active);
    world.must(delete(Kind::Scope, "web"));
    world.must(delete(Kind::Application, "shop"));
    assert!(world.state.releases.is_empty());
    assert_eq!(
        world.refused(delete(Kind::Application, "shop")).reason,
        Reason::NotFound
    );
}

#[test]
fn a_release_never_changes() {
    let mut world = World::new();
    let same = world.must(create_release("1.0.0"));
    assert!(matches!(same, Reply::Object { changed: false, .. }));
    let other = Command::CreateRelease(CreateRelease {
        application: name("shop"),
        version: version("1.0.0"),
        labels: BTreeMap::new(),
        spec: release_spec("something else"),
        stored: true,
    });
    assert_eq!(world.refused(other).reason, Reason::AlreadyExists);
}

#[test]
fn tokens_admit_whom_they_are_for() {
    let mut world = World::new();
    assert_eq!(world.refused(join("a1")).reason, Reason::AlreadyExists);
    world.must(invite(OTHER, TokenKind::Agent, Some("a1"), 1, &world));
    assert_eq!(
        world.refused(join_with(OTHER, "a1", b"wrong")).reason,
        Reason::TokenUnknown
    );
    assert_eq!(
        world.refused(join_with(OTHER, "a9", b"other")).reason,
        Reason::PermissionDenied
    );
    world.must(join_with(OTHER, "a1", b"other"));
    assert_eq!(
        world.refused(join_with(OTHER, "a1", b"other")).reason,
        Reason::TokenUsedUp
    );
    assert!(world.state.agents[&name("a1")].meta.labels.is_empty());
    world.wait(Span::from_days(366));
    let late = Join {
        name: name("a7"),
        ..match join("a7") {
            Command::Join(j) => j,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(late.token, token());
    assert_eq!(
        world.refused(Command::Join(late)).reason,
        Reason::TokenExpired
    );
}

#[test]
fn node_ids_are_never_given_again_and_levels_only_rise() {
    let mut world = World::new();
    world.must(invite(OTHER, TokenKind::Coordinator, None, 10, &world));
    let node = |reply| match reply {
        Reply::Joined { node, .. } => node.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(node(world.must(join_with(OTHER, "c2", b"other"))), 2);
    world.must(Command::RemoveMember(MemberId { node: 2 }));
    assert_eq!(node(world.must(join_with(OTHER, "c2", b"other"))), 3);
    assert_eq!(
        world.refused(join_with(OTHER, "c2", b"other")).reason,
        Reason::AlreadyExists
    );
    let raise = |level| Command::RaiseLevel(RaiseLevel { level });
    world.refused(raise(2));
    for node in [1, 3] {
        world.must(Command::UpdateMember(UpdateMember {
            node,
            addresses: Addresses::default(),
            version: "0.2.0".to_owned(),
            level: 2,
        }));
    }
    world.must(raise(2));
    world.refused(raise(1));
    world.must(Command::RemoveMember(MemberId { node: 3 }));
    world.refused(Command::RemoveMember(MemberId { node: 1 }));
}

#[test]
fn a_member_counts_from_its_own_join_and_not_from_that_of_its_name() {
    let mut world = World::new();
    let joined = |world: &World, node| {
        let cluster = world.state.cluster.as_ref().unwrap();
        cluster.members.get(&node).unwrap().joined_at
    };
    assert_eq!(
        joined(&world, 1),
        world.state.people[&name("ann")].meta.created_at
    );
    world.must(invite(OTHER, TokenKind::Coordinator, Some("c2"), 2, &world));
    world.must(join_with(OTHER, "c2", b"other"));
    let first = joined(&world, 2);
    assert_eq!(first, world.state.at);
    world.must(Command::RemoveMember(MemberId { node: 2 }));
    world.wait(Span::from_secs(60));
    world.must(join_with(OTHER, "c2", b"other"));
    assert_eq!(joined(&world, 3), world.state.at);
    assert!(joined(&world, 3) >= first + Span::from_secs(60));
}

#[test]
fn generations_rise_for_those_whose_wish_changed() {
    let mut world = World::with_active();
    let generation = |world: &World, agent: &str| world.state.agents[&name(agent)].generation;
    let before = generation(&world, "a1");
    let id = world.deploy("2.0.0");
    assert_eq!(generation(&world, "a1"), before);
    world.start(id);
    assert_eq!(generation(&world, "a1").index, world.index);
    world.step(
        id,
        crate::command::Action::MarkLost {
            lost: vec![name("a2")],
        },
    );
    world.must(Command::RemoveAgent(AgentName { name: name("a2") }));
    assert_eq!(generation(&world, "a3").index, world.index);
    assert_eq!(world.get(id).participants.len(), 2);
    assert!(world.get(id).lost.is_empty());
    assert!(world.state.removed_agents.contains_key(&name("a2")));
    assert_eq!(world.get(id).traffic.total, 2);
}
