//! What is written, its defaults and its mistakes.

use super::*;

fn spec(json: &str) -> VerificationSpec {
    serde_json::from_str(json).unwrap()
}

fn fields(json: &str) -> Vec<String> {
    let errors = spec(json).validate().0;
    errors.into_iter().map(|error| error.field).collect()
}

#[test]
fn what_is_not_said_takes_its_default() {
    let check = spec(r#"{"name": "smoke", "http": {"path": "/health"}}"#);
    assert_eq!(check.validate(), FieldErrors::default());
    assert_eq!(check.interval, Span::from_secs(10));
    assert!(matches!(
        check.measurement(),
        Some(Measurement::InstanceHttp(http)) if http.timeout == Span::from_secs(5)
    ));
    // It comes back as it was written, with the defaults told.
    let json = serde_json::to_string(&check).unwrap();
    assert_eq!(
        json,
        r#"{"name":"smoke","http":{"path":"/health","timeout":"5s"},"interval":"10s"}"#
    );
    assert_eq!(spec(&json), check);
}

#[test]
fn moments_are_words_or_numbers() {
    let check = spec(
        r#"{"name": "a", "command": {"command": "./check"}, "when": ["before_traffic", 2, "last", "3"]}"#,
    );
    assert_eq!(
        check.when,
        [
            When::BeforeTraffic,
            When::Step(2),
            When::Last,
            When::Step(3)
        ]
    );
    for wrong in ["0", "-1", "\"never\"", "10001"] {
        let json = format!(r#"{{"name": "a", "command": {{"command": "x"}}, "when": [{wrong}]}}"#);
        let error = serde_json::from_str::<VerificationSpec>(&json).unwrap_err();
        assert!(
            error.to_string().contains("no moment of a rollout"),
            "{error}"
        );
    }
}

#[test]
fn wrong_fields_are_named() {
    let http = |rest: &str| format!(r#"{{"name": "a", "http": {{{rest}}}}}"#);
    let beside = |rest: &str| format!(r#"{{"name": "a", "http": {{"path": "/"}}, {rest}}}"#);
    for (json, field) in [
        (r#"{"name": "a"}"#.to_owned(), "http"),
        (beside(r#""command": {"command": "x"}"#), "http"),
        (http(""), "http.path"),
        (http(r#""path": "/", "url": "http://a""#), "http.path"),
        (http(r#""path": "health""#), "http.path"),
        (http(r#""path": "/${WHAT}""#), "http.path"),
        (http(r#""url": "ftp://example.com""#), "http.url"),
        (http(r#""url": "http://""#), "http.url"),
        (http(r#""url": "http://a:0/""#), "http.url"),
        (http(r#""url": "http://me:pw@example.com/""#), "http.url"),
        (http(r#""path": "/", "timeout": "6m""#), "http.timeout"),
        (http(r#""path": "/", "status": 99"#), "http.status"),
        (http(r#""path": "/", "headers": {"a b": "c"}"#), "http.headers.a b"),
        (
            http(r#""path": "/", "headers": {"Content-Length": "1"}"#),
            "http.headers.Content-Length",
        ),
        (http(r#""path": "/", "headers": {"a": "b\nc"}"#), "http.headers.a"),
        (r#"{"name": "a", "command": {"command": ""}}"#.to_owned(), "command.command"),
        (
            r#"{"name": "a", "prometheus": {"address": "http://p", "query": "up"}}"#.to_owned(),
            "success",
        ),
        (
            r#"{"name": "a", "prometheus": {"address": "http://p?a", "query": "up"}, "success": "true"}"#
                .to_owned(),
            "prometheus.address",
        ),
        (beside(r#""interval": "100ms""#), "interval"),
        (beside(r#""initial_delay": "25h""#), "initial_delay"),
        (beside(r#""count": 0"#), "count"),
        (
            beside(r#""count": 2, "consecutive_successes": 3"#),
            "consecutive_successes",
        ),
        (beside(r#""count": 2, "failure_limit": 2"#), "failure_limit"),
        (beside(r#""when": ["last", "last"]"#), "when[1]"),
    ] {
        assert_eq!(fields(&json), [field], "{json}");
    }
}

#[test]
fn names_are_unique_and_few() {
    let check = spec(r#"{"name": "a", "http": {"path": "/"}}"#);
    let errors = validate_checks(&[check.clone(), check.clone()]).0;
    assert_eq!(errors[0].field, "verification[1].name");
    let many: Vec<_> = (0..17)
        .map(|n| VerificationSpec {
            name: Name::new(format!("c{n}")).unwrap(),
            ..check.clone()
        })
        .collect();
    assert_eq!(validate_checks(&many).0[0].field, "verification");
}

#[test]
fn the_longest_time_counts_every_row_that_may_break() {
    let longest = |rest: &str| {
        spec(&format!(
            r#"{{"name": "a", "http": {{"path": "/"}}, "interval": "10s"{rest}}}"#
        ))
        .longest()
    };
    assert_eq!(longest(""), Span::from_secs(15));
    assert_eq!(
        longest(r#", "consecutive_successes": 3, "failure_limit": 2, "initial_delay": "1m""#),
        Span::from_secs(60 + 90 + 5)
    );
    assert_eq!(longest(r#", "count": 4"#), Span::from_secs(45));
}
