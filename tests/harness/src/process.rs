//! A process in a group of its own, with its output in a file, ended when dropped.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::poll;

/// See the module.
#[derive(Debug)]
pub struct Process {
    /// What it is called in messages.
    pub name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
    keep_group: bool,
}

impl Process {
    /// Starts a program; its output is appended to the log.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        name: &str,
        program: &Path,
        arguments: &[A],
        environment: &[(&str, String)],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("{}", log.display()))?;
        let errors = output.try_clone()?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0);
        for (key, value) in environment {
            command.env(key, value);
        }
        let child = command
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            ended: None,
            keep_group: false,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Sends a signal to it alone, not to what it started.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = pid(self.child.id())?;
        kill_process(pid, signal).with_context(|| format!("{} is gone", self.name))
    }

    /// Ends it alone, as `kill -9` does, and waits until it is gone.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        self.ended = Some(self.child.wait()?);
        Ok(())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It did not end in time; the message holds the end of its output.
    pub fn wait(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let result = poll::until(&what, within, || {
            self.ended()?.context("it is still running")
        });
        result.with_context(|| tail(&self.output()))
    }
}

impl Process {
    /// Leaves what it started alone. It has ended itself already.
    pub fn forget(mut self) {
        self.keep_group = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.keep_group && self.ended.is_some() {
            return;
        }
        // Whatever it started belongs to its group; a group that is gone already is no error.
        if let Ok(pid) = pid(self.child.id()) {
            kill_process_group(pid, Signal::KILL).ok();
        }
        if self.ended.is_none() {
            self.child.wait().ok();
        }
    }
}

fn pid(id: u32) -> anyhow::Result<Pid> {
    i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .context("no process id")
}

/// The last lines of a text.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
