//! The hand-over: a new proxy takes the sockets of the running one, and no connection is dropped.
//!
//! The successor asks over the control socket; the predecessor passes the open descriptors of the folder's
//! lock, of the control socket and of every listener (`SCM_RIGHTS`), so that none of them is ever closed or
//! free in between: clients that connect meanwhile wait in the socket's own queue. Then
//!
//! ```text
//! successor      hand_over → ………………… ready → ………………… serving → ………… table, end …
//! predecessor    ………………… offer + descriptors → level → ………… released, level, level, …
//! ```
//!
//! The predecessor accepts until `ready`, nobody for the moment until the `level` is heard, the successor
//! from then on. Until `released` the predecessor keeps its descriptors, so whoever of the two is killed,
//! the other one serves: `give.rs` takes back when the successor falls silent, `take.rs` goes on when the
//! predecessor does. Afterwards the predecessor finishes what is open, follows the successor's tables and
//! tells its counters as levels, which the successor adds to its own (`merge.rs`).

mod channel;
mod give;
mod merge;
mod take;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(super) use channel::Channel;
pub(super) use give::{Gift, drain, give};
pub(super) use merge::Predecessor;
pub(super) use take::{ask, follow, settle};

use super::table::{Held, ProxyProcess, Table};

/// How long the other side may be silent before the hand-over is given up.
const SILENCE: Duration = Duration::from_secs(10);

/// Between two looks at what a draining proxy has still open, and at most between two of its levels.
const LEVEL_EVERY: Duration = Duration::from_millis(100);

/// What the predecessor says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum FromPredecessor {
    /// Everything that the successor needs; the descriptors follow: lock, control socket, then the
    /// listeners in the order of the offer.
    Offer(Box<Offer>),
    /// What is held and counted now.
    Level(Box<Level>),
    /// The predecessor has closed its descriptors.
    Released,
}

/// What is handed over beside the descriptors.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    /// Who hands over.
    process: ProxyProcess,
    /// The table in force.
    table: Table,
    /// The addresses of the listening sockets.
    listeners: Vec<SocketAddr>,
    /// Where each scope is served, which is another address than in the table while that cannot be had.
    served: BTreeMap<String, SocketAddr>,
    /// What is held and counted, in case nothing is heard after it.
    held: Held,
}

/// What a predecessor holds and has counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Level {
    pub(super) held: Held,
    /// Requests, tunnels and connections that are open.
    pub(super) open: u64,
    /// When it handed over and when it cuts off what is open, unix milliseconds.
    pub(super) since: u64,
    pub(super) until: u64,
}

/// What the successor says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum FromSuccessor {
    /// Prepared: stop accepting.
    Ready,
    /// Accepting.
    Serving,
    /// The table in force now; the connections that are still with the predecessor follow it too.
    Table {
        /// The complete table.
        table: Table,
    },
    /// End within this time.
    End {
        /// Milliseconds for what is open.
        grace_ms: u64,
    },
}

/// What a successor wishes of its predecessor; the latest counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wishes {
    pub(super) table: Option<Table>,
    pub(super) end: Option<Duration>,
}
