//! Values for tests of this crate and of others: agents that do at once what they are told, and a
//! small cluster.
//!
//! Not part of the product: behind the feature `testing`.

use tidegate_shared::assignment::{
    Assignment, Counters, InstanceState, ObservedInstance, ObservedPlace, Report, WishedState,
};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{ClusterId, Name, RequestId, Version};
use tidegate_shared::spec::{Kind, ObjectSpec, ReleaseSpec, StrategySpec};
use tidegate_shared::time::Timestamp;
use tidegate_shared::weight::Weight;

use crate::apply::apply;
use crate::command::{
    Actor, Command, CreateDeployments, CreateRelease, Entry, InitCluster, Item, OnConflict,
    PutObject, RequestKey,
};
use crate::desired::desired;
use crate::state::{Addresses, CaRecord, SealedKey, State};

/// The report of an agent that has fulfilled its present assignments to the letter.
pub fn fulfilled(state: &State, agent: &Name, sequence: u64) -> Report {
    let wished = desired(state, agent);
    Report {
        start: 1,
        sequence,
        applied: wished.generation,
        places: wished.items.iter().filter_map(place).collect(),
        ..Report::default()
    }
}

fn place(item: &Assignment) -> Option<ObservedPlace> {
    let count = match item.state {
        WishedState::Staged => 0,
        WishedState::Running | WishedState::Drained => item.count,
        WishedState::Absent => return None,
    };
    Some(ObservedPlace {
        scope: item.scope.clone(),
        deployment: item.deployment,
        staged: true,
        instances: (0..count).map(|n| instance(item, n)).collect(),
        weight: Some(item.weight),
        open_requests: 0,
        drained: item.weight == Weight::ZERO,
        permanent_error: None,
        transient_error: None,
        checks: Vec::new(),
    })
}

/// A healthy instance of an item, with its counters at zero.
pub fn instance(item: &Assignment, ordinal: u32) -> ObservedInstance {
    ObservedInstance {
        id: format!(
            "tidegate-{}-{}-{ordinal}",
            item.scope,
            item.deployment.short()
        ),
        ordinal,
        state: InstanceState::Healthy,
        restarts: 0,
        port: 20_000,
        pid: 100,
        start_stamp: Timestamp::from_millis(1),
        counters: Counters::default(),
        last_exit: None,
        cpu_basis_points: 1_000,
        memory_bytes: 1 << 20,
        app: Vec::new(),
    }
}

/// A cluster at a level, with two releases of an application and three scopes that wait for both;
/// the last scope was changed in between.
///
/// # Panics
/// A command was refused.
#[allow(clippy::unwrap_used, reason = "behind the feature `testing`")]
pub fn deployed(level: u32) -> State {
    let mut state = State::default();
    for (index, command) in (1..).zip(commands_of(level)) {
        let at = Timestamp::from_millis(1_700_000_000_000 + index);
        let item = Item {
            actor: Actor::User(Name::new("ann").unwrap()),
            request: RequestKey::Client(RequestId::derived(at, "testing", index, 0)),
            command: Box::new(command),
        };
        let items = vec![item];
        let applied = apply(&mut state, index, &Entry { at, items }).remove(0);
        applied.outcome.unwrap();
    }
    state
}

#[allow(clippy::unwrap_used, reason = "behind the feature `testing`")]
fn commands_of(level: u32) -> Vec<Command> {
    let name = |text: &str| Name::new(text).unwrap();
    let put = |kind, object: &str, spec: &str| {
        Command::PutObject(PutObject {
            name: name(object),
            labels: Default::default(),
            spec: ObjectSpec::from_json(kind, spec).unwrap(),
            expected_revision: None,
            must_not_exist: false,
        })
    };
    let scope = |port: u32| {
        format!(r#"{{"application": "shop", "environment": "production", "port": {port}}}"#)
    };
    let deploy = |version: &str| {
        Command::CreateDeployments(CreateDeployments {
            application: name("shop"),
            version: Version::new(version).unwrap(),
            scopes: ["s1", "s2", "s3"].map(name).to_vec(),
            strategy: None,
            overrides: StrategySpec::default(),
            labels: Default::default(),
            on_conflict: OnConflict::Queue,
        })
    };
    let release = |version: &str| {
        let digest = Digest::of(version.as_bytes());
        let spec = format!(
            r#"{{"parameters": {{"V": "{version}"}}, "assets": [{{"name": "shop", "kind": "binary", "size": 1, "sha256": "{digest}", "run": {{"command": "shop"}}}}]}}"#
        );
        Command::CreateRelease(CreateRelease {
            application: name("shop"),
            version: Version::new(version).unwrap(),
            labels: Default::default(),
            spec: serde_json::from_str::<ReleaseSpec>(&spec).unwrap(),
            stored: true,
        })
    };
    let init = Command::InitCluster(InitCluster {
        cluster: ClusterId::derived(Timestamp::ZERO, "testing", 0, 0),
        trust_domain: "example.com".to_owned(),
        name: name("c1"),
        addresses: Addresses::default(),
        ca: CaRecord {
            certificate: String::new(),
            key: SealedKey {
                nonce: Vec::new(),
                sealed: Vec::new(),
            },
        },
        admin: name("ann"),
        level,
    });
    vec![
        init,
        put(Kind::Application, "shop", "{}"),
        put(Kind::Environment, "production", "{}"),
        put(Kind::Scope, "s1", &scope(81)),
        put(Kind::Scope, "s2", &scope(82)),
        put(Kind::Scope, "s3", &scope(83)),
        release("1.0.0"),
        release("2.0.0"),
        deploy("1.0.0"),
        put(Kind::Scope, "s3", &scope(84)),
        deploy("2.0.0"),
    ]
}
