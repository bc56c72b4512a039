//! Checks between steps: what is asked of whom, what measurements say, and what they come to.
//!
//! Agents measure on their instances, the leading coordinator everything else; both hand in plain
//! samples. Conditions are evaluated here, by the leader, as each sample comes in, and only a
//! running tally is kept ([`Lanes`]): measurements are not replicated. What a check came to is
//! ([`CheckRecord`](crate::state::CheckRecord)), before anything follows from it. So a new leader
//! makes running checks anew and repeats none that is settled
//! (`docs/decisions/0014-checks-between-steps.md`).

mod conditions;
mod lanes;
mod look;
mod member;
#[cfg(test)]
mod tests;
mod wish;
mod written;

pub use conditions::classify;
pub use lanes::{Lanes, Maker};
pub use look::{CheckView, ViewState};
pub(crate) use look::{look, makers};
pub use member::{Verified, verified};
pub use wish::{LeaderCheck, LeaderKind, leader_checks, wishes};
pub use written::{check, check_rollout};
