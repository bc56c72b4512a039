//! The kernel that judges versions, shared by the leader, the agent's guard and rule replay.

pub mod app;
pub mod check;
pub mod histogram;
pub mod threshold;
