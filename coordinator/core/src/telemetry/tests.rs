//! Windows over scripted reports: baselines, resets, lost and repeated reports, `for`.

use tidegate_shared::verdict::histogram::Histogram;

use super::*;
use crate::fixture::{START, World};

const RULE: &str =
    r#""metric":"http.error_rate","comparison":"greater_than","threshold":0.1,"judge":"raw""#;

fn world(rule: &str) -> World {
    let rules = format!(r#"{{"rollback":{{"rules":[{{{RULE},{rule}}}]}}}}"#);
    let mut world = World::new(2, 1, &rules, Status::Running);
    world.at_step(0, 50, Some(START));
    world
}

fn counters(requests: u64, errors: u64) -> Counters {
    Counters {
        requests,
        server_errors: errors,
        latency: Histogram::from_parts(requests * 10_000, [(106, requests)]).unwrap(),
        ..Counters::default()
    }
}

fn tell(world: &mut World, agent: &str, at: u64, stamp: u64, requests: u64, errors: u64) {
    world.now = START + Span::from_millis(at);
    let new = world.new;
    world.report(agent, |report| {
        let place = World::place_of(report, new);
        place.instances[0].start_stamp = Timestamp::from_millis(stamp);
        place.instances[0].counters = counters(requests, errors);
    });
}

fn verdict(world: &World) -> (Verdict, String, u64) {
    let judged = world.observed.telemetry.judge(world.candidate(), world.now);
    let evidence = &judged[0];
    (evidence.verdict, evidence.value.clone(), evidence.samples)
}

#[test]
fn the_first_levels_are_baselines() {
    let mut world = world(r#""window":"10s""#);
    tell(&mut world, "a1", 0, 1, 1_000, 900);
    assert_eq!(verdict(&world).0, Verdict::NoData);
    tell(&mut world, "a1", 500, 1, 1_100, 905);
    assert_eq!(verdict(&world), (Verdict::Pass, "0.05".to_owned(), 100));
    tell(&mut world, "a2", 600, 1, 5_000, 5_000);
    assert_eq!(verdict(&world), (Verdict::Pass, "0.05".to_owned(), 100));
    let figures =
        world
            .observed
            .telemetry
            .version_figures(world.new, Span::from_secs(10), world.now);
    assert_eq!(figures.map(|f| f.requests), Some(6_100));
}

#[test]
fn bad_answers_are_seen_at_the_first_report() {
    let mut world = world(r#""window":"1s""#);
    tell(&mut world, "a1", 0, 1, 0, 0);
    tell(&mut world, "a1", 250, 1, 10, 3);
    assert_eq!(verdict(&world), (Verdict::Fail, "0.3".to_owned(), 10));
}

#[test]
fn the_window_slides_and_lost_reports_only_delay() {
    let mut world = world(r#""window":"1s""#);
    tell(&mut world, "a1", 0, 1, 0, 0);
    tell(&mut world, "a1", 500, 1, 10, 10);
    // The reports between were lost; their counts arrive with this one.
    tell(&mut world, "a1", 3_000, 1, 110, 15);
    assert_eq!(verdict(&world), (Verdict::Pass, "0.05".to_owned(), 100));
    world.now = START + Span::from_millis(4_000);
    assert_eq!(verdict(&world).0, Verdict::NoData);
}

#[test]
fn a_reset_counts_from_zero() {
    let mut world = world(r#""window":"10s""#);
    tell(&mut world, "a1", 0, 1, 500, 0);
    tell(&mut world, "a1", 500, 2, 20, 10);
    assert_eq!(verdict(&world), (Verdict::Fail, "0.5".to_owned(), 20));
}

#[test]
fn an_agent_that_starts_again_tells_nothing_twice() {
    let mut world = world(r#""window":"10s""#);
    tell(&mut world, "a1", 0, 1, 0, 0);
    tell(&mut world, "a1", 100, 1, 100, 5);
    world.report("a1", |report| report.places.clear());
    tell(&mut world, "a1", 300, 1, 200, 10);
    assert_eq!(verdict(&world), (Verdict::Pass, "0.05".to_owned(), 200));
}

#[test]
fn old_and_repeated_reports_change_nothing() {
    let mut world = world(r#""window":"10s""#);
    tell(&mut world, "a1", 0, 1, 0, 0);
    tell(&mut world, "a1", 100, 1, 100, 50);
    let held = world.observed.clone();
    let name = crate::fixture::name("a1");
    let mut report = held.report(&name).unwrap().clone();
    let coordinator = crate::fixture::name("c2");
    world
        .observed
        .absorb(&name, &coordinator, report.clone(), world.now);
    report.sequence -= 1;
    report.places.clear();
    world
        .observed
        .absorb(&name, &coordinator, report, world.now);
    assert_eq!(
        world.observed.agents[&name].report,
        held.agents[&name].report
    );
    assert_eq!(verdict(&world), (Verdict::Fail, "0.5".to_owned(), 100));
}

#[test]
fn the_comparison_must_hold_without_a_break() {
    let mut world = world(r#""window":"1s","for":"3s""#);
    tell(&mut world, "a1", 0, 1, 0, 0);
    let (mut requests, mut errors) = (0, 0);
    for at in (250..=3_000).step_by(250) {
        (requests, errors) = (requests + 10, errors + 5);
        tell(&mut world, "a1", at, 1, requests, errors);
        assert_eq!(verdict(&world).0, Verdict::Inconclusive, "{at}");
    }
    requests += 100;
    tell(&mut world, "a1", 3_250, 1, requests, errors);
    assert_eq!(
        verdict(&world).0,
        Verdict::Fail,
        "held from 250 ms to 3.25 s within its window"
    );
}

#[test]
fn a_break_starts_for_anew() {
    let mut world = world(r#""window":"1s","for":"2s""#);
    tell(&mut world, "a1", 0, 1, 0, 0);
    let (mut requests, mut errors) = (0, 0);
    for at in (250..=6_000).step_by(250) {
        requests += 10;
        // Good from 1 s on, bad again from 2.25 s on.
        errors += if (1_000..2_250).contains(&at) { 0 } else { 5 };
        tell(&mut world, "a1", at, 1, requests, errors);
        let found = verdict(&world).0;
        assert_eq!(found == Verdict::Fail, at >= 4_250, "{at} {found:?}");
    }
}

#[test]
fn history_stays_bounded() {
    let mut world = world(r#""window":"1h""#);
    for n in 0..20_000_u64 {
        tell(&mut world, "a1", n * 250, 1, n, 0);
    }
    let series = &world.observed.telemetry.series[&world.new];
    assert!(series.samples.len() < 800, "{}", series.samples.len());
    let (verdict, _, samples) = verdict(&world);
    assert_eq!(verdict, Verdict::Pass);
    let whole = 3_600 * 4;
    assert!(samples.abs_diff(whole) <= whole / 50, "{samples}");
}

#[test]
fn absurd_figures_neither_end_the_leader_nor_wrap() {
    let mut world = world(r#""window":"10s""#);
    let new = world.new;
    for (at, requests) in [(0, u64::MAX), (100, u64::MAX - 1), (200, u64::MAX)] {
        world.now = START + Span::from_millis(at);
        world.report("a1", |report| {
            report.host.memory_total = 10_000;
            let place = World::place_of(report, new);
            let mut second = place.instances[0].clone();
            second.ordinal += 1;
            place.instances.push(second);
            for instance in &mut place.instances {
                instance.start_stamp = Timestamp::from_millis(at);
                instance.counters.requests = requests;
                instance.counters.server_errors = requests;
                instance.cpu_basis_points = u32::MAX;
                instance.memory_bytes = u64::MAX;
            }
        });
    }
    let figures = world
        .observed
        .telemetry
        .version_figures(new, Span::from_secs(10), world.now)
        .unwrap();
    assert_eq!(figures.requests, u64::MAX);
    assert_eq!(verdict(&world).0, Verdict::Fail);
}
