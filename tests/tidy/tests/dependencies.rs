//! Rules of dependency (ARCHITECTURE.md, "Who may depend on whom"), read from the manifests and
//! from `Cargo.lock`.

use tidegate_tidy::{Package, locked, packages, report, toml_file};

/// What each package may use of ours. `tests/*` may use everything, and nothing may use them.
const OURS: &[(&str, &[&str])] = &[
    ("tidegate-proto", &[]),
    ("tidegate-shared", &[]),
    ("tidegate-packaging", &[]),
    ("tidegate-coordinator-core", &["tidegate-shared"]),
    ("tidegate-agent-core", &["tidegate-shared"]),
    (
        "tidegate-coordinator",
        &[
            "tidegate-coordinator-core",
            "tidegate-packaging",
            "tidegate-proto",
            "tidegate-shared",
        ],
    ),
    (
        "tidegate-agent",
        &[
            "tidegate-agent-core",
            "tidegate-packaging",
            "tidegate-proto",
            "tidegate-shared",
        ],
    ),
    ("tidegate-cli", &["tidegate-proto", "tidegate-shared"]),
];

/// Third-party crates that the pure crates may use: none of them can reach a clock, a disk, a
/// socket or a thread.
const PURE: &[&str] = &[
    "cbor4ii",
    "cel",
    "chrono",
    "chrono-tz",
    "hex",
    "imbl",
    "schemars",
    "semver",
    "serde",
    "serde_json",
    "sha2",
    "thiserror",
    "ulid",
    "zeroize",
];

const PURE_PACKAGES: &[&str] = &[
    "tidegate-shared",
    "tidegate-coordinator-core",
    "tidegate-agent-core",
];

/// Crates that must not be in the tree at all; `deny.toml` holds the same list.
const BANNED: &[(&str, &str)] = &[
    (
        "aws-lc-rs",
        "needs cmake on some machines; rustls runs on ring",
    ),
    (
        "aws-lc-sys",
        "needs cmake on some machines; rustls runs on ring",
    ),
    ("aws-lc-fips-sys", "needs cmake and Go; rustls runs on ring"),
    ("openssl", "needs the headers of a C library"),
    ("openssl-sys", "needs the headers of a C library"),
    ("native-tls", "leads to OpenSSL"),
    (
        "cmake",
        "the build needs a Rust toolchain and a C compiler only",
    ),
    (
        "protoc-bin-vendored",
        "a foreign binary; protox compiles the protocols",
    ),
    (
        "protobuf-src",
        "builds protoc with cmake; protox compiles the protocols",
    ),
    (
        "rocksdb",
        "takes minutes of C++ to build; logs and snapshots are our own files",
    ),
];

fn is_test_package(package: &Package) -> bool {
    package.folder.starts_with("tests/")
}

fn is_ours(name: &str) -> bool {
    name.starts_with("tidegate-")
}

#[test]
fn our_packages_depend_only_in_the_allowed_directions() {
    let mut findings = Vec::new();
    for package in packages().iter().filter(|p| !is_test_package(p)) {
        let Some((_, allowed)) = OURS.iter().find(|(name, _)| *name == package.name) else {
            findings.push(format!("{}: not in this test's table", package.name));
            continue;
        };
        for table in ["dependencies", "build-dependencies"] {
            for dependency in package.dependencies(table) {
                if is_ours(&dependency) && !allowed.contains(&dependency.as_str()) {
                    findings.push(format!("{} uses {dependency}", package.name));
                }
            }
        }
    }
    report(
        "shared and proto stand alone, cores see shared only, coordinator and agent never see each \
         other, clients never see a core: otherwise decisions could reach IO, or two halves could \
         not be upgraded apart.",
        &findings,
    );
}

#[test]
fn pure_packages_use_only_the_written_list() {
    let mut findings = Vec::new();
    for package in packages() {
        if !PURE_PACKAGES.contains(&package.name.as_str()) {
            continue;
        }
        for dependency in package.dependencies("dependencies") {
            if !is_ours(&dependency) && !PURE.contains(&dependency.as_str()) {
                findings.push(format!("{} uses {dependency}", package.name));
            }
        }
    }
    report(
        "A core cannot reach IO because nothing that it depends on can: a new crate has to be \
         looked at and written into PURE.",
        &findings,
    );
}

#[test]
fn banned_crates_are_not_in_the_lock_file() {
    let locked = locked();
    assert!(locked.len() > 50, "Cargo.lock could not be read");
    let mut findings = Vec::new();
    for (name, reason) in BANNED {
        if locked.iter().any(|package| package == name) {
            findings.push(format!("{name}: {reason}"));
        }
    }
    report(
        "The build must succeed with a Rust toolchain and a C compiler only; `cargo tree -i NAME` \
         says who brings it.",
        &findings,
    );
}

#[test]
fn deny_toml_bans_the_same_crates() {
    let deny = toml_file("deny.toml");
    let listed: Vec<String> = deny
        .get("bans")
        .and_then(|bans| bans.get("deny"))
        .and_then(toml::Value::as_array)
        .map(|list| {
            list.iter()
                .filter_map(|entry| entry.get("crate").and_then(toml::Value::as_str))
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default();
    let findings: Vec<String> = BANNED
        .iter()
        .filter(|(name, _)| !listed.iter().any(|listed| listed == name))
        .map(|(name, _)| format!("deny.toml does not ban {name}"))
        .collect();
    report(
        "cargo-deny and this test hold the same rule, so that either alone is enough.",
        &findings,
    );
}

#[test]
fn the_raft_crate_comes_without_its_defaults() {
    let workspace = toml_file("Cargo.toml");
    let dependency = |name: &str| {
        workspace
            .get("workspace")
            .and_then(|workspace| workspace.get("dependencies"))
            .and_then(|dependencies| dependencies.get(name))
            .cloned()
    };
    let raft = dependency("raft").expect("raft is a dependency of the workspace");
    assert_eq!(
        raft.get("default-features").and_then(toml::Value::as_bool),
        Some(false),
        "raft's default features bring a protoc build"
    );
    let features = raft.get("features").and_then(toml::Value::as_array);
    let features: Vec<&str> = features
        .into_iter()
        .flatten()
        .filter_map(toml::Value::as_str)
        .collect();
    assert_eq!(
        features,
        ["protobuf-codec"],
        "prost-codec needs a system protoc"
    );
}

#[test]
fn versions_stand_in_one_place() {
    let mut findings = Vec::new();
    for package in packages() {
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(toml::Value::Table(entries)) = package.manifest.get(table) else {
                continue;
            };
            for (name, entry) in entries {
                if entry.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                    findings.push(format!("{} [{table}] {name}", package.folder));
                }
            }
        }
    }
    report(
        "Versions stand in the root's [workspace.dependencies] alone: two versions of a crate in \
         one tree are a mistake that nobody sees.",
        &findings,
    );
}

#[test]
fn nothing_depends_on_tests() {
    let packages = packages();
    let tests: Vec<&str> = packages
        .iter()
        .filter(|package| is_test_package(package))
        .map(|package| package.name.as_str())
        .collect();
    let mut findings = Vec::new();
    for package in packages.iter().filter(|package| !is_test_package(package)) {
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for dependency in package.dependencies(table) {
                if tests.contains(&dependency.as_str()) {
                    findings.push(format!("{} uses {dependency}", package.name));
                }
            }
        }
    }
    report(
        "Fakes ship behind the feature `testing` of the package they stand in for.",
        &findings,
    );
}

#[test]
fn the_feature_testing_stays_in_tests() {
    let mut findings = Vec::new();
    for package in packages().iter().filter(|p| !is_test_package(p)) {
        let Some(toml::Value::Table(entries)) = package.manifest.get("dependencies") else {
            continue;
        };
        for (name, entry) in entries {
            let features = entry.get("features").and_then(toml::Value::as_array);
            let testing = features
                .into_iter()
                .flatten()
                .any(|feature| feature.as_str() == Some("testing"));
            if testing {
                findings.push(format!("{} asks {name} for it", package.name));
            }
        }
        let default = package
            .manifest
            .get("features")
            .and_then(|features| features.get("default"))
            .and_then(toml::Value::as_array);
        if default
            .into_iter()
            .flatten()
            .any(|feature| feature.as_str() == Some("testing"))
        {
            findings.push(format!("{} has it by default", package.name));
        }
    }
    report(
        "A fake must never be linked into a program that is shipped.",
        &findings,
    );
}
