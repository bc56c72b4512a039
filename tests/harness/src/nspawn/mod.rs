//! Hosts with a real systemd: each a small Debian that systemd-nspawn boots over a layer of its own,
//! with its own network, joined by a bridge. They are installed, rebooted and switched off like machines.
//!
//! Nothing here has a name that two runs could share: the network belongs to a process, the mounts to
//! namespaces, and the control groups carry the number of the test's process. If the test ends, however
//! that is, its hosts are switched off and their mounts and networks go with them.
//!
//! The thread that boots hosts enters their network and stays in it until they are dropped, and so do
//! threads and processes that it starts: it stands for the machine of the person who uses the cluster. What is
//! shared by all hosts is made by `base`; `needs` says why there can be none.

pub(crate) mod base;
mod host;
pub(crate) mod needs;

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use host::Host;
pub use needs::PATH;

use crate::poll;

/// A boot, or an end, may take so long on a busy machine.
pub const BOOT: Duration = Duration::from_secs(90);

/// The bridge that joins the hosts.
const BRIDGE: &str = "br0";

/// Counts the sets of hosts of this process.
static SETS: AtomicU32 = AtomicU32::new(0);

/// See the module.
#[derive(Debug)]
pub struct Hosts {
    // Before the network, which they use until they are off.
    hosts: Vec<Host>,
    _network: Network,
    folder: Option<tempfile::TempDir>,
    dir: PathBuf,
}

impl Hosts {
    /// Boots so many hosts, `h1` and on; comes back when systemd has started all of them.
    ///
    /// # Errors
    /// The machine may not, all that is missing is named; or what did not start, with its console.
    pub fn boot(count: u8) -> anyhow::Result<Self> {
        let groups = needs::check()?;
        let base = base::folder()?;
        let folder = tempfile::Builder::new()
            .prefix("tidegate-hosts-")
            .tempdir()?;
        let dir = folder.path().to_owned();
        let network = Network::new()?;
        let mut all = Self {
            hosts: Vec::new(),
            _network: network,
            folder: Some(folder),
            dir,
        };
        let run = format!(
            "{}-{}",
            std::process::id(),
            SETS.fetch_add(1, Ordering::Relaxed)
        );
        for number in 1..=count {
            let host = Host::plan(&all.dir, &base, &groups, &run, number, count)?;
            all.hosts.push(host);
        }
        for host in &mut all.hosts {
            host.switch_on()?;
        }
        for host in &all.hosts {
            host.is_up().with_context(|| all.tails())?;
        }
        Ok(all)
    }

    /// A host; from 0.
    pub fn host(&self, position: usize) -> &Host {
        &self.hosts[position]
    }

    /// A host that is to be switched; from 0.
    pub fn host_mut(&mut self, position: usize) -> &mut Host {
        &mut self.hosts[position]
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter()
    }

    /// A folder of this machine for what the test makes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What each host says at its end: console, failed units, the last lines of the journal.
    pub fn tails(&self) -> String {
        self.hosts.iter().map(Host::tail).collect()
    }

    /// Keeps the folder, with everything that the hosts wrote, after the end; says where it is.
    pub fn keep(&mut self) -> PathBuf {
        match self.folder.take() {
            Some(folder) => folder.keep(),
            None => self.dir.clone(),
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &self.hosts {
            host.cut_off();
        }
        self.hosts.clear();
        if std::thread::panicking() {
            self.keep();
        }
    }
}

/// The address of a host; from 1.
fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, number))
}

/// A network namespace that a process holds until its standard input is closed, and that the
/// calling thread enters.
#[derive(Debug)]
struct Network {
    holder: Child,
    home: File,
    thread: ThreadId,
}

impl Network {
    fn new() -> anyhow::Result<Self> {
        let own = "/proc/thread-self/ns/net";
        let home = File::open(own).context(own)?;
        let before = fs::read_link(own)?;
        let holder = Command::new("unshare")
            .args(["--net", "cat"])
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("unshare cannot be started")?;
        let network = Self {
            holder,
            home,
            thread: std::thread::current().id(),
        };
        let place = format!("/proc/{}/ns/net", network.holder.id());
        poll::until("a network of its own", BOOT, || {
            let now = fs::read_link(&place)?;
            poll::holds(now != before, || "still the machine's".to_owned())
        })?;
        let there = File::open(&place).context(place)?;
        enter(&there)?;
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["address", "add", "10.77.0.254/24", "dev", BRIDGE])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if std::thread::current().id() == self.thread {
            enter(&self.home).ok();
        }
        // It ends at the end of its input; an error means that it has ended already.
        drop(self.holder.stdin.take());
        self.holder.wait().ok();
    }
}

fn enter(network: &File) -> anyhow::Result<()> {
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .context("the network cannot be entered")
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let done = Command::new("ip")
        .args(arguments)
        .env("PATH", PATH)
        .output()?;
    ensure!(
        done.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

/// The address of the test itself, among the hosts.
pub const OWN_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 254));
