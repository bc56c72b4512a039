//! The vocabulary that coordinators, agents and clients share: identifiers, time as values, specs
//! with their checks, digests, error codes, and the kernel that judges versions.
//!
//! Pure: no clock, no randomness, no IO. Depends on nothing of ours.

#![deny(missing_docs)]

pub mod archive;
pub mod assignment;
pub mod audit;
pub mod cbor;
pub mod decimal;
pub mod digest;
pub mod error;
pub mod health;
pub mod id;
pub mod measurement;
pub mod secret;
pub mod selector;
pub mod spec;
mod text;
pub mod time;
pub mod token;
pub mod verdict;
pub mod weight;
