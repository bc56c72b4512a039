//! Rules about the documents: every code has its page, decisions are numbered, links lead
//! somewhere, and nothing of the machine that wrote them is in them.

use std::collections::BTreeSet;

use tidegate_shared::error::Reason;
use tidegate_tidy::{File, files, report, root};

/// Hosts that a document may name in an address: examples, this machine, and the identifier of the
/// dialect of JSON Schema, which nobody fetches.
const HOSTS: &[&str] = &["localhost", "example.com", "json-schema.org"];

fn documents() -> Vec<File> {
    let mut found: Vec<File> = files("docs");
    found.extend(files("packaging"));
    for path in ["README.md", "ARCHITECTURE.md"] {
        if let Ok(text) = std::fs::read_to_string(root().join(path)) {
            found.push(File {
                path: path.to_owned(),
                text,
            });
        }
    }
    found
}

#[test]
fn every_error_code_has_its_page() {
    let pages: BTreeSet<String> = files("docs/errors")
        .into_iter()
        .filter_map(|file| {
            let name = file
                .path
                .rsplit('/')
                .next()?
                .strip_suffix(".md")?
                .to_owned();
            (name != "README").then_some(name)
        })
        .collect();
    let codes: BTreeSet<String> = Reason::ALL
        .iter()
        .map(|reason| reason.code().to_owned())
        .collect();
    let mut findings: Vec<String> = codes
        .difference(&pages)
        .map(|code| format!("docs/errors/{code}.md is missing"))
        .collect();
    findings.extend(
        pages
            .difference(&codes)
            .map(|page| format!("docs/errors/{page}.md has no code in shared/src/error.rs")),
    );
    report(
        "Who meets a code looks it up; a code is never used for something else.",
        &findings,
    );
}

#[test]
fn error_pages_answer_the_three_questions() {
    let mut findings = Vec::new();
    let mut bodies = BTreeSet::new();
    for reason in Reason::ALL {
        let path = format!("docs/errors/{}.md", reason.code());
        let text = std::fs::read_to_string(root().join(&path)).unwrap_or_default();
        let title = format!("# {} {}", reason.code(), reason.as_str());
        if text.lines().next() != Some(title.as_str()) {
            findings.push(format!("{path}: the first line should be `{title}`"));
        }
        for heading in ["**What happened.**", "**Why.**", "**What to do.**"] {
            if !text.contains(heading) {
                findings.push(format!("{path}: {heading} is missing"));
            }
        }
        let body: String = text.lines().skip(1).collect();
        if !bodies.insert(body) {
            findings.push(format!("{path}: says the same as another page"));
        }
    }
    report(
        "A page of an error says what happened, why, and what to do.",
        &findings,
    );
}

#[test]
fn decisions_are_numbered_without_gaps() {
    let mut numbers: Vec<String> = files("docs/decisions")
        .into_iter()
        .filter_map(|file| file.path.rsplit('/').next().map(str::to_owned))
        .filter(|name| name != "README.md")
        .collect();
    numbers.sort();
    assert!(!numbers.is_empty(), "docs/decisions is empty");
    let findings: Vec<String> = numbers
        .iter()
        .enumerate()
        .filter(|(position, name)| !name.starts_with(&format!("{:04}-", position + 1)))
        .map(|(position, name)| format!("{name} should be number {:04}", position + 1))
        .collect();
    report("A decision is cited by its number.", &findings);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut findings = Vec::new();
    for file in documents() {
        if !file.path.ends_with(".md") {
            continue;
        }
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (position, _) in file.text.match_indices("](") {
            let Some(target) = file.text[position + 2..].split(')').next() else {
                continue;
            };
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            if !root().join(folder).join(target).exists() {
                findings.push(format!("{}: {target}", file.path));
            }
        }
    }
    report(
        "A link that leads nowhere costs its reader's trust.",
        &findings,
    );
}

#[test]
fn paths_named_in_documents_exist() {
    let tops = [
        "agent/",
        "clients/",
        "coordinator/",
        "docs/",
        "packaging/",
        "proto/",
        "shared/",
        "tests/",
    ];
    let mut findings = Vec::new();
    for file in documents() {
        if !file.path.ends_with(".md") {
            continue;
        }
        for path in file.text.split('`').skip(1).step_by(2) {
            let is_path = tops.iter().any(|top| path.starts_with(top))
                && !path.contains([' ', '*', '<', '{', '…', ':']);
            if is_path && !root().join(path).exists() {
                findings.push(format!("{}: {path}", file.path));
            }
        }
    }
    report(
        "ARCHITECTURE.md and the guides are true to the code: a path that they name is there.",
        &findings,
    );
}

#[test]
fn documents_are_free_of_machines_and_foreign_hosts() {
    let here = root().to_string_lossy().into_owned();
    let home = std::env::var("HOME").unwrap_or_default();
    let mut findings = Vec::new();
    for file in documents() {
        for (number, line) in file.text.lines().enumerate() {
            let place = format!("{}:{}", file.path, number + 1);
            for path in [here.as_str(), home.as_str(), "/root/", "/home/"] {
                // A short root such as `/src` would be found inside other words.
                if path.len() > 5 && line.contains(path) {
                    findings.push(format!("{place}: a path of a machine"));
                }
            }
            for (position, _) in line.match_indices("://") {
                let host = line[position + 3..]
                    .split(['/', ':', ' ', '`', '"', ')', '<', '$', '\''])
                    .next()
                    .unwrap_or_default();
                let scheme = line[..position]
                    .rsplit(|c: char| !c.is_alphanumeric())
                    .next()
                    .unwrap_or_default();
                let is_ours = host.starts_with("127.") || HOSTS.contains(&host);
                if scheme.starts_with("http") && !host.is_empty() && !is_ours {
                    findings.push(format!("{place}: address of {host}"));
                }
            }
        }
    }
    report(
        "Documents hold for every reader: no path of the machine they were written on, no address \
         that may be gone tomorrow.",
        &findings,
    );
}
