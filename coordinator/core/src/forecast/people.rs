//! People and telemetry as one would wish them: whatever the members ask of people is done at once,
//! and rules are passed.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate_shared::id::Name;
use tidegate_shared::spec::{FinalizeMode, Hold};
use tidegate_shared::time::Timestamp;

use super::run::Run;
use super::{Approval, Moment, MomentEvent};
use crate::command::{ActOnDeployment, Command, Item, Verb};
use crate::deployment::steps;
use crate::policy::approval;
use crate::state::{Deployment, Meta, Skip, Status};

impl Run<'_> {
    /// Rules of deployments under way are taken to be passed: there is no telemetry to judge.
    pub(super) fn let_rules_pass(&mut self, scopes: &BTreeSet<Name>) {
        for name in scopes {
            let scope = self.state.scopes.get(name);
            let Some(id) = scope.and_then(|scope| scope.candidate) else {
                continue;
            };
            let found = self.state.deployments.get(&id);
            if found.is_some_and(|found| !found.origin.strategy.rules.is_empty()) {
                self.state.deployments.change(&id, |found| {
                    let origin = Arc::make_mut(&mut found.origin);
                    Arc::make_mut(&mut origin.strategy).rules.clear();
                });
            }
        }
    }

    /// People do at once what the members in these scopes need of them; whether anybody did
    /// something.
    pub(super) fn let_people_act(&mut self, scopes: &BTreeSet<Name>) -> bool {
        let here = scopes.iter().filter_map(|name| self.by_scope.get(name));
        let mut asked: BTreeSet<usize> = here.copied().collect();
        while let Some((at, position)) = self.appointments.pop_first() {
            if at > self.now {
                self.appointments.insert((at, position));
                break;
            }
            asked.insert(position);
        }
        let mut acted = false;
        for position in asked {
            let Some(tracked) = self.members.get(position) else {
                continue;
            };
            let Some(found) = self.state.deployments.get(&tracked.member.deployment) else {
                continue;
            };
            match found.status {
                Status::CreatingApproval if tracked.member.approval.is_none() => {
                    acted |= self.approve(position);
                }
                Status::Running => match asked_of_people(found) {
                    Some((at, verb)) if at <= self.now => acted |= self.say(position, verb),
                    Some((at, _)) => {
                        self.appointments.insert((at, position));
                    }
                    None => {}
                },
                Status::CreatingApproval
                | Status::CreatingApprovalDenied
                | Status::Pending
                | Status::Creating
                | Status::WaitingForInstances
                | Status::Finalizing
                | Status::Finalized
                | Status::Cancelling
                | Status::Cancelled
                | Status::RollingBack
                | Status::RolledBack
                | Status::Failed
                | Status::Deleting
                | Status::Deleted => {}
            }
        }
        acted
    }

    /// The approvals that a member waits for are given. Who may give them is not known here, so the
    /// rules are passed over for this release in this scope, which comes to the same.
    fn approve(&mut self, position: usize) -> bool {
        let Some(tracked) = self.members.get_mut(position) else {
            return false;
        };
        let found = self.state.deployments.get(&tracked.member.deployment);
        let Some((origin, required)) =
            found.and_then(|found| Some((&found.origin, found.required.as_ref()?)))
        else {
            return false;
        };
        for (policy, _) in &required.policies {
            let number = self.state.skips.len();
            let Ok(name) = Name::new(format!("rehearsal-{position}-{number}")) else {
                continue;
            };
            let skip = Skip {
                meta: Meta {
                    labels: Default::default(),
                    created_at: self.now,
                    created_by: self.question.actor.clone(),
                    revision: 0,
                },
                rule: approval::rule_name(policy),
                application: Some(origin.application.clone()),
                version: Some(origin.version.clone()),
                scope: Some(origin.scope.clone()),
                reason: "taken as approved".to_owned(),
                expires_at: None,
            };
            self.state.skips.insert(name, skip);
        }
        self.stirred.insert(origin.scope.clone());
        tracked.member.approval = Some(Approval {
            policies: required.policies.clone(),
            at: self.now,
            expires_at: required.expires_at,
        });
        true
    }

    fn say(&mut self, position: usize, verb: Verb) -> bool {
        let Some(tracked) = self.members.get_mut(position) else {
            return false;
        };
        let event = MomentEvent::Person(verb.as_str());
        tracked.member.moments.push(Moment {
            at: self.now,
            event,
        });
        let command = Command::ActOnDeployment(ActOnDeployment {
            deployment: tracked.member.deployment,
            verb,
            expected_revision: None,
            reason: String::new(),
        });
        let item = Item {
            actor: self.question.actor.clone(),
            request: self.key(verb.as_str()),
            command: Box::new(command),
        };
        self.enter(item).is_ok()
    }
}

/// What a running deployment waits for a person to do, and from when on.
fn asked_of_people(deployment: &Deployment) -> Option<(Timestamp, Verb)> {
    if deployment.paused.is_some() || deployment.halted.is_some() {
        return None;
    }
    let since = steps::waits_for_person_since(deployment)?;
    let verb = match steps::hold(deployment) {
        Hold::Manual => Verb::Promote,
        Hold::For(_) if steps::finalize_mode(deployment) == FinalizeMode::Manual => Verb::Finalize,
        Hold::For(_) => return None,
    };
    Some((since, verb))
}
