//! Every story of every folder gives its trace; a folder is a table of the design.

use tidegate_scenarios::{check, files};

fn tell(folder: &str, at_least: usize) {
    let update = std::env::var_os("UPDATE").is_some();
    let only = std::env::var("ONLY").unwrap_or_default();
    let files = files(folder).unwrap_or_else(|error| panic!("{error}"));
    assert!(files.len() >= at_least, "{folder} has lost stories");
    let failures: Vec<String> = files
        .iter()
        .filter(|path| path.to_string_lossy().contains(&only))
        .filter_map(|path| check(path, update).err())
        .collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n\n"));
}

#[test]
fn lifecycle() {
    tell("a-lifecycle", 8);
}

#[test]
fn versions() {
    tell("b-versions", 10);
}

#[test]
fn deadlines() {
    tell("c-deadlines", 13);
}

#[test]
fn rollback() {
    tell("d-rollback", 6);
}

#[test]
fn outcomes() {
    tell("e-outcomes", 9);
}

#[test]
fn checks() {
    tell("f-checks", 5);
}

#[test]
fn policies() {
    tell("h-policies", 11);
}

#[test]
fn groups() {
    tell("i-groups", 20);
}

#[test]
fn product() {
    tell("p-product", 1);
}
