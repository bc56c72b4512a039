//! Policies: whether and when a deployment may start. One file per kind of rule.
//!
//! Evaluated by the planner and told to people by `explain`; `apply` never evaluates one, it takes
//! the answers as they come in commands. An evaluator gets read-only values and `now`, answers
//! [`Answer`], and never calls another one.

pub mod answer;
pub mod approval;
pub mod check;
pub mod clock;
pub mod concurrency;
pub mod cooldown;
pub mod dependency;
pub mod dependents;
pub mod expression;
pub mod freeze;
pub mod gradual_rollout;
pub mod guardrail;
pub mod progression;
pub mod recurrence;
pub mod release_selector;
pub mod retry;
pub mod rules;
pub mod selection;
pub mod skip;
pub mod subject;
pub mod window;
pub mod zone;

/// From this cluster level on the applications that dependency rules name have to be there, and stay;
/// below it some member would decide otherwise about the same entries.
pub const REFERENCES_LEVEL: u32 = 4;

pub use answer::{Answer, Mistake, Verdict};

#[cfg(test)]
mod tests;
