//! Every invariant of the replicated state, each a named function (quality.md §2).
//!
//! Run by tests after every command, by the simulator, and by a node on demand. A finding is a bug
//! of ours: nothing a person sends may cause one.

mod groups;

use std::collections::BTreeMap;

use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::spec::ParameterKind;
use tidegate_shared::weight::Weight;

use super::{Deployment, Scope, State, Status};
use crate::archive::NEWEST_ENDED;
use crate::deployment::phase;
use crate::event::{BrokenChain, verify_chain};
use crate::people;

/// What is wrong, gathered.
type Findings = Vec<String>;

impl State {
    /// Every broken invariant, in words; empty when all is well. The audit chain is checked at its
    /// end only; see [`State::verify_chain`].
    pub fn check(&self) -> Findings {
        let mut findings = Findings::new();
        for (name, scope) in &self.scopes {
            active_is_final(self, name, scope, &mut findings);
            candidate_is_under_way(self, name, scope, &mut findings);
            waiting_ones_wait(self, name, scope, &mut findings);
            retired_ones_have_leftovers(self, name, scope, &mut findings);
            kept_ones_were_finalized(self, name, scope, &mut findings);
        }
        let roles = roles(self);
        for (id, deployment) in &self.deployments {
            has_one_role(self, &roles, *id, deployment, &mut findings);
            ends_are_labelled(deployment, &mut findings);
            waits_end(deployment, &mut findings);
            traffic_fits(deployment, &mut findings);
            agents_are_participants(deployment, &mut findings);
            revisions_were_given(self, deployment, &mut findings);
        }
        secrets_are_sealed(self, &mut findings);
        looks_are_kept(self, &mut findings);
        indexes_agree(self, &mut findings);
        rows_are_found(self, &mut findings);
        chain_ends_in_last_hash(self, &mut findings);
        ended_ones_have_left(self, &mut findings);
        members_are_numbered(self, &mut findings);
        tokens_are_not_overused(self, &mut findings);
        roles_are_peoples(self, &mut findings);
        groups::check(self, &mut findings);
        findings
    }

    /// Checks the audit log as far as it is in the state: all of it, or nothing once it has left.
    ///
    /// # Errors
    /// Names the first event that does not fit.
    pub fn verify_chain(&self) -> Result<(), BrokenChain> {
        verify_chain(self.events.values()).map(drop)
    }
}

fn named(deployment: &Deployment) -> String {
    format!("deployment {} ({})", deployment.id, deployment.status)
}

/// Exactly the scopes that take releases by themselves remember which they had.
fn looks_are_kept(state: &State, findings: &mut Findings) {
    for (name, scope) in &state.scopes {
        if scope.spec.auto_deploy.is_some() != state.auto.contains_key(name) {
            findings.push(format!(
                "scope {name}: auto_deploy and what it remembers differ"
            ));
        }
    }
    for (name, auto) in &state.auto {
        if !state.scopes.contains_key(name) || auto.revision > state.last_revision {
            findings.push(format!("auto_deploy of {name} leads nowhere"));
        }
    }
}

/// A secret parameter has a sealed value and no plain one, there and in every deployment.
fn secrets_are_sealed(state: &State, findings: &mut Findings) {
    for (name, object) in &state.parameters {
        let spec = &object.spec;
        let sound = match spec.kind {
            ParameterKind::Plain => spec.sealed.is_none() && spec.value.is_some(),
            ParameterKind::Secret => spec.sealed.is_some() && spec.value.is_none(),
        };
        if !sound || spec.value_from.is_some() {
            findings.push(format!("parameter {name}: its value does not fit its kind"));
        }
    }
    for deployment in state.deployments.values() {
        for (variable, parameter) in &deployment.origin.parameters {
            if parameter.secret.is_some() && !parameter.value.is_empty() {
                findings.push(format!("{}: secret {variable} is plain", named(deployment)));
            }
        }
    }
}

/// At most one active deployment per scope, and it is finalized or being deleted.
fn active_is_final(state: &State, name: &Name, scope: &Scope, findings: &mut Findings) {
    let Some(active) = scope.active else {
        return;
    };
    match state.deployments.get(&active).map(|d| d.status) {
        Some(Status::Finalized | Status::Deleting) => {}
        found => findings.push(format!("scope {name}: active {active} is {found:?}")),
    }
}

/// At most one deployment under way per scope, between `CREATING` and its end.
fn candidate_is_under_way(state: &State, name: &Name, scope: &Scope, findings: &mut Findings) {
    let Some(candidate) = scope.candidate else {
        return;
    };
    match state.deployments.get(&candidate) {
        Some(d) if phase::is_under_way(d.status) => {
            let active = scope.active.filter(|active| *active != candidate);
            if d.replaces != active {
                findings.push(format!(
                    "scope {name}: candidate {candidate} replaces {:?}, active is {active:?}",
                    d.replaces
                ));
            }
        }
        found => findings.push(format!(
            "scope {name}: candidate {candidate} is {:?}",
            found.map(|d| d.status)
        )),
    }
}

/// Waiting ones are before `CREATING`.
fn waiting_ones_wait(state: &State, name: &Name, scope: &Scope, findings: &mut Findings) {
    for id in &scope.waiting {
        let status = state.deployments.get(id).map(|d| d.status);
        if !status.is_some_and(phase::is_waiting) {
            findings.push(format!("scope {name}: waiting {id} is {status:?}"));
        }
    }
}

/// Retired ones are ends that have something left over, and no one's active version.
fn retired_ones_have_leftovers(state: &State, name: &Name, scope: &Scope, findings: &mut Findings) {
    for id in &scope.retired {
        let fits = state
            .deployments
            .get(id)
            .is_some_and(|d| d.status.is_end() && !d.leftovers.is_empty());
        if !fits || scope.active == Some(*id) {
            findings.push(format!(
                "scope {name}: retired {id} is no loser with leftovers"
            ));
        }
    }
}

/// Kept ones were finalized once; the active one stands first.
fn kept_ones_were_finalized(state: &State, name: &Name, scope: &Scope, findings: &mut Findings) {
    for id in &scope.kept {
        match state.deployments.get(id).map(|d| d.status) {
            Some(Status::Finalized | Status::Deleting | Status::Deleted) => {}
            found => findings.push(format!("scope {name}: kept {id} is {found:?}")),
        }
    }
    if scope.active.is_some() && scope.active != scope.kept.first().copied() {
        findings.push(format!(
            "scope {name}: the active one is not first of the kept"
        ));
    }
}

/// How often each deployment stands in the active, candidate and waiting roles of scopes.
fn roles(state: &State) -> BTreeMap<DeploymentId, usize> {
    let mut roles = BTreeMap::new();
    for scope in state.scopes.values() {
        let places = scope
            .active
            .iter()
            .chain(&scope.candidate)
            .chain(&scope.waiting);
        for id in places {
            *roles.entry(*id).or_default() += 1;
        }
    }
    roles
}

/// Every deployment that is not at an end has exactly one role in its scope; one at an end has none
/// but that of the active one. Leftovers are those of retired ones.
fn has_one_role(
    state: &State,
    roles: &BTreeMap<DeploymentId, usize>,
    id: DeploymentId,
    deployment: &Deployment,
    findings: &mut Findings,
) {
    let count = roles.get(&id).copied().unwrap_or(0);
    let scope = state.scopes.get(&deployment.origin.scope);
    let active = scope.is_some_and(|scope| scope.active == Some(id));
    let wanted = usize::from(active || !deployment.status.is_end());
    if count != wanted {
        findings.push(format!("{} has {count} roles", named(deployment)));
    }
    let retired = scope.is_some_and(|scope| scope.retired.contains(&id));
    if retired == deployment.leftovers.is_empty() {
        findings.push(format!(
            "{}: leftovers and retired differ",
            named(deployment)
        ));
    }
}

/// Ends carry a label and a time; what goes on carries none (what is being deleted was at an end).
fn ends_are_labelled(deployment: &Deployment, findings: &mut Findings) {
    let labelled = deployment.outcome.is_some() && deployment.ended_at.is_some();
    let bare = deployment.outcome.is_none() && deployment.ended_at.is_none();
    let fits = if deployment.status.is_end() || deployment.status == Status::Deleting {
        labelled
    } else {
        bare
    };
    if !fits {
        findings.push(format!("{}: outcome and status differ", named(deployment)));
    }
}

/// Every wait ends: whatever is not at an end has a deadline.
fn waits_end(deployment: &Deployment, findings: &mut Findings) {
    if deployment.status.is_end() == phase::deadline(deployment).is_some() {
        findings.push(format!("{}: deadline and status differ", named(deployment)));
    }
    let stopped = deployment.paused.is_some() || deployment.halted.is_some();
    let may_stop = match deployment.status {
        Status::Pending | Status::Creating | Status::WaitingForInstances | Status::Running => true,
        Status::CreatingApproval
        | Status::CreatingApprovalDenied
        | Status::Finalizing
        | Status::Finalized
        | Status::Cancelling
        | Status::Cancelled
        | Status::RollingBack
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => false,
    };
    if stopped && !may_stop {
        findings.push(format!("{} is paused or halted", named(deployment)));
    }
}

/// Weights and counts are what the status allows.
fn traffic_fits(deployment: &Deployment, findings: &mut Findings) {
    let traffic = &deployment.traffic;
    if traffic.replaced > traffic.total {
        findings.push(format!(
            "{}: more replaced than there are",
            named(deployment)
        ));
    }
    if traffic.desired > Weight::ZERO && !traffic.got_traffic {
        findings.push(format!("{}: traffic that it never got", named(deployment)));
    }
    let wanted = match deployment.status {
        Status::CreatingApproval | Status::Pending | Status::Creating => Some(Weight::ZERO),
        Status::Finalizing | Status::Finalized => Some(Weight::FULL),
        Status::CreatingApprovalDenied
        | Status::Cancelled
        | Status::RolledBack
        | Status::Failed
        | Status::Deleting
        | Status::Deleted => Some(Weight::ZERO),
        Status::WaitingForInstances
        | Status::Running
        | Status::Cancelling
        | Status::RollingBack => None,
    };
    if wanted.is_some_and(|wanted| wanted != traffic.desired) {
        findings.push(format!(
            "{} has {} of the traffic",
            named(deployment),
            traffic.desired
        ));
    }
}

/// Participants in order, each once; lost ones among them; none before `CREATING`.
fn agents_are_participants(deployment: &Deployment, findings: &mut Findings) {
    let participants = &deployment.participants;
    if participants.windows(2).any(|pair| pair[0] >= pair[1]) {
        findings.push(format!("{}: participants out of order", named(deployment)));
    }
    if deployment
        .lost
        .iter()
        .any(|lost| !participants.contains(lost))
    {
        findings.push(format!("{}: a stranger is lost", named(deployment)));
    }
    if phase::is_waiting(deployment.status) && !participants.is_empty() {
        findings.push(format!("{} has participants", named(deployment)));
    }
}

/// No revision is above the last that was given.
fn revisions_were_given(state: &State, deployment: &Deployment, findings: &mut Findings) {
    if deployment.meta.revision > state.last_revision {
        findings.push(format!("{}: revision never given", named(deployment)));
    }
}

/// Short ids and the history name every deployment.
fn indexes_agree(state: &State, findings: &mut Findings) {
    let count = state.deployments.len();
    if state.short_ids.len() != count || state.history.len() != count {
        findings.push(format!(
            "{count} deployments, {} short ids, {} in the history",
            state.short_ids.len(),
            state.history.len()
        ));
    }
    for (short, id) in &state.short_ids {
        if state.deployments.get(id).is_none_or(|d| d.short != *short) {
            findings.push(format!("short id {short} leads nowhere"));
        }
    }
}

/// What rows are found by leads to them, and to nothing else.
fn rows_are_found(state: &State, findings: &mut Findings) {
    let tables = [
        ("scopes", state.scopes.is_sound()),
        ("agents", state.agents.is_sound()),
        ("deployments", state.deployments.is_sound()),
        ("parameters", state.parameters.is_sound()),
        ("auto", state.auto.is_sound()),
    ];
    let broken = tables.iter().filter(|(_, sound)| !sound);
    findings.extend(broken.map(|(table, _)| format!("the index of {table} is not of its rows")));
}

/// The audit chain ends in the hash that the next event will name. Once it leaves, nothing of it is
/// here.
fn chain_ends_in_last_hash(state: &State, findings: &mut Findings) {
    if let Some(archive) = &state.archive {
        if !state.events.is_empty() || (archive.events > 0) != state.last_hash.is_some() {
            findings.push("the audit log has not left as a whole".to_owned());
        }
        return;
    }
    let last = state.events.get_max().map(|(_, event)| event);
    if last.map(|event| event.hash) != state.last_hash {
        findings.push("the audit log does not end in the last hash".to_owned());
    }
    if last.is_some_and(|event| event.computed_hash() != event.hash) {
        findings.push("the last audit event does not fit its hash".to_owned());
    }
}

/// Once rows leave, a scope holds no more ended deployments than those that have a part in it and
/// its newest few; a scope that is gone holds none.
fn ended_ones_have_left(state: &State, findings: &mut Findings) {
    if state.archive.is_none() {
        return;
    }
    let mut ended: BTreeMap<&Name, usize> = BTreeMap::new();
    for ((name, _), id) in &state.history {
        // Present members of groups under way stay, however many.
        let counts = |d: &Deployment| d.status.is_end() && state.membership(d).is_none();
        if state.deployments.get(id).is_some_and(counts) {
            *ended.entry(name).or_default() += 1;
        }
    }
    for (name, count) in ended {
        let most = state.scopes.get(name).map_or(0, |scope| {
            // Whatever goes on is linked to one at most.
            let links = scope.waiting.len() + usize::from(scope.candidate.is_some());
            NEWEST_ENDED + scope.kept.len() + scope.retired.len() + links + 2
        });
        if count > most {
            findings.push(format!("scope {name} holds {count} ended deployments"));
        }
    }
}

/// Node ids are below the next one, names among members unique, the level supported by all.
fn members_are_numbered(state: &State, findings: &mut Findings) {
    let Some(cluster) = &state.cluster else {
        return;
    };
    let mut names: Vec<&Name> = cluster.members.values().map(|m| &m.name).collect();
    names.sort();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        findings.push("two coordinators have one name".to_owned());
    }
    for (node, member) in &cluster.members {
        if *node >= cluster.next_node || member.level < cluster.level {
            findings.push(format!("coordinator {} is out of bounds", member.name));
        }
    }
}

/// Teams and bindings name people and teams that are there, and somebody is administrator.
fn roles_are_peoples(state: &State, findings: &mut Findings) {
    for (team, object) in &state.teams {
        let mut members = object.spec.members.iter();
        if let Some(name) = members.find(|name| !state.people.contains_key(*name)) {
            findings.push(format!("team {team}: {name} is nobody"));
        }
    }
    for (binding, object) in &state.role_bindings {
        let mut users = object.spec.users.iter();
        if let Some(name) = users.find(|name| !state.people.contains_key(*name)) {
            findings.push(format!("role binding {binding}: {name} is nobody"));
        }
        let mut teams = object.spec.teams.iter();
        if let Some(name) = teams.find(|name| !state.teams.contains_key(*name)) {
            findings.push(format!("role binding {binding}: {name} is no team"));
        }
    }
    if people::in_force(state) && people::administrators(state).is_empty() {
        findings.push("nobody is administrator".to_owned());
    }
}

/// No token was used more often than it may be.
fn tokens_are_not_overused(state: &State, findings: &mut Findings) {
    for (id, token) in &state.tokens {
        if token.used > token.uses {
            findings.push(format!("token {id} was used {} times", token.used));
        }
    }
}
