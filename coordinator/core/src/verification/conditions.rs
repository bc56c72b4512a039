//! What one measurement says: its conditions evaluated, or what holds without them.

use tidegate_shared::measurement::Sample;
use tidegate_shared::spec::{Measurement, VerificationSpec};
use tidegate_shared::verdict::check::Class;

use crate::policy::expression::{Expression, Measured, Subject};

/// Longest line of a program that is told.
const LONGEST_LINE: usize = 200;

/// What conditions of a check are asked about.
pub(super) fn subject(spec: &VerificationSpec) -> Option<Subject> {
    Some(match spec.measurement()? {
        Measurement::InstanceHttp(_) | Measurement::LeaderHttp(_) => Subject::HttpResult,
        Measurement::Command(_) => Subject::CommandResult,
        Measurement::Prometheus(_) => Subject::QueryResult,
    })
}

/// What a measurement says, and the line for people. The line has nothing of a body, which may hold
/// what not everybody should see; of a program it has the last line.
pub fn classify(spec: &VerificationSpec, sample: &Sample) -> (Class, String) {
    let line = match sample {
        Sample::Unanswered(why) => return (Class::Failure, why.clone()),
        Sample::NotMade(why) => return (Class::Inconclusive, why.clone()),
        Sample::Values(values) if values.iter().all(|value| value.is_nan()) => {
            return (Class::Inconclusive, "the query gave no value".to_owned());
        }
        Sample::Http { .. } | Sample::Command { .. } | Sample::Values(_) => told(sample),
    };
    let wanted = spec.http.as_ref().and_then(|http| http.status);
    if let (Some(wanted), Sample::Http { status, .. }) = (wanted, sample)
        && *status != wanted
    {
        return (Class::Failure, format!("{line}, wanted {wanted}"));
    }
    let measured = measured(sample);
    let ask = |text: &str| (!text.trim().is_empty()).then(|| holds(spec, text, &measured));
    match (ask(&spec.success), ask(&spec.failure)) {
        (Some(Err(why)), _) => (
            Class::Inconclusive,
            format!("{line}; success cannot be told: {why}"),
        ),
        (_, Some(Err(why))) => (
            Class::Inconclusive,
            format!("{line}; failure cannot be told: {why}"),
        ),
        (_, Some(Ok(true))) => (Class::Failure, format!("{line}; {}", short(&spec.failure))),
        (Some(Ok(true)), _) => (Class::Success, line),
        (Some(Ok(false)), None) => (
            Class::Failure,
            format!("{line}; not {}", short(&spec.success)),
        ),
        (None, Some(Ok(false))) => (Class::Success, line),
        (Some(Ok(false)), Some(Ok(false))) => (
            Class::Inconclusive,
            format!("{line}; neither success nor failure holds"),
        ),
        (None, None) => (by_itself(sample, wanted.is_some()), line),
    }
}

/// Without conditions.
fn by_itself(sample: &Sample, status_fits: bool) -> Class {
    let good = match sample {
        Sample::Http { status, .. } => status_fits || (200..300).contains(status),
        Sample::Command { exit_code, .. } => *exit_code == 0,
        Sample::Values(_) | Sample::Unanswered(_) | Sample::NotMade(_) => {
            return Class::Inconclusive;
        }
    };
    if good { Class::Success } else { Class::Failure }
}

fn holds(spec: &VerificationSpec, text: &str, measured: &Measured) -> Result<bool, String> {
    let subject = subject(spec).ok_or("the check measures nothing")?;
    let expression = Expression::compile(text, subject).map_err(|mistake| mistake.to_string())?;
    expression.holds_of(measured)
}

fn measured(sample: &Sample) -> Measured {
    let json = |text: &str, cut: bool| {
        let read = serde_json::from_str(text).unwrap_or(serde_json::Value::Null);
        if cut { serde_json::Value::Null } else { read }
    };
    match sample {
        Sample::Http { status, body, cut } => Measured::Http {
            status: i64::from(*status),
            body: json(body, *cut),
            text: body.clone(),
        },
        Sample::Command {
            exit_code,
            output,
            cut,
        } => Measured::Command {
            exit_code: i64::from(*exit_code),
            body: json(output, *cut),
            output: output.clone(),
        },
        Sample::Values(values) => {
            let values: Vec<f64> = values.iter().copied().filter(|v| !v.is_nan()).collect();
            Measured::Query {
                value: match values.as_slice() {
                    [only] => Some(*only),
                    _ => None,
                },
                values,
            }
        }
        Sample::Unanswered(_) | Sample::NotMade(_) => Measured::Query {
            value: None,
            values: Vec::new(),
        },
    }
}

/// The measurement in a few words.
fn told(sample: &Sample) -> String {
    match sample {
        Sample::Http { status, cut, .. } => {
            let more = if *cut {
                " with a body too long to read"
            } else {
                ""
            };
            format!("HTTP {status}{more}")
        }
        Sample::Command {
            exit_code,
            output,
            cut: more,
        } => {
            // A line that was cut may hold the beginning of a secret, which nothing has masked.
            let mut lines = output.lines().rev().skip(usize::from(*more));
            match lines.find(|line| !line.trim().is_empty()) {
                Some(last) => format!("exit status {exit_code}: {}", cut(last.trim())),
                None => format!("exit status {exit_code}"),
            }
        }
        Sample::Values(values) => match values.as_slice() {
            [only] => only.to_string(),
            [first, ..] => format!("{} series, the first {first}", values.len()),
            [] => "no value".to_owned(),
        },
        Sample::Unanswered(why) | Sample::NotMade(why) => why.clone(),
    }
}

/// A condition in one short line.
fn short(condition: &str) -> String {
    cut(&condition.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(LONGEST_LINE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
