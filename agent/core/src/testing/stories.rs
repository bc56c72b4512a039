//! Stories of single agents.

use std::collections::BTreeMap;

use tidegate_shared::assignment::{
    Assignment, Generation, InstanceState, PermanentErrorKind, WishedState,
};
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::weight::Weight;

use super::tests::{at, item, name, place, wish};
use super::{AgentModel, Behaviour};
use crate::fence::Verdict;
use crate::observed::Traffic;

/// An agent whose version 0 is up with all the traffic.
fn serving() -> AgentModel {
    let mut agent = AgentModel::new(at(1));
    agent.host.load(&name("shop-eu"), 100);
    agent.assign(&wish(
        1,
        vec![item("shop-eu", 0, WishedState::Running, 10_000)],
    ));
    agent.advance(at(10));
    assert_eq!(agent.host.weight(&place("shop-eu", 0)), Weight::FULL);
    agent
}

fn states(agent: &mut AgentModel, n: u8) -> Vec<InstanceState> {
    let report = agent.report().expect("up");
    let place = place("shop-eu", n);
    let held = report
        .places
        .iter()
        .find(|p| p.deployment == place.deployment);
    held.map(|p| p.instances.iter().map(|i| i.state).collect())
        .unwrap_or_default()
}

#[test]
fn blue_and_green_change_places_without_a_lost_request() {
    let mut agent = serving();
    let before = agent.host.unrouted(&name("shop-eu"));
    agent.assign(&wish(
        2,
        vec![
            item("shop-eu", 0, WishedState::Running, 0),
            item("shop-eu", 1, WishedState::Running, 10_000),
        ],
    ));
    agent.advance(at(20));
    assert_eq!(agent.host.weight(&place("shop-eu", 1)), Weight::FULL);
    agent.assign(&wish(
        3,
        vec![
            item("shop-eu", 0, WishedState::Absent, 0),
            item("shop-eu", 1, WishedState::Running, 10_000),
        ],
    ));
    agent.advance(at(40));
    let report = agent.report().expect("up");
    assert_eq!(report.places.len(), 1);
    assert_eq!(agent.host.unrouted(&name("shop-eu")), before);
    let counters: u64 = report.places[0]
        .instances
        .iter()
        .map(|i| i.counters.requests)
        .sum();
    assert!(counters > 2_000, "{counters}");
}

#[test]
fn a_green_that_never_gets_healthy_takes_no_traffic_and_blue_stays() {
    let mut agent = serving();
    agent.host.behave(
        "1.0.0",
        Behaviour {
            healthy_after: None,
            ..Behaviour::default()
        },
    );
    agent.assign(&wish(
        2,
        vec![
            item("shop-eu", 0, WishedState::Absent, 0),
            item("shop-eu", 1, WishedState::Running, 10_000),
        ],
    ));
    agent.advance(at(120));
    assert_eq!(agent.host.weight(&place("shop-eu", 0)), Weight::FULL);
    assert_eq!(agent.host.weight(&place("shop-eu", 1)), Weight::ZERO);
    assert_eq!(states(&mut agent, 0), [InstanceState::Healthy; 2]);
    assert_eq!(states(&mut agent, 1), [InstanceState::Unhealthy; 2]);
}

#[test]
fn a_crashing_green_fails_early_and_says_how_it_ended() {
    let mut agent = serving();
    agent.host.behave(
        "1.0.0",
        Behaviour {
            exits_after: Some(Span::ZERO),
            ..Behaviour::default()
        },
    );
    agent.assign(&wish(
        2,
        vec![
            item("shop-eu", 0, WishedState::Running, 10_000),
            item("shop-eu", 1, WishedState::Running, 0),
        ],
    ));
    agent.advance(at(20));
    assert_eq!(states(&mut agent, 1), [InstanceState::Failed; 2]);
    let report = agent.report().expect("up");
    let error = report.places[1].permanent_error.as_ref().expect("an error");
    assert_eq!(error.kind, PermanentErrorKind::MaxRestarts);
    assert!(error.message.contains("exit status 1"), "{}", error.message);
}

#[test]
fn a_single_consumer_stops_before_its_successor_starts() {
    let mut agent = AgentModel::new(at(1));
    let single = |n, state, weight| Assignment {
        may_interrupt: true,
        count: 1,
        ..item("worker", n, state, weight)
    };
    agent.assign(&wish(1, vec![single(0, WishedState::Running, 10_000)]));
    agent.advance(at(10));
    let slow = Behaviour {
        stop_takes: Span::from_secs(4),
        ..Behaviour::default()
    };
    agent.host.behave("0.0.0", slow);
    agent.assign(&wish(
        2,
        vec![
            single(0, WishedState::Absent, 0),
            single(1, WishedState::Running, 10_000),
        ],
    ));
    let mut most = 0;
    for tenth in 100..300 {
        agent.advance(Timestamp::from_millis(tenth * 100));
        most = most.max(agent.host.running().len());
    }
    assert_eq!(most, 1);
    assert_eq!(agent.host.running()[0].place, place("worker", 1));
}

#[test]
fn open_requests_hold_a_version_until_the_drain_time_is_over() {
    let mut agent = serving();
    let blue = place("shop-eu", 0);
    agent.host.hold_open(&blue, 3);
    agent.assign(&wish(
        2,
        vec![
            item("shop-eu", 0, WishedState::Absent, 0),
            item("shop-eu", 1, WishedState::Running, 10_000),
        ],
    ));
    let mut drained_at = None;
    for tenth in 100..300 {
        agent.advance(Timestamp::from_millis(tenth * 100));
        let alive = agent.host.running().iter().any(|key| key.place == blue);
        if agent.host.weight(&blue) == Weight::ZERO && drained_at.is_none() {
            drained_at = Some(tenth * 100);
        }
        let waited = drained_at.map_or(0, |since| tenth * 100 - since);
        assert!(alive || waited >= 4_900, "stopped after {waited} ms");
    }
    assert!(agent.host.running().iter().all(|key| key.place != blue));
}

#[test]
fn a_killed_agent_adopts_what_runs_and_counts_go_on() {
    let mut agent = serving();
    let before = agent.host.running();
    agent.kill();
    agent.advance(at(20));
    assert_eq!(agent.report(), None);
    agent.start();
    assert_eq!(agent.host.running(), before);
    assert_eq!(states(&mut agent, 0), [InstanceState::Healthy; 2]);
    let first = agent.report().expect("up");
    agent.advance(at(30));
    let second = agent.report().expect("up");
    assert!(second.start > 0 && second.start == first.start);
    let counted: u64 = second.places[0]
        .instances
        .iter()
        .map(|i| i.counters.requests)
        .sum();
    assert!((900..=1_100).contains(&counted), "{counted}");
    assert_eq!(agent.assign(&wish(1, vec![])), Some(Verdict::Conflicting));
    assert_eq!(
        agent.assign(&wish(0, vec![])),
        Some(Verdict::Older {
            held: Generation { epoch: 1, index: 1 }
        })
    );
}

#[test]
fn a_taken_port_is_told_and_vanishes_with_its_cause() {
    let mut agent = AgentModel::new(at(1));
    agent.host.occupy(8_080);
    agent.assign(&wish(
        1,
        vec![item("shop-eu", 1, WishedState::Running, 10_000)],
    ));
    agent.advance(at(10));
    let report = agent.report().expect("up");
    let error = report.places[0].permanent_error.as_ref().expect("an error");
    assert_eq!(error.kind, PermanentErrorKind::PortTaken);
    assert_eq!(report.places[0].weight, None);
    agent.host.vacate(8_080);
    agent.advance(at(11));
    let report = agent.report().expect("up");
    assert_eq!(report.places[0].permanent_error, None);
    assert_eq!(report.places[0].weight, Some(Weight::FULL));
}

#[test]
fn reports_are_due_at_once_on_changes_and_else_at_the_interval() {
    let mut agent = serving();
    assert!(agent.report_due());
    agent.report();
    assert!(!agent.report_due());
    agent.advance(agent.now() + Span::from_millis(999));
    assert!(!agent.report_due());
    agent.advance(agent.now() + Span::from_millis(1));
    assert!(agent.report_due());
    agent.report();
    let now = agent.now();
    let victim = agent.host.running()[0].clone();
    agent.host.kill_process(&victim, now);
    agent.advance(now);
    assert!(agent.report_due());
}

#[test]
fn blind_agents_touch_nothing_that_serves() {
    let mut agent = serving();
    agent.host.data_plane_down(true);
    agent.assign(&wish(2, vec![]));
    agent.advance(at(60));
    assert_eq!(agent.host.running().len(), 2);
    assert_eq!(
        agent.observed().map(|o| o.traffic.clone()),
        Some(Traffic::Unknown)
    );
    agent.host.data_plane_down(false);
    agent.advance(at(120));
    assert!(agent.host.running().is_empty());
    assert_eq!(agent.report().expect("up").places, []);
    assert_eq!(agent.host.routes().0, BTreeMap::new());
}
