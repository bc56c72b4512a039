//! What the leader should propose now: `plan(state, observed, now)`.
//!
//! Stateless and pure: if nothing changed it answers the same items with the same request keys (the
//! shell drops those that are in flight). At most one command per deployment and round, since each
//! one changes the revision that the next would rest on. Policies, observations, verdicts and
//! deadlines are evaluated here; a command carries their answer as evidence, and `apply` checks only
//! what is structural.
//!
//! A leader asks through an [`Agenda`], which answers the same and remembers between its looks.
//!
//! Every status has an evaluator that answers `Next`: the move that is due, or what it waits for
//! and until when. `explain` tells people the same answer.
//!
//! A deployment without rules needs no evidence, so nothing of it is ever `unverified`; nor is a
//! fast rollback, which skips analysis.

mod agenda;
mod checks;
mod ending;
mod evidence;
pub(crate) mod group;
mod planned;
mod retry;
mod rollout;
mod running;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod view;
mod waiting;

pub use agenda::Agenda;
pub(crate) use planned::told_deadline as waiting_deadline;
pub(crate) use retry::{due as retry_due, line as retry_line, refusal as retry_refusal};
pub use waiting::{Gate, GateAnswer};
pub(crate) use waiting::{gates, next as waiting_next};

use std::collections::BTreeSet;

use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::time::Timestamp;

use crate::auto;
use crate::command::{Action, Actor, Advance, Cause, Command, Item, RequestKey};
use crate::deployment::phase::Expiry;
use crate::observed::Observed;
use crate::state::{Deployment, Scope, State, Status};
use group::Round;
use view::View;

/// What should be proposed, and when to ask again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In order of scope; at most one per deployment.
    pub commands: Vec<Item>,
    /// The earliest instant at which the answer could differ without new input.
    pub next_wakeup: Option<Timestamp>,
}

impl Plan {
    fn wake(&mut self, at: Option<Timestamp>) {
        self.next_wakeup = sooner(self.next_wakeup, at);
    }
}

/// One answer about one deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Next<A = Action> {
    /// The move that is due.
    pub(crate) action: Option<A>,
    /// What it waits for, in one line.
    pub(crate) waiting_for: String,
    /// When to look again at the latest.
    pub(crate) wake: Option<Timestamp>,
}

impl<A> Next<A> {
    pub(crate) fn act(action: A, why: impl Into<String>) -> Self {
        Self {
            action: Some(action),
            waiting_for: why.into(),
            wake: None,
        }
    }

    pub(crate) fn wait(what: impl Into<String>, wake: Option<Timestamp>) -> Self {
        Self {
            action: None,
            waiting_for: what.into(),
            wake,
        }
    }
}

/// Everything that is due, over all groups and scopes. Those where nothing goes on cost nothing.
pub fn plan(state: &State, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = plan_over(state, observed, now, &asked(state));
    plan.commands.extend(auto::due(state, now));
    plan
}

/// The scopes that have an answer: what goes on, waits or is left over, and what failed where another
/// try may follow.
pub(crate) fn asked(state: &State) -> BTreeSet<Name> {
    let unfinished = state.unfinished_scopes().map(|(name, _)| name);
    let failed = retry::is_asked_for(state).then(|| state.failed_scopes());
    unfinished
        .chain(failed.into_iter().flatten())
        .cloned()
        .collect()
}

/// What is due in all groups, and in these scopes.
fn plan_over(state: &State, observed: &Observed, now: Timestamp, scopes: &BTreeSet<Name>) -> Plan {
    let mut plan = Plan::default();
    let groups = state.open_groups.keys();
    let groups = groups.filter_map(|id| state.groups.get(id));
    let mut round = Round::new(state, observed, now, groups);
    round.add_groups(&mut plan);
    for name in scopes {
        if let Some(scope) = state.scopes.get(name) {
            add_scope(&mut plan, &mut round, name, scope);
        }
    }
    plan
}

/// Everything that is due in one scope: what the shell asks after news of that scope alone. What
/// groups as a whole have to do is left to [`plan`].
pub fn plan_scope(state: &State, observed: &Observed, now: Timestamp, scope: &Name) -> Plan {
    let mut plan = Plan::default();
    if let Some(found) = state.scopes.get(scope) {
        let waiting = found.waiting.iter();
        let waiting = waiting.filter_map(|id| state.deployments.get(id));
        let groups = waiting.filter_map(|d| state.membership(d));
        let mut round = Round::new(state, observed, now, groups.map(|(group, _)| group));
        add_scope(&mut plan, &mut round, scope, found);
    }
    plan
}

pub(crate) fn add_scope(plan: &mut Plan, round: &mut Round<'_>, name: &Name, scope: &Scope) {
    let (state, observed, now) = (round.state, round.observed, round.now);
    for id in scope.retired.iter() {
        if let Some(retired) = state.deployments.get(id) {
            let gone = ending::leftovers_gone(state, observed, retired);
            plan.commands
                .extend(gone.map(|action| item(retired, action)));
        }
    }
    // Asked only of scopes that are being stopped: all others cost no look at their active one.
    let deleting = scope.active.filter(|_| scope.is_stopping());
    for id in scope.candidate.into_iter().chain(deleting) {
        add_deployment(plan, state, observed, now, scope, id);
    }
    // The newest that passes its gates starts; `apply` ends the older ones.
    let mut started = false;
    for id in scope.waiting.iter().rev() {
        let Some(deployment) = state.deployments.get(id) else {
            continue;
        };
        let next = round.waiting(name, scope, deployment);
        plan.wake(next.wake);
        let starts = matches!(next.action, Some(Action::Start { .. }));
        if let Some(action) = next.action.filter(|_| !(starts && started)) {
            plan.commands.push(item(deployment, action));
        }
        started |= starts;
    }
    if round.retries && scope.candidate.is_none() && scope.waiting.is_empty() {
        let newest = state.history_of(name).next_back();
        if let Some(failed) = newest.filter(|newest| newest.status == Status::Failed) {
            let next = retry::next(state, now, failed);
            plan.wake(next.wake);
            plan.commands
                .extend(next.action.map(|action| item(failed, action)));
        }
    }
}

fn add_deployment(
    plan: &mut Plan,
    state: &State,
    observed: &Observed,
    now: Timestamp,
    scope: &Scope,
    id: DeploymentId,
) {
    if let Some(deployment) = state.deployments.get(&id) {
        let next = next(&View::new(state, observed, now, scope, deployment));
        plan.wake(next.wake);
        if let Some(action) = next.action {
            plan.commands.push(item(deployment, action));
        }
    }
}

/// The next move of a deployment that is past `PENDING`.
pub(crate) fn next(view: &View<'_>) -> Next {
    let deployment = view.deployment;
    let mut next = match deployment.status {
        Status::Creating => rollout::creating(view),
        Status::WaitingForInstances => rollout::waiting_for_instances(view),
        Status::Running => running::next(view),
        Status::Finalizing => ending::finalizing(view),
        Status::Cancelling | Status::RollingBack => ending::returning(view),
        Status::Deleting => ending::deleting(view),
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Finalized
        | Status::Cancelled
        | Status::RolledBack
        | Status::Failed
        | Status::Deleted => return Next::wait("", None),
    };
    let due = running::due(view);
    if next.action.is_none() {
        next.action = due
            .filter(|due| due.at <= view.now)
            .and_then(|due| expiry(view, due.expiry));
    }
    next.action = match next.action {
        None => bookkeeping(view),
        // An end keeps the first causes, so they are noted before it comes.
        Some(Action::TakeBack { .. } | Action::Expire { .. }) if due_for_note(view) => {
            new_causes(view).or(next.action)
        }
        action => action,
    };
    let later = |at: &Timestamp| *at > view.now;
    next.wake = next.wake.filter(later);
    next.wake = sooner(next.wake, due.map(|due| due.at).filter(later));
    let lost = view.participants.iter();
    let lost = lost.map(|p| view.observed.lost_at(p.name)).filter(later);
    next.wake = sooner(next.wake, lost.min());
    next
}

/// When the present state of a deployment that is past `PENDING` ends by itself.
pub(crate) fn ends_at(view: &View<'_>) -> Option<Timestamp> {
    running::due(view).map(|due| due.at)
}

/// What is noted for people when nothing else is due.
fn bookkeeping(view: &View<'_>) -> Option<Action> {
    let lost = view.lost();
    if lost != view.deployment.lost {
        return Some(Action::MarkLost { lost });
    }
    new_causes(view)
}

/// Whether what is due next may end it, for errors that its record should tell of. A rule that is met
/// does not wait for that.
fn due_for_note(view: &View<'_>) -> bool {
    match view.deployment.status {
        Status::Creating | Status::WaitingForInstances => true,
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Running
        | Status::Finalizing
        | Status::Finalized
        | Status::Cancelling
        | Status::Cancelled
        | Status::RollingBack
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => false,
    }
}

/// First causes that the record does not have yet.
fn new_causes(view: &View<'_>) -> Option<Action> {
    let known = &view.deployment.causes;
    let mut causes = view.causes();
    causes.retain(|cause| {
        !known
            .iter()
            .any(|k| k.agent == cause.agent && k.instance == cause.instance)
    });
    causes.truncate(MOST_CAUSES.saturating_sub(known.len()));
    (!causes.is_empty()).then_some(Action::NoteErrors { causes })
}

/// First causes that a record keeps.
const MOST_CAUSES: usize = 64;

/// The move that a deadline declares.
fn expiry(view: &View<'_>, expiry: Expiry) -> Option<Action> {
    let cause = |kind: &str| Cause {
        kind: kind.to_owned(),
        message: deadline_message(view, kind),
    };
    Some(match expiry {
        Expiry::Expire => Action::Expire {
            leftovers: ending::leftovers(view),
        },
        Expiry::TakeBack(kind) => Action::TakeBack {
            cause: cause(kind),
            evidence: Vec::new(),
        },
        Expiry::Finalize if view.participants.is_empty() => Action::TakeBack {
            cause: cause("stall"),
            evidence: Vec::new(),
        },
        Expiry::Finalize => Action::Finalize {
            unverified: evidence::is_missing(view) || !checks::open(view).is_empty(),
        },
        Expiry::Halt(kind) => {
            if view.deployment.halted.is_some() {
                return None;
            }
            Action::Halt {
                cause: cause(kind),
                evidence: Vec::new(),
            }
        }
    })
}

fn deadline_message(view: &View<'_>, kind: &str) -> String {
    let limits = &view.deployment.origin.strategy.deadlines;
    let status = view.deployment.status;
    let what = match kind {
        "pause_max" => format!("paused for {}", limits.pause_max),
        "halt_max" => format!("halted for {}", limits.halt_max),
        "progress_deadline" => format!("no further instance became healthy in {}", limits.progress),
        "stall" => format!("{} past its planned end", limits.stall),
        other => format!("{status} took too long ({other})"),
    };
    match view.troubles().as_str() {
        "" => what,
        troubles => format!("{what}: {troubles}"),
    }
}

fn item(deployment: &Deployment, action: Action) -> Item {
    Item {
        actor: Actor::System,
        request: RequestKey::Planner(fingerprint(deployment, &action)),
        command: Box::new(Command::Advance(Advance {
            deployment: deployment.id,
            revision: deployment.meta.revision,
            action,
        })),
    }
}

/// Hash of (deployment, revision, action). Figures and times that an action carries for people are
/// left out, so that the same move found due twice is recognised.
fn fingerprint(deployment: &Deployment, action: &Action) -> Digest {
    let names = |names: &[Name]| {
        let names = names.iter().map(Name::as_str);
        names.collect::<Vec<_>>().join(",")
    };
    let what = match action {
        Action::RequireApproval { .. } => "require_approval".to_owned(),
        Action::ApprovalSatisfied => "approval_satisfied".to_owned(),
        Action::ApprovalDenied { .. } => "approval_denied".to_owned(),
        Action::Start { participants, .. } => format!("start {}", names(participants)),
        Action::Deny { .. } => "deny".to_owned(),
        Action::Staged => "staged".to_owned(),
        Action::Progress { outstanding } => format!("progress {outstanding}"),
        Action::InstancesReady => "instances_ready".to_owned(),
        Action::StepReached => "step_reached".to_owned(),
        Action::StepDone { .. } => "step_done".to_owned(),
        Action::BatchDone => "batch_done".to_owned(),
        Action::Finalize { .. } => "finalize".to_owned(),
        Action::Drained => "drained".to_owned(),
        Action::Settled { leftovers } => format!("settled {}", names(leftovers)),
        Action::TakeBack { cause, .. } => format!("take_back {}", cause.kind),
        Action::Expire { leftovers } => format!("expire {}", names(leftovers)),
        Action::Halt { cause, .. } => format!("halt {}", cause.kind),
        Action::Unhalt => "unhalt".to_owned(),
        Action::MarkLost { lost } => format!("mark_lost {}", names(lost)),
        Action::NoteErrors { causes } => {
            let causes = causes.iter().map(|c| format!("{}/{}", c.agent, c.instance));
            format!("note_errors {}", causes.collect::<Vec<_>>().join(","))
        }
        Action::NoteEvidence { evidence } => {
            let rules = evidence
                .iter()
                .map(|e| format!("{}{}{}", e.metric, e.comparison.as_str(), e.threshold));
            format!("note_evidence {}", rules.collect::<Vec<_>>().join(","))
        }
        Action::NoteChecks { checks } => {
            let checks = checks.iter().map(|c| format!("{} {}", c.name, c.outcome));
            format!("note_checks {}", checks.collect::<Vec<_>>().join(","))
        }
        Action::LeftoversGone { agents } => format!("leftovers_gone {}", names(agents)),
        Action::Retry { .. } => "retry".to_owned(),
    };
    let text = format!("{}\n{}\n{what}", deployment.id, deployment.meta.revision);
    Digest::of(text.as_bytes())
}

pub(crate) fn sooner(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, None) => one,
        (None, other) => other,
    }
}
