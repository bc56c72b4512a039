//! What fault tests need of a cluster: signals to single processes, restarts, every address.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{Cluster, Output, PATIENCE, Process, number, text};
use crate::poll;

/// Where a coordinator listens, each `IP:PORT`.
#[derive(Debug, Clone)]
pub struct Listeners {
    /// People and agents.
    pub control: String,
    /// Other coordinators.
    pub peer: String,
    /// Blobs and health.
    pub http: String,
    /// Newcomers.
    pub enroll: String,
}

/// A process of this machine that mentions a folder on its command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Its number.
    pub pid: u32,
    /// Its command line, parts joined by spaces.
    pub command: String,
}

/// Sends a signal to one process.
///
/// # Errors
/// It is not there.
pub fn signal(pid: u32, signal: Signal) -> anyhow::Result<()> {
    kill_process(id(pid)?, signal).with_context(|| format!("process {pid}"))
}

fn id(pid: u32) -> anyhow::Result<Pid> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    raw.context("no process id")
}

/// Processes whose command line mentions a folder, by number; those that have ended are left out.
pub fn processes_of(folder: &Path) -> Vec<Found> {
    // With a slash, so that a1 does not mean a10.
    let wanted = format!("{}/", folder.display());
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut found: Vec<Found> = entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let bytes = fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&bytes).replace('\0', " ");
            command.contains(&wanted).then_some(Found { pid, command })
        })
        .collect();
    found.sort();
    found
}

/// Somebody who uses the cluster while it is being changed.
#[derive(Debug, Clone)]
pub struct Person {
    program: PathBuf,
    dir: PathBuf,
    context: String,
}

impl Person {
    /// Runs `tidegate`, with JSON as output.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn tidegate(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = Command::new(&self.program)
            .args(arguments)
            .env("TIDEGATE_CONTEXT", &self.context)
            .env("TIDEGATE_CONFIG_DIR", &self.dir)
            .env("TIDEGATE_OUTPUT", "json")
            .stdin(Stdio::null())
            .output()
            .context("tidegate cannot be started")?;
        Ok(Output {
            command: format!("tidegate {}", arguments.join(" ")),
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

impl Cluster {
    /// The person whom the harness logged in.
    pub fn person(&self) -> Person {
        Person {
            program: self.programs.join("tidegate"),
            dir: self.dir.clone(),
            context: self.context.clone(),
        }
    }

    /// The same person, who knows this coordinator alone: whatever is asked goes through it. From 0.
    ///
    /// # Errors
    /// The person's context cannot be copied.
    pub fn person_at(&self, position: usize) -> anyhow::Result<Person> {
        let own = self.dir.join("contexts").join(&self.context);
        let folder = self.dir.join(format!("at-{position}"));
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&own).with_context(|| own.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().context("a file has a name")?;
            // Keeps the mode: a private key that others may read is refused.
            fs::copy(&path, folder.join(name))?;
        }
        let path = folder.join("context.toml");
        let text = fs::read_to_string(&path)?;
        let (before, rest) = text.split_once("control = [").context("no addresses")?;
        let (_, after) = rest.split_once(']').context("no end of addresses")?;
        let address = self.listeners(position).control;
        // A program that knows but one or two addresses looks for more.
        let same = [
            format!("\"{address}\""),
            format!("\"{address}\""),
            format!("\"{address}\""),
        ];
        fs::write(
            &path,
            format!("{before}control = [{}]{after}", same.join(", ")),
        )?;
        Ok(Person {
            context: folder.display().to_string(),
            ..self.person()
        })
    }

    /// Gives the cluster copies of the programs, which [`Self::replace_agent_program`] may replace;
    /// what runs already goes on from where it was started.
    ///
    /// # Errors
    /// They cannot be copied.
    pub fn own_programs(&mut self) -> anyhow::Result<()> {
        let folder = self.dir.join("programs");
        fs::create_dir_all(&folder)?;
        for name in ["tidegate", "tidegate-coordinator", "tidegate-agent"] {
            fs::copy(self.programs.join(name), folder.join(name))?;
        }
        self.programs = folder;
        Ok(())
    }

    /// Puts another build of the agent in the place of the present one, as a package manager does:
    /// beside it, then renamed. It is the same code in another file.
    ///
    /// # Errors
    /// The cluster has no programs of its own, or they cannot be written.
    pub fn replace_agent_program(&self) -> anyhow::Result<()> {
        ensure!(self.programs.starts_with(&self.dir), "not our own programs");
        let (path, beside) = (
            self.programs.join("tidegate-agent"),
            self.programs.join("tidegate-agent.new"),
        );
        fs::copy(&path, &beside)?;
        // Whatever stands behind the end of an executable is ignored.
        let mut file = fs::File::options().append(true).open(&beside)?;
        file.write_all(b"another build")?;
        drop(file);
        fs::rename(&beside, &path)?;
        Ok(())
    }

    /// Waits until every member leads or follows.
    ///
    /// # Errors
    /// One is missing for too long.
    pub fn all_up(&self) -> anyhow::Result<()> {
        poll::until("every member up", PATIENCE, || {
            let status = self.tidegate(&["cluster", "status"])?.json()?;
            let members = status["members"].as_array().cloned().unwrap_or_default();
            let up = members
                .iter()
                .filter(|m| ["leader", "follower"].contains(&text(m, "role")));
            poll::holds(up.count() == self.coordinators.len(), || status.to_string())
        })
    }

    /// Where a coordinator listens; from 0.
    pub fn listeners(&self, position: usize) -> Listeners {
        let flags = &self.coordinators[position].flags;
        let of = |flag: &str| {
            let at = flags.iter().position(|found| found == flag);
            at.and_then(|at| flags.get(at + 1))
                .cloned()
                .unwrap_or_default()
        };
        Listeners {
            control: of("--control"),
            peer: of("--peer"),
            http: of("--http"),
            enroll: of("--enroll"),
        }
    }

    /// The data folder of a coordinator; from 0.
    pub fn coordinator_dir(&self, position: usize) -> &Path {
        &self.coordinators[position].folder
    }

    /// The process of an agent; from 0.
    ///
    /// # Errors
    /// It does not run.
    pub fn agent_pid(&self, position: usize) -> anyhow::Result<u32> {
        let process = self.agents[position].process.as_ref();
        Ok(process.context("it does not run")?.id())
    }

    /// What an agent started: its proxy and instances, not itself.
    pub fn children_of_agent(&self, position: usize) -> Vec<Found> {
        let own = self.agent_pid(position).ok();
        let mut found = processes_of(&self.agents[position].folder);
        found.retain(|process| Some(process.pid) != own);
        found
    }

    /// Sends a signal to an agent alone; from 0.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal_agent(&self, position: usize, signal: Signal) -> anyhow::Result<()> {
        let process = self.agents[position].process.as_ref();
        process.context("it does not run")?.signal(signal)
    }

    /// Ends an agent with everything in its process group, as `kill -9` of the group does.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_agent_group(&mut self, position: usize) -> anyhow::Result<()> {
        let group = id(self.agent_pid(position)?)?;
        kill_process_group(group, Signal::KILL)?;
        self.reap_agent(position).map(drop)
    }

    /// Ends an agent with SIGTERM; what it started goes on.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub fn stop_agent(&mut self, position: usize) -> anyhow::Result<ExitStatus> {
        self.signal_agent(position, Signal::TERM)?;
        self.reap_agent(position)
    }

    fn reap_agent(&mut self, position: usize) -> anyhow::Result<ExitStatus> {
        let slot = &mut self.agents[position].process;
        let process = slot.as_mut().context("it does not run")?;
        let status = process.wait(PATIENCE)?;
        if let Some(process) = slot.take() {
            process.forget();
        }
        Ok(status)
    }

    /// Ends a coordinator with SIGTERM; from 0.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub fn stop_coordinator(&mut self, position: usize) -> anyhow::Result<ExitStatus> {
        let process = self.coordinators[position].process.take();
        let mut process: Process = process.context("it does not run")?;
        process.signal(Signal::TERM)?;
        process.wait(PATIENCE)
    }

    /// Waits until every member is up and has applied the same index, which is what the leader
    /// has committed.
    ///
    /// # Errors
    /// They do not agree in time.
    pub fn agree(&self) -> anyhow::Result<u64> {
        poll::until("all members at one index", PATIENCE, || {
            let status = self.tidegate(&["cluster", "status"])?.json()?;
            let members = status["members"].as_array().cloned().unwrap_or_default();
            let applied: Vec<u64> = members.iter().map(|m| number(m, "applied")).collect();
            let up = members
                .iter()
                .all(|m| ["leader", "follower"].contains(&text(m, "role")));
            let commit = number(&status, "commit");
            let all = applied.iter().all(|applied| *applied == commit);
            let whole = applied.len() == self.coordinators.len() && commit > 0;
            poll::holds(up && all && whole, || status.to_string())?;
            Ok(commit)
        })
    }
}
