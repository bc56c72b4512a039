//! Thresholds with exact numbers.

use super::*;

fn rule(metric: Metric, comparison: Comparison, threshold: &str) -> Rule {
    Rule {
        metric,
        comparison,
        threshold: threshold.parse().unwrap(),
        judge: None,
        window: Span::from_secs(10),
        min_samples: 5,
        hold: Span::ZERO,
        action: RuleAction::Rollback,
        dry_run: false,
        worse_than_baseline: None,
    }
}

fn requests(requests: u64, client_errors: u64, server_errors: u64) -> Measured {
    let mut latency = Histogram::default();
    for _ in 0..requests {
        latency.record(20_000);
    }
    Measured {
        requests,
        client_errors,
        server_errors,
        latency,
        ..Measured::default()
    }
}

#[test]
fn exactly_at_the_threshold_only_equal_holds() {
    use Comparison::{Equal, GreaterThan, LessThan};
    use Verdict::{Fail, Pass};
    for (comparison, errors, verdict) in [
        (GreaterThan, 9, Pass),
        (GreaterThan, 10, Pass),
        (GreaterThan, 11, Fail),
        (LessThan, 9, Fail),
        (LessThan, 10, Pass),
        (LessThan, 11, Pass),
        (Equal, 9, Pass),
        (Equal, 10, Fail),
        (Equal, 11, Pass),
    ] {
        let rule = rule(Metric::ErrorRate, comparison, "0.1");
        let found = look(&rule, &requests(100, 4, errors - 4), true).0;
        assert_eq!(found, verdict, "{errors} of 100 {}", comparison.as_str());
    }
}

#[test]
fn no_data_is_neither_pass_nor_fail() {
    for metric in Metric::ALL {
        for comparison in [
            Comparison::GreaterThan,
            Comparison::LessThan,
            Comparison::Equal,
        ] {
            let rule = rule(metric.clone(), comparison, "0");
            let (verdict, reading) = look(&rule, &Measured::default(), true);
            assert_eq!(verdict, Verdict::NoData, "{metric}");
            assert_eq!(reading.value, None, "{metric}");
        }
    }
}

#[test]
fn too_few_samples_decide_nothing() {
    let rule = rule(Metric::ErrorRate, Comparison::GreaterThan, "0.1");
    assert_eq!(
        look(&rule, &requests(4, 0, 4), true).0,
        Verdict::Inconclusive
    );
    assert_eq!(look(&rule, &requests(5, 0, 5), true).0, Verdict::Fail);
}

#[test]
fn what_grows_with_time_is_not_too_small_before_a_whole_window() {
    let small = rule(Metric::Rpm, Comparison::LessThan, "600");
    assert_eq!(
        look(&small, &requests(50, 0, 0), false).0,
        Verdict::Inconclusive
    );
    assert_eq!(look(&small, &requests(50, 0, 0), true).0, Verdict::Fail);
    let great = rule(Metric::Rpm, Comparison::GreaterThan, "600");
    assert_eq!(look(&great, &requests(101, 0, 0), false).0, Verdict::Fail);
    let rate = rule(Metric::ErrorRate, Comparison::LessThan, "0.1");
    assert_eq!(look(&rate, &requests(50, 0, 0), false).0, Verdict::Fail);
}

#[test]
fn metrics_come_in_their_units() {
    let mut measured = requests(200, 10, 20);
    measured.cpu = 3 * 5_000;
    measured.memory = 3 * 250;
    measured.gauges = 3;
    measured.health_checks = 40;
    measured.health_check_failures = 4;
    let window = Span::from_secs(10);
    for (metric, value) in [
        (Metric::Rpm, 1_200.0),
        (Metric::ErrorRate, 0.15),
        (Metric::ServerErrorRate, 0.1),
        (Metric::ResponseTime, 20.0),
        (Metric::CpuUsagePercentage, 50.0),
        (Metric::MemoryUsagePercentage, 2.5),
        (Metric::HealthcheckCount, 40.0),
        (Metric::HealthcheckFail, 4.0),
    ] {
        assert_eq!(
            read(&metric, &measured, window).value,
            Some(value),
            "{metric}"
        );
    }
    let p99 = read(&Metric::ResponseTimeP99, &measured, window)
        .value
        .unwrap();
    assert!((p99 - 20.0).abs() < 1.5, "{p99}");
}

#[test]
fn one_line_tells_the_figures() {
    let line = |verdict, value: f64| {
        Evidence {
            metric: Metric::ErrorRate,
            comparison: Comparison::GreaterThan,
            threshold: "0.1".to_owned(),
            verdict,
            value: decimal(value, 0.1),
            samples: 201,
            errors: 43,
            window: Span::from_secs(1),
            at: Timestamp::ZERO,
            action: RuleAction::Rollback,
            dry_run: false,
            step: 1,
        }
        .line(Some(Weight::share(1, 2)))
    };
    assert_eq!(
        line(Verdict::Fail, 43.0 / 201.0),
        "http.error_rate 0.214 > 0.1 over 1s: 43 of 201 requests failed, step 2 (50 %)"
    );
    assert!(line(Verdict::Fail, 0.100_04).starts_with("http.error_rate 0.10004 > 0.1"));
    assert!(line(Verdict::Pass, 0.1).starts_with("http.error_rate 0.1 ≤ 0.1"));
}

#[test]
fn decimals_are_short_but_on_the_right_side() {
    for (value, threshold, text) in [
        (0.0, 1.0, "0"),
        (12.0, 10.0, "12"),
        (1_234.5, 10.0, "1234"),
        (0.000_123_456, 1.0, "0.000123"),
        (500.4, 500.0, "500.4"),
    ] {
        assert_eq!(decimal(value, threshold), text);
    }
}
