//! What commands come to.

use serde::{Deserialize, Serialize};
use tidegate_shared::id::{DeploymentId, GroupId, Name};

use super::TokenKind;
use crate::archive::Archived;
use crate::event::Event;
use crate::rejection::Rejection;
use crate::state::NodeId;

/// What a command came to, on every node alike.
pub type Outcome = Result<Reply, Rejection>;

/// The good answer of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// An object, with its revision now; `changed` is false if it was so already.
    Object {
        /// Its revision now.
        revision: u64,
        /// It was not there before.
        created: bool,
        /// It was otherwise before.
        changed: bool,
    },
    /// Deployments that were made or acted on.
    Deployments(Vec<DeploymentId>),
    /// A group was made, or got more members.
    Group {
        /// Which.
        group: GroupId,
        /// The deployments that were made, in the order of the scopes.
        deployments: Vec<DeploymentId>,
    },
    /// A group was acted on.
    GroupActed {
        /// Which.
        group: GroupId,
        /// The deployments that it was done to, or that it made.
        done: Vec<DeploymentId>,
        /// Scopes of the members that were left as they are, each with the reason.
        left: Vec<(Name, String)>,
    },
    /// Something that was given a name.
    Named(Name),
    /// A newcomer is in.
    Joined {
        /// Its name.
        name: Name,
        /// What it became.
        kind: TokenKind,
        /// Coordinators: its node id.
        node: Option<NodeId>,
    },
}

/// What one item of an entry came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The answer for whoever asked.
    pub outcome: Outcome,
    /// What happened, in order.
    pub events: Vec<Event>,
    /// What left the state, oldest first.
    pub archived: Vec<Archived>,
    /// The events are not in the state: they belong into the history, after `archived`.
    pub events_leave: bool,
}
