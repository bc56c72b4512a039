//! One host: its layer, its control groups, the process that keeps it, and commands in it.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::needs::{Groups, PATH};
use super::{BOOT, BRIDGE, address};
use crate::cluster::Output;
use crate::poll;
use crate::process::tail;

const GUARD: &str = include_str!("guard.sh");

/// See the module.
#[derive(Debug)]
pub struct Host {
    name: String,
    address: IpAddr,
    folder: PathBuf,
    base: PathBuf,
    machine: String,
    unified: PathBuf,
    legacy: Option<PathBuf>,
    guard: Option<Child>,
}

impl Host {
    /// Writes what is its own and does not start it.
    pub(super) fn plan(
        dir: &Path,
        base: &Path,
        groups: &Groups,
        run: &str,
        number: u8,
        count: u8,
    ) -> anyhow::Result<Self> {
        let name = format!("h{number}");
        let group = format!("tidegate-test-{run}-{name}");
        let host = Self {
            address: address(number),
            folder: dir.join(&name),
            base: base.to_owned(),
            machine: format!("tg{run}-{name}"),
            unified: groups.unified.join(&group),
            legacy: groups.legacy.as_ref().map(|tree| tree.join(&group)),
            name,
            guard: None,
        };
        let up = host.folder.join("up");
        for folder in ["work", "root", "up/etc/systemd/network"] {
            fs::create_dir_all(host.folder.join(folder))?;
        }
        let names: String = (1..=count)
            .map(|number| format!("{} h{number}\n", address(number)))
            .collect();
        let network = format!(
            "[Match]\nName=host0\n\n[Network]\nAddress={}/24\nLinkLocalAddressing=no\n",
            host.address
        );
        for (file, text) in [
            ("etc/hostname", format!("{}\n", host.name)),
            ("etc/hosts", format!("127.0.0.1 localhost\n{names}")),
            ("etc/systemd/network/10-host0.network", network),
        ] {
            fs::write(up.join(file), text)?;
        }
        Ok(host)
    }

    /// Its name, `h1` and on.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, which the other hosts and the test reach.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Starts it; [`Self::is_up`] waits.
    ///
    /// # Errors
    /// It runs already, or cannot be started.
    pub fn switch_on(&mut self) -> anyhow::Result<()> {
        ensure!(self.guard.is_none(), "{} runs already", self.name);
        for group in self.groups() {
            fs::create_dir_all(group).with_context(|| group.display().to_string())?;
        }
        let console = File::options()
            .create(true)
            .append(true)
            .open(self.console())?;
        let script = self.folder.join("guard.sh");
        fs::write(&script, GUARD)?;
        let guard = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh"])
            .arg(script)
            .args([&self.base, &self.folder])
            .args([&self.machine, &self.name])
            .arg(BRIDGE)
            .args(self.groups())
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(console.try_clone()?)
            .stderr(console)
            .spawn()
            .context("unshare cannot be started")?;
        self.guard = Some(guard);
        Ok(())
    }

    fn groups(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.unified).chain(&self.legacy)
    }

    fn console(&self) -> PathBuf {
        self.folder.join("console")
    }

    /// Waits until systemd has started everything.
    ///
    /// # Errors
    /// Not in time.
    pub fn is_up(&self) -> anyhow::Result<()> {
        poll::until(&format!("{} to be up", self.name), BOOT, || {
            let state = self.run(&["systemctl", "is-system-running"])?;
            // Degraded is what it is called when a unit has failed, which is the test's own affair.
            let up = ["running", "degraded"].contains(&state.stdout.trim());
            poll::holds(up, || state.to_string())
        })
    }

    /// The first process of the host, as this machine counts.
    ///
    /// # Errors
    /// It does not run, or has not come so far.
    pub fn init(&self) -> anyhow::Result<u32> {
        let place = self.unified.join("payload/init.scope/cgroup.procs");
        let found =
            fs::read_to_string(&place).with_context(|| format!("{} does not run", self.name))?;
        let first = found.lines().next().and_then(|pid| pid.parse().ok());
        first.with_context(|| format!("{} has just begun to boot", self.name))
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init()?.to_string()])
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
            .args(["--root", "--wd", "--", "env", "-i"])
            .arg(format!("PATH={PATH}"))
            .args(["HOME=/root", "LC_ALL=C.UTF-8"])
            .args(arguments)
            .env("PATH", PATH)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a program in the host to its end, as root. `KEY=value` before it sets its environment.
    ///
    /// # Errors
    /// The host does not run.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = self.command(arguments)?.output()?;
        Ok(Output {
            command: format!("{}: {}", self.name, arguments.join(" ")),
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a line of shell in the host.
    ///
    /// # Errors
    /// The host does not run.
    pub fn shell(&self, line: &str) -> anyhow::Result<Output> {
        self.run(&["sh", "-c", line])
    }

    /// Copies a file of this machine into the host; folders above it are made.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn copy_in(&self, from: &Path, to: &str, mode: u32) -> anyhow::Result<()> {
        let file = File::open(from).with_context(|| from.display().to_string())?;
        self.receive(to, mode, file.into(), |_| Ok(()))
    }

    /// Writes a file in the host; folders above it are made.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, to: &str, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
        self.receive(to, mode, Stdio::piped(), |child| {
            let mut pipe = child.stdin.take().context("no pipe")?;
            Ok(pipe.write_all(bytes)?)
        })
    }

    fn receive(
        &self,
        to: &str,
        mode: u32,
        input: Stdio,
        feed: impl FnOnce(&mut Child) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mode = format!("{mode:o}");
        // Beside it and renamed: a program that is being run can be replaced so.
        let line = "mkdir -p \"$(dirname \"$0\")\" && cat >\"$0.new\" && chmod \"$1\" \"$0.new\" && mv -f \"$0.new\" \"$0\"";
        let mut child = self
            .command(&["sh", "-c", line, to, &mode])?
            .stdin(input)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        feed(&mut child)?;
        let done = child.wait_with_output()?;
        ensure!(
            done.status.success(),
            "{}: {to} cannot be written: {}",
            self.name,
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(())
    }

    /// Reads a file of the host.
    ///
    /// # Errors
    /// It is not there.
    pub fn read(&self, path: &str) -> anyhow::Result<String> {
        Ok(self.run(&["cat", path])?.ok()?.stdout)
    }

    /// Reboots it as a person does, and waits until it is up again.
    ///
    /// # Errors
    /// It does not come back in time.
    pub fn reboot(&self) -> anyhow::Result<()> {
        let before = self.init()?;
        // The command may be ended by the very thing that it asked for.
        self.run(&["systemctl", "reboot"])?;
        poll::until(&format!("another boot of {}", self.name), BOOT, || {
            let now = self.init()?;
            poll::holds(now != before, || format!("{now} still runs"))
        })
        .with_context(|| self.tail())?;
        self.is_up().with_context(|| self.tail())
    }

    /// Takes its power away: no process of it does anything any more. What it wrote stays.
    ///
    /// # Errors
    /// It does not run.
    pub fn switch_off(&mut self) -> anyhow::Result<()> {
        self.cut_off();
        let mut guard = self.guard.take().context("it does not run")?;
        let ended = poll::until(&format!("the end of {}", self.name), BOOT, || {
            guard.try_wait()?.context("it still runs")
        });
        if ended.is_err() {
            // Its input is closed with it, which ends whatever is left.
            guard.kill().ok();
            guard.wait().ok();
        }
        self.remove_groups()?;
        ended.map(drop)
    }

    /// Begins to end it.
    pub(super) fn cut_off(&self) {
        // Seen before the next boot: after this death of the first process none may follow.
        if let Some(guard) = &self.guard {
            File::create(self.folder.join(format!("off.{}", guard.id()))).ok();
        }
        let first = self.init().ok().and_then(|pid| i32::try_from(pid).ok());
        match first.and_then(Pid::from_raw) {
            // systemd-nspawn sees it and puts its own things away.
            Some(pid) => kill_process(pid, Signal::KILL).ok(),
            None => fs::write(self.unified.join("cgroup.kill"), "1").ok(),
        };
    }

    fn remove_groups(&self) -> anyhow::Result<()> {
        poll::until(&format!("no process of {}", self.name), BOOT, || {
            for group in self.groups() {
                remove_tree(group).with_context(|| group.display().to_string())?;
            }
            Ok(())
        })
    }

    /// Console, failed units, the last lines of the journal.
    pub(super) fn tail(&self) -> String {
        let said = |arguments: &[&str]| match self.run(arguments) {
            Ok(output) => tail(&output.stdout),
            Err(error) => format!("{error:#}"),
        };
        format!(
            "-- {}: console\n{}\n-- failed units\n{}\n-- journal\n{}\n",
            self.name,
            tail(&fs::read_to_string(self.console()).unwrap_or_default()),
            said(&["systemctl", "--failed", "--no-legend", "--plain"]),
            said(&[
                "journalctl",
                "--no-pager",
                "--output=short-precise",
                "--lines=60"
            ]),
        )
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.guard.is_some() {
            self.switch_off().ok();
        }
        // Left by systemd-nspawn where the container cannot be told to it.
        fs::remove_dir(Path::new("/run/systemd/nspawn/propagate").join(&self.machine)).ok();
    }
}

/// Removes a control group with all below it; they are folders alone.
fn remove_tree(group: &Path) -> anyhow::Result<()> {
    if !group.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    Ok(fs::remove_dir(group)?)
}
