//! Answers to asks about the host: whether it could take a release. Nothing is kept or changed; a
//! port is bound for an instant and let go.

use std::net::{IpAddr, SocketAddr, TcpListener};

use tidegate_proto::agent::v1 as wire;
use tidegate_shared::digest::Digest;

use super::convert::limits;
use crate::asset::ReleaseStore;
use crate::executor::Executor;
use crate::port_holder::why_not;

/// Looks at the port, the release, the disk and what the executor can hold instances to.
pub fn look(
    ask: &wire::HostAsk,
    store: &ReleaseStore,
    listen: IpAddr,
    executor: &dyn Executor,
) -> wire::HostAnswer {
    let port_trouble = match u16::try_from(ask.port) {
        Ok(0) => String::new(),
        Ok(port) => {
            let address = SocketAddr::new(listen, port);
            TcpListener::bind(address)
                .err()
                .map_or_else(String::new, |error| why_not(address, &error))
        }
        Err(_) => format!("{} is no port", ask.port),
    };
    let digest: Option<Digest> = ask.digest.parse().ok();
    wire::HostAnswer {
        port_trouble,
        is_staged: digest.is_some_and(|digest| store.has(&digest)),
        room: store.room(),
        limit_trouble: ask.limits.map(|wanted| {
            let trouble = executor.limit_trouble(&limits(wanted));
            trouble.unwrap_or_default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::fake::FakeExecutor;

    #[test]
    fn a_held_port_is_told_with_its_holder_and_a_release_that_is_there_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = ReleaseStore::open(dir.path().join("releases")).unwrap();
        let digest = Digest::of(b"release");
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let ask = wire::HostAsk {
            port: u32::from(port),
            digest: digest.to_string(),
            limits: None,
        };
        let (events, _kept) = tokio::sync::mpsc::unbounded_channel();
        let executor = FakeExecutor::new(events);
        let look = |ask: &wire::HostAsk, store: &ReleaseStore, listen: IpAddr| {
            look(ask, store, listen, &executor)
        };
        let listen = IpAddr::from([127, 0, 0, 1]);
        let held = look(&ask, &store, listen);
        let own = format!("(pid {})", std::process::id());
        assert!(held.port_trouble.contains(&own), "{held:?}");
        assert!(!held.is_staged && held.room > 0);
        drop(holder);
        std::fs::create_dir(store.path(&digest)).unwrap();
        let free = look(&ask, &store, listen);
        assert_eq!(free.port_trouble, "");
        assert!(free.is_staged);
        assert_eq!(free.limit_trouble, None);
        let limited = wire::HostAsk {
            limits: Some(wire::Limits {
                memory_bytes: 64 << 20,
                ..wire::Limits::default()
            }),
            ..ask.clone()
        };
        let held = look(&limited, &store, listen);
        assert_eq!(held.limit_trouble.as_deref(), Some(""));
        executor.cannot_limit("limits.memory cannot be enforced");
        let refused = look(&limited, &store, listen).limit_trouble;
        assert!(refused.is_some_and(|why| why.contains("limits.memory")));
        let elsewhere = look(&ask, &store, [192, 0, 2, 1].into());
        assert!(
            elsewhere
                .port_trouble
                .contains("not an address of this host")
        );
    }
}
