//! A connection that changed its protocol (WebSocket and the like): bytes both ways until one side ends.
//! The instance counts as busy for as long; `close` and the end of the proxy cut it. The forwarding calls
//! this after a 101.

use hyper::Response;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tracing::debug;

use super::body::ResponseBody;
use super::headers;
use super::listener::Active;
use super::meter::Metered;
use super::upstream::Lease;

/// Answers 101 to the client and joins both sides once that is written.
pub(super) fn join(
    lease: Lease,
    mut response: Response<Incoming>,
    client_side: OnUpgrade,
    active: Active,
) -> Response<ResponseBody> {
    let instance_side = hyper::upgrade::on(&mut response);
    let protocol = response.headers().get(UPGRADE).cloned();
    headers::strip_hop(response.headers_mut());
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(UPGRADE, protocol);
    }
    let ledger = std::sync::Arc::clone(&lease.instance().ledger);
    let counted = std::sync::Arc::clone(&ledger);
    let task = tokio::spawn(async move {
        // Held until both directions have ended.
        let _lease = lease;
        match tokio::try_join!(client_side, instance_side) {
            Ok((client, instance)) => {
                let mut client = TokioIo::new(client);
                let mut instance = Metered::new(TokioIo::new(instance), counted);
                if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut instance).await
                {
                    debug!(%error, "tunnel broke");
                }
            }
            Err(error) => debug!(%error, "the change of protocol was not completed"),
        }
    });
    ledger.adopt(task.abort_handle());
    response.map(|_| ResponseBody::empty(active))
}
