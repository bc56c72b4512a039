//! Rollouts of groups as people write them.

use super::*;

fn spec(json: &str) -> RolloutSpec {
    serde_json::from_str(json).unwrap()
}

#[test]
fn what_the_documents_show_is_understood_and_read_back() {
    let rollout = spec(
        r#"{"kind": "waves", "gate": "healthy", "order": {"label": "zone"},
            "waves": [{"name": "canary", "count": 1, "bake": "5m"},
                      {"name": "eu", "selector": "scope.dimensions.region == \"eu\""},
                      {"name": "half", "percent": 50}],
            "budget": {"max_failures": "10%", "min_executed": 3, "on_breach": "rollback"},
            "pinned": {"first": ["a"], "last": ["z"]}}"#,
    );
    assert_eq!(rollout.validate(), FieldErrors::default());
    assert_eq!(
        rollout.budget().unwrap().max_failures,
        Amount::Share(Weight::share(1, 10))
    );
    let json = serde_json::to_string(&rollout).unwrap();
    assert_eq!(spec(&json), rollout);
    let linear = spec(r#"{"kind": "linear", "time_scale_interval": "60s"}"#);
    assert_eq!(linear.interval, Some(Span::from_secs(60)));
    assert_eq!(linear.validate(), FieldErrors::default());
    assert_eq!(spec("{}").validate(), FieldErrors::default());
}

#[test]
fn budgets_are_none_for_all_at_once_and_nought_for_the_others() {
    assert_eq!(spec("{}").budget(), None);
    for kind in ["linear", "linear_normalized", "waves"] {
        let rollout = spec(&format!(r#"{{"kind": "{kind}"}}"#));
        assert_eq!(rollout.budget(), Some(BudgetSpec::default()));
    }
    let given = spec(r#"{"budget": {"max_failures": 2}}"#).budget().unwrap();
    assert_eq!(given.max_failures, Amount::Count(2));
    assert_eq!(given.on_breach, OnBreach::Halt);
}

#[test]
fn wrong_fields_are_named() {
    for (json, field) in [
        (r#"{"kind": "linear"}"#, "interval"),
        (r#"{"kind": "linear", "interval": "367d"}"#, "interval"),
        (r#"{"interval": "1s"}"#, "interval"),
        (r#"{"kind": "waves"}"#, "waves"),
        (
            r#"{"verification": [{"name": "a", "http": {"path": "/"}}]}"#,
            "verification",
        ),
        (
            r#"{"kind": "linear", "interval": "1s", "gate": "verified",
                "verification": [{"name": "a", "http": {"path": "/"}, "when": [1]}]}"#,
            "verification[0].when",
        ),
        (r#"{"waves": [{"name": "a", "count": 1}]}"#, "waves"),
        (
            r#"{"kind": "waves", "waves": [{"name": "a"}]}"#,
            "waves[0].selector",
        ),
        (
            r#"{"kind": "waves", "waves": [{"name": "a", "count": 1, "percent": 5}]}"#,
            "waves[0].selector",
        ),
        (
            r#"{"kind": "waves", "waves": [{"name": "a", "count": 1}, {"name": "a", "count": 1}]}"#,
            "waves[1].name",
        ),
        (
            r#"{"kind": "waves", "waves": [{"name": "a", "count": 0}]}"#,
            "waves[0].count",
        ),
        (
            r#"{"kind": "waves", "waves": [{"name": "a", "percent": 0}]}"#,
            "waves[0].percent",
        ),
        (r#"{"gate": "healthy"}"#, "gate"),
        (r#"{"order": {"label": ""}}"#, "order.label"),
        (
            r#"{"pinned": {"first": ["a"], "last": ["a"]}}"#,
            "pinned.last",
        ),
    ] {
        let errors = spec(json).validate();
        assert!(
            errors.0.iter().any(|error| error.field == field),
            "{json}: {errors:?}"
        );
    }
    for json in [
        r#"{"knd": "linear"}"#,
        r#"{"kind": "fast"}"#,
        r#"{"budget": {"max_failures": "101%"}}"#,
        r#"{"budget": {"max_failures": -1}}"#,
        r#"{"order": "random"}"#,
    ] {
        assert!(serde_json::from_str::<RolloutSpec>(json).is_err(), "{json}");
    }
}
