//! The folder that every host starts from: a small Debian, made once by debootstrap and never
//! written again (each host writes into a layer of its own above it).
//!
//! It lies under `target/test-world`, or under the folder that `TIDEGATE_TEST_WORLD` names, so that several
//! trees can share one.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::cluster::programs;
use crate::process::tail;

/// Folder that holds what tests need and may keep between runs.
const WORLD: &str = "TIDEGATE_TEST_WORLD";

/// Packages of a host besides the smallest system.
const PACKAGES: &str =
    "adduser,ca-certificates,curl,dbus,iproute2,procps,socat,systemd,systemd-sysv";

/// What the smallest system starts by itself and no test wants: it would fetch from outside.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
];

/// Raised when `PACKAGES` or `configure` change. Trees of several editions can share one world.
const EDITION: u32 = 2;

/// The folder, made if it is not there yet; another process that makes it is waited for.
///
/// # Errors
/// It cannot be made; the message holds the end of what debootstrap said.
pub fn folder() -> anyhow::Result<PathBuf> {
    let world = match std::env::var_os(WORLD) {
        Some(world) => PathBuf::from(world),
        None => {
            let programs = programs()?;
            let target = programs.parent().context("the programs lie nowhere")?;
            target.join("test-world")
        }
    };
    let suite = suite();
    let place = world.join(format!("{suite}-{EDITION}"));
    let (root, stamp) = (place.join("root"), place.join("made"));
    let ready = || stamp.exists();
    if ready() {
        return Ok(root);
    }
    fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
    let lock = File::create(place.join("lock"))?;
    lock.lock()?;
    if !ready() {
        for old in [&stamp, &root] {
            remove(old).with_context(|| old.display().to_string())?;
        }
        let archives = world.join("archives");
        fs::create_dir_all(&archives)?;
        make(&suite, &archives, &root)?;
        configure(&root)?;
        fs::write(&stamp, PACKAGES)?;
    }
    Ok(root)
}

/// The release of Debian: this machine's own, whose libraries the programs were built with.
fn suite() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    match (value("ID="), value("VERSION_CODENAME=")) {
        (Some(id), Some(codename)) if id == "debian" => codename,
        _ => "bookworm".to_owned(),
    }
}

fn make(suite: &str, archives: &Path, root: &Path) -> anyhow::Result<()> {
    let made = Command::new("debootstrap")
        .arg("--variant=minbase")
        .arg(format!("--include={PACKAGES}"))
        .arg(format!("--cache-dir={}", archives.display()))
        .arg(suite)
        .arg(root)
        .output()
        .context("debootstrap cannot be started")?;
    ensure!(
        made.status.success(),
        "debootstrap {suite}: {}\n{}\n{}",
        made.status,
        tail(&String::from_utf8_lossy(&made.stdout)),
        tail(&String::from_utf8_lossy(&made.stderr))
    );
    Ok(())
}

/// What is the same on every host.
fn configure(root: &Path) -> anyhow::Result<()> {
    let units = root.join("etc/systemd/system");
    for unit in MASKED {
        let mask = units.join(unit);
        remove(&mask)?;
        symlink("/dev/null", &mask)?;
    }
    for (target, unit) in [
        ("multi-user", "systemd-networkd.service"),
        ("network-online", "systemd-networkd-wait-online.service"),
    ] {
        let wanted = units.join(format!("{target}.target.wants"));
        fs::create_dir_all(&wanted)?;
        remove(&wanted.join(unit))?;
        symlink(format!("/lib/systemd/system/{unit}"), wanted.join(unit))?;
    }
    // Empty: every host gives itself an id at its first boot.
    fs::write(root.join("etc/machine-id"), "")?;
    // The journals of all boots stay.
    fs::create_dir_all(root.join("var/log/journal"))?;
    Ok(())
}

fn remove(path: &Path) -> std::io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
