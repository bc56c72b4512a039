//! Raft's messages, entries and memberships, field by field to ours and back. A part of the
//! driver; the crate's own parser is never called.

#![allow(
    clippy::field_reassign_with_default,
    reason = "the crate's messages have private fields and cannot be built in one expression"
)]

use bytes::Bytes;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message,
    MessageType, Snapshot,
};
use tidegate_proto::peer::v1::{self as wire, RaftEntry, RaftMessage};

use super::super::MembershipChange;
use crate::storage::log::{EntryKind, LogEntry, Membership};

pub(super) fn conf_change(change: MembershipChange) -> ConfChangeV2 {
    let (kind, node_id) = match change {
        MembershipChange::AddLearner(node) => (ConfChangeType::AddLearnerNode, node),
        MembershipChange::Promote(node) => (ConfChangeType::AddNode, node),
        MembershipChange::Remove(node) => (ConfChangeType::RemoveNode, node),
    };
    let mut single = ConfChangeSingle::default();
    single.set_change_type(kind);
    single.node_id = node_id;
    let mut change = ConfChangeV2::default();
    change.set_changes(vec![single].into());
    change
}

pub(super) fn conf_state(membership: &Membership) -> ConfState {
    let mut state = ConfState::default();
    state.set_voters(membership.voters.clone());
    state.set_learners(membership.learners.clone());
    state.set_voters_outgoing(membership.voters_outgoing.clone());
    state.set_learners_next(membership.learners_next.clone());
    state.auto_leave = membership.auto_leave;
    state
}

pub(super) fn membership_of(state: &ConfState) -> Membership {
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    Membership {
        voters: sorted(state.get_voters()),
        learners: sorted(state.get_learners()),
        voters_outgoing: sorted(state.get_voters_outgoing()),
        learners_next: sorted(state.get_learners_next()),
        auto_leave: state.auto_leave,
    }
}

pub(super) fn length_of(snapshot: &Snapshot) -> u64 {
    snapshot
        .data
        .as_ref()
        .try_into()
        .map_or(0, u64::from_le_bytes)
}

pub(super) fn to_log_entry(entry: &Entry) -> LogEntry {
    let (kind, data) = match entry.get_entry_type() {
        EntryType::EntryNormal => (EntryKind::Commands, entry.data.clone()),
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
            (EntryKind::Membership, entry.context.clone())
        }
    };
    LogEntry {
        index: entry.index,
        term: entry.term,
        kind,
        data,
    }
}

/// A new entry; Raft gives it its place.
pub(super) fn commands_entry(data: Bytes) -> Entry {
    let mut entry = Entry::default();
    entry.data = data;
    entry
}

pub(super) fn to_raft_entry(entry: &LogEntry) -> Entry {
    let mut made = Entry::default();
    made.index = entry.index;
    made.term = entry.term;
    match entry.kind {
        EntryKind::Commands => made.data = entry.data.clone(),
        EntryKind::Membership => {
            made.set_entry_type(EntryType::EntryConfChangeV2);
            made.context = entry.data.clone();
        }
    }
    made
}

const TYPES: [(MessageType, wire::raft_message::Type); 12] = {
    use wire::raft_message::Type as W;
    [
        (MessageType::MsgAppend, W::Append),
        (MessageType::MsgAppendResponse, W::AppendResponse),
        (MessageType::MsgRequestVote, W::RequestVote),
        (MessageType::MsgRequestVoteResponse, W::RequestVoteResponse),
        (MessageType::MsgSnapshot, W::Snapshot),
        (MessageType::MsgHeartbeat, W::Heartbeat),
        (MessageType::MsgHeartbeatResponse, W::HeartbeatResponse),
        (MessageType::MsgTimeoutNow, W::TimeoutNow),
        (MessageType::MsgReadIndex, W::ReadIndex),
        (MessageType::MsgReadIndexResp, W::ReadIndexResponse),
        (MessageType::MsgRequestPreVote, W::RequestPreVote),
        (
            MessageType::MsgRequestPreVoteResponse,
            W::RequestPreVoteResponse,
        ),
    ]
};

pub(super) fn to_wire_all(messages: Vec<Message>) -> Vec<RaftMessage> {
    messages.into_iter().filter_map(to_wire).collect()
}

/// `None` for kinds that never leave a node.
pub(super) fn to_wire(mut message: Message) -> Option<RaftMessage> {
    let kind = message.get_msg_type();
    let (_, kind) = TYPES.iter().find(|(raft, _)| *raft == kind)?;
    let entries = message
        .take_entries()
        .into_iter()
        .map(|entry| {
            let (kind, data, context) = match entry.get_entry_type() {
                EntryType::EntryNormal => {
                    (wire::raft_entry::Kind::Normal, entry.data, Bytes::new())
                }
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => (
                    wire::raft_entry::Kind::Membership,
                    Bytes::new(),
                    entry.context,
                ),
            };
            RaftEntry {
                kind: kind.into(),
                term: entry.term,
                index: entry.index,
                data,
                context,
            }
        })
        .collect();
    let snapshot = (!message.get_snapshot().is_empty()).then(|| {
        let snapshot = message.get_snapshot();
        let metadata = snapshot.get_metadata();
        let membership = membership_of(metadata.get_conf_state());
        wire::SnapshotDescriptor {
            index: metadata.index,
            term: metadata.term,
            membership: Some(wire::Membership {
                voters: membership.voters,
                learners: membership.learners,
                voters_outgoing: membership.voters_outgoing,
                learners_next: membership.learners_next,
                auto_leave: membership.auto_leave,
            }),
            length: length_of(snapshot),
        }
    });
    Some(RaftMessage {
        r#type: (*kind).into(),
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries,
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        priority: message.priority,
    })
}

/// Converts and checks what Raft itself takes for granted.
pub(super) fn from_wire(message: RaftMessage) -> Result<Message, &'static str> {
    let kind = message.r#type();
    let (kind, _) = TYPES
        .iter()
        .find(|(_, wire)| *wire == kind)
        .ok_or("its type is unknown")?;
    let mut made = Message::default();
    made.set_msg_type(*kind);
    made.to = message.to;
    made.from = message.from;
    made.term = message.term;
    made.log_term = message.log_term;
    made.index = message.index;
    made.commit = message.commit;
    made.commit_term = message.commit_term;
    made.request_snapshot = message.request_snapshot;
    made.reject = message.reject;
    made.reject_hint = message.reject_hint;
    made.context = message.context;
    made.priority = message.priority;
    let mut entries = Vec::with_capacity(message.entries.len());
    for entry in message.entries {
        let mut one = Entry::default();
        one.term = entry.term;
        one.index = entry.index;
        match entry.kind() {
            wire::raft_entry::Kind::Unspecified => return Err("an entry's kind is unknown"),
            wire::raft_entry::Kind::Normal => one.data = entry.data,
            wire::raft_entry::Kind::Membership => {
                one.set_entry_type(EntryType::EntryConfChangeV2);
                one.context = entry.context;
            }
        }
        entries.push(one);
    }
    check_entries(*kind, &made, &entries)?;
    made.set_entries(entries.into());
    if *kind == MessageType::MsgSnapshot {
        let descriptor = message.snapshot.ok_or("a snapshot without description")?;
        if descriptor.index == 0 {
            return Err("a snapshot of nothing");
        }
        let membership = descriptor.membership.unwrap_or_default();
        let mut snapshot = Snapshot::default();
        snapshot.data = Bytes::copy_from_slice(&descriptor.length.to_le_bytes());
        let metadata = snapshot.mut_metadata();
        metadata.index = descriptor.index;
        metadata.term = descriptor.term;
        *metadata.mut_conf_state() = conf_state(&Membership {
            voters: membership.voters,
            learners: membership.learners,
            voters_outgoing: membership.voters_outgoing,
            learners_next: membership.learners_next,
            auto_leave: membership.auto_leave,
        });
        made.set_snapshot(snapshot);
    }
    Ok(made)
}

pub(super) fn check_entries(
    kind: MessageType,
    message: &Message,
    entries: &[Entry],
) -> Result<(), &'static str> {
    // Only questions about the read index come without a term: Raft takes a message without a
    // term for one of the node's own.
    let is_read = kind == MessageType::MsgReadIndex;
    if message.term == 0 && !is_read {
        return Err("it has no term");
    }
    match kind {
        MessageType::MsgAppend => {
            let mut index = message.index;
            let mut term = message.log_term;
            for entry in entries {
                index += 1;
                if entry.index != index || entry.term < term || entry.term > message.term {
                    return Err("its entries do not follow each other");
                }
                term = entry.term;
            }
            Ok(())
        }
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp if entries.len() == 1 => Ok(()),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => Err("it asks for no one read"),
        _ if entries.is_empty() => Ok(()),
        _ => Err("it carries entries that do not belong there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> RaftEntry {
        RaftEntry {
            kind: wire::raft_entry::Kind::Normal.into(),
            term,
            index,
            data: Bytes::from_static(b"x"),
            context: Bytes::new(),
        }
    }

    fn append(entries: Vec<RaftEntry>) -> RaftMessage {
        RaftMessage {
            r#type: wire::raft_message::Type::Append.into(),
            to: 2,
            from: 1,
            term: 5,
            log_term: 3,
            index: 10,
            entries,
            commit: 9,
            ..RaftMessage::default()
        }
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let snapshot = RaftMessage {
            r#type: wire::raft_message::Type::Snapshot.into(),
            snapshot: Some(wire::SnapshotDescriptor {
                index: 8,
                term: 2,
                membership: Some(wire::Membership {
                    voters: vec![1, 2],
                    learners: vec![3],
                    ..wire::Membership::default()
                }),
                length: 77,
            }),
            entries: Vec::new(),
            ..append(Vec::new())
        };
        let mut membership = entry(12, 5);
        membership.kind = wire::raft_entry::Kind::Membership.into();
        membership.data = Bytes::new();
        membership.context = Bytes::from_static(b"c");
        for message in [snapshot, append(vec![entry(11, 3), membership])] {
            let there = from_wire(message.clone()).unwrap();
            assert_eq!(to_wire_all(vec![there]), [message]);
        }
    }

    #[test]
    fn what_raft_takes_for_granted_is_checked() {
        let read = |entries| RaftMessage {
            r#type: wire::raft_message::Type::ReadIndex.into(),
            term: 0,
            ..append(entries)
        };
        let bad = [
            append(vec![entry(12, 3)]),
            append(vec![entry(11, 2)]),
            append(vec![entry(11, 6)]),
            append(vec![entry(11, 3), entry(11, 3)]),
            RaftMessage {
                term: 0,
                ..append(Vec::new())
            },
            RaftMessage {
                r#type: 99,
                ..append(Vec::new())
            },
            RaftMessage {
                r#type: wire::raft_message::Type::Heartbeat.into(),
                ..append(vec![entry(11, 3)])
            },
            RaftMessage {
                r#type: wire::raft_message::Type::Snapshot.into(),
                ..append(Vec::new())
            },
            append(vec![RaftEntry {
                kind: 0,
                ..entry(11, 3)
            }]),
            read(Vec::new()),
            read(vec![entry(0, 0), entry(0, 0)]),
        ];
        for message in bad {
            assert!(from_wire(message.clone()).is_err(), "{message:?}");
        }
        assert!(from_wire(read(vec![entry(0, 0)])).is_ok());
    }

    #[test]
    fn foreign_bytes_never_reach_an_entrys_data_of_a_membership_change() {
        let mut hostile = entry(11, 3);
        hostile.kind = wire::raft_entry::Kind::Membership.into();
        hostile.data = Bytes::from_static(b"\x0a\xff\xff");
        let mut message = from_wire(append(vec![hostile])).unwrap();
        assert!(message.take_entries()[0].data.is_empty());
    }
}
