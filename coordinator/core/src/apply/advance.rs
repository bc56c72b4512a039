//! The planner's moves. Each rests on a revision and on structural facts that are checked here; the
//! answers of policies, clocks and observations it carries are taken as they are.

use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::spec::{OnStall, ReleaseStatus};
use tidegate_shared::weight::Weight;

use super::approval;
use super::end;
use super::lifecycle::{self, known_agents, title};
use super::tx::Tx;
use super::verb::enter_finalizing;
use crate::command::{Action, Actor, Advance, Cause, Outcome, Reply};
use crate::deployment::{phase, rollback, steps};
use crate::rejection::Rejection;
use crate::state::{
    Deployment, EndCause, Halted, InstanceCause, Required, ScopeStatus, Status, Verdicts,
};
use crate::strategy::{is_batched, rolling};

/// Verdicts and first causes that a record keeps.
const KEPT: usize = 64;

type Moved = Result<(), Rejection>;

/// Moves a deployment, or says which fact does not hold (any more).
pub(super) fn advance(tx: &mut Tx<'_>, command: &Advance) -> Outcome {
    let deployment = tx.state.deployment(command.deployment)?.clone();
    if deployment.meta.revision != command.revision {
        return Err(Rejection::new(
            Reason::Stale,
            format!(
                "{} is at revision {}, the move was for {}",
                title(&deployment),
                deployment.meta.revision,
                command.revision
            ),
        ));
    }
    if !phase::action(deployment.status, &command.action) {
        return Err(Rejection::new(
            Reason::WrongStatus,
            format!(
                "{} is {} and takes no {}",
                title(&deployment),
                deployment.status,
                command.action.as_str()
            ),
        ));
    }
    let id = deployment.id;
    run(tx, deployment, &command.action)?;
    Ok(Reply::Deployments(vec![id]))
}

fn run(tx: &mut Tx<'_>, deployment: Deployment, action: &Action) -> Moved {
    match action {
        Action::RequireApproval {
            policies,
            expires_at,
        } => require_approval(tx, deployment, policies, *expires_at),
        Action::ApprovalSatisfied => approval_satisfied(tx, deployment),
        Action::ApprovalDenied { expired } => deny(tx, deployment, *expired),
        Action::Start { participants } => start(tx, deployment, participants),
        Action::Staged => staged(tx, deployment),
        Action::Progress { outstanding } => progress(tx, deployment, *outstanding),
        Action::InstancesReady => instances_ready(tx, deployment),
        Action::StepReached => step_reached(tx, deployment),
        Action::StepDone { unverified } => step_done(tx, deployment, *unverified),
        Action::BatchDone => batch_done(tx, deployment),
        Action::Finalize { unverified } => finalize(tx, deployment, *unverified),
        Action::Drained => drained(tx, deployment),
        Action::Settled { leftovers } => settled(tx, deployment, leftovers),
        Action::TakeBack { cause, evidence } => take_back(tx, deployment, cause, evidence),
        Action::Expire { leftovers } => expire(tx, deployment, leftovers),
        Action::Halt { cause, evidence } => halt(tx, deployment, cause, evidence),
        Action::Unhalt => unhalt(tx, deployment),
        Action::MarkLost { lost } => mark_lost(tx, deployment, lost),
        Action::NoteErrors { causes } => note_errors(tx, deployment, causes),
        Action::NoteEvidence { evidence } => note_evidence(tx, deployment, evidence),
        Action::LeftoversGone { agents } => leftovers_gone(tx, deployment, agents),
    }
}

/// A structural fact that the move needs does not hold.
fn refuse(deployment: &Deployment, message: impl std::fmt::Display) -> Moved {
    Err(Rejection::new(
        Reason::WrongStatus,
        format!("{}: {message}", title(deployment)),
    ))
}

fn moved(tx: &mut Tx<'_>, deployment: Deployment, kind: &str, line: &str) -> Moved {
    let line = format!("{} {line}", title(&deployment));
    tx.note_deployment(kind, &deployment, line);
    tx.put_deployment(deployment);
    Ok(())
}

fn check_going(deployment: &Deployment) -> Moved {
    if let Some(paused) = &deployment.paused {
        return refuse(deployment, format_args!("it is paused by {}", paused.by));
    }
    if let Some(halted) = &deployment.halted {
        return refuse(deployment, format_args!("it is halted: {}", halted.message));
    }
    Ok(())
}

fn check_peopled(deployment: &Deployment) -> Moved {
    if deployment.participants.is_empty() {
        return refuse(deployment, "none of its agents is left in the cluster");
    }
    Ok(())
}

fn require_approval(
    tx: &mut Tx<'_>,
    mut deployment: Deployment,
    policies: &[(Name, u32)],
    expires_at: tidegate_shared::time::Timestamp,
) -> Moved {
    if deployment.origin.fast {
        return refuse(&deployment, "a return needs no approval");
    }
    if policies.is_empty() {
        return refuse(&deployment, "no policy is named");
    }
    let before = deployment.required.take();
    let asked = Required {
        policies: policies.to_vec(),
        expires_at,
        decisions: before
            .as_ref()
            .map(|required| required.decisions.clone())
            .unwrap_or_default(),
    };
    let same = deployment.status == Status::CreatingApproval && before.as_ref() == Some(&asked);
    deployment.required = Some(asked);
    if same {
        return refuse(&deployment, "it waits for just that already");
    }
    let unmet = approval::unmet(&deployment);
    if unmet.is_empty() {
        return refuse(&deployment, "the grants that it has suffice");
    }
    if deployment.status == Status::Pending {
        phase::lift(&mut deployment, true, true, tx.at);
        lifecycle::enter(tx, &mut deployment, Status::CreatingApproval)?;
    }
    let asks: Vec<String> = unmet
        .iter()
        .map(|(policy, has, needs)| format!("{policy} ({has} of {needs} grants)"))
        .collect();
    let line = format!("waits for approval until {expires_at}: {}", asks.join(", "));
    moved(tx, deployment, "creating_approval", &line)
}

fn approval_satisfied(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    // A policy that is gone or switched off meanwhile asks for nothing any more.
    let policies = &tx.state.policies;
    let asks = |name: &Name| {
        policies
            .get(name)
            .is_some_and(|policy| policy.spec.enabled && policy.spec.approval.is_some())
    };
    let unmet = approval::unmet(&deployment);
    if let Some((policy, has, needs)) = unmet.into_iter().find(|(name, ..)| asks(name)) {
        return refuse(
            &deployment,
            format_args!("policy {policy} has {has} of {needs} grants"),
        );
    }
    if let Some(required) = &mut deployment.required {
        required.policies.retain(|(name, _)| asks(name));
    }
    lifecycle::enter(tx, &mut deployment, Status::Pending)?;
    moved(
        tx,
        deployment,
        "pending",
        "is approved and waits for its other gates",
    )
}

fn deny(tx: &mut Tx<'_>, mut deployment: Deployment, expired: bool) -> Moved {
    let (reason, message) = if expired {
        ("expired", "nobody decided in time")
    } else {
        ("denied", "an approval rule denies it")
    };
    deployment.reason = reason.to_owned();
    deployment.message = message.to_owned();
    end::end(tx, deployment, Status::CreatingApprovalDenied, Vec::new())
}

fn start(tx: &mut Tx<'_>, mut deployment: Deployment, participants: &[Name]) -> Moved {
    check_going(&deployment)?;
    check_startable(tx, &deployment, participants)?;
    let name = deployment.origin.scope.clone();
    let mut scope = tx.state.scope(&name)?.clone();
    let id = deployment.id;
    let position = scope.waiting.iter().position(|other| *other == id);
    let older = scope.waiting[..position.unwrap_or(0)].to_vec();
    scope.waiting.retain(|other| *other != id);
    scope.candidate = Some(id);
    deployment.replaces = scope.active;
    deployment.participants = participants.to_vec();
    deployment.traffic.total = rolling::total(&deployment, &scope);
    lifecycle::enter(tx, &mut deployment, Status::Creating)?;
    let line = format!(
        "is CREATING: {} on {} agents",
        match scope.active {
            Some(active) => format!("replaces {active}"),
            None => "the first of its scope".to_owned(),
        },
        participants.len()
    );
    // A return that happens by itself is no newer wish of anybody's.
    let supersedes = !(deployment.origin.fast && deployment.meta.created_by == Actor::System);
    let version = deployment.origin.version.clone();
    tx.put_scope(&name, scope);
    moved(tx, deployment, "creating", &line)?;
    for older in older.into_iter().filter(|_| supersedes) {
        let older = tx.state.deployment(older)?.clone();
        let message = format!("the newer {version} started first");
        lifecycle::take_back(tx, older, EndCause::Superseded, "superseded", message)?;
    }
    Ok(())
}

fn check_startable(tx: &Tx<'_>, deployment: &Deployment, participants: &[Name]) -> Moved {
    let origin = &deployment.origin;
    let scope = tx.state.scope(&origin.scope)?;
    if let Some(other) = scope.candidate {
        return refuse(deployment, format_args!("deployment {other} is under way"));
    }
    if matches!(scope.status, ScopeStatus::Stopping | ScopeStatus::Deleted) {
        return refuse(
            deployment,
            format_args!("its scope is {}", scope.status.as_str()),
        );
    }
    let status = tx
        .state
        .release(&origin.application, &origin.version)?
        .status;
    let ready = match status {
        ReleaseStatus::Ready => true,
        // Going back is not held up by a pause; a rejected release needs somebody's word.
        ReleaseStatus::Paused => origin.fast,
        ReleaseStatus::Rejected => origin.forced,
        ReleaseStatus::Building => false,
    };
    if !ready {
        return refuse(deployment, format_args!("its release is {status}"));
    }
    let blocked = deployment.required.is_some() && !approval::unmet(deployment).is_empty();
    if blocked && !origin.fast {
        return refuse(deployment, "grants are missing");
    }
    if participants.is_empty() {
        return refuse(deployment, "no agent is named");
    }
    if participants.windows(2).any(|pair| pair[0] >= pair[1]) {
        return refuse(deployment, "its agents are not in order");
    }
    let selector = &origin.scope_spec.agents;
    let stranger = participants.iter().find(|name| {
        let agent = tx.state.agents.get(*name);
        !agent.is_some_and(|agent| selector.matches(&agent.meta.labels))
    });
    match stranger {
        Some(name) => refuse(
            deployment,
            format_args!("agent {name} does not match \"{selector}\""),
        ),
        None => Ok(()),
    }
}

fn staged(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    check_going(&deployment)?;
    check_peopled(&deployment)?;
    lifecycle::enter(tx, &mut deployment, Status::WaitingForInstances)?;
    steps::enter_waiting(&mut deployment);
    let line = format!(
        "is staged everywhere and starts {} instances",
        deployment.traffic.replaced
    );
    moved(tx, deployment, "waiting_for_instances", &line)
}

fn progress(tx: &mut Tx<'_>, mut deployment: Deployment, outstanding: u32) -> Moved {
    if deployment
        .fewest_outstanding
        .is_some_and(|fewest| outstanding >= fewest)
    {
        return refuse(&deployment, "that is no progress");
    }
    deployment.fewest_outstanding = Some(outstanding);
    deployment.clock_since = match phase::stopped_since(&deployment) {
        // The clock stands; what is counted from there on begins anew.
        Some(stopped) => stopped,
        None => tx.at,
    };
    let line = format!("has {outstanding} instances outstanding");
    moved(tx, deployment, "progress", &line)
}

fn instances_ready(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    check_going(&deployment)?;
    check_peopled(&deployment)?;
    lifecycle::enter(tx, &mut deployment, Status::Running)?;
    steps::enter_running(&mut deployment, tx.at);
    let line = format!(
        "is RUNNING with {} of the traffic",
        deployment.traffic.desired
    );
    moved(tx, deployment, "running", &line)
}

fn step_reached(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    let open = deployment
        .traffic
        .step
        .filter(|step| step.reached_at.is_none());
    if open.is_none() || deployment.traffic.manual.is_some() {
        return refuse(&deployment, "no step waits to be reached");
    }
    phase::count_time(&mut deployment, tx.at);
    steps::reached(&mut deployment, tx.at);
    let line = format!(
        "holds {} of the traffic everywhere",
        deployment.traffic.desired
    );
    moved(tx, deployment, "step_reached", &line)
}

fn step_done(tx: &mut Tx<'_>, mut deployment: Deployment, unverified: bool) -> Moved {
    check_going(&deployment)?;
    if steps::at_last(&deployment) {
        return refuse(&deployment, "it is at its last step");
    }
    let step = deployment.traffic.step;
    if step.is_some_and(|step| step.reached_at.is_none()) {
        return refuse(&deployment, "its step is not reached yet");
    }
    phase::count_time(&mut deployment, tx.at);
    deployment.unverified |= unverified;
    steps::next(&mut deployment, tx.at);
    let line = if is_batched(&deployment) {
        format!(
            "replaces its next batch: {} of {} instances",
            deployment.traffic.replaced, deployment.traffic.total
        )
    } else {
        format!("goes on to {} of the traffic", deployment.traffic.desired)
    };
    moved(tx, deployment, "step", &line)
}

fn batch_done(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    if !is_batched(&deployment) {
        return refuse(&deployment, "it moves in no batches");
    }
    if deployment.status == Status::Running {
        return step_reached(tx, deployment);
    }
    let traffic = &deployment.traffic;
    if traffic.replaced == 0 && traffic.desired == Weight::ZERO {
        return refuse(&deployment, "every batch is back");
    }
    rollback::next_batch(&mut deployment);
    deployment.clock_since = tx.at;
    let line = format!(
        "has a batch back: {} of {} instances are still the new version's",
        deployment.traffic.replaced, deployment.traffic.total
    );
    moved(tx, deployment, "batch_back", &line)
}

fn finalize(tx: &mut Tx<'_>, mut deployment: Deployment, unverified: bool) -> Moved {
    check_going(&deployment)?;
    check_peopled(&deployment)?;
    let stalled = deployment.origin.strategy.on_stall == OnStall::Finalize;
    if !steps::last_is_reached(&deployment) && !stalled {
        return refuse(&deployment, "its last step is not reached");
    }
    deployment.unverified |= unverified;
    enter_finalizing(tx, &mut deployment)?;
    moved(
        tx,
        deployment,
        "finalizing",
        "is FINALIZING: the old version drains and goes",
    )
}

fn drained(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    if deployment.drained {
        return refuse(&deployment, "that is known already");
    }
    deployment.drained = true;
    moved(
        tx,
        deployment,
        "drained",
        "has the loser drained everywhere",
    )
}

fn settled(tx: &mut Tx<'_>, mut deployment: Deployment, leftovers: &[Name]) -> Moved {
    let to = match deployment.status {
        Status::Finalizing => {
            if !deployment.drained && !steps::is_initial(&deployment) {
                return refuse(&deployment, "the old version is not drained yet");
            }
            Status::Finalized
        }
        Status::Cancelling => rollback::end_of_cancelling(&deployment),
        Status::RollingBack => Status::RolledBack,
        Status::Deleting => Status::Deleted,
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Pending
        | Status::Creating
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalized
        | Status::Cancelled
        | Status::RolledBack
        | Status::Failed
        | Status::Deleted => return refuse(&deployment, "nothing settles in this status"),
    };
    if to != Status::Finalized {
        if is_batched(&deployment) && deployment.traffic.replaced > 0 {
            return refuse(&deployment, "batches of it are not back yet");
        }
        deployment.traffic.desired = Weight::ZERO;
    }
    let leftovers = known_agents(tx, leftovers.to_vec());
    end::end(tx, deployment, to, leftovers)
}

fn end_cause(cause: &Cause) -> Option<EndCause> {
    match cause.kind.as_str() {
        "rule" | "no_data" => Some(EndCause::Rule),
        "permanent_errors" => Some(EndCause::Errors),
        "progress_deadline" | "staging_deadline" | "stall" | "halt_max" | "pause_max"
        | "lost_agents" => Some(EndCause::Deadline),
        _ => None,
    }
}

fn take_back(
    tx: &mut Tx<'_>,
    mut deployment: Deployment,
    cause: &Cause,
    evidence: &Verdicts,
) -> Moved {
    let Some(end_cause) = end_cause(cause) else {
        return refuse(&deployment, format_args!("\"{}\" is no cause", cause.kind));
    };
    if deployment.return_at_finalized.is_some() {
        return refuse(&deployment, "its return is noted already");
    }
    keep_evidence(&mut deployment, evidence);
    let message = cause.message.clone();
    lifecycle::take_back(tx, deployment, end_cause, &cause.kind, message)
}

fn expire(tx: &mut Tx<'_>, mut deployment: Deployment, leftovers: &[Name]) -> Moved {
    let paused = deployment.paused.is_some();
    let reason = |word: &str| if paused { "pause_max" } else { word }.to_owned();
    let limits = deployment.origin.strategy.deadlines;
    let (to, reason, message) = match deployment.status {
        Status::CreatingApproval => return deny(tx, deployment, true),
        Status::Pending => {
            let message = if paused {
                format!("paused for {}", limits.pause_max)
            } else {
                format!("its gates were not all open in {}", limits.pending)
            };
            (Status::Cancelled, reason("expired"), message)
        }
        Status::Creating => {
            let message = if paused {
                format!("paused for {}", limits.pause_max)
            } else {
                format!("not staged everywhere in {}", limits.staging)
            };
            rollback::begin_return(&mut deployment);
            (Status::Failed, reason("staging_deadline"), message)
        }
        Status::Finalizing => (Status::Finalized, String::new(), String::new()),
        Status::Cancelling | Status::RollingBack => {
            deployment.traffic.desired = Weight::ZERO;
            deployment.traffic.replaced = 0;
            let message = format!(
                "{}; no progress in {}",
                deployment.message, limits.returning
            );
            (Status::Failed, deployment.reason.clone(), message)
        }
        Status::Deleting => (Status::Deleted, String::new(), String::new()),
        Status::CreatingApprovalDenied
        | Status::WaitingForInstances
        | Status::Running
        | Status::Finalized
        | Status::Cancelled
        | Status::RolledBack
        | Status::Failed
        | Status::Deleted => return refuse(&deployment, "nothing expires in this status"),
    };
    if to == Status::Cancelled || to == Status::Failed {
        deployment.end_cause = Some(deployment.end_cause.unwrap_or(EndCause::Deadline));
        deployment.reason = reason;
        deployment.message = message;
    }
    let leftovers = match deployment.status {
        Status::Pending => Vec::new(),
        _started => known_agents(tx, leftovers.to_vec()),
    };
    end::end(tx, deployment, to, leftovers)
}

fn halt(tx: &mut Tx<'_>, mut deployment: Deployment, cause: &Cause, evidence: &Verdicts) -> Moved {
    if deployment.halted.is_some() {
        return refuse(&deployment, "it is halted already");
    }
    phase::count_time(&mut deployment, tx.at);
    keep_evidence(&mut deployment, evidence);
    deployment.halted = Some(Halted {
        since: tx.at,
        kind: cause.kind.clone(),
        message: cause.message.clone(),
    });
    let line = format!("is halted ({}): {}", cause.kind, cause.message);
    moved(tx, deployment, "halted", &line)
}

fn unhalt(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    let Some(halted) = deployment.halted.clone() else {
        return refuse(&deployment, "it is not halted");
    };
    phase::lift(&mut deployment, false, true, tx.at);
    let line = format!("goes on: what halted it is over ({})", halted.message);
    moved(tx, deployment, "unhalted", &line)
}

fn mark_lost(tx: &mut Tx<'_>, mut deployment: Deployment, lost: &[Name]) -> Moved {
    if deployment.lost == lost {
        return refuse(&deployment, "that is known already");
    }
    let mut rest = lost.iter();
    if rest.any(|name| !deployment.participants.contains(name)) {
        return refuse(&deployment, "somebody named is no participant");
    }
    deployment.lost = lost.to_vec();
    let names: Vec<&str> = lost.iter().map(Name::as_str).collect();
    let line = if names.is_empty() {
        "has all its agents back".to_owned()
    } else {
        format!("has lost {}", names.join(", "))
    };
    moved(tx, deployment, "lost_agents", &line)
}

fn note_errors(tx: &mut Tx<'_>, mut deployment: Deployment, causes: &[InstanceCause]) -> Moved {
    let mut lines = Vec::new();
    for cause in causes {
        let known = deployment
            .causes
            .iter()
            .any(|known| known.agent == cause.agent && known.instance == cause.instance);
        if !known && deployment.causes.len() < KEPT {
            lines.push(format!(
                "{} {} ({})",
                cause.agent, cause.message, cause.kind
            ));
            deployment.causes.push(cause.clone());
        }
    }
    if lines.is_empty() {
        return refuse(&deployment, "that is known already");
    }
    let line = format!("has trouble: {}", lines.join("; "));
    moved(tx, deployment, "trouble", &line)
}

fn keep_evidence(deployment: &mut Deployment, evidence: &Verdicts) {
    deployment.evidence.extend(evidence.iter().cloned());
    let surplus = deployment.evidence.len().saturating_sub(KEPT);
    deployment.evidence.drain(..surplus);
}

fn note_evidence(tx: &mut Tx<'_>, mut deployment: Deployment, evidence: &Verdicts) -> Moved {
    if evidence.is_empty() {
        return refuse(&deployment, "there is nothing to note");
    }
    keep_evidence(&mut deployment, evidence);
    let lines: Vec<String> = evidence
        .iter()
        .map(|e| {
            format!(
                "{} is {} ({} {}): {}",
                e.metric,
                e.value,
                e.comparison.as_str(),
                e.threshold,
                e.verdict.as_str()
            )
        })
        .collect();
    let line = format!("was judged: {}", lines.join("; "));
    moved(tx, deployment, "evidence", &line)
}

fn leftovers_gone(tx: &mut Tx<'_>, mut deployment: Deployment, agents: &[Name]) -> Moved {
    let before = deployment.leftovers.len();
    deployment.leftovers.retain(|name| !agents.contains(name));
    if deployment.leftovers.len() == before {
        return refuse(&deployment, "nothing of it is left on these agents");
    }
    let id = deployment.id;
    let left = deployment.leftovers.len();
    let line = match left {
        0 => "is gone from every agent".to_owned(),
        left => format!("is gone from more agents; {left} are left"),
    };
    moved(tx, deployment, "leftovers_gone", &line)?;
    lifecycle::drop_settled_leftovers(tx, id)
}
