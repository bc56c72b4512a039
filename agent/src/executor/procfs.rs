//! Processes of this host as `/proc` tells them: who is alive, since when, with which marks.
//!
//! A process number alone is never trusted: numbers are used again. A process is ours when number,
//! start time and boot fit the ledger, or when it leads a group and its environment has the marks
//! that only this agent's instances carry.

use std::collections::BTreeMap;
use std::path::Path;

use crate::ledger::ProcessId;

/// The id of the present boot; empty where the system does not tell.
pub fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.unwrap_or_default().trim().to_owned()
}

/// What `/proc/<pid>/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// It has ended and waits to be reaped.
    pub zombie: bool,
    /// Its process group.
    pub group: u32,
    /// Clock ticks on processors, its own.
    pub ticks: u64,
    /// When it started, in clock ticks since the boot.
    pub started: u64,
    /// Resident pages.
    pub resident_pages: u64,
}

/// Reads the stat line of a process; none: it is not there.
pub fn stat(pid: u32) -> Option<Stat> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(line: &str) -> Option<Stat> {
    // The name is in parentheses and may hold anything, parentheses too.
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        zombie: matches!(*fields.first()?, "Z" | "X"),
        group: u32::try_from(number(2)?).ok()?,
        ticks: number(11)?.saturating_add(number(12)?),
        started: number(19)?,
        resident_pages: number(21)?,
    })
}

/// The process of a number as it is now; none: it has ended.
pub fn identify(pid: u32) -> Option<ProcessId> {
    let stat = stat(pid).filter(|stat| !stat.zombie)?;
    Some(ProcessId {
        pid,
        started: stat.started,
        boot: boot(),
    })
}

/// Whether that very process is still there.
pub fn is_alive(process: &ProcessId) -> bool {
    identify(process.pid).as_ref() == Some(process)
}

/// Whether the group of a process's number is still that of the process. A number is not given to
/// another process while a group of that number has members, so with the leader gone the rest is
/// its own.
pub fn group_is_of(process: &ProcessId) -> bool {
    process.boot == boot() && stat(process.pid).is_none_or(|stat| stat.started == process.started)
}

/// The leader of a group whose environment says that it is this instance: found when the agent
/// ended between the start and its note of it.
pub fn find_marked(instance: &str, instance_dir: &Path) -> Option<ProcessId> {
    leaders(instance, instance_dir, false).into_iter().next()
}

/// The programs of hooks that run for this instance.
pub fn find_hooks(instance: &str, instance_dir: &Path) -> Vec<ProcessId> {
    leaders(instance, instance_dir, true)
}

fn leaders(instance: &str, instance_dir: &Path, hooks: bool) -> Vec<ProcessId> {
    let mut found = Vec::new();
    let marks = [
        format!("TIDEGATE_INSTANCE={instance}"),
        format!("TIDEGATE_INSTANCE_DIR={}", instance_dir.display()),
    ];
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return found;
    };
    for entry in entries.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid else { continue };
        // Environments of other users are not ours to read, and not ours.
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else {
            continue;
        };
        let has = |mark: &String| environment.split(|b| *b == 0).any(|e| e == mark.as_bytes());
        let hook = environment
            .split(|byte| *byte == 0)
            .any(|entry| entry.starts_with(b"TIDEGATE_HOOK="));
        if hook == hooks && marks.iter().all(has) && stat(pid).is_some_and(|stat| stat.group == pid)
        {
            found.extend(identify(pid));
        }
    }
    found
}

/// Whether some process has its instance's folder in this one.
pub fn is_home(folder: &Path) -> bool {
    let mark = format!("TIDEGATE_INSTANCE_DIR={}/", folder.display());
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut environments =
        entries.filter_map(|entry| std::fs::read(entry.path().join("environ")).ok());
    environments.any(|all| {
        all.split(|byte| *byte == 0)
            .any(|e| e.starts_with(mark.as_bytes()))
    })
}

/// The port that a process was given as `PORT`; 0: none, or not to be read.
pub fn port_of(pid: u32) -> u16 {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let found = environment
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(b"PORT="));
    let text = found.and_then(|port| std::str::from_utf8(port).ok());
    text.and_then(|port| port.parse().ok()).unwrap_or(0)
}

/// What process groups use: clock ticks and resident pages, summed over their members.
pub fn usage_of(groups: &[u32]) -> BTreeMap<u32, (u64, u64)> {
    let mut sums: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return sums;
    };
    for entry in entries.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(stat) = pid
            .and_then(stat)
            .filter(|stat| groups.contains(&stat.group))
        {
            let sum = sums.entry(stat.group).or_default();
            sum.0 += stat.ticks;
            sum.1 += stat.resident_pages;
        }
    }
    sums
}

/// Whether a group has a member that has not ended.
pub fn group_lives(group: u32) -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return false;
    };
    entries.flatten().any(|entry| {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let stat: Option<Stat> = pid.and_then(stat);
        stat.is_some_and(|stat| stat.group == group && !stat.zombie)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_told_from_another_of_its_number() {
        let me = identify(std::process::id()).unwrap();
        assert!(is_alive(&me));
        let other = ProcessId {
            started: me.started + 1,
            ..me.clone()
        };
        assert!(!is_alive(&other));
        let before_the_boot = ProcessId {
            boot: "another".to_owned(),
            ..me
        };
        assert!(!is_alive(&before_the_boot));
    }

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let line = "7 (a) b) c) S 1 7 7 0 -1 0 0 0 0 0 3 4 0 0 20 0 1 0 99 1000 55 0";
        let stat = parse(line).unwrap();
        assert_eq!((stat.group, stat.ticks, stat.started), (7, 7, 99));
        assert_eq!(stat.resident_pages, 55);
        assert_eq!(parse("7 (a"), None);
    }
}
