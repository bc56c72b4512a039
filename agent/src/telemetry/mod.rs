//! Measures: the host as a whole, and what the processes of instances use. Levels, read when a
//! report is made; and what applications tell of themselves. Requests are counted by the data plane,
//! health checks by the core.

pub mod host;
mod prometheus;
pub mod scrape;
pub mod usage;
