//! Decisions of people about deployments that wait for approval.
//!
//! Counted here are grants alone; which policies ask for how many is the planner's answer that
//! stands in the record.

use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::time::Timestamp;

use super::binding::binding;
use super::end;
use super::lifecycle::{because, title};
use super::token::person;
use super::tx::Tx;
use crate::command::{Decide, Outcome, Reply};
use crate::policy;
use crate::rejection::Rejection;
use crate::state::{Decision, Deployment, Required, Status};

/// One decision per person; a denial is final.
pub(super) fn decide(tx: &mut Tx<'_>, command: &Decide) -> Outcome {
    let mut deployment = tx.state.deployment(command.deployment)?.clone();
    if person(tx.actor).is_none() {
        return Err(Rejection::new(
            Reason::PermissionDenied,
            format!("{} is no person: only people approve and deny", tx.actor),
        ));
    }
    let what = title(&deployment);
    let asked = deployment.clone();
    let waits = deployment.status == Status::CreatingApproval;
    let Some(required) = deployment.required.as_mut().filter(|_| waits) else {
        return Err(Rejection::new(
            Reason::NoApprovalPending,
            format!("{what} is {} and waits for no approval", deployment.status),
        ));
    };
    if let Some(user) = person(tx.actor)
        && !policy::approval::could_decide(&tx.state, &asked, user)
    {
        return Err(Rejection::new(
            Reason::PermissionDenied,
            format!("{what}: {} is not among those who are asked", tx.actor),
        ));
    }
    if tx.at >= required.expires_at {
        return Err(Rejection::new(
            Reason::NoApprovalPending,
            format!(
                "{what}: the time to decide ended at {}",
                required.expires_at
            ),
        ));
    }
    if let Some(before) = required.decisions.iter().find(|d| d.by == *tx.actor) {
        let word = if before.granted { "granted" } else { "denied" };
        return Err(Rejection::new(
            Reason::AlreadyDecided,
            format!("{what}: {} {word} it at {}", tx.actor, before.at),
        ));
    }
    let bound = binding(&deployment.origin);
    let decision = Decision {
        by: tx.actor.clone(),
        granted: command.granted,
        at: tx.at,
        reason: command.reason.clone(),
        binding: bound,
    };
    required.decisions.push(decision);
    let why = because(&command.reason);
    if command.granted {
        let line = format!("{what} was granted by {}{why}", tx.actor);
        tx.note_deployment("approval_granted", &deployment, line);
        tx.put_deployment(deployment);
    } else {
        let line = format!("{what} was denied by {}{why}", tx.actor);
        tx.note_deployment("approval_denied", &deployment, line);
        deployment.reason = "denied".to_owned();
        deployment.message = format!("denied by {}{why}", tx.actor);
        end::end(tx, deployment, Status::CreatingApprovalDenied, Vec::new())?;
    }
    Ok(Reply::Deployments(vec![command.deployment]))
}

/// Policies of the record whose grants do not suffice, each with grants that count and grants that
/// it needs. Only grants for this very release, parameters and strategy, before the expiry, count.
pub fn unmet(deployment: &Deployment) -> Vec<(Name, u32, u32)> {
    let Some(required) = &deployment.required else {
        return Vec::new();
    };
    let grants = u32::try_from(grants(deployment, required).count()).unwrap_or(u32::MAX);
    required
        .policies
        .iter()
        .filter(|(_, needed)| grants < *needed)
        .map(|(name, needed)| (name.clone(), grants, *needed))
        .collect()
}

fn grants<'a>(
    deployment: &'a Deployment,
    required: &'a Required,
) -> impl Iterator<Item = &'a Decision> {
    let bound = binding(&deployment.origin);
    required
        .decisions
        .iter()
        .filter(move |d| d.granted && d.at < required.expires_at && d.binding == bound)
}

/// Takes out the grants of people who are not asked any more; each is a line of the audit log.
/// Whether there were any.
pub(super) fn withdraw(tx: &mut Tx<'_>, deployment: &mut Deployment, people: &[Name]) -> bool {
    let Some(required) = &mut deployment.required else {
        return false;
    };
    let is_out = |d: &Decision| d.granted && person(&d.by).is_some_and(|who| people.contains(who));
    let out: Vec<Decision> = required
        .decisions
        .iter()
        .filter(|d| is_out(d))
        .cloned()
        .collect();
    required.decisions.retain(|d| !is_out(d));
    for decision in &out {
        let line = format!(
            "the grant of {} to {} counts no more: {} is not among those who are asked any more",
            decision.by,
            title(deployment),
            decision.by
        );
        tx.note_deployment("approval_withdrawn", deployment, line);
    }
    !out.is_empty()
}

/// The grants that a retry takes over: those for the same release, parameters and strategy.
pub(super) fn carried(deployment: &Deployment, expires_at: Timestamp) -> Option<Required> {
    let required = deployment.required.as_ref()?;
    let decisions: Vec<Decision> = grants(deployment, required).cloned().collect();
    (!decisions.is_empty()).then_some(Required {
        policies: Vec::new(),
        expires_at,
        decisions,
    })
}
