//! The units as systemd itself reads them: they are right, and they give away no more than they
//! must. Needs systemd-analyze.

#![allow(
    clippy::expect_used,
    reason = "a test says what it could not do by failing there"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Most exposure that each unit may have, of 10.
const EXPOSURE: [(&str, f64); 3] = [
    ("tidegate-coordinator.service", 2.5),
    ("tidegate-proxy.service", 2.5),
    ("tidegate-agent.service", 3.5),
];

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("systemd")
        .join(name)
}

fn analyze(arguments: &[&str], file: &Path) -> Output {
    Command::new("systemd-analyze")
        .args(arguments)
        .arg(file)
        .env("LC_ALL", "C")
        .output()
        .expect(
            "systemd-analyze is missing; install it: apt-get install -y --no-install-recommends systemd",
        )
}

#[test]
fn units_expose_little() {
    for (name, limit) in EXPOSURE {
        let output = analyze(&["security", "--offline=true", "--no-pager"], &unit(name));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text
            .lines()
            .find(|line| line.contains("Overall exposure level"))
            .unwrap_or_else(|| {
                let said = String::from_utf8_lossy(&output.stderr);
                panic!("{name}: systemd-analyze tells no level: {said}")
            });
        let level = line
            .split_ascii_whitespace()
            .find_map(|word| word.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("{name}: no number in {line}"));
        assert!(
            level <= limit,
            "{name}: exposure {level} above {limit}\n{text}"
        );
    }
}

#[test]
fn systemd_reads_the_units_without_a_complaint() {
    // The programs need not be on this machine: something that is stands in for them.
    let folder = tempfile::tempdir().expect("a folder");
    for (name, _) in EXPOSURE {
        let text = std::fs::read_to_string(unit(name)).expect("the unit");
        let text: String = text
            .lines()
            .map(|line| match line.split_once("=/usr/bin/tidegate-") {
                Some((key, _)) => format!("{key}=/bin/true\n"),
                None => format!("{line}\n"),
            })
            .collect();
        let file = folder.path().join(name);
        std::fs::write(&file, text).expect("written");
        let output = analyze(&["verify", "--man=no", "--recursive-errors=no"], &file);
        let said = String::from_utf8_lossy(&output.stderr);
        let about: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
        assert!(
            output.status.success() && about.is_empty(),
            "{name}: {said}"
        );
    }
}
