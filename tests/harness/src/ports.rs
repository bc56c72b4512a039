//! Addresses on loopback: one per agent, so that every agent can have the same port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Context as _;

/// Counts networks within this process.
static NETWORKS: AtomicU16 = AtomicU16::new(0);

/// A /24 of loopback that no other test of this machine uses at the same time, as far as the
/// process id tells.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    second: u8,
    third: u8,
    first_port: u16,
}

/// Ports of instances on one agent.
const PORTS_PER_AGENT: u16 = 50;

impl Network {
    /// The next one.
    pub fn new() -> Self {
        let count = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let seed = std::process::id()
            .wrapping_mul(31)
            .wrapping_add(u32::from(count));
        // 127.0 and 127.1 stay free for people; the result fits a byte by the modulus.
        Self {
            second: 2 + (seed % 250) as u8,
            third: (seed / 250 % 250) as u8,
            first_port: 20_000 + (seed % 50) as u16 * 4 * PORTS_PER_AGENT,
        }
    }

    /// Ports for the instances of the n-th agent, from 1, as `first-last`. Applications that listen
    /// on every address must not meet those of another agent, or of another test.
    pub fn instance_ports(&self, number: u8) -> String {
        let first = self.first_port + u16::from(number - 1) % 4 * PORTS_PER_AGENT;
        format!("{first}-{}", first + PORTS_PER_AGENT - 1)
    }

    /// The n-th address, from 1.
    pub const fn address(&self, number: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, self.second, self.third, number))
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

/// A port of an address that was free a moment ago. The address is the caller's own, so nobody
/// else takes it meanwhile.
///
/// # Errors
/// No port could be had.
pub fn free(address: IpAddr) -> anyhow::Result<u16> {
    let listener = TcpListener::bind(SocketAddr::new(address, 0))
        .with_context(|| format!("no free port on {address}"))?;
    Ok(listener.local_addr()?.port())
}
