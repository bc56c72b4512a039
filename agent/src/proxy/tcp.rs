//! One raw connection from a client to an instance: bytes both ways until one side ends.
//!
//! Weights are shares of connections. Which version and instance are asked is settled as for a request; one
//! that refuses is gone past, since nothing was sent. When nobody takes it the client's connection is
//! closed. The listener calls this once per connection of a scope with `protocol: tcp`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::listener::Client;
use super::meter::Metered;
use super::routes::{RoutedVersion, Routes};
use super::upstream::{CONNECT_TIMEOUT, Lease};

/// How often a connection may find that its routes were replaced while it chose, a millisecond apart.
const REROUTES: usize = 200;

/// What came of asking one version.
enum Asked {
    Taken(Lease, TcpStream),
    Refused,
    Outdated,
}

/// Carries one connection until it ends.
pub(super) async fn carry<S>(client: &Client, mut stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let _active = client.activity.begin();
    let Some((lease, instance)) = find(client).await else {
        return;
    };
    let ledger = Arc::clone(&lease.instance().ledger);
    ledger.stats.connection();
    let mut instance = Metered::new(instance, Arc::clone(&ledger));
    let task = tokio::spawn(async move {
        // Held until both directions have ended.
        let _lease = lease.taken();
        if let Err(error) = copy_bidirectional(&mut stream, &mut instance).await {
            debug!(%error, "a connection broke");
        }
    });
    // The end of the drain time cuts it, and so does the end of the client's task.
    ledger.adopt(task.abort_handle());
    AbortOnDropHandle::new(task).await.ok();
}

async fn find(client: &Client) -> Option<(Lease, TcpStream)> {
    for _ in 0..REROUTES {
        let routes = client.door.routes();
        let mut outdated = false;
        for version in routes.by_weight() {
            match ask(version, &routes).await {
                Asked::Taken(lease, stream) => return Some((lease, stream)),
                Asked::Refused => {}
                Asked::Outdated => {
                    outdated = true;
                    break;
                }
            }
        }
        if !outdated {
            routes.unrouted.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    None
}

async fn ask(version: &RoutedVersion, routes: &Routes) -> Asked {
    let mut tried = Vec::new();
    let mut refused = false;
    while let Some((index, lease)) = version.lease(&tried, Instant::now()) {
        let instance = Arc::clone(lease.instance());
        let connect = TcpStream::connect(instance.address);
        let reason = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(stream)) => match stream.set_nodelay(true) {
                Ok(()) => return Asked::Taken(lease, stream),
                Err(error) => error.to_string(),
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
        };
        debug!(
            scope = routes.scope,
            instance = instance.id,
            reason,
            "connection refused"
        );
        instance.ledger.stats.connect_error();
        instance.avoid();
        tried.push(index);
        lease.cancel();
        refused = true;
    }
    if refused {
        Asked::Refused
    } else {
        Asked::Outdated
    }
}
