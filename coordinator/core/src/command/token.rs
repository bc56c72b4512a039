//! Commands about join tokens and newcomers.

use serde::{Deserialize, Serialize};
use tidegate_shared::assignment::Facts;
use tidegate_shared::digest::Digest;
use tidegate_shared::id::{Name, TokenId};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::Role;
use tidegate_shared::time::Timestamp;

use crate::state::Addresses;

/// What a token lets its holder become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// An agent.
    Agent,
    /// A person.
    User,
    /// A coordinator.
    Coordinator,
}

/// See [`super::Command::CreateToken`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Minted by the front.
    pub id: TokenId,
    /// What its holder becomes.
    pub kind: TokenKind,
    /// SHA-256 of its secret.
    pub secret_hash: Digest,
    /// Bound to the joiner.
    pub labels: Labels,
    /// Refused afterwards.
    pub expires_at: Timestamp,
    /// 1 to 10,000.
    pub uses: u32,
    /// The name that the joiner must take.
    pub name: Option<Name>,
    /// People: roles that the joiner gets everywhere; empty: viewer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Role>,
}

/// See [`super::Command::DeleteToken`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteToken {
    /// Which.
    pub id: TokenId,
}

/// See [`super::Command::Join`]. The certificate is signed by the front after this is applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// Which token.
    pub token: TokenId,
    /// SHA-256 of the secret that was shown.
    pub secret_hash: Digest,
    /// The name that the joiner wants.
    pub name: Name,
    /// Agents: facts about the host.
    pub facts: Facts,
    /// Coordinators: where the new node listens.
    pub addresses: Option<Addresses>,
}
