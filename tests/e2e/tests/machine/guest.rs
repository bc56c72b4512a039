//! One cluster inside the machine: coordinator and agent as `install` and `join` leave them on a
//! host, and a person at the same host.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tidegate_e2e::support;
use tidegate_harness::cluster::{PATIENCE, number, programs, text};
use tidegate_harness::{Client, Machine, Output, archive, poll};

/// The unit of the agent.
const AGENT: &str = "tidegate-agent.service";
/// The unit of the coordinator.
const COORDINATOR: &str = "tidegate-coordinator.service";
/// The coordinator's folder.
pub const COORDINATOR_DIR: &str = "/var/lib/tidegate-coordinator";
/// The agent's name.
const NAME: &str = "machine";

/// Starts the agent again whenever it ends, in a group below the unit's, as DelegateSubgroup= and the
/// supervisors of containers do.
const SUPERVISOR: &str = "#!/bin/sh
own=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)
mkdir -p \"$own/agent\"
echo $$ >\"$own/agent/cgroup.procs\"
while :; do
    /usr/bin/tidegate-agent run --config /var/lib/tidegate-agent/agent.toml
    sleep 0.5
done
";

/// See the module.
pub struct Guest {
    machine: Machine,
}

impl Client for Guest {
    fn tidegate(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let context = format!("TIDEGATE_CONTEXT={COORDINATOR_DIR}/admin");
        let words = [context.as_str(), "TIDEGATE_OUTPUT=json", "tidegate"];
        self.machine.run(&[&words, arguments].concat())
    }

    fn dir(&self) -> &Path {
        self.machine.dir()
    }

    fn program(&self) -> anyhow::Result<PathBuf> {
        Ok(PathBuf::from("/usr/bin/tidegate"))
    }
}

impl Guest {
    /// Boots the machine, installs the programs and founds the cluster.
    ///
    /// # Errors
    /// What did not work.
    pub fn found() -> anyhow::Result<Self> {
        let guest = Self {
            machine: Machine::boot()?,
        };
        guest.furnish().with_context(|| guest.machine.tail())?;
        Ok(guest)
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The machine, to be switched.
    pub fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    fn furnish(&self) -> anyhow::Result<()> {
        let built = programs()?;
        for name in ["tidegate-coordinator", "tidegate-agent", "tidegate"] {
            let small = self.dir().join(name);
            // Its symbols are most of a debug build, and are not needed here.
            let stripped = Command::new("strip")
                .arg("-o")
                .arg(&small)
                .arg(built.join(name))
                .status()
                .context("strip cannot be started; apt-get install -y binutils")?;
            ensure!(stripped.success(), "strip {name}: {stripped}");
            self.machine
                .copy_in(&small, &format!("/usr/bin/{name}"), 0o755)?;
            std::fs::remove_file(small)?;
        }
        let begin = format!(
            "set -e\n\
             tidegate-coordinator install\n\
             tidegate-coordinator init --dir {COORDINATOR_DIR} --name {NAME} --trust-domain example.com \
             --listen 127.0.0.1\n\
             systemctl start {COORDINATOR}\n\
             tidegate-agent install\n"
        );
        self.machine.shell(&begin)?.ok()?;
        poll::until("a leader", PATIENCE, || {
            self.tidegate(&["cluster", "status"])?.json()
        })?;
        let made = self
            .tidegate(&["token", "create", "agent", "--name", NAME])?
            .json()?;
        let token = format!("TIDEGATE_AGENT_TOKEN={}", text(&made, "token"));
        let join = [
            token.as_str(),
            "tidegate-agent",
            "join",
            "--server",
            "127.0.0.1:7443",
        ];
        self.machine.run(&join)?.ok()?;
        self.machine.run(&["systemctl", "start", AGENT])?.ok()?;
        self.connected()
    }

    /// Waits until the agent is connected.
    ///
    /// # Errors
    /// Not in time.
    pub fn connected(&self) -> anyhow::Result<()> {
        poll::until("the agent", PATIENCE, || {
            let status = self.tidegate(&["cluster", "status"])?.json()?;
            poll::holds(number(&status, "agentsConnected") == 1, || {
                status.to_string()
            })
        })
    }

    /// Starts the agent's unit again with other lines of the section Service.
    ///
    /// # Errors
    /// It does not start, or does not connect.
    pub fn change_agent(&self, lines: &[&str]) -> anyhow::Result<()> {
        let text = format!("[Service]\n{}\n", lines.join("\n"));
        let place = format!("/etc/systemd/system/{AGENT}.d/test.conf");
        self.machine.write(&place, text.as_bytes(), 0o644)?;
        self.machine.run(&["systemctl", "daemon-reload"])?.ok()?;
        self.machine.run(&["systemctl", "restart", AGENT])?.ok()?;
        self.connected()
    }

    /// Has the agent run under a supervisor, with the executor `process`.
    ///
    /// # Errors
    /// It does not start, or does not connect.
    pub fn supervise(&self) -> anyhow::Result<()> {
        let place = "/usr/local/sbin/supervisor";
        self.machine.write(place, SUPERVISOR.as_bytes(), 0o755)?;
        self.change_agent(&[
            "Environment=TIDEGATE_AGENT_EXECUTOR=process",
            "Delegate=yes",
            "ProtectControlGroups=no",
            "Type=exec",
            "NotifyAccess=none",
            "WatchdogSec=0",
            "ExecStart=",
            &format!("ExecStart={place}"),
        ])
    }

    /// The process of the agent.
    ///
    /// # Errors
    /// It does not run.
    pub fn agent(&self) -> anyhow::Result<u32> {
        let find = ["pgrep", "-f", "^/usr/bin/tidegate-agent run "];
        let found = self.machine.run(&find)?.ok()?.stdout;
        Ok(found.trim().parse()?)
    }

    /// Publishes a release of the shop that runs a script, with limits.
    ///
    /// # Errors
    /// The cluster's refusal.
    pub fn publish(&self, version: &str, script: &str, limits: &str) -> anyhow::Result<()> {
        let told = format!("{{\"version\": \"{version}\", \"error_rate\": 0.0}}");
        let script = format!("#!/bin/sh\n{script}\n");
        let files = [("app.json", told.as_str(), false), ("start", &script, true)];
        let file = self.dir().join(format!("shop-{version}.tar.gz"));
        archive::write(&file, &files)?;
        let run = self.dir().join(format!("run-{version}.yaml"));
        std::fs::write(&run, format!("command: ./start\nlimits: {limits}\n"))?;
        let (asset, run) = (file.display().to_string(), run.display().to_string());
        let arguments = [
            "release",
            "create",
            "shop",
            version,
            "--asset",
            &asset,
            "--run-file",
            &run,
        ];
        self.tidegate(&arguments)?.ok()?;
        Ok(())
    }

    /// Publishes a release, deploys it at once and gives its end, which must be this one.
    ///
    /// # Errors
    /// Another end, or none in time.
    pub fn deploy(
        &self,
        (version, script): (&str, &str),
        limits: &str,
        wanted: &str,
    ) -> anyhow::Result<Value> {
        self.publish(version, script, limits)?;
        let id = support::begin(self, version, "at-once", &[])?;
        support::ends(self, &id, wanted).with_context(|| version.to_owned())
    }

    /// The one healthy instance of a deployment.
    ///
    /// # Errors
    /// There is none in time.
    pub fn instance(&self, id: &str) -> anyhow::Result<Value> {
        poll::until("a healthy instance", PATIENCE, || {
            let found = support::get(self, id)?;
            let instance = found["participants"][0]["instances"][0].clone();
            let healthy = text(&instance, "state") == "healthy" && number(&instance, "pid") > 0;
            poll::holds(healthy, || found.to_string())?;
            Ok(instance)
        })
    }

    /// The control group of a process, as a folder.
    ///
    /// # Errors
    /// It does not run.
    pub fn group(&self, pid: u64) -> anyhow::Result<String> {
        let read = self.machine.run(&["cat", &format!("/proc/{pid}/cgroup")])?;
        let line = read.ok()?.stdout;
        let path = line
            .trim()
            .strip_prefix("0::")
            .context("no control group")?;
        Ok(format!("/sys/fs/cgroup{path}"))
    }

    /// A file of the machine, without the end of its last line.
    ///
    /// # Errors
    /// It is not there.
    pub fn read(&self, path: &str) -> anyhow::Result<String> {
        let read = self.machine.run(&["cat", path])?.ok()?.stdout;
        Ok(read.trim_end().to_owned())
    }
}
