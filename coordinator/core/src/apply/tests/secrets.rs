//! Secret parameters and files: what is stored, what a deployment takes along, what a return takes.

use tidegate_shared::assignment::ParameterContent;
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::DeploymentId;
use tidegate_shared::spec::Kind;

use super::world::{World, name, one};
use crate::apply::binding;
use crate::command::{Command, ScopeName, Verb};
use crate::desired::desired;

fn secret(sealed: &str, target: &str, more: &str) -> String {
    let sealed = match sealed {
        "" => String::new(),
        bytes => format!(r#""sealed": "{bytes}","#),
    };
    format!(r#"{{"variable": "V", "kind": "secret", {sealed} {more} "target": {target}}}"#)
}

const SHOP: &str = r#"{"application": "shop"}"#;
const WEB: &str = r#"{"scope": "web"}"#;

fn sealed_of(world: &World, id: DeploymentId) -> String {
    let parameter = &world.get(id).origin.parameters["V"];
    assert_eq!(parameter.value, "", "a secret has no plain value");
    parameter.secret.as_ref().unwrap().sealed.clone().into()
}

fn put(world: &mut World, parameter: &str, spec: &str) {
    world.must(world.object(parameter, Kind::Parameter, spec));
    assert_eq!(world.state.check(), Vec::<String>::new());
}

#[test]
fn secrets_and_plain_values_take_precedence_alike() {
    let mut world = World::new();
    put(&mut world, "wide", &secret("aa", SHOP, ""));
    let id = world.deploy("1.0.0");
    assert_eq!(sealed_of(&world, id), "aa");
    let plain = format!(r#"{{"variable": "V", "value": "open", "target": {WEB}}}"#);
    put(&mut world, "near", &plain);
    let id = world.deploy("1.0.0");
    let taken = &world.get(id).origin.parameters["V"];
    assert_eq!(
        (taken.value.as_str(), taken.secret.is_none()),
        ("open", true)
    );
    put(&mut world, "near", &secret("bb", WEB, ""));
    let id = world.deploy("1.0.0");
    assert_eq!(sealed_of(&world, id), "bb");
    let own = super::world::SCOPE.replacen('{', "{\"parameters\": {\"V\": \"own\"},", 1);
    world.must(world.object("web", Kind::Scope, &own));
    let id = world.deploy("1.0.0");
    assert_eq!(world.get(id).origin.parameters["V"].value, "own");
}

#[test]
fn a_secret_without_a_value_keeps_the_one_it_has() {
    let mut world = World::new();
    let refusal = world.refused(world.object("p", Kind::Parameter, &secret("", SHOP, "")));
    assert_eq!(refusal.reason, Reason::SecretValueNeeded);
    put(&mut world, "p", &secret("aa", SHOP, ""));
    let revision = world.state.last_revision;
    put(&mut world, "p", &secret("", SHOP, ""));
    put(
        &mut world,
        "p",
        &secret("", SHOP, r#""value": "(secret)","#),
    );
    assert_eq!(world.state.last_revision, revision, "nothing changed");
    put(
        &mut world,
        "p",
        &secret("", SHOP, r#""on_rollback": "latest","#),
    );
    let id = world.deploy("1.0.0");
    assert_eq!(sealed_of(&world, id), "aa");
}

#[test]
fn a_secret_cannot_be_pointed_elsewhere_without_its_value() {
    let mut world = World::new();
    put(&mut world, "p", &secret("aa", SHOP, ""));
    let refusal = world.refused(world.object("p", Kind::Parameter, &secret("", WEB, "")));
    assert_eq!(refusal.reason, Reason::SecretValueNeeded);
    assert!(refusal.message.contains("target"), "{}", refusal.message);
    put(&mut world, "p", &secret("bb", WEB, ""));
    let plain = format!(r#"{{"variable": "V", "value": "x", "target": {WEB}}}"#);
    put(&mut world, "p", &plain);
    let refusal = world.refused(world.object("p", Kind::Parameter, &secret("", WEB, "")));
    assert_eq!(refusal.reason, Reason::SecretValueNeeded);
}

#[test]
fn events_say_that_a_secret_changed_and_not_to_what() {
    let mut world = World::new();
    put(&mut world, "p", &secret("c0ffee00", SHOP, ""));
    put(&mut world, "p", &secret("c0ffee11", SHOP, ""));
    let told: Vec<String> = world
        .state
        .events
        .values()
        .map(|event| serde_json::to_string(event).unwrap())
        .collect();
    assert!(told.iter().any(|event| event.contains("parameter_changed")));
    assert!(told.iter().all(|event| !event.contains("c0ffee")));
}

/// What a return after a change of the secret takes.
fn after_a_return(on_rollback: &str) -> String {
    let mut world = World::new();
    let more = format!(r#""on_rollback": "{on_rollback}","#);
    put(&mut world, "p", &secret("aa", SHOP, &more));
    let first = world.deploy("1.0.0");
    world.finish(first);
    put(&mut world, "p", &secret("bb", SHOP, &more));
    let second = world.deploy("2.0.0");
    world.finish(second);
    assert_eq!(sealed_of(&world, first), "aa", "a snapshot does not change");
    assert_eq!(sealed_of(&world, second), "bb");
    let back = one(world.act(second, Verb::Rollback).unwrap());
    sealed_of(&world, back)
}

#[test]
fn a_return_takes_the_old_value_or_the_latest_as_the_secret_says() {
    assert_eq!(after_a_return("keep"), "aa");
    assert_eq!(after_a_return("latest"), "bb");
}

#[test]
fn a_secret_that_is_gone_goes_back_as_it_was() {
    let mut world = World::new();
    put(
        &mut world,
        "p",
        &secret("aa", SHOP, r#""on_rollback": "latest","#),
    );
    let first = world.deploy("1.0.0");
    world.finish(first);
    world.must(Command::DeleteObject(crate::command::DeleteObject {
        kind: Kind::Parameter,
        name: name("p"),
        expected_revision: None,
    }));
    let second = world.deploy("2.0.0");
    world.finish(second);
    assert!(!world.get(second).origin.parameters.contains_key("V"));
    let back = one(world.act(second, Verb::Rollback).unwrap());
    assert_eq!(sealed_of(&world, back), "aa");
}

#[test]
fn assignments_name_the_version_of_a_secret_and_never_hold_it() {
    let mut world = World::new();
    put(&mut world, "p", &secret("aabbcc", SHOP, ""));
    let file = r#"{"variable": "CONF", "value": "a = 1", "file": {"path": "conf/a.toml"}, "target": {"scope": "web"}}"#;
    put(&mut world, "conf", file);
    let id = world.deploy("1.0.0");
    world.start(id);
    let agent = world.get(id).participants[0].clone();
    let wish = desired(&world.state, &agent);
    let item = wish.items.iter().find(|i| i.deployment == id).unwrap();
    let found: Vec<_> = item
        .parameters
        .iter()
        .map(|p| (p.variable.as_str(), p.content.clone(), p.file.is_some()))
        .collect();
    let version = Digest::of(&[0xaa, 0xbb, 0xcc]);
    assert_eq!(
        found,
        [
            ("CONF", ParameterContent::Plain("a = 1".to_owned()), true),
            ("V", ParameterContent::Secret(version), false),
        ]
    );
    assert!(!item.run.env.contains_key("V") && !item.run.env.contains_key("CONF"));
    let text = serde_json::to_string(&wish).unwrap();
    assert!(!text.contains("aabbcc"), "{text}");
}

#[test]
fn an_approval_counts_only_for_the_value_of_the_secret_it_was_given_for() {
    let mut world = World::new();
    put(&mut world, "p", &secret("aa", SHOP, ""));
    let first = world.deploy("1.0.0");
    let same = world.deploy("1.0.0");
    put(&mut world, "p", &secret("bb", SHOP, ""));
    let other = world.deploy("1.0.0");
    let of = |id| binding(&world.get(id).origin);
    assert_eq!(of(first), of(same));
    assert_ne!(of(first), of(other));
}

#[test]
fn two_parameters_cannot_be_the_same_file() {
    let mut world = World::new();
    for (parameter, variable, path) in [("a", "A", "conf"), ("b", "B", "conf/x")] {
        let spec = format!(
            r#"{{"variable": "{variable}", "value": "1", "file": {{"path": "{path}"}}, "target": {WEB}}}"#
        );
        put(&mut world, parameter, &spec);
    }
    let refusal = world.deploy_to("web", "1.0.0").unwrap_err();
    assert_eq!(refusal.reason, Reason::InvalidField);
    for word in ["A", "B", "\"conf\"", "\"conf/x\"", "web"] {
        assert!(refusal.message.contains(word), "{}", refusal.message);
    }
}

#[test]
fn a_restart_takes_the_present_value_and_a_scopes_limits_reach_the_agent() {
    let mut world = World::new();
    put(&mut world, "p", &secret("aa", SHOP, ""));
    let first = world.deploy("1.0.0");
    world.finish(first);
    put(&mut world, "p", &secret("bb", SHOP, ""));
    let limited = super::world::SCOPE.replacen('{', "{\"limits\": {\"open_files\": 99},", 1);
    world.must(world.object("web", Kind::Scope, &limited));
    let restart = Command::RestartScope(ScopeName { name: name("web") });
    let again = one(world.must(restart));
    assert_eq!(sealed_of(&world, again), "bb");
    world.start(again);
    let agent = world.get(again).participants[0].clone();
    let wish = desired(&world.state, &agent);
    let item = wish.items.iter().find(|i| i.deployment == again).unwrap();
    assert_eq!(item.run.limits.open_files, Some(99));
}
