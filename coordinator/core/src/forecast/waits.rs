//! What holds members up before their start, noted as the rehearsal goes on.

use std::collections::BTreeMap;

use tidegate_shared::id::{DeploymentId, GroupId};
use tidegate_shared::time::Timestamp;

use super::Wait;
use super::run::{Run, Tracked};
use crate::deployment::phase;
use crate::plan::group::{Standing, Turn};
use crate::plan::{Gate, GateAnswer, gates};

impl Run<'_> {
    /// Windows that are open as a member starts.
    pub(super) fn note_windows(&mut self, id: DeploymentId) {
        let Some(found) = self.state.deployments.get(&id) else {
            return;
        };
        let name = &found.origin.scope;
        let (Some(scope), Some(position)) = (self.state.scopes.get(name), self.by_scope.get(name))
        else {
            return;
        };
        let Some(tracked) = self.members.get_mut(*position) else {
            return;
        };
        if tracked.member.deployment != id {
            return;
        }
        let windows = gates(&self.state, self.now, name, scope, found, None)
            .into_iter()
            .filter(|gate| gate.kind == "window" && gate.answer == GateAnswer::Allowed);
        tracked.closing = windows
            .filter_map(|gate| Some((gate.rule, gate.next_evaluation?)))
            .collect();
    }

    /// Notes the first closed gate of each member that waits.
    pub(super) fn note_waits(&mut self) {
        let now = self.now;
        let asks = |tracked: &Tracked| {
            let waits = phase::is_waiting(tracked.member.status);
            waits && tracked.next_look.is_none_or(|at| at <= now)
        };
        if !self.members.iter().any(asks) {
            return;
        }
        let (state, observed) = (&self.state, &self.world.observed);
        let open = state.open_groups.keys();
        let open = open.filter_map(|id| state.groups.get(id));
        let standings: BTreeMap<GroupId, Standing<'_>> = open
            .map(|group| (group.id, Standing::new(state, observed, self.now, group)))
            .collect();
        for tracked in &mut self.members {
            if !asks(tracked) {
                continue;
            }
            let member = &mut tracked.member;
            let Some(found) = self.state.deployments.get(&member.deployment) else {
                continue;
            };
            let Some(scope) = self.state.scopes.get(&member.scope) else {
                continue;
            };
            let turn = state.membership(found).and_then(|(group, number)| {
                let standing = standings.get(&group.id)?;
                Some(Turn { standing, number })
            });
            let all = gates(state, now, &member.scope, scope, found, turn);
            let closed = all.iter().find(|gate| gate.answer != GateAnswer::Allowed);
            let Some(closed) = closed.cloned() else {
                continue;
            };
            tracked.next_look = by_time(&closed).then(|| {
                let times = all.iter().filter_map(|gate| gate.next_evaluation);
                let times = times.chain(closed.until).filter(|at| *at > now);
                times.min().unwrap_or(Timestamp::from_millis(u64::MAX))
            });
            if let Some(last) = member.waits.last_mut() {
                if (last.kind, &last.rule) == (closed.kind, &closed.rule) {
                    continue;
                }
                last.until = last.until.or(Some(self.now));
            }
            member.waits.push(Wait {
                kind: closed.kind,
                rule: closed.rule,
                why: closed.why,
                from: self.now,
                until: None,
            });
        }
    }
}

/// Whether a closed gate opens by time, or with the group whose turn it tells of.
fn by_time(gate: &Gate) -> bool {
    matches!(
        gate.kind,
        "freeze" | "window" | "cooldown" | "rollout" | "gradual_rollout"
    )
}
