//! `install` and `uninstall` in a folder that stands for a host.

#![allow(
    clippy::expect_used,
    reason = "a test says what it could not do by failing there"
)]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tidegate_packaging::{Options, agent, coordinator, install, uninstall};

/// A host with a user database, so that systemd-sysusers can add to it.
fn host() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(root.path().join("etc")).expect("etc");
    for (name, text) in [
        ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("group", "root:x:0:\n"),
    ] {
        std::fs::write(root.path().join("etc").join(name), text).expect("written");
    }
    root
}

fn options(root: &Path) -> Options {
    Options {
        root: Some(root.to_path_buf()),
        program: PathBuf::from("/opt/tidegate/tidegate-agent"),
        dry_run: false,
        force: false,
    }
}

fn read(root: &Path, path: &str) -> String {
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

const UNIT: &str = "etc/systemd/system/tidegate-agent.service";

#[test]
fn a_host_gets_users_folders_units_and_is_left_clean() {
    let root = host();
    let root = root.path();
    let options = options(root);
    install(&agent(), &options).expect("installed");
    assert!(read(root, "etc/passwd").contains("tidegate-proxy:"));
    assert!(read(root, UNIT).contains("ExecStart=/opt/tidegate/tidegate-agent run "));
    let proxy = read(root, "etc/systemd/system/tidegate-proxy.service");
    assert!(proxy.contains("ExecStart=/opt/tidegate/tidegate-agent proxy "));
    let folder = std::fs::metadata(root.join("var/lib/tidegate-agent/proxy")).expect("made");
    assert_eq!(folder.permissions().mode() & 0o7777, 0o700);
    let line = read(root, "etc/passwd");
    let line = line
        .lines()
        .find(|line| line.starts_with("tidegate-proxy:"));
    let uid = line
        .and_then(|line| line.split(':').nth(2))
        .expect("a user");
    if folder.uid() != rustix_uid() {
        assert_eq!(folder.uid().to_string(), uid);
    }
    let link = root.join("etc/systemd/system/multi-user.target.wants/tidegate-agent.service");
    assert!(
        std::fs::symlink_metadata(&link).is_ok(),
        "it starts at boot"
    );

    let again = install(&agent(), &options).expect("repeated");
    for line in &again {
        assert!(
            line.ends_with("as it should be") || line.ends_with("already"),
            "a repetition changes nothing: {line}"
        );
    }

    std::fs::write(root.join("var/lib/tidegate-agent/ledger"), "state").expect("written");
    uninstall(&agent(), &options, false).expect("uninstalled");
    assert!(!root.join(UNIT).exists());
    assert!(std::fs::symlink_metadata(&link).is_err());
    assert_eq!(read(root, "var/lib/tidegate-agent/ledger"), "state");
    uninstall(&agent(), &options, true).expect("purged");
    assert!(!root.join("var/lib/tidegate-agent").exists());
    assert!(!read(root, "etc/passwd").contains("tidegate-proxy:"));
}

/// The number of this process's user: the owner of everything where it may not give files away.
fn rustix_uid() -> u32 {
    std::fs::metadata("/proc/self").map_or(0, |held| held.uid())
}

#[test]
fn what_a_person_changed_is_kept_and_an_older_text_is_replaced() {
    let root = host();
    let root = root.path();
    let mut options = options(root);
    install(&coordinator(), &options).expect("installed");
    let unit = "etc/systemd/system/tidegate-coordinator.service";
    let environment = "etc/default/tidegate-coordinator";
    std::fs::write(
        root.join(environment),
        "TIDEGATE_COORDINATOR_LOG_FILTER=debug\n",
    )
    .unwrap();

    // Another place of the program stands for another version: nobody changed the file.
    options.program = PathBuf::from("/usr/bin/tidegate-coordinator");
    install(&coordinator(), &options).expect("upgraded");
    assert!(read(root, unit).contains("ExecStart=/usr/bin/tidegate-coordinator run "));

    let changed = format!("{}# mine\n", read(root, unit));
    std::fs::write(root.join(unit), &changed).unwrap();
    let done = install(&coordinator(), &options)
        .expect("repeated")
        .join("\n");
    assert!(done.contains("tidegate-coordinator.service is kept as it was changed; --force"));
    assert_eq!(read(root, unit), changed);
    assert_eq!(
        read(root, environment),
        "TIDEGATE_COORDINATOR_LOG_FILTER=debug\n"
    );
    options.force = true;
    install(&coordinator(), &options).expect("forced");
    assert!(!read(root, unit).contains("# mine"));
    assert!(
        read(root, environment).contains("=debug"),
        "the environment is the administrator's"
    );
}

#[test]
fn a_dry_run_and_refusals_change_nothing() {
    let root = host();
    let mut options = options(root.path());
    options.dry_run = true;
    let done = install(&agent(), &options).expect("told").join("\n");
    for words in [
        "the system user tidegate-proxy is made",
        "/var/lib/tidegate-agent is a folder of root alone (0700)",
        "/etc/systemd/system/tidegate-agent.service is written",
        "tidegate-agent.service will start at boot",
    ] {
        assert!(done.contains(words), "{done} lacks {words}");
    }
    assert!(!root.path().join(UNIT).exists());
    assert!(!root.path().join("var").exists());

    options.dry_run = false;
    options.root = Some(root.path().join("nowhere"));
    let error = install(&agent(), &options).expect_err("no such root");
    assert!(
        error.to_string().contains("nowhere is not a folder"),
        "{error}"
    );
}

#[test]
fn units_of_a_package_are_the_packages() {
    let root = host();
    let packaged = root.path().join("lib/systemd/system");
    std::fs::create_dir_all(&packaged).unwrap();
    for name in ["tidegate-agent.service", "tidegate-proxy.service"] {
        std::fs::write(packaged.join(name), "[Unit]\n").unwrap();
    }
    let options = options(root.path());
    let done = install(&agent(), &options).expect("installed").join("\n");
    assert!(done.contains("tidegate-agent.service is there from a package"));
    assert!(!root.path().join(UNIT).exists());
    let error = uninstall(&agent(), &options, false).expect_err("the package manager's");
    assert!(
        error.to_string().contains("apt remove tidegate-agent"),
        "{error}"
    );
}
