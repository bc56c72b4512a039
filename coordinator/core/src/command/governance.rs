//! Commands of people over rules: skips and freezes.

use serde::{Deserialize, Serialize};
use tidegate_shared::id::{Name, Version};
use tidegate_shared::time::Timestamp;

/// See [`super::Command::CreateSkip`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSkip {
    /// A policy (`production`), its rules of a kind (`production/windows`) or one of them
    /// (`production/windows[1]`).
    pub rule: String,
    /// Only for this application.
    pub application: Option<Name>,
    /// Only for this version, which needs an application.
    pub version: Option<Version>,
    /// Only for this scope.
    pub scope: Option<Name>,
    /// Why; must be given.
    pub reason: String,
    /// It does not count from here on.
    pub expires_at: Option<Timestamp>,
}

/// See [`super::Command::Freeze`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateFreeze {
    /// CEL, checked by the front; empty: everything.
    pub selector: String,
    /// Why; must be given.
    pub reason: String,
    /// It ends by itself; at most 366 days ahead.
    pub until: Timestamp,
    /// Deployments under way go on.
    pub let_run: bool,
}

/// Which one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Its name.
    pub name: Name,
}
