//! The agent's decisions as pure functions over plain values.
//!
//! The contract: synchronous, deterministic, total; no clock, no randomness, no IO. Time is an
//! input. The shell (`tidegate-agent`) and the model of feature `testing` drive the same parts in
//! the same way:
//!
//! ```text
//! Assignments ─fence→ Desired ─┐
//! events ──────────→ Observed ─┴→ plan() → actions → performed outside → events
//!                        └──────→ report()
//! ```
//!
//! A turn of the loop is: [`Observed::sync`](observed::Observed::sync) with what is desired,
//! [`plan`](plan::plan), [`Observed::begin`](observed::Observed::begin) for each action, perform
//! them, and [`Observed::apply`](observed::Observed::apply) for each event that comes back.

#![deny(missing_docs)]
#![deny(clippy::wildcard_enum_match_arm)]

pub mod desired;
pub mod fence;
pub mod guard;
pub mod instance;
pub mod observed;
pub mod place;
pub mod plan;
pub mod report;
pub mod retention;
pub mod route;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
