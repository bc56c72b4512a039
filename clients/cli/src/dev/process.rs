//! Processes that end with this one.
//!
//! Each child is started through `tidegate dev-child`, which asks the kernel for a SIGTERM when its
//! parent dies and then becomes the real program. Children lead process groups of their own, so
//! that Ctrl-C reaches only this program and it can stop them in order.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, getppid, kill_process, kill_process_group};
use tidegate_shared::error::Reason;
use tokio::process::{Child, Command};

use crate::errors::{Failure, Result};
use crate::output::printable;

/// Lines of a log that are shown when its process dies.
const TOLD_LINES: usize = 8;

/// What to become.
#[derive(Debug, Args)]
pub struct DevChildArgs {
    /// The process that this one ends with.
    #[arg(long)]
    parent: i32,
    /// Program and arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl DevChildArgs {
    /// Becomes the program; comes back only if that fails.
    pub fn run(self) -> Failure {
        let failed = |error: &dyn std::fmt::Display| {
            let program = self
                .command
                .first()
                .map(|name| name.to_string_lossy().into_owned());
            Failure::new(
                Reason::ProgramMissing,
                format!("{} cannot be started: {error}", program.unwrap_or_default()),
            )
        };
        if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)) {
            return failed(&error);
        }
        // The parent may have died before the kernel was asked.
        if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(self.parent) {
            return failed(&"the program that wanted it has ended");
        }
        let Some((program, arguments)) = self.command.split_first() else {
            return failed(&"no program is named");
        };
        failed(&std::process::Command::new(program).args(arguments).exec())
    }
}

/// A running child with its log.
#[derive(Debug)]
pub struct Process {
    /// What it is called in messages.
    pub name: String,
    log: PathBuf,
    child: Child,
    pid: Option<Pid>,
}

/// How a program is to be started.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What it is called in messages.
    pub name: String,
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its environment beside the inherited one.
    pub environment: Vec<(String, String)>,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Launch<'_> {
    fn command(&self) -> Result<Command> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(|error| Failure::file(Reason::DataFolder, &self.log, "written", &error))?;
        let errors = log
            .try_clone()
            .map_err(|error| Failure::file(Reason::DataFolder, &self.log, "written", &error))?;
        let parent = std::process::id().to_string();
        // Works after this program's file was replaced, too.
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["dev-child", "--parent", &parent, "--"])
            .arg(self.program)
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0);
        // What the person exported for this program must not steer the daemons.
        for name in [
            "TIDEGATE_CONTEXT",
            "TIDEGATE_CONFIG_DIR",
            "TIDEGATE_OUTPUT",
            "TIDEGATE_TOKEN",
            "TIDEGATE_SERVER",
        ] {
            command.env_remove(name);
        }
        Ok(command)
    }

    /// Starts it to stay. To be called on the main thread: the kernel's signal at the parent's
    /// death is bound to the thread.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(self) -> Result<Process> {
        let child = self
            .command()?
            .spawn()
            .map_err(|error| self.failed(&error))?;
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        Ok(Process {
            name: self.name,
            log: self.log,
            child,
            pid,
        })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started, does not end in time, or ends badly: with its last lines.
    pub async fn finish(self, limit: Duration) -> Result<()> {
        let name = self.name.clone();
        let mut process = self.start()?;
        match tokio::time::timeout(limit, process.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(status) => Err(process.death(&describe(status))),
            Err(_) => {
                process.stop(Duration::ZERO).await;
                let told = process.death(&format!("did not end within {} s", limit.as_secs()));
                Err(told.hint(format!(
                    "see whether this machine is very busy, and {name}'s log"
                )))
            }
        }
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        Failure::new(
            Reason::ProgramMissing,
            format!("{} cannot be started: {error}", self.name),
        )
    }
}

fn describe(status: std::io::Result<std::process::ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with status {code}"),
            (None, Some(9)) => "was killed (signal 9)".to_owned(),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        },
        Err(error) => format!("was lost: {error}"),
    }
}

impl Process {
    /// Waits for the end of a process that should not end; tells which and its last words.
    pub async fn unexpected_end(&mut self) -> Failure {
        let how = self.end().await;
        self.death(&how)
    }

    /// Waits for its end; tells how it ended.
    pub async fn end(&mut self) -> String {
        describe(self.child.wait().await)
    }

    /// The last lines of its log, fit for a terminal.
    pub fn last_words(&self) -> Vec<String> {
        let lines = last_lines(&self.log).into_iter();
        lines.map(|line| printable(&line)).collect()
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn death(&self, how: &str) -> Failure {
        let failure = Failure::new(Reason::Internal, format!("{} {how}", self.name))
            .hint(format!("its whole log is {}", self.log.display()));
        self.last_words().into_iter().fold(failure, Failure::at)
    }

    /// SIGTERM, then SIGKILL after the limit.
    pub async fn stop(&mut self, limit: Duration) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(limit, self.child.wait())
            .await
            .is_err()
        {
            self.kill();
            self.child.wait().await.ok();
        }
    }

    /// Asks it to end.
    pub fn signal(&mut self, signal: Signal) {
        if let Some(pid) = self.pid.filter(|_| !self.has_ended()) {
            // It may end at this very moment.
            kill_process(pid, signal).ok();
        }
    }

    fn kill(&mut self) {
        if let Some(pid) = self.pid.filter(|_| !self.has_ended()) {
            kill_process_group(pid, Signal::KILL).ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The end of a log.
fn last_lines(path: &Path) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let tail = &text[text.len().saturating_sub(16 * 1024)..];
    let lines: Vec<String> = String::from_utf8_lossy(tail)
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(str::to_owned)
        .collect();
    lines[lines.len().saturating_sub(TOLD_LINES)..].to_vec()
}

/// Ends whatever an agent of this folder may have left when it could not do so itself: its proxy,
/// and instances, which are known by their working folder and by the variables that agents set.
pub fn sweep(dir: &Path) {
    for pid in left_behind(dir) {
        kill_process(pid, Signal::KILL).ok();
    }
}

/// Processes that belong to agents under `dir`.
fn left_behind(dir: &Path) -> Vec<Pid> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own && is_ours(*pid, dir))
        .filter_map(Pid::from_raw)
        .collect()
}

fn is_ours(pid: i32, dir: &Path) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let agents = dir.join("agents");
    let link = |name: &str| std::fs::read_link(proc.join(name)).unwrap_or_default();
    let bytes = |name: &str| std::fs::read(proc.join(name)).unwrap_or_default();
    let executable = link("exe");
    if executable.starts_with(&agents) {
        return true;
    }
    let needle = agents.as_os_str().as_encoded_bytes();
    let mentions = |haystack: &[u8]| {
        haystack
            .windows(needle.len())
            .any(|window| window == needle)
    };
    let is_agent = executable
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("tidegate-agent"));
    if is_agent {
        return mentions(&bytes("cmdline"));
    }
    let is_instance = bytes("environ")
        .split(|byte| *byte == 0)
        .any(|variable| variable.starts_with(b"TIDEGATE_INSTANCE"));
    is_instance && (link("cwd").starts_with(&agents) || mentions(&bytes("environ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_told_by_their_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let text: String = (1..=20).map(|n| format!("line {n}\n\n")).collect();
        std::fs::write(&path, text).unwrap();
        let lines = last_lines(&path);
        assert_eq!((lines.len(), lines[7].as_str()), (TOLD_LINES, "line 20"));
        assert!(last_lines(&folder.path().join("none")).is_empty());
    }

    #[test]
    fn this_very_process_is_not_swept() {
        let folder = tempfile::tempdir().unwrap();
        assert!(left_behind(folder.path()).is_empty());
    }
}
