//! What is kept of a group between looks, so that a look at a large group costs what changed in it
//! since: its paces with the starts so far, and who stands in the way of its gate.
//!
//! It is brought up to date by whoever keeps it (the rehearsal of `forecast`), and is made anew after
//! every change of the group itself. [`Standing::of`](super::Standing::of) reads it.

use std::collections::BTreeMap;

use tidegate_shared::spec::RolloutGate;
use tidegate_shared::time::Timestamp;

use super::standing::{Paced, paces};
use super::{Standing, passed};
use crate::observed::Observed;
use crate::state::{Group, State};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Revision of the group that it is of.
    revision: u64,
    paces: Vec<Paced>,
    /// Started members that have not passed the gate, by position, with why.
    unpassed: BTreeMap<u32, String>,
}

impl Kept {
    /// Counts everything.
    pub(crate) fn new(state: &State, observed: &Observed, now: Timestamp, group: &Group) -> Self {
        let mut kept = Self {
            revision: group.meta.revision,
            ..Self::default()
        };
        if group.begun_at.is_some() {
            kept.paces = paces(state, group, now);
            let standing = Standing::bare(state, observed, now, group);
            for number in group.members.keys() {
                kept.ask(&standing, *number);
            }
        }
        kept
    }

    /// Whether the group itself is what it was.
    pub(crate) fn is_of(&self, group: &Group) -> bool {
        self.revision == group.meta.revision
    }

    /// A member started.
    pub(crate) fn started(&mut self, group: &Group, number: u32, at: Timestamp) {
        for paced in &mut self.paces {
            paced.note(group, number, at);
        }
    }

    /// Asks again whether a member stands in the way of the gate: something of it changed.
    pub(crate) fn ask(&mut self, standing: &Standing<'_>, number: u32) {
        let rollout = &standing.group.rollout;
        if rollout.gate == RolloutGate::None || !rollout.kind.is_linear() {
            return;
        }
        let Some(member) = standing.group.members.get(&number) else {
            return;
        };
        let (Some(position), Some(_)) = (member.position, member.started_at) else {
            return;
        };
        match passed(standing, member) {
            Ok(()) => self.unpassed.remove(&position),
            Err(why) => self.unpassed.insert(position, why),
        };
    }

    pub(super) fn paces(&self) -> &[Paced] {
        &self.paces
    }

    /// Why the first member in the order that started has not passed the gate.
    pub(super) fn first_blocker(&self) -> Option<&String> {
        self.unpassed.values().next()
    }
}
