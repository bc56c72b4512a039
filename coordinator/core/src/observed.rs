//! What the leader knows from reports and leases; not replicated. Merged levels of agents.
//!
//! Pure: the shell feeds it reports with the time of their arrival. Every input is a level, so that
//! a lost, repeated or reordered one does no harm. A new leader begins with [`Observed::new`] and
//! has the full picture as soon as each agent has reported once. A clone costs nothing, so that
//! whoever looks for longer keeps no report waiting.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate_shared::assignment::{InstanceState, ObservedPlace, Report};
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::time::{Span, Timestamp};

use crate::state::{State, Table};
use crate::telemetry::Telemetry;
use crate::verification::Lanes;

/// Silence after which an agent counts as lost, unless set otherwise.
pub const LOST_AFTER: Span = Span::from_secs(30);

/// The present picture of every agent.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Since when this node leads; agents count as lost at the earliest `lost_after` from then.
    pub leading_since: Timestamp,
    /// Silence after which an agent counts as lost.
    pub lost_after: Span,
    /// By name.
    pub agents: Table<Name, ObservedAgent>,
    /// What the counters of the reports came to over time.
    pub telemetry: Telemetry,
    /// What measurements of checks came to; fed by the shell with the state beside it.
    pub verification: Lanes,
}

impl Default for Observed {
    fn default() -> Self {
        Self::new(Timestamp::ZERO)
    }
}

/// The present picture of one agent.
#[derive(Debug, Clone, Default)]
pub struct ObservedAgent {
    /// When the last report or heartbeat arrived.
    pub last_contact: Timestamp,
    /// Name of the coordinator that carries its session; none: not connected.
    pub coordinator: Option<Name>,
    /// Its last report; none until the first one.
    pub report: Option<Arc<Report>>,
}

impl Observed {
    /// The picture of a node that has just begun to lead: nothing heard yet.
    pub fn new(leading_since: Timestamp) -> Self {
        Self {
            leading_since,
            lost_after: LOST_AFTER,
            agents: Table::new(),
            telemetry: Telemetry::default(),
            verification: Lanes::default(),
        }
    }

    /// Takes in a report that arrived through a coordinator. A report that is not newer than the one
    /// held, by (start, sequence), changes nothing.
    pub fn absorb(&mut self, agent: &Name, coordinator: &Name, report: Report, now: Timestamp) {
        let mut known = self.agents.get(agent).cloned().unwrap_or_default();
        if let Some(held) = &known.report
            && (report.start, report.sequence) <= (held.start, held.sequence)
        {
            return;
        }
        known.last_contact = known.last_contact.max(now);
        known.coordinator = Some(coordinator.clone());
        let held = known.report.as_deref();
        self.telemetry.absorb(agent, held, &report, now);
        known.report = Some(Arc::new(report));
        self.agents.insert(agent.clone(), known);
    }

    /// The agent's session is alive at that coordinator.
    pub fn heartbeat(&mut self, agent: &Name, coordinator: &Name, now: Timestamp) {
        let mut known = self.agents.get(agent).cloned().unwrap_or_default();
        known.last_contact = known.last_contact.max(now);
        known.coordinator = Some(coordinator.clone());
        self.agents.insert(agent.clone(), known);
    }

    /// The agent's session at that coordinator ended; one that has moved elsewhere meanwhile stays.
    pub fn disconnected(&mut self, agent: &Name, coordinator: &Name) {
        if let Some(known) = self.agents.get_mut(agent)
            && known.coordinator.as_ref() == Some(coordinator)
        {
            known.coordinator = None;
        }
    }

    /// Drops everything about an agent that was removed from the cluster.
    pub fn forget(&mut self, agent: &Name) {
        self.agents.remove(agent);
    }

    /// Drops what nobody will ask for: agents that are not in the cluster, the telemetry of
    /// versions that are neither active nor under way, and the history of idle ones. Changes no
    /// answer of the planner; the shell calls it now and then (once a minute) to bound memory.
    pub fn tidy(&mut self, state: &State, now: Timestamp) {
        self.agents
            .retain(|name, _| state.agents.contains_key(name));
        let mut kept = BTreeSet::new();
        let mut watched = BTreeSet::new();
        for scope in state.scopes.values() {
            kept.extend(scope.active);
            kept.extend(scope.retired.iter().copied());
            watched.extend(scope.candidate);
        }
        self.telemetry.tidy(&kept, &watched, now);
        self.verification.tidy(&watched);
    }

    /// Whether nothing was heard of an agent for so long that its instances count as unknown.
    pub fn is_lost(&self, agent: &Name, now: Timestamp) -> bool {
        now >= self.lost_at(agent)
    }

    /// When the agent counts as lost if nothing more is heard of it.
    pub fn lost_at(&self, agent: &Name) -> Timestamp {
        let heard = self.agents.get(agent).map(|known| known.last_contact);
        heard.unwrap_or_default().max(self.leading_since) + self.lost_after
    }

    /// The last report of an agent.
    pub fn report(&self, agent: &Name) -> Option<&Report> {
        self.agents.get(agent)?.report.as_deref()
    }

    /// The last report, if it was made after the agent had taken its present assignments: only
    /// such a one says how far the present wish is fulfilled.
    pub fn present_report(&self, state: &State, agent: &Name) -> Option<&Report> {
        let wished = state.agents.get(agent)?.generation;
        self.report(agent).filter(|report| report.applied >= wished)
    }

    /// What an agent last said about a deployment's place. Facts that no later wish can make untrue
    /// (staged, healthy, a permanent error) may be taken from here.
    pub fn place(&self, agent: &Name, deployment: DeploymentId) -> Option<&ObservedPlace> {
        place_in(self.report(agent)?, deployment)
    }
}

/// A deployment's place in a report.
pub fn place_in(report: &Report, deployment: DeploymentId) -> Option<&ObservedPlace> {
    report
        .places
        .iter()
        .find(|place| place.deployment == deployment)
}

/// Healthy instances of a place.
pub fn healthy(place: &ObservedPlace) -> u32 {
    let healthy = place
        .instances
        .iter()
        .filter(|instance| instance.state == InstanceState::Healthy);
    u32::try_from(healthy.count()).unwrap_or(u32::MAX)
}
