//! Who holds a TCP port of this host, told from `/proc`: a best effort for an error message.

use std::fs;
use std::net::SocketAddr;

/// The state of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// "127.0.0.1:7440 is taken by nginx (pid 812)", or without the name when it cannot be found.
#[must_use]
pub fn message(address: SocketAddr) -> String {
    match holder(address.port()) {
        Some(holder) => format!("{address} is taken by {holder}"),
        None => format!("{address} is taken by another process"),
    }
}

fn holder(port: u16) -> Option<String> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .find_map(|text| text.lines().skip(1).find_map(|line| inode(line, port)))
        .and_then(|inode| owner(&inode))
}

/// The inode of a listening socket on the port.
fn inode(line: &str, port: u16) -> Option<String> {
    let mut fields = line.split_ascii_whitespace();
    let (_, local) = fields.nth(1)?.split_once(':')?;
    let is_wanted = u16::from_str_radix(local, 16) == Ok(port) && fields.nth(1)? == LISTEN;
    if is_wanted {
        fields.nth(5).map(str::to_owned)
    } else {
        None
    }
}

fn owner(inode: &str) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let pid = process.file_name();
        let Some(pid) = pid
            .to_str()
            .filter(|p| p.bytes().all(|b| b.is_ascii_digit()))
        else {
            continue;
        };
        // Other users' processes cannot be looked into.
        let Ok(files) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = files
            .flatten()
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|target| target.to_str() == Some(wanted.as_str()));
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", name.trim()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let text = message(address);
        let pid = std::process::id();
        assert!(text.contains(&format!("(pid {pid})")), "{text}");
    }
}
