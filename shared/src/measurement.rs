//! Measurements of checks as they travel: what an agent is asked to measure, and what it found.
//!
//! Results are levels: the latest measurement of each, with its number, repeated until another one
//! takes its place. Whether one is good the leader says, who has the conditions.

use serde::{Deserialize, Serialize};

use crate::id::Name;
use crate::spec::{CommandMeasurement, HttpMeasurement};
use crate::time::{Span, Timestamp};

/// Most bytes of a body or of a program's output that are kept of a measurement.
pub const MOST_BYTES: usize = 16 << 10;

/// Most instances of a version on one agent that are asked.
pub const MOST_INSTANCES: u32 = 16;

/// A check that an agent is to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckWish {
    /// Which check.
    pub name: Name,
    /// Which run of it: the start of the step. Another one begins anew.
    pub run: Timestamp,
    /// Before the first measurement.
    pub initial_delay: Span,
    /// Between the starts of two.
    pub interval: Span,
    /// What to measure, its placeholders filled in.
    pub what: CheckKind,
}

/// What an agent measures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// Asks every instance.
    Http(HttpMeasurement),
    /// Runs a program once.
    Command(CommandMeasurement),
}

/// The latest measurement of a check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObservedCheck {
    /// Which check.
    pub name: Name,
    /// Which run of it.
    pub run: Timestamp,
    /// Of which instance; none: of the agent.
    pub instance: Option<u32>,
    /// Raises with each measurement of an agent's start.
    pub sequence: u64,
    /// What was found.
    pub sample: Sample,
}

/// What one measurement found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sample {
    /// An answer over HTTP.
    Http {
        /// 100 to 599.
        status: u16,
        /// What could be read of it, at most [`MOST_BYTES`].
        body: String,
        /// There was more.
        cut: bool,
    },
    /// A program that ended by itself.
    Command {
        /// Of its end.
        exit_code: i32,
        /// What it printed on both outputs, at most [`MOST_BYTES`], without secrets.
        output: String,
        /// There was more.
        cut: bool,
    },
    /// The result of a query: one number per series.
    Values(Vec<f64>),
    /// No answer, or not in time: bad whatever the conditions.
    Unanswered(String),
    /// It could not be made: says nothing about the version.
    NotMade(String),
}
