//! Policies: whether and when a deployment may start. One file per kind of rule.
//!
//! Evaluated by the planner and told to people by `explain`; `apply` never evaluates one, it takes
//! the answers as they come in commands. An evaluator gets read-only values and `now`, answers
//! [`Answer`], and never calls another one.

pub mod answer;
pub mod approval;
pub mod cooldown;
pub mod progression;
pub mod recurrence;
pub mod selector;
pub mod window;
pub mod zone;

pub use answer::{Answer, Mistake, Verdict};
