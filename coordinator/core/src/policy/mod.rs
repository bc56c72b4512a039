//! Policies: whether and when a deployment may start. One file per kind of rule.
//!
//! Evaluated by the planner and told to people by `explain`; `apply` never evaluates one, it takes
//! the answers as they come in commands.

pub mod approval;
pub mod selector;
