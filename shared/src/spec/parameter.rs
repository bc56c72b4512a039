//! Configuration values of applications.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{FieldErrors, FileSpec};
use crate::id::Name;
use crate::secret::{Sealed, WITHHELD};

/// Longest value: 32 KiB.
pub const MAX_VALUE_BYTES: usize = 32 * 1024;

/// A configuration value that deployments carry as an environment variable or a file.
///
/// Precedence: scope > dimension > environment > application > release default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ParameterSpec {
    /// Name of the environment variable: `[A-Za-z_][A-Za-z0-9_]*`, not `PORT` or `TIDEGATE_*`. Of
    /// a parameter that is a file the variable holds the file's path.
    pub variable: String,
    /// Whether its value may be seen.
    #[serde(default, skip_serializing_if = "ParameterKind::is_plain")]
    pub kind: ParameterKind,
    /// Its value; at most 32 KiB, no NUL. A secret's stands here never: absent or `(secret)` means
    /// "as it is".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where the command line reads the value from, instead of `value`. The cluster never sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueFrom>,
    /// A secret's value, encrypted under the cluster key; set by the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(skip))]
    pub sealed: Option<Sealed>,
    /// The value is a file; none: an environment variable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSpec>,
    /// Which value a return to an earlier release takes; only secrets may say `latest`.
    #[serde(default, skip_serializing_if = "OnRollback::is_keep")]
    pub on_rollback: OnRollback,
    /// What it is a value of.
    pub target: ParameterTarget,
}

/// Whether a parameter's value may be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ParameterKind {
    /// By everybody who may read.
    #[default]
    Plain,
    /// By the application alone.
    Secret,
}

impl ParameterKind {
    const fn is_plain(&self) -> bool {
        matches!(self, Self::Plain)
    }
}

/// Which value a return to an earlier release takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnRollback {
    /// The one that the release ran with.
    #[default]
    Keep,
    /// The present one: for credentials whose old value is not valid any more.
    Latest,
}

impl OnRollback {
    const fn is_keep(&self) -> bool {
        matches!(self, Self::Keep)
    }
}

/// Where the command line reads a value from; exactly one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ValueFrom {
    /// An environment variable of who applies the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// A file; a relative path is beside the manifest. One line end at its end is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// What a parameter belongs to; exactly one kind of target.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
        if let Err(message) = check_name(&self.variable) {
            errors.add("variable", message);
        }
        self.validate_value(&mut errors);
        if let Some(file) = &self.file {
            errors.nest("file", file.validate(self.kind == ParameterKind::Secret));
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

    fn validate_value(&self, errors: &mut FieldErrors) {
        if let Some(from) = &self.value_from {
            errors.require(
                from.env.is_some() != from.file.is_some(),
                "value_from",
                "want either env or file",
            );
            errors.require(
                self.value.is_none(),
                "value",
                "stands beside value_from; want one of them",
            );
        }
        match (self.kind, &self.value) {
            (ParameterKind::Plain, None) => errors.require(
                self.value_from.is_some(),
                "value",
                "is missing; want value, or value_from with env or file",
            ),
            (ParameterKind::Plain, Some(value)) => {
                if let Err(message) = check_value(&self.variable, value) {
                    errors.add("value", message);
                }
            }
            (ParameterKind::Secret, None) => {}
            (ParameterKind::Secret, Some(value)) => errors.require(
                value == WITHHELD,
                "value",
                "a secret's value is not written here; want value_from with env or file, or set it with `tidegate parameter update NAME --secret`",
            ),
        }
        errors.require(
            self.kind == ParameterKind::Secret || self.on_rollback == OnRollback::Keep,
            "on_rollback",
            "latest is for secrets: a plain value goes back with its release",
        );
    }
}

/// Checks one environment variable.
///
/// # Errors
/// Says what is wrong with the name or the value.
pub fn check_variable(variable: &str, value: &str) -> Result<(), String> {
    check_name(variable)?;
    check_value(variable, value)
}

fn check_name(variable: &str) -> Result<(), String> {
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
    Ok(())
}

/// Checks a value. The message never holds it.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_value(variable: &str, value: &str) -> Result<(), String> {
    if value.len() > MAX_VALUE_BYTES || value.contains('\0') {
        return Err(format!(
            "the value of {variable} must be at most 32 KiB without NUL"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(json: &str) -> Vec<String> {
        let spec: ParameterSpec = serde_json::from_str(json).unwrap();
        let errors = spec.validate().0.into_iter();
        errors.map(|e| e.field).collect()
    }

    #[test]
    fn a_secrets_value_is_refused_in_a_spec() {
        let of = |rest: &str| {
            errors(&format!(
                r#"{{"variable": "A", "target": {{"application": "web"}}, {rest}}}"#
            ))
        };
        assert_eq!(of(r#""kind": "secret", "value": "hunter2""#), ["value"]);
        assert_eq!(of(r#""kind": "secret", "value": "(secret)""#), [""; 0]);
        assert_eq!(of(r#""kind": "secret""#), [""; 0]);
        assert_eq!(
            of(r#""kind": "secret", "value_from": {"env": "A"}"#),
            [""; 0]
        );
        assert_eq!(
            of(r#""value_from": {"env": "A", "file": "b"}"#),
            ["value_from"]
        );
        assert_eq!(of(r#""value_from": {}"#), ["value_from"]);
        assert_eq!(of(r#""value_from": {"env": "A"}, "value": "x""#), ["value"]);
        assert_eq!(of(r#""kind": "plain""#), ["value"]);
        assert_eq!(
            of(r#""value": "x", "on_rollback": "latest""#),
            ["on_rollback"]
        );
        assert_eq!(
            of(r#""value": "x", "file": {"path": "../x"}"#),
            ["file.path"]
        );
    }

    #[test]
    fn an_old_spec_reads_and_writes_as_before() {
        let old = r#"{"variable":"A","value":"","target":{"scope":"s"}}"#;
        let spec: ParameterSpec = serde_json::from_str(old).unwrap();
        assert!(spec.validate().0.is_empty());
        assert_eq!(serde_json::to_string(&spec).unwrap(), old);
    }
}
