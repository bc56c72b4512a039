//! What policies need to be replicated beside their specs: how releases fared in each scope, skips
//! and freezes.

use serde::{Deserialize, Serialize};
use tidegate_shared::id::{Name, Version};
use tidegate_shared::time::Timestamp;

use super::Meta;

/// How releases fared in a scope.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Track {
    /// The last release that entered `CREATING`; returns do not count.
    pub started: Option<Started>,
    /// Releases that were finalized, newest last; at most [`Track::MOST`].
    pub finished: Vec<Finished>,
}

/// A release entered `CREATING`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Started {
    /// Which.
    pub version: Version,
    /// When.
    pub at: Timestamp,
}

/// A release was finalized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finished {
    /// Which.
    pub version: Version,
    /// When; the first time since it was last taken back.
    pub at: Timestamp,
    /// With evidence.
    pub verified: bool,
    /// When people or rules went back from it.
    pub rolled_back_at: Option<Timestamp>,
}

impl Track {
    /// Releases that a scope remembers.
    pub const MOST: usize = 32;

    /// A release was finalized. A success is sticky: the time of the first one stays.
    pub fn finalized(&mut self, version: &Version, at: Timestamp, verified: bool) {
        let known = self.finished.iter_mut();
        let mut known = known.filter(|f| f.version == *version && f.rolled_back_at.is_none());
        if let Some(found) = known.next() {
            found.verified |= verified;
            return;
        }
        self.finished.retain(|f| f.version != *version);
        self.finished.push(Finished {
            version: version.clone(),
            at,
            verified,
            rolled_back_at: None,
        });
        if self.finished.len() > Self::MOST {
            self.finished.remove(0);
        }
    }

    /// Somebody went back from a release.
    pub fn went_back(&mut self, from: &Version, at: Timestamp) {
        for finished in &mut self.finished {
            if finished.version == *from && finished.rolled_back_at.is_none() {
                finished.rolled_back_at = Some(at);
            }
        }
    }
}

/// A person lets a rule be passed over (product.md §5.9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skip {
    /// Who, and when.
    pub meta: Meta,
    /// A policy (`production`), its rules of a kind (`production/windows`) or one of them
    /// (`production/windows[1]`).
    pub rule: String,
    /// Only for this application.
    pub application: Option<Name>,
    /// Only for this version.
    pub version: Option<Version>,
    /// Only for this scope.
    pub scope: Option<Name>,
    /// Why.
    pub reason: String,
    /// It does not count from here on.
    pub expires_at: Option<Timestamp>,
}

/// Nothing new starts for a while (product.md §5.10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// Who, and when.
    pub meta: Meta,
    /// CEL; empty: everything.
    pub selector: String,
    /// Why.
    pub reason: String,
    /// It ends by itself.
    pub until: Timestamp,
    /// Deployments under way go on.
    pub let_run: bool,
}
