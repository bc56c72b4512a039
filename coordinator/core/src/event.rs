//! Events: what happened, in the past tense; the lines of the audit log and of watch streams.

use serde::{Deserialize, Serialize};
use tidegate_shared::digest::Digest;
use tidegate_shared::time::Timestamp;

use crate::command::Actor;

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
    pub details: std::collections::BTreeMap<String, String>,
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
            details: &'a std::collections::BTreeMap<String, String>,
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
pub(crate) fn canonical_digest<T: Serialize>(value: &T) -> Digest {
    let mut bytes = Vec::new();
    match ciborium::into_writer(value, &mut bytes) {
        Ok(()) => Digest::of(&bytes),
        // Writing plain values into memory does not fail.
        Err(_) => Digest::ZERO,
    }
}
