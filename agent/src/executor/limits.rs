//! Limits of an instance under the process executor: open files by rlimit, memory, processor and
//! number of processes by a cgroup of its own.
//!
//! Both have to hold before the first instruction of the program, and a process can be given them
//! safely only by itself: the executor starts `tidegate-agent exec-limited`, which enters the
//! cgroup, sets the rlimit and becomes the program. A cgroup needs version 2 and a subtree that was
//! delegated to the agent (`Delegate=yes` of its unit). Where there is none, a limit that needs it
//! is refused with that reason: it is never ignored.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use clap::Args;
use rustix::process::{Resource, Rlimit, setrlimit};
use tidegate_shared::spec::Limits;
use tracing::{info, warn};

use super::process::Refusal;

/// The hidden subcommand that becomes a limited program.
pub const SUBCOMMAND: &str = "exec-limited";

/// The processor's period for `cpu.max`, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// What `exec-limited` is told.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Most open files
    #[arg(long)]
    open_files: Option<u64>,
    /// The cgroup to enter
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    program: Vec<std::ffi::OsString>,
}

/// Enters the limits and becomes the program. Comes back only with why it could not.
pub fn exec(arguments: ExecArgs) -> String {
    if let Some(cgroup) = &arguments.cgroup
        && let Err(error) = fs::write(cgroup.join("cgroup.procs"), "0")
    {
        return format!("the cgroup {} cannot be entered: {error}", cgroup.display());
    }
    if let Some(count) = arguments.open_files {
        let limit = Rlimit {
            current: Some(count),
            maximum: Some(count),
        };
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            return format!("limits.open_files cannot be {count} here: {error}");
        }
    }
    let Some((program, rest)) = arguments.program.split_first() else {
        return "no program was named".to_owned();
    };
    let error = Command::new(program).args(rest).exec();
    format!(
        "{} cannot be started: {error}",
        Path::new(program).display()
    )
}

/// The cgroups of instances, below the agent's own.
pub struct Cgroups {
    /// The agent's own cgroup, once it is ready to have others below it.
    ready: Mutex<Option<PathBuf>>,
    /// Where to look for it; none: this process's own.
    own: Option<PathBuf>,
}

impl Default for Cgroups {
    fn default() -> Self {
        Self {
            ready: Mutex::new(None),
            own: None,
        }
    }
}

impl Cgroups {
    /// Below a given cgroup.
    #[must_use]
    pub fn below(own: PathBuf) -> Self {
        Self {
            ready: Mutex::new(None),
            own: Some(own),
        }
    }

    /// Makes the cgroup of an instance with its limits; none: no limit needs one.
    ///
    /// # Errors
    /// Permanent: this host cannot enforce a limit; says which and what to do.
    pub fn prepare(&self, instance: &str, limits: &Limits) -> Result<Option<PathBuf>, Refusal> {
        let wanted: Vec<(&str, &str)> = [
            ("memory", "limits.memory", limits.memory.is_some()),
            ("cpu", "limits.cpu", limits.cpu.is_some()),
            ("pids", "limits.processes", limits.processes.is_some()),
        ]
        .into_iter()
        .filter_map(|(controller, field, is_set)| is_set.then_some((controller, field)))
        .collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        let refused = |why: String| {
            let fields: Vec<&str> = wanted.iter().map(|(_, field)| *field).collect();
            Refusal {
                permanent: true,
                message: format!(
                    "{} cannot be enforced on this host: {why}; run the agent as a systemd unit with Delegate=yes on cgroup v2, or leave the limit out",
                    fields.join(", ")
                ),
            }
        };
        let controllers: Vec<&str> = wanted.iter().map(|(controller, _)| *controller).collect();
        let own = self.ready(&controllers).map_err(refused)?;
        let path = own.join(instance);
        set(&path, limits).map_err(|error| refused(format!("{}: {error}", path.display())))?;
        Ok(Some(path))
    }

    /// Removes the cgroup of an instance whose processes have ended.
    pub fn remove(&self, instance: &str) {
        let ready = self.ready.lock().ok().and_then(|ready| ready.clone());
        let Some(own) = ready else { return };
        match fs::remove_dir(own.join(instance)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(instance, %error, "the cgroup stays");
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn ready(&self, controllers: &[&str]) -> Result<PathBuf, String> {
        let mut ready = self
            .ready
            .lock()
            .map_err(|_| "an earlier attempt failed".to_owned())?;
        let own = match (&*ready, &self.own) {
            (Some(own), _) | (None, Some(own)) => own.clone(),
            (None, None) => own_cgroup()?,
        };
        let offered = fs::read_to_string(own.join("cgroup.controllers"))
            .map_err(|error| format!("{}: {error}", own.display()))?;
        let missing: Vec<&str> = controllers
            .iter()
            .copied()
            .filter(|wanted| !offered.split_ascii_whitespace().any(|c| c == *wanted))
            .collect();
        if !missing.is_empty() {
            return Err(format!(
                "the agent's cgroup {} does not have the controllers {}",
                own.display(),
                missing.join(", ")
            ));
        }
        delegate(&own, controllers).map_err(|error| {
            format!(
                "the agent's cgroup {} is not delegated to it: {error}",
                own.display()
            )
        })?;
        if ready.is_none() {
            info!(cgroup = %own.display(), "instances with limits get cgroups of their own");
            *ready = Some(own.clone());
        }
        Ok(own)
    }
}

/// The cgroup v2 of this process.
fn own_cgroup() -> Result<PathBuf, String> {
    let none = || "it has no cgroup v2".to_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let mount = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after
            .starts_with("cgroup2 ")
            .then(|| before.split(' ').nth(4))?
    });
    let groups = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(Path::new(mount.ok_or_else(none)?).join(path.ok_or_else(none)?))
}

/// Gives controllers to the groups below. A group with groups below may hold no process itself, so
/// those that are there move into one of their own first.
fn delegate(own: &Path, controllers: &[&str]) -> io::Result<()> {
    let given = fs::read_to_string(own.join("cgroup.subtree_control"))?;
    let lacks = |wanted: &&str| !given.split_ascii_whitespace().any(|c| c == *wanted);
    let lacking: Vec<String> = controllers
        .iter()
        .filter(|wanted| lacks(wanted))
        .map(|wanted| format!("+{wanted}"))
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let agent = own.join("agent");
    make(&agent)?;
    for pid in fs::read_to_string(own.join("cgroup.procs"))?.lines() {
        // One that has ended meanwhile is no error.
        if let Err(error) = fs::write(agent.join("cgroup.procs"), pid)
            && error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error())
        {
            return Err(error);
        }
    }
    fs::write(own.join("cgroup.subtree_control"), lacking.join(" "))
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn set(path: &Path, limits: &Limits) -> io::Result<()> {
    make(path)?;
    let put = |file: &str, value: Option<String>| {
        fs::write(path.join(file), value.unwrap_or_else(|| "max".to_owned()))
    };
    if let Some(memory) = limits.memory {
        put("memory.max", Some(memory.0.to_string()))?;
        // Without swap accounting there is no such file, and nothing to limit.
        if path.join("memory.swap.max").exists() {
            put("memory.swap.max", Some("0".to_owned()))?;
        }
    }
    if let Some(cores) = limits.cpu {
        let quota = u64::from(cores.0) * CPU_PERIOD / 10_000;
        put("cpu.max", Some(format!("{quota} {CPU_PERIOD}")))?;
    }
    if let Some(processes) = limits.processes {
        put("pids.max", Some(processes.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: &str) -> Limits {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_limit_that_cannot_be_enforced_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.controllers"), "cpu io\n").unwrap();
        let cgroups = Cgroups::below(folder.path().to_owned());
        let refusal = cgroups
            .prepare("i-0", &limits(r#"{"memory": "1GiB", "cpu": "1"}"#))
            .unwrap_err();
        assert!(refusal.permanent);
        for word in ["limits.memory", "controllers memory", "Delegate=yes"] {
            assert!(refusal.message.contains(word), "{}", refusal.message);
        }
        let nothing = Cgroups::below(folder.path().join("none"));
        assert!(
            nothing
                .prepare("i-0", &limits(r#"{"processes": 5}"#))
                .is_err()
        );
        let by_rlimit = nothing.prepare("i-0", &limits(r#"{"open_files": 64}"#));
        assert_eq!(by_rlimit, Ok(None));
    }
}
