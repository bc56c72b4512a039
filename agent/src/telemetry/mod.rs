//! Measures: the host as a whole, and what the processes of instances use. Levels, read when a
//! report is made. Requests are counted by the data plane, health checks by the core.

pub mod host;
pub mod usage;
