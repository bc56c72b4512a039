//! What every log store must do, as one suite.
//!
//! [`run`] takes a maker of fresh stores; each maker gives a function that opens the same store
//! again, as a process does after its end.

use bytes::Bytes;

use super::log::{EntryKind, HardState, LogEntry, LogStore, Mark, Recovered, WriteBatch};

/// Opens one store, again and again.
pub type Reopen = Box<dyn FnMut() -> (Box<dyn LogStore>, Recovered)>;

/// `count` entries from `first` on, with content that depends on the index and term.
#[must_use]
pub fn entries(first: u64, count: u64, term: u64) -> Vec<LogEntry> {
    (first..first + count)
        .map(|index| LogEntry {
            index,
            term,
            kind: EntryKind::Commands,
            data: Bytes::from(format!("entry {index} of term {term}")),
        })
        .collect()
}

fn append(first: u64, count: u64, term: u64) -> WriteBatch {
    WriteBatch {
        entries: entries(first, count, term),
        ..WriteBatch::default()
    }
}

/// Runs the whole suite; `fresh` makes a new, empty store each time.
///
/// # Panics
/// When the store fails the suite.
pub fn run(fresh: &mut dyn FnMut() -> Reopen) {
    starts_empty(fresh());
    keeps_entries_and_hard_state(fresh());
    replaces_a_conflicting_suffix(fresh());
    compacts(fresh());
    restarts_behind_a_snapshot(fresh());
    keeps_the_order_inside_a_write(fresh());
    survives_many_lives(fresh());
    takes_binary_and_empty_data(fresh());
}

fn write(store: &mut Box<dyn LogStore>, batches: &[WriteBatch]) {
    if let Err(error) = store.write(batches, true) {
        panic!("the store refused a write: {error}");
    }
}

fn starts_empty(mut open: Reopen) {
    let (_, found) = open();
    assert_eq!(found, Recovered::default());
}

fn keeps_entries_and_hard_state(mut open: Reopen) {
    let hard_state = HardState {
        term: 4,
        vote: 2,
        commit: 3,
    };
    {
        let (mut store, _) = open();
        write(&mut store, &[append(1, 5, 4)]);
        let only_state = WriteBatch {
            hard_state: Some(hard_state),
            ..WriteBatch::default()
        };
        write(&mut store, &[only_state]);
    }
    let (_, found) = open();
    assert_eq!(found.hard_state, hard_state);
    assert_eq!(found.start, Mark::default());
    assert_eq!(Vec::from(found.entries), entries(1, 5, 4));
}

fn replaces_a_conflicting_suffix(mut open: Reopen) {
    {
        let (mut store, _) = open();
        write(&mut store, &[append(1, 10, 1)]);
        write(&mut store, &[append(6, 2, 2)]);
    }
    let (_, found) = open();
    let mut expected = entries(1, 5, 1);
    expected.extend(entries(6, 2, 2));
    assert_eq!(Vec::from(found.entries), expected);
}

fn compacts(mut open: Reopen) {
    {
        let (mut store, _) = open();
        write(&mut store, &[append(1, 100, 1)]);
        let compact = WriteBatch {
            compact: Some(Mark { index: 90, term: 1 }),
            ..WriteBatch::default()
        };
        write(&mut store, &[compact]);
        write(&mut store, &[append(101, 5, 1)]);
    }
    let (_, found) = open();
    assert_eq!(found.start, Mark { index: 90, term: 1 });
    assert_eq!(Vec::from(found.entries), entries(91, 15, 1));
}

fn restarts_behind_a_snapshot(mut open: Reopen) {
    {
        let (mut store, _) = open();
        write(&mut store, &[append(1, 10, 1)]);
        let restart = WriteBatch {
            restart: Some(Mark {
                index: 500,
                term: 3,
            }),
            entries: entries(501, 2, 3),
            ..WriteBatch::default()
        };
        write(&mut store, &[restart]);
    }
    let (_, found) = open();
    assert_eq!(
        found.start,
        Mark {
            index: 500,
            term: 3
        }
    );
    assert_eq!(Vec::from(found.entries), entries(501, 2, 3));
}

fn keeps_the_order_inside_a_write(mut open: Reopen) {
    {
        let (mut store, _) = open();
        write(
            &mut store,
            &[append(1, 3, 1), append(2, 3, 2), append(5, 1, 3)],
        );
    }
    let (_, found) = open();
    let terms: Vec<u64> = found.entries.iter().map(|e| e.term).collect();
    assert_eq!(terms, [1, 2, 2, 2, 3]);
}

fn survives_many_lives(mut open: Reopen) {
    let mut expected = 0;
    for life in 0..20 {
        let (mut store, found) = open();
        assert_eq!(found.last().index, expected);
        write(&mut store, &[append(expected + 1, 7, 1)]);
        expected += 7;
        if life % 2 == 0
            && let Err(error) = store.close()
        {
            panic!("the store cannot be closed: {error}");
        }
    }
}

fn takes_binary_and_empty_data(mut open: Reopen) {
    let mut batch = append(1, 2, 1);
    batch.entries[0].data = Bytes::new();
    batch.entries[1].data = Bytes::from((0..=255).collect::<Vec<u8>>());
    batch.entries[1].kind = EntryKind::Membership;
    {
        let (mut store, _) = open();
        write(&mut store, std::slice::from_ref(&batch));
    }
    let (_, found) = open();
    assert_eq!(Vec::from(found.entries), batch.entries);
}
