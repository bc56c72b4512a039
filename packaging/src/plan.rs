//! The two plans: what a coordinator's host has, what an agent's host has.

use std::path::{Path, PathBuf};

use crate::with_program;

/// Everything that belongs to one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The program, the package, the unit without its ending.
    pub name: &'static str,
    /// The units, the one that starts at boot first.
    pub units: Vec<Unit>,
    /// Users of systemd-sysusers.
    pub users: Vec<User>,
    /// The text of the file for systemd-sysusers.
    pub users_text: &'static str,
    /// Folders, outer ones first.
    pub folders: Vec<Folder>,
    /// The text of the environment file.
    pub environment_text: &'static str,
}

/// A unit of systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    /// Its file name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// A system user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// Its name, and that of its group.
    pub name: &'static str,
    /// Its folder.
    pub home: &'static str,
}

/// A folder of mode 0700.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// From the host's root.
    pub path: &'static str,
    /// Its owner.
    pub owner: &'static str,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStep {
    /// From the host's root.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
    /// Written once and then the administrator's; otherwise it follows the program.
    pub once: bool,
}

/// The plan of `tidegate-coordinator`.
#[must_use]
pub fn coordinator() -> Plan {
    Plan {
        name: "tidegate-coordinator",
        units: vec![Unit {
            name: "tidegate-coordinator.service",
            text: include_str!("../systemd/tidegate-coordinator.service"),
        }],
        users: vec![User {
            name: "tidegate-coordinator",
            home: "/var/lib/tidegate-coordinator",
        }],
        users_text: include_str!("../sysusers/tidegate-coordinator.conf"),
        folders: vec![Folder {
            path: "/var/lib/tidegate-coordinator",
            owner: "tidegate-coordinator",
        }],
        environment_text: include_str!("../default/tidegate-coordinator"),
    }
}

/// The plan of `tidegate-agent`, with its proxy.
#[must_use]
pub fn agent() -> Plan {
    Plan {
        name: "tidegate-agent",
        units: vec![
            Unit {
                name: "tidegate-agent.service",
                text: include_str!("../systemd/tidegate-agent.service"),
            },
            Unit {
                name: "tidegate-proxy.service",
                text: include_str!("../systemd/tidegate-proxy.service"),
            },
        ],
        users: vec![User {
            name: "tidegate-proxy",
            home: "/var/lib/tidegate-agent/proxy",
        }],
        users_text: include_str!("../sysusers/tidegate-agent.conf"),
        folders: vec![
            Folder {
                path: "/var/lib/tidegate-agent",
                owner: "root",
            },
            Folder {
                path: "/var/lib/tidegate-agent/proxy",
                owner: "tidegate-proxy",
            },
        ],
        environment_text: include_str!("../default/tidegate-agent"),
    }
}

impl Plan {
    /// The unit that starts at boot.
    #[must_use]
    pub fn main_unit(&self) -> &'static str {
        self.units.first().map_or("", |unit| unit.name)
    }

    /// The file of a unit, as an administrator's own.
    #[must_use]
    pub fn unit_file(&self, unit: &Unit, program: &Path) -> FileStep {
        FileStep {
            path: Path::new("/etc/systemd/system").join(unit.name),
            text: with_program(unit.text, self, program),
            once: false,
        }
    }

    /// The file for systemd-sysusers.
    #[must_use]
    pub fn users_file(&self) -> FileStep {
        FileStep {
            path: PathBuf::from(format!("/etc/sysusers.d/{}.conf", self.name)),
            text: self.users_text.to_owned(),
            once: false,
        }
    }

    /// The environment of the main unit.
    #[must_use]
    pub fn environment_file(&self) -> FileStep {
        FileStep {
            path: PathBuf::from(format!("/etc/default/{}", self.name)),
            text: self.environment_text.to_owned(),
            once: true,
        }
    }
}
