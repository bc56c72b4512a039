//! Control groups of limited instances under the process executor: where they lie, which is whose, how
//! one ends, and whether the kernel ended it for want of memory. What the limits are stands in
//! [`super::limits`].
//!
//! They lie beside the agent's own group, never below it. A group that hands controllers down may hold
//! no process itself, so where the agent's group would have to, whoever starts the agent there could not
//! do so again while an instance runs: systemd ends such a start with 219/CGROUP. Under systemd the agent
//! therefore has to be in a group below its unit's (`DelegateSubgroup=`); in the root of a container it
//! makes one, for everything that is there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::warn;

use super::Running;

/// Where the agent and whatever shares its group go, if groups of instances have to lie in that one.
const OWN: &str = "tidegate-own";

/// How long the last members of a group may take to be gone after they were killed.
const END_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// What to do where systemd could not start the agent again.
const NEEDS_SUBGROUP: &str = "the agent is in the control group of its unit itself, and systemd could not start it there again while an instance runs: give the unit DelegateSubgroup=agent beside Delegate=yes (systemd 254 and newer)";

/// Where groups of instances lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    folder: PathBuf,
    /// What is in the folder itself moves out of it before controllers are handed down.
    is_inhabited: bool,
}

impl Home {
    /// That of this process.
    ///
    /// # Errors
    /// There can be none, and what to do.
    pub fn find() -> Result<Self, String> {
        let none = || "it has no cgroup v2".to_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| e.to_string())?;
        let mount = mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let point = before.split(' ').nth(4)?;
            after.starts_with("cgroup2 ").then(|| PathBuf::from(point))
        });
        let mount = mount.ok_or_else(none)?;
        let path = path_of("self").ok_or_else(none)?;
        let is_real_root = path.as_os_str().is_empty() && !mount.join("cgroup.type").exists();
        Self::of(&mount, &path, is_real_root)
    }

    /// Of an agent in the group `path` of the tree at `mount`.
    fn of(mount: &Path, path: &Path, is_real_root: bool) -> Result<Self, String> {
        let own = mount.join(path);
        let is_unit = |path: &Path| {
            let kind = path.extension().and_then(|kind| kind.to_str());
            kind == Some("service")
        };
        let above = path.parent();
        if is_unit(path) {
            return Err(NEEDS_SUBGROUP.to_owned());
        }
        let is_apart =
            path.file_name().is_some_and(|name| name == OWN) || above.is_some_and(is_unit);
        Ok(match above {
            Some(above) if is_apart => Self {
                folder: mount.join(above),
                is_inhabited: false,
            },
            Some(_) | None => Self {
                folder: own,
                is_inhabited: !is_real_root,
            },
        })
    }

    /// A folder, for tests.
    #[must_use]
    pub fn at(folder: PathBuf) -> Self {
        Self {
            folder,
            is_inhabited: true,
        }
    }

    /// Whether groups with these controllers could be made; nothing is changed.
    ///
    /// # Errors
    /// Why not.
    pub fn offers(&self, controllers: &[&str]) -> Result<(), String> {
        let place = self.folder.display();
        let offered = fs::read_to_string(self.folder.join("cgroup.controllers"))
            .map_err(|error| format!("{place}: {error}"))?;
        let missing: Vec<&str> = controllers
            .iter()
            .copied()
            .filter(|wanted| !offered.split_ascii_whitespace().any(|c| c == *wanted))
            .collect();
        if !missing.is_empty() {
            return Err(format!(
                "the control group {place} does not have the controllers {}",
                missing.join(", ")
            ));
        }
        let handed = self.folder.join("cgroup.subtree_control");
        let opened = fs::OpenOptions::new().write(true).open(handed);
        opened.map(drop).map_err(|error| self.not_delegated(&error))
    }

    fn not_delegated(&self, error: &io::Error) -> String {
        format!(
            "the control group {} is not delegated to the agent: {error}",
            self.folder.display()
        )
    }

    /// Makes the group of a start of an instance, and takes away those of its earlier starts.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(&self, name: &str, controllers: &[&str]) -> Result<Group, String> {
        self.offers(controllers)?;
        self.hand_down(controllers)
            .map_err(|error| self.not_delegated(&error))?;
        let (instance, _) = name.rsplit_once('.').unwrap_or((name, ""));
        for earlier in self.groups(|found| found.starts_with(&format!("{instance}."))) {
            earlier.kill();
            fs::remove_dir(&earlier.0).ok();
        }
        let path = self.folder.join(name);
        make(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Group(path))
    }

    /// Removes groups without processes that ended starts of an instance left.
    pub fn forget(&self, instance: &str) {
        for group in self.groups(|name| name.split('.').nth(1) == Some(instance)) {
            fs::remove_dir(&group.0).ok();
        }
    }

    fn groups(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<Group> {
        let found = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        found
            .filter(|entry| entry.file_name().to_str().is_some_and(&is_wanted))
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .map(Group)
            .collect()
    }

    fn hand_down(&self, controllers: &[&str]) -> io::Result<()> {
        let file = self.folder.join("cgroup.subtree_control");
        let given = fs::read_to_string(&file)?;
        let lacking: Vec<String> = controllers
            .iter()
            .filter(|wanted| !given.split_ascii_whitespace().any(|c| c == **wanted))
            .map(|wanted| format!("+{wanted}"))
            .collect();
        if lacking.is_empty() {
            return Ok(());
        }
        if self.is_inhabited {
            let own = self.folder.join(OWN);
            make(&own)?;
            for pid in fs::read_to_string(self.folder.join("cgroup.procs"))?.lines() {
                // One that has ended meanwhile is no error.
                if let Err(error) = fs::write(own.join("cgroup.procs"), pid)
                    && error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error())
                {
                    return Err(error);
                }
            }
        }
        fs::write(file, lacking.join(" "))
    }
}

/// The group of one start of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group(PathBuf);

impl Group {
    /// The name of the group: names hold no dots. Agents of one host may share a home.
    #[must_use]
    pub fn name(agent: &str, instance: &str, incarnation: u32) -> String {
        format!("{agent}.{instance}.{incarnation}")
    }

    /// The group that an earlier process of the agent made for an instance that runs; none: it has
    /// none.
    #[must_use]
    pub fn of(running: &Running) -> Option<Self> {
        let path = path_of(&running.process.pid.to_string())?;
        let end = format!(".{}.{}", running.instance.id(), running.incarnation);
        let is_its = path.file_name()?.to_str()?.ends_with(&end);
        let home = Home::find().ok().filter(|_| is_its)?;
        let path = home.folder.join(path.file_name()?);
        path.is_dir().then_some(Self(path))
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether the kernel has ended processes of it for want of memory, and the most that it may use,
    /// in bytes.
    #[must_use]
    pub fn out_of_memory(&self) -> Option<Option<u64>> {
        let events = fs::read_to_string(self.0.join("memory.events")).ok()?;
        let killed = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "))?;
        if killed.trim() == "0" {
            return None;
        }
        let most = fs::read_to_string(self.0.join("memory.max")).unwrap_or_default();
        Some(most.trim().parse().ok())
    }

    fn kill(&self) {
        // Before Linux 5.14 there is no such file; then members that left the process group stay.
        if let Err(error) = fs::write(self.0.join("cgroup.kill"), "1")
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(group = %self.0.display(), %error, "its processes cannot be killed");
        }
    }

    /// Ends whatever is left in it and removes it.
    pub async fn end(&self) {
        let deadline = Instant::now() + END_LIMIT;
        self.kill();
        loop {
            match fs::remove_dir(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Ok(()) => return,
                Err(error) if Instant::now() >= deadline => {
                    return warn!(group = %self.0.display(), %error, "the control group stays");
                }
                Err(_) => sleep(POLL).await,
            }
        }
    }
}

/// The group of a process, below the root of the tree that this process sees.
fn path_of(pid: &str) -> Option<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(PathBuf::from(path))
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_lie_where_the_agent_can_be_started_again() {
        let mount = Path::new("/sys/fs/cgroup");
        let of = |path: &str, is_real_root| Home::of(mount, Path::new(path), is_real_root);
        let at = |folder: &str, is_inhabited| {
            Ok(Home {
                folder: PathBuf::from(folder),
                is_inhabited,
            })
        };
        // The root of a container, before and after everything in it was moved; that of the host.
        assert_eq!(of("", false), at("/sys/fs/cgroup/", true));
        assert_eq!(of(OWN, false), at("/sys/fs/cgroup/", false));
        assert_eq!(of("", true), at("/sys/fs/cgroup/", false));
        // A unit, with and without a group below it.
        let refused = of("system.slice/tidegate-agent.service", false);
        assert!(refused.is_err_and(|why| why.contains("DelegateSubgroup=agent")));
        assert_eq!(
            of("system.slice/tidegate-agent.service/agent", false),
            at("/sys/fs/cgroup/system.slice/tidegate-agent.service", false)
        );
        // Whatever else: in it.
        assert_eq!(of("openrc/x", false), at("/sys/fs/cgroup/openrc/x", true));
    }

    #[test]
    fn an_end_for_want_of_memory_is_told_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let group = Group(folder.path().to_owned());
        assert_eq!(group.out_of_memory(), None);
        let events = |killed: u32| {
            let text =
                format!("low 0\nhigh 0\nmax 31\noom 1\noom_kill {killed}\noom_group_kill 0\n");
            fs::write(folder.path().join("memory.events"), text).unwrap();
        };
        events(0);
        assert_eq!(group.out_of_memory(), None);
        events(2);
        fs::write(folder.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(group.out_of_memory(), Some(None));
        fs::write(folder.path().join("memory.max"), "33554432\n").unwrap();
        assert_eq!(group.out_of_memory(), Some(Some(32 << 20)));
    }

    #[test]
    fn groups_of_ended_starts_are_forgotten_and_those_of_other_instances_stay() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().to_owned());
        for name in [
            "web-1.tidegate-shop-a-0.1",
            "web-2.tidegate-shop-a-0.4",
            "web-1.tidegate-shop-a-1.1",
        ] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        home.forget("tidegate-shop-a-0");
        let left = home.groups(|_| true);
        assert_eq!(
            left,
            [Group(folder.path().join("web-1.tidegate-shop-a-1.1"))]
        );
    }
}
