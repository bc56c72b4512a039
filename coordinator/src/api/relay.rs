//! Passing a person's request on to another coordinator, with the person's identity.
//!
//! What only the leader knows (live telemetry, who is connected) is answered by the leader; a
//! request that came relayed is never relayed again.

use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::authn::Caller;
use super::gate::RELAYED_FOR;
use super::{Context, status};
use crate::raft::Role;

/// Largest answer that is taken from another coordinator.
pub const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// A call of the leader may take so long.
pub const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// The channel to the leader, if another node leads and the request did not come from one.
#[must_use]
pub fn leader_channel(context: &Context, caller: &Caller) -> Option<Channel> {
    if caller.relayed {
        return None;
    }
    let leader = {
        let status = context.status.borrow();
        match status.role {
            Role::Leader => return None,
            Role::Follower | Role::Candidate | Role::Learner => status.leader?,
        }
    };
    match context.peers.channel(leader) {
        Ok(channel) => Some(channel),
        Err(error) => {
            tracing::debug!(%error, "the leader cannot be asked");
            None
        }
    }
}

/// The same request in the caller's name.
///
/// # Errors
/// The caller has no identity that can be passed on.
pub fn request_for<T>(caller: &Caller, message: T) -> Result<Request<T>, Status> {
    let identity = caller
        .identity
        .as_ref()
        .ok_or_else(|| status::internal(&"an anonymous request cannot be relayed"))?;
    let value =
        MetadataValue::try_from(identity.to_string()).map_err(|error| status::internal(&error))?;
    let mut request = Request::new(message);
    request.metadata_mut().insert(RELAYED_FOR, value);
    Ok(request)
}

/// The answer of the other coordinator, or nothing when it could not be reached: then this node
/// answers with what it knows.
///
/// # Errors
/// Every other answer.
pub fn answered<T>(result: Result<Response<T>, Status>) -> Result<Option<Response<T>>, Status> {
    match result {
        Ok(response) => Ok(Some(response)),
        Err(status)
            if matches!(
                status.code(),
                tonic::Code::Unavailable
                    | tonic::Code::Cancelled
                    | tonic::Code::DeadlineExceeded
                    | tonic::Code::Unknown
            ) =>
        {
            tracing::debug!(error = %status, "the leader did not answer; this node does");
            Ok(None)
        }
        Err(status) => Err(status),
    }
}

/// Relays a unary call to the leader if it is elsewhere and reachable; evaluates to an
/// `Option<Response<_>>`.
macro_rules! ask_leader {
    ($context:expr, $caller:expr, $client:ident, $method:ident, $message:expr) => {
        match $crate::api::relay::leader_channel(&$context, &$caller) {
            Some(channel) => {
                let mut client = $client::new(channel)
                    .max_decoding_message_size($crate::api::relay::MAX_MESSAGE);
                let mut request = $crate::api::relay::request_for(&$caller, $message)?;
                request.set_timeout($crate::api::relay::LIMIT);
                $crate::api::relay::answered(client.$method(request).await)?
            }
            None => None,
        }
    };
}

pub(crate) use ask_leader;
