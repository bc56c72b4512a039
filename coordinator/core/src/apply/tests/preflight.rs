//! What `preflight` tells of a scope, against a state that commands have made.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::spec::{Kind, Limits, ReleaseStatus};
use tidegate_shared::time::Span;

use super::world::{World, create_release, name, set_status, version};
use crate::command::{Command, UpdateAgent};
use crate::observed::Observed;
use crate::preflight::{
    AssetQuestion, Finding, HostAnswer, HostQuestion, Preflight, Severity, judge, preflight,
};

fn look_at(world: &World, scope: &str, release: &str) -> Preflight {
    let observed = Observed::new(world.now);
    let (scope, release) = (name(scope), version(release));
    let state = &world.state;
    preflight(state, &observed, world.now, &scope, Some(&release), None).unwrap()
}

fn worst(findings: &[Finding]) -> Severity {
    let severities = findings.iter().map(|finding| finding.severity);
    severities.max().unwrap_or(Severity::Good)
}

fn says(findings: &[Finding], severity: Severity, subject: &str, part: &str) -> bool {
    findings.iter().any(|finding| {
        finding.severity == severity && finding.subject == subject && finding.message.contains(part)
    })
}

#[test]
fn a_scope_in_order_has_nothing_in_the_way_and_every_agent_is_asked() {
    let world = World::with_active();
    let seen = look_at(&world, "web", "2.0.0");
    assert_eq!(worst(&seen.findings), Severity::Good, "{seen:#?}");
    assert!(says(&seen.findings, Severity::Good, "scope", "3 of 3"));
    // The proxy serves the scope there already, so its port needs no asking.
    assert_eq!(seen.questions.len(), 3);
    assert!(seen.questions.iter().all(|asked| asked.port.is_none()));
    assert!(seen.questions.iter().all(|asked| asked.asset.is_some()));

    let fresh = World::new();
    let seen = look_at(&fresh, "web", "2.0.0");
    assert!(seen.questions.iter().all(|asked| asked.port.is_some()));
}

#[test]
fn the_rehearsal_changes_nothing_and_tells_what_the_state_machine_would() {
    let mut world = World::with_active();
    let id = world.deploy("2.0.0");
    world.start(id);
    let before = world.state.clone();
    let seen = look_at(&world, "web", "3.0.0");
    assert_eq!(world.state, before);
    assert!(
        says(&seen.findings, Severity::Error, "scope", "TG-1201"),
        "{seen:#?}"
    );
    let unknown = look_at(&world, "web", "9.9.9");
    assert!(says(&unknown.findings, Severity::Error, "scope", "TG-1101"));
    let (observed, nowhere) = (Observed::new(world.now), name("nowhere"));
    let nowhere = preflight(&world.state, &observed, world.now, &nowhere, None, None);
    assert_eq!(nowhere.unwrap_err().reason, Reason::NotFound);
}

#[test]
fn without_a_version_the_newest_that_is_ready_is_looked_at() {
    let mut world = World::with_active();
    world.wait(Span::from_secs(1));
    world.must(create_release("5.0.0"));
    world.wait(Span::from_secs(1));
    world.must(create_release("6.0.0"));
    world.must(set_status("6.0.0", ReleaseStatus::Paused));
    let observed = Observed::new(world.now);
    let seen = preflight(&world.state, &observed, world.now, &name("web"), None, None);
    assert_eq!(seen.unwrap().version, Some(version("5.0.0")));
}

#[test]
fn a_gate_that_would_hold_it_up_is_a_warning() {
    let mut world = World::with_active();
    let policy = r#"{"approval": {"required": 2}}"#;
    world.must(world.object("two-people", Kind::Policy, policy));
    let seen = look_at(&world, "web", "2.0.0");
    assert!(
        says(&seen.findings, Severity::Warning, "scope", "(approval)"),
        "{seen:#?}"
    );
}

#[test]
fn agents_that_do_not_fit_are_named() {
    let mut world = World::new();
    let spec = r#"{"application": "shop", "environment": "production", "port": 8081, "agents": "role=db"}"#;
    world.must(world.object("db", Kind::Scope, spec));
    let seen = look_at(&world, "db", "2.0.0");
    assert!(
        says(&seen.findings, Severity::Error, "scope", "no agent matches"),
        "{seen:#?}"
    );
    assert_eq!(seen.questions, vec![]);

    let facts = [("os", "linux"), ("arch", "amd64")];
    let facts = facts.map(|(key, value)| (key.to_owned(), value.to_owned()));
    world.must(Command::UpdateAgent(UpdateAgent {
        name: name("a1"),
        facts: BTreeMap::from(facts),
        version: "1".to_owned(),
    }));
    let key = (name("shop"), version("2.0.0"));
    let mut release = world.state.releases.get(&key).unwrap().clone();
    release.spec.assets[0].platform = "linux/arm64".to_owned();
    world.state.releases.insert(key, release);
    let seen = look_at(&world, "web", "2.0.0");
    assert!(
        says(
            &seen.findings,
            Severity::Error,
            "a1",
            "the host is linux/amd64"
        ),
        "{seen:#?}"
    );

    // Nothing was heard of anybody for an hour.
    let silent = Observed::new(world.now);
    let later = world.now + Span::from_hours(1);
    let seen = preflight(&world.state, &silent, later, &name("web"), None, None).unwrap();
    assert!(says(&seen.findings, Severity::Warning, "a2", "lost"));
    assert_eq!(seen.questions, vec![]);
}

#[test]
fn another_scope_on_the_same_port_is_named() {
    let world = World::with_active();
    let seen = look_at(&world, "api", "2.0.0");
    assert!(
        says(&seen.findings, Severity::Error, "a1", "scope \"web\"'s"),
        "{seen:#?}"
    );
    assert!(seen.questions.iter().all(|asked| asked.port.is_none()));
}

#[test]
fn what_a_host_answers_is_judged() {
    let question = HostQuestion {
        agent: name("a1"),
        port: Some(8_080),
        asset: Some(AssetQuestion {
            digest: Digest::of(b"x"),
            room: 500,
        }),
        limits: Limits::default(),
    };
    let good = HostAnswer {
        port_trouble: None,
        is_staged: false,
        room: Some(500),
        limit_trouble: None,
    };
    assert_eq!(worst(&judge(&question, Some(&good))), Severity::Good);
    let held = HostAnswer {
        port_trouble: Some("port 8080 on 127.0.0.1 is held by nginx (pid 812)".to_owned()),
        ..good.clone()
    };
    let found = judge(&question, Some(&held));
    assert!(says(&found, Severity::Error, "a1", "nginx (pid 812)"));
    let full = HostAnswer {
        room: Some(499),
        ..good.clone()
    };
    assert_eq!(worst(&judge(&question, Some(&full))), Severity::Error);
    let staged = HostAnswer {
        is_staged: true,
        ..full
    };
    assert_eq!(worst(&judge(&question, Some(&staged))), Severity::Good);
    let unknown = HostAnswer {
        room: None,
        ..good.clone()
    };
    assert_eq!(worst(&judge(&question, Some(&unknown))), Severity::Warning);
    assert_eq!(worst(&judge(&question, None)), Severity::Warning);
}

#[test]
fn limits_that_a_host_cannot_hold_are_told() {
    let mut world = World::with_active();
    let seen = look_at(&world, "web", "2.0.0");
    assert!(seen.questions.iter().all(|asked| asked.limits.is_empty()));
    let key = name("web");
    world.state.scopes.change(&key, |scope| {
        Arc::make_mut(&mut scope.spec).limits.processes = Some(50);
    });
    let seen = look_at(&world, "web", "2.0.0");
    let question = &seen.questions[0];
    assert_eq!(question.limits.processes, Some(50));
    let answer = |trouble: Option<&str>| HostAnswer {
        port_trouble: None,
        is_staged: true,
        room: None,
        limit_trouble: trouble.map(str::to_owned),
    };
    let told = |trouble| judge(question, Some(&answer(trouble)));
    assert_eq!(worst(&told(Some(""))), Severity::Good);
    assert_eq!(worst(&told(None)), Severity::Warning);
    let refused = told(Some("limits.processes cannot be enforced on this host"));
    let agent = question.agent.to_string();
    assert!(says(&refused, Severity::Error, &agent, "limits.processes"));
}
