//! Before `CREATING`: approval asked for, given or denied, and the start.

use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::spec::ReleaseStatus;
use tidegate_shared::time::Timestamp;

use super::{Moved, check_going, moved, refuse};
use crate::apply::approval;
use crate::apply::end;
use crate::apply::governance;
use crate::apply::group;
use crate::apply::lifecycle::{self, title};
use crate::apply::tx::Tx;
use crate::command::{Actor, GateEvidence};
use crate::deployment::phase;
use crate::people;
use crate::policy;
use crate::rejection::Rejection;
use crate::state::{Deployment, EndCause, Required, ScopeStatus, Started, Status};
use crate::strategy::rolling;

pub(super) fn require_approval(
    tx: &mut Tx<'_>,
    mut deployment: Deployment,
    policies: &[(Name, u32)],
    expires_at: Timestamp,
    withdrawn: &[Name],
) -> Moved {
    if deployment.origin.fast {
        return refuse(&deployment, "a return needs no approval");
    }
    if policies.is_empty() {
        return refuse(&deployment, "no policy is named");
    }
    let withdrew = approval::withdraw(tx, &mut deployment, withdrawn);
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
    if same && !withdrew {
        return refuse(&deployment, "it waits for just that already");
    }
    let unmet = approval::unmet(&deployment);
    // Whose grant counts for which policy is the planner's to say, since people have roles.
    if unmet.is_empty() && !people::in_force(&tx.state) {
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
    let asks = match asks.is_empty() {
        true => "of others than those who granted".to_owned(),
        false => asks.join(", "),
    };
    let line = format!("waits for approval until {expires_at}: {asks}");
    moved(tx, deployment, "creating_approval", &line)
}

pub(super) fn approval_satisfied(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    // A policy that is gone, switched off or skipped meanwhile asks for nothing any more.
    let (state, at) = (&tx.state, tx.at);
    let asking = deployment.clone();
    let asks = |name: &Name| {
        let rule = policy::approval::rule_name(name);
        let policy = state.policies.get(name);
        policy.is_some_and(|policy| policy.spec.enabled && policy.spec.approval.is_some())
            && policy::rules::skipped(state, &asking, &rule, at).is_none()
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

pub(super) fn deny(tx: &mut Tx<'_>, mut deployment: Deployment, expired: bool) -> Moved {
    let (reason, message) = if expired {
        ("expired", "nobody decided in time")
    } else {
        ("denied", "an approval rule denies it")
    };
    deployment.reason = reason.to_owned();
    deployment.message = message.to_owned();
    end::end(tx, deployment, Status::CreatingApprovalDenied, Vec::new())
}

/// A rule denies the start for good.
pub(super) fn refuse_start(tx: &mut Tx<'_>, mut deployment: Deployment, message: &str) -> Moved {
    phase::lift(&mut deployment, true, true, tx.at);
    deployment.reason = "denied".to_owned();
    deployment.message = message.to_owned();
    end::end(tx, deployment, Status::CreatingApprovalDenied, Vec::new())
}

/// The rules were asked before something that they rest on changed.
fn check_gates(tx: &Tx<'_>, deployment: &Deployment, gates: Option<&GateEvidence>) -> Moved {
    let now = tx.state.gates_revision;
    match gates {
        Some(gates) if gates.revision != now => Err(Rejection::new(
            Reason::Stale,
            format!(
                "{}: its gates were asked at revision {}, and are at {now}",
                title(deployment),
                gates.revision
            ),
        )),
        Some(_) | None => Ok(()),
    }
}

pub(super) fn start(
    tx: &mut Tx<'_>,
    mut deployment: Deployment,
    participants: &[Name],
    gates: Option<&GateEvidence>,
) -> Moved {
    check_going(&deployment)?;
    check_gates(tx, &deployment, gates)?;
    let turn = gates.and_then(|gates| gates.group.as_ref());
    group::check_turn(tx, &deployment, turn)?;
    check_startable(tx, &deployment, participants)?;
    let name = deployment.origin.scope.clone();
    if gates.is_some_and(|gates| gates.counts) {
        governance::gates_changed(tx);
    }
    if !deployment.origin.fast {
        let mut track = tx.state.tracks.get(&name).cloned().unwrap_or_default();
        track.started = Some(Started {
            version: deployment.origin.version.clone(),
            at: tx.at,
        });
        tx.state.tracks.insert(name.clone(), track);
    }
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
    group::started(tx, &deployment, turn);
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
        ReleaseStatus::Building | ReleaseStatus::Collected => false,
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
