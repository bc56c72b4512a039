//! Typed refusals: replicated outcomes of commands, not an error path.

use serde::{Deserialize, Serialize};
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::spec::{FieldError, FieldErrors};

/// Scopes that a refusal, or a line of the audit log, names one by one: a group has thousands.
pub const MOST_NAMED: usize = 20;

/// Why a command changed nothing. Displayed it is one line, with all that it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{named}", named = named(.scopes))]
pub struct Rejection {
    /// Stable reason; gives code, status and hint.
    pub reason: Reason,
    /// One line for a person: what is wrong and where.
    pub message: String,
    /// The fields in question, if the input itself is wrong.
    pub fields: Vec<FieldError>,
    /// The scopes in the way, each with the reason, if it is about several: at most [`MOST_NAMED`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<(Name, String)>,
}

/// What follows the message where everything stands in one line.
fn named(scopes: &[(Name, String)]) -> String {
    let told = scopes.iter().map(|(scope, why)| format!("{scope}: {why}"));
    match told.collect::<Vec<_>>().join("; ") {
        none if none.is_empty() => none,
        list => format!(": {list}"),
    }
}

impl Rejection {
    /// A refusal that concerns no single field.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            fields: Vec::new(),
            scopes: Vec::new(),
        }
    }

    /// A refusal because of scopes, each with its reason; of very many the first ones are kept.
    pub fn of_scopes(
        reason: Reason,
        message: impl Into<String>,
        scopes: &[(Name, String)],
    ) -> Self {
        let message = message.into();
        let message = match scopes.len() {
            all if all > MOST_NAMED => format!("{message} (the first {MOST_NAMED} of {all})"),
            _ => message,
        };
        Self {
            scopes: scopes.iter().take(MOST_NAMED).cloned().collect(),
            ..Self::new(reason, message)
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
            scopes: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_counted_kept_in_bounds_and_told_in_one_line() {
        let scopes = |count: usize| -> Vec<(Name, String)> {
            let names = (0..count).map(|n| Name::new(format!("s{n}")).unwrap());
            names.map(|name| (name, "is PENDING".to_owned())).collect()
        };
        let of = |count| Rejection::of_scopes(Reason::Conflict, "in the way", &scopes(count));
        assert_eq!(of(0).to_string(), "in the way");
        assert_eq!(
            of(2).to_string(),
            "in the way: s0: is PENDING; s1: is PENDING"
        );
        assert_eq!(of(2).message, "in the way");
        let many = of(MOST_NAMED + 5);
        assert_eq!(many.scopes.len(), MOST_NAMED);
        assert_eq!(many.message, "in the way (the first 20 of 25)");
    }

    #[test]
    fn what_was_remembered_before_scopes_were_named_is_read() {
        let old = r#"{"reason":"CONFLICT","message":"busy","fields":[]}"#;
        let read: Rejection = serde_json::from_str(old).unwrap();
        assert_eq!(read, Rejection::new(Reason::Conflict, "busy"));
        assert_eq!(serde_json::to_string(&read).unwrap(), old);
    }
}
