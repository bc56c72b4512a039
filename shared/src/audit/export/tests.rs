//! An export that is sound, and what is told of each way to tamper with it.

use std::collections::BTreeMap;

use super::*;
use crate::audit::Actor;
use crate::id::Name;

/// An export of so many events, as lines.
fn export(count: u64) -> Vec<String> {
    let head = Head {
        tidegate_audit: FORMAT,
        cluster: "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
        exported_at: Timestamp::from_millis(1_700_000_000_000),
        previous_hash: Digest::ZERO,
    };
    let head = line_of(&head).unwrap();
    let digest = Digest::of(head.as_bytes());
    let mut lines = vec![head];
    let mut last_hash = Digest::ZERO;
    for index in 1..=count {
        let event = Event {
            index: index * 2,
            ordinal: 0,
            at: Timestamp::from_millis(1_700_000_000_000 + index),
            actor: Actor::User(Name::new("ann").unwrap()),
            kind: "scope_changed".to_owned(),
            object_kind: "scope".to_owned(),
            object: format!("web-{index}"),
            outcome: "ok".to_owned(),
            message: "scope \"web\" was changed".to_owned(),
            details: BTreeMap::from([("revision".to_owned(), index.to_string())]),
            previous_hash: last_hash,
            hash: Digest::ZERO,
        }
        .sealed();
        last_hash = event.hash;
        lines.push(line_of(&event).unwrap());
    }
    let tail = Tail {
        events: count,
        last_hash,
        head: digest,
    };
    lines.push(line_of(&tail).unwrap());
    lines
}

fn check<L: AsRef<[u8]>>(lines: &[L]) -> Result<Verified, Flaw> {
    let mut checker = Checker::default();
    for line in lines {
        checker.line(line.as_ref())?;
    }
    checker.finish()
}

/// The line that a flaw names.
fn line_named(flaw: &Flaw) -> u64 {
    match flaw {
        Flaw::Changed { line, .. }
        | Flaw::Removed { line, .. }
        | Flaw::Reordered { line, .. }
        | Flaw::Inserted { line, .. }
        | Flaw::Appended { line } => *line,
        Flaw::Foreign(_) => 1,
        Flaw::Empty | Flaw::TooNew(_) | Flaw::CutOff { .. } | Flaw::CutWithin { .. } => 0,
    }
}

#[test]
fn a_sound_export_says_what_it_holds() {
    let found = check(&export(5)).unwrap();
    assert_eq!(found.events, 5);
    let seen = |seen: Option<Seen>| seen.map(|seen| (seen.index, seen.ordinal));
    assert_eq!(
        (seen(found.first), seen(found.last)),
        (Some((2, 0)), Some((10, 0)))
    );
    assert_ne!(found.last_hash, Digest::ZERO);
    // A log without events is sound too.
    assert_eq!(check(&export(0)).unwrap().events, 0);
}

#[test]
fn any_flipped_bit_is_found_and_its_line_named() {
    let lines = export(2);
    for (number, line) in lines.iter().enumerate() {
        for position in 0..line.len() {
            for bit in 0..8 {
                let mut bytes: Vec<Vec<u8>> =
                    lines.iter().map(|l| l.clone().into_bytes()).collect();
                bytes[number][position] ^= 1 << bit;
                let flaw = check(&bytes).unwrap_err();
                let place = format!("line {}, byte {position}, bit {bit}: {flaw}", number + 1);
                match flaw {
                    Flaw::TooNew(_) => assert_eq!(number, 0, "{place}"),
                    // What follows the head must fit the hash in it.
                    _ if number == 0 => assert!(line_named(&flaw) <= 2, "{place}"),
                    // The first and the last line speak of each other.
                    _ if number == 3 => assert!([1, 4].contains(&line_named(&flaw)), "{place}"),
                    _ => assert_eq!(line_named(&flaw), number as u64 + 1, "{place}"),
                }
            }
        }
    }
}

#[test]
fn a_removed_line_is_named_by_the_one_behind_it() {
    for gone in 1..=5 {
        let mut lines = export(5);
        lines.remove(gone);
        let flaw = check(&lines).unwrap_err();
        assert!(
            matches!(flaw, Flaw::Removed { line, .. } if line == gone as u64 + 1),
            "{gone}: {flaw}"
        );
    }
    let mut lines = export(5);
    lines.remove(6);
    assert_eq!(check(&lines), Err(Flaw::CutOff { after: 6 }));
    lines.clear();
    assert_eq!(check(&lines), Err(Flaw::Empty));
}

/// As a file is read: lines with a line feed, and what stands behind the last one.
fn check_file(bytes: &[u8]) -> Result<Verified, Flaw> {
    let mut checker = Checker::default();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(line) => checker.line(line)?,
            None => checker.unended(line)?,
        }
    }
    checker.finish()
}

#[test]
fn a_file_that_ends_anywhere_is_cut_off_and_not_tampered_with() {
    let mut lines = export(3);
    // A character of several bytes, to be cut in its middle too.
    let mut event: Event = serde_json::from_str(&lines[3]).unwrap();
    "Pr\u{fc}fung \u{2026}".clone_into(&mut event.message);
    let event = event.sealed();
    let tail = line_of(&Tail {
        events: 3,
        last_hash: event.hash,
        head: Digest::of(lines[0].as_bytes()),
    });
    lines.truncate(3);
    lines.extend([line_of(&event).unwrap(), tail.unwrap()]);
    let file = format!("{}\n", lines.join("\n")).into_bytes();
    assert_eq!(check_file(&file).unwrap().events, 3);
    // Without its last line feed nothing is missing.
    assert_eq!(check_file(&file[..file.len() - 1]).unwrap().events, 3);
    for length in HEAD_START.len()..file.len() - 1 {
        let whole = file[..length].iter().filter(|b| **b == b'\n').count() as u64;
        let told = check_file(&file[..length]).unwrap_err();
        let ends_a_line = matches!(file[length], b'\n') || file[length - 1] == b'\n';
        let wanted = if ends_a_line {
            let after = if file[length] == b'\n' {
                whole + 1
            } else {
                whole
            };
            Flaw::CutOff { after }
        } else {
            Flaw::CutWithin { line: whole + 1 }
        };
        assert_eq!(told, wanted, "{length}");
        assert!(!told.is_tampering());
    }
    // What was changed before counts first, and what is no half of a line is none.
    let mut changed = file[..file.len() - 9].to_vec();
    let at = lines[0].len() + lines[1].len() + 1;
    changed[at - 30] ^= 1;
    assert!(check_file(&changed).unwrap_err().is_tampering());
    let mut odd = file[..file.len() - 9].to_vec();
    odd.extend(b"\"}}");
    assert!(check_file(&odd).unwrap_err().is_tampering());
    let mut more = file;
    more.extend(b"{\"index\":");
    assert_eq!(check_file(&more), Err(Flaw::Appended { line: 6 }));
}

#[test]
fn a_line_that_moved_is_named() {
    // Lines from 1: the head, events 1 to 6 in lines 2 to 7, the end.
    let moved = |from: usize, to: usize| {
        let mut lines = export(6);
        let line = lines.remove(from - 1);
        lines.insert(to - 1, line);
        check(&lines).unwrap_err()
    };
    let late = moved(3, 6);
    assert_eq!(
        late.to_string(),
        "line 6 (event 4.0) is not at its place: it belongs before line 3"
    );
    let early = moved(6, 3);
    assert_eq!(
        early.to_string(),
        "line 3 (event 10.0) is not at its place: it belongs behind line 4"
    );
    assert_eq!(line_named(&moved(4, 5)), 4, "neighbours");
}

#[test]
fn a_line_that_was_added_is_named() {
    let mut lines = export(4);
    let copy = lines[2].clone();
    lines.insert(4, copy.clone());
    let flaw = check(&lines).unwrap_err();
    assert!(matches!(flaw, Flaw::Inserted { line: 5, .. }), "{flaw}");

    let mut lines = export(4);
    lines.push(copy);
    assert_eq!(check(&lines), Err(Flaw::Appended { line: 7 }));

    // With a chain that is right, before the last line.
    let mut lines = export(4);
    let more = export(5)[5].clone();
    lines.insert(5, more);
    assert_eq!(check(&lines), Err(Flaw::Appended { line: 6 }));
}

#[test]
fn an_event_that_was_written_anew_breaks_the_chain_behind_it() {
    let mut lines = export(4);
    let mut event: Event = serde_json::from_str(&lines[2]).unwrap();
    "mallory".clone_into(&mut event.object);
    lines[2] = line_of(&event.sealed()).unwrap();
    let flaw = check(&lines).unwrap_err();
    assert!(matches!(flaw, Flaw::Removed { line: 4, .. }), "{flaw}");
    assert!(flaw.is_tampering());
}

#[test]
fn other_files_are_told_apart() {
    for text in ["", "{}", "kind: scope", "[1, 2]", "\u{0}\u{1}"] {
        let flaw = check(&[text]).unwrap_err();
        assert!(matches!(flaw, Flaw::Foreign(_)), "{text}: {flaw}");
        assert!(!flaw.is_tampering());
    }
    let later = export(1)[0].replace("\"tidegate_audit\":1", "\"tidegate_audit\":9");
    assert_eq!(check(&[later]), Err(Flaw::TooNew(9)));
}
