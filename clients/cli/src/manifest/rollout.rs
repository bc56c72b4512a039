//! How a group rolls out, read from a file of its own: what flags cannot say well, such as waves.

use std::path::Path;

use tidegate_shared::spec::RolloutSpec;

use super::part::Part;
use crate::errors::Result;

/// Reads a file of `kind`, `interval`, `waves`, `gate`, `verification`, `budget`, `order`, `pinned`.
/// Whether it is sound is asked once flags have been put over it.
///
/// # Errors
/// It cannot be read, or where it is no rollout.
pub fn load(path: &Path) -> Result<Part<RolloutSpec>> {
    Part::load(
        path,
        "does not say how a group rolls out",
        "it has kind, and may have interval, waves, gate, verification, budget, order and pinned; see docs/guides/groups.md",
    )
}
