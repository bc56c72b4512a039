//! The order invariant under random wishes, scripts and faults.

use proptest::prelude::*;
use tidegate_shared::assignment::{
    AssetWish, Assignment, Assignments, Generation, InstanceState, PermanentErrorKind, Role,
    WishedState,
};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, Name, Version};
use tidegate_shared::spec::{AssetKind, HealthCheck, HttpProbe, Port, RunSpec};
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::weight::Weight;

use super::{AgentModel, Behaviour, Staged};
use crate::desired::Desired;
use crate::observed::{Observed, Staging};
use crate::place::{InstanceKey, PlaceKey};
use crate::plan::{Action, Routes};

/// One turn of the loop, kept to be judged.
pub struct Turn {
    pub desired: Desired,
    pub observed: Observed,
    pub actions: Vec<Action>,
    pub now: Timestamp,
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

pub(super) fn place(scope: &str, n: u8) -> PlaceKey {
    let text = format!("01ARZ3NDEKTSV4RRFFQ69G5FA{n}");
    PlaceKey {
        scope: name(scope),
        deployment: text.parse::<DeploymentId>().expect("an id"),
    }
}

pub(super) fn item(scope: &str, n: u8, state: WishedState, weight: u64) -> Assignment {
    let key = place(scope, n);
    Assignment {
        scope: key.scope,
        deployment: key.deployment,
        role: if n == 0 {
            Role::Active
        } else {
            Role::Candidate
        },
        count: 2,
        application: name("shop"),
        release: Version::new(format!("{n}.0.0")).expect("a version"),
        asset: AssetWish {
            name: name("shop"),
            kind: AssetKind::Archive,
            sha256: Digest::from_bytes([n; 32]),
            size: 1,
            sources: Vec::new(),
        },
        run: RunSpec {
            command: "./shop".to_owned(),
            ..RunSpec::default()
        },
        parameters: Vec::new(),
        port: if scope == "worker" {
            Port::None
        } else {
            Port::Number(8_080)
        },
        traffic: Default::default(),
        health_check: HealthCheck {
            http: Some(HttpProbe {
                path: "/".to_owned(),
                status: None,
                body_contains: None,
            }),
            interval: Span::from_millis(500),
            ..HealthCheck::default()
        },
        state,
        weight: Weight::from_basis_points(weight).expect("a weight"),
        may_interrupt: false,
        drain: Span::from_secs(5),
        max_restarts: 2,
        keep_releases: 3,
        guard: None,
        scrape: None,
        checks: Vec::new(),
    }
}

pub(super) fn wish(index: u64, items: Vec<Assignment>) -> Assignments {
    Assignments {
        generation: Generation { epoch: 1, index },
        items,
        report_interval: Some(Span::from_secs(1)),
    }
}

pub(super) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1_000)
}

/// The invariant, told once more and on its own.
fn judge(turn: &Turn) -> Result<(), String> {
    for action in &turn.actions {
        match action {
            Action::Route(routes) => judge_routes(turn, routes)?,
            Action::Stop { instance } => judge_stop(turn, instance)?,
            Action::Start { instance } => {
                if turn.observed.places[&instance.place].staging != Staging::Ready {
                    return Err(format!("{instance} starts before its release is there"));
                }
            }
            Action::Remove { place } => {
                if turn.observed.places[place].may_live() {
                    return Err(format!("{place} is removed while it may run"));
                }
            }
            Action::Stage { .. } | Action::Probe { .. } => {}
        }
    }
    Ok(())
}

fn binds(turn: &Turn, scope: &Name) -> bool {
    let mut wishes = turn.desired.places.iter();
    wishes.any(|(key, item)| key.scope == *scope && item.weight > Weight::ZERO)
}

fn interruptible(turn: &Turn, key: &PlaceKey) -> bool {
    turn.desired
        .places
        .get(key)
        .is_some_and(|i| i.may_interrupt)
}

fn routed(routes: &Routes, key: &PlaceKey) -> Weight {
    let scope = routes.0.get(&key.scope);
    let version = scope.and_then(|scope| scope.versions.get(&key.deployment));
    version.map_or(Weight::ZERO, |version| version.weight)
}

fn judge_routes(turn: &Turn, routes: &Routes) -> Result<(), String> {
    for (key, held) in &turn.observed.places {
        let before = turn
            .observed
            .traffic
            .weight(key)
            .ok_or("routes while blind")?;
        let after = routed(routes, key);
        if after > before && !held.has_healthy() {
            return Err(format!("weight moves to {key}, which is not healthy"));
        }
        if after != before && after != turn.desired.weight(key) {
            return Err(format!("{key} gets weight that nobody wished"));
        }
        let taken = before > Weight::ZERO && after == Weight::ZERO && held.has_healthy();
        if taken && binds(turn, &key.scope) && !interruptible(turn, key) {
            let carried = turn.observed.places.iter().any(|(other, held)| {
                other.scope == key.scope
                    && held.has_healthy()
                    && routed(routes, other) > Weight::ZERO
            });
            if !carried {
                return Err(format!("traffic is taken from {key}, the last healthy one"));
            }
        }
    }
    Ok(())
}

fn judge_stop(turn: &Turn, instance: &InstanceKey) -> Result<(), String> {
    let key = &instance.place;
    let held = &turn.observed.places[key];
    let wanted = turn
        .desired
        .places
        .get(key)
        .filter(|item| matches!(item.state, WishedState::Running | WishedState::Drained));
    let bound = binds(turn, &key.scope) && !interruptible(turn, key);
    if let Some(item) = wanted {
        if instance.ordinal < item.count {
            return Err(format!("{instance} is stopped although it is wanted"));
        }
        let others = held.instances.iter();
        let mut others = others.filter(|(o, i)| **o != instance.ordinal && i.is_healthy());
        if bound && held.instances[&instance.ordinal].is_healthy() && others.next().is_none() {
            return Err(format!("{instance} is stopped as the last healthy one"));
        }
        return Ok(());
    }
    if key.scope.as_str() != "worker" {
        if turn.observed.traffic.weight(key) != Some(Weight::ZERO) {
            return Err(format!(
                "{instance} is stopped before weight 0 is acknowledged"
            ));
        }
        let open = turn
            .observed
            .traffic
            .version(key)
            .map_or(0, |v| v.open_requests);
        let since = held.zero_since.ok_or("stopped without a drain")?;
        if open > 0 && turn.now < since + held.item.drain {
            return Err(format!("{instance} is stopped before it is drained"));
        }
    }
    let serves = |(other, held): (&PlaceKey, &crate::observed::Place)| {
        other != key
            && other.scope == key.scope
            && held.has_healthy()
            && turn.desired.weight(other) > Weight::ZERO
    };
    if bound && held.has_healthy() && !turn.observed.places.iter().any(serves) {
        return Err(format!(
            "{instance} is stopped although nobody else could serve"
        ));
    }
    Ok(())
}

#[derive(Debug, Clone)]
enum Step {
    Wish(Vec<(u8, WishedState, u64, u32, bool)>),
    Behave(u8, Behaviour),
    Open(u8, u64),
    Kill,
    Reboot,
    Plane(bool),
    Port(bool),
    KillProcess(u8),
    Wait(u64),
}

fn any_behaviour() -> impl Strategy<Value = Behaviour> {
    let good = Behaviour::default;
    prop_oneof![
        4 => Just(good()),
        1 => Just(Behaviour { healthy_after: Some(Span::from_secs(3)), ..good() }),
        1 => Just(Behaviour { healthy_after: None, ..good() }),
        1 => Just(Behaviour { exits_after: Some(Span::from_secs(2)), ..good() }),
        1 => Just(Behaviour { exits_after: Some(Span::ZERO), ..good() }),
        1 => Just(Behaviour { unhealthy_after: Some(Span::from_secs(4)), ..good() }),
        1 => Just(Behaviour { stop_takes: Span::from_secs(3), ..good() }),
        1 => Just(Behaviour { unstartable: Some("no such file".to_owned()), ..good() }),
        1 => Just(Behaviour { staged: Staged::Fails, ..good() }),
        1 => Just(Behaviour { staged: Staged::Refused(PermanentErrorKind::DiskFull), ..good() }),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let state = prop_oneof![
        1 => Just(WishedState::Staged),
        4 => Just(WishedState::Running),
        1 => Just(WishedState::Drained),
        1 => Just(WishedState::Absent),
    ];
    let weight = prop_oneof![Just(0_u64), Just(500), Just(5_000), Just(10_000)];
    let wishes = prop::collection::btree_map(
        0_u8..3,
        (state, weight, 1_u32..3, prop::bool::weighted(0.2)),
        0..3,
    );
    prop_oneof![
        4 => wishes.prop_map(|wishes| {
            let wishes = wishes.into_iter();
            Step::Wish(wishes.map(|(n, (s, w, c, i))| (n, s, w, c, i)).collect())
        }),
        2 => (0_u8..3, any_behaviour()).prop_map(|(n, b)| Step::Behave(n, b)),
        1 => (0_u8..3, 0_u64..2).prop_map(|(n, open)| Step::Open(n, open)),
        1 => Just(Step::Kill),
        1 => Just(Step::Reboot),
        1 => any::<bool>().prop_map(Step::Plane),
        1 => any::<bool>().prop_map(Step::Port),
        1 => (0_u8..3).prop_map(Step::KillProcess),
        4 => (1_u64..20_000).prop_map(Step::Wait),
    ]
}

const SCOPES: [&str; 2] = ["shop-eu", "worker"];

fn play(agent: &mut AgentModel, index: u64, step: &Step) {
    match step {
        Step::Wish(wishes) => {
            let items = SCOPES.iter().flat_map(|scope| {
                wishes
                    .iter()
                    .map(|(n, state, weight, count, may_interrupt)| Assignment {
                        count: *count,
                        may_interrupt: *may_interrupt,
                        ..item(scope, *n, *state, *weight)
                    })
            });
            agent.assign(&wish(index, items.collect()));
        }
        Step::Behave(n, behaviour) => agent.host.behave(&format!("{n}.0.0"), behaviour.clone()),
        Step::Open(n, open) => agent.host.hold_open(&place(SCOPES[0], *n), *open),
        Step::Kill => {
            agent.kill();
            agent.advance(agent.now() + Span::from_millis(700));
            agent.start();
        }
        Step::Reboot => agent.reboot(),
        Step::Plane(down) => agent.host.data_plane_down(*down),
        Step::Port(taken) if *taken => agent.host.occupy(8_080),
        Step::Port(_) => agent.host.vacate(8_080),
        Step::KillProcess(n) => {
            let now = agent.now();
            for key in agent.host.running() {
                if key.place.deployment == place(SCOPES[0], *n).deployment {
                    agent.host.kill_process(&key, now);
                }
            }
        }
        Step::Wait(millis) => agent.advance(agent.now() + Span::from_millis(*millis)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn the_order_holds_and_the_end_is_the_wish(steps in prop::collection::vec(any_step(), 1..30)) {
        let mut agent = AgentModel::new(at(1));
        agent.host.load(&name(SCOPES[0]), 10);
        for (index, step) in steps.iter().enumerate() {
            play(&mut agent, index as u64 + 1, step);
        }
        // From here on everything behaves well, and the wish must come true.
        agent.host.data_plane_down(false);
        agent.host.vacate(8_080);
        for n in 0..3 {
            agent.host.behave(&format!("{n}.0.0"), Behaviour::default());
            agent.host.hold_open(&place(SCOPES[0], n), 0);
        }
        agent.kill();
        agent.start();
        let items = SCOPES.iter().flat_map(|scope| [
            item(scope, 0, WishedState::Running, 2_500),
            item(scope, 1, WishedState::Running, 7_500),
            item(scope, 2, WishedState::Absent, 0),
        ]);
        agent.assign(&wish(1_000, items.collect()));
        agent.advance(agent.now() + Span::from_mins(3));
        for turn in &agent.turns {
            if let Err(broken) = judge(turn) {
                prop_assert!(false, "{} at {}", broken, turn.now);
            }
        }
        let report = agent.report().expect("up");
        let places: Vec<PlaceKey> = report
            .places
            .iter()
            .map(|p| PlaceKey { scope: p.scope.clone(), deployment: p.deployment })
            .collect();
        let wanted: Vec<PlaceKey> =
            SCOPES.iter().flat_map(|scope| [place(scope, 0), place(scope, 1)]).collect();
        prop_assert_eq!(places, wanted);
        for held in &report.places {
            let healthy = held.instances.iter().filter(|i| i.state == InstanceState::Healthy);
            prop_assert_eq!((healthy.count(), held.instances.len()), (2, 2), "{:?}", held);
            prop_assert!(held.weight > Some(Weight::ZERO));
            prop_assert_eq!(held.permanent_error.as_ref(), None);
        }
        prop_assert_eq!(agent.host.running().len(), 8);
    }
}
