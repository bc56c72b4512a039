//! The coordinator's shell: everything around the pure decisions of `tidegate-coordinator-core`
//! that touches clocks, disks and sockets.
//!
//! A command goes through [`propose`] into [`raft`], reaches the disk through [`storage`] and the
//! state through [`replica`]; [`query`] reads. [`replication`] puts these together. Around them stand
//! the services of [`api`], the sessions of [`agents`], the planner's loop in [`leader`], and what
//! gets nodes and newcomers going: [`setup`], [`enroll`], [`ca`]. [`node`] is the composition root.

pub mod agents;
pub mod api;
pub mod blob_gc;
pub mod blob_sync;
pub mod ca;
pub mod clock;
pub mod config;
pub mod enroll;
pub mod entropy;
pub mod health;
pub mod http;
pub mod leader;
pub mod node;
#[cfg(test)]
mod node_tests;
pub mod pace;
mod port_holder;
pub mod propose;
pub mod query;
pub mod raft;
pub mod replica;
pub mod replication;
#[cfg(test)]
mod replication_tests;
pub mod secrets;
pub mod service;
pub mod setup;
pub mod storage;
pub mod tls;
