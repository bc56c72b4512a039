//! Dead-man guards that have fired, latched (agent.md §2).
//!
//! Guards are carried and kept, but nothing fires them yet: the set stays empty. What a latched
//! guard means is settled here already: assignments that still carry a guard cannot give that
//! deployment weight again; a final one, without a guard, overrides.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tidegate_shared::assignment::Assignment;

use crate::place::PlaceKey;

/// The guards that have fired.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LatchedGuards(BTreeSet<PlaceKey>);

impl LatchedGuards {
    /// Latches the guard of a place.
    pub fn latch(&mut self, place: PlaceKey) {
        self.0.insert(place);
    }

    /// Whether the item may not get weight.
    pub fn blocks(&self, item: &Assignment) -> bool {
        item.guard.is_some() && self.0.contains(&PlaceKey::of(item))
    }
}
