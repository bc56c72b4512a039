//! What hosts need of the machine, and one message that names all that is missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// Programs with the packages that bring them.
const PROGRAMS: &[(&str, &str)] = &[
    ("systemd-nspawn", "systemd-container"),
    ("debootstrap", "debootstrap"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
];

/// Where programs of root are looked for, whatever the tests' own path is.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The trees of control groups in which hosts get folders of their own.
#[derive(Debug, Clone)]
pub struct Groups {
    /// The unified tree.
    pub unified: PathBuf,
    /// The old tree that systemd names its own, where the machine has one.
    pub legacy: Option<PathBuf>,
}

/// Looks whether hosts can be made here.
///
/// # Errors
/// All that is missing, and how it is had.
pub fn check() -> anyhow::Result<Groups> {
    let (mut missing, mut packages) = missing(PROGRAMS);
    if !rustix::process::geteuid().is_root() {
        missing.push("root: namespaces, mounts and control groups are made".to_owned());
    } else if packages.is_empty()
        && let Err(error) = can_unshare()
    {
        missing.push(format!("CAP_SYS_ADMIN: {error:#}"));
    }
    let groups = groups();
    if let Err(error) = &groups {
        missing.push(format!("{error:#}"));
    }
    if !packages.is_empty() {
        packages.dedup();
        missing.push(install(&packages));
    }
    if !missing.is_empty() {
        bail!(
            "hosts with a systemd of their own cannot be started here; missing: {}",
            missing.join("; ")
        );
    }
    groups
}

/// Looks whether programs are here, and whether this is root, who makes namespaces.
///
/// # Errors
/// All that is missing for `what`, and how it is had.
pub fn programs(what: &str, wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    let (mut missing, mut packages) = missing(wanted);
    if !rustix::process::geteuid().is_root() {
        missing.push("root: namespaces are made".to_owned());
    } else if let Err(error) = can_unshare() {
        missing.push(format!("CAP_SYS_ADMIN: {error:#}"));
    }
    if !packages.is_empty() {
        packages.dedup();
        missing.push(install(&packages));
    }
    if !missing.is_empty() {
        bail!(
            "{what} cannot be started here; missing: {}",
            missing.join("; ")
        );
    }
    Ok(())
}

/// The programs that are not here, and the packages that bring them.
fn missing<'a>(wanted: &[(&str, &'a str)]) -> (Vec<String>, Vec<&'a str>) {
    let (mut missing, mut packages) = (Vec::new(), Vec::new());
    for (program, package) in wanted {
        let found = PATH
            .split(':')
            .any(|dir| Path::new(dir).join(program).is_file());
        if !found {
            missing.push(format!("the program {program}"));
            packages.push(*package);
        }
    }
    (missing, packages)
}

fn install(packages: &[&str]) -> String {
    format!(
        "apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}

/// Whether namespaces may be made.
fn can_unshare() -> anyhow::Result<()> {
    let tried = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "true"])
        .env("PATH", PATH)
        .output()?;
    if !tried.status.success() {
        bail!("{}", String::from_utf8_lossy(&tried.stderr).trim());
    }
    Ok(())
}

/// The trees of control groups that are mounted.
fn groups() -> anyhow::Result<Groups> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let (mut unified, mut legacy) = (None, None);
    for line in mounts.lines() {
        let Some((place, kind)) = line.split_once(" - ") else {
            continue;
        };
        let point = place.split(' ').nth(4).map(PathBuf::from);
        let mut kind = kind.split(' ');
        match kind.next() {
            Some("cgroup2") => unified = point,
            Some("cgroup") if kind.any(|part| part.split(',').any(|o| o == "name=systemd")) => {
                legacy = point;
            }
            _ => {}
        }
    }
    let unified =
        unified.context("a mounted cgroup2 tree (mount -t cgroup2 none /sys/fs/cgroup)")?;
    Ok(Groups { unified, legacy })
}
