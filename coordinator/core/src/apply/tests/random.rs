//! Random commands: whatever comes, the invariants hold and replicas agree.

use proptest::prelude::*;
use tidegate_shared::cbor;
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, RequestId};
use tidegate_shared::spec::{Kind, ReleaseStatus};
use tidegate_shared::time::Span;
use tidegate_shared::weight::Weight;

use super::world::{
    SCOPE, World, cause, create_release, join, name, names, require_approval, stop, user,
    verb_command, version,
};
use crate::apply::apply;
use crate::command::{
    Action, Actor, Advance, AgentName, Command, CreateDeployments, Decide, DeleteObject, Entry,
    Item, OnConflict, RequestKey, RollbackScope, ScopeName, SetReleaseStatus, Verb,
};
use crate::deployment::steps;
use crate::desired::desired;
use crate::state::{Assembly, State, Status, pieces};

const AGENTS: [&str; 4] = ["a1", "a2", "a3", "a4"];
const RELEASES: [&str; 4] = ["1.0.0", "2.0.0", "3.0.0", "4.0.0"];
const STRATEGIES: [&str; 6] = [
    "{}",
    r#"{"kind": "all_in"}"#,
    r#"{"kind": "rolling"}"#,
    r#"{"kind": "rolling", "batch": {"max_unavailable": 2, "overlap": false}, "on_stall": "finalize"}"#,
    r#"{"finalize": "manual", "bake_share": 10, "keep_releases": 2}"#,
    r#"{"verification": [{"name": "a", "http": {"path": "/"}}, {"name": "b", "command": {"command": "c"}, "when": ["before_traffic"]}]}"#,
];

/// One random draw: what, on which, with which argument.
pub(super) type Draw = (u8, u8, u8);

fn pick<T: Copy>(list: &[T], by: u8) -> Option<T> {
    (!list.is_empty()).then(|| list[usize::from(by) % list.len()])
}

/// A deployment that something can still happen to, rarely any.
fn target(state: &State, by: u8) -> Option<DeploymentId> {
    let scope = state.scopes.get(&name("web"))?;
    let lively: Vec<DeploymentId> = scope
        .candidate
        .iter()
        .chain(&scope.waiting)
        .chain(&scope.active)
        .chain(&scope.retired)
        .copied()
        .collect();
    if by % 8 == 7 {
        let all: Vec<DeploymentId> = state.deployments.keys().copied().collect();
        return pick(&all, by / 8);
    }
    scope
        .candidate
        .filter(|_| by.is_multiple_of(2))
        .or(pick(&lively, by / 2))
}

fn action(state: &State, which: u8, by: u8) -> Action {
    let agents: Vec<_> = state.agents.keys().cloned().collect();
    let some = |by: u8| {
        let taken = agents
            .iter()
            .enumerate()
            .filter(|(i, _)| by >> (i % 8) & 1 == 1);
        taken.map(|(_, agent)| agent.clone()).collect::<Vec<_>>()
    };
    let none = Vec::new;
    match which % 24 {
        0 | 1 => Action::Start {
            participants: agents,
            gates: None,
        },
        2 | 3 => Action::Staged,
        4 | 5 => Action::InstancesReady,
        6 | 7 => Action::StepReached,
        8 | 9 => Action::StepDone {
            unverified: by.is_multiple_of(2),
        },
        10 => Action::BatchDone,
        11 | 12 => Action::Finalize {
            unverified: by.is_multiple_of(2),
        },
        13 => Action::Drained,
        14 | 15 => Action::Settled {
            leftovers: if by.is_multiple_of(3) {
                some(by)
            } else {
                none()
            },
        },
        16 => Action::TakeBack {
            cause: cause(["rule", "stall", "permanent_errors", "nonsense"][usize::from(by % 4)]),
            evidence: Vec::new(),
        },
        17 => Action::Expire {
            leftovers: some(by),
        },
        18 => Action::Halt {
            cause: cause("rule"),
            evidence: Vec::new(),
        },
        19 => Action::Unhalt,
        20 => Action::MarkLost { lost: some(by) },
        21 => Action::LeftoversGone { agents: some(by) },
        22 => Action::Progress {
            outstanding: u32::from(by % 4),
        },
        _ => match by % 3 {
            0 => require_approval(state.at),
            1 => Action::ApprovalSatisfied,
            _ => Action::ApprovalDenied { expired: true },
        },
    }
}

/// The move that goes on with what is under way; without anything, none.
fn forward(state: &State) -> Option<(DeploymentId, Action)> {
    let scope = state.scopes.get(&name("web"))?;
    let active = scope
        .active
        .filter(|id| state.deployments[id].status == Status::Deleting);
    let id = scope
        .candidate
        .or(active)
        .or(scope.waiting.last().copied())?;
    let deployment = &state.deployments[&id];
    let open = deployment
        .traffic
        .step
        .is_some_and(|step| step.reached_at.is_none());
    let settled = Action::Settled {
        leftovers: Vec::new(),
    };
    let action = match deployment.status {
        Status::CreatingApproval => Action::ApprovalSatisfied,
        Status::Pending => Action::Start {
            participants: state.agents.keys().cloned().collect(),
            gates: None,
        },
        Status::Creating => Action::Staged,
        Status::WaitingForInstances => Action::InstancesReady,
        Status::Running if open => Action::StepReached,
        Status::Running if steps::at_last(deployment) => Action::Finalize { unverified: false },
        Status::Running => Action::StepDone { unverified: false },
        Status::Finalizing if !deployment.drained => Action::Drained,
        Status::Cancelling | Status::RollingBack if deployment.traffic.replaced > 0 => {
            Action::BatchDone
        }
        _ => settled,
    };
    Some((id, action))
}

fn verb(by: u8) -> Verb {
    match by % 12 {
        0 => Verb::Pause,
        1 | 2 => Verb::Resume,
        3 | 4 => Verb::Promote,
        5 => Verb::PromoteFull,
        6 => Verb::Traffic(Weight::share(u64::from(by), 255)),
        7 => Verb::Finalize,
        8 => Verb::Cancel,
        9 | 10 => Verb::Rollback,
        _ => Verb::Retry,
    }
}

fn on_scope(which: u8, by: u8) -> Command {
    let web = ScopeName { name: name("web") };
    match which % 5 {
        0 => stop(by.is_multiple_of(2)),
        1 => Command::StartScope(web),
        2 => Command::RestartScope(web),
        _ => Command::RollbackScope(RollbackScope {
            name: name("web"),
            version: pick(&RELEASES, by)
                .filter(|_| !by.is_multiple_of(3))
                .map(version),
            force: by.is_multiple_of(5),
            reason: "must be".to_owned(),
        }),
    }
}

fn on_objects(world: &World, which: u8, by: u8) -> Command {
    match which % 6 {
        0 => join(pick(&AGENTS, by).unwrap_or("a1")),
        1 => Command::RemoveAgent(AgentName {
            name: name(pick(&AGENTS, by).unwrap_or("a1")),
        }),
        2 => {
            let count = format!("{{\"instances_per_agent\": {},", by % 5 + 1);
            world.object("web", Kind::Scope, &SCOPE.replacen('{', &count, 1))
        }
        3 => Command::SetReleaseStatus(SetReleaseStatus {
            application: name("shop"),
            version: version(pick(&RELEASES, by).unwrap_or("1.0.0")),
            status: [
                ReleaseStatus::Ready,
                ReleaseStatus::Ready,
                ReleaseStatus::Paused,
                ReleaseStatus::Rejected,
            ][usize::from(by / 4 % 4)],
            reason: String::new(),
            expected_revision: None,
        }),
        4 => Command::DeleteObject(DeleteObject {
            kind: Kind::ALL[usize::from(by) % 6],
            name: name(["web", "shop", "production", "p"][usize::from(by / 6 % 4)]),
            expected_revision: None,
        }),
        _ => {
            // Plain, secret with a value, secret without one: whatever comes after whatever.
            let value = match by % 3 {
                0 => format!(r#""value": "{by}""#),
                1 => format!(r#""kind": "secret", "sealed": "{by:02x}", "on_rollback": "latest""#),
                _ => r#""kind": "secret""#.to_owned(),
            };
            let value =
                format!(r#"{{"variable": "V", {value}, "target": {{"application": "shop"}}}}"#);
            world.object("p", Kind::Parameter, &value)
        }
    }
}

fn deploy(which: u8, by: u8) -> (Actor, Command) {
    let modes = [OnConflict::Fail, OnConflict::Queue, OnConflict::Supersede];
    let command = CreateDeployments {
        application: name("shop"),
        version: version(pick(&RELEASES, by).unwrap_or("1.0.0")),
        scopes: names(&["web"]),
        strategy: None,
        overrides: serde_json::from_str(STRATEGIES[usize::from(which) % STRATEGIES.len()]).unwrap(),
        labels: std::collections::BTreeMap::new(),
        on_conflict: modes[usize::from(by / 4 % 3)],
    };
    (user("ann"), Command::CreateDeployments(command))
}

pub(super) fn command(world: &World, (kind, which, by): Draw) -> (Actor, Command) {
    let state = &world.state;
    let ann = user("ann");
    let advance = |deployment: DeploymentId, action| {
        let revision = state.deployments[&deployment].meta.revision - u64::from(by == 255);
        (
            Actor::System,
            Command::Advance(Advance {
                deployment,
                revision,
                action,
            }),
        )
    };
    match kind % 64 {
        0..=40 => match forward(state) {
            Some((deployment, action)) => advance(deployment, action),
            None => deploy(which, by),
        },
        41..=47 => match target(state, which) {
            Some(deployment) => {
                let which = which.wrapping_mul(7).wrapping_add(by);
                advance(deployment, action(state, which, by))
            }
            None => (ann, create_release("1.0.0")),
        },
        48..=52 => match target(state, which) {
            Some(id) => (ann, verb_command(id, verb(by))),
            None => (ann, stop(false)),
        },
        53..=54 => deploy(which, by),
        55..=57 => (ann, on_scope(which, by)),
        58..=61 => (ann, on_objects(world, which, by)),
        _ => match target(state, which) {
            Some(deployment) => (
                user(["ann", "bob"][usize::from(by % 2)]),
                Command::Decide(Decide {
                    deployment,
                    granted: !by.is_multiple_of(5),
                    reason: String::new(),
                }),
            ),
            None => (ann, stop(true)),
        },
    }
}

pub(super) fn through_cbor(entry: &Entry) -> Entry {
    let mut bytes = Vec::new();
    cbor::write(entry, &mut bytes).unwrap();
    cbor::read(&bytes).unwrap().0
}

/// As a snapshot takes a state apart and puts it together.
pub(super) fn through_pieces(state: &State) -> State {
    let mut assembly = Assembly::default();
    for piece in pieces(state) {
        let mut bytes = Vec::new();
        cbor::write(&piece, &mut bytes).unwrap();
        let (piece, _) = cbor::read(&bytes).unwrap();
        assembly.add(piece).unwrap();
    }
    assembly.finish().unwrap()
}

/// Equal generation means equal content; a generation never falls.
fn generations_hold(before: &State, after: &State) {
    for (agent, known) in &after.agents {
        let Some(earlier) = before.agents.get(agent) else {
            continue;
        };
        assert!(known.generation >= earlier.generation);
        if known.generation == earlier.generation {
            assert_eq!(desired(before, agent), desired(after, agent), "{agent}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_and_replicas_agree(draws in prop::collection::vec(any::<(Draw, u8)>(), 1..160)) {
        let mut world = World::new();
        let mut replica = world.state.clone();
        for (draw, minutes) in draws {
            world.now = world.now + Span::from_mins(u64::from(minutes % 16));
            world.index += 1;
            let (actor, command) = command(&world, draw);
            let request = match actor {
                Actor::System => RequestKey::Planner(Digest::of(&world.index.to_be_bytes())),
                _ => RequestKey::Client(RequestId::derived(world.now, "random", world.index, 0)),
            };
            let item = Item { actor, request, command: Box::new(command) };
            let entry = Entry { at: world.now, items: vec![item.clone(), item] };
            let before = world.state.clone();
            let applied = apply(&mut world.state, world.index, &entry);
            prop_assert_eq!(world.state.check(), Vec::<String>::new(), "{:?}", entry.items[0]);
            // The same request again, in the same entry: the same answer, except that nothing of the
            // planner's refusals is remembered.
            prop_assert_eq!(&applied[0].outcome, &applied[1].outcome);
            generations_hold(&before, &world.state);
            let mirrored = apply(&mut replica, world.index, &through_cbor(&entry));
            prop_assert_eq!(mirrored, applied);
        }
        prop_assert_eq!(&world.state, &replica);
        prop_assert_eq!(world.state.verify_chain(), Ok(()));
        let mut bytes = Vec::new();
        cbor::write(&world.state, &mut bytes).unwrap();
        let (read, _): (State, usize) = cbor::read(&bytes).unwrap();
        prop_assert_eq!(&read, &world.state);
        prop_assert_eq!(through_pieces(&read), world.state);
    }
}
