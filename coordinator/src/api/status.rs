//! Refusals as gRPC statuses: `google.rpc.ErrorInfo` with the stable reason, code and hint, and
//! `google.rpc.BadRequest` with field paths; where several scopes are in the way,
//! `google.rpc.PreconditionFailure` with one violation for each. Every answer that is not good goes
//! through here.

use std::collections::HashMap;

use tidegate_coordinator_core::Rejection;
use tidegate_shared::error::{Reason, Status as Kind};
use tidegate_shared::spec::{FieldError, FieldErrors};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::ca::CaError;
use crate::propose::ProposeError;
use crate::query::QueryError;

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "tidegate";

/// What a violation of a precondition is about.
const SCOPE: &str = "scope";

const fn code_of(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Aborted => Code::Aborted,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::Unavailable => Code::Unavailable,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Internal => Code::Internal,
    }
}

/// A refusal with its stable reason and one line for a person.
#[must_use]
pub fn refusal(reason: Reason, message: impl Into<String>) -> Status {
    with_fields(reason, message, &[])
}

/// A refusal that names the fields in question.
#[must_use]
pub fn with_fields(reason: Reason, message: impl Into<String>, fields: &[FieldError]) -> Status {
    let details = details(reason, fields);
    Status::with_error_details(code_of(reason.status()), message, details)
}

fn details(reason: Reason, fields: &[FieldError]) -> ErrorDetails {
    let mut details = ErrorDetails::with_error_info(
        reason.as_str(),
        DOMAIN,
        HashMap::from([
            ("code".to_owned(), reason.code().to_owned()),
            ("hint".to_owned(), reason.hint().to_owned()),
        ]),
    );
    for field in fields {
        details.add_bad_request_violation(&field.field, &field.message);
    }
    details
}

/// One wrong field.
#[must_use]
pub fn wrong_field(field: &str, message: impl Into<String>) -> Status {
    let message = message.into();
    let errors = [FieldError {
        field: field.to_owned(),
        message: message.clone(),
    }];
    with_fields(Reason::InvalidField, format!("{field}: {message}"), &errors)
}

/// Wrong fields of an object.
#[must_use]
pub fn wrong_fields(what: &str, errors: FieldErrors) -> Status {
    from_rejection(&Rejection::fields(what, errors))
}

/// A refusal of a part of a request: message and fields with the part in front.
#[must_use]
pub fn within(place: &str, status: &Status) -> Status {
    let mut details = status.get_error_details();
    if let Some(found) = details.bad_request().cloned() {
        let fields = found.field_violations.into_iter().map(|violation| {
            let field = format!("{place}.{}", violation.field);
            tonic_types::FieldViolation::new(field, violation.description)
        });
        details.set_bad_request(fields.collect::<Vec<_>>());
    }
    let message = format!("{place}: {}", status.message());
    Status::with_error_details(status.code(), message, details)
}

/// The answer of the state machine.
#[must_use]
pub fn from_rejection(rejection: &Rejection) -> Status {
    let reason = rejection.reason;
    let mut details = details(reason, &rejection.fields);
    for (scope, why) in &rejection.scopes {
        details.add_precondition_failure_violation(SCOPE, scope.as_str(), why);
    }
    Status::with_error_details(code_of(reason.status()), &rejection.message, details)
}

/// A command that found no answer.
#[must_use]
pub fn from_propose(error: &ProposeError) -> Status {
    refusal(error.reason(), error.to_string())
}

/// A read that found no answer.
#[must_use]
pub fn from_query(error: &QueryError) -> Status {
    refusal(error.reason(), error.to_string())
}

/// A certificate that was not made.
#[must_use]
pub fn from_ca(error: &CaError) -> Status {
    match error {
        CaError::BadCsr(_) => refusal(Reason::BadCsr, error.to_string()),
        CaError::WrongClusterKey(_)
        | CaError::Library(_)
        | CaError::Record(_)
        | CaError::Entropy(_)
        | CaError::File { .. }
        | CaError::KeyFile { .. } => internal(error),
    }
}

/// A bug of ours, or a machine that does not work; logged where it happens.
#[must_use]
pub fn internal(error: &dyn std::fmt::Display) -> Status {
    tracing::error!(%error, "an internal error was answered");
    refusal(Reason::Internal, format!("internal error: {error}"))
}

/// The stable reason in a status, if it carries one.
#[must_use]
pub fn reason_of(status: &Status) -> Option<String> {
    status
        .get_details_error_info()
        .filter(|info| info.domain == DOMAIN)
        .map(|info| info.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_carry_reason_code_hint_and_fields() {
        let status = wrong_field("name", "\"A\" is not a name");
        assert_eq!(status.code(), Code::InvalidArgument);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "INVALID_FIELD");
        assert_eq!(info.metadata["code"], "TG-1001");
        assert!(!info.metadata["hint"].is_empty());
        let bad = status.get_details_bad_request().unwrap();
        assert_eq!(bad.field_violations[0].field, "name");
        assert_eq!(reason_of(&status).as_deref(), Some("INVALID_FIELD"));
        let part = within("objects[2]", &status);
        assert_eq!(part.code(), Code::InvalidArgument);
        assert_eq!(part.message(), "objects[2]: name: \"A\" is not a name");
        let bad = part.get_details_bad_request().unwrap();
        assert_eq!(bad.field_violations[0].field, "objects[2].name");
        assert_eq!(reason_of(&part).as_deref(), Some("INVALID_FIELD"));
    }

    #[test]
    fn scopes_in_the_way_stand_one_by_one_beside_the_message() {
        let name = tidegate_shared::id::Name::new("web-eu").unwrap();
        let why = "is PENDING".to_owned();
        let rejection = Rejection::of_scopes(Reason::Conflict, "1 is in the way", &[(name, why)]);
        let status = from_rejection(&rejection);
        assert_eq!(status.message(), "1 is in the way");
        let found = status.get_details_precondition_failure().unwrap();
        let one = &found.violations[0];
        assert_eq!(
            (&*one.r#type, &*one.subject, &*one.description),
            ("scope", "web-eu", "is PENDING")
        );
        assert!(status.get_details_bad_request().is_none());
    }
}
