//! Metrics that an application exposes itself, as rules name them: `app.`, a reading, and a
//! Prometheus selector.
//!
//! | written | read as |
//! | --- | --- |
//! | `app.rate(NAME{label="value"})` | growth of a counter per second, over all instances |
//! | `app.increase(NAME)` | growth of a counter in the window, over all instances |
//! | `app.mean(NAME)` | a gauge: mean over instances and samples |
//! | `app.average(NAME)` | mean of what a histogram or summary observed: `NAME_sum` over `NAME_count` |
//! | `app.p50(NAME)`, `app.p95(NAME)`, `app.p99(NAME)` | quantiles of a histogram: `NAME_bucket` |
//! | `app.NAME` | `rate` if the name ends in `_total`, `_count`, `_sum` or `_bucket`, else `mean` |
//!
//! Every series of that name whose labels include the given ones counts; several in one instance
//! are added up.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What rules begin with that name a metric of the application.
pub const PREFIX: &str = "app.";
/// Longest name, label or value, in bytes.
const MAX_PART: usize = 200;
/// Most labels of a selector.
const MAX_LABELS: usize = 8;

/// How a series becomes a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reading {
    /// Growth per second.
    Rate,
    /// Growth in the window.
    Increase,
    /// Mean over instances and samples.
    Mean,
    /// `_sum` over `_count`, by growth.
    Average,
    /// Quantile in per cent, of buckets by growth.
    Quantile(u8),
}

/// Which series, by name and labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// The whole name.
    pub name: String,
    /// Labels that a series must have; it may have more.
    pub labels: BTreeMap<String, String>,
}

/// A metric of the application, as a rule names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AppMetric {
    /// How it is read.
    pub reading: Reading,
    /// Of what.
    pub selector: Selector,
}

impl Reading {
    const NAMED: [(&'static str, Self); 7] = [
        ("rate", Self::Rate),
        ("increase", Self::Increase),
        ("mean", Self::Mean),
        ("average", Self::Average),
        ("p50", Self::Quantile(50)),
        ("p95", Self::Quantile(95)),
        ("p99", Self::Quantile(99)),
    ];
}

impl AppMetric {
    /// The series that it needs from an instance.
    pub fn series(&self) -> Vec<Selector> {
        let with = |suffix: &str| Selector {
            name: format!("{}{suffix}", self.selector.name),
            labels: self.selector.labels.clone(),
        };
        match self.reading {
            Reading::Rate | Reading::Increase | Reading::Mean => vec![self.selector.clone()],
            Reading::Average => vec![with("_sum"), with("_count")],
            Reading::Quantile(_) => vec![with("_bucket")],
        }
    }

    /// Whether it grows with the time that is looked at.
    pub const fn grows(&self) -> bool {
        match self.reading {
            Reading::Rate | Reading::Increase => true,
            Reading::Mean | Reading::Average | Reading::Quantile(_) => false,
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (position, (label, value)) in self.labels.iter().enumerate() {
            let lead = if position == 0 { "{" } else { "," };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            write!(f, "{lead}{label}=\"{}\"", value.replace('\n', "\\n"))?;
        }
        if self.labels.is_empty() {
            Ok(())
        } else {
            f.write_str("}")
        }
    }
}

impl fmt::Display for AppMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Reading::NAMED
            .iter()
            .find(|(_, reading)| *reading == self.reading);
        let word = known.map_or("mean", |(word, _)| *word);
        write!(f, "{PREFIX}{word}({})", self.selector)
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = match text.find('{') {
            None => (text, None),
            Some(at) => (&text[..at], Some(&text[at + 1..])),
        };
        check_name(name, true)?;
        let mut labels = BTreeMap::new();
        if let Some(mut rest) = rest {
            loop {
                rest = rest.trim_start();
                if let Some(end) = rest.strip_prefix('}') {
                    if !end.trim().is_empty() {
                        return Err(format!("\"{}\" follows the labels", end.escape_debug()));
                    }
                    break;
                }
                let (label, after) = rest
                    .split_once('=')
                    .ok_or("a label is not LABEL=\"VALUE\", or } is missing")?;
                check_name(label.trim(), false)?;
                let (value, after) = quoted(after.trim_start())?;
                if labels.insert(label.trim().to_owned(), value).is_some() {
                    return Err(format!("label {} is given twice", label.trim()));
                }
                if labels.len() > MAX_LABELS {
                    return Err("more than 8 labels".to_owned());
                }
                let after = after.trim_start();
                rest = match after.strip_prefix(',') {
                    Some(more) => more,
                    None if after.starts_with('}') => after,
                    None => return Err("a comma or } is missing after a label".to_owned()),
                };
            }
        }
        Ok(Self {
            name: name.to_owned(),
            labels,
        })
    }
}

/// A name of the text format: letters, digits, `_`, and `:` in names of series.
fn check_name(name: &str, colon: bool) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colon && c == ':');
    let starts = name.chars().next().is_some_and(|c| !c.is_ascii_digit());
    if starts && name.chars().all(fits) && name.len() <= MAX_PART {
        return Ok(());
    }
    Err(format!("\"{}\" is not a name", name.escape_debug()))
}

/// A text in double quotes, and what follows it.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let inner = text
        .strip_prefix('"')
        .ok_or("the value of a label is not in double quotes")?;
    let mut value = String::new();
    let mut characters = inner.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &inner[at + 1..])),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, other @ ('"' | '\\'))) => value.push(other),
                Some(_) | None => return Err("only \\\\, \\\" and \\n can be escaped".to_owned()),
            },
            other => value.push(other),
        }
        if value.len() > MAX_PART {
            return Err("the value of a label is longer than 200 bytes".to_owned());
        }
    }
    Err("the value of a label is not closed".to_owned())
}

impl FromStr for AppMetric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: String| format!("\"{}\": {why}", text.escape_debug());
        let inner = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| wrong("does not begin with app.".to_owned()))?;
        let call = inner
            .split_once('(')
            .filter(|(word, _)| !word.contains('{'));
        let Some((word, rest)) = call else {
            let selector: Selector = inner.parse().map_err(wrong)?;
            let is_counter = ["_total", "_count", "_sum", "_bucket"]
                .iter()
                .any(|suffix| selector.name.ends_with(suffix));
            let reading = if is_counter {
                Reading::Rate
            } else {
                Reading::Mean
            };
            return Ok(Self { reading, selector });
        };
        let known = Reading::NAMED.iter().find(|(name, _)| *name == word.trim());
        let (_, reading) = known.ok_or_else(|| {
            wrong(
                "want rate, increase, mean, average, p50, p95 or p99 before the bracket".to_owned(),
            )
        })?;
        let selector = rest
            .trim_end()
            .strip_suffix(')')
            .ok_or_else(|| wrong("a closing bracket is missing".to_owned()))?;
        Ok(Self {
            reading: *reading,
            selector: selector.trim().parse().map_err(wrong)?,
        })
    }
}

impl Serialize for AppMetric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AppMetric {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AppMetric, String> {
        text.parse()
    }

    #[test]
    fn names_are_read_and_written_in_one_way() {
        for (text, canonical) in [
            ("app.orders_failed_total", "app.rate(orders_failed_total)"),
            ("app.queue_length", "app.mean(queue_length)"),
            ("app.increase( a:b{} )", "app.increase(a:b)"),
            (
                "app.rate(x{b=\"2\", a=\"say \\\"}(\\\" \\\\\",})",
                "app.rate(x{a=\"say \\\"}(\\\" \\\\\",b=\"2\"})",
            ),
            ("app.x{a=\"f(1)\"}", "app.mean(x{a=\"f(1)\"})"),
            ("app.p99(latency_seconds)", "app.p99(latency_seconds)"),
        ] {
            let metric = read(text).unwrap();
            assert_eq!(metric.to_string(), canonical);
            assert_eq!(read(canonical).unwrap(), metric);
        }
    }

    #[test]
    fn each_reading_names_its_series() {
        let series = |text: &str| -> Vec<String> {
            let metric = read(text).unwrap();
            metric.series().iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            series("app.average(x{a=\"1\"})"),
            ["x_sum{a=\"1\"}", "x_count{a=\"1\"}"]
        );
        assert_eq!(series("app.p95(x)"), ["x_bucket"]);
        assert_eq!(series("app.x"), ["x"]);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, words) in [
            ("app.", "is not a name"),
            ("app.1x", "is not a name"),
            ("app.most(x)", "want rate"),
            ("app.rate(x", "closing bracket"),
            ("app.x{a=1}", "double quotes"),
            ("app.x{a=\"1\"", "comma or }"),
            ("app.x{a=\"1", "not closed"),
            ("app.x{a=\"\\t\"}", "can be escaped"),
            ("app.x{a=\"1\",a=\"2\"}", "twice"),
            ("app.x{a=\"1\"} > 3", "follows the labels"),
            ("http.x", "app."),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(words), "{error} lacks {words}");
        }
    }
}
