//! Limits of an instance as properties of its unit. One that this host cannot enforce is refused by
//! name: systemd itself would leave it out without a word.

use std::path::Path;

use tidegate_shared::spec::Limits;

use super::super::process::Refusal;
use crate::systemd::{Property, Variant};

/// Where cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The properties that hold the limits.
///
/// # Errors
/// Permanent: the host has no controller for one of them.
pub fn properties(limits: &Limits) -> Result<Vec<Property>, Refusal> {
    properties_in(Path::new(CGROUPS), limits)
}

fn properties_in(cgroups: &Path, limits: &Limits) -> Result<Vec<Property>, Refusal> {
    let mut properties = Vec::new();
    let mut missing = Vec::new();
    let mut need = |controller: &'static str, field: &'static str| {
        if !has(cgroups, controller) {
            missing.push((controller, field));
        }
    };
    if let Some(memory) = limits.memory {
        need("memory", "limits.memory");
        properties.push(("MemoryMax", Variant::from(memory.0)));
        properties.push(("MemorySwapMax", Variant::from(0_u64)));
        // Half an instance would be worse than none: if one of its processes goes, all go.
        properties.push(("OOMPolicy", Variant::from("kill".to_owned())));
    }
    if let Some(cores) = limits.cpu {
        need("cpu", "limits.cpu");
        // Basis points of a core as microseconds in a second.
        let quota = u64::from(cores.0) * 100;
        properties.push(("CPUQuotaPerSecUSec", Variant::from(quota)));
    }
    if let Some(processes) = limits.processes {
        need("pids", "limits.processes");
        properties.push(("TasksMax", Variant::from(processes)));
    }
    if let Some(files) = limits.open_files {
        properties.push(("LimitNOFILE", Variant::from(files)));
    }
    if missing.is_empty() {
        return Ok(properties);
    }
    let fields: Vec<&str> = missing.iter().map(|(_, field)| *field).collect();
    let controllers: Vec<&str> = missing.iter().map(|(controller, _)| *controller).collect();
    Err(Refusal {
        permanent: true,
        message: format!(
            "{} cannot be enforced on this host: systemd has no cgroup controller {}; turn it on, or leave the limit out",
            fields.join(", "),
            controllers.join(", ")
        ),
    })
}

/// Whether systemd has a controller: in the one hierarchy, or in one of its own as of old.
fn has(cgroups: &Path, controller: &str) -> bool {
    match std::fs::read_to_string(cgroups.join("cgroup.controllers")) {
        Ok(all) => all.split_ascii_whitespace().any(|held| held == controller),
        Err(_) => cgroups.join(controller).is_dir(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_without_its_controller_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let limits = |json: &str| serde_json::from_str::<Limits>(json).unwrap();
        let all = limits(r#"{"memory": "64MiB", "cpu": "0.5", "processes": 20, "open_files": 64}"#);
        std::fs::write(folder.path().join("cgroup.controllers"), "cpu pids\n").unwrap();
        let Err(refusal) = properties_in(folder.path(), &all) else {
            panic!("not refused");
        };
        assert!(refusal.permanent);
        assert!(
            refusal.message.contains("limits.memory"),
            "{}",
            refusal.message
        );
        assert!(
            !refusal.message.contains("limits.cpu"),
            "{}",
            refusal.message
        );
        std::fs::write(
            folder.path().join("cgroup.controllers"),
            "cpu memory pids\n",
        )
        .unwrap();
        let held = properties_in(folder.path(), &all);
        let held = held.unwrap_or_else(|refusal| panic!("{}", refusal.message));
        let of = |name: &str| {
            held.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value)
        };
        assert_eq!(of("MemoryMax"), Some(&Variant::from(64_u64 << 20)));
        assert_eq!(of("CPUQuotaPerSecUSec"), Some(&Variant::from(500_000_u64)));
        assert_eq!(of("TasksMax"), Some(&Variant::from(20_u64)));
        assert_eq!(of("LimitNOFILE"), Some(&Variant::from(64_u64)));
    }
}
