//! The audit log as values: who, what, on which object, with which outcome; each line holds the
//! hash of the one before it.
//!
//! Coordinators write it (the core's `apply` chains the lines) and clients check it without asking
//! them: both use the same canonical bytes, which are never changed. [`export`] is the file that
//! `tidegate audit export` writes.

pub mod export;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::id::{Name, TokenId};
use crate::time::Timestamp;

/// Who asked for a command.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// The leader's planner, or a node itself.
    System,
    /// A person, by the name in its certificate.
    User(Name),
    /// An agent, by the name in its certificate.
    Agent(Name),
    /// A coordinator, by the name in its certificate.
    Coordinator(Name),
    /// A newcomer that holds the token.
    Token(TokenId),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.pad("system"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Agent(name) => write!(f, "agent:{name}"),
            Self::Coordinator(name) => write!(f, "coordinator:{name}"),
            Self::Token(id) => write!(f, "token:{id}"),
        }
    }
}

/// One line of the audit log. The hash covers the canonical bytes of everything but `hash`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Index of its log entry.
    pub index: u64,
    /// Counted through the events of the entry, from 0.
    pub ordinal: u32,
    /// The entry's time.
    pub at: Timestamp,
    /// Who.
    pub actor: Actor,
    /// Stable name, as `deployment_running`.
    pub kind: String,
    /// Kind of the object, as `deployment`.
    pub object_kind: String,
    /// Its name or id.
    pub object: String,
    /// `ok`, or the code of the refusal.
    pub outcome: String,
    /// One line for a person.
    pub message: String,
    /// Figures, as ordered key-value pairs.
    pub details: BTreeMap<String, String>,
    /// Hash of the event before; zero for the first.
    pub previous_hash: Digest,
    /// SHA-256 over the canonical bytes of the rest.
    pub hash: Digest,
}

impl Event {
    /// SHA-256 over the canonical bytes (CBOR, fields in the order above) of everything but `hash`.
    pub fn computed_hash(&self) -> Digest {
        #[derive(Serialize)]
        struct Body<'a> {
            index: u64,
            ordinal: u32,
            at: Timestamp,
            actor: &'a Actor,
            kind: &'a str,
            object_kind: &'a str,
            object: &'a str,
            outcome: &'a str,
            message: &'a str,
            details: &'a BTreeMap<String, String>,
            previous_hash: Digest,
        }
        let Self {
            index,
            ordinal,
            at,
            actor,
            kind,
            object_kind,
            object,
            outcome,
            message,
            details,
            previous_hash,
            hash: _,
        } = self;
        canonical_digest(&Body {
            index: *index,
            ordinal: *ordinal,
            at: *at,
            actor,
            kind,
            object_kind,
            object,
            outcome,
            message,
            details,
            previous_hash: *previous_hash,
        })
    }

    /// Closes the event: its hash is set over the rest.
    pub fn sealed(mut self) -> Self {
        self.hash = self.computed_hash();
        self
    }

    /// Its place in the log.
    pub const fn position(&self) -> (u64, u32) {
        (self.index, self.ordinal)
    }
}

/// The first event of a log that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {index}.{ordinal}: {message}")]
pub struct BrokenChain {
    /// Index of its log entry.
    pub index: u64,
    /// Its number in the entry.
    pub ordinal: u32,
    /// Whether the event itself or its link to the one before is wrong.
    pub message: String,
}

/// Checks a whole audit log, oldest first; gives the hash of its last event.
///
/// # Errors
/// Names the first event whose content does not fit its hash, or that does not follow the one
/// before.
pub fn verify_chain<'a>(
    events: impl IntoIterator<Item = &'a Event>,
) -> Result<Digest, BrokenChain> {
    verify_chain_from(Digest::ZERO, events)
}

/// As [`verify_chain`], for a part of the log: `previous` is the hash of the event before it.
///
/// # Errors
/// As there.
pub fn verify_chain_from<'a>(
    mut previous: Digest,
    events: impl IntoIterator<Item = &'a Event>,
) -> Result<Digest, BrokenChain> {
    for event in events {
        let broken = |message: &str| BrokenChain {
            index: event.index,
            ordinal: event.ordinal,
            message: message.to_owned(),
        };
        if event.previous_hash != previous {
            return Err(broken("does not follow the event before it"));
        }
        if event.computed_hash() != event.hash {
            return Err(broken("its content does not fit its hash"));
        }
        previous = event.hash;
    }
    Ok(previous)
}

/// SHA-256 over the CBOR of a value.
pub fn canonical_digest<T: Serialize>(value: &T) -> Digest {
    let mut bytes = Vec::with_capacity(1024);
    match crate::cbor::write(value, &mut bytes) {
        Ok(()) => Digest::of(&bytes),
        // Writing plain values into memory does not fail.
        Err(_) => Digest::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logs of every version have to verify for ever.
    #[test]
    fn the_canonical_bytes_never_change() {
        let event = Event {
            index: 7,
            ordinal: 1,
            at: Timestamp::from_millis(1_700_000_000_000),
            actor: Actor::User(Name::new("ann").unwrap()),
            kind: "deployment_running".to_owned(),
            object_kind: "deployment".to_owned(),
            object: "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
            outcome: "ok".to_owned(),
            message: "runs".to_owned(),
            details: BTreeMap::from([("scope".to_owned(), "web".to_owned())]),
            previous_hash: Digest::of(b"before"),
            hash: Digest::ZERO,
        };
        assert_eq!(
            event.sealed().hash.to_string(),
            "1f2c5fc946cdd3241aa803e8150db999a28fa0d622ef7a9aa8ede91406fcc075"
        );
    }
}
