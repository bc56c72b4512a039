//! Ended deployments leave the state: what stays, what it costs, and that no decision changes.

use proptest::prelude::*;
use tidegate_shared::cbor;
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, RequestId};
use tidegate_shared::spec::Kind;
use tidegate_shared::time::Span;

use super::random::{Draw, command, through_cbor};
use super::world::{SCOPE, World, init, name, one, user, verb_command};
use crate::apply::{apply, archive};
use crate::archive::{ARCHIVE_LEVEL, Archived, NEWEST_ENDED, Past};
use crate::command::{
    Actor, Command, DeleteObject, Entry, Item, RaiseLevel, RequestKey, ScopeName, UpdateMember,
    Verb,
};
use crate::desired::desired;
use crate::event::{Event, verify_chain};
use crate::observed::Observed;
use crate::plan::plan;
use crate::state::{Addresses, Archive, State};
use crate::testing::fulfilled;

/// What every node's history would hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct History {
    events: Vec<Event>,
    deployments: Vec<Past>,
}

impl History {
    fn take(&mut self, row: &Archived) {
        match row {
            Archived::Event(event) => self.events.push((**event).clone()),
            Archived::Deployment(past) => self.deployments.push((**past).clone()),
        }
    }

    fn has(&self, id: DeploymentId) -> bool {
        self.deployments.iter().any(|past| past.deployment.id == id)
    }
}

/// A world whose rows leave, with its history.
struct Archiving {
    world: World,
    history: History,
}

impl Archiving {
    fn new() -> Self {
        let mut found = Self {
            world: World::new(),
            history: History::default(),
        };
        let member = Command::UpdateMember(UpdateMember {
            node: 1,
            addresses: Addresses::default(),
            version: "2".to_owned(),
            level: ARCHIVE_LEVEL,
        });
        found.run(member);
        found.run(Command::RaiseLevel(RaiseLevel {
            level: ARCHIVE_LEVEL,
        }));
        found
    }

    fn apply(&mut self, actor: Actor, command: Command) -> crate::command::Applied {
        let item = self.world.item(actor, command);
        let applied = self.world.apply(item);
        for row in &applied.archived {
            self.history.take(row);
        }
        if applied.events_leave {
            self.history.events.extend(applied.events.iter().cloned());
        }
        applied
    }

    fn run(&mut self, command: Command) {
        self.apply(user("ann"), command).outcome.unwrap();
    }

    /// A deployment that is cancelled before it starts.
    fn end_one(&mut self, scope: &str) -> DeploymentId {
        let command = self.world.deploy_command(scope, "1.0.0");
        let made = self.apply(user("ann"), command);
        let id = one(made.outcome.unwrap());
        self.run(verb_command(id, Verb::Cancel));
        id
    }
}

#[test]
fn the_level_lets_the_past_leave_and_the_chain_goes_on() {
    let mut found = Archiving::new();
    assert!(found.world.state.events.is_empty());
    found.end_one("web");
    let history = &found.history;
    let last = verify_chain(&history.events).unwrap();
    assert_eq!(Some(last), found.world.state.last_hash);
    let extent = found.world.state.extent().unwrap();
    assert_eq!(extent.events, history.events.len() as u64);
    assert_eq!(extent.last_hash, Some(last));
}

#[test]
fn a_cluster_made_at_the_level_keeps_no_past_from_its_first_entry_on() {
    let mut world = World::empty();
    let mut init = init();
    init.level = ARCHIVE_LEVEL;
    let item = world.item(Actor::System, Command::InitCluster(init));
    let applied = world.apply(item);
    assert!(applied.events_leave && world.state.events.is_empty());
    assert_eq!(applied.rows().count(), applied.events.len());
    assert_eq!(world.state.archive.map(|archive| archive.events), Some(1));
}

#[test]
fn the_newest_few_stay_and_the_oldest_leave_first() {
    let mut found = Archiving::new();
    let ids: Vec<_> = (0..6).map(|_| found.end_one("web")).collect();
    let gone: Vec<_> = found
        .history
        .deployments
        .iter()
        .map(|p| p.deployment.id)
        .collect();
    assert_eq!(gone, ids[..6 - NEWEST_ENDED]);
    assert_eq!(
        found
            .history
            .deployments
            .iter()
            .map(|p| p.number)
            .collect::<Vec<_>>(),
        [1, 2, 3]
    );
    // One of the newest can be tried again, one that has left cannot.
    let refused = found
        .world
        .run(verb_command(ids[0], Verb::Retry))
        .unwrap_err();
    assert_eq!(refused.reason, Reason::NotFound);
    found.run(verb_command(ids[5], Verb::Retry));
}

#[test]
fn what_a_return_and_a_start_take_stays_however_much_ends_after_it() {
    let mut found = Archiving::new();
    for release in ["1.0.0", "2.0.0"] {
        let id = found.world.deploy(release);
        found.world.finish(id);
    }
    let kept = found.world.scope().kept.clone();
    assert_eq!(kept.len(), 2);
    for _ in 0..6 {
        found.end_one("web");
    }
    assert!(
        kept.iter()
            .all(|id| found.world.state.deployments.contains_key(id))
    );
    let back = Command::RollbackScope(crate::command::RollbackScope {
        name: name("web"),
        version: None,
        force: false,
        reason: String::new(),
    });
    let id = one(found.world.run(back).unwrap());
    assert_eq!(found.world.get(id).origin.version.as_str(), "1.0.0");
    found.world.finish(id);
    found.run(super::world::stop(false));
    let deleting = found.world.scope().active.unwrap();
    found.world.settle(deleting);
    for _ in 0..6 {
        found.end_one("web");
    }
    let start = Command::StartScope(ScopeName { name: name("web") });
    let id = one(found.world.run(start).unwrap());
    assert_eq!(found.world.get(id).origin.version.as_str(), "1.0.0");
}

#[test]
fn a_deleted_scope_leaves_nothing_behind() {
    let mut found = Archiving::new();
    let ids: Vec<_> = (0..2).map(|_| found.end_one("api")).collect();
    found.run(Command::DeleteObject(DeleteObject {
        kind: Kind::Scope,
        name: name("api"),
        expected_revision: None,
    }));
    assert!(ids.iter().all(|id| found.history.has(*id)));
    assert!(found.world.state.deployments.is_empty());
    assert!(found.world.state.history.is_empty() && found.world.state.short_ids.is_empty());
}

/// A number that may be larger by hand: the variable is read when the test is built.
fn wanted(given: Option<&str>, usual: usize) -> usize {
    given.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn the_state_does_not_grow_with_what_has_ended() {
    let mut found = Archiving::new();
    let size = |state: &State| {
        let mut bytes = Vec::new();
        let bare = State {
            // Remembered for 24 h, whatever becomes of deployments.
            requests: Default::default(),
            ..state.clone()
        };
        cbor::write(&bare, &mut bytes).unwrap();
        bytes.len()
    };
    let many = wanted(option_env!("TIDEGATE_ENDED"), 300);
    let mut first = 0;
    for count in 1..=many {
        found.end_one("web");
        found.world.now = found.world.now + Span::from_mins(30);
        if count == 20 {
            first = size(&found.world.state);
        }
    }
    let last = size(&found.world.state);
    // Numbers take a few bytes more when they are larger.
    assert!(last <= first + 200, "{first} bytes grew to {last}");
    assert_eq!(found.history.deployments.len(), many - NEWEST_ENDED);
    assert_eq!(found.world.state.deployments.len(), NEWEST_ENDED);
}

/// `docs/performance.md` tells what memory this takes with a million deployments over a hundred
/// thousand scopes.
#[test]
fn many_scopes_hold_what_they_need_and_no_more() {
    let scopes = wanted(option_env!("TIDEGATE_SCOPES"), 30);
    let ended = wanted(option_env!("TIDEGATE_ENDED"), 300).max(scopes);
    let mut found = Archiving::new();
    found.world.is_checked = false;
    let named = |number: usize| format!("s{}", number % scopes);
    for number in 0..scopes {
        let scope = found.world.object(&named(number), Kind::Scope, SCOPE);
        found.run(scope);
        found.history = History::default();
    }
    let mut left = 0;
    for number in 0..ended {
        let scope = named(number);
        if number < scopes {
            let id = one(found.world.deploy_to(&scope, "1.0.0").unwrap());
            found.world.finish(id);
        } else {
            found.end_one(&scope);
        }
        left += found.history.deployments.len();
        found.history = History::default();
        found.world.now = found.world.now + Span::from_secs(10);
    }
    let state = &found.world.state;
    assert_eq!(state.check(), Vec::<String>::new());
    // The active one, and the newest few; the active one of a scope with few is among these.
    assert!(state.deployments.len() <= scopes * (NEWEST_ENDED + 1));
    assert_eq!(state.deployments.len() + left, ended);
    assert_eq!(state.archive.unwrap().deployments, left as u64);
}

/// The same but for what has left.
fn without_past(state: &State) -> State {
    State {
        deployments: Default::default(),
        history: Default::default(),
        short_ids: Default::default(),
        events: Default::default(),
        archive: None,
        ..state.clone()
    }
}

fn assert_same_wishes(whole: &State, lean: &State, observed: &mut Observed, sequence: u64) {
    let now = lean.at;
    let coordinator = name("c1");
    for agent in lean.agents.keys() {
        assert_eq!(desired(whole, agent), desired(lean, agent), "{agent}");
        let report = fulfilled(lean, agent, sequence);
        observed.absorb(agent, &coordinator, report, now);
    }
    assert_eq!(plan(whole, observed, now), plan(lean, observed, now));
}

/// Every deployment and event is either in the lean state or in the history, as the whole state
/// has it.
fn assert_nothing_lost(whole: &State, lean: &State, history: &History) {
    let mut all = lean.deployments.clone();
    for past in &history.deployments {
        let before = all.insert(past.deployment.id, past.deployment.clone());
        assert_eq!(before, None, "in both places");
        let key = (past.deployment.origin.scope.clone(), past.made);
        assert_eq!(whole.history.get(&key), Some(&past.deployment.id));
    }
    assert_eq!(all, whole.deployments);
    assert_eq!(
        history.events,
        whole.events.values().cloned().collect::<Vec<_>>()
    );
    assert_eq!(without_past(whole), without_past(lean));
    let counts = Archive {
        events: history.events.len() as u64,
        deployments: history.deployments.len() as u64,
    };
    assert_eq!(lean.archive, Some(counts));
}

/// As the entry that raises the level does.
fn begin_at(state: &mut State, index: u64, history: &mut History) {
    let mut rows = archive::begin(state);
    for scope in ["api", "web"] {
        rows.extend(archive::leave(state, index, &name(scope)));
    }
    rows.iter().for_each(|row| history.take(row));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Two replicas whose past leaves from some point on, and one whose past stays.
    #[test]
    fn no_decision_changes_because_the_past_has_left(
        draws in prop::collection::vec(any::<(Draw, u8)>(), 1..160),
        begin in 0..60_usize,
    ) {
        let mut world = World::new();
        let mut whole = world.state.clone();
        let mut mirror = world.state.clone();
        let mut history = History::default();
        let mut mirrored = History::default();
        let mut observed = Observed::new(world.now);
        for (step, (draw, minutes)) in draws.into_iter().enumerate() {
            if step == begin {
                begin_at(&mut world.state, world.index, &mut history);
                begin_at(&mut mirror, world.index, &mut mirrored);
            }
            world.now = world.now + Span::from_mins(u64::from(minutes % 16));
            world.index += 1;
            let (actor, command) = command(&world, draw);
            let request = match actor {
                Actor::System => RequestKey::Planner(Digest::of(&world.index.to_be_bytes())),
                _ => RequestKey::Client(RequestId::derived(world.now, "random", world.index, 0)),
            };
            let item = Item { actor, request, command: Box::new(command) };
            let entry = Entry { at: world.now, items: vec![item] };
            let lean = apply(&mut world.state, world.index, &entry).remove(0);
            let kept = apply(&mut whole, world.index, &entry).remove(0);
            let again = apply(&mut mirror, world.index, &through_cbor(&entry)).remove(0);
            prop_assert_eq!(world.state.check(), Vec::<String>::new(), "{:?}", entry.items[0]);
            prop_assert_eq!(&lean.outcome, &kept.outcome);
            prop_assert_eq!(&lean.events, &kept.events);
            prop_assert_eq!(&lean, &again);
            for (history, applied) in [(&mut history, &lean), (&mut mirrored, &again)] {
                applied.archived.iter().for_each(|row| history.take(row));
                if applied.events_leave {
                    history.events.extend(applied.events.iter().cloned());
                }
            }
            assert_same_wishes(&whole, &world.state, &mut observed, world.index);
        }
        prop_assert_eq!(&world.state, &mirror);
        prop_assert_eq!(&history, &mirrored);
        prop_assert_eq!(verify_chain(&history.events).is_ok(), true);
        if world.state.archive.is_some() {
            assert_nothing_lost(&whole, &world.state, &history);
        }
        let mut bytes = Vec::new();
        cbor::write(&world.state, &mut bytes).unwrap();
        let (read, _): (State, usize) = cbor::read(&bytes).unwrap();
        prop_assert_eq!(read, world.state);
    }
}
