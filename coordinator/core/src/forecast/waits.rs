//! What holds members up before their start, noted as the rehearsal goes on.

use tidegate_shared::id::DeploymentId;

use super::Wait;
use super::run::Run;
use crate::deployment::phase;
use crate::plan::group::Turn;
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

    /// Notes the first closed gate of each member that was asked and waits.
    pub(super) fn note_waits(&mut self) {
        let (state, now) = (&self.state, self.now);
        for position in std::mem::take(&mut self.asked) {
            let Some(tracked) = self.members.get_mut(position) else {
                continue;
            };
            let member = &mut tracked.member;
            if !phase::is_waiting(member.status) {
                continue;
            }
            let Some(found) = state.deployments.get(&member.deployment) else {
                continue;
            };
            let Some(scope) = state.scopes.get(&member.scope) else {
                continue;
            };
            let membership = state.membership(found);
            let standing = membership.and_then(|(group, number)| {
                let observed = &self.world.observed;
                let standing = self.looks.standing(state, observed, now, group)?;
                Some((standing, number))
            });
            let turn = standing.as_ref().map(|(standing, number)| Turn {
                standing,
                number: *number,
            });
            let all = gates(state, now, &member.scope, scope, found, turn);
            let closed = all.iter().find(|gate| gate.answer != GateAnswer::Allowed);
            let Some(closed) = closed else {
                continue;
            };
            // Something else may be in the way first from then on.
            let opens = closed.until.into_iter().chain(closed.next_evaluation);
            let opens = opens.filter(|at| *at > now).min();
            if let Some(at) = opens.filter(|_| by_time(closed)) {
                self.looks.wake(&member.scope, at);
            }
            if let Some(last) = member.waits.last_mut() {
                if (last.kind, &last.rule) == (closed.kind, &closed.rule) {
                    continue;
                }
                last.until = last.until.or(Some(now));
            }
            member.waits.push(Wait {
                kind: closed.kind,
                rule: closed.rule.clone(),
                why: closed.why.clone(),
                from: now,
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
