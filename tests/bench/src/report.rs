//! What a bench found: figures of ours and of the reference side by side, as a table and as JSON.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::stats::median;

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// As many requests per second.
    Higher,
    /// As milliseconds.
    Lower,
}

impl Better {
    const fn word(self) -> &'static str {
        match self {
            Self::Higher => "higher",
            Self::Lower => "lower",
        }
    }
}

/// What is wanted of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Nothing: the figure explains another one.
    None,
    /// Ours divided by the reference's is at least this.
    RatioAtLeast(f64),
    /// Ours divided by the reference's is at most this.
    RatioAtMost(f64),
    /// Ours is at most this, in the figure's unit.
    AtMost(f64),
    /// Both: ours at most the first, and the ratio at most the second.
    AtMostAndRatio(f64, f64),
}

impl Goal {
    fn text(self) -> String {
        match self {
            Self::None => String::new(),
            Self::RatioAtLeast(ratio) => format!("≥ {ratio} ×"),
            Self::RatioAtMost(ratio) => format!("≤ {ratio} ×"),
            Self::AtMost(most) => format!("≤ {most}"),
            Self::AtMostAndRatio(most, ratio) => format!("≤ {most}, ≤ {} ×", two_places(ratio)),
        }
    }

    fn met(self, ours: f64, ratio: Option<f64>) -> Option<bool> {
        match self {
            Self::None => None,
            Self::RatioAtLeast(least) => ratio.map(|ratio| ratio >= least),
            Self::RatioAtMost(most) => ratio.map(|ratio| ratio <= most),
            Self::AtMost(most) => Some(ours <= most),
            Self::AtMostAndRatio(most, limit) => ratio.map(|ratio| ours <= most && ratio <= limit),
        }
    }
}

/// The reference's side of a figure.
#[derive(Debug, Clone)]
pub struct Reference {
    /// Who it is.
    pub name: String,
    /// One value per repetition; one value alone if it was computed.
    pub samples: Vec<f64>,
    /// It was not measured, but follows from how the reference works.
    pub computed: bool,
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Figure {
    /// What is measured, with its circumstances.
    pub name: String,
    /// Of the values.
    pub unit: &'static str,
    /// Which way is better.
    pub better: Better,
    /// One value per repetition.
    pub ours: Vec<f64>,
    /// Who is compared; none: the figure stands alone.
    pub reference: Option<Reference>,
    /// What is wanted.
    pub goal: Goal,
}

impl Figure {
    /// Ours divided by the reference's, of the medians.
    pub fn ratio(&self) -> Option<f64> {
        let theirs = median(&self.reference.as_ref()?.samples)?;
        let ours = median(&self.ours)?;
        (theirs != 0.0).then_some(ours / theirs)
    }

    /// Whether the goal is met; none: there is none.
    pub fn met(&self) -> Option<bool> {
        self.goal.met(median(&self.ours)?, self.ratio())
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "unit": self.unit,
            "better": self.better.word(),
            "ours": { "median": median(&self.ours), "samples": self.ours },
            "reference": self.reference.as_ref().map(|reference| json!({
                "name": reference.name,
                "median": median(&reference.samples),
                "samples": reference.samples,
                "computed": reference.computed,
            })),
            "ratio": self.ratio(),
            "goal": self.goal.text(),
            "met": self.met(),
        })
    }

    fn cells(&self) -> [String; 6] {
        let value = |samples: &[f64]| median(samples).map_or_else(|| "-".to_owned(), short);
        let theirs = self.reference.as_ref().map_or_else(String::new, |found| {
            let mark = if found.computed { " (computed)" } else { "" };
            format!("{}{mark}", value(&found.samples))
        });
        let ratio = self
            .ratio()
            .map_or_else(String::new, |ratio| format!("{} ×", two_places(ratio)));
        let met = match self.met() {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        [
            format!("{} [{}]", self.name, self.unit),
            value(&self.ours),
            theirs,
            ratio,
            self.goal.text(),
            met.to_owned(),
        ]
    }
}

/// Everything that a bench found.
#[derive(Debug, Clone)]
pub struct Report {
    /// Name of the bench.
    pub bench: &'static str,
    /// Programs that took part, with their versions.
    pub versions: Vec<(String, String)>,
    /// How it was measured, one sentence each.
    pub method: Vec<String>,
    /// The lines.
    pub figures: Vec<Figure>,
    /// What was noticed on the way: failed calls, a side that was not at its limit.
    pub notes: Vec<String>,
}

impl Report {
    /// The table and what explains it.
    pub fn text(&self, machine: &Machine, short: bool) -> String {
        let reference = self
            .figures
            .iter()
            .find_map(|figure| figure.reference.as_ref().map(|found| found.name.clone()));
        let mut rows = vec![[
            self.bench.to_owned(),
            "Tidegate".to_owned(),
            reference.unwrap_or_default(),
            "ratio".to_owned(),
            "goal".to_owned(),
            String::new(),
        ]];
        rows.extend(self.figures.iter().map(Figure::cells));
        let mut text = format!("{}\n", machine.line());
        if short {
            text.push_str("a short run: it shows that the bench works, its figures mean nothing\n");
        }
        for (name, version) in &self.versions {
            text.push_str(&format!("{name}: {version}\n"));
        }
        for sentence in &self.method {
            text.push_str(&format!("{sentence}\n"));
        }
        text.push('\n');
        text.push_str(&table(&rows));
        for note in &self.notes {
            text.push_str(&format!("note: {note}\n"));
        }
        text
    }

    /// As a program reads it.
    pub fn json(&self, machine: &Machine, short: bool) -> Value {
        let versions: serde_json::Map<String, Value> = self
            .versions
            .iter()
            .map(|(name, version)| (name.clone(), json!(version)))
            .collect();
        json!({
            "bench": self.bench,
            "short": short,
            "machine": machine.json(),
            "versions": versions,
            "method": self.method,
            "figures": self.figures.iter().map(Figure::json).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }

    /// Writes the JSON into a folder; gives the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn store(&self, folder: &Path, machine: &Machine, short: bool) -> anyhow::Result<PathBuf> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let path = folder.join(format!("{}.json", self.bench));
        let text = serde_json::to_string_pretty(&self.json(machine, short))?;
        std::fs::write(&path, text + "\n").with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

fn two_places(value: f64) -> String {
    format!("{value:.2}")
}

/// Three digits that count.
fn short(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let plain = format!("{value:.digits$}");
    let (whole, rest) = plain.split_once('.').unwrap_or((&plain, ""));
    let mut grouped = String::new();
    for (position, digit) in whole.chars().enumerate() {
        let left = whole.len() - position;
        if position > 0 && left.is_multiple_of(3) && digit.is_ascii_digit() {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if rest.is_empty() {
        grouped
    } else {
        format!("{grouped}.{rest}")
    }
}

fn table(rows: &[[String; 6]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            // Words to the left, figures to the right.
            if column == 0 || column == 5 {
                line.push_str(&format!("{cell}{pad}  "));
            } else {
                line.push_str(&format!("{pad}{cell}  "));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(ours: f64, theirs: Option<f64>, goal: Goal) -> Figure {
        Figure {
            name: "writes".to_owned(),
            unit: "1/s",
            better: Better::Higher,
            ours: vec![ours],
            reference: theirs.map(|value| Reference {
                name: "other".to_owned(),
                samples: vec![value],
                computed: false,
            }),
            goal,
        }
    }

    #[test]
    fn goals_are_judged_by_the_ratio_of_the_medians() {
        let met = |ours, theirs, goal| figure(ours, theirs, goal).met();
        assert_eq!(met(12.0, Some(10.0), Goal::RatioAtLeast(1.2)), Some(true));
        assert_eq!(met(11.9, Some(10.0), Goal::RatioAtLeast(1.2)), Some(false));
        assert_eq!(met(5.0, Some(10.0), Goal::RatioAtMost(0.5)), Some(true));
        assert_eq!(
            met(5.0, Some(10.0), Goal::AtMostAndRatio(4.0, 0.5)),
            Some(false)
        );
        assert_eq!(met(5.0, None, Goal::RatioAtMost(0.5)), None);
        assert_eq!(met(5.0, None, Goal::AtMost(5.0)), Some(true));
        assert_eq!(met(5.0, Some(0.0), Goal::RatioAtMost(1.0)), None);
    }

    #[test]
    fn figures_are_short_and_grouped() {
        let shown = [0.123, 12.34, 123.4, 1_234.5, 1_234_567.0].map(short);
        assert_eq!(shown, ["0.12", "12.3", "123", "1,234", "1,234,567"]);
    }

    #[test]
    fn columns_stand_under_each_other() {
        let text = table(&[
            ["a", "1", "", "", "", ""].map(str::to_owned),
            ["long", "1,000", "2", "", "", "met"].map(str::to_owned),
        ]);
        assert_eq!(text, "a         1\nlong  1,000  2      met\n");
    }
}
