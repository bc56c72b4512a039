//! Logs of the past. Every program since has to make the same of them: coordinators of two versions
//! apply the same log while a cluster is upgraded, and a state or a chain of the audit log that
//! differs between them is a cluster that came apart.
//!
//! `tests/vectors/apply/level-N.log` holds what a random cluster of that level was told, entries as the
//! log has them, each behind its length; `level-N.txt` is what came of it. Neither is ever edited: who
//! changes what `apply` does, or the words that it writes, lets the old way stand below a new level.
//! `NEW_LEVEL=N` writes the files of a new one, from the log of the level before.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use tidegate_coordinator_core::{Command, Entry, State, apply};
use tidegate_shared::audit::canonical_digest;
use tidegate_shared::cbor;

fn file(level: u32, kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/vectors/apply")
        .join(format!("level-{level}.{kind}"))
}

fn read(level: u32) -> Vec<Entry> {
    let bytes = std::fs::read(file(level, "log")).unwrap();
    let (mut log, mut rest) = (Vec::new(), &bytes[..]);
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (entry, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        log.push(cbor::read(entry).unwrap().0);
        rest = after;
    }
    log
}

/// The same log of a cluster that was raised to another level.
fn write(level: u32, mut log: Vec<Entry>) {
    let mut all = Vec::new();
    for entry in &mut log {
        for item in &mut entry.items {
            match &mut *item.command {
                Command::UpdateMember(command) => command.level = level,
                Command::RaiseLevel(command) => command.level = level,
                _ => {}
            }
        }
        let mut bytes = Vec::new();
        cbor::write(&entry, &mut bytes).unwrap();
        all.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        all.extend(bytes);
    }
    std::fs::write(file(level, "log"), all).unwrap();
    std::fs::write(file(level, "txt"), outcome_of(&log)).unwrap();
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
        state.last_hash.unwrap(),
        canonical_digest(&state),
    )
}

#[test]
fn logs_of_every_level_come_to_what_they_always_came_to() {
    let new = std::env::var("NEW_LEVEL").ok().map(|n| n.parse().unwrap());
    if let Some(level) = new.filter(|&level| !file(level, "log").exists()) {
        write(level, read(level - 1));
    }
    let levels = (1..).take_while(|&level| file(level, "log").exists());
    let levels: Vec<u32> = levels.collect();
    assert!(levels.len() >= 4, "logs are missing: {levels:?}");
    for level in levels {
        assert_eq!(
            outcome_of(&read(level)),
            std::fs::read_to_string(file(level, "txt")).unwrap(),
            "at level {level}: coordinators of before make something else of the same log"
        );
    }
}
