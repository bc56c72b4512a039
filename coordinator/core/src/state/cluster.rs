//! Identity, members, agents, people, tokens.

use serde::{Deserialize, Serialize};
use tidegate_shared::assignment::{Facts, Generation};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{ClusterId, Name};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::Role;
use tidegate_shared::time::Timestamp;

use super::{Meta, Table};
use crate::command::{Actor, Outcome, TokenKind};

/// A coordinator's number: counted up, never used again. 1 is the node that `init` made.
pub type NodeId = u64;

/// The cluster as such.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Minted at `init`.
    pub id: ClusterId,
    /// Fixed for ever.
    pub trust_domain: String,
    /// Raised when every member supports it.
    pub level: u32,
    /// Raised by restore and force-new-cluster.
    pub epoch: u64,
    /// The next node's.
    pub next_node: NodeId,
    /// By node id.
    pub members: Table<NodeId, Member>,
    /// Those that were taken out, by node id. Raft speaks with one until its own membership has
    /// followed: without its acknowledgement that might never come about.
    pub former: Table<NodeId, Member>,
    /// The certificate authority.
    pub ca: CaRecord,
}

/// Where a coordinator listens, each `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addresses {
    /// People and agents.
    pub control: String,
    /// Other coordinators.
    pub peer: String,
    /// Blobs, health.
    pub http: String,
    /// Newcomers.
    pub enroll: String,
}

/// A coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// The name in its certificate.
    pub name: Name,
    /// Where it listens.
    pub addresses: Addresses,
    /// Version of its program; empty until it told.
    pub version: String,
    /// Highest cluster level that it supports.
    pub level: u32,
    /// When it became a member: certificates of its name from before are another's.
    pub joined_at: Timestamp,
}

/// The certificate authority; its key only wrapped by the cluster key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaRecord {
    /// PEM of the root certificate.
    pub certificate: String,
    /// The private key, sealed.
    pub key: SealedKey,
}

/// Bytes sealed with AES-256-GCM under the cluster key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedKey {
    /// 12 bytes.
    pub nonce: Vec<u8>,
    /// Ciphertext and tag.
    pub sealed: Vec<u8>,
}

/// A process that acts for scopes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Labels are the token's; the joiner cannot change them.
    pub meta: Meta,
    /// Told at its connection.
    pub facts: Facts,
    /// Version of its program; empty until it told.
    pub version: String,
    /// Index of the last entry that changed its assignments.
    pub generation: Generation,
}

/// A person who may log in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// What every object carries.
    pub meta: Meta,
    /// Roles that hold everywhere, in order; see [`crate::people`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Role>,
}

/// A join token; its secret is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// What its holder becomes.
    pub kind: TokenKind,
    /// SHA-256 of its secret.
    pub secret_hash: Digest,
    /// Bound to the joiner.
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: Actor,
    /// Refused afterwards.
    pub expires_at: Timestamp,
    /// How often it may be used.
    pub uses: u32,
    /// How often it was.
    pub used: u32,
    /// The name that the joiner must take.
    pub name: Option<Name>,
    /// People: roles that the joiner gets everywhere; empty: viewer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Role>,
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    /// When.
    pub at: Timestamp,
    /// Digest of the command, so that the same id with another command is refused.
    pub command: Digest,
    /// The answer.
    pub outcome: Outcome,
}
