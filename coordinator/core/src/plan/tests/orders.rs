//! Gradual rollout rules with orders of their own: each counts the members that it matches in its own
//! order, the later due time counts, and nothing bursts.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidegate_shared::id::{Name, Version};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{GradualRolloutRule, Kind, ObjectSpec, RolloutOrder, RolloutSpec};
use tidegate_shared::time::{Span, Timestamp};

use super::simulation::{AGENTS, Sim, scope_spec};
use crate::command::{Command, CreateDeployments, CreateGroup, OnConflict, PutObject, Reply};
use crate::fixture::name;
use crate::group::order::{Member, Order, Pinned, arrange};
use crate::group::schedule::Pace;
use crate::plan::plan;
use crate::state::Group;

const QUICK: &str = r#"{"bake":"1s","traffic":{"steps":[{"percent":100,"hold":"1s"}]},
    "deadlines":{"progress":"60s","staging":"60s"}}"#;

/// Scopes with their labels; one has none.
const SCOPES: [(&str, &str); 5] = [
    ("g1", "c"),
    ("g2", "a"),
    ("g3", ""),
    ("g4", "b"),
    ("g5", "a"),
];

const ORDERS: [&str; 5] = [
    "",
    r#""hash""#,
    r#""name""#,
    r#""listed""#,
    r#"{"label":"zone"}"#,
];

const SELECTORS: [&str; 3] = ["", "scope.name > \"g2\"", "scope.labels.zone == \"a\""];

/// A rule as it is drawn: selector, order, normalized or not, seconds.
type Drawn = (usize, usize, bool, u64);

struct Rule {
    selector: usize,
    spec: GradualRolloutRule,
}

fn rule((selector, order, normalized, seconds): Drawn) -> Rule {
    let order = match ORDERS[order] {
        "" => String::new(),
        order => format!(r#","order":{order}"#),
    };
    let kind = if normalized {
        "linear_normalized"
    } else {
        "linear"
    };
    let text = format!(r#"{{"type":"{kind}","interval":"{seconds}s"{order}}}"#);
    let spec = serde_json::from_str(&text).unwrap();
    Rule { selector, spec }
}

fn labels(zone: &str) -> Labels {
    let zone = (!zone.is_empty()).then(|| ("zone".to_owned(), zone.to_owned()));
    zone.into_iter().collect()
}

fn world(rules: &[Rule]) -> Sim {
    let mut sim = Sim::new(QUICK, 1, "8080");
    for (index, (scope, zone)) in SCOPES.iter().enumerate() {
        let spec = scope_spec(1, &(9_000 + index).to_string());
        sim.must(Command::PutObject(PutObject {
            name: name(scope),
            labels: labels(zone),
            spec: ObjectSpec::from_json(Kind::Scope, &spec).unwrap(),
            expected_revision: None,
            must_not_exist: false,
        }));
    }
    for (index, rule) in rules.iter().enumerate() {
        let spec = serde_json::json!({
            "selector": SELECTORS[rule.selector],
            "gradual_rollout": rule.spec,
        });
        sim.put(Kind::Policy, &format!("p{index}"), &spec.to_string());
    }
    sim
}

/// Makes a group of all scopes and runs it until every member has started.
fn run(sim: &mut Sim, listed: &[usize], rollout: &RolloutSpec) -> Group {
    let scopes = listed.iter().map(|index| name(SCOPES[*index].0));
    let made = sim.say(Command::CreateGroup(CreateGroup {
        name: None,
        deployments: CreateDeployments {
            application: name("shop"),
            version: Version::new("1").unwrap(),
            scopes: scopes.collect(),
            strategy: Some(name("way")),
            overrides: Default::default(),
            labels: BTreeMap::new(),
            on_conflict: OnConflict::Fail,
        },
        rollout: Some(rollout.clone()),
    }));
    let Ok(Reply::Group { group, .. }) = made else {
        panic!("{made:?}");
    };
    for _ in 0..2_000 {
        for agent in 0..AGENTS.len() {
            sim.report(agent, 0);
        }
        sim.settle();
        let found = &sim.state.groups[&group];
        if found.members.values().all(|m| m.started_at.is_some()) {
            return found.clone();
        }
        let wake = plan(&sim.state, &sim.observed, sim.now).next_wakeup;
        sim.now = wake.map_or(sim.now + Span::from_secs(1), |at| at.max(sim.now));
    }
    panic!("some member never starts");
}

fn is_about(selector: usize, (scope, zone): (&str, &str)) -> bool {
    match selector {
        0 => true,
        1 => scope > "g2",
        _ => zone == "a",
    }
}

/// Members of a rule as it counts them, worked out from what was written.
fn counted(rule: &Rule, listed: &[usize], rollout: &RolloutSpec) -> Vec<Name> {
    let order: &RolloutOrder = rule.spec.order.as_ref().unwrap_or(&rollout.order);
    let members = listed.iter().map(|index| SCOPES[*index]);
    let members: Vec<Member> = members
        .filter(|scope| is_about(rule.selector, *scope))
        .map(|(scope, zone)| Member {
            name: name(scope),
            labels: labels(zone),
        })
        .collect();
    let pinned = Pinned {
        first: rollout.pinned.first.clone(),
        last: rollout.pinned.last.clone(),
    };
    arrange(&members, &Order::from(order), &pinned, "shop 1")
}

fn starts(group: &Group, names: &[Name]) -> Vec<Timestamp> {
    let start = |name| group.members[&group.scopes[name]].started_at.unwrap();
    names.iter().map(start).collect()
}

fn pace(rule: &Rule) -> Pace {
    Pace {
        kind: rule.spec.kind,
        interval: rule.spec.interval,
    }
}

fn drawn() -> impl Strategy<Value = Drawn> {
    (
        0..SELECTORS.len(),
        0..ORDERS.len(),
        any::<bool>(),
        1_u64..100,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn nobody_starts_before_the_later_of_two_rules_and_nothing_bursts(
        one in drawn(),
        other in drawn(),
        own in 1..ORDERS.len(),
        pin in any::<bool>(),
        listed in Just((0..SCOPES.len()).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let pinned = if pin { r#","pinned":{"first":["g4"]}"# } else { "" };
        let text = format!(r#"{{"order":{}{pinned}}}"#, ORDERS[own]);
        let rollout: RolloutSpec = serde_json::from_str(&text).unwrap();
        let rules = [rule(one), rule(other)];
        let group = run(&mut world(&rules), &listed, &rollout);
        for rule in &rules {
            let names = counted(rule, &listed, &rollout);
            let members = names.len() as u64;
            let starts = starts(&group, &names);
            for (position, at) in starts.iter().enumerate() {
                let due = group.meta.created_at + pace(rule).offset(members, position as u64);
                prop_assert!(*at >= due, "{} of {names:?} at {at}: due {due}", position + 1);
            }
            let mut sorted = starts.clone();
            sorted.sort_unstable();
            let step = pace(rule).offset(members, 1);
            for pair in sorted.windows(2) {
                prop_assert!(pair[1].since(pair[0]) >= step, "a burst: {sorted:?}, step {step}");
            }
        }
    }

    #[test]
    fn one_rule_alone_is_kept_to_the_instant(
        one in drawn(),
        own in 1..ORDERS.len(),
        listed in Just((0..SCOPES.len()).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let text = format!(r#"{{"order":{}}}"#, ORDERS[own]);
        let rollout: RolloutSpec = serde_json::from_str(&text).unwrap();
        let rules = [rule(one)];
        let group = run(&mut world(&rules), &listed, &rollout);
        let names = counted(&rules[0], &listed, &rollout);
        let starts = starts(&group, &names);
        for (position, at) in starts.iter().enumerate() {
            let offset = pace(&rules[0]).offset(names.len() as u64, position as u64);
            // A normalized distance is rounded down for each member: the step is the greater one.
            prop_assert!(at.since(group.meta.created_at) >= offset);
            let late = at.since(group.meta.created_at + offset);
            prop_assert!(late <= Span::from_secs(position as u64), "{names:?}: {late} late");
        }
    }
}
