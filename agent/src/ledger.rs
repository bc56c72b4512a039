//! What the agent must not forget: the highest assignments, its start counter, the table of places,
//! instances and ports, the releases on disk, latched guards.
//!
//! One file, replaced as a whole (beside, sync, rename, sync of the folder): a magic, a version
//! byte, CBOR with named fields, CRC-32. A damaged one is set aside, never guessed at; the agent
//! then starts with an empty one and adopts what runs. The reconcile loop alone holds it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidegate_agent_core::guard::LatchedGuards;
use tidegate_agent_core::place::{InstanceKey, PlaceKey};
use tidegate_agent_core::retention::KeptRelease;
use tidegate_shared::assignment::{Assignment, Assignments};
use tidegate_shared::cbor;

use crate::files;

const MAGIC: &[u8; 4] = b"TGAL";
const VERSION: u8 = 1;

/// Larger than any honest one: 64 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// The content.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ledger {
    /// Raised with each start of the agent.
    pub start: u64,
    /// The highest ones seen.
    pub assignments: Option<Assignments>,
    /// Every place that anything is held of, with its latest assignment.
    pub places: Vec<Assignment>,
    /// Every instance that was started and not stopped.
    pub instances: Vec<InstanceRecord>,
    /// Releases on disk.
    pub releases: Vec<KeptRelease>,
    /// Guards that have fired.
    pub latched: LatchedGuards,
    /// The cluster took this agent out: nothing is wished until it is let in again.
    #[serde(default)]
    pub removed: bool,
}

/// One instance in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Which.
    pub instance: InstanceKey,
    /// Its port, kept over restarts; 0: none.
    pub port: u16,
    /// Of its latest start.
    pub incarnation: u32,
    /// So far.
    pub restarts: u32,
    /// Its process; none: it was about to start.
    pub process: Option<ProcessId>,
}

/// A process that can be told from any other, also one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the boot.
    pub started: u64,
    /// Which boot.
    pub boot: String,
}

/// What reading found.
#[derive(Debug)]
pub enum Found {
    /// No file: a first start.
    Nothing,
    /// The ledger.
    Good(Box<Ledger>),
    /// Something else, now set aside.
    Damaged {
        /// Where it is now.
        aside: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads the ledger; a damaged one is renamed.
///
/// # Errors
/// The file cannot be read or renamed at all.
pub fn read(path: &Path, now_ms: u64) -> io::Result<Found> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
        Ok(found) if found.len() > MAX_BYTES => {
            return set_aside(path, now_ms, "it is larger than 64 MiB".to_owned());
        }
        Ok(_) => {}
    }
    match decode(&std::fs::read(path)?) {
        Ok(ledger) => Ok(Found::Good(Box::new(ledger))),
        Err(reason) => set_aside(path, now_ms, reason),
    }
}

fn set_aside(path: &Path, now_ms: u64, reason: String) -> io::Result<Found> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".damaged-{now_ms}"));
    let aside = path.with_file_name(name);
    std::fs::rename(path, &aside)?;
    files::sync_parent(path)?;
    Ok(Found::Damaged { aside, reason })
}

impl Ledger {
    /// Writes it, durably.
    ///
    /// # Errors
    /// What the system says; the old one stays.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        files::replace(path, &encode(self)?, 0o600)
    }

    /// The instance's record.
    pub fn instance(&self, key: &InstanceKey) -> Option<&InstanceRecord> {
        self.instances.iter().find(|r| r.instance == *key)
    }

    /// Puts a record in the place of the instance's old one.
    pub fn set_instance(&mut self, record: InstanceRecord) {
        self.instances.retain(|r| r.instance != record.instance);
        self.instances.push(record);
        self.instances.sort_by(|a, b| a.instance.cmp(&b.instance));
    }

    /// The places by key.
    pub fn places_by_key(&self) -> BTreeMap<PlaceKey, Assignment> {
        let items = self.places.iter();
        items
            .map(|item| (PlaceKey::of(item), item.clone()))
            .collect()
    }
}

fn encode(ledger: &Ledger) -> io::Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    bytes.push(VERSION);
    cbor::write(ledger, &mut bytes).map_err(io::Error::other)?;
    let crc = crc32fast::hash(&bytes);
    bytes.extend(crc.to_be_bytes());
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Ledger, String> {
    let (body, crc) = bytes
        .split_last_chunk::<4>()
        .ok_or("it is too short to be a ledger")?;
    if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        return Err("its checksum does not fit".to_owned());
    }
    let rest = body.strip_prefix(MAGIC).ok_or("it is not a ledger")?;
    match rest.split_first() {
        Some((&VERSION, body)) => {
            let read = cbor::read(body).map_err(|error| format!("it cannot be read: {error}"));
            read.map(|(ledger, _)| ledger)
        }
        Some((version, _)) => Err(format!("its version {version} is unknown to this program")),
        None => Err("it is empty".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_shared::assignment::Generation;

    fn ledger() -> Ledger {
        Ledger {
            start: 7,
            assignments: Some(Assignments {
                generation: Generation { epoch: 1, index: 9 },
                ..Assignments::default()
            }),
            ..Ledger::default()
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        assert!(matches!(read(&path, 1).unwrap(), Found::Nothing));
        ledger().write(&path).unwrap();
        ledger().write(&path).unwrap();
        let Found::Good(found) = read(&path, 1).unwrap() else {
            panic!("not good");
        };
        assert_eq!(*found, ledger());
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let bytes = encode(&ledger()).unwrap();
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 0x10;
            assert!(decode(&flipped).is_err(), "byte {position}");
            assert!(decode(&bytes[..position]).is_err(), "cut at {position}");
        }
    }

    #[test]
    fn a_damaged_one_is_set_aside_and_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        std::fs::write(&path, b"nonsense").unwrap();
        let Found::Damaged { aside, reason } = read(&path, 42).unwrap() else {
            panic!("taken for good");
        };
        assert_eq!(reason, "its checksum does not fit");
        assert_eq!(std::fs::read(aside).unwrap(), b"nonsense");
        assert!(matches!(read(&path, 43).unwrap(), Found::Nothing));
    }
}
