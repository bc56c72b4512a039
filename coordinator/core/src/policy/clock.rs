//! What the clock of a gradual rollout rests on for one member: the windows that have to be open, the
//! freezes that stop it, and since when approvals and progressions are satisfied (product.md §5.5).
//!
//! The arithmetic over these is `group::open_time` and `group::schedule`; the planner puts both
//! together.

use tidegate_shared::spec::FirstDeployment;
use tidegate_shared::time::Timestamp;

use super::expression::{Expression, Subject};
use super::window::Window;
use super::{rules, subject};
use crate::group::open_time::Stop;
use crate::state::{Deployment, Freeze, State, Status};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clock {
    /// Since when approvals and progressions are satisfied; none: they are not, so the clock has not
    /// begun.
    pub base: Option<Timestamp>,
    /// Every window that the member has to obey now.
    pub windows: Vec<Window>,
    /// Freezes, those that are over too.
    pub stops: Vec<Stop>,
    /// When the last skip was given that passes over a window; none: no window is skipped now.
    pub skipped_at: Option<Timestamp>,
}

/// The clock of a member whose group was made at `made_at`.
pub fn clock(state: &State, deployment: &Deployment, made_at: Timestamp, now: Timestamp) -> Clock {
    let mut clock = Clock {
        base: approved_at(deployment, made_at),
        ..Clock::default()
    };
    if state.policies.is_empty() && state.freezes.is_empty() && state.past_freezes.is_empty() {
        return clock;
    }
    let facts = subject::facts(state, deployment, now);
    let freezes = state.freezes.values().chain(state.past_freezes.values());
    for freeze in freezes {
        let about = Expression::compile(&freeze.selector, Subject::Deployment)
            .map_err(|mistake| mistake.to_string())
            .and_then(|selector| selector.holds(&facts));
        if about.unwrap_or(true) {
            clock.stops.push(stop(freeze));
        }
    }
    let scope = state.scopes.get(&deployment.origin.scope);
    let is_first = scope.is_none_or(|s| s.active.is_none() && s.last_active.is_none());
    for (name, policy) in &state.policies {
        let spec = &policy.spec;
        let asks = spec.enabled && !(spec.windows.is_empty() && spec.progression.is_none());
        if !asks || !rules::matches(spec, &facts).unwrap_or(false) {
            continue;
        }
        for (index, window) in spec.windows.iter().enumerate() {
            let rule = format!("{name}/windows[{index}]");
            let exempt = is_first && window.first_deployment == FirstDeployment::Exempt;
            match rules::skipped(state, deployment, &rule, now) {
                _ if exempt => {}
                Some(skip) => clock.skipped_at = clock.skipped_at.max(skip.satisfied_at),
                None => clock.windows.extend(Window::compile(window).ok()),
            }
        }
        if let Some(rule) = &spec.progression {
            let named = format!("{name}/progression");
            let answer = rules::progression_of(state, deployment, (&named, rule), now);
            clock.base = clock
                .base
                .filter(|_| answer.is_allowed())
                .map(|base| answer.satisfied_at.map_or(base, |at| at.max(base)));
        }
    }
    clock
}

fn stop(freeze: &Freeze) -> Stop {
    Stop {
        from: freeze.meta.created_at,
        until: Some(freeze.until),
    }
}

/// When it had all approvals; the creation where none was asked for.
fn approved_at(deployment: &Deployment, made_at: Timestamp) -> Option<Timestamp> {
    let asked = deployment.required.as_ref();
    match deployment.status {
        Status::CreatingApproval => None,
        Status::Pending if asked.is_some() => Some(deployment.status_since.max(made_at)),
        Status::Pending
        | Status::CreatingApprovalDenied
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalizing
        | Status::Finalized
        | Status::Cancelling
        | Status::Cancelled
        | Status::RollingBack
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => Some(made_at),
    }
}
