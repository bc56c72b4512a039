//! The coordinators' decisions: synchronous, deterministic, total functions over plain values. No
//! clock, no randomness, no IO; time and ids are inputs.
//!
//! `apply` turns log entries into state on every node; `plan` says what the leader should propose
//! now; `desired` says what an agent should make true. The shell in `coordinator/src` carries
//! values in and out.

#![deny(missing_docs)]

pub mod apply;
pub mod archive;
pub mod auto;
pub mod collection;
pub mod command;
pub mod deployment;
pub mod desired;
pub mod event;
pub mod explain;
#[cfg(test)]
mod fixture;
pub mod forecast;
pub mod group;
pub mod guard;
pub mod observed;
pub mod people;
pub mod plan;
pub mod policy;
pub mod preflight;
pub mod rejection;
pub mod state;
pub mod strategy;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod verification;

pub use apply::apply;
pub use archive::{Archived, ArchivedRow, Extent, Past};
pub use command::{Actor, Applied, Command, Entry, Item, Outcome, Reply, RequestKey};
pub use desired::desired;
pub use event::Event;
pub use explain::explain;
pub use forecast::forecast;
pub use guard::guard;
pub use observed::Observed;
pub use plan::plan;
pub use rejection::Rejection;
pub use state::State;
