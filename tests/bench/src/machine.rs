//! What the figures were measured on: cores, kernel, disk, and how quiet it was.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::stats::median;

/// Synced writes that the disk is asked for.
const SYNCS: usize = 200;

/// See the module.
#[derive(Debug, Clone)]
pub struct Machine {
    cores: usize,
    processor: String,
    memory_mib: u64,
    kernel: String,
    disk: String,
    sync_micros: f64,
    load: String,
    build: &'static str,
}

impl Machine {
    /// Looks, and writes a few synced blocks into a temporary file on the disk that is used.
    ///
    /// # Errors
    /// The temporary folder cannot be written to.
    pub fn look() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir();
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            processor: field("/proc/cpuinfo", "model name"),
            memory_mib: field("/proc/meminfo", "MemTotal")
                .split_whitespace()
                .next()
                .and_then(|kib| kib.parse::<u64>().ok())
                .unwrap_or(0)
                / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            disk: disk_of(&folder),
            sync_micros: sync_micros(&folder)?,
            load: fs::read_to_string("/proc/loadavg")
                .unwrap_or_default()
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned(),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
        })
    }

    /// How many processors there are.
    pub const fn cores(&self) -> usize {
        self.cores
    }

    /// In one line.
    pub fn line(&self) -> String {
        format!(
            "{} cores ({}), {} MiB, kernel {}, disk {} (a synced 4 KiB write takes {:.0} µs), load before {}, {} build",
            self.cores,
            self.processor,
            self.memory_mib,
            self.kernel,
            self.disk,
            self.sync_micros,
            self.load,
            self.build
        )
    }

    /// As a program reads it.
    pub fn json(&self) -> Value {
        json!({
            "cores": self.cores,
            "processor": self.processor,
            "memoryMib": self.memory_mib,
            "kernel": self.kernel,
            "disk": self.disk,
            "syncMicros": self.sync_micros,
            "loadBefore": self.load,
            "build": self.build,
        })
    }
}

fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

/// File system and device of a folder, from the longest mount point in front of it.
fn disk_of(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut parts = line.split_whitespace();
            let (device, point, kind) = (parts.next()?, parts.next()?, parts.next()?);
            folder
                .starts_with(point)
                .then(|| (point.len(), format!("{kind} on {device}")))
        })
        .max_by_key(|(length, _)| *length)
        .map_or_else(|| "unknown".to_owned(), |(_, found)| found)
}

fn sync_micros(folder: &Path) -> anyhow::Result<f64> {
    let mut file: File = tempfile::tempfile_in(folder)
        .with_context(|| format!("{} cannot be written to", folder.display()))?;
    let block = [0x5a_u8; 4096];
    // Written once before, so that the measured writes change data and no lengths.
    for _ in 0..SYNCS {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    median(&times).context("nothing was written")
}

/// A program of others, wherever the system keeps it.
///
/// # Errors
/// It is not installed; the message says what brings it.
pub fn program(name: &str, package: &str) -> anyhow::Result<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "{name} is missing: apt-get install -y --no-install-recommends {package}, or tests/run --prepare"
            )
        })
}

/// The first line of what a program says of its version, with one of these arguments.
pub fn version(program: &Path, argument: &str) -> String {
    let Ok(output) = Command::new(program).arg(argument).output() else {
        return "unknown".to_owned();
    };
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said)
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("unknown")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_described() {
        let machine = Machine::look().unwrap();
        assert!(machine.cores >= 1);
        assert!(machine.sync_micros > 0.0);
        assert!(!machine.kernel.is_empty());
        assert!(machine.line().contains("kernel"));
    }

    #[test]
    fn what_is_missing_is_told_with_its_package() {
        let error = program("no-such-program", "no-such-package").unwrap_err();
        assert!(error.to_string().contains("no-such-package"), "{error}");
    }
}
