//! What goes to standard output: tables for people, JSON and YAML for programs.
//!
//! JSON is the canonical mapping of the protocol's messages, so that any client generated from
//! the `.proto` files reads it. YAML is the same with embedded specs unfolded, for reading.
//! Colours appear only on a terminal and without `NO_COLOR`.

use std::io::{IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde::Serialize;
use tidegate_shared::error::Reason;

use crate::errors::{Failure, Result};

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// The protocol's messages as JSON.
    Json,
    /// The same as YAML, embedded specs unfolded.
    Yaml,
}

/// When colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What a colour stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// It went well.
    Good,
    /// It is under way, or wants attention.
    Busy,
    /// It went wrong.
    Bad,
    /// Less important.
    Faint,
    /// More important.
    Strong,
    /// The active version.
    Blue,
    /// The candidate.
    Green,
    /// Nothing.
    Plain,
}

/// Standard output with the person's wishes about it.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// Form of results.
    pub format: Format,
    color: bool,
    terminal: bool,
}

impl Output {
    /// Looks at the terminal and the environment.
    pub fn new(format: Format, choice: ColorChoice) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self {
            format,
            color: wants_color(choice, terminal),
            terminal,
        }
    }

    /// Whether the result is for people.
    pub fn is_for_people(self) -> bool {
        matches!(self.format, Format::Table | Format::Wide)
    }

    /// Whether a picture can be redrawn in place.
    pub fn is_terminal(self) -> bool {
        self.terminal
    }

    /// Columns of the terminal; 100 where there is none.
    pub fn width(self) -> usize {
        if !self.terminal {
            return 100;
        }
        rustix::termios::tcgetwinsize(std::io::stdout())
            .ok()
            .map(|size| usize::from(size.ws_col))
            .filter(|width| *width >= 20)
            .unwrap_or(100)
    }

    /// Lines of the terminal; without limit where there is none.
    pub fn height(self) -> usize {
        if !self.terminal {
            return usize::MAX;
        }
        rustix::termios::tcgetwinsize(std::io::stdout())
            .ok()
            .map(|size| usize::from(size.ws_row))
            .filter(|height| *height >= 5)
            .unwrap_or(usize::MAX)
    }

    /// A line of a page: what is told, and what it is.
    pub fn field(self, name: &str, value: &str) -> String {
        let name = self.paint(Tone::Faint, &format!("{name:<12}"));
        format!("{name} {value}\n")
    }

    /// The text in a colour, if colours are used.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Busy => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
            Tone::Strong => "1",
            Tone::Blue => "34",
            Tone::Green => "32",
            Tone::Plain => return text.to_owned(),
        };
        if self.color && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    /// Writes text as it is.
    ///
    /// # Errors
    /// The reader went away, or the disk is full.
    pub fn text(self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| Failure::output(&error))
    }

    /// Writes one line.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub fn line(self, line: &str) -> Result<()> {
        self.text(&format!("{line}\n"))
    }

    /// A line about progress: standard output for people, standard error beside JSON and YAML.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub fn note(self, line: &str) -> Result<()> {
        if self.is_for_people() {
            return self.line(line);
        }
        // Losing a remark about progress is no reason to fail.
        writeln!(std::io::stderr(), "{line}").ok();
        Ok(())
    }

    /// Writes a message in the wanted form; `table` makes the form for people and is told whether
    /// it may be wide.
    ///
    /// # Errors
    /// As [`Output::text`].
    pub fn emit<T: Serialize>(self, message: &T, table: impl FnOnce(bool) -> String) -> Result<()> {
        let text = match self.format {
            Format::Table => table(false),
            Format::Wide => table(true),
            Format::Json => to_json(message)?,
            Format::Yaml => to_yaml(message)?,
        };
        self.text(&text)
    }
}

fn wants_color(choice: ColorChoice, terminal: bool) -> bool {
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => {
            let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
            let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
            terminal && !set("NO_COLOR") && !dumb
        }
    }
}

/// Whether messages about errors may be coloured.
pub fn color_on_stderr(choice: ColorChoice) -> bool {
    wants_color(choice, std::io::stderr().is_terminal())
}

/// Indented JSON with a line end.
///
/// # Errors
/// A bug of ours.
pub fn to_json<T: Serialize>(message: &T) -> Result<String> {
    serde_json::to_string_pretty(message)
        .map(|text| text + "\n")
        .map_err(|error| Failure::new(Reason::Internal, format!("the answer is no JSON: {error}")))
}

/// YAML with embedded JSON unfolded.
///
/// # Errors
/// A bug of ours.
pub fn to_yaml<T: Serialize>(message: &T) -> Result<String> {
    let internal = |error: &dyn std::fmt::Display| {
        Failure::new(Reason::Internal, format!("the answer is no YAML: {error}"))
    };
    let mut value = serde_json::to_value(message).map_err(|error| internal(&error))?;
    unfold(&mut value);
    let text = serde_saphyr::to_string(&value).map_err(|error| internal(&error))?;
    Ok(if text.ends_with('\n') {
        text
    } else {
        text + "\n"
    })
}

/// Texts that hold a JSON object, in the fields that carry one, become that object.
fn unfold(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let carries = matches!(name.as_str(), "spec" | "strategy" | "details");
                let inner = match field {
                    Value::String(text) if carries && text.starts_with('{') => {
                        serde_json::from_str(text).ok()
                    }
                    _ => None,
                };
                match inner {
                    Some(inner) => *field = inner,
                    None => unfold(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(unfold),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Columns with headings, as wide as their widest cell.
#[derive(Debug, Default)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<(Tone, String)>>,
}

impl Table {
    /// A table without rows.
    pub fn new(headings: &[&'static str]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row of plain cells.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let plain = cells.into_iter().map(|cell| (Tone::Plain, cell.into()));
        self.rows.push(plain.collect());
    }

    /// Adds a row of coloured cells.
    pub fn toned<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = (Tone, S)>) {
        let cells = cells.into_iter().map(|(tone, cell)| (tone, cell.into()));
        self.rows.push(cells.collect());
    }

    /// The text; `empty` if there is no row.
    pub fn render(&self, output: Output, empty: &str) -> String {
        if self.rows.is_empty() {
            return format!("{empty}\n");
        }
        let mut widths: Vec<usize> = self.headings.iter().map(|h| h.chars().count()).collect();
        for row in &self.rows {
            for (width, (_, cell)) in widths.iter_mut().zip(row) {
                *width = (*width).max(printable(cell).chars().count());
            }
        }
        // On a terminal the last column, which is the longest as a rule, gets what is left of the
        // line; programs and `-o wide` get all of it.
        let last = if output.is_terminal() && output.format == Format::Table {
            let before: usize = widths.iter().rev().skip(1).map(|width| width + 2).sum();
            output.width().saturating_sub(before).max(16)
        } else {
            usize::MAX
        };
        let mut text = String::new();
        let headings: Vec<_> = self
            .headings
            .iter()
            .map(|heading| (Tone::Strong, (*heading).to_owned()))
            .collect();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for (position, (width, (tone, cell))) in widths.iter().zip(row).enumerate() {
                let cell = printable(cell);
                if position + 1 == widths.len() {
                    line.push_str(&output.paint(*tone, &shortened(&cell, last)));
                } else {
                    let padding = width - cell.chars().count();
                    line.push_str(&output.paint(*tone, &cell));
                    line.push_str(&" ".repeat(padding + 2));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// At most so many characters; an ellipsis shows that there is more.
pub fn shortened(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let start: String = text.chars().take(limit.saturating_sub(1)).collect();
    format!("{}…", start.trim_end())
}

/// What comes from outside without control characters: it must not steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect()
}

/// Labels as `a=b,c=d`; `-` for none.
pub fn pairs<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let mut pairs: Vec<_> = labels
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.sort();
    dash(&pairs.join(",")).to_owned()
}

/// `-` for an empty text.
pub fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// `1.2 MiB`.
pub fn bytes(size: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = size as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{size} B")
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// Basis points as per cent: `12.5 %`; `?` for an unknown weight.
pub fn weight(basis_points: i64) -> String {
    match u64::try_from(basis_points) {
        Ok(value) => tidegate_shared::weight::Weight::from_basis_points(value)
            .map_or_else(|_| "?".to_owned(), |weight| weight.to_string()),
        Err(_) => "?".to_owned(),
    }
}

#[cfg(test)]
impl Output {
    /// Neither a terminal nor colours.
    pub fn plain(format: Format) -> Self {
        Self {
            format,
            color: false,
            terminal: false,
        }
    }

    /// Colours, as on a terminal.
    pub fn colored() -> Self {
        Self {
            format: Format::Table,
            color: true,
            terminal: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_do_not_trail() {
        let mut table = Table::new(&["NAME", "STATUS", "AGE"]);
        table.toned([
            (Tone::Plain, "web"),
            (Tone::Good, "ready"),
            (Tone::Faint, "3m"),
        ]);
        table.row(["a-long-name", "x\u{1b}[2J", ""]);
        assert_eq!(
            table.render(Output::plain(Format::Table), "none"),
            "NAME         STATUS  AGE\nweb          ready   3m\na-long-name  x [2J\n"
        );
        let colored = table.render(Output::colored(), "none");
        assert!(colored.contains("\u{1b}[32mready\u{1b}[0m"));
        assert!(!colored.contains("\u{1b}[2J"));
        assert_eq!(
            Table::new(&["A"]).render(Output::plain(Format::Table), "none yet"),
            "none yet\n"
        );
    }

    #[test]
    fn yaml_unfolds_specs_and_json_does_not() {
        let object = tidegate_proto::control::v1::Object {
            kind: "environment".to_owned(),
            metadata: None,
            spec: r#"{"tier":3}"#.to_owned(),
            status: String::new(),
        };
        assert_eq!(
            to_yaml(&object).unwrap(),
            "kind: environment\nspec:\n  tier: 3\nstatus: \"\"\n"
        );
        assert!(
            to_json(&object)
                .unwrap()
                .contains(r#""spec": "{\"tier\":3}""#)
        );
    }

    #[test]
    fn long_texts_end_with_an_ellipsis() {
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("ab cd", 4), "ab…");
        assert_eq!(shortened("abcde", 4), "abc…");
    }

    #[test]
    fn sizes_and_weights_read_well() {
        assert_eq!(bytes(12), "12 B");
        assert_eq!(bytes(1_572_864), "1.5 MiB");
        assert_eq!(weight(1_250), "12.5 %");
        assert_eq!(weight(-1), "?");
    }
}
