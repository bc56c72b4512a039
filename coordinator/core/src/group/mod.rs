//! The arithmetic of groups: in what order and at what times members start, waves, budgets.
//!
//! Pure functions over plain values; no state machine stands here. Who decides for a group takes
//! its answers from these.

pub mod budget;
pub mod open_time;
pub mod order;
pub mod schedule;
pub mod waves;
