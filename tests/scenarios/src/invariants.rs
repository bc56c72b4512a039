//! The rules that must hold at every instant of every story, whatever its trace.
//!
//! The state's own rules are asked of the state; what only hosts can show is looked at here, on the
//! hosts themselves and not in their reports.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_agent_core::instance::Phase;
use tidegate_agent_core::place::PlaceKey;
use tidegate_coordinator_core::state::{State, Status};
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::weight::Weight;

use crate::world::Host;

/// What was seen so far.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Agents and scopes where the whole traffic was once on healthy instances of a good version.
    established: BTreeSet<(Name, Name)>,
}

impl Guard {
    /// Rules of the state after an entry.
    pub fn state(&self, before: &State, after: &State) -> Vec<String> {
        let mut broken: Vec<String> = after.check();
        for (name, scope) in &after.scopes {
            let under_way = after
                .deployments
                .values()
                .filter(|deployment| deployment.origin.scope == *name)
                .filter(|deployment| is_under_way(deployment.status))
                .count();
            if under_way > 1 {
                broken.push(format!("{under_way} deployments are under way in {name}"));
            }
            let had = before.scopes.get(name).and_then(|scope| scope.active);
            let lost = had.is_some() && scope.active.is_none();
            let stopped = had
                .and_then(|id| after.deployments.get(&id))
                .is_some_and(|deployment| deployment.status == Status::Deleted);
            if lost && !stopped {
                broken.push(format!(
                    "{name} lost its active version without being stopped"
                ));
            }
        }
        broken
    }

    /// Rules of the hosts at an instant at which nothing more is due.
    pub fn hosts(&mut self, state: &State, hosts: &BTreeMap<Name, Host>) -> Vec<String> {
        let mut broken = Vec::new();
        for (agent, host) in hosts {
            let routes = &host.model.host.routes().0;
            for (scope, route) in routes {
                // Shares of what is spread: a version that has nobody here holds nothing of it.
                let (mut reachable, mut spread) = (0_u32, 0_u32);
                for (deployment, version) in &route.versions {
                    if version.weight == Weight::ZERO {
                        continue;
                    }
                    let weight = u32::from(version.weight.basis_points());
                    spread += weight;
                    let healthy = version.instances.values().any(|route| route.healthy);
                    if healthy || host.excused.contains(deployment) {
                        reachable += weight;
                    }
                    broken.extend(stopped_under_weight(agent, host, scope, *deployment));
                }
                if reachable > 0 && reachable == spread {
                    if has_good_version(state, scope) {
                        self.established.insert((agent.clone(), scope.clone()));
                    }
                    continue;
                }
                if self.must_serve(state, agent, scope) {
                    broken.push(format!(
                        "{scope} on {agent} has only {} % of its traffic on healthy instances",
                        reachable * 100 / spread.max(1)
                    ));
                }
            }
        }
        broken
    }

    fn must_serve(&self, state: &State, agent: &Name, scope: &Name) -> bool {
        self.established.contains(&(agent.clone(), scope.clone())) && has_good_version(state, scope)
    }
}

const fn is_under_way(status: Status) -> bool {
    match status {
        Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalizing
        | Status::Cancelling
        | Status::RollingBack => true,
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Finalized
        | Status::Cancelled
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => false,
    }
}

fn has_good_version(state: &State, scope: &Name) -> bool {
    let active = state.scopes.get(scope).and_then(|scope| scope.active);
    active
        .and_then(|id| state.deployments.get(&id))
        .is_some_and(|deployment| deployment.status == Status::Finalized)
}

/// A version that holds weight has an instance that is not being stopped.
fn stopped_under_weight(
    agent: &Name,
    host: &Host,
    scope: &Name,
    deployment: DeploymentId,
) -> Option<String> {
    if host.excused.contains(&deployment) {
        return None;
    }
    let key = PlaceKey {
        scope: scope.clone(),
        deployment,
    };
    let place = host.model.observed()?.places.get(&key)?;
    let up = place
        .instances
        .values()
        .any(|instance| matches!(instance.phase, Phase::Up { .. }));
    (!up).then(|| format!("{key} on {agent} holds weight and none of its instances is up"))
}
