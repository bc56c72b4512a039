//! Measurements that the leader makes itself: requests to addresses and queries to a Prometheus.
//!
//! One task per check that is under way, which ends with the lead or with the check. What is found
//! goes into [`Live`](super::Live), which judges it; nothing here decides.

mod client;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_coordinator_core::verification::{LeaderCheck, leader_checks};
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::time::Timestamp;
use tokio_util::task::AbortOnDropHandle;

use crate::api::Context;

type Key = (DeploymentId, Name, Timestamp);

/// The measurements under way. Dropping it ends them.
#[derive(Debug, Default)]
pub(super) struct Measuring(BTreeMap<Key, AbortOnDropHandle<()>>);

impl Measuring {
    /// Begins what the present state asks for, and ends what it does not.
    pub(super) fn sync(&mut self, context: &Arc<Context>) {
        let view = context.query.stale();
        let wanted = leader_checks(&view.state);
        if wanted.is_empty() && self.0.is_empty() {
            return;
        }
        let mut before = std::mem::take(&mut self.0);
        for check in wanted {
            let key = (check.deployment, check.name.clone(), check.run);
            let task = before.remove(&key).unwrap_or_else(|| {
                let task = tokio::spawn(run(Arc::clone(context), check));
                AbortOnDropHandle::new(task)
            });
            self.0.insert(key, task);
        }
    }
}

/// Measures until nobody wants to know.
async fn run(context: Arc<Context>, check: LeaderCheck) {
    let Some(now) = context.proposer.leader_now() else {
        return;
    };
    tokio::time::sleep(check.begins.since(now).to_std()).await;
    let mut sequence = 0;
    loop {
        let began = context.clock.instant();
        let sample = client::sample(&check.what).await;
        sequence += 1;
        tracing::debug!(check = %check.name, deployment = %check.deployment, ?sample, "measured");
        if !context.live.measured(&context, &check, sequence, &sample) {
            return;
        }
        let took = context.clock.instant().saturating_duration_since(began);
        tokio::time::sleep(check.interval.to_std().saturating_sub(took)).await;
    }
}
