//! Every RPC × every role, written down by hand: who gives a call another role has to say so here
//! too.

use std::sync::Arc;

use prost::Message;
use tidegate_coordinator_core::command::{AddToGroup, CreateDeployments, CreateGroup, OnConflict};
use tidegate_coordinator_core::people::{Place, ROLES_LEVEL};
use tidegate_coordinator_core::policy::REFERENCES_LEVEL;
use tidegate_coordinator_core::state::{
    Addresses, CaRecord, Cluster, Member, Meta, Object, Person, SealedKey, Table,
};

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn meta() -> Meta {
    Meta {
        labels: Labels::new(),
        created_at: Timestamp::ZERO,
        created_by: Actor::System,
        revision: 1,
    }
}

/// A person for each role, named after it, who has it everywhere; `nobody` has none; `part` has
/// every role, but in application `web` only.
fn state() -> State {
    let member = Member {
        name: name("c1"),
        addresses: Addresses::default(),
        version: String::new(),
        level: ROLES_LEVEL,
        joined_at: Timestamp::ZERO,
    };
    let mut state = State {
        cluster: Some(Arc::new(Cluster {
            id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            trust_domain: "td".to_owned(),
            level: ROLES_LEVEL,
            epoch: 0,
            next_node: 2,
            former: Table::new(),
            members: Table::unit(1, member),
            ca: CaRecord {
                certificate: String::new(),
                key: SealedKey {
                    nonce: Vec::new(),
                    sealed: Vec::new(),
                },
            },
        })),
        ..State::default()
    };
    for role in Role::ALL {
        let roles = vec![role];
        let person = Person {
            meta: meta(),
            roles,
        };
        state.people.insert(name(role.as_str()), person);
    }
    for who in ["nobody", "part"] {
        let roles = Vec::new();
        state.people.insert(
            name(who),
            Person {
                meta: meta(),
                roles,
            },
        );
    }
    let spec = r#"{"role": "admin", "users": ["part"], "selector": "application.name == 'web'"}"#;
    let binding = Object {
        meta: meta(),
        spec: serde_json::from_str(spec).unwrap(),
    };
    state.role_bindings.insert(name("part"), binding);
    state
}

/// Every call of people that the protos know.
fn calls() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(tidegate_proto::DESCRIPTORS).unwrap();
    let mut calls = Vec::new();
    for file in &set.file {
        if file.package() != table::PACKAGE.trim_end_matches('.') {
            continue;
        }
        for service in &file.service {
            for method in &service.method {
                calls.push(format!("{}/{}", service.name(), method.name()));
            }
        }
    }
    calls
}

/// Who may call what, in the order viewer, deployer, approver, operator, admin, nobody, part.
const EXPECTED: &[(&str, &str)] = &[
    ("Objects/Apply", ".d.oa.p"),
    ("Objects/ApplyMany", ".d.oa.p"),
    ("Objects/Delete", ".d.oa.p"),
    ("Objects/Get", "vdxoa.p"),
    ("Objects/List", "vdxoa.p"),
    ("Releases/Create", ".d.oa.p"),
    ("Releases/Get", "vdxoa.p"),
    ("Releases/List", "vdxoa.p"),
    ("Releases/SetStatus", ".d.oa.p"),
    ("Releases/Blobs", "vdxoa.p"),
    ("Deployments/Create", ".d.oa.p"),
    ("Deployments/Get", "vdxoa.p"),
    ("Deployments/List", "vdxoa.p"),
    ("Deployments/Watch", "vdxoa.p"),
    ("Deployments/History", "vdxoa.p"),
    ("Deployments/Act", ".d.oa.p"),
    ("Approvals/List", "vdxoa.p"),
    ("Approvals/Decide", "vdxoa.p"),
    ("Governance/CreateSkip", "...oa.p"),
    ("Governance/ListSkips", "vdxoa.p"),
    ("Governance/DeleteSkip", "...oa.p"),
    ("Governance/Freeze", "...oa.."),
    ("Governance/ListFreezes", "vdxoa.p"),
    ("Governance/Thaw", "...oa.."),
    ("Groups/Create", ".d.oa.p"),
    ("Groups/List", "vdxoa.p"),
    ("Groups/Get", "vdxoa.p"),
    ("Groups/Watch", "vdxoa.p"),
    ("Groups/Act", ".d.oa.p"),
    ("Groups/Add", ".d.oa.p"),
    ("Groups/Decide", "vdxoa.p"),
    ("Groups/Explain", "vdxoa.p"),
    ("Planning/Plan", "vdxoa.p"),
    ("Scopes/View", "vdxoa.p"),
    ("Scopes/Stop", "...oa.p"),
    ("Scopes/Start", ".d.oa.p"),
    ("Scopes/Restart", ".d.oa.p"),
    ("Scopes/Rollback", ".d.oa.p"),
    ("Scopes/Logs", "vdxoa.p"),
    ("Scopes/Check", "vdxoa.p"),
    ("Agents/List", "vdxoa.p"),
    ("Agents/Get", "vdxoa.p"),
    ("Agents/Remove", "...oa.."),
    ("Tokens/Create", "...oa.."),
    ("Tokens/List", "...oa.."),
    ("Tokens/Delete", "...oa.."),
    ("People/List", "vdxoa.p"),
    ("People/Get", "vdxoa.p"),
    ("People/Update", "....a.."),
    ("People/Remove", "....a.."),
    ("Audit/List", "vdxoa.."),
    ("Audit/Export", "vdxoa.."),
    ("Cluster/Status", "vdxoa.p"),
    ("Cluster/TransferLeadership", "...oa.."),
    ("Cluster/RemoveMember", "....a.."),
    ("Cluster/WhoAmI", "vdxoanp"),
    ("Cluster/RenewCertificate", "vdxoanp"),
    ("Cluster/Events", "vdxoa.."),
];

#[test]
fn every_rpc_times_every_role() {
    let state = state();
    let calls = calls();
    assert!(calls.len() > 40, "{calls:?}");
    let who = [
        "viewer", "deployer", "approver", "operator", "admin", "nobody", "part",
    ];
    for call in &calls {
        let expected = EXPECTED.iter().find(|(name, _)| name == call);
        let Some((_, expected)) = expected else {
            panic!("{call} is in a proto, but not in the table of this test");
        };
        assert!(
            table::TABLE.iter().any(|(name, _)| name == call),
            "{call} has no line"
        );
        let path = format!("/{}{call}", table::PACKAGE);
        for (person, mark) in who.iter().zip(expected.chars()) {
            let answer = may_call(&state, &name(person), &path);
            assert_eq!(answer.is_ok(), mark != '.', "{person} {call}: {answer:?}");
        }
    }
    for (call, _) in table::TABLE {
        let lines = table::TABLE.iter().filter(|(name, _)| name == call);
        assert_eq!(lines.count(), 1, "{call}");
        assert!(
            calls.iter().any(|found| found == call),
            "{call} is in no proto"
        );
    }
}

#[test]
fn what_has_no_line_is_nobodys() {
    let state = state();
    for path in [
        "",
        "/x/Y",
        "/tidegate.control.v1.Objects/Steal",
        "tidegate.control.v1.Objects/Get",
    ] {
        assert!(may_call(&state, &name("admin"), path).is_err(), "{path}");
    }
}

#[test]
fn a_refusal_says_who_lacks_what_where_and_whom_to_ask() {
    let state = state();
    let freeze = format!("/{}Governance/Freeze", table::PACKAGE);
    let refused = may_call(&state, &name("viewer"), &freeze).unwrap_err();
    assert_eq!(refused.reason, Reason::RoleNeeded);
    assert_eq!(
        refused.message,
        "user \"viewer\" needs the role operator for the cluster and has viewer; ask an administrator: admin"
    );
}

fn put(kind: tidegate_shared::spec::Kind, object: &str, spec: &str) -> Command {
    use tidegate_coordinator_core::command::PutObject;
    Command::PutObject(PutObject {
        name: name(object),
        labels: Labels::new(),
        spec: tidegate_shared::spec::ObjectSpec::from_json(kind, spec).unwrap(),
        expected_revision: None,
        must_not_exist: false,
    })
}

#[test]
fn commands_need_their_role_where_their_object_is() {
    use tidegate_shared::spec::Kind;
    let state = state();
    let scope = |application: &str| {
        let spec = format!(r#"{{"application": "{application}", "environment": "e", "port": 80}}"#);
        put(Kind::Scope, "s", &spec)
    };
    let parameter = |application: &str| {
        let spec = format!(
            r#"{{"variable": "A", "value": "1", "target": {{"application": "{application}"}}}}"#
        );
        put(Kind::Parameter, "p", &spec)
    };
    let policy = put(Kind::Policy, "p", r#"{"approval": {"required": 1}}"#);
    let team = put(Kind::Team, "t", "{}");
    let strategy = put(Kind::Strategy, "s", "{}");
    for (command, allowed) in [
        (scope("web"), &["operator", "admin", "part"][..]),
        (scope("api"), &["operator", "admin"]),
        (parameter("web"), &["deployer", "operator", "admin", "part"]),
        (parameter("api"), &["deployer", "operator", "admin"]),
        (policy, &["admin"]),
        (team, &["admin"]),
        (strategy, &["operator", "admin"]),
    ] {
        for who in state.people.keys() {
            let actor = Actor::User(who.clone());
            let answer = may_give(&state, &actor, &command, Timestamp::ZERO);
            assert_eq!(
                answer.is_ok(),
                allowed.contains(&who.as_str()),
                "{who} {command:?}"
            );
        }
    }
    // The cluster's own parts are held at their doors.
    assert!(may_give(&state, &Actor::System, &scope("api"), Timestamp::ZERO).is_ok());
}

#[test]
fn below_the_level_of_roles_everybody_may_and_new_commands_wait() {
    use tidegate_shared::spec::Kind;
    let mut state = state();
    Arc::make_mut(state.cluster.as_mut().unwrap()).level = ROLES_LEVEL - 1;
    let nobody = Actor::User(name("nobody"));
    let policy = put(Kind::Policy, "p", r#"{"approval": {"required": 1}}"#);
    assert!(may_give(&state, &nobody, &policy, Timestamp::ZERO).is_ok());
    let group = CreateGroup {
        name: None,
        deployments: wish("{}"),
        rollout: None,
    };
    let scope = r#"{"application": "web", "environment": "e", "port": 80, "auto_deploy": "true"}"#;
    for (command, what) in [
        (put(Kind::Team, "t", "{}"), "people have roles"),
        (put(Kind::Scope, "s", scope), "auto_deploy"),
        (put(Kind::Strategy, "s", CHECKED), "verification"),
        (Command::CreateDeployments(wish(CHECKED)), "verification"),
        (Command::CreateGroup(group), "deployment groups"),
    ] {
        let refused = may_give(&state, &nobody, &command, Timestamp::ZERO).unwrap_err();
        assert_eq!(refused.reason, Reason::NotSupported);
        let told = refused.message;
        assert!(
            told.contains(what) && told.contains("level 3 on: upgrade every"),
            "{told}"
        );
    }
    // The fields of the next level wait for the next one.
    Arc::make_mut(state.cluster.as_mut().unwrap()).level = ROLES_LEVEL;
    let admin = Actor::User(name("admin"));
    let may = |state: &State, spec: &str| {
        let policy = put(Kind::Policy, "p", spec);
        may_give(state, &admin, &policy, Timestamp::ZERO)
    };
    let plain = r#"{"gradual_rollout": {"type": "linear", "interval": "1m"}}"#;
    let ordered = r#"{"gradual_rollout": {"type": "linear", "interval": "1m", "order": "name"}}"#;
    assert!(may(&state, plain).is_ok());
    let refused = may(&state, ordered).unwrap_err();
    assert!(
        refused.message.contains("from cluster level 4 on"),
        "{refused}"
    );
    let add = |revision: Option<u64>| {
        let add = AddToGroup {
            group: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            scopes: vec![name("s")],
            expected_revision: revision,
        };
        levels::is_understood(&state, &Command::AddToGroup(add))
    };
    assert!(add(None).is_ok());
    let refused = add(Some(7)).unwrap_err();
    assert!(refused.message.contains("expected_revision"), "{refused}");
    Arc::make_mut(state.cluster.as_mut().unwrap()).level = REFERENCES_LEVEL;
    assert!(may(&state, ordered).is_ok());
}

/// A strategy, or what differs from one, with a check between steps.
const CHECKED: &str = r#"{"verification": [{"name": "smoke", "http": {"path": "/"}}]}"#;

fn wish(overrides: &str) -> CreateDeployments {
    CreateDeployments {
        application: name("web"),
        version: "1.0.0".parse().unwrap(),
        scopes: vec![name("s")],
        strategy: None,
        overrides: serde_json::from_str(overrides).unwrap(),
        labels: Labels::new(),
        on_conflict: OnConflict::Fail,
    }
}

#[test]
fn sight_is_what_a_viewer_sees() {
    use crate::api::authn::NO_VALIDITY;
    use std::net::SocketAddr;
    let state = state();
    let caller = |who: &str| {
        let identity = crate::tls::SpiffeId::parse(&format!("spiffe://td/user/{who}")).unwrap();
        let remote = SocketAddr::from(([127, 0, 0, 1], 1));
        Caller::of_identity(&identity, "td", NO_VALIDITY, remote).unwrap()
    };
    let web = Place::Application(name("web"), people::Reach::Any);
    let api = Place::Application(name("api"), people::Reach::Any);
    assert!(Sight::of(&state, &caller("viewer")).is_whole());
    let part = Sight::of(&state, &caller("part"));
    assert!(!part.is_whole() && part.sees(&state, &web) && !part.sees(&state, &api));
    assert_eq!(
        part.check(&state, &api).unwrap_err().reason,
        Reason::RoleNeeded
    );
    assert!(!Sight::of(&state, &caller("nobody")).sees(&state, &web));
}
