//! Windows over daylight saving, at their edges, and against somebody who looks every minute.

use super::*;
use proptest::prelude::*;

fn at(text: &str) -> Timestamp {
    let time = chrono::DateTime::parse_from_rfc3339(text).unwrap();
    Timestamp::from_millis(time.timestamp_millis() as u64)
}

fn window(kind: WindowKind, rules: &[&str], start: &str, hours: u64, zone: &str) -> Window {
    Window::compile(&rule(
        kind,
        rules,
        Some(start),
        Span::from_hours(hours),
        zone,
    ))
    .unwrap()
}

fn rule(
    kind: WindowKind,
    rules: &[&str],
    start: Option<&str>,
    duration: Span,
    zone: &str,
) -> WindowRule {
    WindowRule {
        kind,
        rrules: rules.iter().map(|rule| (*rule).to_owned()).collect(),
        dtstart: start.map(str::to_owned),
        duration,
        time_zone: zone.to_owned(),
        outcome: WindowOutcome::Wait,
        first_deployment: FirstDeployment::Obey,
    }
}

#[test]
fn daylight_saving_keeps_the_wall_clock_of_starts_and_elapsed_durations() {
    let nightly = ["FREQ=DAILY;BYHOUR=2;BYMINUTE=30;BYSECOND=0"];
    let start = "2026-01-01T00:00:00";
    for (zone, hours, asked, open, changes) in [
        // The start falls into the gap: the offset before it counts.
        (
            "Europe/Berlin",
            1,
            "2026-03-29T01:30:00Z",
            true,
            "2026-03-29T02:30:00Z",
        ),
        (
            "Europe/Berlin",
            1,
            "2026-03-30T00:29:59Z",
            false,
            "2026-03-30T00:30:00Z",
        ),
        // The start comes twice: the first counts, and the second is none.
        (
            "Europe/Berlin",
            1,
            "2026-10-25T01:30:00Z",
            false,
            "2026-10-26T01:30:00Z",
        ),
        // A day of 23 hours, one of 25: a window of 24 hours overlaps, or leaves an hour.
        (
            "Europe/Berlin",
            24,
            "2026-10-26T00:45:00Z",
            false,
            "2026-10-26T01:30:00Z",
        ),
        (
            "Australia/Lord_Howe",
            1,
            "2026-10-03T15:59:00Z",
            true,
            "2026-10-03T16:30:00Z",
        ),
        (
            "America/Sao_Paulo",
            1,
            "2026-03-29T05:30:00Z",
            true,
            "2026-03-29T06:30:00Z",
        ),
    ] {
        let window = window(WindowKind::Allow, &nightly, start, hours, zone);
        let wanted = WindowState {
            open,
            changes_at: Some(at(changes)),
        };
        assert_eq!(window.state(at(asked)), wanted, "{zone} {asked}");
    }
}

#[test]
fn starts_that_the_zone_skips_come_in_order_of_time() {
    // 02:30 does not exist and is 03:30; 03:00 comes before it.
    let rule = "FREQ=DAILY;COUNT=4;BYHOUR=2,3;BYMINUTE=0,30;BYSECOND=0";
    let spec = rule_of(rule, Span::from_mins(10));
    let window = Window::compile(&spec).unwrap();
    let spans: Vec<String> = window
        .spans(Timestamp::ZERO)
        .map(|(start, end)| format!("{start} {}", end.unwrap()))
        .collect();
    assert_eq!(
        spans,
        [
            "2026-03-29T01:00:00.000Z 2026-03-29T01:10:00.000Z",
            "2026-03-29T01:30:00.000Z 2026-03-29T01:40:00.000Z",
        ]
    );
}

fn rule_of(text: &str, duration: Span) -> WindowRule {
    let start = Some("2026-03-29T00:00:00");
    rule(WindowKind::Allow, &[text], start, duration, "Europe/Berlin")
}

#[test]
fn spans_that_touch_or_overlap_are_one_and_the_end_of_a_rule_is_the_end() {
    let daily = |rule, hours| {
        window(
            WindowKind::Deny,
            &[rule],
            "2026-01-05T00:00:00",
            hours,
            "UTC",
        )
    };
    let never = WindowState {
        open: false,
        changes_at: None,
    };
    let noon = at("2026-06-01T12:00:00Z");
    assert_eq!(daily("FREQ=DAILY", 24).state(noon), never);
    assert_eq!(daily("FREQ=DAILY", 48).state(noon), never);
    let counted = daily("FREQ=DAILY;COUNT=400", 24).state(noon);
    assert_eq!(counted.changes_at, Some(at("2027-02-09T00:00:00Z")));
    let until = daily("FREQ=DAILY;UNTIL=20300101T000000Z", 24).state(noon);
    assert_eq!(until.changes_at, Some(at("2030-01-02T00:00:00Z")));
    let over = daily("FREQ=DAILY;COUNT=2", 1).state(noon);
    assert_eq!((over.open, over.changes_at), (true, None));
    let before = daily("FREQ=DAILY;COUNT=2", 1).state(at("2020-01-01T00:00:00Z"));
    assert_eq!(before.changes_at, Some(at("2026-01-05T00:00:00Z")));
    // A wall-clock UNTIL is one of the zone.
    let spec = rule(
        WindowKind::Allow,
        &["FREQ=DAILY;UNTIL=20260602T000000"],
        Some("2026-06-01T00:00:00"),
        Span::from_hours(1),
        "America/New_York",
    );
    let last = Window::compile(&spec)
        .unwrap()
        .state(at("2026-06-02T04:00:00Z"));
    assert!(last.open);
}

#[test]
fn a_closed_window_waits_or_denies_and_first_deployments_may_be_exempt() {
    let mut spec = rule(
        WindowKind::Allow,
        &["FREQ=DAILY;BYHOUR=9"],
        Some("2026-06-01T00:00:00"),
        Span::from_hours(8),
        "UTC",
    );
    let night = at("2026-06-01T20:00:00Z");
    let answer = |spec: &WindowRule, first| Window::compile(spec).unwrap().answer(night, first);
    let morning = at("2026-06-02T09:00:00Z");
    assert_eq!(answer(&spec, true).until(), Some(morning));
    assert_eq!(answer(&spec, true).next_evaluation, Some(morning));
    spec.first_deployment = FirstDeployment::Exempt;
    assert!(answer(&spec, true).is_allowed() && !answer(&spec, false).is_allowed());
    spec.outcome = WindowOutcome::Deny;
    assert_eq!(answer(&spec, false).verdict, crate::policy::Verdict::Denied);
    let noon = Window::compile(&spec)
        .unwrap()
        .answer(at("2026-06-02T12:00:00Z"), false);
    assert_eq!(noon.next_evaluation, Some(at("2026-06-02T17:00:00Z")));
}

#[test]
fn every_mistake_is_named_with_its_place() {
    let spec = rule(
        WindowKind::Allow,
        &[
            "FREQ=DAILY;BYHOUR=25",
            "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30",
        ],
        Some("tomorrow"),
        Span::from_hours(1),
        "Europe/Atlantis",
    );
    let mistakes = Window::compile(&spec).unwrap_err();
    let told: Vec<(&str, usize)> = mistakes
        .iter()
        .map(|m| (m.field.as_str(), m.position))
        .collect();
    assert_eq!(
        told,
        [
            ("dtstart", 1),
            ("time_zone", 1),
            ("rrules[0]", 12),
            ("rrules[1]", 1)
        ]
    );
    let uncounted = rule(
        WindowKind::Allow,
        &["FREQ=DAILY;INTERVAL=2"],
        None,
        Span::from_hours(1),
        "UTC",
    );
    assert!(
        Window::compile(&uncounted).unwrap_err()[0]
            .message
            .contains("dtstart")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Stepped through minute by minute, a window is open exactly where the last start is less than
    /// its duration ago, and `changes_at` is the first minute at which the answer differs.
    #[test]
    fn an_explained_change_is_when_the_answer_changes(
        zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
        hour in 0_i64..24,
        minute in prop::sample::select(vec![0_i64, 30]),
        minutes in prop::sample::select(vec![1_i64, 30, 90, 1_440, 1_500, 2_880]),
        deny: bool,
        days in prop::sample::select(vec!["", ";BYDAY=SA", ";BYDAY=MO,TU,SU"]),
        season in prop::sample::select(vec!["2026-03-07T00:00:00Z", "2026-03-28T00:00:00Z", "2026-04-04T00:00:00Z", "2026-10-03T00:00:00Z", "2026-10-24T00:00:00Z", "2026-10-31T00:00:00Z"]),
    ) {
        let kind = if deny { WindowKind::Deny } else { WindowKind::Allow };
        let text = format!("FREQ=DAILY{days};BYHOUR={hour};BYMINUTE={minute};BYSECOND=0");
        let span = Span::from_mins(minutes as u64);
        let spec = rule(kind, &[&text], Some("2026-01-01T00:00:00"), span, zone);
        let window = Window::compile(&spec).unwrap();
        let tz = Zone::parse(zone).unwrap();
        let begin = (at(season).millis() / 1_000) as i64;
        let mut cursor = window.cursor(at(season));
        let mut last_start = i64::MIN / 2;
        let mut before: Option<WindowState> = None;
        for minute_now in -3_000..2_880 {
            let now = begin + minute_now * 60;
            if is_start(tz, now, hour * 3_600 + minute * 60, days) {
                last_start = minute_now;
            }
            if minute_now < 0 {
                continue;
            }
            let state = cursor.state(Timestamp::from_millis(now as u64 * 1_000));
            let inside = minute_now - last_start < minutes;
            prop_assert_eq!(state.open, inside != deny, "{} {}", now, text);
            if let Some(before) = before.filter(|before| before.open != state.open) {
                let now = Timestamp::from_millis(now as u64 * 1_000);
                prop_assert_eq!(before.changes_at, Some(now));
                prop_assert_eq!(window.state(now), state);
            }
            before = Some(state);
        }
    }
}

/// Whether the rule starts at this very instant, found without walking it.
fn is_start(zone: Zone, seconds: i64, wanted: i64, days: &str) -> bool {
    let today = zone.local(seconds).div_euclid(86_400);
    (today - 1..=today + 1).any(|day| {
        let name = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"][(day + 3).rem_euclid(7) as usize];
        let allowed = days.is_empty() || days.contains(name);
        allowed && zone.instant(day * 86_400 + wanted).seconds == seconds
    })
}
