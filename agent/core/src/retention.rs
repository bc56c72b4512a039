//! Which releases stay on disk: those in use, and the latest few of each scope, so that a return
//! to one of them needs neither coordinator nor network.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::Name;
use tidegate_shared::time::Timestamp;

/// A release on disk that a scope has used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRelease {
    /// The scope.
    pub scope: Name,
    /// The asset's digest: the name of its folder.
    pub digest: Digest,
    /// When a place of the scope was last staged from it or removed.
    pub used_at: Timestamp,
}

/// The records that can go: per scope, all but the `keep` latest (its own number, or the default
/// for scopes that are not wished any more), and none whose digest is in use.
pub fn expendable(
    records: &[KeptRelease],
    in_use: &BTreeSet<Digest>,
    keep: &BTreeMap<Name, u32>,
    default_keep: u32,
) -> Vec<KeptRelease> {
    let mut sorted: Vec<&KeptRelease> = records.iter().collect();
    sorted.sort_by(|a, b| (&a.scope, b.used_at, a.digest).cmp(&(&b.scope, a.used_at, b.digest)));
    let mut seen: BTreeMap<&Name, u32> = BTreeMap::new();
    let mut gone = Vec::new();
    for record in sorted {
        let position = seen.entry(&record.scope).or_default();
        let limit = keep.get(&record.scope).copied().unwrap_or(default_keep);
        if *position >= limit && !in_use.contains(&record.digest) {
            gone.push(record.clone());
        }
        *position += 1;
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_and_the_used_ones_stay() {
        let scope = |text: &str| Name::new(text).expect("a name");
        let record = |name: &str, byte: u8, at: u64| KeptRelease {
            scope: scope(name),
            digest: Digest::from_bytes([byte; 32]),
            used_at: Timestamp::from_millis(at),
        };
        let records = [
            record("a", 1, 10),
            record("a", 2, 20),
            record("a", 3, 30),
            record("a", 4, 40),
            record("b", 5, 1),
        ];
        let in_use = BTreeSet::from([Digest::from_bytes([1; 32])]);
        let keep = BTreeMap::from([(scope("a"), 2)]);
        assert_eq!(
            expendable(&records, &in_use, &keep, 1),
            [record("a", 2, 20)]
        );
        assert_eq!(
            expendable(&records, &in_use, &keep, 0),
            [record("a", 2, 20), record("b", 5, 1)]
        );
    }
}
