//! A side of a comparison that is asked by turns, and what all turns came to.

use crate::report::{Better, Figure, Goal, Reference};

/// Values of both sides, one per turn.
#[derive(Debug, Clone, Default)]
pub struct Pair {
    /// Ours.
    pub ours: Vec<f64>,
    /// The reference's.
    pub theirs: Vec<f64>,
}

impl Pair {
    /// As a line of the table.
    pub fn figure(
        self,
        name: impl Into<String>,
        unit: &'static str,
        better: Better,
        reference: &str,
        goal: Goal,
    ) -> Figure {
        Figure {
            name: name.into(),
            unit,
            better,
            ours: self.ours,
            reference: Some(Reference {
                name: reference.to_owned(),
                samples: self.theirs,
                computed: false,
            }),
            goal,
        }
    }
}

/// A line of the table without a reference.
pub fn alone(
    name: impl Into<String>,
    unit: &'static str,
    better: Better,
    ours: Vec<f64>,
    goal: Goal,
) -> Figure {
    Figure {
        name: name.into(),
        unit,
        better,
        ours,
        reference: None,
        goal,
    }
}
