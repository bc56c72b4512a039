//! Reads, on any node.
//!
//! A linearizable read asks the leader for its commit index (Raft's ReadIndex, which confirms the
//! lead with a majority) and waits until the own view has reached it. Reads that come while one
//! round is under way share the next round. Raft drops the question silently when nobody leads,
//! so each round has a limit and is asked again.

use std::sync::Arc;
use std::time::Duration;

use tidegate_shared::error::Reason;
use tokio::sync::{mpsc, oneshot, watch};

use crate::raft::RaftStatus;
use crate::raft::driver::RaftHandle;
use crate::replica::{View, Views};

/// How long a read may take in all.
pub const READ_LIMIT: Duration = Duration::from_secs(5);
const MAX_WAITING: usize = 64 * 1024;

/// Why a read has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// No leader confirmed the read in time.
    #[error("no leader answered within {READ_LIMIT:?}: a linearizable read needs a majority")]
    NoLeader {
        /// Who was last known to lead.
        hint: Option<u64>,
    },
    /// Too many reads wait.
    #[error("too many reads wait")]
    QueueFull,
    /// The node is stopping.
    #[error("this coordinator is stopping")]
    ShuttingDown,
}

impl QueryError {
    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            QueryError::NoLeader { .. } => Reason::NoLeader,
            QueryError::QueueFull => Reason::QueueFull,
            QueryError::ShuttingDown => Reason::ShuttingDown,
        }
    }
}

/// The way to read. Cheap to clone.
#[derive(Clone)]
pub struct Query {
    waiting: mpsc::Sender<oneshot::Sender<u64>>,
    views: Views,
    status: watch::Receiver<RaftStatus>,
}

impl Query {
    /// Starts the task that asks for all readers; it ends when the last `Query` is dropped.
    pub(crate) fn start(raft: &RaftHandle, views: Views, tick: Duration) -> Query {
        let (waiting, receiver) = mpsc::channel(MAX_WAITING);
        tokio::spawn(rounds(raft.clone(), receiver, tick));
        Query {
            waiting,
            views,
            status: raft.status(),
        }
    }

    /// The state, at least as new as everything that was answered to anybody before this call.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn linearizable(&self) -> Result<Arc<View>, QueryError> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.try_send(sender).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => QueryError::QueueFull,
            mpsc::error::TrySendError::Closed(_) => QueryError::ShuttingDown,
        })?;
        let mut views = self.views.clone();
        let read = async {
            let index = receiver.await.map_err(|_| QueryError::ShuttingDown)?;
            let view = views
                .wait_for(|view| view.index >= index)
                .await
                .map_err(|_| QueryError::ShuttingDown)?;
            Ok(view.clone())
        };
        tokio::time::timeout(READ_LIMIT, read)
            .await
            .unwrap_or_else(|_| {
                Err(QueryError::NoLeader {
                    hint: self.status.borrow().leader,
                })
            })
    }

    /// The state as this node knows it: perhaps behind, never wrong for its index.
    #[must_use]
    pub fn stale(&self) -> Arc<View> {
        self.views.borrow().clone()
    }

    /// The views as they come.
    #[must_use]
    pub fn views(&self) -> Views {
        self.views.clone()
    }
}

async fn rounds(
    raft: RaftHandle,
    mut waiting: mpsc::Receiver<oneshot::Sender<u64>>,
    tick: Duration,
) {
    let mut status = raft.status();
    let mut lost = raft.status();
    let mut readers = Vec::new();
    while waiting.recv_many(&mut readers, MAX_WAITING).await > 0 {
        loop {
            readers.retain(|reader| !reader.is_closed());
            if readers.is_empty() {
                break;
            }
            status.borrow_and_update();
            let answer = raft.read_index();
            tokio::select! {
                answer = answer => {
                    if let Ok(index) = answer {
                        for reader in readers.drain(..) {
                            reader.send(index).ok();
                        }
                        break;
                    }
                    // Dropped: nobody leads. Ask again when that changes, or after a while.
                    tokio::select! {
                        changed = status.changed() => if changed.is_err() { return },
                        () = tokio::time::sleep(tick) => {}
                    }
                }
                is_over = async { lost.wait_for(|s| s.leader.is_none()).await.is_err() } => {
                    if is_over {
                        return;
                    }
                    tokio::time::sleep(tick).await;
                }
                () = tokio::time::sleep(tick * 4) => {}
            }
        }
    }
}
