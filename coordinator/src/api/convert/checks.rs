//! Checks of rollouts: wishes and measurements on the link, and the view for people.

use tidegate_coordinator_core::deployment::checks::told;
use tidegate_coordinator_core::state::{CheckRecord, Deployment};
use tidegate_coordinator_core::verification::CheckView;
use tidegate_proto::agent::v1 as pb;
use tidegate_proto::control::v1 as control;
use tidegate_shared::id::Name;
use tidegate_shared::measurement::{
    CheckKind, CheckWish, MOST_BYTES, MOST_INSTANCES, ObservedCheck, Sample,
};
use tidegate_shared::spec::MOST_CHECKS;
use tidegate_shared::time::Timestamp;

/// Longest line that an agent may give as a reason.
const LONGEST_WHY: usize = 1_024;

/// A check that an agent is to make.
pub(super) fn wish(from: &CheckWish) -> pb::Check {
    use pb::check::Kind;
    pb::Check {
        name: from.name.to_string(),
        run_ms: from.run.millis(),
        initial_delay_ms: from.initial_delay.millis(),
        interval_ms: from.interval.millis(),
        kind: Some(match &from.what {
            CheckKind::Http(http) => Kind::Http(pb::InstanceRequest {
                method: http.method.as_str().to_owned(),
                path: http.path.clone().unwrap_or_default(),
                headers: super::to_map(&http.headers),
                timeout_ms: http.timeout.millis(),
            }),
            CheckKind::Command(command) => Kind::Command(pb::CheckCommand {
                command: command.command.clone(),
                args: command.args.clone(),
                timeout_ms: command.timeout.millis(),
            }),
        }),
    }
}

/// What an agent measured.
///
/// # Errors
/// What is not sound.
pub(super) fn observed(found: Vec<pb::ObservedCheck>) -> Result<Vec<ObservedCheck>, String> {
    if found.len() > MOST_CHECKS * MOST_INSTANCES as usize {
        return Err("are too many".to_owned());
    }
    // A kind of measurement that this version does not know is left out.
    let known = found.into_iter().filter(|check| check.sample.is_some());
    known.map(one).collect()
}

fn one(found: pb::ObservedCheck) -> Result<ObservedCheck, String> {
    use pb::observed_check::Sample as Wire;
    let short = |text: String, most: usize| match text.len() <= most {
        true => Ok(text),
        false => Err(format!("has a text of more than {most} bytes")),
    };
    let sample = match found.sample {
        Some(Wire::Http(http)) => Sample::Http {
            status: u16::try_from(http.status)
                .ok()
                .filter(|status| (100..=599).contains(status))
                .ok_or("has no status of HTTP")?,
            body: short(http.body, MOST_BYTES)?,
            cut: http.cut,
        },
        Some(Wire::Command(command)) => Sample::Command {
            exit_code: command.exit_code,
            output: short(command.output, MOST_BYTES)?,
            cut: command.cut,
        },
        Some(Wire::Unanswered(why)) => Sample::Unanswered(short(why, LONGEST_WHY)?),
        Some(Wire::NotMade(why)) => Sample::NotMade(short(why, LONGEST_WHY)?),
        None => return Err("has no sample".to_owned()),
    };
    Ok(ObservedCheck {
        name: Name::new(found.name).map_err(|error| error.message)?,
        run: Timestamp::from_millis(found.run_ms),
        instance: found.instance,
        sequence: found.sequence,
        sample,
    })
}

/// The checks of a deployment: what was settled, then those of the present moment.
pub(super) fn views(found: &Deployment, present: &[CheckView]) -> Vec<control::CheckStatus> {
    let settled = |record: &&CheckRecord| {
        !present
            .iter()
            .any(|check| check.name == record.name && check.run == record.run)
    };
    let before = found.checks.iter().filter(settled).map(|record| {
        let kind = found.origin.strategy.verification.iter();
        let kind = kind
            .filter(|spec| spec.name == record.name)
            .find_map(|spec| Some(spec.measurement()?.as_str()));
        control::CheckStatus {
            name: record.name.to_string(),
            kind: kind.unwrap_or_default().to_owned(),
            moment: told(found, record.step),
            state: record.outcome.as_str().to_owned(),
            measurements: record.measurements,
            failures: record.failures,
            last_at_ms: record.at.millis(),
            line: record.message.clone(),
            ..control::CheckStatus::default()
        }
    });
    let present = present.iter().map(|check| control::CheckStatus {
        name: check.name.to_string(),
        kind: check.kind.to_owned(),
        moment: told(found, check.step),
        state: check.state.as_str().to_owned(),
        measurements: check.tally.measurements,
        successes: check.counted,
        needed: check.needed,
        failures: check.tally.failures,
        failure_limit: check.failure_limit,
        inconclusive: check.tally.inconclusive,
        last: check.last.clone(),
        last_at_ms: check.last_at.map_or(0, Timestamp::millis),
        next_at_ms: check.next_at.map_or(0, Timestamp::millis),
        makers: check.makers,
        makers_done: check.succeeded,
        line: check.line(),
    });
    before.chain(present).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pb::observed_check::Sample as Wire;

    fn measured(sample: Wire) -> pb::ObservedCheck {
        pb::ObservedCheck {
            name: "smoke".to_owned(),
            run_ms: 7,
            instance: Some(1),
            sequence: 3,
            sample: Some(sample),
        }
    }

    fn http(status: u32, body: &str) -> Wire {
        Wire::Http(pb::HttpSample {
            status,
            body: body.to_owned(),
            cut: true,
        })
    }

    #[test]
    fn measurements_arrive_as_they_were_sent() {
        let unknown = pb::ObservedCheck {
            sample: None,
            ..measured(http(200, ""))
        };
        let not_made = Wire::NotMade("no program".to_owned());
        let sent = vec![measured(http(503, "{}")), unknown, measured(not_made)];
        let taken = observed(sent).unwrap();
        assert_eq!(taken.len(), 2);
        assert_eq!((taken[0].instance, taken[0].sequence), (Some(1), 3));
        assert_eq!(taken[0].run, Timestamp::from_millis(7));
        let sample = Sample::Http {
            status: 503,
            body: "{}".to_owned(),
            cut: true,
        };
        assert_eq!(taken[0].sample, sample);
        assert_eq!(taken[1].sample, Sample::NotMade("no program".to_owned()));
    }

    #[test]
    fn hostile_measurements_are_refused() {
        for sample in [
            http(7, ""),
            http(70_000, ""),
            http(200, &"x".repeat(MOST_BYTES + 1)),
            Wire::Unanswered("x".repeat(LONGEST_WHY + 1)),
        ] {
            assert!(observed(vec![measured(sample)]).is_err());
        }
        let many = vec![measured(http(200, "")); MOST_CHECKS * MOST_INSTANCES as usize + 1];
        assert!(observed(many).is_err());
    }
}
