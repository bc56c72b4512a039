//! Checks of rollouts on the wire ⇄ in values; a part of [`convert`](super::convert).

use tidegate_proto::agent::v1 as wire;
use tidegate_shared::id::Name;
use tidegate_shared::measurement::{CheckKind, CheckWish, ObservedCheck, Sample};
use tidegate_shared::spec::{
    CommandMeasurement, CommandPlace, HttpMeasurement, HttpMethod, MOST_CHECKS, VerificationSpec,
};
use tidegate_shared::time::{Span, Timestamp};

use super::convert::{Malformed, wrong};

/// The checks of an assignment.
pub(super) fn wishes(from: Vec<wire::Check>) -> Result<Vec<CheckWish>, Malformed> {
    if from.len() > MOST_CHECKS {
        return Err(wrong("checks", format!("more than {MOST_CHECKS}")));
    }
    from.into_iter().map(wish).collect()
}

fn wish(from: wire::Check) -> Result<CheckWish, Malformed> {
    use wire::check::Kind;
    let what = match from.kind {
        Some(Kind::Http(http)) => CheckKind::Http(HttpMeasurement {
            path: Some(http.path),
            url: None,
            method: match http.method.as_str() {
                "" => HttpMethod::default(),
                word => HttpMethod::parse(word)
                    .ok_or_else(|| wrong("checks.http.method", "is not known to this agent"))?,
            },
            headers: http.headers.into_iter().collect(),
            timeout: Span::from_millis(http.timeout_ms),
            status: None,
        }),
        Some(Kind::Command(command)) => CheckKind::Command(CommandMeasurement {
            command: command.command,
            args: command.args,
            timeout: Span::from_millis(command.timeout_ms),
            on: CommandPlace::Agent,
        }),
        None => return Err(wrong("checks.kind", "is not known to this agent")),
    };
    let wish = CheckWish {
        name: Name::new(from.name).map_err(|e| wrong("checks.name", e))?,
        run: Timestamp::from_millis(from.run_ms),
        initial_delay: Span::from_millis(from.initial_delay_ms),
        interval: Span::from_millis(from.interval_ms),
        what,
    };
    match as_written(&wish).validate().0.into_iter().next() {
        None => Ok(wish),
        Some(error) => Err(wrong(format!("checks.{}", error.field), error.message)),
    }
}

/// The part of the spec that a wish is made of: the same rules hold for both.
fn as_written(wish: &CheckWish) -> VerificationSpec {
    let (http, command) = match &wish.what {
        CheckKind::Http(http) => (Some(http.clone()), None),
        CheckKind::Command(command) => (None, Some(command.clone())),
    };
    VerificationSpec {
        name: wish.name.clone(),
        http,
        command,
        prometheus: None,
        when: Vec::new(),
        initial_delay: wish.initial_delay,
        interval: wish.interval,
        count: None,
        consecutive_successes: None,
        failure_limit: 0,
        inconclusive_limit: 0,
        success: String::new(),
        failure: String::new(),
    }
}

/// What was measured.
pub(super) fn observed(from: &ObservedCheck) -> wire::ObservedCheck {
    use wire::observed_check::Sample as Wire;
    wire::ObservedCheck {
        name: from.name.to_string(),
        run_ms: from.run.millis(),
        instance: from.instance,
        sequence: from.sequence,
        sample: match &from.sample {
            Sample::Http { status, body, cut } => Some(Wire::Http(wire::HttpSample {
                status: u32::from(*status),
                body: body.clone(),
                cut: *cut,
            })),
            Sample::Command {
                exit_code,
                output,
                cut,
            } => Some(Wire::Command(wire::CommandSample {
                exit_code: *exit_code,
                output: output.clone(),
                cut: *cut,
            })),
            Sample::Unanswered(why) => Some(Wire::Unanswered(why.clone())),
            Sample::NotMade(why) => Some(Wire::NotMade(why.clone())),
            // Agents ask no queries.
            Sample::Values(_) => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str) -> wire::Check {
        wire::Check {
            name: "smoke".to_owned(),
            run_ms: 7,
            initial_delay_ms: 0,
            interval_ms: 1_000,
            kind: Some(wire::check::Kind::Http(wire::InstanceRequest {
                method: method.to_owned(),
                path: "/health".to_owned(),
                headers: [("x-tenant".to_owned(), "blue".to_owned())].into(),
                timeout_ms: 500,
            })),
        }
    }

    #[test]
    fn wishes_are_taken_as_they_came() {
        let taken = wishes(vec![request(""), request("POST")]).unwrap();
        assert_eq!(taken[0].run, Timestamp::from_millis(7));
        let CheckKind::Http(http) = &taken[1].what else {
            panic!("{taken:?}");
        };
        assert_eq!(http.method, HttpMethod::Post);
        assert_eq!(http.path.as_deref(), Some("/health"));
        assert_eq!(http.timeout, Span::from_millis(500));
        assert_eq!(http.headers["x-tenant"], "blue");
    }

    #[test]
    fn what_is_not_sound_is_refused_with_its_place() {
        let field = |check: wire::Check| wishes(vec![check]).unwrap_err().field;
        assert_eq!(field(request("DELETE")), "checks.http.method");
        let mut check = request("");
        check.interval_ms = 1;
        assert_eq!(field(check), "checks.interval");
        let mut check = request("");
        check.kind = None;
        assert_eq!(field(check), "checks.kind");
        let mut check = request("");
        check.name = "No name".to_owned();
        assert_eq!(field(check), "checks.name");
        let many = vec![request(""); MOST_CHECKS + 1];
        assert_eq!(wishes(many).unwrap_err().field, "checks");
    }
}
