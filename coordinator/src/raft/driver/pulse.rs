//! Whether replication still turns: a question that passes through the Raft thread and then through
//! the replica's. It reads and changes nothing. The watchdog of `service.rs` asks it.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{Input, RaftHandle};

/// The way to ask. Cheap to clone.
#[derive(Clone)]
pub struct Pulse(RaftHandle);

impl Pulse {
    pub(crate) const fn new(raft: RaftHandle) -> Self {
        Self(raft)
    }

    /// Whether both threads came to the question within `limit`. Work that was queued before it
    /// counts, so the limit should be seconds.
    pub async fn beats_within(&self, limit: Duration) -> bool {
        let (sender, receiver) = oneshot::channel();
        self.0.send(Input::Pulse(sender));
        matches!(tokio::time::timeout(limit, receiver).await, Ok(Ok(())))
    }
}
