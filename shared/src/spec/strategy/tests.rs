//! What is written, checked, overridden and resolved.

use super::*;

fn spec(json: &str) -> StrategySpec {
    serde_json::from_str(json).unwrap()
}

fn weights(strategy: &Strategy) -> Vec<u16> {
    strategy
        .steps
        .iter()
        .map(|step| step.weight.basis_points())
        .collect()
}

#[test]
fn defaults_are_those_of_the_design() {
    let strategy = StrategySpec::default().resolve();
    assert_eq!(weights(&strategy), [500, 2_500, 5_000, 10_000]);
    assert!(
        strategy
            .steps
            .iter()
            .all(|step| step.hold == Hold::For(Span::from_secs(60)))
    );
    assert_eq!(strategy.bake, Span::from_mins(5));
    assert_eq!(strategy.deadlines.progress, Span::from_mins(10));
    assert_eq!(strategy.keep_releases, 3);
}

#[test]
fn the_last_step_leaves_the_bake_share() {
    let strategy = spec(
        r#"{"traffic": {"steps": [{"percent": 10}, {"percent": 100, "hold": "5s"}]}, "bake_share": 2}"#,
    )
    .resolve();
    assert_eq!(weights(&strategy), [1_000, 9_800]);
    assert_eq!(strategy.steps[1].hold, Hold::For(Span::from_secs(5)));
}

#[test]
fn increments_become_steps() {
    let json = r#"{"traffic": {"increment": 40, "interval": "30s"}}"#;
    assert_eq!(spec(json).validate(), FieldErrors::default());
    assert_eq!(weights(&spec(json).resolve()), [4_000, 8_000, 10_000]);
}

#[test]
fn all_in_is_one_step_and_rolling_none() {
    assert_eq!(weights(&spec(r#"{"kind": "all_in"}"#).resolve()), [10_000]);
    assert!(spec(r#"{"kind": "rolling"}"#).resolve().steps.is_empty());
}

#[test]
fn overrides_leave_what_they_do_not_name() {
    let base = spec(r#"{"bake": "1s", "deadlines": {"stall": "3s", "progress": "4s"}}"#);
    let over = spec(r#"{"drain": "2s", "deadlines": {"progress": "9s"}}"#);
    let strategy = base.overridden_by(&over).resolve();
    assert_eq!(strategy.bake, Span::from_secs(1));
    assert_eq!(strategy.drain, Span::from_secs(2));
    assert_eq!(strategy.deadlines.stall, Span::from_secs(3));
    assert_eq!(strategy.deadlines.progress, Span::from_secs(9));
}

#[test]
fn wrong_fields_are_named() {
    let rule = r#"{"metric": "http.error_rate", "comparison": "greater_than", "threshold": 0.1"#;
    for (json, field) in [
        (
            r#"{"traffic": {"steps": [{"percent": 50}, {"percent": 50}]}}"#.to_owned(),
            "traffic.steps[1].percent",
        ),
        (
            r#"{"traffic": {"steps": [{"percent": 0}]}}"#.to_owned(),
            "traffic.steps[0].percent",
        ),
        (r#"{"traffic": {}}"#.to_owned(), "traffic.steps"),
        (
            r#"{"kind": "rolling", "traffic": {"steps": [{"percent": 50}]}}"#.to_owned(),
            "traffic",
        ),
        (r#"{"batch": {"overlap": false}}"#.to_owned(), "batch"),
        (r#"{"bake_share": 51}"#.to_owned(), "bake_share"),
        (
            r#"{"deadlines": {"stall": "1ms"}}"#.to_owned(),
            "deadlines.stall",
        ),
        (
            format!(r#"{{"rollback": {{"rules": [{rule}}}]}}}}"#),
            "rollback.rules[0].judge",
        ),
        (
            format!(r#"{{"rollback": {{"rules": [{rule}, "judge": "evidence"}}]}}}}"#),
            "rollback.rules[0].judge",
        ),
        (
            format!(
                r#"{{"rollback": {{"rules": [{rule}, "judge": "raw", "worse_than_baseline": {{}}}}]}}}}"#
            ),
            "rollback.rules[0].worse_than_baseline",
        ),
    ] {
        let errors = spec(&json).validate();
        assert!(
            errors.0.iter().any(|error| error.field == field),
            "{json}: {errors:?}"
        );
    }
}

#[test]
fn checks_fit_the_steps() {
    let with = |kind: &str, when: &str| {
        spec(&format!(
            r#"{{"kind": "{kind}", "verification": [{{"name": "a", "http": {{"path": "/"}}, "when": [{when}]}}]}}"#
        ))
    };
    assert_eq!(with("blue_green", "\"before_traffic\", 4").validate().0, []);
    assert_eq!(with("rolling", "9").validate().0, []);
    for (kind, when) in [
        ("blue_green", "5"),
        ("all_in", "2"),
        ("rolling", "\"before_traffic\""),
    ] {
        let errors = with(kind, when).validate().0;
        assert_eq!(errors[0].field, "verification[0].when[0]", "{errors:?}");
    }
    let base = with("blue_green", "1");
    let strategy = base.overridden_by(&spec(r#"{"bake": "1s"}"#)).resolve();
    assert_eq!(strategy.verification.len(), 1);
    let strategy = base
        .overridden_by(&spec(r#"{"verification": []}"#))
        .resolve();
    assert!(strategy.verification.is_empty());
}

#[test]
fn percentages_over_100_and_unknown_fields_are_refused() {
    for json in [
        r#"{"traffic": {"steps": [{"percent": 101}]}}"#,
        r#"{"traffic": {"steps": [{"percent": -1}]}}"#,
        r#"{"traffic": {"steps": [{"percent": 1.001}]}}"#,
        r#"{"trafic": {}}"#,
    ] {
        assert!(
            serde_json::from_str::<StrategySpec>(json).is_err(),
            "{json}"
        );
    }
}

#[test]
fn shares_round_up_for_batches_and_down_for_losses() {
    assert_eq!(BatchSize::Share(Weight::share(1, 4)).of(10), 3);
    assert_eq!(BatchSize::Count(5).of(3), 3);
    assert_eq!(MaxLost::Default.of(2), 0);
    assert_eq!(MaxLost::Default.of(3), 1);
    assert_eq!(MaxLost::Default.of(40), 4);
    assert_eq!(MaxLost::Share(Weight::share(1, 4)).of(7), 1);
}

#[test]
fn a_resolved_strategy_reads_back() {
    let strategy = spec(r#"{"bake_share": 12.5, "max_lost": "20%", "batch": null}"#).resolve();
    let json = serde_json::to_string(&strategy).unwrap();
    assert_eq!(serde_json::from_str::<Strategy>(&json).unwrap(), strategy);
}
