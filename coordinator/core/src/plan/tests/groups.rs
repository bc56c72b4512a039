//! Groups under random reports, failures, people and clocks: nobody starts whose turn has not come,
//! no more failures are borne than allowed, nothing bursts, and every group ends.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidegate_shared::id::{GroupId, Version};
use tidegate_shared::spec::{Kind, RolloutKind, RolloutSpec};
use tidegate_shared::time::{Span, Timestamp};

use super::simulation::{AGENTS, Sim, scope_spec};
use crate::command::{
    ActOnDeployment, ActOnGroup, AddToGroup, Command, CreateDeployments, CreateFreeze, CreateGroup,
    DecideGroup, Named, OnConflict, Reply, Verb,
};
use crate::fixture::name;
use crate::state::{Fate, Group, GroupMember, State, Status};

/// What must hold of every entry of the log.
pub(super) fn guard(before: &State, after: &State) {
    for (id, old) in &before.groups {
        let Some(new) = after.groups.get(id) else {
            assert!(old.closed.is_some(), "{} was forgotten", old.title());
            continue;
        };
        for (number, member) in &new.members {
            let was = old.members.get(number);
            let started = was.is_some_and(|was| was.started_at != member.started_at);
            if started {
                start_was_right(old, new, *number, member);
            }
        }
        wave_opened_in_turn(old, new);
    }
}

fn start_was_right(old: &Group, new: &Group, number: u32, member: &GroupMember) {
    let title = old.title();
    assert!(!old.is_over_budget(), "{title}: a start over the budget");
    assert!(old.paused.is_none(), "{title}: a start in a pause");
    assert!(old.halted.is_none(), "{title}: a start in a halt");
    assert!(old.given.is_none(), "{title}: a start on the way back");
    assert!(old.begun_at.is_some(), "{title}: a start before the order");
    let wave = member.wave.unwrap_or(0);
    assert!(wave <= old.open_wave, "{title}: a start before its wave");
    if new.rollout.kind == RolloutKind::Linear {
        let step = new.rollout.interval.unwrap();
        let at = member.started_at.unwrap();
        for (other, found) in &new.members {
            if let Some(started) = found.started_at.filter(|_| *other != number) {
                assert!(at.since(started) >= step, "{title}: a burst at {at}");
            }
        }
    }
}

fn wave_opened_in_turn(old: &Group, new: &Group) {
    if new.open_wave <= old.open_wave || old.begun_at.is_none() {
        return;
    }
    for member in old.members.values() {
        let earlier = member.wave.is_some_and(|wave| wave < new.open_wave);
        assert!(!earlier || member.is_over(), "{} opened early", old.title());
    }
}

const SCOPES: [&str; 5] = ["g1", "g2", "g3", "g4", "g5"];

const QUICK: &str = r#"{"bake":"1s","traffic":{"steps":[{"percent":50,"hold":"1s"},{"percent":100,"hold":"1s"}]},
    "deadlines":{"progress":"60s","staging":"60s"}}"#;

const ROLLOUTS: [&str; 8] = [
    "{}",
    r#"{"budget":{"max_failures":1,"min_executed":"40%","on_breach":"rollback"}}"#,
    r#"{"kind":"linear","interval":"30s","order":"name"}"#,
    r#"{"kind":"linear","interval":"10s","gate":"healthy","budget":{"max_failures":"50%"}}"#,
    r#"{"kind":"linear_normalized","interval":"60s","gate":"verified"}"#,
    r#"{"kind":"waves","waves":[{"name":"canary","count":1,"bake":"20s"},{"name":"none","selector":"scope.name == \"x\""},{"name":"half","percent":50}]}"#,
    r#"{"kind":"waves","gate":"healthy","waves":[{"name":"a","selector":"scope.name < \"g3\"","bake":"5s"}],"budget":{"max_failures":2,"on_breach":"rollback"}}"#,
    r#"{"kind":"waves","gate":"verified","order":"listed","pinned":{"first":["g5"],"last":["g1"]},"waves":[{"name":"a","count":2},{"name":"b","count":2}]}"#,
];

/// Opens for ten minutes of each hour.
const WINDOW: &str = r#"{"selector":"scope.name != \"web\"","windows":[{"rrules":["FREQ=HOURLY"],"dtstart":"1970-01-01T00:20:00","duration":"10m"}]}"#;

struct Groups {
    sim: Sim,
    groups: Vec<GroupId>,
}

impl Groups {
    fn new() -> Self {
        let mut sim = Sim::new(QUICK, 1, "8080");
        for (index, scope) in SCOPES.iter().enumerate() {
            let port = (9_000 + index).to_string();
            sim.put(Kind::Scope, scope, &scope_spec(1, &port));
        }
        Self {
            sim,
            groups: Vec::new(),
        }
    }

    fn create(&mut self, version: u8, rollout: usize, scopes: &[&str], how: OnConflict) {
        let rollout: RolloutSpec = serde_json::from_str(ROLLOUTS[rollout]).unwrap();
        assert_eq!(rollout.validate().0, Vec::new());
        let outcome = self.sim.say(Command::CreateGroup(CreateGroup {
            name: None,
            deployments: CreateDeployments {
                application: name("shop"),
                version: Version::new(version.to_string()).unwrap(),
                scopes: scopes.iter().map(|scope| name(scope)).collect(),
                strategy: Some(name("way")),
                overrides: Default::default(),
                labels: BTreeMap::new(),
                on_conflict: how,
            },
            rollout: Some(rollout),
        }));
        if let Ok(Reply::Group { group, .. }) = outcome {
            self.groups.push(group);
        }
    }

    fn newest(&self) -> Option<&Group> {
        self.sim.state.groups.get(self.groups.last()?)
    }

    fn act(&mut self, verb: Verb) {
        if let Some(group) = self.groups.last() {
            self.sim
                .say(Command::ActOnGroup(ActOnGroup {
                    group: *group,
                    verb,
                    expected_revision: None,
                    reason: "a test".to_owned(),
                }))
                .ok();
        }
    }

    fn act_on_member(&mut self, which: u8, verb: Verb) {
        let member = self.newest().and_then(|group| {
            let number = u32::from(which) % group.members.len() as u32;
            Some(group.members.get(&number)?.deployment)
        });
        if let Some(deployment) = member {
            self.sim
                .say(Command::ActOnDeployment(ActOnDeployment {
                    deployment,
                    verb,
                    expected_revision: None,
                    reason: "a test".to_owned(),
                }))
                .ok();
        }
    }

    fn step(&mut self, (what, which, how): (u8, u8, u8)) {
        match what {
            0..=9 => self.sim.report(which as usize, how),
            10..=12 => self.pass(Span::from_millis(u64::from(how) * 40)),
            13 => self.pass(Span::from_secs(u64::from(how))),
            14 => self.pass(Span::from_mins(u64::from(how))),
            15 => {
                let conflict = [OnConflict::Fail, OnConflict::Queue, OnConflict::Supersede];
                let count = 1 + usize::from(which) % SCOPES.len();
                let rollout = usize::from(how) % ROLLOUTS.len();
                let conflict = conflict[usize::from(which) % 3];
                self.create(1 + how % 5, rollout, &SCOPES[..count], conflict);
            }
            16 => self.act(VERBS[usize::from(which) % VERBS.len()]),
            17 => self.act_on_member(which, VERBS[usize::from(how) % VERBS.len()]),
            18 => self.sim.deliver_late(),
            19 => self.rules(which, how),
            20 => self.sim.new_leader(),
            21 => self.grow(which),
            _ => self.decide(how % 3 > 0),
        }
        self.sim.settle();
        self.views_make_sense();
    }

    fn pass(&mut self, span: Span) {
        self.sim.now = self.sim.now + span;
    }

    fn grow(&mut self, which: u8) {
        if let Some(group) = self.groups.last() {
            let scope = SCOPES[usize::from(which) % SCOPES.len()];
            self.sim
                .say(Command::AddToGroup(AddToGroup {
                    group: *group,
                    scopes: vec![name(scope)],
                    expected_revision: None,
                }))
                .ok();
        }
    }

    fn decide(&mut self, granted: bool) {
        if let Some(group) = self.groups.last() {
            self.sim
                .say(Command::DecideGroup(DecideGroup {
                    group: *group,
                    granted,
                    reason: String::new(),
                    expected_revision: None,
                }))
                .ok();
        }
    }

    fn rules(&mut self, which: u8, how: u8) {
        let on = how.is_multiple_of(2);
        let policy = |text: &str| text.replacen('{', &format!("{{\"enabled\":{on},"), 1);
        match which % 6 {
            0 => self.sim.put(Kind::Policy, "window", &policy(WINDOW)),
            1 => self.sim.put(
                Kind::Policy,
                "pace",
                &policy(&format!(
                    r#"{{"selector":"scope.name > \"g2\"","gradual_rollout":{{"type":"linear","interval":"{}s"}}}}"#,
                    how % 90
                )),
            ),
            2 => self.sim.put(
                Kind::Policy,
                "again",
                &policy(r#"{"retry":{"max":2,"initial":"20s"}}"#),
            ),
            3 => self.sim.put(
                Kind::Policy,
                "few",
                &policy(r#"{"concurrency":{"max":2}}"#),
            ),
            4 => self.sim.put(
                Kind::Policy,
                "eyes",
                &policy(r#"{"selector":"scope.name == \"g2\"","approval":{"required":1}}"#),
            ),
            _ => self.freeze(how),
        }
    }

    fn freeze(&mut self, how: u8) {
        let first = self.sim.state.freezes.keys().next().cloned();
        let command = match first.filter(|_| how.is_multiple_of(3)) {
            Some(name) => Command::Thaw(Named { name }),
            None => Command::Freeze(CreateFreeze {
                selector: String::new(),
                reason: "a test".to_owned(),
                until: self.sim.now + Span::from_mins(u64::from(how)),
                let_run: how.is_multiple_of(2),
            }),
        };
        self.sim.say(command).ok();
    }

    /// Nobody waits without a reason that people are told.
    fn views_make_sense(&self) {
        let (state, observed) = (&self.sim.state, &self.sim.observed);
        for group in state.groups.values() {
            let view = crate::group::view::view(state, observed, self.sim.now, group);
            assert_eq!(view.members.len(), group.members.len());
            assert_eq!(view.status.is_end(), view.why.is_empty(), "{view:?}");
            for member in view.members {
                let waits = !member.status.is_end();
                assert!(!waits || !member.waiting_for.is_empty(), "{member:?}");
            }
        }
    }

    /// Honest agents and a fair clock: everything ends.
    fn run_out(&mut self) {
        for round in 0..6_000_u64 {
            for agent in 0..AGENTS.len() {
                self.sim.report(agent, 0);
            }
            self.sim.settle();
            let moves = self
                .sim
                .state
                .deployments
                .values()
                .any(|d| !d.status.is_end());
            if !moves && self.sim.state.open_groups.is_empty() {
                return;
            }
            let long = if round > 1_000 { 900 } else { 2 };
            self.pass(Span::from_secs(long));
        }
        let (state, observed) = (&self.sim.state, &self.sim.observed);
        let open = state.open_groups.keys().map(|id| &state.groups[id]);
        let told: Vec<String> = open
            .map(|group| crate::group::view::view(state, observed, self.sim.now, group).why)
            .collect();
        panic!("groups never end: {told:?}");
    }
}

const VERBS: [Verb; 10] = [
    Verb::Pause,
    Verb::Resume,
    Verb::Resume,
    Verb::Promote,
    Verb::PromoteFull,
    Verb::Finalize,
    Verb::Cancel,
    Verb::Rollback,
    Verb::Retry,
    Verb::Resume,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn groups_are_safe_and_end(
        first in 0..ROLLOUTS.len(),
        count in 1..=SCOPES.len(),
        steps in prop::collection::vec((0_u8..23, any::<u8>(), any::<u8>()), 1..100),
    ) {
        let mut world = Groups::new();
        world.create(1, 0, &SCOPES[..3], OnConflict::Fail);
        world.run_out();
        world.create(2, first, &SCOPES[..count], OnConflict::Fail);
        for step in steps {
            world.step(step);
        }
        world.run_out();
    }
}

#[test]
fn every_rollout_runs_through() {
    for (rollout, json) in ROLLOUTS.iter().enumerate() {
        let mut world = Groups::new();
        for version in [1, 2] {
            world.create(version, rollout, &SCOPES, OnConflict::Fail);
            world.run_out();
            let group = world.newest().unwrap();
            let good = group.members.values().filter(|member| {
                let end = member.ended.as_ref().unwrap();
                end.fate == Fate::Good && end.status == Status::Finalized
            });
            assert_eq!(good.count(), SCOPES.len(), "{json}");
        }
    }
}

/// Windows never release a burst: whatever has piled up keeps its distance.
#[test]
fn a_window_that_opens_releases_one_at_a_time() {
    let mut world = Groups::new();
    world.sim.put(Kind::Policy, "window", WINDOW);
    world.create(1, 2, &SCOPES, OnConflict::Fail);
    world.run_out();
    let starts = |group: &Group| -> Vec<Timestamp> {
        let members = group
            .in_order()
            .map(|(_, member)| member.started_at.unwrap());
        members.collect()
    };
    let starts = starts(world.newest().unwrap());
    let open = |at: Timestamp| (1_200..1_800).contains(&(at.millis() / 1_000 % 3_600));
    assert!(starts.iter().all(|at| open(*at)), "{starts:?}");
    let apart = Span::from_secs(30);
    assert!(
        starts
            .windows(2)
            .all(|pair| pair[1].since(pair[0]) >= apart),
        "{starts:?}"
    );
}
