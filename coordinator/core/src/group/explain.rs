//! Why is a group where it is? Its own gate, and the first one in the way of each member that waits;
//! what API and CLI show.
//!
//! Pure, on any node that has the leader's [`Observed`]. Decides nothing.

use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::time::Timestamp;
use tidegate_shared::weight::Weight;

use crate::deployment::phase;
use crate::observed::Observed;
use crate::plan::group::{Standing, Turn};
use crate::plan::view::View;
use crate::plan::{self, Gate, GateAnswer};
use crate::state::{Group, State, Status};

/// The kind of the gate that is the group's own.
const OWN: &str = "rollout";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupExplanation {
    /// What the group itself has in the way of the next one in its order; none where nothing of it
    /// is, or nobody waits.
    pub own: Option<Gate>,
    /// In the order in which they start.
    pub members: Vec<MemberExplanation>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberExplanation {
    /// Where.
    pub scope: Name,
    /// Its present deployment.
    pub deployment: DeploymentId,
    /// Where it is, or how it ended.
    pub status: Status,
    /// The first gate in its way; none if it does not wait, or may start.
    pub gate: Option<Gate>,
}

/// Explains a group.
pub fn explain(
    state: &State,
    observed: &Observed,
    now: Timestamp,
    group: &Group,
) -> GroupExplanation {
    let standing = Standing::new(state, observed, now, group);
    let mut own = None;
    let mut waits = 0;
    let members = group.in_order().map(|(number, member)| {
        let deployment = state.deployments.get(&member.deployment);
        let waiting = deployment.filter(|found| phase::is_waiting(found.status));
        let gates = waiting.zip(state.scopes.get(&member.scope));
        let gates = gates.map_or_else(Vec::new, |(deployment, scope)| {
            let turn = Turn {
                standing: &standing,
                number,
            };
            plan::gates(state, now, &member.scope, scope, deployment, Some(turn))
        });
        let mut closed = gates
            .into_iter()
            .filter(|gate| gate.answer != GateAnswer::Allowed);
        let gate = closed.next();
        waits += usize::from(waiting.is_some());
        if waits == 1 && waiting.is_some() {
            own = gate.iter().cloned().chain(closed).find(|g| g.kind == OWN);
        }
        MemberExplanation {
            scope: member.scope.clone(),
            deployment: member.deployment,
            status: member.state(state).status,
            gate,
        }
    });
    let members = members.collect();
    GroupExplanation { own, members }
}

/// The share of the new version that the data planes of a deployment acknowledge, the worst counting.
pub fn acknowledged(
    state: &State,
    observed: &Observed,
    now: Timestamp,
    deployment: DeploymentId,
) -> Weight {
    let record = state.deployments.get(&deployment);
    let scope = record.and_then(|record| state.scopes.get(&record.origin.scope));
    let Some((record, scope)) = record.zip(scope) else {
        return Weight::ZERO;
    };
    View::new(state, observed, now, scope, record).actual()
}
