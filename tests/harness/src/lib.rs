//! Real clusters for tests and benches: processes, addresses, folders, a small HTTP client.
//!
//! Everything that a cluster writes lies in one temporary folder, which stays when a test fails.
//! Every process is the leader of a group of its own, and the groups are ended by id when their owner is
//! dropped. Nothing here waits by sleeping for a time: [`poll::until`] looks at a real condition.

pub mod archive;
pub mod cluster;
pub mod http;
pub mod load;
pub mod machine;
pub mod nspawn;
pub mod poll;
pub mod ports;
pub mod process;

pub use cluster::{Client, Cluster, Output, Shape};
pub use machine::Machine;
pub use nspawn::Hosts;
pub use process::Process;
