//! The port table: which of the agent's ports an instance gets.
//!
//! An instance keeps its port over restarts as long as nobody else has taken it. A port is tried
//! by a real bind, because other programs, and other agents, use ports of the range too.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::net::{IpAddr, TcpListener};

use crate::config::PortRange;

/// Picks ports.
#[derive(Debug, Clone)]
pub struct Ports {
    range: PortRange,
    address: IpAddr,
    offset: u32,
}

impl Ports {
    /// Ports of a range on an address. Agents that share both begin at places of their own.
    pub fn new(range: PortRange, address: IpAddr, agent: &str) -> Self {
        let size = u64::from(range.last - range.first) + 1;
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(agent);
        Self {
            range,
            address,
            offset: (hash % size) as u32,
        }
    }

    /// The port for a start: the kept one if it is free, else the next that is free and nobody's.
    ///
    /// # Errors
    /// The range is used up.
    pub fn pick(&self, kept: u16, taken: &BTreeSet<u16>) -> Result<u16, String> {
        if kept > 0 && self.is_free(kept) {
            return Ok(kept);
        }
        let size = u32::from(self.range.last - self.range.first) + 1;
        (0..size)
            .map(|step| self.range.first + ((self.offset + step) % size) as u16)
            .find(|port| !taken.contains(port) && self.is_free(*port))
            .ok_or_else(|| {
                format!(
                    "no port of {}-{} is free for another instance",
                    self.range.first, self.range.last
                )
            })
    }

    fn is_free(&self, port: u16) -> bool {
        TcpListener::bind((self.address, port)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_port_stays_until_somebody_else_has_it() {
        let address = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        let held = TcpListener::bind((address, 0)).unwrap();
        let held_port = held.local_addr().unwrap().port();
        let free = TcpListener::bind((address, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let range = PortRange {
            first: held_port.min(free),
            last: held_port.max(free),
        };
        let ports = Ports::new(range, address, "web-1");
        assert_eq!(ports.pick(free, &BTreeSet::new()), Ok(free));
        let other = ports.pick(held_port, &BTreeSet::new()).unwrap();
        assert!(other != held_port && (range.first..=range.last).contains(&other));
        let only = PortRange {
            first: held_port,
            last: held_port,
        };
        let error = Ports::new(only, address, "web-1")
            .pick(0, &BTreeSet::new())
            .unwrap_err();
        assert!(error.contains("is free for another instance"), "{error}");
        let taken = (range.first..=range.last).collect();
        assert!(ports.pick(0, &taken).is_err());
    }
}
