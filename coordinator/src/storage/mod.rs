//! What a coordinator keeps on its own disk: the Raft log, the snapshots of the state, and the
//! history of what has left it.
//!
//! [`log::LogStore`] is the trait that the Raft driver writes through; [`segment`] is the store of
//! production and [`memory`] one for tests and simulations. Both pass `conformance`. Everything
//! goes through [`disk::Disk`], so tests run the same code over a disk that tears and forgets.
//! [`history`] keeps an embedded store's file, through the system alone. Only [`codec`] turns values
//! into bytes and back; [`state`] is how a whole state lies in a snapshot.

pub mod blobs;
pub mod codec;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod data_dir;
pub mod disk;
#[cfg(any(test, feature = "testing"))]
pub mod faulty;
pub mod history;
pub mod log;
pub mod memory;
pub mod segment;
pub mod snapshot;
pub mod state;
