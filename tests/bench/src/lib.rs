//! Measures Tidegate beside programs that do the same, on one machine in one run.
//!
//! Every bench starts real processes of both sides with their data on the same disk, lets the same
//! load generator work on them by turns, several times, and reports medians and their ratios.
//! Ratios count; absolute figures are those of the machine. Nothing here passes or fails: whether a
//! goal was met stands in the report. `tests/bench/run` builds everything optimised and calls the
//! program; CI runs every bench in its short form to see that it still works.

pub mod benches;
pub mod client;
pub mod etcd;
pub mod http;
pub mod machine;
pub mod measured;
pub mod ours;
pub mod report;
pub mod stats;
pub mod store;
pub mod world;

use std::time::Duration;

/// How thoroughly to measure.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Turns of each side.
    pub repetitions: usize,
    /// Counted time of one turn.
    pub length: Duration,
    /// Time before it that is not counted.
    pub warm_up: Duration,
    /// Only to show that the bench works.
    pub short: bool,
}

impl Effort {
    /// For figures.
    pub const fn full() -> Self {
        Self {
            repetitions: 3,
            length: Duration::from_secs(5),
            warm_up: Duration::from_secs(1),
            short: false,
        }
    }

    /// For CI: as little as shows that it works.
    pub const fn short() -> Self {
        Self {
            repetitions: 1,
            length: Duration::from_millis(500),
            warm_up: Duration::from_millis(100),
            short: true,
        }
    }
}
