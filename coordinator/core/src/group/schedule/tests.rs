//! Rollout schedules at their bounds, and against somebody who looks every minute.

use super::*;
use crate::group::open_time::Stop;
use crate::policy::window::Window;
use proptest::prelude::*;
use tidegate_shared::spec::{FirstDeployment, WindowKind, WindowOutcome, WindowRule};

const MINUTE: u64 = 60_000;

fn at(text: &str) -> Timestamp {
    let time = chrono::DateTime::parse_from_rfc3339(text).unwrap();
    Timestamp::from_millis(time.timestamp_millis() as u64)
}

fn window(kind: WindowKind, rule: &str, minutes: u64) -> Window {
    Window::compile(&WindowRule {
        kind,
        rrules: vec![rule.to_owned()],
        dtstart: Some("2026-01-05T00:00:00".to_owned()),
        duration: Span::from_mins(minutes),
        time_zone: "Europe/Berlin".to_owned(),
        outcome: WindowOutcome::Wait,
        first_deployment: FirstDeployment::Obey,
    })
    .unwrap()
}

fn pace(kind: GradualType, minutes: u64) -> Pace {
    Pace {
        kind,
        interval: Span::from_mins(minutes),
    }
}

#[test]
fn offsets_at_their_bounds() {
    let linear = pace(GradualType::Linear, 1);
    let normalized = pace(GradualType::LinearNormalized, 1);
    assert_eq!(linear.offset(0, 0), Span::ZERO);
    assert_eq!(normalized.offset(0, 0), Span::ZERO);
    assert_eq!(normalized.offset(1, 0), Span::ZERO);
    assert_eq!(normalized.offset(7, 6), Span::from_secs(51));
    // More than fits saturates.
    assert_eq!(linear.offset(u64::MAX, u64::MAX).millis(), u64::MAX);
    assert!(normalized.offset(u64::MAX, u64::MAX - 1) <= Span::from_mins(1));
}

#[test]
fn a_base_is_the_latest_of_everything_or_not_there_yet() {
    let (early, late) = (at("2026-06-01T00:00:00Z"), at("2026-06-02T00:00:00Z"));
    assert_eq!(base(late, []), Some(late));
    assert_eq!(base(early, [Some(late)]), Some(late));
    assert_eq!(base(late, [Some(early)]), Some(late));
    assert_eq!(base(late, [Some(early), None]), None);
}

#[test]
fn a_span_that_ends_exactly_at_an_offset_goes_on_where_it_opens_again() {
    let hour = [window(WindowKind::Allow, "FREQ=DAILY;BYHOUR=9", 60)];
    let openings = Openings {
        windows: &hour,
        stops: &[],
    };
    let found = schedule(
        pace(GradualType::Linear, 60),
        3,
        at("2026-06-01T00:00:00Z"),
        openings,
    );
    let wanted = [
        "2026-06-01T07:00:00Z",
        "2026-06-02T07:00:00Z",
        "2026-06-03T07:00:00Z",
    ];
    assert_eq!(found.due, wanted.map(|text| Some(at(text))));
}

#[test]
fn what_never_opens_is_never_due() {
    let apart = [
        window(WindowKind::Allow, "FREQ=DAILY;BYHOUR=9", 60),
        window(WindowKind::Allow, "FREQ=DAILY;BYHOUR=10", 60),
    ];
    let openings = Openings {
        windows: &apart,
        stops: &[],
    };
    let found = schedule(
        pace(GradualType::Linear, 1),
        2,
        at("2026-06-01T00:00:00Z"),
        openings,
    );
    assert_eq!((found.start, found.due), (None, vec![None, None]));
    let over = [window(WindowKind::Allow, "FREQ=DAILY;COUNT=1", 60)];
    let openings = Openings {
        windows: &over,
        stops: &[],
    };
    let base = at("2026-01-04T23:30:00Z");
    let found = schedule(pace(GradualType::Linear, 20), 4, base, openings);
    assert_eq!(found.due[1], Some(at("2026-01-04T23:50:00Z")));
    assert_eq!(found.due[2..], [None, None]);
}

#[test]
fn a_freeze_stops_the_clock_and_a_backlog_is_paced() {
    let base = at("2026-06-01T00:00:00Z");
    let freeze = [Stop {
        from: base + Span::from_mins(5),
        until: Some(base + Span::from_mins(65)),
    }];
    let openings = Openings {
        windows: &[],
        stops: &freeze,
    };
    let pace = pace(GradualType::Linear, 10);
    let planned = schedule(pace, 3, base, openings).due;
    assert_eq!(planned[1], Some(base + Span::from_mins(70)));
    // The first started an hour late: the second keeps its distance from it.
    let late = Started {
        position: 0,
        at: base + Span::from_mins(120),
    };
    let second = due(pace, 3, 1, base, Some(late), openings);
    assert_eq!(second, Some(base + Span::from_mins(130)));
    let open_ended = [Stop {
        from: base,
        until: None,
    }];
    let openings = Openings {
        windows: &[],
        stops: &open_ended,
    };
    assert_eq!(due(pace, 3, 0, base, None, openings), None);
}

fn any_windows() -> impl Strategy<Value = Vec<Window>> {
    let one = (
        any::<bool>(),
        0_u32..24,
        prop::sample::select(vec![5_u64, 17, 60, 300]),
        any::<bool>(),
    );
    let one = one.prop_map(|(deny, hour, minutes, twice)| {
        let kind = if deny {
            WindowKind::Deny
        } else {
            WindowKind::Allow
        };
        let hours = match twice {
            true => format!("{},{}", hour.min(12), hour.min(12) + 9),
            false => hour.to_string(),
        };
        window(
            kind,
            &format!("FREQ=DAILY;BYHOUR={hours};BYMINUTE=7;BYSECOND=0"),
            minutes,
        )
    });
    prop::collection::vec(one, 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Due times are those of somebody who looks every minute and counts open minutes, and no window
    /// that opens releases two members at once.
    #[test]
    fn a_schedule_is_what_a_stepper_finds(
        windows in any_windows(),
        normalized: bool,
        members in 1_u64..7,
        minutes in 1_u64..40,
        first_minute in 0_u64..1_440,
        stop in (0_u64..600, 0_u64..600),
    ) {
        let kind = if normalized { GradualType::LinearNormalized } else { GradualType::Linear };
        // Whole minutes between members of both kinds.
        let pace = pace(kind, if normalized { minutes * members } else { minutes });
        let base = at("2026-03-28T00:00:00Z") + Span::from_mins(first_minute);
        let stops = [Stop {
            from: base + Span::from_mins(stop.0),
            until: Some(base + Span::from_mins(stop.0 + stop.1)),
        }];
        let openings = Openings { windows: &windows, stops: &stops };
        let found = schedule(pace, members, base, openings);
        let mut cursors: Vec<_> = windows.iter().map(|window| window.cursor(base)).collect();
        let mut is_open = |time: Timestamp| {
            cursors.iter_mut().all(|cursor| cursor.state(time).open)
                && !(stops[0].from <= time && stops[0].until.unwrap() > time)
        };
        let (mut open, mut position) = (0_u64, 0_u64);
        for minute in 0..4 * 1_440 {
            let time = base + Span::from_mins(minute);
            if !is_open(time) {
                continue;
            }
            if minute % 97 == 0 {
                let between = openings.between(base, time);
                prop_assert_eq!(between.millis(), open * MINUTE);
            }
            while position < members && pace.offset(members, position).millis() <= open * MINUTE {
                prop_assert_eq!(found.due[position as usize], Some(time));
                position += 1;
            }
            open += 1;
        }
        let times: Vec<_> = found.due.iter().flatten().collect();
        prop_assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "a burst: {:?}", times);
        prop_assert!(found.due.iter().skip(position as usize).flatten().all(|t| *t >= base + Span::from_mins(4 * 1_440)));
    }

    /// Whenever members actually start, the next is never closer to the last one than planned, in
    /// open time, and is due at an open instant.
    #[test]
    fn no_reopening_releases_a_burst(
        windows in any_windows(),
        delays in prop::collection::vec(0_u64..3_000, 1..6),
        minutes in 1_u64..40,
    ) {
        let pace = pace(GradualType::Linear, minutes);
        let members = delays.len() as u64;
        let base = at("2026-10-24T00:00:00Z");
        let openings = Openings { windows: &windows, stops: &[] };
        let mut last: Option<Started> = None;
        for (position, delay) in delays.iter().enumerate() {
            let position = position as u64;
            let Some(time) = due(pace, members, position, base, last, openings) else { break };
            prop_assert!(windows.iter().all(|window| window.state(time).open));
            if let Some(last) = last {
                prop_assert!(openings.between(last.at, time) >= pace.interval);
            }
            // It starts late, but only while everything is open.
            let Some(started) = openings.reach(time + Span::from_mins(*delay), Span::ZERO) else { break };
            last = Some(Started { position, at: started });
        }
    }
}
