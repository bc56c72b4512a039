//! People, roles, teams and bindings: who gets in as what, who stays administrator, and what
//! becomes of grants when somebody loses a role.

use std::collections::BTreeMap;

use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, TokenId};
use tidegate_shared::spec::{Kind, Role};
use tidegate_shared::time::Span;

use super::world::{World, init, name, user};
use crate::command::{
    Command, CreateToken, Decide, DeleteObject, Join, MemberId, RaiseLevel, RemovePerson, Reply,
    TokenKind, UpdateMember, UpdatePerson,
};
use crate::observed::Observed;
use crate::people::{ROLES_LEVEL, administrators};
use crate::plan::plan;
use crate::state::{Addresses, Status};

/// A world whose people have roles; `ann` is its administrator.
fn world() -> World {
    let mut world = World::new();
    raise(&mut world);
    world
}

fn raise(world: &mut World) {
    world.must(Command::UpdateMember(UpdateMember {
        node: 1,
        addresses: Addresses::default(),
        version: "0.3.0".to_owned(),
        level: ROLES_LEVEL,
    }));
    world.must(Command::RaiseLevel(RaiseLevel { level: ROLES_LEVEL }));
}

fn join_as(world: &mut World, who: &str, roles: &[Role]) {
    let token = TokenId::derived(world.now, who, world.index, 0);
    world.must(Command::CreateToken(CreateToken {
        id: token,
        kind: TokenKind::User,
        secret_hash: Digest::of(b"other"),
        labels: BTreeMap::new(),
        expires_at: world.now + Span::from_hours(1),
        uses: 1,
        name: Some(name(who)),
        roles: roles.to_vec(),
    }));
    world.must(Command::Join(Join {
        token,
        secret_hash: Digest::of(b"other"),
        name: name(who),
        facts: BTreeMap::new(),
        addresses: None,
    }));
}

fn roles(world: &World, who: &str) -> Vec<Role> {
    world.state.people[&name(who)].roles.clone()
}

fn update(who: &str, roles: &[Role]) -> Command {
    Command::UpdatePerson(UpdatePerson {
        name: name(who),
        roles: roles.to_vec(),
        labels: BTreeMap::new(),
        expected_revision: None,
    })
}

fn remove(who: &str) -> Command {
    Command::RemovePerson(RemovePerson {
        name: name(who),
        expected_revision: None,
    })
}

fn delete(kind: Kind, object: &str) -> Command {
    Command::DeleteObject(DeleteObject {
        kind,
        name: name(object),
        expected_revision: None,
    })
}

fn put(world: &mut World, kind: Kind, object: &str, spec: &str) {
    let command = world.object(object, kind, spec);
    world.must(command);
}

fn last_event(world: &World) -> String {
    // The log has left the state; the last refusal or note is looked at where it is made.
    world
        .state
        .last_hash
        .map_or(String::new(), |hash| hash.to_string())
}

#[test]
fn those_who_are_there_when_roles_begin_stay_administrators() {
    let mut world = World::new();
    join_as(&mut world, "bob", &[]);
    assert_eq!(roles(&world, "bob"), []);
    raise(&mut world);
    assert_eq!(roles(&world, "ann"), [Role::Admin]);
    assert_eq!(roles(&world, "bob"), [Role::Admin]);
}

#[test]
fn the_first_one_of_a_new_cluster_is_administrator_and_joiners_are_what_their_token_says() {
    let mut world = World::empty();
    let mut first = init();
    first.level = ROLES_LEVEL;
    world.must(Command::InitCluster(first));
    assert_eq!(administrators(&world.state), [name("ann")]);
    join_as(&mut world, "bob", &[]);
    assert_eq!(roles(&world, "bob"), [Role::Viewer]);
    join_as(
        &mut world,
        "cho",
        &[Role::Operator, Role::Approver, Role::Approver],
    );
    assert_eq!(roles(&world, "cho"), [Role::Approver, Role::Operator]);
    let before = world.state.people[&name("cho")].meta.clone();
    // Again by a second token: what it names comes on top, what is there stays.
    world.wait(Span::from_secs(1));
    join_as(&mut world, "cho", &[Role::Deployer]);
    let after = world.state.people[&name("cho")].meta.clone();
    assert_eq!(after.created_at, before.created_at);
    assert!(after.revision > before.revision);
    assert_eq!(
        roles(&world, "cho"),
        [Role::Deployer, Role::Approver, Role::Operator]
    );
}

#[test]
fn the_last_administrator_stays() {
    let mut world = world();
    join_as(&mut world, "bob", &[]);
    for command in [
        update("ann", &[Role::Operator]),
        update("ann", &[]),
        remove("ann"),
    ] {
        let refusal = world.refused(command);
        assert_eq!(refusal.reason, Reason::LastAdmin);
        assert!(refusal.message.starts_with("ann would not be"), "{refusal}");
    }
    // By a team and a binding somebody else is one too; then any of the two may go, not both.
    put(&mut world, Kind::Team, "sre", r#"{"members": ["bob"]}"#);
    let everywhere = r#"{"role": "admin", "teams": ["sre"]}"#;
    put(&mut world, Kind::RoleBinding, "admins", everywhere);
    world.must(update("ann", &[Role::Viewer]));
    assert_eq!(administrators(&world.state), [name("bob")]);
    let nobody = world.object("sre", Kind::Team, r#"{"members": []}"#);
    let here = r#"{"role": "admin", "teams": ["sre"], "selector": "scope.name == 'web'"}"#;
    let narrowed = world.object("admins", Kind::RoleBinding, here);
    for command in [
        nobody,
        narrowed,
        delete(Kind::RoleBinding, "admins"),
        remove("bob"),
    ] {
        assert_eq!(world.refused(command).reason, Reason::LastAdmin);
    }
    world.must(update("ann", &[Role::Admin]));
    world.must(delete(Kind::RoleBinding, "admins"));
    assert_eq!(administrators(&world.state), [name("ann")]);
}

#[test]
fn who_is_removed_leaves_teams_and_bindings() {
    let mut world = world();
    join_as(&mut world, "bob", &[]);
    put(
        &mut world,
        Kind::Team,
        "sre",
        r#"{"members": ["ann", "bob"]}"#,
    );
    put(
        &mut world,
        Kind::RoleBinding,
        "alone",
        r#"{"role": "deployer", "users": ["bob"]}"#,
    );
    put(
        &mut world,
        Kind::RoleBinding,
        "both",
        r#"{"role": "deployer", "users": ["ann", "bob"]}"#,
    );
    let revision = world.state.people[&name("bob")].meta.revision;
    let stale = Command::RemovePerson(RemovePerson {
        name: name("bob"),
        expected_revision: Some(revision + 1),
    });
    assert_eq!(world.refused(stale).reason, Reason::Stale);
    let hash = last_event(&world);
    world.must(remove("bob"));
    assert_ne!(last_event(&world), hash);
    assert!(!world.state.people.contains_key(&name("bob")));
    assert!(
        !world.state.teams[&name("sre")]
            .spec
            .members
            .contains(&name("bob"))
    );
    assert!(!world.state.role_bindings.contains_key(&name("alone")));
    let both = &world.state.role_bindings[&name("both")].spec.users;
    assert_eq!(both.iter().collect::<Vec<_>>(), [&name("ann")]);
    assert_eq!(world.refused(remove("bob")).reason, Reason::NotFound);
}

#[test]
fn teams_and_bindings_name_those_who_are_there() {
    let mut world = world();
    for (kind, spec, field) in [
        (Kind::Team, r#"{"members": ["nobody"]}"#, "members"),
        (
            Kind::RoleBinding,
            r#"{"role": "viewer", "users": ["nobody"]}"#,
            "users",
        ),
        (
            Kind::RoleBinding,
            r#"{"role": "viewer", "teams": ["none"]}"#,
            "teams",
        ),
    ] {
        let command = world.object("x", kind, spec);
        let refusal = world.refused(command);
        assert_eq!(refusal.reason, Reason::NotFound, "{spec}");
        assert_eq!(refusal.fields[0].field, field);
    }
    put(&mut world, Kind::Team, "sre", r#"{"members": ["ann"]}"#);
    put(
        &mut world,
        Kind::RoleBinding,
        "b",
        r#"{"role": "viewer", "teams": ["sre"]}"#,
    );
    let refusal = world.refused(delete(Kind::Team, "sre"));
    assert_eq!(refusal.reason, Reason::InUse);
    world.must(delete(Kind::RoleBinding, "b"));
    put(
        &mut world,
        Kind::Policy,
        "p",
        r#"{"approval": {"from": "team:sre"}}"#,
    );
    let refusal = world.refused(delete(Kind::Team, "sre"));
    assert!(refusal.message.contains("policy \"p\""), "{refusal}");
    world.must(delete(Kind::Policy, "p"));
    world.must(delete(Kind::Team, "sre"));
}

#[test]
fn writing_the_same_changes_nothing() {
    let mut world = world();
    let Reply::Object { changed, .. } = world.must(update("ann", &[Role::Admin])) else {
        panic!("no object");
    };
    assert!(!changed);
    put(&mut world, Kind::Team, "sre", r#"{"members": ["ann"]}"#);
    let again = world.object("sre", Kind::Team, r#"{"members": ["ann", "ann"]}"#);
    let Reply::Object { changed, .. } = world.must(again) else {
        panic!("no object");
    };
    assert!(!changed);
    assert!(
        world
            .run(Command::RemoveMember(MemberId { node: 1 }))
            .is_err()
    );
}

/// Does what the planner finds due in the scope, until it finds nothing.
fn settle(world: &mut World) {
    for _ in 0..10 {
        let planned = plan(&world.state, &Observed::new(world.now), world.now);
        if planned.commands.is_empty() {
            return;
        }
        for item in planned.commands {
            world.apply(item).outcome.unwrap();
        }
    }
}

fn decide(world: &mut World, who: &str, id: DeploymentId) -> Result<Reply, Reason> {
    let command = Command::Decide(Decide {
        deployment: id,
        granted: true,
        reason: String::new(),
    });
    let outcome = world.run_as(user(who), command);
    outcome.map_err(|rejection| rejection.reason)
}

fn granted_by(world: &World, id: DeploymentId) -> Vec<String> {
    let required = world.state.deployments[&id].required.clone();
    let decisions = required.map(|required| required.decisions);
    let decisions = decisions.unwrap_or_default().into_iter();
    decisions.map(|decision| decision.by.to_string()).collect()
}

/// A deployment that `policy` holds up, with approvers bob and cho, and dia who is none.
fn waiting(policy: &str) -> (World, DeploymentId) {
    let mut world = world();
    for (who, role) in [
        ("bob", Role::Approver),
        ("cho", Role::Approver),
        ("dia", Role::Deployer),
    ] {
        join_as(&mut world, who, &[role]);
    }
    put(&mut world, Kind::Policy, "eyes", policy);
    let id = world.deploy("2.0.0");
    settle(&mut world);
    assert_eq!(world.status(id), Status::CreatingApproval);
    (world, id)
}

#[test]
fn only_those_with_the_role_count_and_a_role_that_is_lost_withdraws_the_grant() {
    let policy = r#"{"approval": {"required": 2, "from": "role:approver", "not_requester": true}}"#;
    let (mut world, id) = waiting(policy);
    assert_eq!(decide(&mut world, "dia", id), Err(Reason::PermissionDenied));
    assert_eq!(decide(&mut world, "ann", id), Err(Reason::PermissionDenied));
    decide(&mut world, "bob", id).unwrap();
    settle(&mut world);
    assert_eq!(world.status(id), Status::CreatingApproval);
    world.must(update("bob", &[Role::Viewer]));
    settle(&mut world);
    assert_eq!(granted_by(&world, id), Vec::<String>::new());
    world.must(update("bob", &[Role::Approver]));
    settle(&mut world);
    assert_eq!(
        granted_by(&world, id),
        Vec::<String>::new(),
        "it does not come back by itself"
    );
    decide(&mut world, "bob", id).unwrap();
    decide(&mut world, "cho", id).unwrap();
    settle(&mut world);
    assert_ne!(world.status(id), Status::CreatingApproval);
}

#[test]
fn grants_are_checked_again_before_the_start() {
    let policy = r#"{"approval": {"required": 1, "from": ["team:sre", "user:cho"]}}"#;
    let mut world = world();
    for who in ["bob", "cho"] {
        join_as(&mut world, who, &[]);
    }
    put(&mut world, Kind::Team, "sre", r#"{"members": ["bob"]}"#);
    put(&mut world, Kind::Policy, "eyes", policy);
    let id = world.deploy("2.0.0");
    settle(&mut world);
    world.must(Command::Freeze(crate::command::CreateFreeze {
        selector: String::new(),
        reason: "a look".to_owned(),
        until: world.now + Span::from_hours(1),
        let_run: false,
    }));
    decide(&mut world, "bob", id).unwrap();
    settle(&mut world);
    assert_eq!(world.status(id), Status::Pending, "approved, and frozen");
    put(&mut world, Kind::Team, "sre", r#"{"members": []}"#);
    settle(&mut world);
    assert_eq!(
        world.status(id),
        Status::CreatingApproval,
        "the grant is gone"
    );
    assert_eq!(granted_by(&world, id), Vec::<String>::new());
    decide(&mut world, "cho", id).unwrap();
    settle(&mut world);
    assert_eq!(world.status(id), Status::Pending);
    world.must(remove("cho"));
    settle(&mut world);
    assert_eq!(
        world.status(id),
        Status::CreatingApproval,
        "who is gone approves nothing"
    );
}

#[test]
fn a_start_that_was_decided_before_a_role_was_lost_is_stale() {
    let policy = r#"{"approval": {"required": 1, "from": "role:approver"}}"#;
    let (mut world, id) = waiting(policy);
    decide(&mut world, "bob", id).unwrap();
    let approved = plan(&world.state, &Observed::new(world.now), world.now).commands;
    for item in approved {
        world.apply(item).outcome.unwrap();
    }
    assert_eq!(world.status(id), Status::Pending);
    let start = plan(&world.state, &Observed::new(world.now), world.now).commands;
    world.must(update("bob", &[]));
    for item in start {
        assert_eq!(world.apply(item).outcome.unwrap_err().reason, Reason::Stale);
    }
    settle(&mut world);
    assert_eq!(world.status(id), Status::CreatingApproval);
}

#[test]
fn a_role_counts_where_its_selector_holds() {
    let policy = r#"{"approval": {"required": 1, "from": "role:approver"}}"#;
    let (mut world, id) = waiting(policy);
    for (binding, region) in [("here", "eu"), ("there", "us")] {
        let who = if region == "eu" { "cho" } else { "bob" };
        world.must(update(who, &[Role::Viewer]));
        let spec = format!(
            r#"{{"role": "approver", "users": ["{who}"], "selector": "scope.dimensions.region == '{region}'"}}"#
        );
        put(&mut world, Kind::RoleBinding, binding, &spec);
    }
    // `apply` cannot know where bob's role holds; the planner does, and does not count it.
    decide(&mut world, "bob", id).unwrap();
    settle(&mut world);
    assert_eq!(world.status(id), Status::CreatingApproval);
    decide(&mut world, "cho", id).unwrap();
    settle(&mut world);
    assert_ne!(world.status(id), Status::CreatingApproval);
}
