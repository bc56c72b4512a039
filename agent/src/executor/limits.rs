//! Limits of an instance under the process executor: open files by rlimit, memory, processor and
//! number of processes by a cgroup of its own.
//!
//! Both have to hold before the first instruction of the program, and a process can be given them
//! safely only by itself: the executor starts `tidegate-agent exec-limited`, which enters the
//! cgroup, sets the rlimit and becomes the program. Where cgroups lie is [`super::cgroup`]'s. Where there
//! can be none, a limit that needs one is refused with that reason: it is never ignored.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use rustix::process::{Resource, Rlimit, setrlimit};
use tidegate_shared::spec::{Bytes, Limits};

use super::cgroup::{Group, Home};
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

/// The control groups that hold limited instances.
#[derive(Default)]
pub struct Cgroups {
    /// Where they lie; none: looked for at each need, because the agent may be moved.
    home: Option<Home>,
}

impl Cgroups {
    /// In a given place.
    #[must_use]
    pub const fn in_home(home: Home) -> Self {
        Self { home: Some(home) }
    }

    fn home(&self) -> Result<Home, String> {
        self.home.clone().map_or_else(Home::find, Ok)
    }

    /// Why a limit cannot be enforced here, and what to do; none: each can. Nothing is changed.
    #[must_use]
    pub fn trouble(&self, limits: &Limits) -> Option<String> {
        let wanted = wanted(limits);
        let controllers: Vec<&str> = wanted.iter().map(|(controller, _)| *controller).collect();
        let home = self.home();
        let offers = |home: Home| home.offers(&controllers);
        let why = home.and_then(offers).err().filter(|_| !wanted.is_empty())?;
        Some(cannot(&wanted, &why))
    }

    /// Makes the group of a start of an instance with its limits; none: no limit needs one.
    ///
    /// # Errors
    /// Permanent: this host cannot enforce a limit; says which and what to do.
    pub fn prepare(&self, name: &str, limits: &Limits) -> Result<Option<Group>, Refusal> {
        let wanted = wanted(limits);
        if wanted.is_empty() {
            return Ok(None);
        }
        let controllers: Vec<&str> = wanted.iter().map(|(controller, _)| *controller).collect();
        let made = self.home().and_then(|home| {
            let group = home.make(name, &controllers)?;
            let path = group.path();
            set(path, limits).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(group)
        });
        made.map(Some).map_err(|why| Refusal {
            permanent: true,
            message: cannot(&wanted, &why),
        })
    }

    /// Removes what ended starts of an instance left.
    pub fn forget(&self, instance: &str) {
        if let Ok(home) = self.home() {
            home.forget(instance);
        }
    }
}

/// The controllers that limits need, each with the field that needs it.
fn wanted(limits: &Limits) -> Vec<(&'static str, &'static str)> {
    let all = [
        ("memory", "limits.memory", limits.memory.is_some()),
        ("cpu", "limits.cpu", limits.cpu.is_some()),
        ("pids", "limits.processes", limits.processes.is_some()),
    ];
    let set = all.into_iter().filter(|(_, _, is_set)| *is_set);
    set.map(|(controller, field, _)| (controller, field))
        .collect()
}

fn cannot(wanted: &[(&str, &str)], why: &str) -> String {
    let fields: Vec<&str> = wanted.iter().map(|(_, field)| *field).collect();
    format!(
        "{} cannot be enforced on this host by the executor process: {why}; it needs cgroup v2 and a group that is delegated to it (Delegate=yes): take the executor systemd, or leave the limit out",
        fields.join(", ")
    )
}

/// What is said of an instance that the kernel ended for want of memory.
#[must_use]
pub fn out_of_memory(limit: Option<u64>) -> String {
    match limit {
        Some(most) => format!(
            "was ended by the kernel: out of memory; its limits.memory is {}",
            Bytes(most)
        ),
        None => "was ended by the kernel: out of memory; it has no limit, the host had none left"
            .to_owned(),
    }
}

fn set(path: &Path, limits: &Limits) -> io::Result<()> {
    let put = |file: &str, value: String| fs::write(path.join(file), value);
    if let Some(memory) = limits.memory {
        put("memory.max", memory.0.to_string())?;
        // Half an instance would be worse than none: if one of its processes goes, all go.
        put("memory.oom.group", "1".to_owned())?;
        // Without swap accounting there is no such file, and nothing to limit.
        if path.join("memory.swap.max").exists() {
            put("memory.swap.max", "0".to_owned())?;
        }
    }
    if let Some(cores) = limits.cpu {
        let quota = u64::from(cores.0) * CPU_PERIOD / 10_000;
        put("cpu.max", format!("{quota} {CPU_PERIOD}"))?;
    }
    if let Some(processes) = limits.processes {
        put("pids.max", processes.to_string())?;
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
        let cgroups = Cgroups::in_home(Home::at(folder.path().to_owned()));
        let refusal = cgroups
            .prepare("i-0", &limits(r#"{"memory": "1GiB", "cpu": "1"}"#))
            .unwrap_err();
        assert!(refusal.permanent);
        for word in ["limits.memory", "controllers memory", "Delegate=yes"] {
            assert!(refusal.message.contains(word), "{}", refusal.message);
        }
        let told = cgroups.trouble(&limits(r#"{"memory": "1GiB"}"#));
        assert!(told.is_some_and(|told| told.contains("limits.memory")));
        assert_eq!(cgroups.trouble(&limits(r#"{"open_files": 64}"#)), None);
        let nothing = Cgroups::in_home(Home::at(folder.path().join("none")));
        assert!(
            nothing
                .prepare("i-0", &limits(r#"{"processes": 5}"#))
                .is_err()
        );
        let by_rlimit = nothing.prepare("i-0", &limits(r#"{"open_files": 64}"#));
        assert_eq!(by_rlimit, Ok(None));
    }

    #[test]
    fn an_end_for_want_of_memory_names_the_limit() {
        assert!(out_of_memory(Some(32 << 20)).contains("limits.memory is 32MiB"));
        assert!(out_of_memory(None).contains("out of memory"));
    }
}
