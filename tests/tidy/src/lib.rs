//! What the tidy tests share: the tree's files, its manifests and a rough view of Rust sources.
//!
//! The tests under `tests/` hold the rules of ARCHITECTURE.md that a compiler does not. Each rule
//! says why it is there when it fails. Nothing outside this package uses this.

pub mod json_schema;

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that are not part of the sources.
const SKIPPED: &[&str] = &[".git", "target"];

/// The root of the tree.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// One file of the tree.
#[derive(Debug, Clone)]
pub struct File {
    /// Relative to the root, with slashes.
    pub path: String,
    /// Its text; empty if it is no text.
    pub text: String,
}

impl File {
    /// The part of a Rust source before its unit tests, comments and doc comments taken out, with
    /// line numbers from 1.
    pub fn code(&self) -> Vec<(usize, String)> {
        let lines = self.text.lines().enumerate();
        lines
            .take_while(|(_, line)| *line != "#[cfg(test)]")
            .map(|(number, line)| (number + 1, without_comment(line)))
            .filter(|(_, line)| !line.trim().is_empty())
            .collect()
    }

    /// Whether it is a unit test's own file.
    pub fn is_test(&self) -> bool {
        self.path.ends_with("tests.rs")
            || self.path.contains("tests/")
            || self.path.starts_with("tests/")
    }
}

/// A line without its `//` comment; slashes inside a text such as `"http://"` stay.
fn without_comment(line: &str) -> String {
    let mut quoted = false;
    let mut previous = ' ';
    for (position, character) in line.char_indices() {
        match character {
            '"' if previous != '\\' && previous != '\'' => quoted = !quoted,
            '/' if previous == '/' && !quoted => return line[..position - 1].to_owned(),
            _ => {}
        }
        previous = character;
    }
    line.to_owned()
}

/// Every file under a folder of the tree, in order of path. A folder that is not there is empty.
pub fn files(folder: &str) -> Vec<File> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(next) = folders.pop() {
        let Ok(entries) = fs::read_dir(&next) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if !SKIPPED.iter().any(|skipped| name == *skipped) {
                    folders.push(path);
                }
            } else if let Ok(relative) = path.strip_prefix(&root) {
                found.push(File {
                    path: relative.to_string_lossy().replace('\\', "/"),
                    text: fs::read_to_string(&path).unwrap_or_default(),
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The Rust sources under a folder.
pub fn sources(folder: &str) -> Vec<File> {
    let mut files = files(folder);
    files.retain(|file| file.path.ends_with(".rs"));
    files
}

/// A TOML file of the tree; empty if it is not there or no TOML.
pub fn toml_file(path: &str) -> toml::Table {
    fs::read_to_string(root().join(path))
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}

/// A package of the workspace.
#[derive(Debug, Clone)]
pub struct Package {
    /// Its folder.
    pub folder: String,
    /// Its name.
    pub name: String,
    /// Its manifest.
    pub manifest: toml::Table,
}

impl Package {
    /// Names in a table of dependencies.
    pub fn dependencies(&self, table: &str) -> Vec<String> {
        match self.manifest.get(table) {
            Some(toml::Value::Table(table)) => table.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }
}

/// Every package of the workspace.
pub fn packages() -> Vec<Package> {
    let workspace = toml_file("Cargo.toml");
    let members = workspace
        .get("workspace")
        .and_then(|workspace| workspace.get("members"))
        .and_then(toml::Value::as_array)
        .cloned()
        .unwrap_or_default();
    members
        .iter()
        .filter_map(toml::Value::as_str)
        .map(|folder| {
            let manifest = toml_file(&format!("{folder}/Cargo.toml"));
            let name = manifest
                .get("package")
                .and_then(|package| package.get("name"))
                .and_then(toml::Value::as_str)
                .unwrap_or_default();
            Package {
                folder: folder.to_owned(),
                name: name.to_owned(),
                manifest: manifest.clone(),
            }
        })
        .collect()
}

/// Names of every package in `Cargo.lock`.
pub fn locked() -> Vec<String> {
    let lock = toml_file("Cargo.lock");
    lock.get("package")
        .and_then(toml::Value::as_array)
        .map(|packages| {
            packages
                .iter()
                .filter_map(|package| package.get("name"))
                .filter_map(toml::Value::as_str)
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default()
}

/// Whether a word stands in a line, not as a part of a longer word.
pub fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(position, _)| {
        let before = line[..position].chars().next_back();
        let after = line[position + word.len()..].chars().next();
        let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let starts = word.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        let ends = word.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        !(starts && inside(before) || ends && inside(after))
    })
}

/// Fails with every finding at once, under the reason of the rule.
///
/// # Panics
/// If there is a finding.
pub fn report(reason: &str, findings: &[String]) {
    assert!(
        findings.is_empty(),
        "{reason}\n  {}\n",
        findings.join("\n  ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_whole() {
        assert!(names("use std::time::Instant;", "Instant"));
        assert!(!names("InstantLike", "Instant"));
        assert!(names("tokio::spawn", "tokio::"));
        assert!(!names("my_tokio::spawn", "tokio::"));
    }

    #[test]
    fn comments_are_taken_out() {
        assert_eq!(without_comment("a(); // b"), "a(); ");
        assert_eq!(without_comment("\"http://x\""), "\"http://x\"");
    }
}
