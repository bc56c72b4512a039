//! `tidegate schema`: the JSON Schema of manifests, for editors and checks.

use crate::errors::Result;
use crate::session::Session;

/// The schema, as it is generated from the types that `apply` reads; `tests/tidy` holds that.
pub const SCHEMA: &str = include_str!("../../../../packaging/schema/manifest.schema.json");

/// Prints it, whatever the form of output.
///
/// # Errors
/// The output is closed.
pub fn run(session: &Session) -> Result<()> {
    session.output.text(SCHEMA)
}
