//! What an application's own metrics come to: sums over instances, of which a window is the
//! difference of two, and the readings of `app.…` (see `spec::AppMetric`).

use std::collections::BTreeMap;

use crate::assignment::AppSample;
use crate::spec::{AppMetric, Reading, Selector};
use crate::time::Span;

/// A series, or a bucket of one by its edge.
type Key = (String, Option<String>);

/// The last values of one instance.
pub type AppLast = BTreeMap<Key, f64>;

/// Sums of a version since whenever they began.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AppSums(BTreeMap<Key, Sum>);

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Sum {
    /// How much the values grew.
    grown: f64,
    /// All values added up.
    total: f64,
    /// How many there were.
    samples: u64,
}

impl AppSums {
    /// Takes a value, and keeps it as the last. A first one has not grown; a lower one counts as a
    /// whole, since its counter began anew.
    pub fn sample(&mut self, last: &mut AppLast, sample: &AppSample) {
        let key = (sample.series.clone(), sample.edge.clone());
        let grown = match last.insert(key.clone(), sample.value) {
            None => 0.0,
            Some(before) if sample.value < before => sample.value.max(0.0),
            Some(before) => sample.value - before,
        };
        let sum = self.0.entry(key).or_default();
        sum.grown += grown;
        sum.total += sample.value;
        sum.samples = sum.samples.saturating_add(1);
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        for (key, more) in &other.0 {
            let sum = self.0.entry(key.clone()).or_default();
            sum.grown += more.grown;
            sum.total += more.total;
            sum.samples = sum.samples.saturating_add(more.samples);
        }
    }

    /// What came since `earlier`, an older value of the same sums.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |(key, sum): (&Key, &Sum)| {
            let before = earlier.0.get(key).copied().unwrap_or_default();
            let left = Sum {
                grown: (sum.grown - before.grown).max(0.0),
                total: sum.total - before.total,
                samples: sum.samples.saturating_sub(before.samples),
            };
            (left.samples > 0).then(|| (key.clone(), left))
        };
        Self(self.0.iter().filter_map(less).collect())
    }

    /// The value over a window of that length, and the samples (or observations of a histogram)
    /// that it rests on. None: nothing was told.
    pub fn read(&self, metric: &AppMetric, window: Span) -> (Option<f64>, u64) {
        let series = metric.series();
        let sum = |selector: Option<&Selector>| {
            let key = (selector?.to_string(), None);
            self.0.get(&key).copied()
        };
        let (value, samples) = match metric.reading {
            Reading::Rate | Reading::Increase | Reading::Mean => match sum(series.first()) {
                None => (None, 0),
                Some(found) => (one(metric.reading, found, window), found.samples),
            },
            Reading::Average => match (sum(series.first()), sum(series.get(1))) {
                (Some(total), Some(count)) if count.grown > 0.0 => {
                    (Some(total.grown / count.grown), whole(count.grown))
                }
                (_, _) => (None, 0),
            },
            Reading::Quantile(per_cent) => self.quantile(series.first(), per_cent),
        };
        (value.filter(|value| value.is_finite()), samples)
    }

    /// By straight lines within a bucket, as Prometheus does it; above the last finite edge it is
    /// that edge.
    fn quantile(&self, series: Option<&Selector>, per_cent: u8) -> (Option<f64>, u64) {
        let Some(name) = series.map(ToString::to_string) else {
            return (None, 0);
        };
        let buckets = self.0.iter().filter(|((series, _), _)| *series == name);
        let mut edges: Vec<(f64, f64)> = buckets
            .filter_map(|((_, edge), sum)| {
                let edge = match edge.as_deref()? {
                    "+Inf" | "Inf" => f64::INFINITY,
                    edge => edge.parse().ok().filter(|edge: &f64| edge.is_finite())?,
                };
                Some((edge, sum.grown))
            })
            .collect();
        edges.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, all)) = edges.last().copied().filter(|(_, all)| *all > 0.0) else {
            return (None, 0);
        };
        let rank = all * f64::from(per_cent) / 100.0;
        let (mut low, mut below) = (0.0_f64, 0.0);
        for (edge, count) in edges {
            if count >= rank {
                let within = if edge.is_infinite() {
                    low
                } else if count > below {
                    let low = if edge <= 0.0 { edge } else { low };
                    low + (edge - low) * (rank - below) / (count - below)
                } else {
                    edge
                };
                return (Some(within), whole(all));
            }
            (low, below) = (edge, count);
        }
        (None, 0)
    }
}

fn one(reading: Reading, sum: Sum, window: Span) -> Option<f64> {
    match reading {
        Reading::Rate => Some(sum.grown * 1_000.0 / window.millis().max(1) as f64),
        Reading::Increase => Some(sum.grown),
        Reading::Mean => Some(sum.total / sum.samples.max(1) as f64),
        Reading::Average | Reading::Quantile(_) => None,
    }
}

/// A count that was told as a float; the cast keeps to the bounds by itself.
fn whole(count: f64) -> u64 {
    count as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(series: &str, edge: Option<&str>, value: f64) -> AppSample {
        AppSample {
            series: series.to_owned(),
            edge: edge.map(str::to_owned),
            value,
        }
    }

    fn metric(text: &str) -> AppMetric {
        text.parse().unwrap()
    }

    /// Sums of values told one after another by one instance.
    fn told(samples: &[AppSample]) -> AppSums {
        let (mut sums, mut last) = (AppSums::default(), AppLast::default());
        for sample in samples {
            sums.sample(&mut last, sample);
        }
        sums
    }

    const WINDOW: Span = Span::from_secs(10);

    #[test]
    fn counters_grow_from_their_first_value_and_through_restarts() {
        let values = [100.0, 130.0, 5.0, 15.0];
        let sums = told(&values.map(|value| sample("x_total", None, value)));
        // 30, then 5 of the new process, then 10.
        let read = |text: &str| sums.read(&metric(text), WINDOW);
        assert_eq!(read("app.increase(x_total)"), (Some(45.0), 4));
        assert_eq!(read("app.x_total"), (Some(4.5), 4));
        assert_eq!(read("app.y_total"), (None, 0));
    }

    #[test]
    fn gauges_are_the_mean_of_what_was_told_in_the_window() {
        let early = told(&[sample("x", None, 10.0)]);
        let mut late = early.clone();
        late.add(&told(&[sample("x", None, 4.0), sample("x", None, -2.0)]));
        assert_eq!(late.read(&metric("app.x"), WINDOW), (Some(4.0), 3));
        let window = late.since(&early);
        assert_eq!(window.read(&metric("app.x"), WINDOW), (Some(1.0), 2));
        // Nothing told in the window is no data, however much there was before.
        assert_eq!(late.since(&late).read(&metric("app.x"), WINDOW), (None, 0));
    }

    #[test]
    fn histograms_have_a_mean_and_quantiles() {
        let edges = [("0.1", 50.0), ("0.5", 90.0), ("+Inf", 100.0)];
        let mut samples = Vec::new();
        for round in [0.0, 1.0] {
            for (edge, count) in edges {
                samples.push(sample("t_bucket", Some(edge), 7.0 + count * round));
            }
            samples.push(sample("t_sum", None, 20.0 * round));
            samples.push(sample("t_count", None, 100.0 * round));
        }
        let sums = told(&samples);
        let read = |text: &str| sums.read(&metric(text), WINDOW);
        assert_eq!(read("app.average(t)"), (Some(0.2), 100));
        assert_eq!(read("app.p50(t)"), (Some(0.1), 100));
        let (p95, _) = read("app.p95(t)");
        assert_eq!(p95, Some(0.5), "above the last finite edge it is that edge");
        // Nothing observed is no data.
        assert_eq!(
            told(&samples[..5]).read(&metric("app.p50(t)"), WINDOW),
            (None, 0)
        );
        assert_eq!(
            told(&samples[..5]).read(&metric("app.average(t)"), WINDOW),
            (None, 0)
        );
    }
}
