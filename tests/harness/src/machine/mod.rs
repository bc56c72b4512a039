//! A machine with a kernel of its own: User-Mode Linux with the hosts' small Debian on its disk. What
//! hosts ([`crate::nspawn`]) cannot show is shown here: control groups with all controllers, and a power
//! cut, after which only what was synced is on the disk.
//!
//! It has no network. The test types commands on its serial line ([`Machine::run`]) and shares a folder
//! with it, which has the same path inside. All its processes live in a process namespace of their own
//! that ends with the line, so nothing is left whatever becomes of the test.

mod image;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::cluster::Output;
use crate::nspawn::{BOOT, PATH, needs};
use crate::poll;
use crate::process::tail;

const GUARD: &str = include_str!("guard.sh");

/// Programs with the packages that bring them.
const PROGRAMS: &[(&str, &str)] = &[
    ("linux.uml", "user-mode-linux"),
    ("debootstrap", "debootstrap"),
    ("mkfs.ext4", "e2fsprogs"),
    ("unshare", "util-linux"),
];

/// Its memory in MiB; taken from this machine as it is used.
const MEMORY: u64 = 640;

/// A command in it may take so long: it is slow, and this machine may be busy.
const COMMAND: Duration = Duration::from_secs(180);

/// See the module.
#[derive(Debug)]
pub struct Machine {
    dir: PathBuf,
    image: PathBuf,
    power: Option<Power>,
    folder: Option<tempfile::TempDir>,
}

/// What there is while it is on.
#[derive(Debug)]
struct Power {
    guard: Child,
    line: Mutex<Line>,
}

#[derive(Debug)]
struct Line {
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// Read and not used yet.
    held: Vec<u8>,
    commands: u64,
}

impl Machine {
    /// Boots one; comes back when systemd has started everything.
    ///
    /// # Errors
    /// This machine may not, all that is missing is named; or the end of its console.
    pub fn boot() -> anyhow::Result<Self> {
        needs::programs("a machine with a kernel of its own", PROGRAMS)?;
        let image = image::file()?;
        let folder = tempfile::Builder::new()
            .prefix("tidegate-machine-")
            .tempdir()?;
        let mut machine = Self {
            dir: folder.path().to_owned(),
            image,
            power: None,
            folder: Some(folder),
        };
        fs::create_dir(machine.dir.join("hand"))?;
        fs::create_dir(machine.dir.join("kernel"))?;
        fs::write(machine.dir.join("guard.sh"), GUARD)?;
        machine.switch_on()?;
        Ok(machine)
    }

    /// The folder of this machine that it sees under the same path; it cannot write there.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Switches it on and waits until systemd has started everything.
    ///
    /// # Errors
    /// It is on already, or does not come up in time.
    pub fn switch_on(&mut self) -> anyhow::Result<()> {
        ensure!(self.power.is_none(), "it is on already");
        self.power = Some(self.begin()?);
        self.line(|line| line.expect("ready\n", BOOT))
            .and_then(|_| {
                poll::until("everything to be started", BOOT, || {
                    let state = self.run(&["systemctl", "is-system-running"])?;
                    let up = ["running", "degraded"].contains(&state.stdout.trim());
                    poll::holds(up, || state.to_string())
                })
            })
            .with_context(|| tail(&self.console()))
    }

    fn begin(&self) -> anyhow::Result<Power> {
        let console = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("console"))?;
        let place = |name: &str| self.dir.join(name).display().to_string();
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh"])
            .args([place("guard.sh"), place("kernel"), "linux.uml".to_owned()])
            .arg(format!("ubd0={},{}", place("disk"), self.image.display()))
            .args(["root=/dev/ubda", "rw", "quiet", "selinux=0"])
            .arg(format!("mem={MEMORY}M"))
            .args(["con=null", "con0=null,fd:2", "ssl0=fd:0,fd:1"])
            .arg(format!("uml_dir={}", place("kernel")))
            .args([
                "umid=machine",
                &format!("tidegate_dir={}", self.dir.display()),
            ])
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(console);
        // Its memory is a file there, or where it can grow.
        let shared = rustix::fs::statvfs("/dev/shm");
        if !shared.is_ok_and(|held| held.f_bavail * held.f_frsize > MEMORY << 20) {
            command.env("TMPDIR", self.dir.join("kernel"));
        }
        let mut guard = command.spawn().context("unshare cannot be started")?;
        let input = guard.stdin.take().context("no line")?;
        let mut output = guard.stdout.take().context("no line")?;
        let (sender, receiver) = channel();
        // Ends with the line.
        std::thread::spawn(move || {
            let mut buffer = vec![0; 16_384];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Power {
            guard,
            line: Mutex::new(Line {
                input,
                output: receiver,
                held: Vec::new(),
                commands: 0,
            }),
        })
    }

    fn line<T>(&self, act: impl FnOnce(&mut Line) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let power = self.power.as_ref().context("it is off")?;
        act(&mut power.line.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a program in it to its end, as root. `KEY=value` before it sets its environment.
    ///
    /// # Errors
    /// It is off, or does not answer.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let quoted: Vec<String> = arguments
            .iter()
            .map(|word| format!("'{}'", word.replace('\'', "'\\''")))
            .collect();
        self.perform(
            &format!("exec env {}\n", quoted.join(" ")),
            &arguments.join(" "),
        )
    }

    /// Runs lines of shell in it.
    ///
    /// # Errors
    /// It is off, or does not answer.
    pub fn shell(&self, lines: &str) -> anyhow::Result<Output> {
        self.perform(lines, lines)
    }

    fn perform(&self, script: &str, told: &str) -> anyhow::Result<Output> {
        self.line(|line| {
            line.commands += 1;
            // Of its own name: the machine may hold what an earlier one of the name said.
            let number = format!("{}-{}", line.commands, std::process::id());
            fs::write(self.dir.join("hand").join(&number), script)?;
            line.input.write_all(format!("{number}\n").as_bytes())?;
            line.expect(&format!("{number} "), COMMAND)
                .with_context(|| told.to_owned())?;
            let head = line.expect("\n", COMMAND)?;
            let head = String::from_utf8_lossy(&head).into_owned();
            let numbers: Vec<usize> = head
                .split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            let [status, out, err] = numbers[..] else {
                bail!("no answer: {head}");
            };
            let stdout = line.take(out, COMMAND)?;
            let stderr = line.take(err, COMMAND)?;
            Ok(Output {
                command: told.to_owned(),
                status: i32::try_from(status).ok(),
                stdout: String::from_utf8_lossy(&stdout).into_owned(),
                stderr: String::from_utf8_lossy(&stderr).into_owned(),
            })
        })
    }

    /// Copies a file of this machine into it; folders above it are made.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn copy_in(&self, from: &Path, to: &str, mode: u32) -> anyhow::Result<()> {
        let name = from.file_name().context("a file without a name")?;
        let shared = self.dir.join("hand").join(name);
        fs::copy(from, &shared).with_context(|| from.display().to_string())?;
        self.install(&shared, to, mode)
    }

    /// Writes a file in it; folders above it are made.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, to: &str, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
        let number = self.line(|line| Ok(line.commands))?;
        let shared = self
            .dir
            .join(format!("hand/file-{number}-{}", std::process::id()));
        fs::write(&shared, bytes)?;
        self.install(&shared, to, mode)
    }

    fn install(&self, shared: &Path, to: &str, mode: u32) -> anyhow::Result<()> {
        let (from, mode) = (shared.display().to_string(), format!("{mode:o}"));
        self.run(&["install", "-D", "-m", &mode, &from, to])?.ok()?;
        Ok(fs::remove_file(shared)?)
    }

    /// Takes its power away: not one of its processes does anything any more, and what it had not
    /// synced is not on its disk.
    ///
    /// # Errors
    /// It is off.
    pub fn cut_power(&mut self) -> anyhow::Result<()> {
        let Power { mut guard, line } = self.power.take().context("it is off")?;
        drop(line);
        let ended = poll::until("the end of the machine", BOOT, || {
            guard.try_wait()?.context("it still runs")
        });
        if ended.is_err() {
            // Its first process dies with it, and so does everything.
            guard.kill().ok();
            guard.wait().ok();
        }
        ended.map(drop)
    }

    fn console(&self) -> String {
        fs::read_to_string(self.dir.join("console")).unwrap_or_default()
    }

    /// Console and the last lines of the journal.
    pub fn tail(&self) -> String {
        let said = |arguments: &[&str]| match self.run(arguments) {
            Ok(output) => output.stdout,
            Err(error) => format!("{error:#}"),
        };
        format!(
            "-- console\n{}\n-- failed units\n{}\n-- journal\n{}\n",
            tail(&self.console()),
            said(&["systemctl", "--failed", "--no-legend", "--plain"]),
            said(&["journalctl", "--no-pager", "--lines=80"]),
        )
    }

    /// Keeps the folder after the end; says where it is.
    pub fn keep(&mut self) -> PathBuf {
        match self.folder.take() {
            Some(folder) => folder.keep(),
            None => self.dir.clone(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut_power().ok();
    }
}

impl Line {
    /// Reads up to the end of a mark; gives what came before it.
    fn expect(&mut self, mark: &str, within: Duration) -> anyhow::Result<Vec<u8>> {
        let deadline = Instant::now() + within;
        let mark = mark.as_bytes();
        loop {
            let found = self.held.windows(mark.len()).position(|seen| seen == mark);
            if let Some(start) = found {
                let rest = self.held.split_off(start + mark.len());
                let mut before = std::mem::replace(&mut self.held, rest);
                before.truncate(start);
                return Ok(before);
            }
            self.more(deadline)?;
        }
    }

    fn take(&mut self, count: usize, within: Duration) -> anyhow::Result<Vec<u8>> {
        let deadline = Instant::now() + within;
        while self.held.len() < count {
            self.more(deadline)?;
        }
        let rest = self.held.split_off(count);
        Ok(std::mem::replace(&mut self.held, rest))
    }

    fn more(&mut self, deadline: Instant) -> anyhow::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.output.recv_timeout(left) {
            Ok(bytes) => self.held.extend(bytes),
            Err(RecvTimeoutError::Timeout) => {
                let held = String::from_utf8_lossy(&self.held).into_owned();
                bail!("no answer in time; so far: {}", tail(&held));
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the machine has ended"),
        }
        Ok(())
    }
}
