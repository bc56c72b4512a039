//! A schedule as people read it: one row per scope, what happens in each, and the remarks.

use std::fmt::Write as _;

use tidegate_proto::control::v1 as api;
use tidegate_proto::control::v1::deployment::Status;
use tidegate_proto::control::v1::planned_moment::What;

use super::{EXIT_FAILED, EXIT_FINALIZED, tone};
use crate::output::{Output, Table, Tone, dash, printable, weight};
use crate::time;

/// Scopes whose steps are told one by one without being asked for.
const FEW: usize = 6;

/// 0 only if every deployment would be finalized.
pub fn exit_status(plan: &api::PlanResponse) -> u8 {
    let finalized = |member: &api::PlannedMember| member.status() == Status::Finalized;
    match plan.members.iter().all(finalized) {
        true => EXIT_FINALIZED,
        false => EXIT_FAILED,
    }
}

/// More scopes than these are shown by their first and last ones.
const MANY: usize = 60;
/// Of many the first ones that are shown.
const FIRST: usize = 20;
/// And the last ones.
const LAST: usize = 10;
/// And those that would not be finalized, wherever they stand.
const BAD: usize = 20;

/// The whole schedule; `full` tells everything that happens to every scope.
pub fn told(output: Output, plan: &api::PlanResponse, full: bool, now_ms: u64) -> String {
    let mut text = head(plan, now_ms);
    text.push_str(&members(output, plan, full, now_ms));
    if full || plan.members.len() <= FEW {
        for member in &plan.members {
            text.push('\n');
            text.push_str(&timeline(output, plan, member, full));
        }
    }
    remarks(output, plan, now_ms, &mut text);
    text
}

fn head(plan: &api::PlanResponse, now_ms: u64) -> String {
    let scopes = match plan.members.len() {
        1 => "1 scope".to_owned(),
        count => format!("{count} scopes"),
    };
    let end = match plan.ends_at_ms {
        0 => format!(
            "not all of it ends by {}",
            time::instant(plan.followed_to_ms, now_ms)
        ),
        at => format!(
            "all of it ends at {}, {} later",
            time::instant(at, now_ms),
            time::rough(at.saturating_sub(plan.at_ms))
        ),
    };
    format!(
        "{} {} to {scopes}, asked for at {}: {end}. Nothing was made.\n{}\n",
        printable(&plan.application),
        printable(&plan.version),
        time::instant(plan.at_ms, now_ms),
        starts(plan, now_ms)
    )
}

/// When the first and the last scope start; nothing for a single one.
fn starts(plan: &api::PlanResponse, now_ms: u64) -> String {
    let starts = plan.members.iter().map(|member| member.starts_at_ms);
    let starts = starts.filter(|at| *at > 0);
    match (starts.clone().min(), starts.max()) {
        (Some(first), Some(last)) if plan.members.len() > 1 => format!(
            "The first scope starts at {}, the last one at {}.\n",
            time::instant(first, now_ms),
            time::instant(last, now_ms)
        ),
        _ => String::new(),
    }
}

/// Which of the members are shown, by position.
fn shown(plan: &api::PlanResponse, full: bool) -> Vec<usize> {
    let count = plan.members.len();
    if full || count <= MANY {
        return (0..count).collect();
    }
    let bad = (FIRST..count - LAST).filter(|position| {
        let member = plan.members.get(*position);
        member.is_some_and(|member| member.status() != Status::Finalized)
    });
    let middle = bad.take(BAD);
    (0..FIRST)
        .chain(middle)
        .chain(count - LAST..count)
        .collect()
}

/// What the start of a member that has none is called.
fn no_start(plan: &api::PlanResponse, member: &api::PlannedMember) -> &'static str {
    let open = member.ends_at_ms == 0;
    match plan.cut.as_str() {
        "" => "never",
        _ if !open => "never",
        "horizon" => "not so far",
        _ => "not known",
    }
}

fn members(output: Output, plan: &api::PlanResponse, full: bool, now_ms: u64) -> String {
    let mut table = Table::new(&[
        "SCOPE",
        "REPLACES",
        "AGENTS",
        "STARTS",
        "ENDS",
        "TAKES",
        "END",
        "HELD UP BY",
    ]);
    let shown = shown(plan, full);
    let mut next = 0;
    for position in &shown {
        let Some(member) = plan.members.get(*position) else {
            continue;
        };
        if *position > next {
            let gap = format!("… {} more", position - next);
            table.toned([(Tone::Faint, gap)]);
        }
        next = position + 1;
        let status = member.status();
        let takes = match (member.starts_at_ms, member.ends_at_ms) {
            (0, _) | (_, 0) => "-".to_owned(),
            (start, end) => time::rough(end.saturating_sub(start)),
        };
        let first = member.waits.first().map_or_else(String::new, |wait| {
            let why = time::told(&wait.why, now_ms);
            let until = time::instant(wait.until_ms, now_ms);
            // Most reasons name the instant themselves.
            match wait.until_ms == 0 || why.contains(&until) {
                true => why,
                false => format!("{why}, until {until}"),
            }
        });
        table.toned([
            (Tone::Strong, member.scope.clone()),
            (Tone::Plain, dash(&member.replaces_version).to_owned()),
            (Tone::Plain, member.agents.to_string()),
            (
                Tone::Plain,
                match member.starts_at_ms {
                    0 => no_start(plan, member).to_owned(),
                    at => time::instant(at, now_ms),
                },
            ),
            (Tone::Plain, time::instant(member.ends_at_ms, now_ms)),
            (Tone::Plain, takes),
            (tone(status), status.as_str_name().to_owned()),
            (Tone::Faint, dash(&first).to_owned()),
        ]);
    }
    let mut text = table.render(output, "There is no scope.");
    let left = plan.members.len() - shown.len();
    if left > 0 {
        let line = format!("{left} scopes are left out here: `--full` shows each, `-o json` too.");
        text.push_str(&format!("{}\n", output.paint(Tone::Faint, &line)));
    }
    text
}

/// What happens to one scope, with the time from the beginning of the plan.
fn timeline(
    output: Output,
    plan: &api::PlanResponse,
    member: &api::PlannedMember,
    full: bool,
) -> String {
    let mut text = format!(
        "{}\n",
        output.paint(Tone::Strong, &printable(&member.scope))
    );
    let mut lines: Vec<(u64, usize, Tone, String)> = Vec::new();
    for wait in &member.waits {
        let why = format!("waits: {}", time::told(&wait.why, wait.from_ms));
        lines.push((wait.from_ms, lines.len(), Tone::Faint, why));
    }
    for moment in &member.moments {
        if let Some((tone, what)) = line(member, moment, full) {
            lines.push((moment.at_ms, lines.len(), tone, what));
        }
    }
    // What is waited for comes after the status in which it is.
    let waits = member.waits.len();
    lines.sort_by_key(|(at, position, ..)| (*at, *position < waits, *position));
    for (at_ms, _, tone, what) in lines {
        let since = time::rough(at_ms.saturating_sub(plan.at_ms));
        let stamp = time::stamp(at_ms);
        let stamp = stamp.get(..19).unwrap_or_default();
        let what = output.paint(tone, &printable(&what));
        let written = writeln!(text, "  {stamp}Z  {:>10}  {what}", format!("+{since}"));
        debug_assert!(written.is_ok(), "writing to a text does not fail");
    }
    text
}

fn line(
    member: &api::PlannedMember,
    moment: &api::PlannedMoment,
    full: bool,
) -> Option<(Tone, String)> {
    let share = weight(i64::from(moment.weight));
    Some(match moment.what() {
        What::Unspecified => return None,
        What::Status => {
            let status = moment.status();
            let told = match status {
                Status::Creating if member.replaces_version.is_empty() => {
                    format!(" on {} agents, the first of its scope", member.agents)
                }
                Status::Creating => format!(
                    " on {} agents, replaces {}",
                    member.agents, member.replaces_version
                ),
                _ if !full && status == Status::WaitingForInstances => return None,
                _ => String::new(),
            };
            (tone(status), format!("{}{told}", status.as_str_name()))
        }
        What::Step if full => (
            Tone::Plain,
            format!("step {}: {share} is wished", moment.step),
        ),
        What::Step => return None,
        What::Held => (
            Tone::Green,
            format!("step {}: {share} of the traffic", moment.step),
        ),
        What::Person => (Tone::Busy, format!("a person gives `{}`", moment.verb)),
    })
}

fn remarks(output: Output, plan: &api::PlanResponse, now_ms: u64, text: &mut String) {
    let (warnings, assumptions): (Vec<_>, Vec<_>) =
        plan.remarks.iter().partition(|remark| remark.warning);
    for (heading, tone, list) in [
        ("Mind", Tone::Busy, warnings),
        ("Taken for granted", Tone::Faint, assumptions),
    ] {
        if list.is_empty() {
            continue;
        }
        text.push_str(&format!("\n{}\n", output.paint(Tone::Strong, heading)));
        for remark in list {
            let about = match remark.scope.as_str() {
                "" => String::new(),
                scope => format!("{scope}: "),
            };
            let line = format!("{about}{}", time::told(&remark.message, now_ms));
            text.push_str(&format!("  {}\n", output.paint(tone, &printable(&line))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    const AT: u64 = 1_700_000_000_000;

    fn moment(after: u64, what: What) -> api::PlannedMoment {
        api::PlannedMoment {
            at_ms: AT + after,
            what: what.into(),
            ..api::PlannedMoment::default()
        }
    }

    fn status(after: u64, status: Status) -> api::PlannedMoment {
        api::PlannedMoment {
            status: status.into(),
            ..moment(after, What::Status)
        }
    }

    fn plan() -> api::PlanResponse {
        let step = api::PlannedMoment {
            step: 1,
            weight: 5_000,
            ..moment(60_000, What::Held)
        };
        let member = api::PlannedMember {
            scope: "web".to_owned(),
            replaces_version: "1.0.0".to_owned(),
            agents: 3,
            starts_at_ms: AT + 60_000,
            ends_at_ms: AT + 120_000,
            status: Status::Finalized.into(),
            waits: vec![api::PlannedWait {
                kind: "window".to_owned(),
                why: "policy hours/windows[0]: closed".to_owned(),
                from_ms: AT,
                until_ms: AT + 60_000,
                ..api::PlannedWait::default()
            }],
            moments: vec![
                status(0, Status::Pending),
                status(60_000, Status::Creating),
                step,
                status(120_000, Status::Finalized),
            ],
            ..api::PlannedMember::default()
        };
        api::PlanResponse {
            at_ms: AT,
            application: "shop".to_owned(),
            version: "2.0.0".to_owned(),
            ends_at_ms: AT + 120_000,
            members: vec![member],
            remarks: vec![
                api::PlanRemark {
                    warning: true,
                    kind: "window_too_short".to_owned(),
                    scope: "web".to_owned(),
                    message: "the window closes".to_owned(),
                },
                api::PlanRemark {
                    message: "nothing fails".to_owned(),
                    ..api::PlanRemark::default()
                },
            ],
            ..api::PlanResponse::default()
        }
    }

    #[test]
    fn the_schedule_reads_from_top_to_bottom() {
        let text = told(Output::plain(Format::Table), &plan(), false, AT);
        let wanted = "\
shop 2.0.0 to 1 scope, asked for at 22:13:20Z (now): all of it ends at 22:15:20Z (in 2m), 2m later. Nothing was made.

SCOPE  REPLACES  AGENTS  STARTS              ENDS                TAKES  END        HELD UP BY
web    1.0.0     3       22:14:20Z (in 1m)   22:15:20Z (in 2m)   1m     FINALIZED  policy hours/windows[0]: closed, until 22:14:20Z (in 1m)

web
  2023-11-14T22:13:20Z         +0s  PENDING
  2023-11-14T22:13:20Z         +0s  waits: policy hours/windows[0]: closed
  2023-11-14T22:14:20Z         +1m  CREATING on 3 agents, replaces 1.0.0
  2023-11-14T22:14:20Z         +1m  step 1: 50 % of the traffic
  2023-11-14T22:15:20Z         +2m  FINALIZED

Mind
  web: the window closes

Taken for granted
  nothing fails
";
        let squeezed = |text: &str| {
            let words = text
                .lines()
                .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "));
            words.collect::<Vec<_>>().join("\n")
        };
        assert_eq!(squeezed(&text), squeezed(wanted), "{text}");
        assert_eq!(exit_status(&plan()), EXIT_FINALIZED);
        let mut never = plan();
        never.members[0].status = Status::Cancelled.into();
        assert_eq!(exit_status(&never), EXIT_FAILED);
    }

    #[test]
    fn of_many_the_first_the_last_and_the_bad_are_shown() {
        let mut many = plan();
        let one = many.members[0].clone();
        many.members = (0..200)
            .map(|number| api::PlannedMember {
                scope: format!("s{number:03}"),
                ..one.clone()
            })
            .collect();
        many.members[77].status = Status::Cancelled.into();
        many.members[77].starts_at_ms = 0;
        let text = told(Output::plain(Format::Table), &many, false, AT);
        for part in [
            "The first scope starts at 22:14:20Z (in 1m), the last one at 22:14:20Z (in 1m).",
            "s019 ",
            "… 57 more",
            "s077 ",
            "never",
            "… 112 more",
            "s190 ",
            "s199 ",
            "169 scopes are left out here",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("s020") && !text.contains("s189"), "{text}");
        let whole = told(Output::plain(Format::Table), &many, true, AT);
        assert!(whole.contains("s020") && !whole.contains("left out"));
    }

    #[test]
    fn what_was_not_followed_is_not_called_never() {
        let mut cut = plan();
        cut.members[0].starts_at_ms = 0;
        cut.members[0].ends_at_ms = 0;
        cut.ends_at_ms = 0;
        for (why, word) in [
            ("", "never"),
            ("horizon", "not so far"),
            ("too_large", "not known"),
        ] {
            cut.cut = why.to_owned();
            let text = members(Output::plain(Format::Table), &cut, false, AT);
            assert!(text.contains(word), "{why}: {text}");
        }
    }
}
