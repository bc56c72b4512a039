//! Groups of hundreds, planned whole, with work that grows with them and not with their square.

use std::collections::BTreeMap;

use tidegate_shared::id::{Name, RequestId};
use tidegate_shared::spec::{Kind, ObjectSpec};
use tidegate_shared::time::Span;

use super::{STRATEGIES, grouped_as, question, wanted, world};
use crate::apply::apply;
use crate::command::{Actor, Command, Entry, Item, OnConflict, PutObject, RequestKey};
use crate::fixture::name;
use crate::forecast::{Cut, Forecast, RemarkWeight, forecast};
use crate::plan::tests::simulation::{Sim, scope_spec};
use crate::state::Status;

/// Scopes `s0001` and so on, which no test of every invariant goes through.
fn many(sim: &mut Sim, count: u32) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|number| format!("s{number:04}")).collect();
    let items = (0_u64..).zip(&names).map(|(number, scope)| Item {
        actor: Actor::User(name("ann")),
        request: RequestKey::Client(RequestId::derived(sim.now, "many", number, 0)),
        command: Box::new(Command::PutObject(PutObject {
            name: name(scope),
            labels: BTreeMap::new(),
            spec: ObjectSpec::from_json(Kind::Scope, &scope_spec(1, &port(number))).unwrap(),
            expected_revision: None,
            must_not_exist: false,
        })),
    });
    let entry = Entry {
        at: sim.now,
        items: items.collect(),
    };
    for applied in apply(&mut sim.state, 1 << 40, &entry) {
        assert!(applied.outcome.is_ok(), "{:?}", applied.outcome);
    }
    names
}

fn port(number: u64) -> String {
    (10_000 + number).to_string()
}

/// A plan of a group over so many scopes.
fn planned(count: u32, rollout: &str, policies: &[(&str, &str)]) -> Forecast {
    let mut sim = world(STRATEGIES[2], 1);
    for (policy, spec) in policies {
        sim.put(Kind::Policy, policy, spec);
    }
    let names = many(&mut sim, count);
    let scopes: Vec<&str> = names.iter().map(String::as_str).collect();
    let command = grouped_as(wanted("1", &scopes, OnConflict::Fail), rollout);
    let asked = question(&sim, command, sim.now);
    forecast(&sim.state, &[], &asked, &|| true).unwrap()
}

const ROLLOUTS: [&str; 7] = [
    r#"{"kind":"all_at_once"}"#,
    r#"{"kind":"linear","interval":"1s"}"#,
    r#"{"kind":"linear","interval":"1m","order":"name","gate":"verified"}"#,
    r#"{"kind":"linear","interval":"1s","gate":"healthy"}"#,
    r#"{"kind":"linear_normalized","interval":"6h"}"#,
    r#"{"kind":"waves","waves":[{"name":"canary","count":3,"bake":"5m"},{"name":"half","percent":50}]}"#,
    r#"{"kind":"waves","gate":"healthy","waves":[{"name":"some","percent":10},{"name":"more","percent":30,"bake":"1m"}]}"#,
];

const RULES: [(&str, &str); 2] = [
    (
        "hours",
        r#"{"windows":[{"rrules":["FREQ=DAILY;BYHOUR=9;BYMINUTE=0;BYSECOND=0"],"duration":"8h"}]}"#,
    ),
    (
        "gradual",
        r#"{"gradual_rollout":{"type":"linear","interval":"5s"}}"#,
    ),
];

#[test]
fn work_grows_with_the_members() {
    for rollout in ROLLOUTS {
        let few = planned(60, rollout, &[]);
        let more = planned(240, rollout, &[]);
        for found in [&few, &more] {
            assert_eq!(found.cut, None, "{rollout}");
            let mut members = found.members.iter();
            assert!(
                members.all(|member| member.status == Status::Finalized),
                "{rollout}"
            );
        }
        assert!(
            more.effort < few.effort * 5,
            "{rollout}: {} for 60, {} for 240",
            few.effort,
            more.effort
        );
    }
}

#[test]
fn rules_that_hold_up_a_crowd_are_asked_of_few() {
    let one_by_one = [("five", r#"{"concurrency":{"max":5}}"#)];
    for rules in [&RULES[..], &one_by_one] {
        let few = planned(50, r#"{"kind":"all_at_once"}"#, rules);
        let more = planned(200, r#"{"kind":"all_at_once"}"#, rules);
        assert_eq!(more.cut, None, "{rules:?}");
        assert!(
            more.effort < few.effort * 5,
            "{rules:?}: {} for 50, {} for 200",
            few.effort,
            more.effort
        );
    }
}

#[test]
fn a_linear_group_keeps_its_pace_to_the_last() {
    let found = planned(
        300,
        r#"{"kind":"linear","interval":"1s","order":"name"}"#,
        &[],
    );
    for (position, member) in found.members.iter().enumerate() {
        let after = Span::from_secs(position as u64);
        assert_eq!(member.scope, name(&format!("s{position:04}")));
        assert_eq!(member.starts_at, Some(found.at + after));
    }
    assert_eq!(found.ends_at, found.members[299].ends_at);
}

#[test]
fn who_waits_no_longer_is_told_how_far_it_went() {
    let mut sim = world(STRATEGIES[2], 1);
    let names = many(&mut sim, 100);
    let scopes: Vec<&str> = names.iter().map(String::as_str).collect();
    let rollout = r#"{"kind":"linear","interval":"1m"}"#;
    let command = grouped_as(wanted("1", &scopes, OnConflict::Fail), rollout);
    let asked = question(&sim, command, sim.now);
    let left = std::cell::Cell::new(5_u32);
    let goes_on = || {
        left.set(left.get().saturating_sub(1));
        left.get() > 0
    };
    let found = forecast(&sim.state, &[], &asked, &goes_on).unwrap();
    assert_eq!(found.cut, Some(Cut::Patience));
    let ended = found.members.iter().filter(|m| m.ends_at.is_some()).count();
    assert!(0 < ended && ended < 100, "{ended}");
    let warnings = found.remarks.iter();
    let warnings: Vec<_> = warnings
        .filter(|remark| remark.weight == RemarkWeight::Warning)
        .collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let told = format!("{} of 100 scopes have not ended", 100 - ended);
    assert!(warnings[0].message.contains(&told), "{warnings:?}");
}

#[test]
fn what_is_said_of_many_is_said_in_short() {
    let rules = [("eyes", r#"{"approval":{"required":1}}"#)];
    let found = planned(40, r#"{"kind":"all_at_once"}"#, &rules);
    let approvals = found.remarks.iter().filter(|r| r.kind == "approval");
    let approvals: Vec<_> = approvals.collect();
    assert_eq!(approvals.len(), 13);
    let scopes: Vec<&Name> = approvals.iter().filter_map(|r| r.scope.as_ref()).collect();
    assert_eq!(scopes.len(), 12);
    let more = approvals.iter().find(|r| r.scope.is_none()).unwrap();
    assert!(more.message.contains("28 more"), "{more:?}");
}
