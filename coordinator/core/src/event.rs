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
