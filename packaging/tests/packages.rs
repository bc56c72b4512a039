//! The Debian packages and `install.sh`, made from a stand-in for the programs: what they bring, what
//! their scripts are, and that nothing damaged is installed. Needs dpkg-deb. Whole hosts install and
//! upgrade them in the end-to-end tests.

#![allow(
    clippy::expect_used,
    reason = "a test says what it could not do by failing there"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const NAMES: [&str; 3] = ["tidegate", "tidegate-agent", "tidegate-coordinator"];

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn run(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Output {
    let name = program.as_ref().to_string_lossy().into_owned();
    Command::new(program.as_ref())
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| {
            panic!("{name}: {error}; install it: apt-get install -y dpkg coreutils")
        })
}

fn said(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr];
    parts.map(|part| String::from_utf8_lossy(part)).concat()
}

/// Packages of a version in a folder, each with /bin/true as its program.
fn packages(folder: &Path, version: &str) -> PathBuf {
    let programs = folder.join("programs");
    std::fs::create_dir_all(&programs).expect("a folder");
    for name in NAMES {
        std::fs::copy("/bin/true", programs.join(name)).expect("a stand-in");
    }
    let out = folder.join("packages");
    let texts = [programs.display().to_string(), out.display().to_string()];
    let [programs, packages] = texts.each_ref().map(String::as_str);
    let arguments = [
        "--bin-dir",
        programs,
        "--out",
        packages,
        "--version",
        version,
        "--compression",
        "none",
    ];
    let built = run(here("deb/build"), &arguments);
    assert!(built.status.success(), "{}", said(&built));
    out
}

fn package(out: &Path, name: &str, version: &str) -> PathBuf {
    let architecture = said(&run("dpkg", &["--print-architecture"]));
    out.join(format!("{name}_{version}_{}.deb", architecture.trim()))
}

#[test]
fn packages_bring_programs_units_users_and_scripts() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = packages(folder.path(), "1.2.3");
    let agent = package(&out, "tidegate-agent", "1.2.3");
    let agent = agent.display().to_string();
    let root = folder.path().join("root").display().to_string();
    let unpacked = run("dpkg-deb", &["--raw-extract", &agent, &root]);
    assert!(unpacked.status.success(), "{}", said(&unpacked));
    let at = |path: &str| Path::new(&root).join(path);
    for (path, mode) in [
        ("usr/bin/tidegate-agent", 0o755),
        ("lib/systemd/system/tidegate-agent.service", 0o644),
        ("lib/systemd/system/tidegate-proxy.service", 0o644),
        ("usr/lib/sysusers.d/tidegate-agent.conf", 0o644),
        ("etc/default/tidegate-agent", 0o644),
        ("DEBIAN/postinst", 0o755),
        ("DEBIAN/prerm", 0o755),
        ("DEBIAN/postrm", 0o755),
    ] {
        let held = std::fs::metadata(at(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(held.permissions().mode() & 0o7777, mode, "{path}");
    }
    let shipped = std::fs::read_to_string(here("systemd/tidegate-agent.service")).unwrap();
    let unit = std::fs::read_to_string(at("lib/systemd/system/tidegate-agent.service")).unwrap();
    assert_eq!(unit, shipped);
    let conffiles = std::fs::read_to_string(at("DEBIAN/conffiles")).unwrap();
    assert_eq!(conffiles, "/etc/default/tidegate-agent\n");
    let control = std::fs::read_to_string(at("DEBIAN/control")).unwrap();
    assert!(control.contains("Version: 1.2.3\n"), "{control}");
    assert!(control.contains("Depends: libc6 (>= 2."), "{control}");
}

#[test]
fn the_command_line_brings_the_ready_policies_and_the_schema() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = packages(folder.path(), "1.2.3");
    let root = folder.path().join("root").display().to_string();
    let package = package(&out, "tidegate", "1.2.3").display().to_string();
    let unpacked = run("dpkg-deb", &["--raw-extract", &package, &root]);
    assert!(unpacked.status.success(), "{}", said(&unpacked));
    let schema = std::fs::read(here("schema/manifest.schema.json")).expect("the schema");
    let brought = Path::new(&root).join("usr/share/tidegate/manifest.schema.json");
    assert_eq!(std::fs::read(brought).expect("it is there"), schema);
    let policies = Path::new(&root).join("usr/share/doc/tidegate/examples/policies");
    let mut count = 0;
    for entry in std::fs::read_dir(here("config/policies")).expect("policies") {
        let name = entry.expect("an entry").file_name();
        assert!(policies.join(&name).is_file(), "{}", name.display());
        count += 1;
    }
    assert!(count >= 10);
}

#[test]
fn scripts_are_posix_shell() {
    let mut scripts = vec![here("install.sh"), here("deb/build")];
    for entry in std::fs::read_dir(here("deb/scripts")).expect("scripts") {
        scripts.push(entry.expect("an entry").path());
    }
    assert!(scripts.len() >= 8);
    for script in scripts {
        let name = script.display().to_string();
        let checked = run("sh", &["-n", &name]);
        assert!(checked.status.success(), "{name}: {}", said(&checked));
        let text = std::fs::read_to_string(&script).expect("a script");
        assert!(text.starts_with("#!/bin/sh\n"), "{name}");
        let strict = text.contains("\nset -e\n") || text.contains("\nset -eu\n");
        assert!(strict, "{name} goes on after an error");
    }
}

#[test]
fn the_installer_checks_before_it_installs() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = packages(folder.path(), "1.2.3");
    let from = out.display().to_string();
    let installer = here("install.sh").display().to_string();
    let told = run("sh", &[&installer, "--from", &from, "--dry-run"]);
    assert!(told.status.success(), "{}", said(&told));
    for name in ["tidegate-agent", "tidegate"] {
        let words = format!("{name} 1.2.3 will be installed");
        assert!(said(&told).contains(&words), "{}", said(&told));
    }
    assert!(
        !said(&told).contains("tidegate-coordinator"),
        "{}",
        said(&told)
    );

    let refusals: [(&[&str], &str); 5] = [
        (&[], "where are the packages?"),
        (&["--from"], "--from wants a value"),
        (
            &["--from", &from, "everything"],
            "unknown argument \"everything\"",
        ),
        (
            &["--from", &from, "--version", "9", "--dry-run", "agent"],
            "no package tidegate-agent 9 for",
        ),
        (
            &["--from", "/nowhere", "--dry-run"],
            "/nowhere/SHA256SUMS is missing",
        ),
    ];
    for (arguments, words) in refusals {
        let all: Vec<&str> = std::iter::once(installer.as_str())
            .chain(arguments.iter().copied())
            .collect();
        let refused = run("sh", &all);
        assert!(!refused.status.success());
        assert!(
            said(&refused).contains(words),
            "{} lacks {words}",
            said(&refused)
        );
    }

    let agent = package(&out, "tidegate-agent", "1.2.3");
    let mut bytes = std::fs::read(&agent).expect("a package");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&agent, bytes).expect("damaged");
    let root = folder.path().join("root");
    std::fs::create_dir(&root).expect("a root");
    let root = root.display().to_string();
    let refused = run(
        "sh",
        &[&installer, "--from", &from, "--root", &root, "agent"],
    );
    assert!(!refused.status.success());
    let words = "does not have the digest of SHA256SUMS";
    assert!(said(&refused).contains(words), "{}", said(&refused));
    let left = std::fs::read_dir(&root).expect("the root").count();
    assert_eq!(left, 0, "something was installed");
}
