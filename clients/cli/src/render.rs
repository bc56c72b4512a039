//! Deployments as people read them: words, colours, bars, and the page of one deployment.

pub mod checks;
pub mod group;
mod listing;
pub mod plan;

use std::fmt::Write as _;

use tidegate_proto::control::v1 as api;
use tidegate_proto::control::v1::deployment::Status;
use tidegate_proto::control::v1::step::State;

use crate::output::{Output, Table, Tone, dash, printable, weight};
use crate::time;

pub use listing::{active_among, list, weight_on_its_way};

/// Exit status of `--wait`: finalized.
pub const EXIT_FINALIZED: u8 = 0;
/// Exit status of `--wait`: rolled back.
pub const EXIT_ROLLED_BACK: u8 = 3;
/// Exit status of `--wait`: denied.
pub const EXIT_DENIED: u8 = 4;
/// Exit status of `--wait`: failed or cancelled.
pub const EXIT_FAILED: u8 = 5;
/// Exit status of `--wait`: timed out.
pub const EXIT_TIMED_OUT: u8 = 6;

/// Whether nothing more happens to it by itself.
pub const fn has_ended(status: Status) -> bool {
    match status {
        Status::CreatingApprovalDenied
        | Status::Finalized
        | Status::Cancelled
        | Status::RolledBack
        | Status::Failed
        | Status::Deleted => true,
        Status::Unspecified
        | Status::CreatingApproval
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalizing
        | Status::Cancelling
        | Status::RollingBack
        | Status::Deleting => false,
    }
}

/// Whether traffic is or may be on the new version, or on its way back.
pub const fn has_traffic(status: Status) -> bool {
    match status {
        Status::Running
        | Status::Finalizing
        | Status::Cancelling
        | Status::RollingBack
        | Status::Deleting => true,
        Status::Unspecified
        | Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Finalized
        | Status::Cancelled
        | Status::RolledBack
        | Status::Failed
        | Status::Deleted => false,
    }
}

/// Exit status for a deployment that ended. It follows the cause: a cancelled deployment that had
/// traffic ends `ROLLED_BACK` and still counts as cancelled.
pub fn exit_status(deployment: &api::Deployment) -> u8 {
    match (deployment.status(), deployment.outcome.as_str()) {
        (Status::Finalized | Status::Deleted, _) => EXIT_FINALIZED,
        (Status::CreatingApprovalDenied, _) => EXIT_DENIED,
        (Status::RolledBack, "cancelled" | "superseded") => EXIT_FAILED,
        (Status::RolledBack, _) => EXIT_ROLLED_BACK,
        _ => EXIT_FAILED,
    }
}

/// Colour of a status.
pub const fn tone(status: Status) -> Tone {
    match status {
        Status::Finalized => Tone::Good,
        Status::RolledBack
        | Status::RollingBack
        | Status::Failed
        | Status::CreatingApprovalDenied => Tone::Bad,
        Status::Cancelled | Status::Deleted | Status::Unspecified => Tone::Faint,
        Status::CreatingApproval
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalizing
        | Status::Cancelling
        | Status::Deleting => Tone::Busy,
    }
}

/// Whether it was finalized without evidence; of any other end that says nothing.
pub fn is_unverified(deployment: &api::Deployment) -> bool {
    deployment.unverified && deployment.status() == Status::Finalized
}

/// How an ended deployment ended, in one line without colours.
pub fn outcome_line(deployment: &api::Deployment) -> String {
    let mut line = format!(
        "{} {} to {} {}",
        deployment.application,
        deployment.version,
        deployment.scope,
        deployment.status().as_str_name()
    );
    if !deployment.outcome.is_empty() {
        write!(line, " ({}", deployment.outcome).ok();
        if is_unverified(deployment) {
            line.push_str(", unverified: no data");
        }
        line.push(')');
    }
    if !deployment.message.is_empty() {
        write!(line, ": {}", deployment.message).ok();
    } else if !deployment.reason.is_empty() {
        write!(line, ": {}", deployment.reason).ok();
    }
    printable(&line)
}

/// A bar of so many cells: the old version in blue, the new one in green, and a mark where the
/// new one is wanted to be.
pub fn traffic_bar(output: Output, actual: u32, desired: u32, cells: usize) -> String {
    let cell_of = |weight: u32| (weight.min(10_000) as usize * cells + 5_000) / 10_000;
    let (held, wanted) = (cell_of(actual), cell_of(desired));
    let mut bar = String::new();
    let mut piece = |tone: Tone, text: String| bar.push_str(&output.paint(tone, &text));
    let (low, high) = (held.min(wanted), held.max(wanted));
    piece(Tone::Green, "█".repeat(low));
    // Between what is held and what is wanted, on the way.
    piece(Tone::Busy, "▒".repeat(high - low));
    piece(Tone::Blue, "░".repeat(cells - high));
    bar
}

/// The whole page of one deployment.
pub fn page(output: Output, deployment: &api::Deployment) -> String {
    let mut text = heading(output, deployment);
    text.push_str(&gates(output, deployment));
    text.push_str(&steps(output, deployment));
    text.push_str(&participants(output, deployment, usize::MAX));
    text.push_str(&checks::checks(output, deployment));
    text.push_str(&evidence(output, deployment));
    text.push_str(&causes(output, deployment));
    text
}

fn heading(output: Output, deployment: &api::Deployment) -> String {
    let now = time::now_ms();
    let metadata = deployment.metadata.clone().unwrap_or_default();
    let status = deployment.status();
    let mut text = String::new();
    let mut field = |name: &str, value: String| {
        if !value.is_empty() && value != "-" {
            text.push_str(&output.field(name, &value));
        }
    };
    field(
        "deployment",
        format!(
            "{}  {}",
            output.paint(Tone::Strong, &deployment.short_id),
            output.paint(Tone::Faint, &deployment.id)
        ),
    );
    field(
        "release",
        printable(&format!(
            "{} {}",
            deployment.application, deployment.version
        )),
    );
    field("scope", printable(&deployment.scope));
    let since = time::age(deployment.status_since_ms, now);
    field(
        "status",
        format!(
            "{} for {since}",
            output.paint(tone(status), status.as_str_name())
        ),
    );
    if !deployment.outcome.is_empty() {
        let unverified = if is_unverified(deployment) {
            ", unverified: no data"
        } else {
            ""
        };
        field("outcome", format!("{}{unverified}", deployment.outcome));
    }
    field("reason", printable(&deployment.reason));
    field("message", printable(&time::told(&deployment.message, now)));
    field(
        "waiting",
        printable(&time::told(&deployment.waiting_for, now)),
    );
    let replaces = match (deployment.initial, deployment.replaces_version.as_str()) {
        (true, _) => "nothing: the first one of this scope".to_owned(),
        (false, version) => printable(version),
    };
    field("replaces", replaces);
    if !deployment.linked_to.is_empty() {
        field(
            "linked to",
            printable(&format!(
                "{} ({})",
                deployment.linked_to, deployment.link_kind
            )),
        );
    }
    field("group", printable(&deployment.group));
    if !deployment.auto_deploy_of.is_empty() {
        field(
            "by itself",
            printable(&format!(
                "auto_deploy of the scope, for the release of {}",
                deployment.auto_deploy_of
            )),
        );
    }
    field("strategy", printable(&deployment.strategy_name));
    field(
        "created",
        format!(
            "{} by {}",
            time::stamp(metadata.created_at_ms),
            dash(&printable(&metadata.created_by))
        ),
    );
    if deployment.ended_at_ms > 0 {
        field("ended", time::stamp(deployment.ended_at_ms));
    } else {
        if deployment.deadline_ms > 0 {
            field("deadline", time::instant(deployment.deadline_ms, now));
        }
        field("next look", time::until(deployment.next_wakeup_ms, now));
    }
    for (name, hold) in [
        ("paused", &deployment.paused),
        ("halted", &deployment.halted),
    ] {
        if let Some(hold) = hold {
            field(name, hold_line(hold, now));
        }
    }
    if let Some(traffic) = &deployment.traffic {
        field(
            "traffic",
            format!(
                "{} {}",
                traffic_bar(output, traffic.actual, traffic.desired, 30),
                weight_on_its_way(traffic),
            ),
        );
    }
    for parameter in &deployment.parameters {
        field(
            "parameter",
            printable(&format!(
                "{}={}{} (from the {})",
                parameter.name,
                parameter.value,
                match parameter.file.as_str() {
                    "" => String::new(),
                    path => format!(" as the file {path}"),
                },
                parameter.source
            )),
        );
    }
    for leftover in &deployment.leftovers {
        field("leftover", printable(leftover));
    }
    if let Some(durations) = &deployment.durations {
        field(
            "took",
            format!(
                "progress {}, paused {}, waiting {}",
                time::rough(durations.progression_ms),
                time::rough(durations.manual_pause_ms),
                time::rough(durations.waiting_ms)
            ),
        );
    }
    text
}

/// Who holds it, since when, why, and how long at most.
pub fn hold_line(hold: &api::Hold, now: u64) -> String {
    let why = if hold.reason.is_empty() {
        String::new()
    } else {
        format!(": {}", hold.reason)
    };
    let end = if hold.until_ms > 0 {
        format!(
            "; at the latest until {}",
            time::instant(hold.until_ms, now)
        )
    } else {
        String::new()
    };
    printable(&format!(
        "by {} since {}{why}{end}",
        dash(&hold.by),
        time::clock(hold.since_ms),
    ))
}

/// Why a gate answers so, without instants that were told before.
pub fn gate_line(gate: &api::Gate, now: u64) -> String {
    let why = time::told(&gate.why, now);
    let end = time::instant(gate.until_ms, now);
    let line = if gate.until_ms == 0 || why.contains(&end) {
        why
    } else {
        format!("{why} (until {end})")
    };
    printable(&line)
}

fn gates(output: Output, deployment: &api::Deployment) -> String {
    if deployment.gates.is_empty() && deployment.decisions.is_empty() {
        return String::new();
    }
    let now = time::now_ms();
    let mut text = String::from("\n");
    for gate in &deployment.gates {
        let tone = match gate.answer.as_str() {
            "allowed" => Tone::Good,
            "denied" => Tone::Bad,
            _ => Tone::Busy,
        };
        writeln!(
            text,
            "gate {:<8}  {}  {}",
            printable(&gate.kind),
            output.paint(tone, &format!("{:<7}", gate.answer)),
            gate_line(gate, now)
        )
        .ok();
    }
    for decision in &deployment.decisions {
        let word = if decision.granted {
            "granted"
        } else {
            "denied"
        };
        let counts = if decision.counts {
            ""
        } else {
            " (does not count)"
        };
        let reason = if decision.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", decision.reason)
        };
        let line = format!(
            "{word} by {} at {}{counts}{reason}",
            decision.by,
            time::stamp(decision.at_ms)
        );
        writeln!(text, "{}", printable(&line)).ok();
    }
    text
}

/// Steps done and to come, with their times.
pub fn steps(output: Output, deployment: &api::Deployment) -> String {
    if deployment.steps.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["STEP", "TRAFFIC", "HOLD", "WHEN"]);
    let whens = step_times(deployment, time::now_ms());
    for (position, (step, when)) in deployment.steps.iter().zip(whens).enumerate() {
        let (mark, tone) = match step.state() {
            State::Done => ("✓", Tone::Good),
            State::Current => ("▶", Tone::Busy),
            State::ToCome | State::Unspecified => ("·", Tone::Faint),
        };
        let hold = if step.manual {
            "manual".to_owned()
        } else {
            time::rough(step.hold_ms)
        };
        table.toned([
            (tone, format!("{mark} {}", position + 1)),
            (Tone::Plain, weight(i64::from(step.weight))),
            (Tone::Plain, hold),
            (Tone::Plain, when),
        ]);
    }
    format!("\n{}", table.render(output, ""))
}

/// When each step is or was, as far as it is known: a step to come starts when those before it
/// have been held, if nothing stops them.
fn step_times(deployment: &api::Deployment, now: u64) -> Vec<String> {
    let runs = deployment.status() == Status::Running;
    let held_by = match (&deployment.halted, &deployment.paused) {
        (Some(_), _) => Some("halted"),
        (None, Some(_)) => Some("paused"),
        (None, None) => None,
    };
    let mut next_start = None;
    let mut whens = Vec::new();
    for step in &deployment.steps {
        let when = match step.state() {
            State::Done => "done".to_owned(),
            State::Current if !runs => "-".to_owned(),
            State::Current => {
                let far = time::age(step.started_at_ms, now);
                next_start = (step.ends_at_ms > now).then_some(step.ends_at_ms);
                let end = match (held_by, step.manual, step.ends_at_ms) {
                    (Some(word), _, _) => word.to_owned(),
                    (None, true, _) => "ends at `promote`".to_owned(),
                    (None, false, 0) => "until the agents hold it".to_owned(),
                    (None, false, end) if end <= now => "held".to_owned(),
                    (None, false, end) => format!("ends {}", time::until(end, now)),
                };
                if step.started_at_ms > 0 {
                    format!("for {far}, {end}")
                } else {
                    end
                }
            }
            State::ToCome | State::Unspecified => {
                let start = next_start.filter(|_| runs && held_by.is_none());
                next_start = start
                    .filter(|_| !step.manual)
                    .map(|start: u64| start.max(now) + step.hold_ms);
                start.map_or_else(|| "-".to_owned(), |start| time::until(start, now))
            }
        };
        whens.push(when);
    }
    whens
}

/// One row per agent, at most so many: those in trouble first.
pub fn participants(output: Output, deployment: &api::Deployment, limit: usize) -> String {
    // Of one that was taken back nothing is left to be told, as a rule.
    let status = deployment.status();
    let is_gone = has_ended(status) && status != Status::Finalized;
    let told = |p: &api::Participant| !is_gone || p.lost || p.healthy > 0 || !p.error.is_empty();
    if !deployment.participants.iter().any(told) {
        return String::new();
    }
    let mut table = Table::new(&["AGENT", "HEALTHY", "WEIGHT", "OPEN", "RESTARTS", "STATE"]);
    let is_well = |p: &api::Participant| !p.lost && p.error.is_empty() && p.healthy >= p.wanted;
    let mut shown: Vec<_> = deployment.participants.iter().collect();
    if shown.len() > limit {
        shown.sort_by_key(|participant| is_well(participant));
        shown.truncate(limit);
    }
    let left_out = deployment.participants.len() - shown.len();
    for participant in shown {
        let all = participant.healthy >= participant.wanted && participant.wanted > 0;
        let restarts: u32 = participant
            .instances
            .iter()
            .map(|instance| instance.restarts)
            .sum();
        let states: Vec<_> = participant
            .instances
            .iter()
            .map(|instance| instance.state.as_str())
            .collect();
        let state = match (participant.lost, participant.error.as_str()) {
            (true, _) => (Tone::Bad, "lost".to_owned()),
            (false, "") if states.is_empty() && participant.staged => {
                (Tone::Busy, "staged".to_owned())
            }
            (false, "") => (Tone::Plain, dash(&states.join(", ")).to_owned()),
            (false, error) => (Tone::Bad, error.to_owned()),
        };
        table.toned([
            (Tone::Strong, participant.agent.clone()),
            (
                if all { Tone::Good } else { Tone::Busy },
                format!("{}/{}", participant.healthy, participant.wanted),
            ),
            (Tone::Plain, weight(i64::from(participant.weight))),
            (Tone::Plain, participant.open_requests.to_string()),
            (
                if restarts > 0 { Tone::Bad } else { Tone::Plain },
                restarts.to_string(),
            ),
            state,
        ]);
    }
    let more = if left_out > 0 {
        format!("… and {left_out} more agents\n")
    } else {
        String::new()
    };
    format!("\n{}{more}", table.render(output, ""))
}

/// The last verdict of each rule.
pub fn evidence(output: Output, deployment: &api::Deployment) -> String {
    let mut text = String::new();
    for evidence in &deployment.evidence {
        let tone = match evidence.verdict.as_str() {
            "pass" => Tone::Good,
            "fail" => Tone::Bad,
            _ => Tone::Busy,
        };
        let verdict = output.paint(tone, &evidence.verdict);
        let dry = if evidence.dry_run { " (dry run)" } else { "" };
        let told = if evidence.message.is_empty() {
            format!(
                "{} {} {} over {}: {} of {} samples",
                evidence.metric,
                evidence.comparison,
                evidence.threshold,
                time::rough(evidence.window_ms),
                dash(&evidence.value),
                evidence.samples
            )
        } else {
            evidence.message.clone()
        };
        writeln!(
            text,
            "rule {verdict}{dry} at {}: {}",
            time::clock(evidence.at_ms),
            printable(&told)
        )
        .ok();
    }
    if text.is_empty() {
        text
    } else {
        format!("\n{text}")
    }
}

/// The first causes of failure per instance.
pub fn causes(output: Output, deployment: &api::Deployment) -> String {
    let mut text = String::new();
    for cause in &deployment.causes {
        let kind = output.paint(Tone::Bad, &printable(&cause.kind));
        let line = printable(&format!("{} {}: ", cause.agent, cause.instance));
        writeln!(text, "cause {line}{kind}: {}", printable(&cause.message)).ok();
    }
    if text.is_empty() {
        text
    } else {
        format!("\n{text}")
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::output::Format;

    /// A deployment at its second step.
    pub fn sample() -> api::Deployment {
        api::Deployment {
            id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
            short_id: "q69g5fav".to_owned(),
            application: "web".to_owned(),
            version: "1.4.0".to_owned(),
            scope: "web-prod".to_owned(),
            status: Status::Running.into(),
            replaces_version: "1.3.9".to_owned(),
            waiting_for: "the hold of step 2".to_owned(),
            traffic: Some(api::Traffic {
                desired: 5_000,
                actual: 1_000,
                observed_share: 1_200,
            }),
            steps: vec![
                api::Step {
                    weight: 1_000,
                    hold_ms: 30_000,
                    state: State::Done.into(),
                    started_at_ms: 1_700_000_000_000,
                    ends_at_ms: 1_700_000_030_000,
                    manual: false,
                },
                api::Step {
                    weight: 5_000,
                    hold_ms: 60_000,
                    state: State::Current.into(),
                    started_at_ms: 1_700_000_030_000,
                    ends_at_ms: 1,
                    manual: false,
                },
                api::Step {
                    weight: 10_000,
                    manual: true,
                    ..api::Step::default()
                },
            ],
            participants: vec![api::Participant {
                agent: "host-1".to_owned(),
                wanted: 2,
                healthy: 1,
                weight: 1_000,
                open_requests: 3,
                ..api::Participant::default()
            }],
            evidence: vec![api::Evidence {
                metric: "http.error_rate".to_owned(),
                verdict: "pass".to_owned(),
                message: "http.error_rate 0.01 of 120 requests in 1s is not greater than 0.1"
                    .to_owned(),
                at_ms: 1_700_000_031_000,
                ..api::Evidence::default()
            }],
            ..api::Deployment::default()
        }
    }

    #[test]
    fn the_page_tells_steps_instances_and_evidence() {
        let text = page(Output::plain(Format::Table), &sample());
        for line in [
            "release      web 1.4.0\n",
            "replaces     1.3.9\n",
            "waiting      the hold of step 2\n",
            "traffic      ███▒▒▒▒▒▒▒▒▒▒▒▒░░░░░░░░░░░░░░░ 10 % → 50 %\n",
            "✓ 1   10 %     30s     done\n",
            ", held\n",
            "· 3   100 %    manual  -\n",
            "host-1  1/2      10 %    3     0         -\n",
            "rule pass at 22:13:51Z: http.error_rate 0.01 of 120 requests",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn steps_to_come_have_times_while_nothing_holds_them() {
        let now = 1_700_000_040_000;
        let mut deployment = sample();
        deployment.steps[1].ends_at_ms = 1_700_000_090_000;
        assert_eq!(
            step_times(&deployment, now),
            ["done", "for 10s, ends in 50s", "in 50s"]
        );
        deployment.paused = Some(api::Hold::default());
        assert_eq!(
            step_times(&deployment, now),
            ["done", "for 10s, paused", "-"]
        );
        deployment.status = Status::RollingBack.into();
        assert_eq!(step_times(&deployment, now), ["done", "-", "-"]);
    }

    #[test]
    fn gates_tell_each_instant_once() {
        let gate = |why: &str| api::Gate {
            why: why.to_owned(),
            until_ms: 1_700_000_000_000,
            ..api::Gate::default()
        };
        let now = 1_699_999_990_000;
        let once = "0 of 1, until 22:13:20Z (in 10s)";
        let why = "0 of 1, until 2023-11-14T22:13:20.000Z";
        assert_eq!(gate_line(&gate(why), now), once);
        assert_eq!(
            gate_line(&gate("no window"), now),
            "no window (until 22:13:20Z (in 10s))"
        );
    }

    #[test]
    fn exit_statuses_follow_the_cause() {
        let ended = |status: Status, outcome: &str| {
            exit_status(&api::Deployment {
                status: status.into(),
                outcome: outcome.to_owned(),
                ..api::Deployment::default()
            })
        };
        assert_eq!(ended(Status::Finalized, "fast_rolled_back"), 0);
        assert_eq!(ended(Status::RolledBack, "rolled_back"), 3);
        assert_eq!(ended(Status::RolledBack, "cancelled"), 5);
        assert_eq!(ended(Status::CreatingApprovalDenied, "denied"), 4);
        assert_eq!(ended(Status::Failed, "failed"), 5);
        assert_eq!(ended(Status::Cancelled, "superseded"), 5);
    }

    #[test]
    fn what_was_taken_back_is_neither_unverified_nor_unhealthy() {
        let mut deployment = sample();
        deployment.unverified = true;
        deployment.participants[0].healthy = 0;
        let all = usize::MAX;
        let output = Output::plain(Format::Table);
        assert!(participants(output, &deployment, all).contains("host-1  0/2"));
        deployment.status = Status::RolledBack.into();
        assert!(!outcome_line(&deployment).contains("unverified"));
        assert_eq!(participants(output, &deployment, all), "");
        deployment.participants[0].lost = true;
        assert!(participants(output, &deployment, all).contains("lost"));
        deployment.status = Status::Finalized.into();
        deployment.outcome = "promoted".to_owned();
        assert!(outcome_line(&deployment).contains("(promoted, unverified: no data)"));
    }

    #[test]
    fn bars_fill_from_the_new_version() {
        let output = Output::plain(Format::Table);
        assert_eq!(traffic_bar(output, 0, 0, 4), "░░░░");
        assert_eq!(traffic_bar(output, 10_000, 10_000, 4), "████");
        assert_eq!(traffic_bar(output, 5_000, 0, 4), "▒▒░░");
    }
}
