//! The coordinator's shell: everything around the pure decisions of `tidegate-coordinator-core`
//! that touches clocks, disks and sockets.
//!
//! A command goes through [`propose`] into [`raft`], reaches the disk through [`storage`] and the
//! state through [`replica`]; [`query`] reads. [`replication`] puts these together.

pub mod clock;
pub mod entropy;
pub mod propose;
pub mod query;
pub mod raft;
pub mod replica;
pub mod replication;
#[cfg(test)]
mod replication_tests;
pub mod storage;
pub mod tls;
