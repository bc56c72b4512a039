//! Stories of one instance as tables: what happens when, and the state that must follow.

use super::*;

/// What happens at a time, and the state that must follow.
type Step = (
    u64,
    fn(&mut Instance, Settings<'_>, Timestamp),
    InstanceState,
);

fn up(i: &mut Instance, s: Settings<'_>, now: Timestamp) {
    i.launching();
    i.started(i.incarnation, (7, 20_000), s, now);
}
fn good(i: &mut Instance, s: Settings<'_>, now: Timestamp) {
    i.probing();
    i.probed(i.incarnation, Ok(()), s, now);
}
fn bad(i: &mut Instance, s: Settings<'_>, now: Timestamp) {
    i.probing();
    i.probed(i.incarnation, Err("refused".to_owned()), s, now);
}
fn exit(i: &mut Instance, s: Settings<'_>, now: Timestamp) {
    i.exited(i.incarnation, "exit status 1".to_owned(), s, now);
}
fn stale(i: &mut Instance, s: Settings<'_>, now: Timestamp) {
    i.probed(i.incarnation - 1, Ok(()), s, now);
    i.exited(i.incarnation - 1, "old".to_owned(), s, now);
}
fn stop(i: &mut Instance, _: Settings<'_>, _: Timestamp) {
    i.stopping();
}
fn stopped(i: &mut Instance, _: Settings<'_>, _: Timestamp) {
    i.stopped(i.incarnation, None);
}

fn run(check: &HealthCheck, max_restarts: u32, steps: &[Step]) -> Instance {
    let settings = Settings {
        check,
        max_restarts,
    };
    let mut instance = Instance::new(Timestamp::ZERO);
    for (number, (at, act, state)) in steps.iter().enumerate() {
        act(&mut instance, settings, Timestamp::from_millis(*at));
        assert_eq!(instance.state(), *state, "step {number}: {instance:?}");
    }
    instance
}

fn check(start_period: u64) -> HealthCheck {
    HealthCheck {
        healthy_threshold: 2,
        unhealthy_threshold: 3,
        start_period: Span::from_millis(start_period),
        ..HealthCheck::default()
    }
}

#[test]
fn thresholds_count_in_a_row() {
    use InstanceState::{Healthy, Starting, Unhealthy};
    run(
        &check(0),
        5,
        &[
            (0, up, Starting),
            (1, good, Starting),
            (2, bad, Starting),
            (3, good, Starting),
            (4, good, Healthy),
            (5, bad, Healthy),
            (6, bad, Healthy),
            (7, good, Healthy),
            (8, bad, Healthy),
            (9, bad, Healthy),
            (10, bad, Unhealthy),
            (11, good, Unhealthy),
            (12, good, Healthy),
        ],
    );
}

#[test]
fn the_start_period_forgives_failures() {
    use InstanceState::{Starting, Unhealthy};
    run(
        &check(1_000),
        5,
        &[
            (0, up, Starting),
            (100, bad, Starting),
            (200, bad, Starting),
            (999, bad, Starting),
            (1_000, bad, Starting),
            (1_001, bad, Starting),
            (1_002, bad, Unhealthy),
        ],
    );
}

#[test]
fn exits_are_unhealthy_at_once_and_used_up_restarts_fail() {
    use InstanceState::{Backoff, Failed, Healthy, Starting};
    let instance = run(
        &check(0),
        2,
        &[
            (0, up, Starting),
            (1, good, Starting),
            (2, good, Healthy),
            (3, exit, Backoff),
            (503, up, Starting),
            (504, stale, Starting),
            (504, exit, Backoff),
            (1_504, up, Starting),
            (1_505, exit, Failed),
        ],
    );
    assert_eq!((instance.restarts, instance.incarnation), (2, 3));
    assert_eq!(instance.start_due(false), None);
    assert_eq!(
        instance.start_due(true),
        Some(Timestamp::from_millis(61_505))
    );
    assert_eq!(instance.last_exit.as_deref(), Some("exit status 1"));
}

#[test]
fn a_stop_is_no_crash() {
    use InstanceState::{Healthy, Starting, Stopping};
    let instance = run(
        &check(0),
        0,
        &[
            (0, up, Starting),
            (1, good, Starting),
            (2, good, Healthy),
            (3, stop, Stopping),
            (4, stopped, Starting),
        ],
    );
    assert!(!instance.may_live());
    assert_eq!(instance.restarts, 0);
}

#[test]
fn long_health_forgives_restarts() {
    use InstanceState::{Backoff, Healthy, Starting};
    run(
        &check(0),
        1,
        &[
            (0, up, Starting),
            (1, exit, Backoff),
            (501, up, Starting),
            (502, good, Starting),
            (503, good, Healthy),
            (503 + STABLE_AFTER.millis(), exit, Backoff),
        ],
    );
}

#[test]
fn backoff_doubles_up_to_its_cap() {
    let waits: Vec<u64> = [0, 1, 2, 5, 6, 60, u32::MAX]
        .into_iter()
        .map(|n| backoff(n).millis())
        .collect();
    assert_eq!(waits, [500, 1_000, 2_000, 16_000, 30_000, 30_000, 30_000]);
}

#[test]
fn adoption_keeps_what_the_data_plane_holds() {
    let adopted = Adopted {
        incarnation: 3,
        restarts: 2,
        pid: 9,
        port: 20_001,
        healthy: true,
    };
    let now = Timestamp::from_millis(9);
    assert!(Instance::adopt(adopted.clone(), now).is_healthy());
    let check = check(0);
    let settings = Settings {
        check: &check,
        max_restarts: 5,
    };
    let lost = Instance::lost(adopted, settings, now);
    assert_eq!(lost.state(), InstanceState::Backoff);
    assert!(lost.last_exit.is_some_and(|how| how.contains("unknown")));
}

/// Checks a new instance whenever one is due, until it was checked so often: when each check was,
/// and what state it led to. Checks succeed from `listens` on.
fn checked(
    check: &HealthCheck,
    listens: u64,
    times: usize,
) -> (Vec<(u64, InstanceState)>, Instance) {
    let settings = Settings {
        check,
        max_restarts: 5,
    };
    let mut instance = Instance::new(Timestamp::ZERO);
    up(&mut instance, settings, Timestamp::ZERO);
    let mut found = Vec::new();
    for _ in 0..times {
        let due = instance.check_due().unwrap();
        let act = if due.millis() < listens { bad } else { good };
        act(&mut instance, settings, due);
        found.push((due.millis(), instance.state()));
    }
    (found, instance)
}

#[test]
fn one_that_is_not_up_yet_is_checked_soon_again() {
    use InstanceState::{Healthy, Starting};
    let once = HealthCheck {
        healthy_threshold: 1,
        ..check(0)
    };
    let (found, instance) = checked(&once, 600, 5);
    let expected = [
        (250, Starting),
        (500, Starting),
        (1_000, Healthy),
        (6_000, Healthy),
        (11_000, Healthy),
    ];
    assert_eq!(found, expected);
    // The two early failures are nobody's business; the ordinary one at 250 ms is one.
    assert_eq!(
        (instance.health_checks, instance.health_check_failures),
        (4, 1)
    );
    assert_eq!(instance.last_failure, None);
}

#[test]
fn early_checks_neither_hasten_the_thresholds_nor_delay_them() {
    use InstanceState::{Healthy, Starting, Unhealthy};
    // Unhealthy at the third of the checks that are an interval apart, as without early ones.
    let (found, instance) = checked(&check(0), u64::MAX, 8);
    let expected = [
        (250, Starting),
        (500, Starting),
        (1_000, Starting),
        (2_000, Starting),
        (4_000, Starting),
        (5_250, Starting),
        (10_250, Unhealthy),
        (15_250, Unhealthy),
    ];
    assert_eq!(found, expected);
    assert_eq!(
        (instance.health_checks, instance.health_check_failures),
        (4, 4)
    );
    // Two successes in a row are an interval apart, however early the first one is.
    let (found, _) = checked(&check(0), 400, 3);
    let expected = [(250, Starting), (500, Starting), (5_500, Healthy)];
    assert_eq!(found, expected);
}

#[test]
fn early_checks_begin_anew_with_each_start_and_never_after_health() {
    let check = HealthCheck {
        healthy_threshold: 1,
        ..check(0)
    };
    let settings = Settings {
        check: &check,
        max_restarts: 5,
    };
    let (_, mut instance) = checked(&check, 600, 4);
    let at = Timestamp::from_millis;
    bad(&mut instance, settings, at(11_000));
    assert_eq!(instance.check_due(), Some(at(16_000)));
    exit(&mut instance, settings, at(12_000));
    up(&mut instance, settings, at(13_000));
    assert_eq!(instance.check_due(), Some(at(13_250)));
    bad(&mut instance, settings, at(13_250));
    assert_eq!(instance.check_due(), Some(at(13_500)));
    // An interval below the first distance is kept.
    let quick = HealthCheck {
        interval: Span::from_millis(100),
        ..check
    };
    let (found, _) = checked(&quick, u64::MAX, 3);
    let times: Vec<u64> = found.into_iter().map(|(at, _)| at).collect();
    assert_eq!(times, [100, 200, 300]);
}
