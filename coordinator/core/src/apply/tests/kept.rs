//! Logs of the past. Every program since has to make the same of them: coordinators of two versions
//! apply the same log while a cluster is upgraded, and a state or a chain of the audit log that
//! differs between them is a cluster that came apart.
//!
//! `tests/vectors/apply/level-N.log` holds entries as the log does, each behind its length, and
//! `level-N.txt` what came of them. Who changes what `apply` does, or the words that it writes, lets
//! the old way stand below a new cluster level. `UPDATE=1` writes the files of levels that have none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tidegate_shared::cbor;
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{GroupId, RequestId, TokenId};
use tidegate_shared::spec::{Kind, Role};
use tidegate_shared::time::Span;
use tidegate_shared::weight::Weight;

use super::random::{self, Draw};
use super::world::{SCOPE, World, join, name, names, user, version};
use crate::apply::apply;
use crate::command::{
    ActOnGroup, Actor, AddToGroup, AdvanceGroup, Command, CreateDeployments, CreateFreeze,
    CreateGroup, CreateSkip, CreateToken, DecideGroup, Entry, GroupAction, Item, Join, Named,
    OnConflict, RaiseLevel, RemovePerson, RequestKey, TokenKind, UpdateMember, UpdatePerson, Verb,
};
use crate::state::{Addresses, PACKED_LEVEL, State};

/// Draws of a log.
const DRAWS: u64 = 1_000;
const SCOPES: [&str; 3] = ["web", "api", "db"];
const PEOPLE: [&str; 3] = ["ann", "bob", "cleo"];
const POLICIES: [&str; 4] = [
    r#"{"approval": {"required": 1}}"#,
    r#"{"cooldown": {"interval": "1h"}, "approval": {"from": "team:sre"}}"#,
    r#"{"dependencies": [{"application": "shop", "version": ">=1"}]}"#,
    r#"{"dependencies": [{"application": "db", "version": ">=1"}]}"#,
];
const ROLLOUTS: [&str; 4] = [
    "{}",
    r#"{"kind": "linear", "interval": "1m"}"#,
    r#"{"kind": "waves", "waves": [{"name": "canary", "count": 1}]}"#,
    r#"{"budget": {"max_failures": 0, "on_breach": "rollback"}}"#,
];

fn pick<'a>(list: &[&'a str], by: u8) -> &'a str {
    list[usize::from(by) % list.len()]
}

fn about_groups(state: &State, which: u8, by: u8) -> (Actor, Command) {
    let ann = user("ann");
    let newest = state.groups.iter().next_back();
    let Some((&id, group)) = newest.filter(|_| !by.is_multiple_of(16)) else {
        let create = CreateGroup {
            name: None,
            deployments: CreateDeployments {
                application: name("shop"),
                version: version(pick(&["1.0.0", "2.0.0", "3.0.0", "9.9.9"], which)),
                scopes: names(&SCOPES[..usize::from(which % 3) + 1]),
                strategy: None,
                overrides: Default::default(),
                labels: BTreeMap::new(),
                on_conflict: [OnConflict::Fail, OnConflict::Queue, OnConflict::Supersede]
                    [usize::from(by / 16 % 3)],
            },
            rollout: serde_json::from_str(pick(&ROLLOUTS, by / 4)).unwrap(),
        };
        return (ann, Command::CreateGroup(create));
    };
    let advance = |action| {
        let revision = group.meta.revision;
        let group = id;
        let command = AdvanceGroup {
            group,
            revision,
            action,
        };
        (Actor::System, Command::AdvanceGroup(command))
    };
    let act = |group: GroupId, verb| {
        let command = ActOnGroup {
            group,
            verb,
            expected_revision: by.is_multiple_of(7).then_some(3),
            reason: "so".to_owned(),
        };
        (user("ann"), Command::ActOnGroup(command))
    };
    let count = u32::try_from(group.members.len()).unwrap();
    let waves = match group.rollout.waves.len() {
        0 => Vec::new(),
        _ => vec![1, count.saturating_sub(1)],
    };
    match which % 16 {
        0..=3 => advance(GroupAction::Begin {
            order: (0..count).collect(),
            waves,
        }),
        4 => advance(GroupAction::OpenWave {
            wave: u32::from(by % 3),
            why: "it may".to_owned(),
        }),
        5 => advance(GroupAction::Failed {
            members: vec![u32::from(by % 4)],
        }),
        6 => advance(GroupAction::Breach),
        7 => advance(GroupAction::GiveUp),
        8 => advance(GroupAction::End),
        9 => (
            ann,
            Command::AddToGroup(AddToGroup {
                group: id,
                scopes: names(&[pick(&SCOPES, by), pick(&SCOPES, by / 3)]),
                expected_revision: None,
            }),
        ),
        10 => (
            user(pick(&PEOPLE, by)),
            Command::DecideGroup(DecideGroup {
                group: id,
                granted: by.is_multiple_of(2),
                reason: String::new(),
                expected_revision: None,
            }),
        ),
        11 => act(id, Verb::Traffic(Weight::share(u64::from(by), 255))),
        12 => act(id, Verb::Cancel),
        13 => act(id, Verb::Rollback),
        14 => act(id, Verb::Pause),
        _ => act(id, Verb::Resume),
    }
}

fn about_people(world: &World, which: u8, by: u8) -> Command {
    let roles = [Role::Viewer, Role::Deployer, Role::Operator, Role::Admin];
    let roles = roles[..usize::from(by % 5)].to_vec();
    let token = TokenId::derived(world.now, "person", world.index - u64::from(which % 3), 0);
    match which / 3 % 4 {
        0 => Command::CreateToken(CreateToken {
            id: token,
            kind: TokenKind::User,
            secret_hash: Digest::of(b"other"),
            labels: BTreeMap::new(),
            expires_at: world.now + Span::from_hours(1),
            uses: 1,
            name: Some(name(pick(&PEOPLE, by))),
            roles,
        }),
        1 => Command::Join(Join {
            token,
            secret_hash: Digest::of(b"other"),
            name: name(pick(&PEOPLE, by)),
            facts: BTreeMap::new(),
            addresses: None,
        }),
        2 => Command::UpdatePerson(UpdatePerson {
            name: name(pick(&PEOPLE, by)),
            roles,
            labels: BTreeMap::new(),
            expected_revision: by.is_multiple_of(5).then_some(2),
        }),
        _ => Command::RemovePerson(RemovePerson {
            name: name(pick(&PEOPLE, by)),
            expected_revision: None,
        }),
    }
}

fn about_rules(world: &World, which: u8, by: u8) -> Command {
    let any = Named {
        name: name(&format!("s{}", by % 4)),
    };
    let until = world.now + Span::from_hours(u64::from(by % 4));
    match which % 8 {
        0 | 1 => world.object("rule", Kind::Policy, pick(&POLICIES, by)),
        2 => Command::CreateSkip(CreateSkip {
            rule: pick(
                &[
                    "rule",
                    "rule/approval",
                    "rule/approval[0]",
                    "other",
                    "rule[",
                ],
                by,
            )
            .to_owned(),
            application: None,
            version: None,
            scope: by.is_multiple_of(2).then(|| name("web")),
            reason: pick(&["it must be", ""], by / 5).to_owned(),
            expires_at: Some(until),
        }),
        3 => Command::DeleteSkip(any),
        4 => Command::Freeze(CreateFreeze {
            selector: String::new(),
            reason: "a feast".to_owned(),
            until,
            let_run: by.is_multiple_of(2),
        }),
        5 => Command::Thaw(any),
        6 => world.object("db", Kind::Scope, SCOPE),
        _ => world.object("slow", Kind::Strategy, r#"{"kind": "all_in"}"#),
    }
}

/// What comes next, drawn from bytes.
fn drawn(world: &World, [family, kind, which, by]: [u8; 4]) -> (Actor, Command) {
    match family % 16 {
        0..=2 => about_groups(&world.state, which, by),
        3 => (user("ann"), about_rules(world, which, by)),
        4 => (user("ann"), about_people(world, which, by)),
        _ => {
            let draw: Draw = (kind, which, by);
            random::command_in(world, SCOPES[usize::from(family / 16) % SCOPES.len()], draw)
        }
    }
}

/// A log at a level: a cluster with an application, and then whatever comes.
fn written(level: u32) -> Vec<Entry> {
    let mut world = World::new();
    let raised = [
        Command::UpdateMember(UpdateMember {
            node: 1,
            addresses: Addresses::default(),
            version: "0.1.0".to_owned(),
            level,
        }),
        Command::RaiseLevel(RaiseLevel { level }),
        join("a4"),
    ];
    let mut raised = raised.into_iter();
    let mut log = world.log.clone();
    for number in 0..DRAWS {
        let seed = Digest::of(format!("{level} {number}").as_bytes());
        let bytes = seed.as_bytes();
        world.now = world.now + Span::from_secs(u64::from(bytes[0]) * 2);
        world.index += 1;
        let draw = [bytes[1], bytes[2], bytes[3], bytes[4]];
        let next = raised.next().map(|command| (user("ann"), command));
        let (actor, command) = next.unwrap_or_else(|| drawn(&world, draw));
        let request = match actor {
            Actor::System => RequestKey::Planner(seed),
            _ => RequestKey::Client(RequestId::derived(world.now, "kept", world.index, 0)),
        };
        let item = Item {
            actor,
            request,
            command: Box::new(command),
        };
        let entry = Entry {
            at: world.now,
            items: vec![item],
        };
        apply(&mut world.state, world.index, &entry);
        log.push(entry);
    }
    log
}

/// What comes of a log, in lines.
fn outcome_of(log: &[Entry]) -> String {
    let mut state = State::default();
    let (mut events, mut refused, mut kinds) = (0, 0, BTreeSet::new());
    for (index, entry) in (1..).zip(log) {
        for (item, applied) in entry.items.iter().zip(apply(&mut state, index, entry)) {
            events += applied.events.len();
            refused += usize::from(applied.outcome.is_err());
            kinds.insert(item.command.subject().0);
        }
    }
    assert_eq!(state.check(), Vec::<String>::new());
    format!(
        "entries {}\nkinds of commands {}\nrefused {refused}\nevents {events}\nchain {}\nstate {}\n",
        log.len(),
        kinds.len(),
        state.last_hash.unwrap_or(Digest::ZERO),
        tidegate_shared::audit::canonical_digest(&state),
    )
}

fn file(level: u32, kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/vectors/apply")
        .join(format!("level-{level}.{kind}"))
}

fn encoded(log: &[Entry]) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in log {
        let mut bytes = Vec::new();
        cbor::write(entry, &mut bytes).unwrap();
        all.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        all.extend(bytes);
    }
    all
}

fn decoded(mut bytes: &[u8]) -> Vec<Entry> {
    let mut log = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (entry, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        log.push(cbor::read(entry).unwrap().0);
        bytes = rest;
    }
    log
}

#[test]
fn logs_of_every_level_come_to_what_they_always_came_to() {
    for level in 1..=PACKED_LEVEL {
        let (log, told) = (file(level, "log"), file(level, "txt"));
        if std::env::var_os("UPDATE").is_some() && !log.exists() {
            let entries = written(level);
            std::fs::create_dir_all(log.parent().unwrap()).unwrap();
            std::fs::write(&log, encoded(&entries)).unwrap();
            std::fs::write(&told, outcome_of(&entries)).unwrap();
        }
        let read = std::fs::read(&log);
        let entries = decoded(&read.unwrap_or_else(|error| {
            panic!(
                "{}: {error}; UPDATE=1 writes a log for a new level",
                log.display()
            )
        }));
        assert_eq!(
            outcome_of(&entries),
            std::fs::read_to_string(&told).unwrap(),
            "at level {level}: coordinators of before make something else of the same log"
        );
    }
}
