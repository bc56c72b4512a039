//! What a person reads when something is wrong: one line of what, where it is, the next step and
//! the stable code.
//!
//! ```text
//! error: the port of scope "web" is out of range
//!   --> web.yaml:7:9: spec.port: 70000 is not a port: want 1 to 65535, or none
//! hint: correct the named field and send it again
//! code: TG-1001
//! ```
//!
//! Refusals of the cluster carry their code and hint in `google.rpc.ErrorInfo`, the fields in
//! `google.rpc.BadRequest`, the scopes in the way in `google.rpc.PreconditionFailure`; everything else
//! is put into the same form here.

use std::fmt;

use tidegate_shared::error::Reason;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::output::printable;
use crate::time;

/// What every command returns.
pub type Result<T> = std::result::Result<T, Failure>;

/// Exit status of a wrong command line.
pub const EXIT_USAGE: u8 = 2;
/// Exit status of an ordinary failure.
pub const EXIT_FAILURE: u8 = 1;
/// Exit status when the reader of the output went away, as a shell reports SIGPIPE.
const EXIT_PIPE: u8 = 141;

/// A failure that is told to a person and ends the program.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(Box<Report>);

#[derive(Clone, PartialEq, Eq)]
struct Report {
    message: String,
    places: Vec<String>,
    hint: String,
    reason: String,
    code: String,
    exit: u8,
    quiet: bool,
    retry: bool,
}

impl Failure {
    /// A failure with the hint and code of its reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self(Box::new(Report {
            message: message.into(),
            places: Vec::new(),
            hint: reason.hint().to_owned(),
            reason: reason.as_str().to_owned(),
            code: reason.code().to_owned(),
            exit: EXIT_FAILURE,
            quiet: false,
            retry: false,
        }))
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Reason::InvalidRequest, message).exit(EXIT_USAGE)
    }

    /// The reader of the output went away: nothing more to say.
    fn broken_pipe() -> Self {
        let mut failure = Self::new(Reason::Internal, "the output was closed").exit(EXIT_PIPE);
        failure.0.quiet = true;
        failure
    }

    /// An output that cannot be written.
    pub fn output(error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::broken_pipe();
        }
        Self::new(
            Reason::Internal,
            format!("the output cannot be written: {error}"),
        )
        .hint("see whether the disk behind the output is full")
    }

    /// A file or folder that cannot be used as wanted (`read`, `written` …).
    pub fn file(
        reason: Reason,
        path: &std::path::Path,
        verb: &str,
        error: &std::io::Error,
    ) -> Self {
        let cause = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
            _ => error.to_string(),
        };
        Self::new(
            reason,
            format!("{} cannot be {verb}: {cause}", path.display()),
        )
        .hint("check the path and its permissions")
    }

    /// Adds where it is: `file:line:column: field: message`.
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.0.places.push(place.into());
        self
    }

    /// Says where the fields that it names stand, as far as `place` knows.
    #[must_use]
    pub fn locate(mut self, place: impl Fn(&str) -> Option<String>) -> Self {
        for told in &mut self.0.places {
            if let Some((field, message)) = told.split_once(": ")
                && let Some(found) = place(field)
            {
                *told = format!("{found}: {message}");
            }
        }
        self
    }

    /// A refusal of one among several objects that were sent together.
    pub fn refused(refusal: tidegate_proto::control::v1::apply_result::Refusal) -> Self {
        let mut failure = Self::new(Reason::Internal, refusal.message);
        failure.0.reason = refusal.reason;
        failure.0.code = refusal.code;
        failure.0.hint = refusal.hint;
        let fields = refusal.fields.into_iter();
        failure.0.places = fields
            .map(|wrong| format!("{}: {}", wrong.field, wrong.message))
            .collect();
        failure
    }

    /// Takes the place of an object in a request, such as `objects[3]`, out of what is told.
    #[must_use]
    pub fn outside(mut self, place: &str) -> Self {
        let report = &mut self.0;
        if let Some(rest) = report.message.strip_prefix(&format!("{place}: ")) {
            report.message = rest.to_owned();
        }
        for told in &mut report.places {
            if let Some(rest) = told.strip_prefix(&format!("{place}.")) {
                *told = rest.strip_prefix("spec.").unwrap_or(rest).to_owned();
            }
        }
        self
    }

    /// Where it is, one place in each line.
    pub fn places(&self) -> &[String] {
        &self.0.places
    }

    /// Replaces the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = hint.into();
        self
    }

    /// Replaces the exit status.
    pub fn exit(mut self, exit: u8) -> Self {
        self.0.exit = exit;
        self
    }

    /// Exit status of the program.
    pub fn exit_status(&self) -> u8 {
        self.0.exit
    }

    /// Whether nothing is to be printed.
    pub fn is_quiet(&self) -> bool {
        self.0.quiet
    }

    /// Whether the same request may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        self.0.retry
    }

    /// Whether it is this reason.
    pub fn is(&self, reason: Reason) -> bool {
        self.0.reason == reason.as_str()
    }

    /// What is wrong, in one line.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// `TG-####`.
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// A certificate that was refused, a name that does not fit: trying again does not help.
    pub fn is_about_credentials(&self) -> bool {
        self.is(Reason::Credentials)
            || self.is(Reason::WrongServer)
            || self.is(Reason::Unauthenticated)
    }

    /// The whole text, with or without colours.
    pub fn render(&self, color: bool) -> String {
        let report = &self.0;
        let paint = |code: &str, text: &str| {
            if color {
                format!("\u{1b}[{code}m{text}\u{1b}[0m")
            } else {
                text.to_owned()
            }
        };
        let mut text = format!("{} {}\n", paint("1;31", "error:"), report.message);
        for place in &report.places {
            text.push_str(&format!("  {} {place}\n", paint("34", "-->")));
        }
        if !report.hint.is_empty() {
            text.push_str(&format!("{} {}\n", paint("36", "hint:"), report.hint));
        }
        text.push_str(&format!("{} {}\n", paint("2", "code:"), report.code));
        text
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let mut failure = match details.error_info() {
            Some(info) => {
                let known = Reason::ALL
                    .iter()
                    .find(|reason| reason.as_str() == info.reason);
                let told = |key: &str| info.metadata.get(key).filter(|text| !text.is_empty());
                let mut failure = Self::new(known.copied().unwrap_or(Reason::Internal), "");
                failure.0.reason.clone_from(&info.reason);
                if let Some(code) = told("code") {
                    failure.0.code.clone_from(code);
                }
                if let Some(hint) = told("hint") {
                    failure.0.hint.clone_from(hint);
                }
                failure
            }
            None => Self::new(reason_of(status.code()), ""),
        };
        failure.0.message = match (status.code(), status.message()) {
            (_, "") => format!("the coordinator answered {:?}", status.code()),
            (Code::Unimplemented, _) => {
                "the coordinator does not know this request: it runs another version".to_owned()
            }
            (_, message) => message.to_owned(),
        };
        if let Some(bad) = details.bad_request() {
            for violation in &bad.field_violations {
                failure
                    .0
                    .places
                    .push(format!("{}: {}", violation.field, violation.description));
            }
        }
        if let Some(unmet) = details.precondition_failure() {
            let now = time::now_ms();
            failure.0.places.extend(unmet.violations.iter().map(|one| {
                let told = format!("{}: {}", one.subject, one.description);
                printable(&time::told(&told, now))
            }));
        }
        let transient = matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown
        );
        failure.0.retry =
            transient || failure.is(Reason::OutcomeUnknown) || failure.is(Reason::QueueFull);
        failure
    }
}

const fn reason_of(code: Code) -> Reason {
    match code {
        Code::InvalidArgument | Code::OutOfRange => Reason::InvalidRequest,
        Code::NotFound => Reason::NotFound,
        Code::AlreadyExists => Reason::AlreadyExists,
        Code::FailedPrecondition => Reason::WrongStatus,
        Code::Aborted => Reason::Stale,
        Code::Unauthenticated => Reason::Unauthenticated,
        Code::PermissionDenied => Reason::PermissionDenied,
        Code::ResourceExhausted => Reason::TooLarge,
        Code::Unimplemented => Reason::NotSupported,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            Reason::Unreachable
        }
        Code::Ok | Code::Internal | Code::DataLoss => Reason::Internal,
    }
}

/// What clap found wrong, in our form. `None`: help or version was asked for, print it as it is.
pub fn of_clap(error: &clap::Error) -> Option<Failure> {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::MissingSubcommand => return None,
        _ => {}
    }
    let meant = meant(error);
    let text = error.render().to_string();
    let mut message = Vec::new();
    let mut tip = None;
    let mut usage = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(found) = line.strip_prefix("tip: ") {
            tip.get_or_insert_with(|| found.to_owned());
        } else if let Some(found) = line.strip_prefix("Usage: ") {
            usage.get_or_insert_with(|| found.to_owned());
        } else if line.starts_with("For more information") {
            break;
        } else if !line.is_empty() && usage.is_none() {
            message.push(line.strip_prefix("error: ").unwrap_or(line).to_owned());
        }
    }
    let command = usage.map_or_else(
        || "tidegate".to_owned(),
        |usage| {
            usage
                .split_whitespace()
                .take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'))
                .filter(|word| !word.starts_with('-'))
                .collect::<Vec<_>>()
                .join(" ")
        },
    );
    let hint = match (meant, tip) {
        (Some(meant), _) => format!("did you mean '{meant}'? see `{command} --help`"),
        (None, Some(tip)) => format!("{tip}; see `{command} --help`"),
        (None, None) => format!("see `{command} --help`"),
    };
    Some(Failure::usage(message.join(" ")).hint(hint))
}

/// The one word of clap's suggestions that is nearest to what was typed.
fn meant(error: &clap::Error) -> Option<String> {
    use clap::error::{ContextKind, ContextValue};
    let words = |kind: ContextKind| match error.get(kind) {
        Some(ContextValue::String(word)) => vec![word.clone()],
        Some(ContextValue::Strings(words)) => words.clone(),
        _ => Vec::new(),
    };
    [
        (
            ContextKind::InvalidSubcommand,
            ContextKind::SuggestedSubcommand,
        ),
        (ContextKind::InvalidArg, ContextKind::SuggestedArg),
        (ContextKind::InvalidValue, ContextKind::SuggestedValue),
    ]
    .into_iter()
    .find_map(|(typed, suggested)| {
        let typed = words(typed).into_iter().next()?;
        let suggested = words(suggested);
        let near = crate::names::nearest(&typed, suggested.iter().map(String::as_str));
        near.map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tonic_types::{ErrorDetails, FieldViolation};

    #[test]
    fn refusals_show_what_where_next_and_code() {
        let mut details = ErrorDetails::with_error_info(
            "INVALID_FIELD",
            "tidegate",
            HashMap::from([
                ("code".to_owned(), "TG-1001".to_owned()),
                ("hint".to_owned(), "correct it".to_owned()),
            ]),
        );
        details.set_bad_request(vec![FieldViolation::new("spec.port", "want 1 to 65535")]);
        let status =
            Status::with_error_details(Code::InvalidArgument, "the scope is wrong", details);
        let failure = Failure::from(status);
        assert_eq!(
            failure.render(false),
            "error: the scope is wrong\n  --> spec.port: want 1 to 65535\nhint: correct it\ncode: TG-1001\n"
        );
        assert!(!failure.is_transient());
    }

    #[test]
    fn scopes_in_the_way_have_a_line_each() {
        let mut details = ErrorDetails::with_error_info(
            "GROUP_NOT_RUNNING",
            "tidegate",
            HashMap::from([
                ("code".to_owned(), "TG-1551".to_owned()),
                ("hint".to_owned(), "roll it back".to_owned()),
            ]),
        );
        for (scope, why) in [("a", "is PENDING"), ("b", "is FINALIZED")] {
            details.add_precondition_failure_violation("scope", scope, why);
        }
        let message = "group spring is cancelled only while every member is RUNNING";
        let status = Status::with_error_details(Code::FailedPrecondition, message, details);
        assert_eq!(
            Failure::from(status).render(false),
            format!(
                "error: {message}\n  --> a: is PENDING\n  --> b: is FINALIZED\nhint: roll it back\ncode: TG-1551\n"
            )
        );
    }

    #[test]
    fn bare_statuses_get_a_code_too() {
        let failure = Failure::from(Status::unavailable("nobody home"));
        assert_eq!(failure.code(), "TG-1409");
        assert!(failure.is_transient());
        let failure = Failure::from(Status::unimplemented(""));
        assert_eq!(failure.code(), "TG-1005");
    }

    #[test]
    fn colours_come_only_when_asked_for() {
        let failure = Failure::usage("x");
        assert!(!failure.render(false).contains('\u{1b}'));
        assert!(failure.render(true).contains("\u{1b}[1;31merror:"));
    }
}
