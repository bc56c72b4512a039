//! Before `CREATING`: approval, and the gates of `PENDING` in their order.

use tidegate_shared::id::Name;
use tidegate_shared::spec::ReleaseStatus;
use tidegate_shared::time::Timestamp;

use super::group::Turn;
use super::{Next, planned};
use crate::command::{Action, GateEvidence, GroupTurn};
use crate::deployment::phase;
use crate::policy::approval::{self, Answer};
use crate::policy::rules::{self, Told};
use crate::policy::{self, Verdict};
use crate::state::{Deployment, Scope, ScopeStatus, State, Status};

/// What a gate answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateAnswer {
    /// Open.
    Allowed,
    /// Closed for now.
    Pending,
    /// Closed for good.
    Denied,
}

impl GateAnswer {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Pending => "pending",
            Self::Denied => "denied",
        }
    }
}

/// One thing that has to allow the start of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// `release`, `freeze`, `approval`, a kind of rule, `rollout` (of the group), `pause`, `scope`,
    /// `agents`.
    pub kind: &'static str,
    /// The rule of a policy, as `production/windows[0]`; empty: it is none.
    pub rule: String,
    /// Whether it is open.
    pub answer: GateAnswer,
    /// Why, in one line.
    pub why: String,
    /// When it is looked at again or runs out; none: when something changes.
    pub until: Option<Timestamp>,
    /// What is missing, and from whom; empty where nothing is, or nobody can give it.
    pub needs: String,
    /// Since when it is open, where that is known.
    pub satisfied_at: Option<Timestamp>,
    /// When its answer may change by itself, open or not.
    pub next_evaluation: Option<Timestamp>,
}

impl Gate {
    pub(super) fn new(kind: &'static str, answer: GateAnswer, why: impl Into<String>) -> Self {
        Self {
            kind,
            answer,
            rule: String::new(),
            why: why.into(),
            until: None,
            needs: String::new(),
            satisfied_at: None,
            next_evaluation: None,
        }
    }

    pub(super) fn of_rule(told: Told) -> Self {
        let Told { rule, kind, answer } = told;
        let gate = Self::of_answer(kind, answer);
        let why = match kind {
            "freeze" => gate.why,
            _ => format!("policy {rule}: {}", gate.why),
        };
        Self { rule, why, ..gate }
    }

    pub(super) fn of_answer(kind: &'static str, answer: policy::Answer) -> Self {
        let (word, until, needs) = match answer.verdict {
            Verdict::Allowed => (GateAnswer::Allowed, None, String::new()),
            Verdict::Pending { until, needs } => (GateAnswer::Pending, until, needs),
            Verdict::Denied => (GateAnswer::Denied, None, String::new()),
        };
        Self {
            until,
            needs,
            satisfied_at: answer.satisfied_at,
            next_evaluation: answer.next_evaluation,
            ..Self::new(kind, word, answer.why)
        }
    }
}

/// The next move of a deployment that waits in a scope; `turn`: its turn, as a member of a group.
pub(crate) fn next(
    state: &State,
    now: Timestamp,
    scope_name: &Name,
    scope: &Scope,
    deployment: &Deployment,
    turn: Option<Turn<'_>>,
) -> Next {
    // Nobody is asked anything about a member before its place in the order is known.
    if turn.is_some_and(|turn| turn.standing.group.begun_at.is_none()) {
        return Next::wait("the rollout of its group begins", None);
    }
    let deadline = deadline(state, now, deployment, turn, Exact::AtTheEnd);
    let due = deadline.filter(|at| *at <= now);
    let wake = deadline.filter(|at| *at > now);
    let approval = approval::answer(state, deployment, now);
    let mut next = match deployment.status {
        Status::CreatingApproval => approving(state, deployment, &approval, now),
        Status::Pending => pending(state, now, scope_name, scope, deployment, (&approval, turn)),
        Status::CreatingApprovalDenied
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
        | Status::Deleted => return Next::wait("", None),
    };
    if next.action.is_none() && due.is_some() {
        next.action = Some(match deployment.status == Status::CreatingApproval {
            true => Action::ApprovalDenied { expired: true },
            false => Action::Expire {
                leftovers: Vec::new(),
            },
        });
    }
    next.wake = super::sooner(next.wake.filter(|at| *at > now), wake);
    next
}

fn approving(state: &State, deployment: &Deployment, answer: &Answer, now: Timestamp) -> Next {
    match answer {
        // A policy that was changed meanwhile still asks for what stands in the record.
        Answer::Satisfied => match approval::still_asked(state, deployment, now) {
            Some(why) => Next::wait(why, None),
            None => Next::act(Action::ApprovalSatisfied, "approved"),
        },
        Answer::Denied { why } => deny(why),
        Answer::Broken { why } => Next::wait(why.as_str(), None),
        Answer::Pending {
            policies,
            expires_at,
            withdrawn,
            ..
        } => {
            let asked = deployment.required.as_ref();
            let same =
                asked.is_some_and(|a| a.policies == *policies && a.expires_at == *expires_at);
            let what = approval_line(answer);
            if now >= *expires_at {
                Next::act(Action::ApprovalDenied { expired: true }, what)
            } else if same && withdrawn.is_empty() {
                Next::wait(what, Some(*expires_at))
            } else {
                Next::act(require(policies, *expires_at, withdrawn), what)
            }
        }
    }
}

fn deny(why: &str) -> Next {
    let message = why.to_owned();
    Next::act(Action::Deny { message }, why)
}

fn require(policies: &[(Name, u32)], expires_at: Timestamp, withdrawn: &[Name]) -> Action {
    Action::RequireApproval {
        policies: policies.to_vec(),
        expires_at,
        withdrawn: withdrawn.to_vec(),
    }
}

fn approval_line(answer: &Answer) -> String {
    match answer {
        Answer::Satisfied => "no approval is missing".to_owned(),
        Answer::Denied { why } | Answer::Broken { why } => why.clone(),
        Answer::Pending {
            policies,
            expires_at,
            granted,
            from,
            ..
        } => {
            let from = match from.as_str() {
                "" => String::new(),
                from => format!(" from {from}"),
            };
            let policies = policies
                .iter()
                .map(|(name, needed)| format!("{name} needs {needed}"));
            let policies = policies.collect::<Vec<_>>().join(", ");
            format!("approval by policy: {policies}{from}; {granted} granted, until {expires_at}")
        }
    }
}

/// How far a deadline is worked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exact {
    /// No later than the true one, which costs more: that is asked for when this one has come.
    AtTheEnd,
    /// For people.
    Yes,
}

/// When it ends by itself, as people are told.
pub(crate) fn told_deadline(
    state: &State,
    now: Timestamp,
    deployment: &Deployment,
    turn: Option<Turn<'_>>,
) -> Option<Timestamp> {
    deadline(state, now, deployment, turn, Exact::Yes)
}

/// When it ends by itself: from its planned start on it has its time. None: its turn waits for others,
/// which have deadlines of their own.
fn deadline(
    state: &State,
    now: Timestamp,
    deployment: &Deployment,
    turn: Option<Turn<'_>>,
    exact: Exact,
) -> Option<Timestamp> {
    let own = phase::deadline(deployment)?;
    if deployment.paused.is_some() {
        return Some(own);
    }
    let limits = &deployment.origin.strategy.deadlines;
    match (deployment.status, turn) {
        (Status::CreatingApproval, Some(turn)) => {
            let asked = deployment.required.as_ref().map(|asked| asked.expires_at);
            let late = turn.standing.group.planned_start(turn.number) + limits.approval;
            Some(asked.map_or(own, |asked| asked.min(own.max(late))))
        }
        (Status::Pending, Some(turn)) => {
            // The halt of a group has a limit of its own.
            if turn.standing.group.halted.is_some() {
                return None;
            }
            let exact = exact == Exact::Yes;
            let planned = turn.standing.planned(turn.number, deployment, exact)?;
            Some(own.max(planned + limits.pending))
        }
        (Status::Pending, None) if exact == Exact::Yes || own <= now => {
            let planned = planned::first_start(state, deployment, now);
            Some(planned.map_or(own, |planned| own.max(planned + limits.pending)))
        }
        (
            Status::CreatingApproval
            | Status::Pending
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
            | Status::Deleted,
            _,
        ) => Some(own),
    }
}

fn pending(
    state: &State,
    now: Timestamp,
    scope_name: &Name,
    scope: &Scope,
    deployment: &Deployment,
    (approval, turn): (&Answer, Option<Turn<'_>>),
) -> Next {
    if let Answer::Pending {
        policies,
        expires_at,
        withdrawn,
        ..
    } = approval
    {
        let line = approval_line(approval);
        // Below the level of roles `apply` counts grants, whoever gave them, and would refuse.
        if approval::suffices_below_roles(state, deployment, policies, *expires_at) {
            let why = format!(
                "{line}; its policy asks others than those who granted: cancel it and deploy again, or raise the cluster's level"
            );
            return Next::wait(why, None);
        }
        let action = require(policies, *expires_at, withdrawn);
        return Next::act(action, line);
    }
    // Most members of a large group wait for the others: the rules are asked when that is over.
    if let Some(closed) = turn.and_then(|turn| turn.standing.closed(turn.number)) {
        return Next::wait(closed.why, closed.until);
    }
    let gates = gates_with(state, now, scope_name, scope, deployment, (approval, turn));
    let denied = |gate: &&Gate| gate.answer == GateAnswer::Denied && denies(gate);
    if let Some(closed) = gates.iter().find(denied) {
        return deny(&closed.why);
    }
    let mut next = match gates.iter().find(|gate| gate.answer != GateAnswer::Allowed) {
        Some(closed) => Next::wait(closed.why.clone(), closed.until),
        None => Next::act(
            Action::Start {
                participants: matching(state, deployment),
                gates: evidence(state, &gates, turn),
            },
            "every gate is open",
        ),
    };
    // Some gate further down may change first, and be the one to tell of.
    for gate in &gates {
        let at = gate.next_evaluation.filter(|at| *at > now);
        next.wake = super::sooner(next.wake, at);
    }
    next
}

/// Rules and approvals end a deployment that they deny; the other gates leave that to people.
fn denies(gate: &Gate) -> bool {
    !gate.rule.is_empty() && gate.kind != "release_selector" || gate.kind == "approval"
}

/// What the start rests on; none where there is no policy and no freeze.
fn evidence(state: &State, gates: &[Gate], turn: Option<Turn<'_>>) -> Option<GateEvidence> {
    let nothing = state.policies.is_empty() && state.freezes.is_empty();
    if nothing && state.gates_revision == 0 && turn.is_none() {
        return None;
    }
    let rules = gates.iter().filter(|gate| !gate.rule.is_empty());
    Some(GateEvidence {
        revision: state.gates_revision,
        counts: gates.iter().any(|gate| gate.kind == "concurrency"),
        rules: rules.map(|gate| gate.why.clone()).collect(),
        group: turn.map(|turn| GroupTurn {
            revision: turn.standing.group.gates_revision,
            paced: turn.standing.is_paced(turn.number),
        }),
    })
}

/// Every gate of a waiting deployment with its answer, in the order in which they are asked.
pub(crate) fn gates(
    state: &State,
    now: Timestamp,
    scope_name: &Name,
    scope: &Scope,
    deployment: &Deployment,
    turn: Option<Turn<'_>>,
) -> Vec<Gate> {
    let approval = approval::answer(state, deployment, now);
    gates_with(state, now, scope_name, scope, deployment, (&approval, turn))
}

fn gates_with(
    state: &State,
    now: Timestamp,
    scope_name: &Name,
    scope: &Scope,
    deployment: &Deployment,
    (approval, turn): (&Answer, Option<Turn<'_>>),
) -> Vec<Gate> {
    let paused = match &deployment.paused {
        Some(paused) => Gate {
            until: phase::deadline(deployment),
            ..Gate::new(
                "pause",
                GateAnswer::Pending,
                format!("paused by {}: `resume` lets it go on", paused.by),
            )
        },
        None => Gate::new("pause", GateAnswer::Allowed, "not paused"),
    };
    let mut told = rules::answers(state, deployment, now);
    let frozen = told.iter().position(|told| told.kind == "freeze");
    let frozen = frozen.map(|index| Gate::of_rule(told.remove(index)));
    let mut gates = vec![release_gate(state, deployment)];
    gates.extend(frozen);
    gates.push(approval_gate(approval));
    // A member asks its group before it takes a place among those that run.
    let last = |told: &Told| turn.is_some() && told.kind == "concurrency";
    let (counting, told): (Vec<_>, Vec<_>) = told.into_iter().partition(last);
    gates.extend(told.into_iter().map(Gate::of_rule));
    gates.extend(turn.into_iter().flat_map(|turn| turn.gates(deployment)));
    gates.extend(counting.into_iter().map(Gate::of_rule));
    gates.push(paused);
    gates.push(scope_gate(state, scope_name, scope));
    gates.push(agents_gate(state, deployment));
    gates
}

fn release_gate(state: &State, deployment: &Deployment) -> Gate {
    let origin = &deployment.origin;
    let key = (origin.application.clone(), origin.version.clone());
    let name = format!("release {} {}", origin.application, origin.version);
    let Some(release) = state.releases.get(&key) else {
        let why = format!("{name} is not there any more");
        return Gate::new("release", GateAnswer::Denied, why);
    };
    let reason = match release.reason.as_str() {
        "" => String::new(),
        reason => format!(": {reason}"),
    };
    match release.status {
        ReleaseStatus::Ready => {
            Gate::new("release", GateAnswer::Allowed, format!("{name} is ready"))
        }
        ReleaseStatus::Building => Gate::new(
            "release",
            GateAnswer::Pending,
            format!("{name} is building: its assets are not all stored yet"),
        ),
        ReleaseStatus::Collected => Gate::new(
            "release",
            GateAnswer::Pending,
            format!("{name} is collected{reason}"),
        ),
        ReleaseStatus::Paused if origin.fast => Gate::new(
            "release",
            GateAnswer::Allowed,
            format!("{name} is paused, but a return to it is exempt"),
        ),
        ReleaseStatus::Paused => Gate::new(
            "release",
            GateAnswer::Pending,
            format!("{name} is paused{reason}"),
        ),
        ReleaseStatus::Rejected if origin.forced => Gate::new(
            "release",
            GateAnswer::Allowed,
            format!("{name} is rejected, but the return to it was forced"),
        ),
        ReleaseStatus::Rejected => Gate::new(
            "release",
            GateAnswer::Denied,
            format!("{name} is rejected{reason}"),
        ),
    }
}

fn approval_gate(answer: &Answer) -> Gate {
    let line = approval_line(answer);
    match answer {
        Answer::Satisfied => Gate::new("approval", GateAnswer::Allowed, line),
        Answer::Pending {
            expires_at, from, ..
        } => Gate {
            until: Some(*expires_at),
            needs: format!(
                "`tidegate approval grant` by {}",
                if from.is_empty() { "an approver" } else { from }
            ),
            ..Gate::new("approval", GateAnswer::Pending, line)
        },
        Answer::Broken { .. } => Gate::new("approval", GateAnswer::Pending, line),
        Answer::Denied { .. } => Gate::new("approval", GateAnswer::Denied, line),
    }
}

fn scope_gate(state: &State, name: &Name, scope: &Scope) -> Gate {
    if let Some(other) = scope.candidate.and_then(|id| state.deployments.get(&id)) {
        let why = format!(
            "deployment {} ({} {}) of {} is {} in scope {name}",
            other.short,
            other.origin.application,
            other.origin.version,
            other.meta.created_by,
            other.status
        );
        return Gate::new("scope", GateAnswer::Pending, why);
    }
    match scope.status {
        ScopeStatus::Creating | ScopeStatus::Ready | ScopeStatus::Stopped => Gate::new(
            "scope",
            GateAnswer::Allowed,
            format!("no other deployment is under way in scope {name}"),
        ),
        ScopeStatus::Stopping => Gate::new(
            "scope",
            GateAnswer::Pending,
            format!("scope {name} is stopping"),
        ),
        ScopeStatus::Deleted => Gate::new(
            "scope",
            GateAnswer::Denied,
            format!("scope {name} is deleted"),
        ),
    }
}

fn agents_gate(state: &State, deployment: &Deployment) -> Gate {
    let selector = &deployment.origin.scope_spec.agents;
    match matching(state, deployment).len() {
        0 => Gate::new(
            "agents",
            GateAnswer::Pending,
            format!("no_agents: no agent matches \"{selector}\""),
        ),
        1 => Gate::new("agents", GateAnswer::Allowed, "1 agent matches"),
        count => Gate::new(
            "agents",
            GateAnswer::Allowed,
            format!("{count} agents match"),
        ),
    }
}

/// The agents that match now, in order of name.
fn matching(state: &State, deployment: &Deployment) -> Vec<Name> {
    state.agents_matching(&deployment.origin.scope_spec.agents)
}
