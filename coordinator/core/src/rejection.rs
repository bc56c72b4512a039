//! Typed refusals: replicated outcomes of commands, not an error path.

use serde::{Deserialize, Serialize};
use tidegate_shared::error::Reason;
use tidegate_shared::spec::{FieldError, FieldErrors};

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// Stable reason; gives code, status and hint.
    pub reason: Reason,
    /// One line for a person: what is wrong and where.
    pub message: String,
    /// The fields in question, if the input itself is wrong.
    pub fields: Vec<FieldError>,
}

impl Rejection {
    /// A refusal that concerns no single field.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            fields: Vec::new(),
        }
    }

    /// A refusal of wrong fields.
    pub fn fields(what: &str, errors: FieldErrors) -> Self {
        let list = errors
            .0
            .iter()
            .map(|error| format!("{}: {}", error.field, error.message))
            .collect::<Vec<_>>()
            .join("; ");
        Self {
            reason: Reason::InvalidField,
            message: format!("{what}: {list}"),
            fields: errors.0,
        }
    }
}
