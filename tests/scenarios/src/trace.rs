//! The trace: what changed, in the order in which it did, one line each.
//!
//! Written from differences of states and reports, never from messages of the code under test
//! alone, so that a line says what is, not what somebody meant to do.

use std::collections::BTreeMap;

use tidegate_coordinator_core::explain::Explanation;
use tidegate_coordinator_core::state::{Deployment, Scope, State, Status};
use tidegate_coordinator_core::strategy::is_batched;
use tidegate_shared::assignment::{InstanceState, ObservedPlace};
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::weight::Weight;

use crate::script::Nth;

/// Short names for ids, in order of their appearance.
#[derive(Debug, Clone, Default)]
pub struct Names {
    ids: Vec<DeploymentId>,
}

impl Names {
    /// Gives names to deployments that are new.
    pub fn learn(&mut self, state: &State) {
        // Members of a group in the order in which they were listed.
        let groups = state.open_groups.keys();
        let members = groups.filter_map(|id| state.groups.get(id));
        let members = members.flat_map(|group| group.members.values());
        let members = members.map(|member| &member.deployment);
        for id in members.chain(state.deployments.keys()) {
            if !self.ids.contains(id) {
                self.ids.push(*id);
            }
        }
    }

    /// The id of a name.
    pub fn id(&self, nth: Nth) -> Option<DeploymentId> {
        self.ids.get(nth.0.checked_sub(1)?).copied()
    }

    /// The name of an id.
    pub fn name(&self, id: DeploymentId) -> String {
        match self.ids.iter().position(|known| *known == id) {
            Some(position) => Nth(position + 1).to_string(),
            None => "d?".to_owned(),
        }
    }

    /// A text with ids, long and short, exchanged for names.
    pub fn in_text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for id in &self.ids {
            let name = self.name(*id);
            text = text.replace(&id.to_string(), &name);
            text = text.replace(id.short().as_str(), &name);
        }
        text
    }
}

/// Lines with their times.
#[derive(Debug, Clone)]
pub struct Trace {
    began: Timestamp,
    last: Option<Timestamp>,
    text: String,
}

impl Trace {
    /// An empty one that counts from here.
    pub const fn new(began: Timestamp) -> Self {
        Self {
            began,
            last: None,
            text: String::new(),
        }
    }

    /// Adds a line; its time is written if it is not that of the line before.
    pub fn line(&mut self, now: Timestamp, line: &str) {
        let stamp = if self.last == Some(now) {
            String::new()
        } else {
            now.since(self.began).to_string()
        };
        self.last = Some(now);
        self.text
            .push_str(format!("{stamp:>12}  {line}").trim_end());
        self.text.push('\n');
    }

    /// All of it.
    pub fn into_text(self) -> String {
        self.text
    }
}

fn list(names: &[Name]) -> String {
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    names.join(" ")
}

/// What differs between two states, one line per object.
pub fn states(before: &State, after: &State, names: &Names) -> Vec<String> {
    let mut lines = Vec::new();
    for (id, deployment) in &after.deployments {
        let name = names.name(*id);
        match before.deployments.get(id) {
            None => lines.push(format!("{name} {}", created(deployment, names))),
            Some(old) if old != deployment => {
                let parts = changed(old, deployment, names);
                if !parts.is_empty() {
                    lines.push(format!("{name} {}", parts.join(", ")));
                }
            }
            Some(_) => {}
        }
    }
    for id in before.deployments.keys() {
        if !after.deployments.contains_key(id) {
            lines.push(format!("{} is forgotten", names.name(*id)));
        }
    }
    for (name, scope) in &after.scopes {
        if let Some(old) = before.scopes.get(name) {
            let parts = scope_changed(old, scope, names);
            if !parts.is_empty() {
                lines.push(format!("{name}: {}", parts.join(", ")));
            }
        }
    }
    lines
}

fn created(deployment: &Deployment, names: &Names) -> String {
    let origin = &deployment.origin;
    let mut text = format!("{} of {}", deployment.status, origin.version);
    if let Some(link) = &origin.link {
        let kind = format!("{:?}", link.kind).to_lowercase();
        text.push_str(&format!(", {kind} of {}", names.name(link.of)));
    }
    if origin.fast {
        text.push_str(", fast");
    }
    for (variable, parameter) in &origin.parameters {
        text.push_str(&format!(", {variable}={}", parameter.value));
    }
    text
}

fn changed(old: &Deployment, new: &Deployment, names: &Names) -> Vec<String> {
    let mut parts = Vec::new();
    if old.status != new.status {
        parts.push(format!("{} → {}", old.status, new.status));
    }
    if old.participants != new.participants {
        parts.push(format!("on {}", list(&new.participants)));
    }
    if old.replaces != new.replaces {
        let replaced = new.replaces.map(|id| names.name(id));
        parts.push(format!("replaces {}", replaced.unwrap_or_default()));
    }
    if let (Some(outstanding), true) = (
        new.fewest_outstanding,
        old.fewest_outstanding != new.fewest_outstanding,
    ) {
        parts.push(format!("{outstanding} outstanding"));
    }
    traffic_changed(old, new, &mut parts);
    stops_changed(old, new, names, &mut parts);
    end_changed(old, new, names, &mut parts);
    parts
}

fn traffic_changed(old: &Deployment, new: &Deployment, parts: &mut Vec<String>) {
    if old.traffic.desired != new.traffic.desired {
        parts.push(format!("wishes {}", new.traffic.desired));
    }
    if old.traffic.replaced != new.traffic.replaced && is_batched(new) {
        parts.push(format!("{} instances replaced", new.traffic.replaced));
    }
    let (before, after) = (old.traffic.step, new.traffic.step);
    if let Some(after) = after {
        let number = after.index + 1;
        if before.is_none_or(|before| before.index != after.index) {
            parts.push(format!("step {number}"));
        }
        let was_reached = before
            .filter(|before| before.index == after.index)
            .is_some_and(|before| before.reached_at.is_some());
        if after.reached_at.is_some() && !was_reached {
            parts.push(format!("step {number} reached"));
        }
    }
    if new.drained && !old.drained {
        parts.push("old version drained".to_owned());
    }
}

fn stops_changed(old: &Deployment, new: &Deployment, names: &Names, parts: &mut Vec<String>) {
    match (&old.paused, &new.paused) {
        (None, Some(paused)) => parts.push(format!("paused by {}", paused.by)),
        (Some(_), None) => parts.push("resumed".to_owned()),
        (None, None) | (Some(_), Some(_)) => {}
    }
    match (&old.halted, &new.halted) {
        (None, Some(halted)) => parts.push(format!(
            "halted ({}): {}",
            halted.kind,
            names.in_text(&halted.message)
        )),
        (Some(_), None) => parts.push("no longer halted".to_owned()),
        (None, None) | (Some(_), Some(_)) => {}
    }
    if old.lost != new.lost {
        parts.push(match list(&new.lost) {
            lost if lost.is_empty() => "nobody lost".to_owned(),
            lost => format!("lost {lost}"),
        });
    }
    let decisions = |d: &Deployment| d.required.as_ref().map_or(0, |r| r.decisions.len());
    if let Some(required) = &new.required {
        if old.required.is_none() {
            parts.push("needs approval".to_owned());
        }
        for decision in required.decisions.iter().skip(decisions(old)) {
            let word = if decision.granted {
                "granted"
            } else {
                "denied"
            };
            parts.push(format!("{word} by {}", decision.by));
        }
    }
    for cause in new.causes.iter().skip(old.causes.len()) {
        parts.push(format!(
            "{} {}: {}",
            cause.agent,
            cause.kind,
            names.in_text(&cause.message)
        ));
    }
}

fn end_changed(old: &Deployment, new: &Deployment, names: &Names, parts: &mut Vec<String>) {
    if old.end_cause != new.end_cause
        && let Some(cause) = new.end_cause
    {
        parts.push(format!("because of {cause:?}").to_lowercase());
    }
    if old.return_at_finalized != new.return_at_finalized
        && let Some(cause) = new.return_at_finalized
    {
        parts.push(format!("returns when finalized ({cause:?})").to_lowercase());
    }
    for check in new.checks.iter().filter(|c| !old.checks.contains(c)) {
        parts.push(names.in_text(&check.message));
    }
    if old.unverified != new.unverified {
        parts.push("unverified".to_owned());
    }
    if (&old.reason, &old.message) != (&new.reason, &new.message) {
        let message = names.in_text(&new.message);
        parts.push(format!("reason {}: {message}", new.reason));
    }
    if old.outcome != new.outcome
        && let Some(outcome) = &new.outcome
    {
        let took = new.durations;
        parts.push(format!(
            "outcome {outcome} (moving {}, paused {}, waiting {})",
            took.progression, took.manual_pause, took.waiting
        ));
    }
    if old.leftovers != new.leftovers {
        parts.push(match list(&new.leftovers) {
            left if left.is_empty() => "no leftovers".to_owned(),
            left => format!("leftovers on {left}"),
        });
    }
}

fn scope_changed(old: &Scope, new: &Scope, names: &Names) -> Vec<String> {
    let name = |id: Option<DeploymentId>| id.map_or("none".to_owned(), |id| names.name(id));
    let mut parts = Vec::new();
    if old.status != new.status {
        parts.push(new.status.as_str().to_owned());
    }
    if old.active != new.active {
        parts.push(format!("active {}", name(new.active)));
    }
    if old.candidate != new.candidate {
        parts.push(format!("candidate {}", name(new.candidate)));
    }
    if old.retired != new.retired {
        let retired: Vec<String> = new.retired.iter().map(|id| names.name(*id)).collect();
        parts.push(match retired.join(" ") {
            retired if retired.is_empty() => "nothing retired".to_owned(),
            retired => format!("retired {retired}"),
        });
    }
    if old.kept != new.kept {
        let kept: Vec<String> = new.kept.iter().map(|id| names.name(*id)).collect();
        parts.push(format!("keeps {}", kept.join(" ")));
    }
    parts
}

/// A place of an agent in a few words.
pub fn place(place: &ObservedPlace) -> String {
    let count = |state: InstanceState| place.instances.iter().filter(|i| i.state == state).count();
    let mut parts = Vec::new();
    if place.staged {
        parts.push("staged".to_owned());
    }
    for state in [
        InstanceState::Starting,
        InstanceState::Healthy,
        InstanceState::Unhealthy,
        InstanceState::Backoff,
        InstanceState::Stopping,
        InstanceState::Failed,
    ] {
        match count(state) {
            0 => {}
            number => parts.push(format!("{number} {}", state.as_str())),
        }
    }
    match place.weight {
        Some(Weight::ZERO) => {}
        Some(weight) => parts.push(format!("holds {weight}")),
        None => parts.push("weight unknown".to_owned()),
    }
    if let Some(error) = &place.permanent_error {
        parts.push(error.kind.as_str().to_owned());
    } else if place.transient_error.is_some() && !place.staged {
        parts.push("trying again".to_owned());
    }
    if parts.is_empty() {
        parts.push("nothing yet".to_owned());
    }
    parts.join(", ")
}

/// Changes of places, those that are the same on several agents in one line.
pub fn places(changes: &[(Name, DeploymentId, String)], names: &Names) -> Vec<String> {
    let mut groups: BTreeMap<(DeploymentId, &str), Vec<&str>> = BTreeMap::new();
    let mut order = Vec::new();
    for (agent, deployment, text) in changes {
        let key = (*deployment, text.as_str());
        if !groups.contains_key(&key) {
            order.push(key);
        }
        groups.entry(key).or_default().push(agent.as_str());
    }
    order
        .into_iter()
        .filter_map(|key| {
            let agents = groups.get(&key)?.join(" ");
            Some(format!("  {agents}: {} {}", names.name(key.0), key.1))
        })
        .collect()
}

/// Where a deployment is, for `show`.
pub fn picture(deployment: &Deployment, name: &str, now: Timestamp) -> String {
    let mut parts = vec![format!(
        "{} {}",
        deployment.origin.version, deployment.status
    )];
    if deployment.status == Status::Running {
        parts.push(format!("wishes {}", deployment.traffic.desired));
    }
    if let Some(outcome) = &deployment.outcome {
        parts.push(outcome.clone());
    }
    let since: Span = deployment
        .ended_at
        .unwrap_or(now)
        .since(deployment.meta.created_at);
    parts.push(format!("in all {since}"));
    format!("  {name}: {}", parts.join(", "))
}

/// What a deployment waits for, one line for itself and one for each gate.
pub fn explanation(found: &Explanation, now: Timestamp) -> Vec<String> {
    let after = |at: Timestamp| match at > now {
        true => format!("in {}", at.since(now)),
        false => format!("{} ago", now.since(at)),
    };
    let ends = found.deadline.map(|at| format!("; ends {}", after(at)));
    let mut lines = vec![format!(
        "  waits for: {}{}",
        found.waiting_for,
        ends.unwrap_or_default()
    )];
    for gate in &found.gates {
        let rule = match gate.rule.as_str() {
            "" => gate.kind.to_owned(),
            rule => format!("{} {rule}", gate.kind),
        };
        let answer = format!("{:?}", gate.answer).to_lowercase();
        let mut parts = vec![format!("{answer}: {}", gate.why)];
        if !gate.needs.is_empty() {
            parts.push(format!("needs {}", gate.needs));
        }
        let times = [
            ("until", gate.until),
            ("satisfied", gate.satisfied_at),
            ("evaluated", gate.next_evaluation),
        ];
        let times = times.into_iter().filter_map(|(word, at)| Some((word, at?)));
        parts.extend(times.map(|(word, at)| format!("{word} {}", after(at))));
        lines.push(format!("    {rule} {}", parts.join("; ")));
    }
    lines
}
