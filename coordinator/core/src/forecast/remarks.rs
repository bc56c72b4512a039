//! What people should know beside the times: what will hold them up, and what was assumed.

use std::collections::BTreeMap;

use tidegate_shared::id::Name;

use super::run::{Run, Tracked};
use super::{Cut, HORIZON, MomentEvent, Remark, RemarkWeight};
use crate::state::Status;

/// Scopes that are named for each kind of remark; of more of them the number is told.
const NAMED: usize = 12;

fn warning(kind: &'static str, scope: Option<&Name>, message: String) -> Remark {
    Remark {
        weight: RemarkWeight::Warning,
        kind,
        scope: scope.cloned(),
        message,
    }
}

fn assumption(kind: &'static str, scope: Option<&Name>, message: String) -> Remark {
    Remark {
        weight: RemarkWeight::Assumption,
        ..warning(kind, scope, message)
    }
}

/// Every remark, warnings first.
pub(super) fn remarks(run: &Run<'_>, cut: Option<Cut>, lost: &[Name]) -> Vec<Remark> {
    let mut all = Vec::new();
    all.extend(cut.map(|cut| of_cut(run, cut)));
    for tracked in &run.members {
        ends_badly(run, tracked, cut, &mut all);
        approval(tracked, &mut all);
        windows(tracked, &mut all);
        frozen(tracked, &mut all);
        people(tracked, &mut all);
        lost_agents(run, tracked, lost, &mut all);
        older(run, tracked, &mut all);
    }
    rules(run, &mut all);
    all.push(assumption(
        "ideal",
        None,
        "every host does what it is told, nothing fails, and nobody changes anything meanwhile"
            .to_owned(),
    ));
    let mut all = in_short(all);
    all.sort_by_key(|remark| remark.weight);
    all
}

/// Of each kind the first few scopes, and how many more there are: what is said of thousands is read
/// by nobody, and stands in the members too.
fn in_short(all: Vec<Remark>) -> Vec<Remark> {
    let mut counts: BTreeMap<(RemarkWeight, &'static str), usize> = BTreeMap::new();
    let mut short = Vec::new();
    for remark in all {
        let count = counts.entry((remark.weight, remark.kind)).or_default();
        *count += 1;
        if remark.scope.is_none() || *count <= NAMED {
            short.push(remark);
        }
    }
    for ((weight, kind), count) in counts {
        if let Some(more) = count.checked_sub(NAMED).filter(|more| *more > 0) {
            short.push(Remark {
                weight,
                kind,
                scope: None,
                message: format!("{kind}: the same is said {more} more times of other scopes"),
            });
        }
    }
    short
}

fn of_cut(run: &Run<'_>, cut: Cut) -> Remark {
    let all = run.members.len();
    let members = run.members.iter();
    let open = members.filter(|tracked| !tracked.member.status.is_end());
    let left = match open.count() {
        0 => String::new(),
        open => format!(": {open} of {all} scopes have not ended by {}", run.now),
    };
    let message = match cut {
        Cut::Horizon => format!("the schedule is followed for {HORIZON}{left}"),
        Cut::Work | Cut::Patience => format!(
            "the schedule takes too much work to be followed to its end{left}, and what becomes of them is not known: plan fewer scopes at once"
        ),
        Cut::Restless => format!(
            "the schedule comes to no rest at one instant, which is a bug: please report it{left}"
        ),
    };
    warning(cut.as_str(), None, message)
}

/// Members that never start, or end otherwise than well.
fn ends_badly(run: &Run<'_>, tracked: &Tracked, cut: Option<Cut>, all: &mut Vec<Remark>) {
    let member = &tracked.member;
    let is_known = member.status.is_end()
        || match cut {
            None | Some(Cut::Horizon) => true,
            Some(Cut::Work | Cut::Patience | Cut::Restless) => false,
        };
    if !is_known {
        return;
    }
    let scope = Some(&member.scope);
    let last = member.waits.last();
    let why = match last {
        Some(wait) if member.message.is_empty() => wait.why.clone(),
        Some(wait) => format!("{}; {}", wait.why, member.message),
        None => member.message.clone(),
    };
    if member.starts_at.is_none() {
        let end = match member.ends_at {
            Some(at) => format!("it ends {} at {at}", member.status),
            None => format!("it is still {}", member.status),
        };
        all.push(warning(
            "never_starts",
            scope,
            format!("it never starts: {why}; {end}"),
        ));
    } else if member.status.is_end() && member.status != Status::Finalized {
        let message = format!("it ends {}: {}", member.status, member.message);
        all.push(warning("ends_otherwise", scope, message));
    } else if !member.status.is_end() {
        let waits = run.state.deployments.get(&member.deployment);
        let halted = waits.and_then(|found| found.halted.as_ref());
        let halted = halted.map_or(String::new(), |halted| format!(": {}", halted.message));
        let message = format!("it is still {}{halted}", member.status);
        all.push(warning("unfinished", scope, message));
    }
}

fn approval(tracked: &Tracked, all: &mut Vec<Remark>) {
    let member = &tracked.member;
    let Some(approval) = &member.approval else {
        return;
    };
    let needs: Vec<String> = approval
        .policies
        .iter()
        .map(|(policy, count)| format!("{count} of policy {policy}"))
        .collect();
    let needs = needs.join(", ");
    let starts = member.starts_at.filter(|at| *at > approval.expires_at);
    if let Some(starts) = starts {
        all.push(warning(
            "approval_expires",
            Some(&member.scope),
            format!(
                "its approval ({needs}) has to be given before {}, when it expires, though it starts at {starts} only",
                approval.expires_at
            ),
        ));
    }
    all.push(assumption(
        "approval",
        Some(&member.scope),
        format!(
            "it needs approval ({needs}), which is taken to be given as soon as it is asked for, at {}; every later hour moves what follows, and it expires at {}",
            approval.at, approval.expires_at
        ),
    ));
}

/// Losing a gate after the start turns nothing back, but whoever wrote the window meant otherwise.
fn windows(tracked: &Tracked, all: &mut Vec<Remark>) {
    let member = &tracked.member;
    let Some(starts) = member.starts_at else {
        return;
    };
    for (rule, closes) in &tracked.closing {
        let ends = member.ends_at;
        if ends.is_some_and(|ends| ends <= *closes) {
            continue;
        }
        let takes = match ends {
            Some(ends) => format!("goes on until {ends}"),
            None => "goes on after it".to_owned(),
        };
        all.push(warning(
            "window_too_short",
            Some(&member.scope),
            format!(
                "the window of policy {rule} closes at {closes}, {} after the start; the rollout {takes}",
                closes.since(starts)
            ),
        ));
    }
}

fn frozen(tracked: &Tracked, all: &mut Vec<Remark>) {
    let member = &tracked.member;
    for wait in member.waits.iter().filter(|wait| wait.kind == "freeze") {
        let until = wait.until.map_or_else(
            || "as far as the schedule is followed".to_owned(),
            |until| format!("until {until}"),
        );
        let message = format!("a freeze holds it up {until}: {}", wait.why);
        all.push(warning("freeze", Some(&member.scope), message));
    }
}

fn people(tracked: &Tracked, all: &mut Vec<Remark>) {
    let member = &tracked.member;
    for moment in &member.moments {
        if let MomentEvent::Person(verb) = moment.event {
            all.push(assumption(
                "person",
                Some(&member.scope),
                format!(
                    "a person has to `{verb}` it at {}, which is taken to be done at once; every later hour moves what follows",
                    moment.at
                ),
            ));
        }
    }
}

fn lost_agents(run: &Run<'_>, tracked: &Tracked, lost: &[Name], all: &mut Vec<Remark>) {
    let member = &tracked.member;
    let Some(found) = run.state.deployments.get(&member.deployment) else {
        return;
    };
    let names: Vec<&str> = lost
        .iter()
        .filter(|name| found.participants.binary_search(name).is_ok())
        .map(Name::as_str)
        .collect();
    if !names.is_empty() {
        let message = format!(
            "nothing is heard of {} at present; the schedule takes all agents to be back",
            names.join(", ")
        );
        all.push(warning("agents_lost", Some(&member.scope), message));
    }
}

/// Deployments that wait in the scope now and give way.
fn older(run: &Run<'_>, tracked: &Tracked, all: &mut Vec<Remark>) {
    let member = &tracked.member;
    for id in run.older.get(&member.scope).into_iter().flatten() {
        let Some(found) = run.state.deployments.get(id) else {
            continue;
        };
        if found.reason == "superseded" {
            let message = format!(
                "deployment {} of {} by {}, which waits there, ends superseded",
                found.short, found.origin.version, found.meta.created_by
            );
            all.push(warning("supersedes", Some(&member.scope), message));
        }
    }
}

fn rules(run: &Run<'_>, all: &mut Vec<Remark>) {
    if run.members.iter().any(|tracked| tracked.judged) {
        all.push(assumption(
            "rules",
            None,
            "rollback rules pass and every measurement of a check is good and takes no time; a bad one, or too few requests to judge by (on_no_data), makes steps longer"
                .to_owned(),
        ));
    }
}
