//! What the agent should make true, normalised from assignments.
//!
//! Whatever a message says, here each place stands once, and only a version that should run has
//! weight. The planner reads nothing else of the wish.

use std::collections::BTreeMap;

use tidegate_shared::assignment::{Assignment, Assignments, Generation, WishedState};
use tidegate_shared::time::Span;
use tidegate_shared::weight::Weight;

use crate::guard::LatchedGuards;
use crate::place::PlaceKey;

/// The normalised wish.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Of the assignments that it was made of.
    pub generation: Generation,
    /// One item per place.
    pub places: BTreeMap<PlaceKey, Assignment>,
    /// Smallest interval of reports while a deployment concerns the agent.
    pub report_interval: Option<Span>,
}

/// Assignments that contradict themselves; nothing of them takes effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DesiredError {
    /// The same place stands there twice.
    #[error("the assignments name {0} twice")]
    Twice(PlaceKey),
    /// Two places would share a folder and names.
    #[error("the assignments name two deployments that share the short name {0}")]
    ShortCollision(String),
}

impl Desired {
    /// Normalises assignments.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn new(assignments: &Assignments, latched: &LatchedGuards) -> Result<Self, DesiredError> {
        let mut places: BTreeMap<PlaceKey, Assignment> = BTreeMap::new();
        let mut folders = BTreeMap::new();
        for item in &assignments.items {
            let key = PlaceKey::of(item);
            let mut item = item.clone();
            item.weight = match item.state {
                WishedState::Running if !latched.blocks(&item) => item.weight,
                WishedState::Running
                | WishedState::Staged
                | WishedState::Drained
                | WishedState::Absent => Weight::ZERO,
            };
            if places.insert(key.clone(), item).is_some() {
                return Err(DesiredError::Twice(key));
            }
            if folders.insert(key.folder(), ()).is_some() {
                return Err(DesiredError::ShortCollision(key.folder()));
            }
        }
        Ok(Self {
            generation: assignments.generation,
            places,
            report_interval: assignments.report_interval,
        })
    }

    /// Nothing is wished any more, as of `generation`: what runs drains and goes.
    pub fn nothing(generation: Generation) -> Self {
        Self {
            generation,
            ..Self::default()
        }
    }

    /// The weight wished for a place; nothing for one that is not wished at all.
    pub fn weight(&self, place: &PlaceKey) -> Weight {
        self.places.get(place).map_or(Weight::ZERO, |i| i.weight)
    }

    /// Whether instances of the place should be up.
    pub fn wants_instances(&self, place: &PlaceKey) -> bool {
        self.places.get(place).is_some_and(|item| match item.state {
            WishedState::Running | WishedState::Drained => true,
            WishedState::Staged | WishedState::Absent => false,
        })
    }

    /// Whether the release of the place should be on disk.
    pub fn wants_staged(&self, place: &PlaceKey) -> bool {
        self.places.get(place).is_some_and(|item| match item.state {
            WishedState::Staged | WishedState::Running | WishedState::Drained => true,
            WishedState::Absent => false,
        })
    }
}
