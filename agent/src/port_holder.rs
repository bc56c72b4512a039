//! Who holds a TCP port of this host, told from `/proc`.
//!
//! A bind that fails with "address in use" helps nobody; "held by nginx (pid 812)" does. The answer is a
//! best effort for an error message: without the right to look into another user's process the holder
//! stays unknown, and nothing may depend on it. The proxy and the process executor call this.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// The state of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// A process that holds a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortHolder {
    /// Its process id.
    pub pid: u32,
    /// Its name as the kernel keeps it (at most 15 bytes).
    pub name: String,
}

impl fmt::Display for PortHolder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} (pid {})", self.name, self.pid)
    }
}

/// The process whose socket keeps `address` from being bound, when it can be found. Listening sockets are
/// preferred over connections that merely use the port.
#[must_use]
pub fn port_holder(address: SocketAddr) -> Option<PortHolder> {
    let mut sockets = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        if let Ok(text) = fs::read_to_string(table) {
            sockets.extend(text.lines().skip(1).filter_map(parse_socket));
        }
    }
    sockets.retain(|socket| socket.inode != 0 && in_the_way(socket.local, address));
    sockets.sort_by_key(|socket| !socket.listening);
    sockets.iter().find_map(|socket| owner_of(socket.inode))
}

/// "port 8080 on 127.0.0.1 is held by nginx (pid 812)", or without the name when it cannot be found.
#[must_use]
pub fn port_taken_message(address: SocketAddr) -> String {
    let (port, ip) = (address.port(), address.ip());
    match port_holder(address) {
        Some(holder) => format!("port {port} on {ip} is held by {holder}"),
        None => format!(
            "port {port} on {ip} is held by another process (its name is not visible to this user)"
        ),
    }
}

/// Why nothing can listen there, in one line; `error` is what the attempt said.
#[must_use]
pub fn why_not(listen: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => port_taken_message(listen),
        io::ErrorKind::AddrNotAvailable => {
            format!("{} is not an address of this host", listen.ip())
        }
        io::ErrorKind::PermissionDenied => format!(
            "port {} needs the capability CAP_NET_BIND_SERVICE",
            listen.port()
        ),
        _ => error.to_string(),
    }
}

struct Socket {
    local: SocketAddr,
    listening: bool,
    inode: u64,
}

fn parse_socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace();
    let local = parse_address(fields.nth(1)?)?;
    let listening = fields.nth(1)? == LISTEN;
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Socket {
        local,
        listening,
        inode,
    })
}

/// `0100007F:1F90`: the address as 32-bit words in the byte order of the machine, the port in hex.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if !ip.is_ascii() {
        return None;
    }
    let mut bytes = Vec::with_capacity(16);
    for start in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(start..start + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Whether a socket at `held` can keep `wanted` from being bound: the same port on the same address, or
/// either of them on every address.
fn in_the_way(held: SocketAddr, wanted: SocketAddr) -> bool {
    let same = held.ip() == wanted.ip().to_canonical();
    held.port() == wanted.port()
        && (same || held.ip().is_unspecified() || wanted.ip().is_unspecified())
}

fn owner_of(inode: u64) -> Option<PortHolder> {
    let target = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if holds(&process.path().join("fd"), &target) {
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            return Some(PortHolder {
                pid,
                name: name.trim().to_owned(),
            });
        }
    }
    None
}

fn holds(descriptors: &Path, target: &str) -> bool {
    // Unreadable: the process ended, or belongs to a user whose descriptors are not ours to see.
    let Ok(entries) = fs::read_dir(descriptors) else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn names_this_process_for_its_own_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let holder = port_holder(address).expect("found");
        assert_eq!(holder.pid, std::process::id());
        let message = port_taken_message(address);
        let expected = format!("port {} on 127.0.0.1 is held by {holder}", address.port());
        assert_eq!(message, expected);
    }

    #[test]
    fn a_listener_on_every_address_is_in_the_way_of_one() {
        let listener = TcpListener::bind("[::]:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let wanted = SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(port_holder(wanted).map(|h| h.pid), Some(std::process::id()));
    }

    #[test]
    fn lines_of_the_kernel_are_read_and_others_skipped() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 100 0 0 10 0";
        let socket = parse_socket(line).expect("parses");
        assert_eq!(socket.local, "127.0.0.1:8080".parse().expect("address"));
        assert!(socket.listening);
        assert_eq!(socket.inode, 4242);
        for broken in [
            "",
            "0:",
            "0: zz:1F90 x 0A",
            "0: 0100007:1F90 0 0A a b c d e f",
        ] {
            assert!(parse_socket(broken).is_none(), "{broken}");
        }
    }
}
