//! What an approval is bound to.

use serde::Serialize;
use tidegate_shared::digest::Digest;
use tidegate_shared::spec::Strategy;

use crate::event::canonical_digest;
use crate::state::{Origin, ResolvedParameter, Table};

/// Digest over the release, the resolved parameters and the strategy snapshot: a grant counts only
/// for what it was given for.
pub fn binding(origin: &Origin) -> Digest {
    #[derive(Serialize)]
    struct Bound<'a> {
        release: Digest,
        parameters: &'a Table<String, ResolvedParameter>,
        strategy: &'a Strategy,
    }
    canonical_digest(&Bound {
        release: origin.release_digest,
        parameters: &origin.parameters,
        strategy: &origin.strategy,
    })
}
