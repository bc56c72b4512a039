//! Traffic providers: who is told where a scope's requests go, behind one small trait.
//!
//! A provider is given complete tables of absolute weights and answers with what the data plane
//! acknowledges to hold; it never decides a weight. Each provider is one file; all pass the conformance
//! suite. The agent's reconcile loop calls them.

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod proxy;
mod proxy_unit;

use std::pin::Pin;

use crate::proxy::table::{Held, Table};

/// A future of a provider.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, TrafficError>> + Send + 'a>>;

/// A data plane that routes by weight.
pub trait TrafficProvider: Send + Sync {
    /// What is held and what was counted.
    fn observe(&self) -> Answer<'_, Held>;

    /// Makes the data plane hold exactly `table` and answers with what it holds now, acknowledged by it.
    /// Doing so twice changes nothing. A listener that cannot be had is no error of the call: its scope
    /// says so in `problem`, holds no weight, and the other scopes go on.
    fn converge(&self, table: Table) -> Answer<'_, Held>;
}

/// Why a provider has no answer. Nothing was changed on `Refused`; on the others that is not known, and
/// the same call may be made again.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    /// The data plane cannot be reached or started.
    #[error("the {provider} cannot be reached: {reason}")]
    Unreachable {
        /// The provider's name.
        provider: &'static str,
        /// What went wrong.
        reason: String,
    },
    /// The table is not valid.
    #[error("the {provider} refuses the table: {reason}")]
    Refused {
        /// The provider's name.
        provider: &'static str,
        /// What is wrong and where.
        reason: String,
    },
    /// The data plane answered with something else than was asked for.
    #[error("the {provider} gave an answer that does not fit: {reason}")]
    Protocol {
        /// The provider's name.
        provider: &'static str,
        /// The answer, shortened.
        reason: String,
    },
}

#[cfg(test)]
mod tests;
