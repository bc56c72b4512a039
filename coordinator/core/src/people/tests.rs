//! Who has which role where, over values.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidegate_shared::spec::{ParameterTarget, ScopeSpec};
use tidegate_shared::time::Timestamp;

use super::*;
use crate::command::Actor;
use crate::state::{
    Addresses, CaRecord, Cluster, Indexed, Member, Meta, Object, Person, Scope, ScopeStatus,
    SealedKey, Table,
};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn meta() -> Meta {
    Meta {
        labels: BTreeMap::new(),
        created_at: Timestamp::ZERO,
        created_by: Actor::System,
        revision: 1,
    }
}

fn object<S: serde::de::DeserializeOwned>(spec: &str) -> Object<S> {
    Object {
        meta: meta(),
        spec: serde_json::from_str(spec).unwrap(),
    }
}

fn scope(state: &mut State, scope: &str, application: &str, environment: &str, region: &str) {
    let spec = format!(
        r#"{{"application": "{application}", "environment": "{environment}", "port": 80,
            "dimensions": {{"region": "{region}"}}}}"#
    );
    let scope_state = Scope {
        meta: meta(),
        spec: serde_json::from_str(&spec).unwrap(),
        status: ScopeStatus::Ready,
        active: None,
        candidate: None,
        waiting: Vec::new(),
        retired: Vec::new(),
        kept: Vec::new(),
        last_active: None,
    };
    state.scopes.insert(name(scope), scope_state);
}

/// Applications `web` and `api`, each in `test` and, in two regions, in `prod`.
fn state(level: u32) -> State {
    let member = Member {
        name: name("c1"),
        addresses: Addresses::default(),
        version: String::new(),
        level,
        joined_at: Timestamp::ZERO,
    };
    let mut state = State {
        cluster: Some(std::sync::Arc::new(Cluster {
            id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            trust_domain: "td".to_owned(),
            level,
            epoch: 0,
            next_node: 2,
            members: Table::unit(1, member),
            former: Table::new(),
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
    for application in ["web", "api"] {
        state.applications.insert(name(application), object("{}"));
        for (environment, region) in [("test", "eu"), ("prod", "eu"), ("prod", "us")] {
            let known = format!("{application}-{environment}-{region}");
            scope(&mut state, &known, application, environment, region);
        }
    }
    state
        .environments
        .insert(name("test"), object(r#"{"tier": 1}"#));
    state
        .environments
        .insert(name("prod"), object(r#"{"tier": 9}"#));
    state
}

fn person(state: &mut State, who: &str, roles: &[Role]) {
    let roles = roles.to_vec();
    state.people.insert(
        name(who),
        Person {
            meta: meta(),
            roles,
        },
    );
}

fn bind(state: &mut State, binding: &str, spec: &str) {
    state.role_bindings.insert(name(binding), object(spec));
}

fn at(state: &State, who: &str, role: Role, place: &Place) -> bool {
    Rights::of(state, &name(who)).at(state, role, place)
}

fn in_scope(text: &str) -> Place {
    Place::Scope(name(text))
}

#[test]
fn below_the_level_everybody_may_do_everything() {
    let state = state(ROLES_LEVEL - 1);
    assert!(at(&state, "ann", Role::Admin, &Place::Cluster));
    assert_eq!(
        standing(&state, &name("x"), &Facts::default()).roles.len(),
        5
    );
}

#[test]
fn nobody_unknown_has_a_role() {
    let mut state = state(ROLES_LEVEL);
    person(&mut state, "ann", &[]);
    bind(&mut state, "b", r#"{"role": "admin", "users": ["gone"]}"#);
    for who in ["ann", "gone"] {
        for role in Role::ALL {
            assert!(!at(&state, who, role, &Place::Somewhere), "{who} {role}");
        }
    }
    assert_eq!(administrators(&state), Vec::<Name>::new());
}

#[test]
fn own_roles_hold_everywhere_and_bindings_where_their_selector_does() {
    let mut state = state(ROLES_LEVEL);
    person(&mut state, "ann", &[Role::Operator]);
    person(&mut state, "bob", &[Role::Viewer]);
    bind(
        &mut state,
        "eu",
        r#"{"role": "deployer", "users": ["bob"], "selector": "scope.dimensions.region == 'eu'"}"#,
    );
    assert!(at(&state, "ann", Role::Deployer, &Place::Cluster));
    assert!(!at(&state, "ann", Role::Approver, &in_scope("web-prod-eu")));
    assert!(at(&state, "bob", Role::Deployer, &in_scope("web-prod-eu")));
    assert!(!at(&state, "bob", Role::Deployer, &in_scope("web-prod-us")));
    assert!(at(&state, "bob", Role::Viewer, &in_scope("web-prod-us")));
    assert!(!at(&state, "bob", Role::Deployer, &Place::Cluster));
    assert!(at(&state, "bob", Role::Deployer, &Place::Somewhere));
}

#[test]
fn a_team_gives_its_members_what_it_has() {
    let mut state = state(ROLES_LEVEL);
    person(&mut state, "ann", &[]);
    person(&mut state, "bob", &[]);
    state
        .teams
        .insert(name("sre"), object(r#"{"members": ["ann"]}"#));
    bind(&mut state, "all", r#"{"role": "admin", "teams": ["sre"]}"#);
    assert_eq!(administrators(&state), vec![name("ann")]);
    let found = grants(&state, &name("ann"));
    let (binding, team) = (name("all"), name("sre"));
    assert_eq!(
        found[0].via,
        Via::Team {
            binding: &binding,
            team: &team
        }
    );
    assert!(!at(&state, "bob", Role::Viewer, &Place::Somewhere));
}

#[test]
fn any_and_every_scope_of_an_application() {
    let mut state = state(ROLES_LEVEL);
    person(&mut state, "bob", &[]);
    bind(
        &mut state,
        "test",
        r#"{"role": "deployer", "users": ["bob"], "selector": "environment.name == 'test'"}"#,
    );
    person(&mut state, "cho", &[]);
    bind(
        &mut state,
        "web",
        r#"{"role": "deployer", "users": ["cho"], "selector": "application.name == 'web'"}"#,
    );
    let web = |reach| Place::Application(name("web"), reach);
    let deployer = Role::Deployer;
    assert!(at(&state, "bob", deployer, &web(Reach::Any)));
    assert!(!at(&state, "bob", deployer, &web(Reach::Every)));
    assert!(at(&state, "cho", deployer, &web(Reach::Every)));
    let api = Place::Application(name("api"), Reach::Any);
    assert!(!at(&state, "cho", deployer, &api));
    let test = Place::Environment(name("test"), Reach::Every);
    assert!(at(&state, "bob", deployer, &test));
    assert!(!at(&state, "cho", deployer, &test));
    // Without a scope only what is known of the application itself counts.
    state.scopes = Indexed::default();
    assert!(!at(&state, "bob", deployer, &web(Reach::Any)));
    assert!(at(&state, "cho", deployer, &web(Reach::Every)));
}

#[test]
fn a_parameter_needs_the_role_wherever_its_value_reaches() {
    let mut state = state(ROLES_LEVEL);
    person(&mut state, "bob", &[]);
    bind(
        &mut state,
        "web",
        r#"{"role": "deployer", "users": ["bob"],
            "selector": "application.name == 'web' && environment.name == 'test'"}"#,
    );
    let target = |json: &str| {
        let target: ParameterTarget = serde_json::from_str(json).unwrap();
        Place::Target(Box::new(target))
    };
    let may = |json: &str| at(&state, "bob", Role::Deployer, &target(json));
    assert!(may(r#"{"scope": "web-test-eu"}"#));
    assert!(may(r#"{"application": "web", "environment": "test"}"#));
    assert!(!may(r#"{"scope": "web-prod-eu"}"#));
    assert!(!may(r#"{"application": "web"}"#));
    assert!(!may(r#"{"environment": "test"}"#));
    assert!(!may(r#"{"dimensions": {"region": "eu"}}"#));
}

#[test]
fn a_scope_is_not_taken_by_changing_it() {
    let mut state = state(ROLES_LEVEL);
    person(&mut state, "bob", &[]);
    bind(
        &mut state,
        "eu",
        r#"{"role": "operator", "users": ["bob"], "selector": "scope.dimensions.region == 'eu'"}"#,
    );
    let spec = |region: &str| -> Box<ScopeSpec> {
        let json = format!(
            r#"{{"application": "web", "environment": "prod", "port": 80, "dimensions": {{"region": "{region}"}}}}"#
        );
        Box::new(serde_json::from_str(&json).unwrap())
    };
    let put = |scope: &str, region: &str| {
        let place = Place::NewScope(name(scope), BTreeMap::new(), spec(region));
        at(&state, "bob", Role::Operator, &place)
    };
    assert!(put("new", "eu") && put("web-prod-eu", "eu"));
    assert!(!put("new", "us"));
    assert!(!put("web-prod-us", "eu"), "it is in us now");
    assert!(!put("web-prod-eu", "us"), "it would be in us");
}

#[test]
fn a_selector_that_cannot_be_evaluated_gives_nothing() {
    let mut state = state(ROLES_LEVEL);
    person(&mut state, "bob", &[]);
    bind(
        &mut state,
        "odd",
        r#"{"role": "admin", "users": ["bob"], "selector": "nonsense("}"#,
    );
    assert!(!at(&state, "bob", Role::Viewer, &Place::Somewhere));
    assert!(administrators(&state).is_empty());
}

proptest! {
    /// A role that holds where another one is asked for is one that includes it; more grants never
    /// take anything away.
    #[test]
    fn rights_only_grow(own in prop::collection::vec(0_usize..5, 0..4), bound in 0_usize..5, asked in 0_usize..5) {
        let roles: Vec<Role> = own.iter().map(|index| Role::ALL[*index]).collect();
        let mut state = state(ROLES_LEVEL);
        person(&mut state, "ann", &roles);
        let asked = Role::ALL[asked];
        let place = in_scope("web-prod-eu");
        let before = at(&state, "ann", asked, &place);
        prop_assert_eq!(before, roles.iter().any(|role| role.includes(asked)));
        let spec = format!(
            r#"{{"role": "{}", "users": ["ann"], "selector": "scope.dimensions.region == 'eu'"}}"#,
            Role::ALL[bound]
        );
        bind(&mut state, "more", &spec);
        let after = at(&state, "ann", asked, &place);
        prop_assert_eq!(after, before || Role::ALL[bound].includes(asked));
        prop_assert_eq!(at(&state, "ann", asked, &in_scope("web-prod-us")), before);
    }
}
