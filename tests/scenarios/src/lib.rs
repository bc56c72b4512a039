//! Stories of deployments as text files, run over both cores under virtual time.
//!
//! A file under a folder of this package is a script, a separator and the trace that the script
//! must give, line by line. The world is the coordinators' `apply`, `plan` and `desired` and the
//! agents' own decisions over fake hosts; nothing else stands between them, and no clock is read:
//! time jumps to the next instant at which something is due. After every entry of the log the
//! state's own checks and the rules of `invariants` must hold.
//!
//! `UPDATE=1 cargo test -p tidegate-scenarios` rewrites the traces; the change is reviewed as a
//! diff against what the design asks for.

pub mod checks;
pub mod conduct;
pub mod governance;
pub mod groups;
pub mod invariants;
pub mod manage;
pub mod script;
mod told;
pub mod trace;
pub mod world;

use std::fs;
use std::path::{Path, PathBuf};

/// What stands between script and trace.
pub const SEPARATOR: &str = "----";

/// The files of a folder of this package, in order of name.
///
/// # Errors
/// The folder cannot be read.
pub fn files(folder: &str) -> Result<Vec<PathBuf>, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = fs::read_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    Ok(files)
}

/// Runs a script and gives its trace.
///
/// # Errors
/// A line that cannot be understood, a wait that does not end, or a rule that was broken; with the
/// trace up to there.
pub fn run(script: &str) -> Result<String, String> {
    let lines = script::read(script)?;
    let mut world = world::World::new();
    for line in &lines {
        if let Err(error) = world.execute(line) {
            return Err(format!(
                "line {}: {}\n{error}\n\nthe trace up to there:\n{}",
                line.number,
                line.text,
                world.into_trace()
            ));
        }
    }
    Ok(world.into_trace())
}

/// Runs a file and compares its trace, or rewrites it if told so.
///
/// # Errors
/// What `run` says, or the first line that differs.
pub fn check(path: &Path, update: bool) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let separator = format!("\n{SEPARATOR}\n");
    let (script, expected) = text.split_once(&separator).unwrap_or((&text, ""));
    let script = script.trim_end();
    let trace = run(script).map_err(|error| format!("{}: {error}", path.display()))?;
    if update {
        let rewritten = format!("{script}\n{SEPARATOR}\n{trace}");
        return fs::write(path, rewritten).map_err(|e| format!("{}: {e}", path.display()));
    }
    if trace == expected {
        return Ok(());
    }
    Err(format!(
        "{}: {}",
        path.display(),
        difference(expected, &trace)
    ))
}

/// The first line that differs, with what comes before it.
fn difference(expected: &str, found: &str) -> String {
    let (mut wanted, mut got) = (expected.lines(), found.lines());
    let mut before = Vec::new();
    loop {
        match (wanted.next(), got.next()) {
            (Some(a), Some(b)) if a == b => before.push(a),
            (None, None) => return "only the ends of lines differ".to_owned(),
            (a, b) => {
                let from = before.len().saturating_sub(4);
                return format!(
                    "the trace differs at its line {} (UPDATE=1 rewrites it):\n    {}\n  - {}\n  + {}",
                    before.len() + 1,
                    before[from..].join("\n    "),
                    a.unwrap_or("(end)"),
                    b.unwrap_or("(end)")
                );
            }
        }
    }
}
