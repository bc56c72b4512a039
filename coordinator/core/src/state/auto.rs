//! What a scope with `auto_deploy` remembers: which releases it has had, and whether it has to look.

use serde::{Deserialize, Serialize};
use tidegate_shared::id::Version;
use tidegate_shared::time::Timestamp;

/// One per scope with `auto_deploy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auto {
    /// Releases made before are none of its business.
    pub since: Timestamp,
    /// Raised with each change; what a decision rests on.
    pub revision: u64,
    /// Something changed since the last decision: releases, the scope, or rules that refused one.
    pub due: bool,
    /// The last decision left out a release that rules or a missing part refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// Versions that were deployed here since, by whomever, newest last; at most [`Auto::MOST`].
    /// None of them is deployed again by itself. One that was superseded before it got anywhere does
    /// not stand here.
    pub tried: Vec<Version>,
}

impl Auto {
    /// Versions that are remembered.
    pub const MOST: usize = 64;

    /// As of its beginning.
    pub const fn new(since: Timestamp, revision: u64) -> Self {
        Self {
            since,
            revision,
            due: true,
            refused: false,
            tried: Vec::new(),
        }
    }

    /// A version is deployed here.
    pub fn try_it(&mut self, version: &Version) {
        self.tried.retain(|known| known != version);
        self.tried.push(version.clone());
        if self.tried.len() > Self::MOST {
            self.tried.remove(0);
        }
    }
}
