//! What scopes take by themselves: the newest that passes, never twice, and as the rules allow.

use std::collections::BTreeMap;

use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Version};
use tidegate_shared::spec::{Kind, ReleaseSpec, ReleaseStatus};
use tidegate_shared::time::Span;

use super::{Looked, Outlook, due, view};
use crate::command::{
    ActOnDeployment, Actor, Command, CreateRelease, Decide, DeleteObject, RollbackScope,
    SetReleaseStatus, Verb,
};
use crate::fixture::name;
use crate::plan::plan;
use crate::plan::tests::simulation::{AGENTS, Sim};
use crate::state::{Deployment, Status};

const QUICK: &str = r#"{"bake":"1s","traffic":{"steps":[{"percent":100,"hold":"1s"}]}}"#;

fn scope(auto: &str) -> String {
    format!(
        r#"{{"application":"shop","environment":"production","agents":"","port":8080,"auto_deploy":{auto}}}"#
    )
}

const STABLE: &str = r#"{"when":"release.labels.channel == 'stable'","strategy":"way"}"#;

fn world(auto: &str) -> Sim {
    let mut sim = Sim::new(QUICK, 1, "8080");
    sim.now = sim.now + Span::from_mins(1);
    sim.put(Kind::Scope, "web", &scope(auto));
    sim
}

fn version(text: &str) -> Version {
    Version::new(text).unwrap()
}

fn publish(sim: &mut Sim, text: &str, channel: &str, stored: bool) {
    sim.now = sim.now + Span::from_millis(1);
    let spec = r#"{"assets":[{"name":"shop","kind":"archive","size":1,"sha256":"HASH","run":{"command":"shop"}}]}"#;
    let spec = spec.replace("HASH", &Digest::of(text.as_bytes()).to_string());
    let command = Command::CreateRelease(CreateRelease {
        application: name("shop"),
        version: version(text),
        labels: BTreeMap::from([("channel".to_owned(), channel.to_owned())]),
        spec: serde_json::from_str::<ReleaseSpec>(&spec).unwrap(),
        stored,
    });
    let outcome = sim.say_as(&name("dev"), command);
    assert!(outcome.is_ok(), "{outcome:?}");
}

fn status(sim: &mut Sim, text: &str, status: ReleaseStatus) {
    sim.must(Command::SetReleaseStatus(SetReleaseStatus {
        application: name("shop"),
        version: version(text),
        status,
        reason: String::new(),
        expected_revision: None,
    }));
}

/// Goes on until nothing moves, for so long at most.
fn pass(sim: &mut Sim, span: Span) {
    let end = sim.now + span;
    loop {
        for _ in 0..100 {
            for agent in 0..AGENTS.len() {
                sim.report(agent, 0);
            }
            let due = plan(&sim.state, &sim.observed, sim.now).commands;
            if due.is_empty() {
                break;
            }
            for item in due {
                if let Err(refused) = sim.apply(item) {
                    assert_eq!(refused.reason, Reason::Stale, "{refused}");
                }
            }
        }
        if sim.now >= end {
            return;
        }
        let wake = plan(&sim.state, &sim.observed, sim.now).next_wakeup;
        sim.now = wake.unwrap_or(end).min(end);
    }
}

fn moments(sim: &mut Sim) {
    pass(sim, Span::from_mins(20));
}

/// Versions with their statuses, in the order of their making.
fn made(sim: &Sim) -> Vec<(String, Status)> {
    let web = name("web");
    let all = sim.state.history_of(&web);
    all.map(|d| (d.origin.version.to_string(), d.status))
        .collect()
}

fn newest(sim: &Sim) -> &Deployment {
    sim.state.history_of(&name("web")).last().unwrap()
}

fn id(sim: &Sim, text: &str) -> DeploymentId {
    let web = name("web");
    let mut all = sim.state.history_of(&web);
    all.find(|d| d.origin.version.as_str() == text).unwrap().id
}

fn told(sim: &Sim, text: &str) -> Looked {
    let view = view(&sim.state, sim.now, &name("web")).unwrap();
    let mut looked = view.looked.into_iter();
    looked.find(|l| l.version.as_str() == text).unwrap()
}

fn one(text: &str, status: Status) -> (String, Status) {
    (text.to_owned(), status)
}

#[test]
fn a_new_matching_release_is_deployed_by_itself() {
    let mut sim = world(STABLE);
    moments(&mut sim);
    assert_eq!(made(&sim), [], "releases that were there before are not");
    publish(&mut sim, "10", "beta", true);
    publish(&mut sim, "11", "stable", true);
    moments(&mut sim);
    assert_eq!(made(&sim), [one("11", Status::Finalized)]);
    let found = newest(&sim);
    assert_eq!(found.meta.created_by, Actor::System);
    assert_eq!(found.origin.auto, Some(Actor::User(name("dev"))));
    assert_eq!(found.origin.strategy_name, Some(name("way")));
    let events = sim.state.events.values();
    let made = events.filter(|event| event.kind == "deployment_created");
    let lines: Vec<_> = made.map(|event| event.message.as_str()).collect();
    assert!(lines[0].contains("auto_deploy of the release of user:dev"));
    assert_eq!(told(&sim, "10").outlook, Outlook::PassedOver);
    assert_eq!(told(&sim, "11").outlook, Outlook::Here);
    assert!(told(&sim, "5").why.contains("made before"));
}

#[test]
fn it_looks_once_whoever_leads() {
    let mut sim = world(STABLE);
    moments(&mut sim);
    publish(&mut sim, "10", "stable", true);
    let first = due(&sim.state, sim.now);
    // A new leader finds the very same command.
    assert_eq!(first, due(&sim.state, sim.now + Span::from_hours(1)));
    let item = first.into_iter().next().unwrap();
    assert!(sim.apply(item.clone()).is_ok());
    assert!(due(&sim.state, sim.now).is_empty());
    // Sent again it is answered again; later it is stale.
    assert!(sim.apply(item.clone()).is_ok());
    sim.now = sim.now + Span::from_hours(1);
    publish(&mut sim, "11", "beta", true);
    for (number, _) in made(&sim) {
        assert_eq!(number, "10");
    }
    sim.state.requests.remove(&item.request);
    assert_eq!(sim.apply(item).unwrap_err().reason, Reason::Stale);
    assert_eq!(made(&sim).len(), 1);
}

#[test]
fn a_burst_comes_to_the_latest_and_a_building_one_waits() {
    let mut sim = world("true");
    moments(&mut sim);
    for text in ["10", "11", "12"] {
        publish(&mut sim, text, "", true);
    }
    publish(&mut sim, "13", "", false);
    moments(&mut sim);
    assert_eq!(made(&sim), [one("12", Status::Finalized)]);
    assert!(told(&sim, "13").why.contains("building"));
    status(&mut sim, "13", ReleaseStatus::Ready);
    // While it rolls out others come: they collapse too.
    let due = plan(&sim.state, &sim.observed, sim.now).commands;
    for item in due {
        sim.apply(item).unwrap();
    }
    for text in ["14", "15", "16"] {
        publish(&mut sim, text, "", true);
        let due = plan(&sim.state, &sim.observed, sim.now).commands;
        for item in due {
            sim.apply(item).unwrap();
        }
    }
    moments(&mut sim);
    let ends: Vec<(String, Status)> = made(&sim).into_iter().rev().take(2).collect();
    assert_eq!(ends[0], one("16", Status::Finalized));
    assert_eq!(ends[1], one("15", Status::Cancelled));
}

#[test]
fn paused_and_rejected_releases_are_not_taken() {
    let mut sim = world("true");
    moments(&mut sim);
    publish(&mut sim, "10", "", true);
    publish(&mut sim, "11", "", true);
    status(&mut sim, "11", ReleaseStatus::Paused);
    moments(&mut sim);
    assert_eq!(made(&sim), [one("10", Status::Finalized)]);
    status(&mut sim, "11", ReleaseStatus::Ready);
    moments(&mut sim);
    assert_eq!(made(&sim)[1], one("11", Status::Finalized));
    // What runs was rejected: back to the last one that is valid.
    status(&mut sim, "11", ReleaseStatus::Rejected);
    moments(&mut sim);
    assert_eq!(made(&sim)[2], one("10", Status::Finalized));
    assert_eq!(newest(&sim).origin.auto, Some(Actor::User(name("dev"))));
    status(&mut sim, "11", ReleaseStatus::Ready);
    moments(&mut sim);
    assert_eq!(
        made(&sim).len(),
        3,
        "what was rejected here comes back by people only"
    );
}

#[test]
fn what_failed_here_is_not_tried_again_by_itself() {
    let mut sim = world("true");
    moments(&mut sim);
    publish(&mut sim, "10", "", true);
    moments(&mut sim);
    publish(&mut sim, "11", "", true);
    publish(&mut sim, "12", "", true);
    pass(&mut sim, Span::from_millis(1));
    let candidate = id(&sim, "12");
    sim.must(Command::ActOnDeployment(ActOnDeployment {
        deployment: candidate,
        verb: Verb::Cancel,
        expected_revision: None,
        reason: String::new(),
    }));
    moments(&mut sim);
    publish(&mut sim, "9", "", false);
    moments(&mut sim);
    assert_eq!(made(&sim).len(), 2, "{:?}", made(&sim));
    assert!(told(&sim, "12").why.contains("tidegate deploy"));
    assert!(told(&sim, "11").why.contains("older than 12"));
    publish(&mut sim, "13", "", true);
    moments(&mut sim);
    assert_eq!(made(&sim)[2], one("13", Status::Finalized));
    // A person's return stands until something newer comes.
    sim.must(Command::RollbackScope(RollbackScope {
        name: name("web"),
        version: None,
        force: false,
        reason: String::new(),
    }));
    moments(&mut sim);
    publish(&mut sim, "beta", "", false);
    moments(&mut sim);
    assert_eq!(made(&sim).len(), 4);
    assert_eq!(made(&sim)[3], one("10", Status::Finalized));
}

#[test]
fn the_newest_that_passes_goes_first() {
    let mut sim = world("true");
    sim.put(
        Kind::Policy,
        "good",
        r#"{"release_selector":{"condition":"release.labels.channel == 'stable'"}}"#,
    );
    moments(&mut sim);
    publish(&mut sim, "10", "stable", true);
    publish(&mut sim, "11", "stable", true);
    publish(&mut sim, "12", "beta", true);
    moments(&mut sim);
    assert_eq!(
        made(&sim),
        [one("11", Status::Finalized), one("12", Status::Pending)]
    );
    sim.put(
        Kind::Policy,
        "good",
        r#"{"release_selector":{"condition":"true"}}"#,
    );
    moments(&mut sim);
    assert_eq!(made(&sim)[1], one("12", Status::Finalized));
}

#[test]
fn approvals_and_guardrails_count_as_for_people() {
    let mut sim = world("true");
    sim.put(Kind::Policy, "eyes", r#"{"approval":{"required":1}}"#);
    sim.put(
        Kind::Policy,
        "careful",
        r#"{"guardrail":{"condition":"release.labels.channel == 'stable'"}}"#,
    );
    moments(&mut sim);
    publish(&mut sim, "10", "beta", true);
    moments(&mut sim);
    assert_eq!(made(&sim), []);
    assert_eq!(told(&sim, "10").outlook, Outlook::Refused);
    assert!(told(&sim, "10").why.contains("TG-1214"));
    sim.must(Command::DeleteObject(DeleteObject {
        kind: Kind::Policy,
        name: name("careful"),
        expected_revision: None,
    }));
    moments(&mut sim);
    assert_eq!(made(&sim), [one("10", Status::CreatingApproval)]);
    let deployment = newest(&sim).id;
    sim.must(Command::Decide(Decide {
        deployment,
        granted: true,
        reason: String::new(),
    }));
    moments(&mut sim);
    assert_eq!(made(&sim), [one("10", Status::Finalized)]);
}

#[test]
fn a_scope_that_is_not_ready_for_it_takes_nothing() {
    let mut sim = world("true");
    moments(&mut sim);
    publish(&mut sim, "10", "", true);
    moments(&mut sim);
    let stop = crate::command::StopScope {
        name: name("web"),
        cancel: false,
    };
    sim.must(Command::StopScope(stop));
    moments(&mut sim);
    publish(&mut sim, "11", "", true);
    moments(&mut sim);
    assert_eq!(made(&sim).len(), 1);
    let seen = view(&sim.state, sim.now, &name("web")).unwrap();
    assert!(seen.stands.contains("stopped"), "{seen:?}");
    sim.must(Command::StartScope(crate::command::ScopeName {
        name: name("web"),
    }));
    moments(&mut sim);
    assert_eq!(newest(&sim).origin.version.as_str(), "11");
    // Switched off it forgets.
    let without = scope("null");
    sim.put(Kind::Scope, "web", &without);
    assert!(view(&sim.state, sim.now, &name("web")).is_none());
    publish(&mut sim, "12", "", true);
    moments(&mut sim);
    assert_eq!(newest(&sim).origin.version.as_str(), "11");
}

#[test]
fn the_strategy_that_it_names_is_there_and_stays() {
    let mut sim = world("true");
    let wrong = crate::command::PutObject {
        name: name("web"),
        labels: BTreeMap::new(),
        spec: tidegate_shared::spec::ObjectSpec::from_json(
            Kind::Scope,
            &scope(r#"{"when":"true","strategy":"nope"}"#),
        )
        .unwrap(),
        expected_revision: None,
        must_not_exist: false,
    };
    let refused = sim.say(Command::PutObject(wrong)).unwrap_err();
    assert_eq!(refused.reason, Reason::NotFound);
    assert!(refused.message.contains("auto_deploy.strategy"));
    sim.put(Kind::Scope, "web", &scope(STABLE));
    let refused = sim.say(Command::DeleteObject(DeleteObject {
        kind: Kind::Strategy,
        name: name("way"),
        expected_revision: None,
    }));
    assert_eq!(refused.unwrap_err().reason, Reason::InUse);
}
