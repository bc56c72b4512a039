//! Conditions over samples, tallies from reports, and what is asked of whom.

use std::sync::Arc;

use tidegate_shared::measurement::Sample;
use tidegate_shared::spec::{StrategySpec, VerificationSpec};
use tidegate_shared::time::Span;
use tidegate_shared::verdict::check::{Class, Outcome};

use super::{Verified, check, classify, leader_checks, verified, wishes};
use crate::fixture::{START, World};
use crate::state::{CheckRecord, Status};

fn spec(json: &str) -> VerificationSpec {
    serde_json::from_str(json).unwrap()
}

fn http(status: u16, body: &str) -> Sample {
    Sample::Http {
        status,
        body: body.to_owned(),
        cut: false,
    }
}

fn of_http(rest: &str, sample: &Sample) -> (Class, String) {
    let json = format!(r#"{{"name": "a", "http": {{"path": "/"}}{rest}}}"#);
    classify(&spec(&json), sample)
}

fn of_query(success: &str, values: &[f64]) -> (Class, String) {
    let json = format!(
        r#"{{"name": "a", "prometheus": {{"address": "http://p", "query": "up"}}, "success": "{success}"}}"#
    );
    classify(&spec(&json), &Sample::Values(values.to_vec()))
}

#[test]
fn without_conditions_a_status_of_2xx_and_an_exit_of_0_are_good() {
    assert_eq!(of_http("", &http(204, "")).0, Class::Success);
    assert_eq!(of_http("", &http(302, "")).0, Class::Failure);
    let wanted = spec(r#"{"name": "a", "http": {"path": "/", "status": 418}}"#);
    assert_eq!(classify(&wanted, &http(418, "")).0, Class::Success);
    assert_eq!(
        classify(&wanted, &http(200, "")),
        (Class::Failure, "HTTP 200, wanted 418".to_owned())
    );
    let command = spec(r#"{"name": "a", "command": {"command": "./check"}}"#);
    let ended = |exit_code: i32| Sample::Command {
        exit_code,
        output: "looking\nschema is at 41\n\n".to_owned(),
        cut: false,
    };
    assert_eq!(classify(&command, &ended(0)).0, Class::Success);
    assert_eq!(
        classify(&command, &ended(3)),
        (Class::Failure, "exit status 3: schema is at 41".to_owned())
    );
}

#[test]
fn conditions_read_status_and_json() {
    let success = r#", "success": "result.status == 200 && result.body.ready == true""#;
    let good = http(200, r#"{"ready": true, "queue": 3}"#);
    assert_eq!(of_http(success, &good).0, Class::Success);
    let (class, told) = of_http(success, &http(200, r#"{"ready": false, "password": "no"}"#));
    assert_eq!(class, Class::Failure);
    assert_eq!(
        told,
        "HTTP 200; not result.status == 200 && result.body.ready == true"
    );
    for (condition, class) in [
        ("result.body.queue < 3.5", Class::Success),
        ("result.body.queue >= 4", Class::Failure),
        ("result.body[\\\"queue\\\"] == 3", Class::Success),
        ("size(result.text) > 5", Class::Success),
        // A field that is not there says nothing about the version.
        ("result.body.depth < 5", Class::Inconclusive),
        ("has(result.body.depth)", Class::Failure),
    ] {
        let rest = format!(r#", "success": "{condition}""#);
        assert_eq!(of_http(&rest, &good).0, class, "{condition}");
    }
    // No JSON is null, as is a body that was cut.
    let is_null = r#", "success": "result.body == null""#;
    assert_eq!(of_http(is_null, &http(200, "<html>")).0, Class::Success);
    let cut = Sample::Http {
        status: 200,
        body: "{}".to_owned(),
        cut: true,
    };
    assert_eq!(of_http(is_null, &cut).0, Class::Success);
}

#[test]
fn both_conditions_leave_room_between_them() {
    let both = r#", "success": "result.body.lag < 5", "failure": "result.body.lag > 60""#;
    let lag = |lag: u32| http(200, &format!("{{\"lag\": {lag}}}"));
    assert_eq!(of_http(both, &lag(1)).0, Class::Success);
    assert_eq!(of_http(both, &lag(30)).0, Class::Inconclusive);
    assert_eq!(of_http(both, &lag(61)).0, Class::Failure);
    let failure = r#", "failure": "result.body.lag > 60""#;
    assert_eq!(of_http(failure, &lag(30)).0, Class::Success);
}

#[test]
fn queries_without_a_value_say_nothing() {
    assert_eq!(of_query("result.value < 0.05", &[0.01]).0, Class::Success);
    assert_eq!(of_query("result.value < 1", &[3.0]).0, Class::Failure);
    for values in [&[][..], &[f64::NAN]] {
        let (class, told) = of_query("result.value < 0.05", values);
        assert_eq!(
            (class, told.as_str()),
            (Class::Inconclusive, "the query gave no value")
        );
    }
    // More than one: `value` is not there.
    assert_eq!(
        of_query("result.value < 1", &[0.1, 0.2]).0,
        Class::Inconclusive
    );
    let all = "result.values.all(v, v < 1)";
    assert_eq!(of_query(all, &[0.1, 0.2]).0, Class::Success);
    assert_eq!(of_query(all, &[0.1, 2.0]).0, Class::Failure);
}

#[test]
fn what_was_not_answered_is_bad_and_what_was_not_made_says_nothing() {
    let unanswered = Sample::Unanswered("no answer in 5s".to_owned());
    assert_eq!(
        of_http(r#", "failure": "false""#, &unanswered),
        (Class::Failure, "no answer in 5s".to_owned())
    );
    let not_made = Sample::NotMade("connection refused".to_owned());
    assert_eq!(of_http("", &not_made).0, Class::Inconclusive);
}

#[test]
fn mistakes_in_conditions_are_told_with_their_place() {
    let checks = [
        spec(r#"{"name": "a", "http": {"path": "/"}, "success": "result.stat == 200"}"#),
        spec(r#"{"name": "b", "command": {"command": "x"}, "failure": "result.exit_code"}"#),
        spec(
            r#"{"name": "c", "prometheus": {"address": "http://p", "query": "up"},
                "success": "true && resul.value < 1"}"#,
        ),
        spec(r#"{"name": "d", "http": {"path": "/"}, "success": "result.body.a.b[0] > 1"}"#),
    ];
    let found = check(&checks).0;
    let told: Vec<String> = found
        .iter()
        .map(|error| format!("{}: {}", error.field, error.message))
        .collect();
    assert_eq!(
        told,
        [
            "verification[0].success: at character 7: result has no \"stat\": want status, body and text",
            "verification[1].failure: the result is a number: want a comparison, which is true or false",
            "verification[2].success: at character 9: there is no \"resul\" here: want result",
        ]
    );
}

const CHECKED: &str = r#"{"bake":"10s","traffic":{"steps":[{"percent":10,"hold":"5s"}]},
    "verification":[
      {"name":"smoke","http":{"path":"/health?of=${RELEASE}"},"interval":"1s"},
      {"name":"schema","command":{"command":"./check","args":["${SCOPE}"]},"when":[1]},
      {"name":"errors","prometheus":{"address":"http://p","query":"sum(e{release=\"${RELEASE}\"})"},
       "success":"result.value < 1","when":["last"]},
      {"name":"front","http":{"url":"https://shop.example.com/"},"when":["before_traffic"]}]}"#;

#[test]
fn each_moment_has_its_checks_and_their_makers() {
    let mut world = World::new(1, 1, CHECKED, Status::Running);
    let names = |world: &World| {
        let asked = wishes(world.candidate());
        let asked: Vec<String> = asked.iter().map(|wish| wish.name.to_string()).collect();
        let own = leader_checks(&world.state);
        let own: Vec<String> = own.iter().map(|check| check.name.to_string()).collect();
        (asked.join(" "), own.join(" "))
    };
    assert_eq!(names(&world), (String::new(), "front".to_owned()));
    world.at_step(0, 10, None);
    assert_eq!(names(&world), Default::default(), "the step is not reached");
    world.at_step(0, 10, Some(START));
    assert_eq!(names(&world), ("smoke schema".to_owned(), String::new()));
    let asked = format!("{:?}", wishes(world.candidate()));
    assert!(asked.contains("/health?of=2.0.0"), "{asked}");
    assert!(asked.contains(r#"args: ["web"]"#), "{asked}");
    world.at_step(1, 100, Some(START));
    assert_eq!(names(&world), ("smoke".to_owned(), "errors".to_owned()));
    let own = format!("{:?}", leader_checks(&world.state));
    assert!(own.contains(r#"release=\"2.0.0\""#), "{own}");
    world.change(|new| Arc::make_mut(&mut new.origin).fast = true);
    assert_eq!(names(&world), Default::default(), "a fast one skips them");
}

#[test]
fn what_is_settled_is_not_asked_again() {
    let mut world = World::new(1, 1, CHECKED, Status::Running);
    world.at_step(0, 10, Some(START));
    let record = |outcome| CheckRecord {
        name: crate::fixture::name("smoke"),
        run: START + Span::from_millis(1),
        step: Some(0),
        outcome,
        measurements: 1,
        failures: 0,
        at: START,
        message: "as told".to_owned(),
    };
    world.change(|new| new.checks = vec![record(Outcome::Inconclusive)]);
    assert_eq!(wishes(world.candidate()).len(), 2);
    world.change(|new| new.checks = vec![record(Outcome::Success)]);
    assert_eq!(wishes(world.candidate()).len(), 1);
}

#[test]
fn a_member_is_verified_at_its_end_with_what_was_asked_of_it() {
    let mut world = World::new(1, 1, CHECKED, Status::Running);
    assert_eq!(verified(world.candidate()), Verified::NotYet);
    world.at_step(1, 100, Some(START));
    world.change(|new| new.status = Status::Finalized);
    let Verified::No(why) = verified(world.candidate()) else {
        panic!("nothing succeeded");
    };
    assert_eq!(why, "web: check smoke did not succeed");
    let record = |name: &str, outcome| CheckRecord {
        name: crate::fixture::name(name),
        run: START,
        step: Some(1),
        outcome,
        measurements: 1,
        failures: 0,
        at: START,
        message: format!("check {name} is {outcome}"),
    };
    world.change(|new| {
        new.checks = vec![
            record("smoke", Outcome::Success),
            record("errors", Outcome::Success),
        ];
    });
    assert_eq!(verified(world.candidate()), Verified::Yes);
    world.change(|new| {
        new.unverified = true;
        new.checks[1] = record("errors", Outcome::Inconclusive);
    });
    assert_eq!(
        verified(world.candidate()),
        Verified::No("web: check errors is inconclusive".to_owned())
    );
    world.change(|new| new.status = Status::RolledBack);
    assert!(matches!(verified(world.candidate()), Verified::No(_)));
    // Without rules and checks nothing was asked.
    let plain = serde_json::from_str::<StrategySpec>("{}").unwrap();
    world.change(|new| {
        new.status = Status::Finalized;
        new.unverified = false;
        Arc::make_mut(&mut new.origin).strategy = Arc::new(plain.resolve());
    });
    assert_eq!(verified(world.candidate()), Verified::Yes);
}
