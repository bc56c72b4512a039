//! The proxy as its users meet it: a process, its control socket and its listeners.

#![allow(clippy::expect_used, reason = "a failed expectation is a failed test")]

mod handover;
mod http;
mod modes;
mod process;
mod support;
mod weights;
