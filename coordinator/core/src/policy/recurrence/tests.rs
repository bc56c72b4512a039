//! Recurrence rules: examples of RFC 5545, and another implementation as an oracle.

use super::*;
use proptest::prelude::*;

fn starts(rule: &str, start: &str, from: &str, most: usize) -> Vec<String> {
    let start = local_time(start).unwrap();
    let rule = Recurrence::parse(rule, start).unwrap();
    let found = rule.from(local_time(from).unwrap()).take(most);
    found.map(show).collect()
}

fn show(local: Local) -> String {
    let (year, month, day) = civil(local.div_euclid(86_400));
    let second = local.rem_euclid(86_400);
    let (hour, minute) = (second / 3_600, second % 3_600 / 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}",
        second % 60
    )
}

#[test]
fn examples_of_the_standard() {
    for (rule, start, wanted) in [
        (
            "FREQ=DAILY;COUNT=3",
            "1997-09-02T09:00:00",
            "1997-09-02T09:00:00 1997-09-03T09:00:00 1997-09-04T09:00:00",
        ),
        (
            "FREQ=DAILY;INTERVAL=10;COUNT=3",
            "1997-09-02T09:00:00",
            "1997-09-02T09:00:00 1997-09-12T09:00:00 1997-09-22T09:00:00",
        ),
        (
            "FREQ=WEEKLY;INTERVAL=2;COUNT=4;WKST=SU;BYDAY=TU,TH",
            "1997-09-02T09:00:00",
            "1997-09-02T09:00:00 1997-09-04T09:00:00 1997-09-16T09:00:00 1997-09-18T09:00:00",
        ),
        (
            "FREQ=MONTHLY;COUNT=3;BYDAY=1FR",
            "1997-09-05T09:00:00",
            "1997-09-05T09:00:00 1997-10-03T09:00:00 1997-11-07T09:00:00",
        ),
        (
            "FREQ=MONTHLY;INTERVAL=2;COUNT=4;BYDAY=1SU,-1SU",
            "1997-09-07T09:00:00",
            "1997-09-07T09:00:00 1997-09-28T09:00:00 1997-11-02T09:00:00 1997-11-30T09:00:00",
        ),
        (
            "FREQ=MONTHLY;COUNT=3;BYMONTHDAY=-3",
            "1997-09-28T09:00:00",
            "1997-09-28T09:00:00 1997-10-29T09:00:00 1997-11-28T09:00:00",
        ),
        (
            "FREQ=MONTHLY;COUNT=3;BYDAY=TU,WE,TH;BYSETPOS=3",
            "1997-09-04T09:00:00",
            "1997-09-04T09:00:00 1997-10-07T09:00:00 1997-11-06T09:00:00",
        ),
        (
            "FREQ=YEARLY;COUNT=2;BYWEEKNO=20;BYDAY=MO",
            "1997-05-12T09:00:00",
            "1997-05-12T09:00:00 1998-05-11T09:00:00",
        ),
        (
            "FREQ=YEARLY;INTERVAL=3;COUNT=3;BYYEARDAY=1,100,200",
            "1997-01-01T09:00:00",
            "1997-01-01T09:00:00 1997-04-10T09:00:00 1997-07-19T09:00:00",
        ),
        (
            "FREQ=YEARLY;BYDAY=20MO;COUNT=2",
            "1997-05-19T09:00:00",
            "1997-05-19T09:00:00 1998-05-18T09:00:00",
        ),
        (
            "FREQ=YEARLY;INTERVAL=4;COUNT=2;BYMONTH=11;BYDAY=TU;BYMONTHDAY=2,3,4,5,6,7,8",
            "1996-11-05T09:00:00",
            "1996-11-05T09:00:00 2000-11-07T09:00:00",
        ),
        (
            "FREQ=HOURLY;INTERVAL=3;UNTIL=19970902T170000",
            "1997-09-02T09:00:00",
            "1997-09-02T09:00:00 1997-09-02T12:00:00 1997-09-02T15:00:00",
        ),
        (
            "FREQ=MINUTELY;INTERVAL=90;COUNT=3",
            "1997-09-02T09:00:00",
            "1997-09-02T09:00:00 1997-09-02T10:30:00 1997-09-02T12:00:00",
        ),
        (
            "FREQ=WEEKLY;INTERVAL=2;COUNT=4;BYDAY=TU,SU;WKST=MO",
            "1997-08-05T09:00:00",
            "1997-08-05T09:00:00 1997-08-10T09:00:00 1997-08-19T09:00:00 1997-08-24T09:00:00",
        ),
        (
            "FREQ=WEEKLY;INTERVAL=2;COUNT=4;BYDAY=TU,SU;WKST=SU",
            "1997-08-05T09:00:00",
            "1997-08-05T09:00:00 1997-08-17T09:00:00 1997-08-19T09:00:00 1997-08-31T09:00:00",
        ),
        // Only where the day exists.
        (
            "FREQ=MONTHLY;BYMONTHDAY=15,30;COUNT=5",
            "2007-01-15T09:00:00",
            "2007-01-15T09:00:00 2007-01-30T09:00:00 2007-02-15T09:00:00 2007-03-15T09:00:00 2007-03-30T09:00:00",
        ),
        // Leap days; 2100 is none.
        (
            "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29;COUNT=3",
            "2092-01-01T00:00:00",
            "2092-02-29T00:00:00 2096-02-29T00:00:00 2104-02-29T00:00:00",
        ),
    ] {
        let found = starts(rule, start, start, 10);
        let wanted: Vec<&str> = wanted.split(' ').collect();
        assert_eq!(found[..wanted.len().min(found.len())], wanted, "{rule}");
    }
}

#[test]
fn a_walk_ends_where_nothing_matches() {
    for rule in [
        "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=DAILY;BYMONTH=4;BYMONTHDAY=31",
        "FREQ=DAILY;UNTIL=20200101T000000",
    ] {
        assert_eq!(
            starts(rule, "2026-01-01T00:00:00", "2026-01-01T00:00:00", 1),
            [""; 0],
            "{rule}"
        );
    }
    let counted = starts(
        "FREQ=DAILY;COUNT=5",
        "2026-01-01T00:00:00",
        "2026-01-05T00:00:00",
        9,
    );
    assert_eq!(counted, ["2026-01-05T00:00:00"]);
}

#[test]
fn mistakes_are_located() {
    for (rule, position, word) in [
        ("FREQ=DAILY;BYHOUR=24", 12, "0 to 23"),
        ("FREQ=DALY", 1, "DALY"),
        ("BYHOUR=9", 1, "FREQ"),
        ("FREQ=DAILY;COUNT=1;UNTIL=20260101T000000Z", 1, "exclude"),
        ("FREQ=DAILY;UNTIL=20260101", 12, "date with a time"),
        ("FREQ=DAILY;EVERY=2", 12, "EVERY"),
        ("FREQ=WEEKLY;BYDAY=1MO", 1, "1MO"),
        ("FREQ=WEEKLY;BYDAY=MO,XX", 13, "XX"),
        ("FREQ=DAILY;FREQ=DAILY", 12, "twice"),
        ("RRULE:FREQ=DAILY;nonsense", 18, "KEY=VALUE"),
        ("FREQ=DAILY;COUNT=0", 12, "1 to"),
        ("", 1, "KEY=VALUE"),
    ] {
        let error = Recurrence::parse(rule, 0).unwrap_err();
        assert_eq!(error.position, position, "{rule}: {error}");
        assert!(error.message.contains(word), "{rule}: {error}");
    }
}

/// Rules as people write them.
fn any_rule() -> impl Strategy<Value = String> {
    let days = prop::sample::subsequence(vec!["MO", "TU", "WE", "TH", "FR", "SA", "SU"], 1..4);
    let nth = prop::sample::subsequence(vec!["1MO", "-1FR", "2TU", "-2SU", "3WE"], 1..3);
    let month_days = prop::sample::subsequence(vec!["1", "15", "29", "31", "-1", "-3"], 1..3);
    let months = prop::sample::subsequence(vec!["1", "2", "6", "12"], 1..3);
    let join = |key: &'static str| move |list: Vec<&str>| format!(";{key}={}", list.join(","));
    let day_part = prop_oneof![Just(String::new()), days.clone().prop_map(join("BYDAY")),];
    let large_part = prop_oneof![
        Just(String::new()),
        days.prop_map(join("BYDAY")),
        nth.prop_map(join("BYDAY")),
        month_days.prop_map(join("BYMONTHDAY")),
    ];
    let month_part = prop_oneof![Just(String::new()), months.prop_map(join("BYMONTH"))];
    let hours = prop_oneof![
        Just(String::new()),
        (0..24).prop_map(|h| format!(";BYHOUR={h};BYMINUTE=0;BYSECOND=0")),
        (0..12).prop_map(|h| format!(";BYHOUR={h},{};BYMINUTE=0,30;BYSECOND=0", h + 12)),
    ];
    let large = (
        prop_oneof![Just("YEARLY"), Just("MONTHLY")],
        large_part,
        month_part,
    )
        .prop_map(|(freq, day, month)| format!("FREQ={freq}{month}{day}"));
    let small = (prop_oneof![Just("WEEKLY"), Just("DAILY")], day_part)
        .prop_map(|(freq, day)| format!("FREQ={freq}{day}"));
    let count = prop_oneof![
        Just(String::new()),
        (1..9).prop_map(|n| format!(";COUNT={n}"))
    ];
    let head = (prop_oneof![large, small], 1..5, hours, count);
    head.prop_map(|(head, interval, hours, count)| {
        format!("{head};INTERVAL={interval}{hours}{count}")
    })
}

proptest! {
    /// A crate of others, which walks from DTSTART on, finds the same starts.
    #[test]
    fn starts_are_those_of_another_implementation(
        rule in any_rule(),
        day in 18_000_i64..20_000,
        hour in 0_i64..24,
        skip in 0_usize..6,
    ) {
        let start = day * 86_400 + hour * 3_600;
        let ours = Recurrence::parse(&rule, start).unwrap();
        let at = chrono::DateTime::from_timestamp(start, 0).unwrap();
        let text = format!("DTSTART:{}\nRRULE:{rule}", at.format("%Y%m%dT%H%M%SZ"));
        let theirs: rrule::RRuleSet = text.parse().unwrap();
        let wanted: Vec<i64> = theirs.all(12).dates.iter().map(|d| d.timestamp()).collect();
        let found: Vec<i64> = ours.from(start).take(12).collect();
        prop_assert_eq!(&found, &wanted, "{}", text);
        // Entered in the middle, it goes on as it would have.
        if let Some(middle) = wanted.get(skip) {
            let rest: Vec<i64> = ours.from(*middle).take(12 - skip).collect();
            prop_assert_eq!(&rest[..wanted.len() - skip], &wanted[skip..]);
            let after = ours.from(*middle + 1).next();
            prop_assert_eq!(after.as_ref(), wanted.get(skip + 1).or(after.as_ref()));
        }
    }

    #[test]
    fn no_text_breaks_the_reader(text in "[A-Z=;,0-9+-]{0,60}", start in 0_i64..4_000_000_000) {
        if let Ok(rule) = Recurrence::parse(&text, start) {
            let found: Vec<_> = rule.from(start).take(5).collect();
            prop_assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
