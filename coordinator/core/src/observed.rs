//! What the leader knows from reports and leases; not replicated. Merged levels of agents.
//!
//! Pure: the shell feeds it reports with the time of their arrival.

use std::collections::BTreeMap;

use tidegate_shared::assignment::Report;
use tidegate_shared::id::Name;
use tidegate_shared::time::Timestamp;

/// The present picture of every agent.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Since when this node leads; agents count as lost at the earliest `lost_after` from then.
    pub leading_since: Timestamp,
    /// By name.
    pub agents: BTreeMap<Name, ObservedAgent>,
}

/// The present picture of one agent.
#[derive(Debug, Clone, Default)]
pub struct ObservedAgent {
    /// When the last report or heartbeat arrived.
    pub last_contact: Timestamp,
    /// Name of the coordinator that carries its session; none: not connected.
    pub coordinator: Option<Name>,
    /// Its last report; none until the first one.
    pub report: Option<Report>,
}
