//! The disk that every machine starts from: the hosts' small Debian as a file system in a file, made
//! once and never written again (each machine writes into a file of its own above it).

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::nspawn::base;

const HAND: &str = include_str!("hand.sh");
const UNIT: &str = include_str!("hand.service");

/// Room in the machine; the file has holes where nothing was written.
const SIZE: &str = "2G";

/// Raised when what is written here changes.
const EDITION: u32 = 1;

/// Without a network there is nothing for them to wait for.
const MASKED: &[&str] = &[
    "systemd-networkd.service",
    "systemd-networkd-wait-online.service",
    "systemd-networkd.socket",
];

/// The file, made if it is not there yet; another process that makes it is waited for.
///
/// # Errors
/// It cannot be made.
pub fn file() -> anyhow::Result<PathBuf> {
    let root = base::folder()?;
    let place = root.parent().context("the base lies nowhere")?;
    let image = place.join(format!("machine-{EDITION}.ext4"));
    if image.exists() {
        return Ok(image);
    }
    let lock = File::create(place.join("lock"))?;
    lock.lock()?;
    if !image.exists() {
        let stage = tempfile::Builder::new()
            .prefix("stage-")
            .tempdir_in(place)?;
        let copy = stage.path().join("root");
        run(Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .args([&root, &copy]))?;
        furnish(&copy)?;
        let made = stage.path().join("image");
        run(Command::new("mkfs.ext4")
            .args(["-q", "-d"])
            .arg(&copy)
            .arg(&made)
            .arg(SIZE))?;
        fs::rename(made, &image)?;
    }
    Ok(image)
}

fn furnish(root: &Path) -> anyhow::Result<()> {
    let units = root.join("etc/systemd/system");
    for unit in MASKED {
        let mask = units.join(unit);
        if fs::symlink_metadata(&mask).is_ok() {
            fs::remove_file(&mask)?;
        }
        symlink("/dev/null", &mask)?;
    }
    let hand = root.join("usr/local/sbin/hand");
    fs::write(&hand, HAND)?;
    fs::set_permissions(&hand, fs::Permissions::from_mode(0o755))?;
    fs::write(units.join("hand.service"), UNIT)?;
    symlink(
        "../hand.service",
        units.join("multi-user.target.wants/hand.service"),
    )?;
    fs::write(root.join("etc/hostname"), "machine\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost machine\n")?;
    Ok(())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let done = command.env("PATH", crate::nspawn::PATH).output();
    let done = done.with_context(|| format!("{command:?}"))?;
    ensure!(
        done.status.success(),
        "{command:?}: {}\n{}",
        done.status,
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}
