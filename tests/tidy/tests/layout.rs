//! Rules of layout (ARCHITECTURE.md, "Folders"): where things stand and what they are called.

use tidegate_tidy::{files, packages, report, root, sources, toml_file};

/// What may stand at the root of the tree.
const ROOT: &[&str] = &[
    ".ci",
    ".git",
    ".gitignore",
    "ARCHITECTURE.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "agent",
    "clients",
    "clippy.toml",
    "coordinator",
    "deny.toml",
    "docs",
    "packaging",
    "proto",
    "rust-toolchain.toml",
    "shared",
    "target",
    "tests",
];

#[test]
fn the_root_holds_only_the_named_folders() {
    let mut findings = Vec::new();
    for entry in std::fs::read_dir(root()).expect("the root can be read") {
        let name = entry.expect("an entry").file_name();
        let name = name.to_string_lossy().into_owned();
        if !ROOT.contains(&name.as_str()) {
            findings.push(name);
        }
    }
    report(
        "A newcomer finds everything by its folder's name: new folders are named in \
         ARCHITECTURE.md and here.",
        &findings,
    );
}

#[test]
fn packages_are_named_after_their_folders() {
    let packages = packages();
    assert!(packages.len() >= 11, "the workspace could not be read");
    let mut findings = Vec::new();
    for package in &packages {
        let rest = package
            .folder
            .trim_start_matches("clients/")
            .trim_start_matches("tests/")
            .replace('/', "-");
        if package.name != format!("tidegate-{rest}") {
            findings.push(format!("{} is called {}", package.folder, package.name));
        }
    }
    report("Who knows the folder knows the package.", &findings);
}

#[test]
fn every_package_takes_the_workspace_s_settings() {
    let mut findings = Vec::new();
    for package in packages() {
        let lints = package
            .manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"))
            .and_then(toml::Value::as_bool);
        if lints != Some(true) {
            findings.push(format!("{}: [lints] workspace = true", package.folder));
        }
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            let inherited = package
                .manifest
                .get("package")
                .and_then(|table| table.get(key))
                .and_then(|value| value.get("workspace"))
                .and_then(toml::Value::as_bool);
            if inherited != Some(true) {
                findings.push(format!("{}: {key}.workspace = true", package.folder));
            }
        }
    }
    report(
        "A package with lints or an edition of its own drifts away from the others.",
        &findings,
    );
}

#[test]
fn every_package_folder_is_a_member() {
    let members: Vec<String> = packages().into_iter().map(|p| p.folder).collect();
    let mut findings = Vec::new();
    for folder in [
        "agent",
        "clients",
        "coordinator",
        "proto",
        "shared",
        "tests",
    ] {
        for file in files(folder) {
            if let Some(folder) = file.path.strip_suffix("/Cargo.toml")
                && !members.iter().any(|member| member == folder)
            {
                findings.push(file.path.clone());
            }
        }
    }
    report(
        "A package outside the workspace is not built or tested.",
        &findings,
    );
}

#[test]
fn the_lints_that_keep_the_habits_are_there() {
    let workspace = toml_file("Cargo.toml");
    let level = |group: &str, lint: &str| {
        workspace
            .get("workspace")
            .and_then(|workspace| workspace.get("lints"))
            .and_then(|lints| lints.get(group))
            .and_then(|group| group.get(lint))
            .and_then(toml::Value::as_str)
            .map(str::to_owned)
    };
    let mut findings = Vec::new();
    for (group, lint) in [
        ("rust", "unsafe_code"),
        ("rust", "unused_must_use"),
        ("clippy", "dbg_macro"),
        ("clippy", "expect_used"),
        ("clippy", "let_underscore_must_use"),
        ("clippy", "print_stdout"),
        ("clippy", "todo"),
        ("clippy", "unimplemented"),
        ("clippy", "unwrap_used"),
    ] {
        if level(group, lint).as_deref() != Some("deny") {
            findings.push(format!("{group}::{lint}"));
        }
    }
    report("These lints are deny for the whole workspace.", &findings);
}

#[test]
fn pure_packages_document_every_public_item() {
    let mut findings = Vec::new();
    for folder in ["shared", "coordinator/core", "agent/core"] {
        let path = format!("{folder}/src/lib.rs");
        let text = std::fs::read_to_string(root().join(&path)).unwrap_or_default();
        if !text.contains("#![deny(missing_docs)]") {
            findings.push(path);
        }
    }
    report(
        "Both halves build on these: their units, ranges and errors must be written down.",
        &findings,
    );
}

#[test]
fn every_source_file_belongs_to_a_module() {
    let mut findings = Vec::new();
    for package in packages() {
        let all = sources(&format!("{}/src", package.folder));
        for file in &all {
            let Some(inner) = file.path.strip_prefix(&format!("{}/src/", package.folder)) else {
                continue;
            };
            if ["lib.rs", "main.rs"].contains(&inner) || inner.starts_with("bin/") {
                continue;
            }
            let path = file
                .path
                .trim_end_matches("/mod.rs")
                .trim_end_matches(".rs");
            let Some((parent, name)) = path.rsplit_once('/') else {
                continue;
            };
            let declared = format!("mod {name};");
            let owners = [
                format!("{parent}/mod.rs"),
                format!("{parent}.rs"),
                format!("{parent}/lib.rs"),
                format!("{parent}/main.rs"),
            ];
            let registered = all
                .iter()
                .filter(|owner| owners.contains(&owner.path))
                .any(|owner| owner.text.contains(&declared));
            if !registered {
                findings.push(format!("{}: no `{declared}`", file.path));
            }
        }
    }
    report(
        "A file that no module names is neither compiled nor tested.",
        &findings,
    );
}

#[test]
fn extension_points_are_documented() {
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap_or_default();
    let mut findings = Vec::new();
    for folder in [
        "coordinator/core/src/policy",
        "coordinator/core/src/strategy",
        "agent/src/executor",
        "agent/src/traffic",
        "agent/src/probe",
    ] {
        for file in sources(folder) {
            let name = file.path.rsplit('/').next().unwrap_or_default();
            let is_part = !["mod.rs", "conformance.rs"].contains(&name) && !file.is_test();
            if is_part && !architecture.contains(&format!("`{}`", file.path)) {
                findings.push(file.path);
            }
        }
    }
    report(
        "ARCHITECTURE.md lists every policy, strategy, executor, traffic provider and probe by its \
         path.",
        &findings,
    );
}
