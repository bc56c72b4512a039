//! The agent's shell: everything around `tidegate-agent-core` that touches clocks, disks, sockets and
//! processes. The binary `tidegate-agent` is made of it, and the tests drive its parts.

pub mod asset;
pub mod checks;
pub mod config;
pub mod enroll;
pub mod error;
pub mod executor;
pub mod files;
pub mod health;
pub mod hooks;
pub mod identity;
pub mod jitter;
pub mod ledger;
#[cfg(test)]
mod link_tests;
pub mod parameter_files;
pub mod port_holder;
pub mod probe;
pub mod proxy;
pub mod reconcile;
pub mod run;
pub mod secrets;
pub mod service;
pub mod session;
pub mod systemd;
pub mod telemetry;
pub mod tls;
pub mod traffic;
