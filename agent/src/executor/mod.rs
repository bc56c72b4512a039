//! Executors: how a workload runs, behind one small trait.
//!
//! An executor is told what to do and answers with events; it decides nothing. Every task is
//! idempotent: a start of an instance that runs in that incarnation starts nothing, a stop of one
//! that is gone is complete at once. Long work returns at once and shows up as an event and in the
//! next [`Executor::observe`]. All executors pass the conformance suite.

pub mod cgroup;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod limits;
pub mod output;
pub mod prepared;
pub mod process;
pub mod procfs;
pub mod systemd;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use tidegate_agent_core::observed::Event;
use tidegate_agent_core::place::{InstanceKey, PlaceKey};
use tidegate_shared::id::{Name, Version};
use tidegate_shared::secret::Secret;
use tidegate_shared::spec::{FileSpec, Limits, RunSpec};
use tokio::sync::mpsc::UnboundedSender;

use crate::ledger::ProcessId;

/// Where events go. The receiver is the reconcile loop; it never refuses one.
pub type Events = UnboundedSender<Event>;

/// Runs workloads.
pub trait Executor: Send + Sync {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// The instances whose process it holds.
    fn observe(&self) -> Vec<Running>;

    /// Does something; the answer is an event.
    fn perform(&self, task: Task);

    /// Why this host cannot hold an instance to a limit, and what to do; none: it can. Nothing is
    /// changed.
    fn limit_trouble(&self, limits: &Limits) -> Option<String>;

    /// What went wrong lately without changing what runs, such as a failed stop hook.
    fn troubles(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What an executor can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Its word in facts.
    pub name: &'static str,
    /// Workloads outlive the agent's process and can be adopted.
    pub survives_agent: bool,
    /// Where what they print can be read.
    pub output: OutputPlace,
}

/// Where what instances print goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputPlace {
    /// Into files in the instances' folders; see [`output`].
    Files,
    /// Into the journal; see [`systemd::journal`].
    Journal,
}

/// An instance that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Which.
    pub instance: InstanceKey,
    /// Of which start.
    pub incarnation: u32,
    /// Its process.
    pub process: ProcessId,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Start; answered by `Started` or `StartFailed`, later by `Exited`.
    Start(Box<Launch>),
    /// Take over a process that runs already; answered by `Exited` when it ends.
    Adopt(Running),
    /// Stop; answered by `Stopped`.
    Stop {
        /// Which instance.
        instance: InstanceKey,
        /// Of which start.
        incarnation: u32,
        /// What it was started with, for what is to be done around the stop.
        launch: Option<Box<Launch>>,
    },
    /// Remove the working files of a place; answered by `Removed`.
    Remove(PlaceKey),
}

/// Everything that a start needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Which instance.
    pub instance: InstanceKey,
    /// Of which start.
    pub incarnation: u32,
    /// Its own port; 0: none.
    pub port: u16,
    /// Where it listens.
    pub address: IpAddr,
    /// The agent's name.
    pub agent: Name,
    /// The release.
    pub release: Version,
    /// Where the release is unpacked: the working folder of the process.
    pub release_dir: PathBuf,
    /// What to run.
    pub run: RunSpec,
    /// Parameters that are secrets or files.
    pub parameters: Vec<Parameter>,
}

/// A parameter that is a secret or a file, with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// The environment variable: of the value, or of the file's path.
    pub variable: String,
    /// The value; none: it has not come to this host yet.
    pub value: Option<Secret>,
    /// It may not be seen.
    pub secret: bool,
    /// None: it is an environment variable.
    pub file: Option<FileSpec>,
}

/// The folder of an instance's own files.
pub fn instance_dir(instances: &std::path::Path, key: &InstanceKey) -> PathBuf {
    instances
        .join(key.place.folder())
        .join(key.ordinal.to_string())
}

impl Launch {
    /// The environment of the process that may be seen: a clean base, the parameters, what the
    /// platform says about the instance. [`secret_environment`](Self::secret_environment) has the
    /// rest.
    pub fn environment(&self, instance_dir: &std::path::Path) -> BTreeMap<String, String> {
        let mut environment = BTreeMap::new();
        for inherited in ["PATH", "HOME", "LANG", "TZ"] {
            if let Ok(value) = std::env::var(inherited) {
                environment.insert(inherited.to_owned(), value);
            }
        }
        for (name, value) in &self.run.env {
            environment.insert(name.clone(), self.substitute(value, instance_dir));
        }
        for parameter in &self.parameters {
            if let Some(file) = &parameter.file {
                let path = instance_dir.join(&file.path).display().to_string();
                environment.insert(parameter.variable.clone(), path);
            }
        }
        let place = &self.instance.place;
        let told = [
            ("TIDEGATE_SCOPE", place.scope.to_string()),
            ("TIDEGATE_DEPLOYMENT", place.deployment.to_string()),
            ("TIDEGATE_INSTANCE", self.instance.id()),
            ("TIDEGATE_RELEASE", self.release.to_string()),
            ("TIDEGATE_AGENT", self.agent.to_string()),
            (
                "TIDEGATE_RELEASE_DIR",
                self.release_dir.display().to_string(),
            ),
            ("TIDEGATE_INSTANCE_DIR", instance_dir.display().to_string()),
            ("TIDEGATE_ADDRESS", self.address.to_string()),
        ];
        for (name, value) in told {
            environment.insert(name.to_owned(), value);
        }
        if self.port > 0 {
            environment.insert("PORT".to_owned(), self.port.to_string());
        }
        environment
    }

    /// The variables that hold secrets, verbatim. They are not for command lines, for unit files or
    /// for anything else that others may read.
    pub fn secret_environment(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.parameters
            .iter()
            .filter(|parameter| parameter.file.is_none())
            .filter_map(|p| Some((p.variable.as_str(), p.value.as_ref()?)))
    }

    /// A text without the values of the instance's secrets.
    pub fn mask(&self, text: &str) -> String {
        let secrets = self.parameters.iter().filter(|parameter| parameter.secret);
        secrets
            .filter_map(|parameter| parameter.value.as_ref())
            .fold(text.to_owned(), |text, secret| secret.mask(&text))
    }

    /// Puts the instance's own values into a text; see `RunSpec`.
    pub fn substitute(&self, text: &str, instance_dir: &std::path::Path) -> String {
        text.replace("${PORT}", &self.port.to_string())
            .replace("${RELEASE_DIR}", &self.release_dir.display().to_string())
            .replace("${INSTANCE_DIR}", &instance_dir.display().to_string())
            .replace("${INSTANCE}", &self.instance.id())
    }

    /// The program: absolute as it is; with a slash inside the release; a bare name inside the
    /// release if it is there, else found through `PATH`.
    pub fn program(&self, command: &str, instance_dir: &std::path::Path) -> PathBuf {
        let command = self.substitute(command, instance_dir);
        let inside = self.release_dir.join(&command);
        if command.starts_with('/') {
            PathBuf::from(command)
        } else if command.contains('/') || inside.is_file() {
            inside
        } else {
            PathBuf::from(command)
        }
    }
}
