//! The host as a whole, by sysinfo, and its facts.

use std::path::{Path, PathBuf};

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};
use tidegate_shared::assignment::{Facts, HostMetrics};

/// Reads the host's figures; the processor's share is that between two reads.
pub struct HostMeter {
    /// None: the system does not tell.
    system: Option<System>,
    dir: PathBuf,
}

impl HostMeter {
    /// A meter; the disk is the one of `dir`.
    pub fn new(dir: &Path) -> Self {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        Self {
            system: System::new_with_specifics(kinds).ok(),
            dir: dir.to_path_buf(),
        }
    }

    /// The figures of now.
    pub fn read(&mut self) -> HostMetrics {
        let (total, available) = rustix::fs::statvfs(&self.dir).map_or((0, 0), |stat| {
            let unit = stat.f_frsize;
            (
                stat.f_blocks.saturating_mul(unit),
                stat.f_bavail.saturating_mul(unit),
            )
        });
        let mut metrics = HostMetrics {
            disk_total: total,
            disk_available: available,
            ..HostMetrics::default()
        };
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            // Per cent with decimals; a share of the whole machine.
            metrics.cpu_basis_points = (system.global_cpu_usage().clamp(0.0, 100.0) * 100.0) as u32;
            metrics.memory_total = system.total_memory();
            metrics.memory_used = system.used_memory();
        }
        metrics
    }
}

/// What does not change while the agent runs.
pub fn facts(listen_address: std::net::IpAddr) -> Facts {
    let memory = System::new_with_specifics(
        RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()),
    )
    .map_or(0, |system| system.total_memory());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let facts = [
        ("os", std::env::consts::OS.to_owned()),
        ("arch", arch().to_owned()),
        ("hostname", System::host_name().unwrap_or_default()),
        ("kernel", System::kernel_version().unwrap_or_default()),
        ("cores", cores.to_string()),
        ("memory", memory.to_string()),
        ("address", listen_address.to_string()),
        ("executor", "process".to_owned()),
    ];
    facts
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// The architecture in the words of asset platforms.
const fn arch() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        std::env::consts::ARCH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_a_real_host() {
        let metrics = HostMeter::new(&std::env::temp_dir()).read();
        assert!(metrics.memory_used > 0 && metrics.memory_used <= metrics.memory_total);
        assert!(metrics.disk_available <= metrics.disk_total && metrics.disk_total > 0);
        assert!(metrics.cpu_basis_points <= 10_000);
        let facts = facts("127.0.0.1".parse().unwrap());
        assert_eq!(facts["os"], "linux");
        assert!(facts["memory"].parse::<u64>().unwrap() > 0);
    }
}
