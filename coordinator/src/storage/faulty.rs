//! A disk for tests that behaves as badly as a real one may.
//!
//! Writes go to a volatile image; [`FaultyDisk::crash`] keeps what was synced and, of the rest, a
//! random choice of 512-byte sectors and a random prefix of the folder's changes.
//! [`FaultyDisk::fail_after`] makes every operation fail from some moment on, as a killed process
//! sees it. All chance comes from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

#[derive(Clone, Default)]
struct Content {
    durable: Vec<u8>,
    current: Vec<u8>,
    dirty: BTreeSet<usize>,
}

#[derive(Clone)]
enum Change {
    Link(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Default)]
struct Inner {
    random: u64,
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    changes: Vec<Change>,
    next_file: u64,
    left: Option<u64>,
}

/// See the module's text.
#[derive(Clone)]
pub struct FaultyDisk(Arc<Mutex<Inner>>);

fn apply(names: &mut BTreeMap<String, u64>, change: &Change) {
    match change {
        Change::Link(name, file) => {
            names.insert(name.clone(), *file);
        }
        Change::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Change::Remove(name) => {
            names.remove(name);
        }
    }
}

impl Inner {
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn step(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.left {
            if *left == 0 {
                return Err(io::Error::other("the test's disk fails from here on"));
            }
            *left -= 1;
        }
        Ok(())
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.changes.push(change);
    }
}

impl FaultyDisk {
    /// An empty disk whose chance comes from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> FaultyDisk {
        FaultyDisk(Arc::new(Mutex::new(Inner {
            random: seed,
            ..Inner::default()
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A random number below `bound`, from the disk's seed.
    #[must_use]
    pub fn draw(&self, bound: u64) -> u64 {
        self.inner().next_random() % bound.max(1)
    }

    /// After `operations` more writes, syncs or changes of names, everything fails.
    pub fn fail_after(&self, operations: u64) {
        self.inner().left = Some(operations);
    }

    /// Loses what a power cut may lose, and works again.
    pub fn crash(&self) {
        let mut inner = self.inner();
        inner.left = None;
        let kept = inner.next_random() % (inner.changes.len() as u64 + 1);
        let changes = std::mem::take(&mut inner.changes);
        let mut names = std::mem::take(&mut inner.durable_names);
        for change in changes.iter().take(usize::try_from(kept).unwrap_or(0)) {
            apply(&mut names, change);
        }
        inner.durable_names = names.clone();
        inner.names = names;
        let ids: Vec<u64> = inner.files.keys().copied().collect();
        for id in ids {
            let Some(mut content) = inner.files.remove(&id) else {
                continue;
            };
            let dirty = std::mem::take(&mut content.dirty);
            if content.durable.len() < content.current.len() {
                content.durable.resize(content.current.len(), 0);
            }
            for sector in dirty {
                if inner.next_random().is_multiple_of(2) {
                    let from = sector * SECTOR;
                    let to = (from + SECTOR).min(content.current.len());
                    content.durable[from..to].copy_from_slice(&content.current[from..to]);
                }
            }
            content.current = content.durable.clone();
            inner.files.insert(id, content);
        }
    }

    /// Flips one bit of a durable byte.
    ///
    /// # Panics
    /// When there is no such file or byte.
    pub fn flip(&self, name: &str, at: u64) {
        let mut inner = self.inner();
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let content = inner
            .names
            .get(name)
            .copied()
            .and_then(|id| inner.files.get_mut(&id));
        match content.and_then(|c| Some((c.current.get_mut(at)?, c.durable.get_mut(at)))) {
            Some((current, durable)) => {
                *current ^= 4;
                if let Some(durable) = durable {
                    *durable ^= 4;
                }
            }
            None => panic!("{name} has no byte {at}"),
        }
    }

    /// What a reader sees of a file now; empty when there is none.
    #[must_use]
    pub fn content(&self, name: &str) -> Vec<u8> {
        let inner = self.inner();
        inner
            .names
            .get(name)
            .and_then(|id| inner.files.get(id))
            .map(|c| c.current.clone())
            .unwrap_or_default()
    }
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {name}"))
}

impl Disk for FaultyDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let id = self.inner().names.get(name).copied();
        Ok(Box::new(FaultyFile {
            disk: self.clone(),
            id: id.ok_or_else(|| missing(name))?,
        }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.inner();
        inner.step()?;
        inner.next_file += 1;
        let id = inner.next_file;
        inner.files.insert(id, Content::default());
        inner.change(Change::Link(name.to_owned(), id));
        drop(inner);
        Ok(Box::new(FaultyFile {
            disk: self.clone(),
            id,
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.step()?;
        if !inner.names.contains_key(from) {
            return Err(missing(from));
        }
        inner.change(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.step()?;
        if !inner.names.contains_key(name) {
            return Err(missing(name));
        }
        inner.change(Change::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut inner = self.inner();
        inner.step()?;
        inner.changes.clear();
        inner.durable_names = inner.names.clone();
        Ok(())
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    id: u64,
}

impl DiskFile for FaultyFile {
    fn length(&self) -> io::Result<u64> {
        let inner = self.disk.inner();
        Ok(inner
            .files
            .get(&self.id)
            .map_or(0, |c| c.current.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = self.disk.inner();
        let Some(content) = inner.files.get(&self.id) else {
            return Ok(0);
        };
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(content.current.len());
        let to = (from + buffer.len()).min(content.current.len());
        buffer[..to - from].copy_from_slice(&content.current[from..to]);
        Ok(to - from)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let fails = inner.step();
        // A killed write may have got half-way.
        let length = if fails.is_err() {
            usize::try_from(inner.next_random()).unwrap_or(0) % (bytes.len() + 1)
        } else {
            bytes.len()
        };
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        if let Some(content) = inner.files.get_mut(&self.id)
            && length > 0
        {
            let to = from + length;
            if content.current.len() < to {
                content.current.resize(to, 0);
            }
            content.current[from..to].copy_from_slice(&bytes[..length]);
            content.dirty.extend(from / SECTOR..=(to - 1) / SECTOR);
        }
        fails
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.step()?;
        if let Some(content) = inner.files.get_mut(&self.id) {
            let dirty = std::mem::take(&mut content.dirty);
            content.durable.resize(content.current.len(), 0);
            for sector in dirty {
                let from = sector * SECTOR;
                let to = (from + SECTOR).min(content.current.len());
                content.durable[from..to].copy_from_slice(&content.current[from..to]);
            }
        }
        Ok(())
    }
}
