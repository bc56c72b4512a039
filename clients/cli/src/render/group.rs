//! Groups as people read them: the list, the page with one row per member, and how one ended.

use std::fmt::Write as _;

use serde_json::Value;
use tidegate_proto::control::v1 as api;
use tidegate_proto::control::v1::deployment::Status as MemberStatus;
use tidegate_proto::control::v1::group::Status;
use tidegate_proto::control::v1::wave::State as WaveState;

use super::{EXIT_DENIED, EXIT_FAILED, EXIT_FINALIZED, EXIT_ROLLED_BACK, hold_line};
use crate::output::{Output, Table, Tone, dash, printable, shortened, weight};
use crate::time;

/// Cells of the bar of members.
const BAR: usize = 30;

/// Whether nothing more happens to it by itself.
pub const fn has_ended(status: Status) -> bool {
    match status {
        Status::CreatingApprovalDenied
        | Status::Finalized
        | Status::Cancelled
        | Status::RolledBack => true,
        Status::Unspecified
        | Status::CreatingApproval
        | Status::Pending
        | Status::Running
        | Status::Finalizing
        | Status::Cancelling
        | Status::RollingBack => false,
    }
}

/// Exit status for a group that ended: 0 only if every member went well.
pub fn exit_status(group: &api::Group) -> u8 {
    match (group.status(), group.outcome.as_str()) {
        (Status::Finalized, "succeeded") => EXIT_FINALIZED,
        (Status::RolledBack, _) => EXIT_ROLLED_BACK,
        (Status::CreatingApprovalDenied, _) => EXIT_DENIED,
        _ => EXIT_FAILED,
    }
}

/// Colour of a group.
pub fn tone(group: &api::Group) -> Tone {
    match group.status() {
        Status::Finalized if group.outcome == "succeeded" => Tone::Good,
        Status::Finalized if group.outcome == "mixed" => Tone::Busy,
        Status::Finalized
        | Status::RolledBack
        | Status::RollingBack
        | Status::CreatingApprovalDenied => Tone::Bad,
        Status::Cancelled | Status::Unspecified => Tone::Faint,
        Status::CreatingApproval
        | Status::Pending
        | Status::Running
        | Status::Finalizing
        | Status::Cancelling => Tone::Busy,
    }
}

/// The group's name, or the one that is made for it.
pub fn name(group: &api::Group) -> String {
    let metadata = group.metadata.as_ref();
    let name = metadata.map_or(group.short_id.as_str(), |metadata| metadata.name.as_str());
    printable(name)
}

/// How many members are where, in words.
pub fn counts_line(counts: &api::GroupCounts) -> String {
    let parts = [
        (counts.finalized, "finalized"),
        (counts.under_way, "under way"),
        (counts.waiting, "waiting"),
        (counts.other_ends, "failed or taken back"),
    ];
    let told: Vec<String> = parts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    format!("{} of {} members", told.join(", "), counts.members)
}

/// How a group ended, in one line without colours.
pub fn outcome_line(group: &api::Group) -> String {
    let counts = group.counts.unwrap_or_default();
    let mut line = format!(
        "group {} ({} {}) {}",
        name(group),
        group.application,
        group.version,
        group.status().as_str_name()
    );
    if !group.outcome.is_empty() {
        write!(line, " ({})", group.outcome).ok();
    }
    write!(line, ": {}", counts_line(&counts)).ok();
    if !group.message.is_empty() {
        write!(line, "; {}", group.message).ok();
    }
    printable(&line)
}

/// The table of several groups.
pub fn list(output: Output, groups: &[api::Group], wide: bool, empty: &str) -> String {
    let mut headings = vec![
        "ID", "GROUP", "RELEASE", "STATUS", "MEMBERS", "FAILED", "AGE", "WHAT",
    ];
    if wide {
        headings.extend(["BY", "STRATEGY", "ROLLOUT", "ULID"]);
    }
    let mut table = Table::new(&headings);
    let now = time::now_ms();
    for group in groups {
        let metadata = group.metadata.clone().unwrap_or_default();
        let counts = group.counts.unwrap_or_default();
        let budget = group.budget.clone().unwrap_or_default();
        let what = match (has_ended(group.status()), group.why.as_str()) {
            (false, why) if !why.is_empty() => why,
            _ if !group.message.is_empty() => &group.message,
            _ => &group.outcome,
        };
        let what = time::told(what, now);
        let failed = if budget.failures > 0 {
            Tone::Bad
        } else {
            Tone::Plain
        };
        let mut cells = vec![
            (Tone::Strong, group.short_id.clone()),
            (Tone::Plain, name(group)),
            (
                Tone::Plain,
                format!("{} {}", group.application, group.version),
            ),
            (tone(group), group.status().as_str_name().to_owned()),
            (
                Tone::Plain,
                format!("{}/{} done", counts.finalized, counts.members),
            ),
            (failed, budget.failures.to_string()),
            (Tone::Faint, time::age(metadata.created_at_ms, now)),
            (
                Tone::Plain,
                dash(&if wide { what } else { shortened(&what, 70) }).to_owned(),
            ),
        ];
        if wide {
            cells.extend([
                (Tone::Plain, dash(&metadata.created_by).to_owned()),
                (Tone::Plain, dash(&group.strategy_name).to_owned()),
                (Tone::Plain, rollout_line(&group.rollout)),
                (Tone::Faint, group.id.clone()),
            ]);
        }
        table.toned(cells);
    }
    table.render(output, empty)
}

/// Everything about a group: what holds it up first, then one row per member.
pub fn page(output: Output, group: &api::Group, wide: bool) -> String {
    let mut text = heading(output, group);
    text.push('\n');
    text.push_str(&members(output, group, usize::MAX, wide));
    text
}

/// What is true of the whole group.
pub fn heading(output: Output, group: &api::Group) -> String {
    let now = time::now_ms();
    let metadata = group.metadata.clone().unwrap_or_default();
    let mut text = String::new();
    let mut field = |word: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&output.field(word, &value));
        }
    };
    field(
        "group",
        format!(
            "{}  {}",
            output.paint(Tone::Strong, &name(group)),
            output.paint(Tone::Faint, &format!("{}  {}", group.short_id, group.id))
        ),
    );
    field(
        "release",
        printable(&format!("{} {}", group.application, group.version)),
    );
    let word = group.status().as_str_name();
    let outcome = match group.outcome.as_str() {
        "" => String::new(),
        outcome => format!(" ({outcome})"),
    };
    field(
        "status",
        output.paint(tone(group), &printable(&format!("{word}{outcome}"))),
    );
    if !has_ended(group.status()) && !group.why.is_empty() {
        let why = printable(&time::told(&group.why, now));
        field("in the way", output.paint(Tone::Busy, &why));
    }
    field("members", member_bar(output, group));
    field("budget", budget(output, group));
    field("rollout", printable(&rollout_line(&group.rollout)));
    field("waves", waves(output, group, now));
    for (word, hold) in [("paused", &group.paused), ("halted", &group.halted)] {
        if let Some(hold) = hold {
            field(word, output.paint(Tone::Busy, &hold_line(hold, now)));
        }
    }
    if !group.verb.is_empty() {
        let reason = match group.reason.as_str() {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        let line = format!(
            "by {} at {}{reason}",
            dash(&group.verb_by),
            time::instant(group.verb_at_ms, now)
        );
        field(&group.verb, printable(&line));
    }
    if group.next_start_ms > 0 && !has_ended(group.status()) {
        field("next start", time::instant(group.next_start_ms, now));
    }
    field("strategy", printable(&group.strategy_name));
    field(
        "created",
        format!(
            "{} by {}",
            time::stamp(metadata.created_at_ms),
            dash(&printable(&metadata.created_by))
        ),
    );
    if group.ended_at_ms > 0 {
        field("ended", time::stamp(group.ended_at_ms));
    }
    text
}

/// A bar of the members: finalized, ended otherwise, under way, waiting.
fn member_bar(output: Output, group: &api::Group) -> String {
    let counts = group.counts.unwrap_or_default();
    let all = counts.members.max(1) as usize;
    let parts = [
        (counts.finalized, Tone::Good, "█"),
        (counts.other_ends, Tone::Bad, "█"),
        (counts.under_way, Tone::Busy, "▒"),
        (counts.waiting, Tone::Faint, "░"),
    ];
    let mut bar = String::new();
    let (mut seen, mut drawn) = (0, 0);
    for (count, tone, cell) in parts {
        seen += count as usize;
        let until = (seen * BAR).div_ceil(all).min(BAR);
        bar.push_str(&output.paint(tone, &cell.repeat(until.saturating_sub(drawn))));
        drawn = until.max(drawn);
    }
    format!("{bar} {}", counts_line(&counts))
}

fn budget(output: Output, group: &api::Group) -> String {
    let Some(budget) = &group.budget else {
        return String::new();
    };
    if budget.unlimited {
        return format!("{} failed; any number may", budget.failures);
    }
    let from = match budget.min_executed {
        0 => String::new(),
        least => format!(
            "; judged from {least} executed on, {} so far",
            budget.executed
        ),
    };
    let line = format!("{} failed, {} may{from}", budget.failures, budget.allowed);
    if budget.exceeded {
        let then = match budget.on_breach.as_str() {
            "rollback" => "the group is rolled back",
            _ => "no further member starts",
        };
        output.paint(Tone::Bad, &format!("{line}: exceeded, {then}"))
    } else {
        line
    }
}

fn waves(output: Output, group: &api::Group, now: u64) -> String {
    let told = group.waves.iter().map(|wave| {
        let (mark, tone) = match wave.state() {
            WaveState::Done => ("✓", Tone::Good),
            WaveState::Current => ("▶", Tone::Busy),
            WaveState::Baking => ("◷", Tone::Busy),
            WaveState::ToCome | WaveState::Unspecified => ("·", Tone::Faint),
        };
        let bake = match (wave.state(), wave.bake_ms) {
            (WaveState::Baking, _) => {
                format!(", bakes until {}", time::instant(wave.until_ms, now))
            }
            (WaveState::Done, _) | (_, 0) => String::new(),
            (_, bake) => format!(", then bake {}", time::rough(bake)),
        };
        // Who is in which wave is settled when the rollout begins.
        let count = match (group.begun, bake.as_str()) {
            (true, _) => format!(" ({}{bake})", wave.members),
            (false, "") => String::new(),
            (false, bake) => bake.to_owned(),
        };
        let line = format!("{mark} {}{count}", wave.name);
        output.paint(tone, &printable(&line))
    });
    told.collect::<Vec<_>>().join(" → ")
}

/// A rollout in one line, from its manifest form.
pub fn rollout_line(json: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(json) else {
        return "all_at_once".to_owned();
    };
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let said = |key: &str| fields.get(key).filter(|value| !value.is_null()).map(text);
    let mut line = said("kind").unwrap_or_else(|| "all_at_once".to_owned());
    let paced = match line.as_str() {
        "linear" => "one every",
        "linear_normalized" => "all within",
        _ => "",
    };
    if let Some(interval) = said("interval").filter(|_| !paced.is_empty()) {
        write!(line, ", {paced} {interval}").ok();
    }
    if let Some(order) = fields.get("order") {
        let order = match order {
            Value::Object(label) => label
                .values()
                .next()
                .map_or_else(String::new, |label| format!("label {}", text(label))),
            other => text(other),
        };
        write!(line, ", in order of {order}").ok();
    }
    if let Some(gate) = said("gate").filter(|gate| gate != "none") {
        write!(line, ", gate {gate}").ok();
    }
    line
}

/// One row per member, at most so many: those that move and those that ended badly come first, in
/// the group's order.
pub fn members(output: Output, group: &api::Group, limit: usize, wide: bool) -> String {
    let with_waves = !group.waves.is_empty();
    let mut headings = vec!["#", "SCOPE"];
    if with_waves {
        headings.push("WAVE");
    }
    headings.extend(["STATUS", "TRAFFIC", "DUE", "ID"]);
    if wide {
        headings.extend(["FOR", "RETURNED BY", "BEFORE"]);
    }
    headings.push("WHY");
    let mut table = Table::new(&headings);
    let now = time::now_ms();
    let shown = chosen(&group.members, limit);
    for member in &shown {
        let status = member.status();
        let mut cells = vec![
            (Tone::Faint, (member.position + 1).to_string()),
            (Tone::Strong, member.scope.clone()),
        ];
        if with_waves {
            cells.push((Tone::Plain, dash(&member.wave).to_owned()));
        }
        cells.extend([
            (super::tone(status), status.as_str_name().to_owned()),
            (Tone::Plain, share(member)),
            (Tone::Plain, due(member, now)),
            (Tone::Faint, member.short_id.clone()),
        ]);
        if wide {
            let returned = if member.rollback.is_empty() {
                "-".to_owned()
            } else {
                format!(
                    "{} {}",
                    short(&member.rollback),
                    member.rollback_status().as_str_name()
                )
            };
            let former: Vec<String> = member.former.iter().map(|id| short(id)).collect();
            cells.extend([
                (Tone::Faint, time::age(member.status_since_ms, now)),
                (Tone::Plain, returned),
                (Tone::Plain, dash(&former.join(",")).to_owned()),
            ]);
        }
        cells.push((Tone::Plain, dash(&member_why(member, now)).to_owned()));
        table.toned(cells);
    }
    let left_out = group.members.len() - shown.len();
    let more = if left_out > 0 {
        let line = format!(
            "… and {left_out} more; all of them: tidegate group get {}\n",
            group.short_id
        );
        output.paint(Tone::Faint, &line)
    } else {
        String::new()
    };
    format!("{}{more}", table.render(output, "It has no members."))
}

/// The members that a short table shows, in the group's order: what moves, what went wrong, what
/// comes next, then the others.
fn chosen(members: &[api::GroupMember], limit: usize) -> Vec<&api::GroupMember> {
    let mut shown: Vec<&api::GroupMember> = members.iter().collect();
    if shown.len() > limit {
        shown.sort_by_key(|member| {
            let rank = match member.status() {
                MemberStatus::Finalized | MemberStatus::Deleted => 3,
                MemberStatus::Pending | MemberStatus::CreatingApproval => 2,
                MemberStatus::Cancelled => 1,
                MemberStatus::Failed
                | MemberStatus::RolledBack
                | MemberStatus::CreatingApprovalDenied
                | MemberStatus::Creating
                | MemberStatus::WaitingForInstances
                | MemberStatus::Running
                | MemberStatus::Finalizing
                | MemberStatus::Cancelling
                | MemberStatus::RollingBack
                | MemberStatus::Deleting
                | MemberStatus::Unspecified => 0,
            };
            (rank, member.position)
        });
        shown.truncate(limit);
        shown.sort_by_key(|member| member.position);
    }
    shown
}

fn share(member: &api::GroupMember) -> String {
    let status = member.status();
    match &member.traffic {
        Some(traffic) if super::has_traffic(status) => super::weight_on_its_way(traffic),
        Some(traffic) if status == MemberStatus::Finalized && member.rollback.is_empty() => {
            weight(i64::from(traffic.desired))
        }
        Some(_) | None => "-".to_owned(),
    }
}

fn due(member: &api::GroupMember, now: u64) -> String {
    match member.status() {
        MemberStatus::Pending | MemberStatus::CreatingApproval => time::until(member.due_ms, now),
        _ => "-".to_owned(),
    }
}

/// What a member waits for or how it ended, without control characters.
pub fn member_why(member: &api::GroupMember, now: u64) -> String {
    let mut why = if member.why.is_empty() {
        member.outcome.replace('_', " ")
    } else {
        time::told(&member.why, now)
    };
    if !member.rollback.is_empty() {
        let status = member.rollback_status().as_str_name();
        let line = format!("returned by {}, {status}", short(&member.rollback));
        why = if why.is_empty() {
            line
        } else {
            format!("{line}; {why}")
        };
    }
    printable(&why)
}

/// A deployment's id as people type it.
fn short(id: &str) -> String {
    let start = id.len().saturating_sub(8);
    id.get(start..).unwrap_or(id).to_lowercase()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::output::Format;

    fn member(position: u32, scope: &str, status: MemberStatus, why: &str) -> api::GroupMember {
        api::GroupMember {
            scope: scope.to_owned(),
            deployment: format!("01ARZ3NDEKTSV4RRFFQ69G5FA{position}"),
            short_id: format!("q69g5fa{position}"),
            status: status.into(),
            position,
            wave: if position == 0 { "canary" } else { "rest" }.to_owned(),
            wave_number: 1 + position.min(1),
            why: why.to_owned(),
            traffic: Some(api::Traffic {
                desired: 10_000,
                actual: 5_000,
                observed_share: 0,
            }),
            ..api::GroupMember::default()
        }
    }

    /// A group whose first wave is done.
    pub fn sample() -> api::Group {
        api::Group {
            id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
            short_id: "q69g5fav".to_owned(),
            metadata: Some(api::Metadata {
                name: "spring".to_owned(),
                created_by: "user:ann".to_owned(),
                created_at_ms: 1_700_000_000_000,
                ..api::Metadata::default()
            }),
            application: "web".to_owned(),
            version: "1.4.0".to_owned(),
            status: Status::Running.into(),
            begun: true,
            rollout: r#"{"kind":"waves","gate":"healthy","order":"name"}"#.to_owned(),
            counts: Some(api::GroupCounts {
                members: 3,
                waiting: 1,
                under_way: 1,
                finalized: 1,
                other_ends: 0,
            }),
            budget: Some(api::GroupBudget {
                failures: 0,
                allowed: 1,
                ..api::GroupBudget::default()
            }),
            waves: vec![
                api::Wave {
                    name: "canary".to_owned(),
                    state: WaveState::Done.into(),
                    members: 1,
                    bake_ms: 60_000,
                    ..api::Wave::default()
                },
                api::Wave {
                    name: "rest".to_owned(),
                    state: WaveState::Current.into(),
                    members: 2,
                    ..api::Wave::default()
                },
            ],
            members: vec![
                member(0, "web-eu", MemberStatus::Finalized, ""),
                member(1, "web-us", MemberStatus::Running, "the hold of step 2"),
                member(
                    2,
                    "web-zz",
                    MemberStatus::Pending,
                    "no_agents: none matches",
                ),
            ],
            why: "member web-us is RUNNING: the hold of step 2".to_owned(),
            ..api::Group::default()
        }
    }

    #[test]
    fn the_page_tells_what_is_in_the_way_first_and_then_every_member() {
        let text = page(Output::plain(Format::Table), &sample(), false);
        for line in [
            "group        spring  q69g5fav  01ARZ3NDEKTSV4RRFFQ69G5FAV\n",
            "status       RUNNING\n",
            "in the way   member web-us is RUNNING: the hold of step 2\n",
            "members      ██████████▒▒▒▒▒▒▒▒▒▒░░░░░░░░░░ 1 finalized, 1 under way, 1 waiting of 3 members\n",
            "budget       0 failed, 1 may\n",
            "rollout      waves, in order of name, gate healthy\n",
            "waves        ✓ canary (1) → ▶ rest (2)\n",
            "#  SCOPE   WAVE    STATUS     TRAFFIC       DUE  ID        WHY\n",
            "2  web-us  rest    RUNNING    50 % → 100 %  -    q69g5fa1  the hold of step 2\n",
            "3  web-zz  rest    PENDING    -             -    q69g5fa2  no_agents: none matches\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_short_table_keeps_what_moves_and_says_how_many_it_left_out() {
        let mut group = sample();
        for position in 3..60 {
            group.members.push(member(
                position,
                &format!("web-{position}"),
                MemberStatus::Finalized,
                "",
            ));
        }
        group
            .members
            .push(member(60, "web-late", MemberStatus::Failed, "boom"));
        let text = members(Output::plain(Format::Table), &group, 4, false);
        for scope in ["web-us", "web-zz", "web-late", "… and 57 more"] {
            assert!(text.contains(scope), "{text}");
        }
        assert_eq!(text.lines().count(), 6, "{text}");
    }

    #[test]
    fn an_exceeded_budget_says_what_follows() {
        let mut group = sample();
        let budget = group.budget.as_mut().unwrap();
        budget.failures = 2;
        budget.exceeded = true;
        budget.on_breach = "halt".to_owned();
        let text = heading(Output::plain(Format::Table), &group);
        assert!(
            text.contains("budget       2 failed, 1 may: exceeded, no further member starts\n"),
            "{text}"
        );
    }

    #[test]
    fn exit_statuses_follow_the_worst_of_what_happened() {
        let ended = |status: Status, outcome: &str| {
            exit_status(&api::Group {
                status: status.into(),
                outcome: outcome.to_owned(),
                ..api::Group::default()
            })
        };
        assert_eq!(ended(Status::Finalized, "succeeded"), 0);
        assert_eq!(ended(Status::Finalized, "mixed"), 5);
        assert_eq!(ended(Status::Finalized, "failed"), 5);
        assert_eq!(ended(Status::RolledBack, ""), 3);
        assert_eq!(ended(Status::CreatingApprovalDenied, ""), 4);
        assert_eq!(ended(Status::Cancelled, ""), 5);
    }

    #[test]
    fn rollouts_read_as_a_line() {
        assert_eq!(rollout_line(""), "all_at_once");
        assert_eq!(
            rollout_line(
                r#"{"kind":"linear","interval":"1m","order":{"label":"zone"},"gate":"none"}"#
            ),
            "linear, one every 1m, in order of label zone"
        );
        assert_eq!(
            rollout_line(r#"{"kind":"linear_normalized","interval":"1h"}"#),
            "linear_normalized, all within 1h"
        );
    }

    #[test]
    fn a_returned_member_names_the_deployment_that_returned_it() {
        let mut group = sample();
        group.members[0].rollback = "01ARZ3NDEKTSV4RRFFQ69G5FZZ".to_owned();
        group.members[0].rollback_status = MemberStatus::Finalized.into();
        let text = members(Output::plain(Format::Table), &group, usize::MAX, false);
        assert!(text.contains("returned by q69g5fzz, FINALIZED"), "{text}");
    }
}
