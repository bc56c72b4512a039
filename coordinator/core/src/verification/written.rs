//! Checks the conditions of checks when they are written. Asked by the API front, never by `apply`:
//! other versions of the library must not make replicas differ.

use tidegate_shared::spec::{FieldErrors, RolloutSpec, VerificationSpec};

use super::conditions::subject;
use crate::policy::expression::Expression;

/// What is wrong with the conditions of a rollout's checks.
pub fn check_rollout(spec: &RolloutSpec) -> FieldErrors {
    check(&spec.verification)
}

/// What is wrong with the conditions, each with its place in the text.
pub fn check(checks: &[VerificationSpec]) -> FieldErrors {
    let mut errors = FieldErrors::default();
    for (position, spec) in checks.iter().enumerate() {
        let Some(subject) = subject(spec) else {
            // Its shape is wrong, which `validate` says.
            continue;
        };
        for (field, text) in [("success", &spec.success), ("failure", &spec.failure)] {
            if let Err(mistake) = Expression::compile(text, subject) {
                let field = format!("verification[{position}].{field}");
                errors.add(field, mistake.to_string());
            }
        }
    }
    errors
}
