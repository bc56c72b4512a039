//! Several deployments as one table, newest first.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_proto::control::v1 as api;
use tidegate_proto::control::v1::deployment::Status;

use super::{has_ended, has_traffic, tone};
use crate::output::{Output, Table, Tone, dash, shortened, weight};
use crate::time;

/// Ids of those deployments that are the active ones of their scopes, out of a list that holds at
/// least the newest ones of each scope.
pub fn active_among(deployments: &[api::Deployment]) -> BTreeSet<String> {
    let mut newest: BTreeMap<&str, &api::Deployment> = BTreeMap::new();
    for deployment in deployments {
        // The active one of a scope that was stopped is deleted; none before it comes back.
        let was_active = matches!(
            deployment.status(),
            Status::Finalized | Status::Deleting | Status::Deleted
        );
        if !was_active {
            continue;
        }
        let known = newest.entry(&deployment.scope).or_insert(deployment);
        if (deployment.ended_at_ms, &deployment.id) > (known.ended_at_ms, &known.id) {
            *known = deployment;
        }
    }
    newest
        .into_values()
        .filter(|deployment| deployment.status() == Status::Finalized)
        .map(|deployment| deployment.id.clone())
        .collect()
}

/// Share of the traffic as a column: what the agents hold; what the active one is to hold; nothing
/// for those that ended or have not started.
fn share(deployment: &api::Deployment, is_active: bool) -> String {
    let traffic = deployment.traffic.unwrap_or_default();
    let status = deployment.status();
    if status == Status::Finalized && is_active {
        weight(i64::from(traffic.desired.max(traffic.actual)))
    } else if has_traffic(status) && traffic.actual > 0 {
        weight_on_its_way(&traffic)
    } else if has_traffic(status) {
        // Lists are not told what the agents hold.
        weight(i64::from(traffic.desired))
    } else {
        "-".to_owned()
    }
}

/// `10 %`, and where it goes if it is not there yet: `10 % → 50 %`.
pub fn weight_on_its_way(traffic: &api::Traffic) -> String {
    let held = weight(i64::from(traffic.actual));
    if traffic.actual == traffic.desired {
        held
    } else {
        format!("{held} → {}", weight(i64::from(traffic.desired)))
    }
}

/// The table of several deployments; `active` holds the ids of active ones.
pub fn list(
    output: Output,
    deployments: &[api::Deployment],
    active: &BTreeSet<String>,
    wide: bool,
    empty: &str,
) -> String {
    let mut headings = vec![
        "ID",
        "SCOPE",
        "APPLICATION",
        "VERSION",
        "STATUS",
        "TRAFFIC",
        "AGE",
        "WHAT",
    ];
    if wide {
        headings.extend(["BY", "STRATEGY", "REPLACES", "ULID"]);
    }
    let mut table = Table::new(&headings);
    let now = time::now_ms();
    for deployment in deployments {
        let metadata = deployment.metadata.clone().unwrap_or_default();
        let status = deployment.status();
        let replaces = if deployment.replaces_version.is_empty() {
            String::new()
        } else {
            format!("replaces {}", deployment.replaces_version)
        };
        let what = match (has_ended(status), deployment.waiting_for.as_str()) {
            (false, text) if !text.is_empty() => text,
            (false, _) if deployment.message.is_empty() => &replaces,
            _ if !deployment.message.is_empty() => &deployment.message,
            _ if !deployment.reason.is_empty() => &deployment.reason,
            _ => &deployment.outcome,
        };
        let mut cells = vec![
            (Tone::Strong, deployment.short_id.clone()),
            (Tone::Plain, deployment.scope.clone()),
            (Tone::Plain, deployment.application.clone()),
            (Tone::Plain, deployment.version.clone()),
            (tone(status), status.as_str_name().to_owned()),
            (
                Tone::Plain,
                share(deployment, active.contains(&deployment.id)),
            ),
            (Tone::Faint, time::age(metadata.created_at_ms, now)),
            (
                Tone::Plain,
                if wide {
                    dash(what).to_owned()
                } else {
                    dash(&shortened(&time::told(what, now), 70)).to_owned()
                },
            ),
        ];
        if wide {
            cells.extend([
                (Tone::Plain, dash(&metadata.created_by).to_owned()),
                (Tone::Plain, dash(&deployment.strategy_name).to_owned()),
                (Tone::Plain, dash(&deployment.replaces_version).to_owned()),
                (Tone::Faint, deployment.id.clone()),
            ]);
        }
        table.toned(cells);
    }
    table.render(output, empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_active_one_of_a_scope_has_traffic_after_its_end() {
        let ended = |id: &str, scope: &str, status: Status, at: u64| api::Deployment {
            id: id.to_owned(),
            scope: scope.to_owned(),
            status: status.into(),
            ended_at_ms: at,
            traffic: Some(api::Traffic {
                desired: 10_000,
                ..api::Traffic::default()
            }),
            ..api::Deployment::default()
        };
        let all = [
            ended("d", "stopped", Status::Deleted, 4),
            ended("c", "web", Status::RolledBack, 3),
            ended("b", "web", Status::Finalized, 2),
            ended("a", "web", Status::Finalized, 1),
            ended("0", "stopped", Status::Finalized, 1),
        ];
        let active = active_among(&all);
        assert_eq!(active, BTreeSet::from(["b".to_owned()]));
        let shares: Vec<_> = all
            .iter()
            .map(|one| share(one, active.contains(&one.id)))
            .collect();
        assert_eq!(shares, ["-", "-", "100 %", "-", "-"]);
    }
}
