//! What leaves the replicated state for the history that every node keeps on its disk: ended
//! deployments that no decision needs any more, and the lines of the audit log.
//!
//! `apply` decides what leaves and when, alike on every node; the shell's replica writes it down
//! before it shows a state that lacks it. Nothing in this crate reads what has left. Another table
//! whose rows should leave gets a variant of [`Archived`], a count in
//! [`Archive`](crate::state::Archive) if its rows are numbered, and a table in the shell's history.

use serde::{Deserialize, Serialize};
use tidegate_shared::digest::Digest;

use crate::command::{Applied, Reply};
use crate::event::Event;
use crate::state::{Deployment, State};

/// From this cluster level on rows leave the state. Below it some member could not keep them.
pub const ARCHIVE_LEVEL: u32 = 2;

/// How many of a scope's newest ended deployments stay in the state, whatever they are needed for:
/// those that people look at, and try again.
pub const NEWEST_ENDED: usize = 3;

/// A deployment that has left the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Past {
    /// Counted through all that ever left, from 1 without gaps.
    pub number: u64,
    /// The entry with which it left.
    pub index: u64,
    /// The revision that it was made with: orders the deployments of its scope.
    pub made: u64,
    /// As it was when it left; it never changes again.
    pub deployment: Deployment,
}

/// A row that has left the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Archived {
    /// A line of the audit log.
    Event(Box<Event>),
    /// A deployment.
    Deployment(Box<Past>),
}

/// A row on its way into the history, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchivedRow<'a> {
    /// See [`Archived::Event`].
    Event(&'a Event),
    /// See [`Archived::Deployment`].
    Deployment(&'a Past),
}

impl Archived {
    /// The row, borrowed.
    pub fn row(&self) -> ArchivedRow<'_> {
        match self {
            Self::Event(event) => ArchivedRow::Event(event),
            Self::Deployment(past) => ArchivedRow::Deployment(past),
        }
    }
}

/// What the history has to hold for a state to be whole: the audit chain up to its last hash, and
/// so many deployments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Lines of the audit log.
    pub events: u64,
    /// Hash of the last of them; none: there is none.
    pub last_hash: Option<Digest>,
    /// Deployments, numbered from 1.
    pub deployments: u64,
}

impl State {
    /// What has left this state; none as long as nothing leaves it.
    pub fn extent(&self) -> Option<Extent> {
        let archive = self.archive?;
        Some(Extent {
            events: archive.events,
            last_hash: self.last_hash,
            deployments: archive.deployments,
        })
    }
}

impl Default for Applied {
    fn default() -> Self {
        Self {
            outcome: Ok(Reply::Done),
            events: Vec::new(),
            archived: Vec::new(),
            events_leave: false,
        }
    }
}

impl Applied {
    /// Everything that has to be in the history once this is applied, in order.
    pub fn rows(&self) -> impl Iterator<Item = ArchivedRow<'_>> {
        let events = self.events.iter().filter(|_| self.events_leave);
        let archived = self.archived.iter().map(Archived::row);
        archived.chain(events.map(ArchivedRow::Event))
    }
}
