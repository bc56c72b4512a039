//! The history over a real file: order, replay, gaps, crashes, shipping.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_coordinator_core::state::{
    Deployment, Durations, Meta, Origin, Status, Table, Traffic,
};
use tidegate_coordinator_core::{Actor, Archived, ArchivedRow, Event, Extent, Past};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, Name, Version};
use tidegate_shared::spec::{AssetKind, AssetSource, AssetSpec, RunSpec, ScopeSpec, StrategySpec};
use tidegate_shared::time::Timestamp;

use super::queue::Left;
use super::read::Filter;
use super::{HistoryError, HistoryStore};

const CLUSTER: &str = "01CLUSTER";
const ALL: u64 = u64::MAX;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Number `number` of scope `s0`, `s1` or `s2`, left with entry 10 · `number`.
fn past(number: u64) -> Past {
    let scope = name(&format!("s{}", number % 3));
    let at = Timestamp::from_millis(1_700_000_000_000 + number);
    let id = DeploymentId::derived(at, scope.as_str(), number, 0);
    let scope_spec: ScopeSpec = serde_json::from_str(
        r#"{"application": "shop", "environment": "prod", "agents": "role=web", "port": 8080}"#,
    )
    .unwrap();
    let deployment = Deployment {
        id,
        short: id.short(),
        meta: Meta {
            labels: BTreeMap::new(),
            created_at: at,
            created_by: Actor::System,
            revision: number,
        },
        origin: Arc::new(Origin {
            application: name("shop"),
            version: Version::new("1.0.0").unwrap(),
            release_digest: Digest::of(b"release"),
            scope,
            scope_spec: Arc::new(scope_spec),
            asset: Arc::new(AssetSpec {
                name: name("main"),
                kind: AssetKind::Binary,
                platform: "any".to_owned(),
                sha256: Digest::of(b"asset"),
                size: 1,
                source: AssetSource::Store,
                run: RunSpec::default(),
            }),
            health_check: Arc::default(),
            strategy_name: None,
            strategy: Arc::new(StrategySpec::default().resolve()),
            parameters: Table::new(),
            on_conflict: Default::default(),
            fast: false,
            forced: false,
            link: None,
            auto: None,
        }),
        status: Status::Cancelled,
        status_since: at,
        replaces: None,
        participants: Vec::new(),
        lost: Vec::new(),
        required: None,
        clock_since: at,
        counted_to: at,
        fewest_outstanding: None,
        traffic: Traffic::default(),
        paused: None,
        halted: None,
        drained: false,
        return_at_finalized: None,
        end_cause: None,
        reason: String::new(),
        message: String::new(),
        outcome: Some("cancelled".to_owned()),
        unverified: false,
        ended_at: Some(at),
        durations: Durations::default(),
        causes: Vec::new(),
        evidence: Vec::new(),
        leftovers: Vec::new(),
        promoted_full: false,
        checks: Vec::new(),
        group: None,
        tries: 0,
    };
    Past {
        number,
        index: number * 10,
        made: number,
        deployment,
    }
}

/// `count` deployments, each with two events of its entry, in the order in which they leave.
fn rows(count: u64) -> Vec<Archived> {
    let mut previous = Digest::ZERO;
    let mut rows = Vec::new();
    for number in 1..=count {
        let past = past(number);
        for ordinal in 0..2 {
            let event = Event {
                index: past.index,
                ordinal,
                at: past.deployment.status_since,
                actor: Actor::System,
                kind: "deployment_cancelled".to_owned(),
                object_kind: "deployment".to_owned(),
                object: past.deployment.id.to_string(),
                outcome: "ok".to_owned(),
                message: String::new(),
                details: BTreeMap::new(),
                previous_hash: previous,
                hash: Digest::ZERO,
            }
            .sealed();
            previous = event.hash;
            rows.push(Archived::Event(Box::new(event)));
        }
        rows.push(Archived::Deployment(Box::new(past)));
    }
    rows
}

fn borrowed(rows: &[Archived]) -> impl Iterator<Item = ArchivedRow<'_>> {
    rows.iter().map(Archived::row)
}

fn extent(count: u64) -> Extent {
    let rows = rows(count);
    let last = rows.iter().rev().find_map(|row| match row {
        Archived::Event(event) => Some(event.hash),
        Archived::Deployment(_) => None,
    });
    Extent {
        events: count * 2,
        last_hash: last,
        deployments: count,
    }
}

struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        World {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn open(&self) -> Result<HistoryStore, HistoryError> {
        self.open_needing(None)
    }

    fn open_needing(&self, needed: Option<(Extent, u64)>) -> Result<HistoryStore, HistoryError> {
        HistoryStore::open(&self.folder.path().join("history.redb"), CLUSTER, needed)
    }
}

fn numbers(found: &[Past]) -> Vec<u64> {
    found.iter().map(|past| past.number).collect()
}

#[test]
fn rows_written_again_change_nothing_and_a_gap_is_refused() {
    let world = World::new();
    let store = world.open().unwrap();
    let all = rows(6);
    store.write(borrowed(&all[..9])).unwrap();
    let before = store.tail().unwrap();
    // The log behind the last snapshot comes again after a crash.
    store.write(borrowed(&all[..9])).unwrap();
    assert_eq!(store.tail().unwrap(), before);
    store.write(borrowed(&all[3..])).unwrap();
    assert_eq!(store.events(None, ALL, 100).unwrap().len(), 12);
    let found = store
        .deployments(&Filter::default(), None, ALL, 100)
        .unwrap();
    assert_eq!(numbers(&found), [6, 5, 4, 3, 2, 1]);

    let more = rows(9);
    let skipped = store.write(borrowed(&more[19..]));
    assert!(matches!(skipped, Err(HistoryError::Gap(_))), "{skipped:?}");
    let without_deployment = more[18..]
        .iter()
        .filter(|row| !matches!(row, Archived::Deployment(past) if past.number == 7));
    let skipped = store.write(without_deployment.map(Archived::row));
    assert!(matches!(skipped, Err(HistoryError::Gap(_))), "{skipped:?}");
    // Nothing of a refused batch stays.
    assert_eq!(store.tail().unwrap().deployments, 6);
    assert_eq!(store.events(None, ALL, 100).unwrap().len(), 12);
}

#[test]
fn questions_are_answered_page_by_page_up_to_an_entry() {
    let world = World::new();
    let store = world.open().unwrap();
    let all = rows(9);
    store.write(borrowed(&all)).unwrap();
    let one = Filter {
        scope: Some(name("s1")),
        application: Some(name("shop")),
    };
    let first = store.deployments(&one, None, ALL, 2).unwrap();
    assert_eq!(numbers(&first), [7, 4]);
    let before = u128::from(first[1].deployment.id.ulid());
    let second = store.deployments(&one, Some(before), ALL, 2).unwrap();
    assert_eq!(numbers(&second), [1]);
    let of_shop = Filter {
        application: Some(name("shop")),
        ..Filter::default()
    };
    // What left with entry 60 and later is still in the state of entry 50.
    let found = store.deployments(&of_shop, None, 50, 3).unwrap();
    assert_eq!(numbers(&found), [5, 4, 3]);
    let other = Filter {
        application: Some(name("other")),
        ..Filter::default()
    };
    assert!(store.deployments(&other, None, ALL, 3).unwrap().is_empty());
    let found = store.of_scope(&name("s0"), Some(9), ALL, 10).unwrap();
    assert_eq!(numbers(&found), [6, 3]);

    let id = past(4).deployment.id;
    assert_eq!(store.by_short(&id.short()).unwrap(), Some(id));
    assert_eq!(store.deployment(id).unwrap(), Some(past(4)));
    assert_eq!(store.deployment(past(10).deployment.id).unwrap(), None);
    let about = store.events_of(id, None, ALL, 10).unwrap();
    assert_eq!(about.len(), 2);
    assert_eq!(
        store.events_of(id, Some((40, 0)), ALL, 10).unwrap(),
        about[1..]
    );
    let behind = store.events(Some((80, 1)), ALL, 10).unwrap();
    assert_eq!(behind.len(), 2);
    assert!(store.events(Some((80, 1)), 80, 10).unwrap().is_empty());
}

#[test]
fn what_was_synced_is_there_after_a_crash_and_the_rest_comes_again() {
    let world = World::new();
    let store = world.open().unwrap();
    let all = rows(8);
    store.write(borrowed(&all[..12])).unwrap();
    store.sync().unwrap();
    store.write(borrowed(&all[12..])).unwrap();
    // The file as a killed process leaves it: what is in it at this moment.
    let crashed = World::new();
    let from = world.folder.path().join("history.redb");
    std::fs::copy(from, crashed.folder.path().join("history.redb")).unwrap();
    let again = crashed.open_needing(Some((extent(4), 40))).unwrap();
    assert!(again.tail().unwrap().deployments >= 4);
    again.write(borrowed(&all[12..])).unwrap();
    again.check(extent(8), 80).unwrap();
    // It may be ahead of the state that a node starts from.
    again.check(extent(4), 40).unwrap();
}

#[test]
fn a_missing_incomplete_or_foreign_history_is_told_and_never_taken_for_an_empty_one() {
    let world = World::new();
    let missing = world.open_needing(Some((extent(2), 20))).err().unwrap();
    assert!(missing.to_string().contains("it is missing"), "{missing}");
    assert!(missing.to_string().contains("join it anew"), "{missing}");

    let store = world.open_needing(Some((Extent::default(), 1))).unwrap();
    store.write(borrowed(&rows(2))).unwrap();
    store.close();
    assert!(matches!(store.sync(), Err(HistoryError::Closed)));
    let behind = world.open_needing(Some((extent(3), 30))).err().unwrap();
    assert!(
        behind.to_string().contains("2 of 3 ended deployments"),
        "{behind}"
    );
    let forked = Extent {
        last_hash: Some(Digest::of(b"another past")),
        ..extent(2)
    };
    let forked = world.open_needing(Some((forked, 20))).err().unwrap();
    assert!(
        matches!(forked, HistoryError::Incomplete { .. }),
        "{forked}"
    );

    let path = world.folder.path().join("history.redb");
    let foreign = HistoryStore::open(&path, "01OTHER", None).err().unwrap();
    assert!(
        foreign.to_string().contains("belongs to cluster 01CLUSTER"),
        "{foreign}"
    );

    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 3]).unwrap();
    assert!(
        world.open_needing(Some((extent(2), 20))).is_err(),
        "a torn file"
    );
    std::fs::write(&path, b"").unwrap();
    assert!(
        world.open_needing(Some((extent(2), 20))).is_err(),
        "an empty file"
    );
}

#[test]
fn a_member_gets_just_what_it_lacks_and_refuses_what_was_changed() {
    let (here, there) = (World::new(), World::new());
    let (giver, taker) = (here.open().unwrap(), there.open().unwrap());
    let all = rows(20);
    giver.write(borrowed(&all)).unwrap();
    taker.write(borrowed(&all[..14])).unwrap();
    let mut parts = 0;
    loop {
        let part = giver.behind(taker.tail().unwrap(), 150, 1_000).unwrap();
        if part.is_empty() {
            break;
        }
        parts += 1;
        let opened: Vec<Archived> = part.iter().map(|row| row.open().unwrap()).collect();
        if let [Archived::Event(event), ..] = opened.as_slice() {
            let mut forged = event.clone();
            forged.message = "nothing happened".to_owned();
            let refused = taker.take_over([ArchivedRow::Event(&forged)]);
            assert!(matches!(refused, Err(HistoryError::Gap(_))), "{refused:?}");
        }
        taker.take_over(borrowed(&opened)).unwrap();
    }
    assert!(parts > 5, "{parts} parts");
    taker.check(extent(15), 150).unwrap();
    assert!(taker.check(extent(16), 160).is_err());
    assert_eq!(
        taker
            .deployments(&Filter::default(), None, ALL, 100)
            .unwrap(),
        giver
            .deployments(&Filter::default(), None, 150, 100)
            .unwrap()
    );
    assert_eq!(
        taker.events(None, ALL, 100).unwrap(),
        giver.events(None, 150, 100).unwrap()
    );
}

#[test]
fn who_asks_sees_what_was_handed_over_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = HistoryStore::open(&dir.path().join("h.redb"), CLUSTER, None).unwrap();
    let writer = store.clone();
    let thread = std::thread::spawn(move || writer.run());
    let all = rows(300);
    for (number, three) in all.chunks(3).enumerate() {
        // Half of them as rows that left, half as the events of an entry.
        let mut archived = three.to_vec();
        let mut events = Vec::new();
        if number % 2 == 0 {
            archived.retain(|row| match row {
                Archived::Event(event) => {
                    events.push((**event).clone());
                    false
                }
                Archived::Deployment(_) => true,
            });
        }
        let (events, from) = (Arc::new(events), 0);
        store.write_soon(Left {
            archived,
            events,
            from,
        });
        assert_eq!(store.tail().unwrap().deployments, number as u64 + 1);
    }
    store.sync().unwrap();
    store.finish();
    thread.join().unwrap().unwrap();
    assert_eq!(store.events(None, ALL, usize::MAX).unwrap().len(), 600);
}

#[test]
fn nothing_is_told_of_a_history_that_could_not_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = HistoryStore::open(&dir.path().join("h.redb"), CLUSTER, None).unwrap();
    let mut archived = rows(2);
    archived.remove(0);
    store.write_soon(Left {
        archived,
        events: Arc::default(),
        from: 0,
    });
    let error = store.run().unwrap_err();
    assert!(matches!(error, HistoryError::Gap(_)), "{error}");
    for answer in [store.sync(), store.tail().map(|_| ())] {
        assert!(matches!(answer.unwrap_err(), HistoryError::Closed));
    }
}
