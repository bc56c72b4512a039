//! Configuration values of applications.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::FieldErrors;
use crate::id::Name;

/// A configuration value that deployments carry as an environment variable.
///
/// Precedence: scope > dimension > environment > application > release default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterSpec {
    /// Name of the environment variable: `[A-Za-z_][A-Za-z0-9_]*`, not `PORT` or `TIDEGATE_*`.
    pub variable: String,
    /// Its value; at most 32 KiB, no NUL.
    pub value: String,
    /// What it is a value of.
    pub target: ParameterTarget,
}

/// What a parameter belongs to; exactly one kind of target.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ParameterTarget {
    /// Every scope of this application; may stand beside `environment` and `dimensions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application: Option<Name>,
    /// Every scope of this environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Name>,
    /// Every scope with these dimensions.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub dimensions: BTreeMap<String, String>,
    /// One scope; stands alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Name>,
}

impl ParameterSpec {
    /// What is wrong with it.
    pub fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        if let Err(message) = check_variable(&self.variable, &self.value) {
            errors.add("variable", message);
        }
        let target = &self.target;
        let other = target.application.is_some()
            || target.environment.is_some()
            || !target.dimensions.is_empty();
        errors.require(
            target.scope.is_some() != other,
            "target",
            "want scope alone, or any of application, environment and dimensions",
        );
        errors
    }
}

/// Checks one environment variable.
///
/// # Errors
/// Says what is wrong with the name or the value.
pub fn check_variable(variable: &str, value: &str) -> Result<(), String> {
    let mut bytes = variable.bytes();
    let first = bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !first || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') || variable.len() > 128 {
        return Err(format!(
            "\"{variable}\" is not the name of an environment variable: want a letter or _, then letters, digits and _"
        ));
    }
    if variable == "PORT" || variable.starts_with("TIDEGATE_") {
        return Err(format!(
            "\"{variable}\" is set by Tidegate itself; choose another name"
        ));
    }
    if value.len() > 32 * 1024 || value.contains('\0') {
        return Err(format!(
            "the value of {variable} must be at most 32 KiB without NUL"
        ));
    }
    Ok(())
}
