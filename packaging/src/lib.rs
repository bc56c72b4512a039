//! What makes a host out of the programs: units of systemd, users, folders, environment files.
//!
//! The texts are the files beside this crate, which the Debian packages carry too. `install` and
//! `uninstall` of `tidegate-agent` and `tidegate-coordinator` call [`install`] and [`uninstall`]
//! with their [`Plan`]; the packages' own scripts do the same with the tools of the distribution.
//! Nothing here talks to a running Tidegate, and nothing that a person changed is overwritten.

mod host;
mod plan;

use std::path::{Path, PathBuf};

pub use plan::{FileStep, Folder, Plan, agent, coordinator};

/// How a plan is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The host's root folder; none: the running host.
    pub root: Option<PathBuf>,
    /// Where the program is on that host, for the units.
    pub program: PathBuf,
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Replace files that a person changed, too.
    pub force: bool,
}

/// Why a plan was not carried out; one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InstallError(pub String);

/// One line of what was done, or would be.
pub type Done = Vec<String>;

/// Writes users, folders, units and the environment file, and has the units started at boot. It can
/// be repeated; what is there already stays, and a newer text replaces one that nobody changed.
///
/// # Errors
/// The first step that failed, in one line. Repeating after a cure completes the rest.
pub fn install(plan: &Plan, options: &Options) -> Result<Done, InstallError> {
    let host = host::Host::new(options)?;
    let mut done = Done::new();
    host.write(&plan.users_file(), &mut done)?;
    host.make_users(plan, &mut done)?;
    for folder in &plan.folders {
        host.make_folder(folder, &mut done)?;
    }
    host.write(&plan.environment_file(), &mut done)?;
    let mut fresh = false;
    for unit in &plan.units {
        if host.is_packaged(unit.name) {
            done.push(format!("{} is there from a package", unit.name));
            continue;
        }
        fresh |= host.write(&plan.unit_file(unit, &options.program), &mut done)?;
    }
    if fresh {
        host.manager(&["daemon-reload"], &mut done)?;
    }
    host.enable(plan.main_unit(), &mut done)?;
    Ok(done)
}

/// Stops the units and takes away what [`install`] wrote; the folder with the state and the users
/// stay, unless `purge` is set.
///
/// # Errors
/// The first step that failed, in one line.
pub fn uninstall(plan: &Plan, options: &Options, purge: bool) -> Result<Done, InstallError> {
    let host = host::Host::new(options)?;
    let mut done = Done::new();
    for unit in &plan.units {
        if host.is_packaged(unit.name) {
            return Err(InstallError(format!(
                "{} is there from a package: remove it with the package manager, such as `apt remove {}`",
                unit.name, plan.name
            )));
        }
    }
    for unit in &plan.units {
        if host.exists(&plan.unit_file(unit, &options.program).path) {
            host.disable(unit.name, &mut done)?;
        }
    }
    for unit in &plan.units {
        host.take_away(&plan.unit_file(unit, &options.program), &mut done)?;
    }
    host.manager(&["daemon-reload"], &mut done)?;
    host.take_away(&plan.environment_file(), &mut done)?;
    if purge {
        for folder in plan.folders.iter().rev() {
            host.purge_folder(folder, &mut done)?;
        }
        host.remove_users(plan, &mut done)?;
        host.take_away(&plan.users_file(), &mut done)?;
    }
    Ok(done)
}

/// Stops the unit that starts at boot, before what it looks after is stopped.
///
/// # Errors
/// Not root, or systemd refuses.
pub fn stop(plan: &Plan, options: &Options) -> Result<(), InstallError> {
    let host = host::Host::new(options)?;
    host.manager(&["stop", plan.main_unit()], &mut Done::new())
}

/// The text of a unit as it is in `packaging/systemd`, with the program's path put in.
fn with_program(text: &str, plan: &Plan, program: &Path) -> String {
    let shipped = format!("/usr/bin/{}", plan.name);
    text.replace(&format!("={shipped} "), &format!("={} ", program.display()))
}
