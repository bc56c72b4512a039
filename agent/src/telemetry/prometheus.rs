//! The text that applications expose on `/metrics`: Prometheus' text format 0.0.4 and OpenMetrics
//! 1.0, as far as values go.
//!
//! Only the series that rules name are taken; comments, types, times and exemplars are passed over.
//! A line that is not sound is passed over and counted: one bad collector must not blind the rules
//! to the others. Nothing grows beyond the limits, whatever the text.

use std::collections::BTreeMap;

use tidegate_shared::assignment::AppSample;
use tidegate_shared::spec::Selector;

/// Longest line, in bytes.
const MAX_LINE: usize = 16 * 1024;
/// Most lines of a text.
const MAX_LINES: usize = 200_000;
/// Most labels of a series.
const MAX_LABELS: usize = 64;
/// Most samples that are told: a selector has one, or one per bucket.
const MAX_SAMPLES: usize = 512;
/// Larger values are of no use: sums of them would not be exact in any digit.
const MAX_VALUE: f64 = 1e18;

/// What a text says of the wanted series.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    /// One per selector and bucket that has any, values added up.
    pub samples: Vec<AppSample>,
    /// Lines that are not sound.
    pub malformed: usize,
}

/// Reads a text.
pub fn read(text: &str, wanted: &[Selector]) -> Found {
    let mut sums: BTreeMap<(usize, Option<String>), f64> = BTreeMap::new();
    let mut malformed = 0;
    for line in text.lines().take(MAX_LINES) {
        let line = line.trim();
        if line == "# EOF" {
            break;
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some(series) = (line.len() <= MAX_LINE).then(|| parse(line)).flatten() else {
            malformed += 1;
            continue;
        };
        for (position, selector) in wanted.iter().enumerate() {
            if !series.fits(selector) || !series.value.is_finite() {
                continue;
            }
            let edge = series.labels.iter().find(|(label, _)| *label == "le");
            let edge = match (selector.name.ends_with("_bucket"), edge) {
                (true, Some((_, edge))) if !selector.labels.contains_key("le") => {
                    Some(edge.clone())
                }
                (_, _) => None,
            };
            if sums.len() < MAX_SAMPLES || sums.contains_key(&(position, edge.clone())) {
                *sums.entry((position, edge)).or_default() += series.value;
            }
        }
    }
    let samples = sums
        .into_iter()
        .filter(|(_, value)| value.abs() <= MAX_VALUE)
        .filter_map(|((position, edge), value)| {
            let series = wanted.get(position)?.to_string();
            Some(AppSample {
                series,
                edge,
                value,
            })
        })
        .collect();
    Found { samples, malformed }
}

struct Series<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
}

impl Series<'_> {
    fn fits(&self, selector: &Selector) -> bool {
        let has = |(label, value): (&String, &String)| {
            self.labels.iter().any(|(l, v)| l == label && v == value)
        };
        self.name == selector.name && selector.labels.iter().all(has)
    }
}

/// `NAME{LABEL="VALUE",…} NUMBER [TIME] [# exemplar]`.
fn parse(line: &str) -> Option<Series<'_>> {
    let end = line.find(|c: char| c == '{' || c.is_ascii_whitespace())?;
    let (name, mut rest) = line.split_at(end);
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(fits)
    {
        return None;
    }
    let mut labels = Vec::new();
    rest = rest.trim_start();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside.trim_start();
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once('=')?;
            let (value, after) = quoted(after.trim_start())?;
            labels.push((label.trim(), value));
            if labels.len() > MAX_LABELS {
                return None;
            }
            let after = after.trim_start();
            rest = match after.strip_prefix(',') {
                Some(more) => more.trim_start(),
                None if after.starts_with('}') => after,
                None => return None,
            };
        }
        rest = rest.strip_prefix('}')?;
    }
    let mut words = rest.split_ascii_whitespace();
    let value = number(words.next()?)?;
    match words.next() {
        None | Some("#") => {}
        Some(time) => {
            number(time)?;
            if words.next().is_some_and(|word| word != "#") {
                return None;
            }
        }
    }
    Some(Series {
        name,
        labels,
        value,
    })
}

fn number(text: &str) -> Option<f64> {
    // Of the words that Rust takes only these are the format's.
    let is_word = matches!(text, "NaN" | "+Inf" | "-Inf" | "Inf");
    let is_number = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E'));
    (is_word || is_number).then(|| text.parse().ok()).flatten()
}

/// A text in double quotes, and what follows it. Unknown escapes stand for themselves, as the
/// format's own readers have it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let inner = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut characters = inner.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &inner[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other @ ('"' | '\\') => value.push(other),
                other => value.extend(['\\', other]),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(text: &str, wanted: &[&str]) -> Vec<(String, f64)> {
        let wanted: Vec<Selector> = wanted.iter().map(|w| w.parse().unwrap()).collect();
        let found = read(text, &wanted);
        let name = |sample: &AppSample| match &sample.edge {
            Some(edge) => format!("{} ≤ {edge}", sample.series),
            None => sample.series.clone(),
        };
        found.samples.iter().map(|s| (name(s), s.value)).collect()
    }

    const TEXT: &str = r#"# HELP http_requests_total Requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="post",code="400"}    3 1395066363000
 http_requests_total { method = "get" , code = "200", } 10
escaped{path="C:\\DIR\\FILE.TXT",error="Cannot find \"FILE.TXT\"\n"} 1.458255915e9
no_labels 12.47
infinite{a="b"} +Inf
not_a_number NaN
latency_seconds_bucket{le="0.1"} 4
latency_seconds_bucket{le="+Inf"} 5 # {trace="x"} 0.3
latency_seconds_sum 1.5
latency_seconds_count 5
"#;

    #[test]
    fn the_wanted_series_are_taken_and_added_up() {
        assert_eq!(
            values(
                TEXT,
                &[
                    "http_requests_total",
                    "http_requests_total{code=\"200\"}",
                    "no_labels",
                    "latency_seconds_bucket",
                    "absent",
                ]
            ),
            [
                ("http_requests_total".to_owned(), 1_040.0),
                ("http_requests_total{code=\"200\"}".to_owned(), 1_037.0),
                ("no_labels".to_owned(), 12.47),
                ("latency_seconds_bucket ≤ +Inf".to_owned(), 5.0),
                ("latency_seconds_bucket ≤ 0.1".to_owned(), 4.0),
            ]
        );
        let escaped = "escaped{path=\"C:\\\\DIR\\\\FILE.TXT\"}";
        assert_eq!(values(TEXT, &[escaped])[0].1, 1.458_255_915e9);
        // What is no number is no sample.
        assert!(values(TEXT, &["infinite", "not_a_number"]).is_empty());
    }

    #[test]
    fn open_metrics_ends_where_it_says() {
        let text = "a_total 1\n# EOF\na_total 5\n";
        assert_eq!(values(text, &["a_total"]), [("a_total".to_owned(), 1.0)]);
    }

    #[test]
    fn lines_that_are_not_sound_are_passed_over() {
        let wanted = ["good".parse().unwrap()];
        for bad in [
            "bad",
            "bad{",
            "bad{a} 1",
            "bad{a=\"1} 1",
            "bad{a=\"1\\",
            "bad{a=\"1\" b=\"2\"} 1",
            "1bad 1",
            "b-ad 1",
            "bad 1 2 3",
            "bad one",
            "bad nan",
            "bad infinity",
            "bad 0x10",
            "{} 1",
            "bad{a=\"1\"}",
        ] {
            let found = read(&format!("{bad}\ngood 1\n"), &wanted);
            assert_eq!((found.malformed, found.samples.len()), (1, 1), "{bad}");
        }
        let long = format!("bad{{a=\"{}\"}} 1\ngood 1", "x".repeat(MAX_LINE));
        assert_eq!(read(&long, &wanted).malformed, 1);
        let many: String = (0..100).map(|n| format!("l{n}=\"x\",")).collect();
        assert_eq!(read(&format!("good{{{many}}} 1"), &wanted).malformed, 1);
    }

    #[test]
    fn what_is_told_is_bounded() {
        let text: String = (0..2_000)
            .map(|n| format!("x_bucket{{le=\"{n}\"}} 1\n"))
            .collect();
        let found = read(&text, &["x_bucket".parse().unwrap()]);
        assert_eq!(found.samples.len(), MAX_SAMPLES);
        assert!(values("x 1e300", &["x"]).is_empty());
        assert!(values("x 9e17\nx 9e17", &["x"]).is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "[a-z{}=\",\\\\ 0-9.#\n+Na-]{0,200}") {
            let found = read(&text, &["a".parse().unwrap(), "b_bucket".parse().unwrap()]);
            prop_assert!(found.samples.iter().all(|sample| sample.value.is_finite()));
        }
    }
}
