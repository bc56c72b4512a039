//! The secrets of this agent's assignments: in memory, and sealed on disk so that instances can be
//! started again while no coordinator can be reached.
//!
//! Two files in the agent's folder, both for its user alone: `secrets.key`, made at the first need,
//! and `secrets`, the values encrypted with AES-256-GCM under that key with a fresh nonce at each
//! write. The key lies on the same host, so the seal keeps a copied or leaked `secrets` file, a
//! backup of one of the two, or a disk's rests from being read; whoever is root on the host can read
//! the values, as they can in the processes that run with them. The session fills it before it
//! hands over assignments; the reconcile loop reads it and drops what nothing names any more.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use tidegate_shared::cbor;
use tidegate_shared::digest::Digest;
use tidegate_shared::secret::Secret;
use zeroize::Zeroizing;

use crate::files;

const MAGIC: &[u8; 5] = b"TGAS\x01";

/// Larger than any honest one: 64 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// See the module.
pub struct SecretStore {
    folder: PathBuf,
    values: Mutex<BTreeMap<Digest, Secret>>,
}

impl SecretStore {
    /// Opens the store of an agent's folder; the second is what was wrong with it. A damaged file
    /// is set aside: the coordinators send the values again.
    pub fn open(folder: &Path) -> (Self, Option<String>) {
        let store = Self {
            folder: folder.to_owned(),
            values: Mutex::default(),
        };
        let complaint = match store.read() {
            Ok(values) => {
                *store.values() = values;
                None
            }
            Err(reason) => {
                let path = store.path();
                let aside = path.with_extension("damaged");
                let kept = std::fs::rename(&path, &aside).is_ok();
                let kept = if kept { ", and is set aside" } else { "" };
                Some(format!(
                    "the sealed secrets in {} cannot be read ({reason}){kept}; instances that need one start when a coordinator has sent it again",
                    path.display()
                ))
            }
        };
        (store, complaint)
    }

    fn values(&self) -> MutexGuard<'_, BTreeMap<Digest, Secret>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self) -> PathBuf {
        self.folder.join("secrets")
    }

    fn key_path(&self) -> PathBuf {
        self.folder.join("secrets.key")
    }

    /// The value of a version.
    pub fn get(&self, version: &Digest) -> Option<Secret> {
        self.values().get(version).cloned()
    }

    /// Takes values in, durably.
    ///
    /// # Errors
    /// What the system says; the values are held in memory all the same.
    pub fn add(&self, fresh: BTreeMap<Digest, Secret>) -> io::Result<()> {
        let mut values = self.values();
        let before = values.len();
        for (version, value) in fresh {
            values.entry(version).or_insert(value);
        }
        if values.len() == before {
            return Ok(());
        }
        self.write(&values)
    }

    /// Drops every value but those.
    ///
    /// # Errors
    /// What the system says; they are dropped from memory all the same.
    pub fn retain(&self, named: &BTreeSet<Digest>) -> io::Result<()> {
        let mut values = self.values();
        let before = values.len();
        values.retain(|version, _| named.contains(version));
        if values.len() == before {
            return Ok(());
        }
        self.write(&values)
    }

    fn read(&self) -> Result<BTreeMap<Digest, Secret>, String> {
        let path = self.path();
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error.to_string()),
            Ok(found) if found.len() > MAX_BYTES => return Err("larger than 64 MiB".to_owned()),
            Ok(_) => {}
        }
        let bytes = std::fs::read(&path).map_err(|error| error.to_string())?;
        let key = std::fs::read(self.key_path())
            .map_err(|error| format!("{}: {error}", self.key_path().display()))?;
        open(&Zeroizing::new(key), &bytes)
    }

    fn write(&self, values: &BTreeMap<Digest, Secret>) -> io::Result<()> {
        if values.is_empty() {
            return files::remove(&self.path());
        }
        let key = self.key()?;
        files::replace(&self.path(), &seal(&key, values)?, 0o600)
    }

    /// The host's key; made at the first need.
    fn key(&self) -> io::Result<Zeroizing<Vec<u8>>> {
        let path = self.key_path();
        match std::fs::read(&path) {
            Ok(key) if key.len() == 32 => return Ok(Zeroizing::new(key)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut key = Zeroizing::new(vec![0; 32]);
        random(&mut key)?;
        files::replace(&path, &key, 0o600)?;
        Ok(key)
    }
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    SystemRandom::new()
        .fill(bytes)
        .map_err(|_| io::Error::other("the system gives no randomness"))
}

fn cipher(key: &[u8]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key)
        .ok()
        .map(LessSafeKey::new)
}

fn seal(key: &[u8], values: &BTreeMap<Digest, Secret>) -> io::Result<Vec<u8>> {
    let plain: BTreeMap<&Digest, &str> = values
        .iter()
        .map(|(version, value)| (version, value.expose()))
        .collect();
    let mut bytes = Zeroizing::new(Vec::new());
    cbor::write(&plain, &mut *bytes).map_err(io::Error::other)?;
    let mut nonce = [0; NONCE_LEN];
    random(&mut nonce)?;
    let failed = || io::Error::other("the secrets cannot be sealed");
    let tag = cipher(key)
        .ok_or_else(failed)?
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(MAGIC),
            &mut bytes,
        )
        .map_err(|_| failed())?;
    Ok([MAGIC, &nonce[..], &bytes, tag.as_ref()].concat())
}

fn open(key: &[u8], bytes: &[u8]) -> Result<BTreeMap<Digest, Secret>, String> {
    let sealed = bytes
        .strip_prefix(MAGIC)
        .ok_or("it is no file of secrets")?;
    let (nonce, sealed) = sealed
        .split_first_chunk::<NONCE_LEN>()
        .ok_or("it is too short")?;
    let wrong = "it does not open with this host's key";
    let mut bytes = Zeroizing::new(sealed.to_vec());
    let plain = cipher(key)
        .ok_or(wrong)?
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(MAGIC),
            &mut bytes,
        )
        .map_err(|_| wrong)?;
    let (values, _): (BTreeMap<Digest, String>, usize) =
        cbor::read(plain).map_err(|_| "its content makes no sense")?;
    let values = values.into_iter();
    Ok(values.map(|(v, text)| (v, Secret::new(text))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn some(texts: &[&str]) -> BTreeMap<Digest, Secret> {
        let pairs = texts.iter();
        pairs
            .map(|t| (Digest::of(t.as_bytes()), Secret::new((*t).to_owned())))
            .collect()
    }

    #[test]
    fn values_outlive_the_agent_and_are_not_readable_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (store, complaint) = SecretStore::open(dir.path());
        assert_eq!(complaint, None);
        store
            .add(some(&["correct-horse", "battery-staple"]))
            .unwrap();
        for file in ["secrets", "secrets.key"] {
            let path = dir.path().join(file);
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
            let bytes = std::fs::read(path).unwrap();
            assert!(!bytes.windows(7).any(|w| w == b"correct"), "{file}");
        }
        let (again, complaint) = SecretStore::open(dir.path());
        assert_eq!(complaint, None);
        let version = Digest::of(b"correct-horse");
        assert_eq!(again.get(&version).unwrap().expose(), "correct-horse");
        again.retain(&BTreeSet::from([version])).unwrap();
        let (again, _) = SecretStore::open(dir.path());
        assert_eq!(again.get(&Digest::of(b"battery-staple")), None);
        again.retain(&BTreeSet::new()).unwrap();
        assert!(!dir.path().join("secrets").exists());
    }

    #[test]
    fn every_damage_is_told_set_aside_and_healed_by_the_next_values() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = SecretStore::open(dir.path());
        store.add(some(&["correct-horse"])).unwrap();
        let path = dir.path().join("secrets");
        let good = std::fs::read(&path).unwrap();
        let mut broken: Vec<Vec<u8>> = (0..good.len())
            .map(|position| {
                let mut bytes = good.clone();
                bytes[position] ^= 1;
                bytes
            })
            .collect();
        broken.extend([vec![], good[..9].to_vec(), b"nonsense".to_vec()]);
        for bytes in broken {
            std::fs::write(&path, bytes).unwrap();
            let (store, complaint) = SecretStore::open(dir.path());
            assert!(complaint.unwrap().contains("cannot be read"));
            assert_eq!(store.get(&Digest::of(b"correct-horse")), None);
            store.add(some(&["correct-horse"])).unwrap();
            assert_eq!(SecretStore::open(dir.path()).1, None);
        }
        std::fs::remove_file(dir.path().join("secrets.key")).unwrap();
        assert!(SecretStore::open(dir.path()).1.is_some(), "another key");
    }
}
