//! Halts, lost agents, and what is noted for people: nothing here changes the status.

use tidegate_shared::id::Name;

use super::{Moved, moved, refuse};
use crate::apply::tx::Tx;
use crate::command::Cause;
use crate::deployment::phase;
use crate::state::{CheckRecord, Deployment, Halted, InstanceCause, Verdicts};

/// Verdicts and first causes that a record keeps.
const KEPT: usize = 64;

pub(super) fn halt(
    tx: &mut Tx<'_>,
    mut deployment: Deployment,
    cause: &Cause,
    evidence: &Verdicts,
) -> Moved {
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

pub(super) fn unhalt(tx: &mut Tx<'_>, mut deployment: Deployment) -> Moved {
    let Some(halted) = deployment.halted.clone() else {
        return refuse(&deployment, "it is not halted");
    };
    phase::lift(&mut deployment, false, true, tx.at);
    let line = format!("goes on: what halted it is over ({})", halted.message);
    moved(tx, deployment, "unhalted", &line)
}

pub(super) fn mark_lost(tx: &mut Tx<'_>, mut deployment: Deployment, lost: &[Name]) -> Moved {
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

pub(super) fn note_errors(
    tx: &mut Tx<'_>,
    mut deployment: Deployment,
    causes: &[InstanceCause],
) -> Moved {
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

pub(super) fn keep_evidence(deployment: &mut Deployment, evidence: &Verdicts) {
    deployment.evidence.extend(evidence.iter().cloned());
    let surplus = deployment.evidence.len().saturating_sub(KEPT);
    deployment.evidence.drain(..surplus);
}

pub(super) fn note_evidence(
    tx: &mut Tx<'_>,
    mut deployment: Deployment,
    evidence: &Verdicts,
) -> Moved {
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

pub(super) fn note_checks(
    tx: &mut Tx<'_>,
    mut deployment: Deployment,
    checks: &[CheckRecord],
) -> Moved {
    if checks.is_empty() {
        return refuse(&deployment, "there is nothing to note");
    }
    for check in checks {
        let same = |known: &CheckRecord| known.name == check.name && known.run == check.run;
        if deployment
            .checks
            .iter()
            .any(|known| same(known) && known.is_final())
        {
            let line = format_args!("what check {} came to is known already", check.name);
            return refuse(&deployment, line);
        }
        deployment.checks.retain(|known| !same(known));
        deployment.checks.push(check.clone());
    }
    let surplus = deployment.checks.len().saturating_sub(KEPT);
    deployment.checks.drain(..surplus);
    let lines: Vec<&str> = checks.iter().map(|check| check.message.as_str()).collect();
    let line = format!("was checked: {}", lines.join("; "));
    moved(tx, deployment, "checked", &line)
}
