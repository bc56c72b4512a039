//! What runs only while this node leads: the merged picture of the agents and the planner.
//!
//! [`Live`] holds [`Observed`] while this node leads and nothing otherwise; [`planner`] is the
//! loop that turns it into commands. Reports come in through `Live::absorb`, from the sessions
//! here and from other coordinators; the services look through [`Live::picture`].

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tidegate_coordinator_core::desired::concerns;
use tidegate_coordinator_core::state::Table;
use tidegate_coordinator_core::verification::LeaderCheck;
use tidegate_coordinator_core::{Observed, State};
use tidegate_shared::assignment::Report;
use tidegate_shared::id::Name;
use tidegate_shared::measurement::Sample;
use tidegate_shared::time::Timestamp;
use tokio::sync::Notify;

use crate::agents::forward::Batch;
use crate::api::convert::deployment::Picture;
use crate::api::{Context, status};
use crate::raft::peer_service::AskFuture;
use crate::storage::codec;
use crate::storage::data_dir::Peer;

mod measure;
pub mod planner;

#[derive(Default)]
struct Seen {
    observed: Option<Observed>,
    /// Agents of which anything was learnt since the planner's last look.
    heard: BTreeSet<Name>,
    next_wakeup: Option<Timestamp>,
    certificates: Table<Name, Timestamp>,
}

/// What the leader knows beyond the state. Cheap to clone.
#[derive(Clone, Default)]
pub struct Live {
    seen: Arc<Mutex<Seen>>,
    news: Arc<Notify>,
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a coordinator tells of its agents; whether this node leads and took it.
    pub(crate) fn absorb(&self, context: &Context, coordinator: &Name, batch: Batch) -> bool {
        let Some(now) = context.proposer.leader_now() else {
            return false;
        };
        let mut seen = self.lock();
        let Seen {
            observed: Some(observed),
            heard,
            ..
        } = &mut *seen
        else {
            return false;
        };
        for agent in &batch.closed {
            observed.disconnected(agent, coordinator);
        }
        let view = context.query.stale();
        for (agent, mut report) in batch.reports {
            keep_own(&view.state, &agent, &mut report);
            let checks = &mut observed.verification;
            checks.absorb(&view.state, &agent, &report, now);
            heard.insert(agent.clone());
            observed.absorb(&agent, coordinator, report, now);
        }
        if let Some(connected) = &batch.connected {
            for agent in connected.keys() {
                // That one lives on tells nothing new, unless it was taken for lost.
                if observed.is_lost(agent, now) {
                    heard.insert(agent.clone());
                }
                observed.heartbeat(agent, coordinator, now);
            }
            let gone: Vec<Name> = observed
                .agents
                .iter()
                .filter(|(agent, known)| {
                    known.coordinator.as_ref() == Some(coordinator)
                        && !connected.contains_key(*agent)
                })
                .map(|(agent, _)| agent.clone())
                .collect();
            for agent in gone {
                observed.disconnected(&agent, coordinator);
            }
            seen.certificates.extend(connected.clone());
        }
        drop(seen);
        self.news.notify_one();
        true
    }

    /// Looks at the state together with what is seen now. Reports do not wait meanwhile.
    pub fn picture<'a, R>(
        &self,
        context: &Context,
        state: &'a State,
        look: impl FnOnce(Picture<'_>) -> R,
    ) -> R
    where
        R: 'a,
    {
        let now = context.proposer.leader_now();
        let seen = self.lock();
        let observed = seen.observed.clone().filter(|_| now.is_some());
        let (next_wakeup, certificates) = (seen.next_wakeup, seen.certificates.clone());
        drop(seen);
        look(Picture {
            state,
            observed: observed.as_ref(),
            now: now.unwrap_or(state.at),
            next_wakeup,
            certificates: &certificates,
        })
    }

    /// A copy of what is seen; none where this node does not lead.
    #[must_use]
    pub fn observed(&self) -> Option<Observed> {
        self.lock().observed.clone()
    }

    /// How many agents are connected to any coordinator; 0 where this node does not lead.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.lock().observed.as_ref().map_or(0, |observed| {
            observed
                .agents
                .values()
                .filter(|known| known.coordinator.is_some())
                .count()
        })
    }

    /// Takes in what this leader measured itself; whether the check still wants any.
    fn measured(
        &self,
        context: &Context,
        check: &LeaderCheck,
        sequence: u64,
        sample: &Sample,
    ) -> bool {
        let Some(now) = context.proposer.leader_now() else {
            return false;
        };
        let view = context.query.stale();
        let mut seen = self.lock();
        let Some(observed) = &mut seen.observed else {
            return false;
        };
        let lanes = &mut observed.verification;
        let (id, name) = (check.deployment, &check.name);
        let wanted = lanes.measured(&view.state, id, name, check.run, sequence, sample, now);
        // What is learnt of a deployment counts as if its agents had told it.
        let measured = view.state.deployments.get(&id);
        let agents = measured.into_iter().flat_map(|d| &d.participants);
        seen.heard.extend(agents.cloned());
        drop(seen);
        self.news.notify_one();
        wanted
    }

    fn begin(&self, observed: Observed) {
        *self.lock() = Seen {
            observed: Some(observed),
            ..Seen::default()
        };
    }

    fn end(&self) {
        *self.lock() = Seen::default();
    }

    /// Looks at what is seen, with the agents of which anything was learnt since the last time; none
    /// where this node does not lead.
    fn look<R>(&self, look: impl FnOnce(&Observed, &BTreeSet<Name>) -> R) -> Option<R> {
        let mut seen = self.lock();
        let heard = std::mem::take(&mut seen.heard);
        let observed = seen.observed.clone();
        drop(seen);
        observed.map(|observed| look(&observed, &heard))
    }

    /// Drops what nobody will ask for.
    fn tidy(&self, state: &State, now: Timestamp) {
        let mut seen = self.lock();
        if let Some(observed) = &mut seen.observed {
            observed.tidy(state, now);
        }
        seen.certificates
            .retain(|name, _| state.agents.contains_key(name));
    }

    fn set_next_wakeup(&self, at: Option<Timestamp>) {
        self.lock().next_wakeup = at;
    }

    async fn news(&self) {
        self.news.notified().await;
    }
}

/// An agent tells of the deployments that it acts for, of each once. Whatever else it says is
/// dropped: it must not move the rollouts of others, nor fill the leader's memory.
fn keep_own(state: &State, agent: &Name, report: &mut Report) {
    let Some(known) = state.agents.get(agent) else {
        report.places.clear();
        return;
    };
    let mut seen = BTreeSet::new();
    report.places.retain(|place| {
        let found = state.deployments.get(&place.deployment);
        found
            .is_some_and(|found| found.origin.scope == place.scope && concerns(found, agent, known))
            && seen.insert(place.deployment)
    });
}

/// Answers other coordinators that tell of their agents.
#[must_use]
pub fn take_batch(context: Arc<Context>) -> Arc<dyn crate::raft::peer_service::AskHandler> {
    Arc::new(move |from: Peer, payload: Bytes| -> AskFuture {
        let context = context.clone();
        Box::pin(async move {
            let batch: Batch = codec::decode(&payload)
                .map_err(|error| tonic::Status::invalid_argument(error.to_string()))?;
            let coordinator = Name::new(from.name)
                .map_err(|error| tonic::Status::invalid_argument(error.message))?;
            if context.live.absorb(&context, &coordinator, batch) {
                Ok(Bytes::new())
            } else {
                Err(status::refusal(
                    tidegate_shared::error::Reason::NoLeader,
                    "this coordinator does not lead",
                ))
            }
        })
    })
}
