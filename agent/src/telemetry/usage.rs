//! What instances use: processor time and memory of their process groups, from `/proc`.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::executor::procfs;

/// Clock ticks per second in `/proc`, the same on every Linux.
const TICKS_PER_SECOND: u128 = 100;

/// Reads usages; the processor's share is that between two reads.
#[derive(Default)]
pub struct UsageMeter {
    last: BTreeMap<u32, (Instant, u64)>,
}

/// What a group uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Basis points of one core.
    pub cpu_basis_points: u32,
    /// Resident bytes.
    pub memory_bytes: u64,
}

impl UsageMeter {
    /// The usage of these groups now, in one pass over `/proc`.
    pub fn read(&mut self, groups: &[u32], now: Instant) -> BTreeMap<u32, Usage> {
        let mut usages = BTreeMap::new();
        if !groups.is_empty() {
            let page = rustix::param::page_size() as u64;
            for (group, (ticks, pages)) in procfs::usage_of(groups) {
                let cpu_basis_points = self.share(group, ticks, now);
                let memory_bytes = pages.saturating_mul(page);
                let usage = Usage {
                    cpu_basis_points,
                    memory_bytes,
                };
                usages.insert(group, usage);
            }
        }
        self.last.retain(|group, _| usages.contains_key(group));
        usages
    }

    fn share(&mut self, group: u32, ticks: u64, now: Instant) -> u32 {
        let Some((then, before)) = self.last.insert(group, (now, ticks)) else {
            return 0;
        };
        let spent = u128::from(ticks.saturating_sub(before));
        let millis = now.saturating_duration_since(then).as_millis();
        let share = (spent * 1_000 * 10_000).checked_div(TICKS_PER_SECOND * millis);
        u32::try_from(share.unwrap_or(0)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn shares_are_of_the_time_between_two_reads() {
        let mut meter = UsageMeter::default();
        let start = Instant::now();
        assert_eq!(meter.share(7, 100, start), 0);
        assert_eq!(meter.share(7, 150, start + Duration::from_secs(1)), 5_000);
        assert_eq!(meter.share(7, 150, start + Duration::from_secs(1)), 0);
    }

    #[test]
    fn this_group_uses_memory() {
        let group = procfs::stat(std::process::id()).unwrap().group;
        let usages = UsageMeter::default().read(&[group], Instant::now());
        assert!(usages[&group].memory_bytes > 0);
        assert!(UsageMeter::default().read(&[], Instant::now()).is_empty());
    }
}
