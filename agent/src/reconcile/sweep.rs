//! Removes what lies in the agent's folder and belongs to nothing that it knows: what a kill at the
//! wrong instant, or a lost ledger, left behind. Everything else goes when its place does.
//!
//! Looked at after the first wish, and then every hour. What changed within a day stays: it may be in
//! the making. A lost ledger no longer says which older releases were kept for a return; those go, and
//! a return fetches them again.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use tidegate_shared::digest::Digest;
use tracing::{info, warn};

use super::Reconciler;
use crate::asset::ReleaseStore;
use crate::executor::procfs;
use crate::files;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(3_600);
/// What changed since then stays.
const GRACE: Duration = Duration::from_secs(24 * 3_600);

impl Reconciler {
    pub(super) fn sweep(&mut self) {
        if self.swept.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        self.swept = Some(Instant::now());
        let held = self.observed.places.values().map(|place| &place.item);
        let items = held
            .chain(self.desired.places.values())
            .chain(&self.ledger.places);
        let digests = items.map(|item| item.asset.sha256);
        let kept = self.ledger.releases.iter().map(|record| record.digest);
        let releases: BTreeSet<Digest> = digests.chain(kept).collect();
        let places = self
            .observed
            .places
            .keys()
            .chain(self.desired.places.keys());
        let known = self.ledger.places_by_key();
        let recorded = self.ledger.instances.iter().map(|r| &r.instance.place);
        let folders: BTreeSet<String> = places
            .chain(known.keys())
            .chain(recorded)
            .map(|place| place.folder())
            .collect();
        remove_releases(&self.parts.store, &releases, GRACE);
        remove_parts(&self.parts.store, GRACE);
        let instances = self.parts.settings.layout.instances();
        remove_folders(&instances, &folders, GRACE);
    }
}

fn is_older(path: &Path, grace: Duration) -> bool {
    let changed = std::fs::symlink_metadata(path).and_then(|found| found.modified());
    let age = changed.ok().and_then(|at| at.elapsed().ok());
    age.is_some_and(|age| age >= grace)
}

fn remove_releases(store: &ReleaseStore, known: &BTreeSet<Digest>, grace: Duration) {
    for digest in store.list() {
        if known.contains(&digest) || !is_older(&store.path(&digest), grace) {
            continue;
        }
        match store.remove(&digest) {
            Ok(()) => info!(digest = %digest.short(), "a release that no scope uses was removed"),
            Err(error) => warn!(%digest, %error, "the release cannot be removed"),
        }
    }
}

/// One that is still written to is young.
fn remove_parts(store: &ReleaseStore, grace: Duration) {
    let parts = store.parts().into_iter();
    for path in parts.filter(|path| is_older(path, grace)) {
        if let Err(error) = files::remove(&path) {
            warn!(path = %path.display(), %error, "a download that nobody went on with stays");
        }
    }
}

/// A folder that a process still calls its own stays.
fn remove_folders(instances: &Path, known: &BTreeSet<String>, grace: Duration) {
    for entry in std::fs::read_dir(instances).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_known = entry
            .file_name()
            .to_str()
            .is_none_or(|name| known.contains(name));
        if is_known || !is_older(&path, grace) || procfs::is_home(&path) {
            continue;
        }
        match files::remove(&path) {
            Ok(()) => info!(path = %path.display(), "a folder of no instance was removed"),
            Err(error) => warn!(path = %path.display(), %error, "cannot be removed; it stays"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_nothing_goes_when_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let store = ReleaseStore::open(dir.path().join("releases")).unwrap();
        let digest = |byte: u8| Digest::from_bytes([byte; 32]);
        for byte in [1, 2] {
            std::fs::create_dir(store.path(&digest(byte))).unwrap();
        }
        std::fs::write(dir.path().join("releases/a-stranger"), "x").unwrap();
        let part = dir.path().join("releases/.work/x.part");
        std::fs::write(&part, "x").unwrap();
        remove_parts(&store, GRACE);
        assert_eq!(store.parts(), [part]);
        remove_parts(&store, Duration::ZERO);
        assert_eq!(store.parts().len(), 0);
        let known = BTreeSet::from([digest(1)]);
        remove_releases(&store, &known, GRACE);
        assert_eq!(store.list().len(), 2, "too young");
        remove_releases(&store, &known, Duration::ZERO);
        assert_eq!(store.list(), [digest(1)]);
        assert!(dir.path().join("releases/a-stranger").exists());

        let instances = dir.path().join("instances");
        for name in ["known", "gone", "running"] {
            std::fs::create_dir_all(instances.join(name).join("0")).unwrap();
        }
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .env("TIDEGATE_INSTANCE_DIR", instances.join("running/0"))
            .spawn()
            .unwrap();
        let known = BTreeSet::from(["known".to_owned()]);
        remove_folders(&instances, &known, GRACE);
        assert!(instances.join("gone").exists(), "too young");
        remove_folders(&instances, &known, Duration::ZERO);
        child.kill().unwrap();
        child.wait().unwrap();
        let left = |name: &str| instances.join(name).exists();
        assert!(left("known") && left("running") && !left("gone"));
        remove_folders(&instances, &known, Duration::ZERO);
        assert!(!left("running"));
    }
}
