//! Events: what happened, in the past tense; the lines of the audit log and of watch streams.
//!
//! Their shape and their chain stand in `shared`, where clients that check an exported log find
//! them.

pub(crate) use tidegate_shared::audit::canonical_digest;
pub use tidegate_shared::audit::{BrokenChain, Event, verify_chain, verify_chain_from};
