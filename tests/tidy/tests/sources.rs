//! Rules about the text of the sources: what a file may name, how long it may be, how it opens.

use tidegate_tidy::{File, names, report, sources};

const CORES: &[&str] = &["shared/src", "coordinator/core/src", "agent/core/src"];

/// Names that no core may use, each with the reason.
const FORBIDDEN_IN_CORES: &[(&str, &str)] = &[
    ("SystemTime", "time is an input"),
    ("Instant", "time is an input"),
    ("HashMap", "its order differs from run to run"),
    ("HashSet", "its order differs from run to run"),
    ("std::fs", "a core does no IO"),
    ("std::net", "a core does no IO"),
    ("std::env", "a core does no IO"),
    ("std::process", "a core does no IO"),
    ("std::thread", "a core is one synchronous function"),
    ("std::sync::mpsc", "a core is one synchronous function"),
    ("tokio", "a core is one synchronous function"),
    ("tonic", "a core knows no wire"),
    ("prost", "a core knows no wire"),
    ("rand", "randomness is an input"),
    ("async", "a core is one synchronous function"),
];

/// Paths, each with the reason why it may break a rule.
type Excuses = &'static [(&'static str, &'static str)];

/// Cores' files that may be longer than 500 lines, with the reason.
const LONG_CORE_FILES: Excuses = &[];

/// Shells' files that may be longer than 800 lines, with the reason.
const LONG_SHELL_FILES: Excuses = &[];

/// Functions of cores that may be longer than 70 lines, with the reason.
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[];

fn findings(
    files: &[File],
    words: &[(&str, &str)],
    exempt: impl Fn(&str, &str) -> bool,
) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files {
        for (number, line) in file.code() {
            for (word, reason) in words {
                if names(&line, word) && !exempt(&file.path, word) {
                    findings.push(format!("{}:{number}: {word}: {reason}", file.path));
                }
            }
        }
    }
    findings
}

#[test]
fn cores_are_pure() {
    let files: Vec<File> = CORES.iter().flat_map(|folder| sources(folder)).collect();
    assert!(files.len() > 30, "the cores could not be read");
    report(
        "Everything decided is a function of plain values, so that every replica, the simulator \
         and a replay come to the same result.",
        &findings(&files, FORBIDDEN_IN_CORES, |_, _| false),
    );
}

#[test]
fn replicated_state_has_no_floats() {
    let mut files = sources("coordinator/core/src/state");
    files.extend(sources("coordinator/core/src/apply"));
    files.retain(|file| !file.is_test());
    let words = [
        ("f32", "weights are basis points, thresholds decimal texts"),
        ("f64", "weights are basis points, thresholds decimal texts"),
    ];
    report(
        "Floats differ between machines and builds; replicas must not.",
        &findings(&files, &words, |_, _| false),
    );
}

#[test]
fn only_the_driver_names_the_raft_crate() {
    let mut files = sources("coordinator/src");
    // The driver and the parts that it alone uses.
    files.retain(|file| !file.path.starts_with("coordinator/src/raft/driver"));
    let mut found = Vec::new();
    for file in &files {
        for (number, line) in file.code() {
            let foreign = ["use raft::", "extern crate raft", "eraftpb", "protobuf::"];
            let ours = line.contains("crate::raft") || line.contains("super::raft");
            if !ours && foreign.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{number}: {}", file.path, line.trim()));
            }
        }
    }
    report(
        "The raft crate can be exchanged, and its parser kept away from the network, because one \
         file knows it.",
        &found,
    );
}

#[test]
fn only_the_storage_names_its_engine_and_serializer() {
    let mut files = sources("coordinator/src");
    files.retain(|file| !file.path.starts_with("coordinator/src/storage/"));
    let words = [
        ("raft_engine", "the log store is behind a trait"),
        ("redb", "the history store is behind a trait"),
        ("cbor::", "storage/codec.rs is the only serializer"),
        ("crc32fast", "checksums are the storage's"),
    ];
    report(
        "Bytes on disk are made in one place, so that old ones decode for ever.",
        &findings(&files, &words, |_, _| false),
    );
}

#[test]
fn only_clock_and_entropy_read_time_and_randomness() {
    let mut files = sources("coordinator/src");
    files.retain(|file| {
        !["coordinator/src/clock.rs", "coordinator/src/entropy.rs"].contains(&file.path.as_str())
            && !file.is_test()
    });
    let words = [
        ("SystemTime::now", "ask the clock"),
        ("Instant::now", "ask the clock"),
        ("Utc::now", "ask the clock"),
        ("SystemRandom", "ask entropy"),
        ("getrandom", "ask entropy"),
        ("thread_rng", "ask entropy"),
    ];
    // Ticks and time-outs of a request count a waiter's own time; no decision and no log entry
    // sees them.
    let waiters = [
        "coordinator/src/raft/driver.rs",
        "coordinator/src/raft/transport.rs",
        "coordinator/src/propose.rs",
    ];
    let exempt = |path: &str, word: &str| word == "Instant::now" && waiters.contains(&path);
    report(
        "The simulator replays a whole cluster because time and randomness enter through two files.",
        &findings(&files, &words, exempt),
    );
}

#[test]
fn wire_and_core_meet_in_the_named_files() {
    let may = [
        "coordinator/src/api/convert.rs",
        "coordinator/src/api/convert/",
        "coordinator/src/storage/codec.rs",
        "agent/src/session.rs",
        "agent/src/session/",
    ];
    let mut found = Vec::new();
    for folder in ["coordinator/src", "agent/src"] {
        for file in sources(folder) {
            if may.iter().any(|place| file.path.starts_with(place)) {
                continue;
            }
            for (number, line) in file.code() {
                let conversion = line.contains("From<") && line.trim_start().starts_with("impl");
                let wire = ["pb::", "wire::", "proto::", "v1::"]
                    .iter()
                    .any(|word| line.contains(word));
                if conversion && wire {
                    found.push(format!("{}:{number}: {}", file.path, line.trim()));
                }
            }
        }
    }
    report(
        "A message changes in one place: conversions stand in api/convert.rs, storage/codec.rs and \
         the agent's session.rs.",
        &found,
    );
}

#[test]
fn arrows_in_the_core_point_one_way() {
    let layers: &[(&str, &[&str])] = &[
        (
            "coordinator/core/src/state",
            &[
                "apply",
                "plan",
                "desired",
                "deployment",
                "strategy",
                "policy",
            ],
        ),
        (
            "coordinator/core/src/policy",
            &["apply", "plan", "desired", "deployment", "strategy"],
        ),
        (
            "coordinator/core/src/strategy",
            &["apply", "plan", "desired", "deployment", "policy"],
        ),
        (
            "coordinator/core/src/deployment",
            &["apply", "plan", "desired"],
        ),
        ("coordinator/core/src/apply", &["plan"]),
        ("coordinator/core/src/plan", &["apply"]),
    ];
    let mut found = Vec::new();
    for (folder, forbidden) in layers {
        let mut files = sources(folder);
        files.extend(
            sources("coordinator/core/src")
                .into_iter()
                .filter(|file| file.path == format!("{folder}.rs")),
        );
        // The invariants look at everything, the transition table included.
        files.retain(|file| !file.is_test() && file.path != "coordinator/core/src/state/check.rs");
        for file in &files {
            for (number, line) in file.code() {
                for module in *forbidden {
                    let path = format!("crate::{module}");
                    if names(&line, &path) {
                        found.push(format!("{}:{number}: {path}", file.path));
                    }
                }
            }
        }
    }
    report(
        "In the core, plan and apply use deployment, which uses strategy and policy, which use \
         state: never back.",
        &found,
    );
}

#[test]
fn cores_match_their_own_enums_in_full() {
    // `_ =>` is allowed where the value is not one of our enums: numbers, texts, tuples of them.
    let mut found = Vec::new();
    for folder in ["coordinator/core/src", "agent/core/src"] {
        for file in sources(folder).iter().filter(|file| !file.is_test()) {
            let code = file.code();
            for (position, (number, line)) in code.iter().enumerate() {
                if !line.trim_start().starts_with("_ =>") {
                    continue;
                }
                let arms = code[..position].iter().rev().take(6);
                let own = arms
                    .take_while(|(_, arm)| !arm.contains("match "))
                    .any(|(_, arm)| {
                        ["Status::", "Command::", "Action::", "Verb::", "Role::"]
                            .iter()
                            .any(|name| arm.trim_start().starts_with(name))
                    });
                if own {
                    found.push(format!("{}:{number}", file.path));
                }
            }
        }
    }
    report(
        "A new status, command or verb must make the compiler ask at every place that decides by it.",
        &found,
    );
}

#[test]
fn modules_open_with_a_paragraph() {
    let mut found = Vec::new();
    for folder in [
        "agent",
        "clients",
        "coordinator",
        "proto",
        "shared",
        "tests",
    ] {
        for file in sources(folder) {
            if !file.text.starts_with("//!") {
                found.push(file.path);
            }
        }
    }
    report(
        "What a module is, what it is not and who calls it stands first in its file.",
        &found,
    );
}

#[test]
fn files_stay_short() {
    let mut found = Vec::new();
    let limits: &[(&str, usize, Excuses)] = &[
        ("shared/src", 500, LONG_CORE_FILES),
        ("coordinator/core/src", 500, LONG_CORE_FILES),
        ("agent/core/src", 500, LONG_CORE_FILES),
        ("coordinator/src", 800, LONG_SHELL_FILES),
        ("agent/src", 800, LONG_SHELL_FILES),
        ("clients", 800, LONG_SHELL_FILES),
        ("tests", 800, LONG_SHELL_FILES),
    ];
    for (folder, limit, exceptions) in limits {
        for file in sources(folder) {
            let length = file.text.lines().count();
            let excused = exceptions.iter().any(|(path, _)| *path == file.path);
            let limit = if file.is_test() { &800 } else { limit };
            if length > *limit && !excused {
                found.push(format!("{}: {length} lines, limit {limit}", file.path));
            }
        }
    }
    for (path, _) in LONG_CORE_FILES.iter().chain(LONG_SHELL_FILES) {
        let length = std::fs::read_to_string(tidegate_tidy::root().join(path))
            .map_or(0, |text| text.lines().count());
        if length <= 500 {
            found.push(format!("{path}: excused without need"));
        }
    }
    report(
        "A file that does not fit a head is split; one that must be long is listed with its reason.",
        &found,
    );
}

#[test]
fn functions_of_cores_stay_short() {
    let mut found = Vec::new();
    for file in CORES.iter().flat_map(|folder| sources(folder)) {
        if file.is_test() {
            continue;
        }
        let lines: Vec<&str> = file
            .text
            .lines()
            .take_while(|line| *line != "#[cfg(test)]")
            .collect();
        for (start, line) in lines.iter().enumerate() {
            let Some(name) = function_name(line) else {
                continue;
            };
            let indent = line.len() - line.trim_start().len();
            let closing = format!("{}}}", " ".repeat(indent));
            let Some(length) = lines[start..].iter().position(|line| *line == closing) else {
                continue;
            };
            let excused = LONG_FUNCTIONS
                .iter()
                .any(|(path, function, _)| *path == file.path && *function == name);
            if length + 1 > 70 && !excused {
                found.push(format!(
                    "{}:{}: {name}: {} lines",
                    file.path,
                    start + 1,
                    length + 1
                ));
            }
        }
    }
    report(
        "A decision is read at one glance: functions of cores have at most 70 lines.",
        &found,
    );
}

fn function_name(line: &str) -> Option<&str> {
    let start = line.trim_start();
    if start.starts_with("//") || start.ends_with(';') {
        return None;
    }
    let after = start.split_once("fn ")?;
    let words = [
        "",
        "pub ",
        "pub(crate) ",
        "pub(super) ",
        "const ",
        "pub const ",
    ];
    if !words.contains(&after.0) {
        return None;
    }
    after.1.split(['(', '<']).next()
}
