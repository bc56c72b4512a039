//! Questions about the state that several parts ask; nothing here changes it.

use std::collections::BTreeSet;

use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, GroupId, Name, ShortId, Version};
use tidegate_shared::selector::LabelSelector;

use super::{Deployment, Group, Release, Scope, State};
use crate::rejection::Rejection;

impl State {
    /// Whether every member of the cluster supports a level, and the cluster has been raised to it.
    pub fn is_at(&self, level: u32) -> bool {
        self.cluster
            .as_ref()
            .is_some_and(|cluster| cluster.level >= level)
    }

    /// The deployment.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn deployment(&self, id: DeploymentId) -> Result<&Deployment, Rejection> {
        self.deployments
            .get(&id)
            .ok_or_else(|| Rejection::new(Reason::NotFound, format!("there is no deployment {id}")))
    }

    /// The deployment with this short id.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn deployment_by_short(&self, short: &ShortId) -> Result<&Deployment, Rejection> {
        let id = self.short_ids.get(short);
        id.and_then(|id| self.deployments.get(id)).ok_or_else(|| {
            Rejection::new(Reason::NotFound, format!("there is no deployment {short}"))
        })
    }

    /// The group.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn group(&self, id: GroupId) -> Result<&Group, Rejection> {
        self.groups
            .get(&id)
            .ok_or_else(|| Rejection::new(Reason::NotFound, format!("there is no group {id}")))
    }

    /// The group that people mean by a name, an id or a short id.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn group_called(&self, text: &str) -> Result<&Group, Rejection> {
        let named = Name::new(text).ok();
        let named = named.and_then(|name| self.group_names.get(&name));
        let id = named.copied().or_else(|| text.parse().ok());
        let found = id.and_then(|id| self.groups.get(&id));
        let short = || {
            let text = text.to_lowercase();
            self.groups.values().find(|g| g.short.as_str() == text)
        };
        found.or_else(short).ok_or_else(|| {
            Rejection::new(Reason::NotFound, format!("there is no group \"{text}\""))
        })
    }

    /// The group under way that a deployment is a present member of, with its number.
    pub fn membership(&self, deployment: &Deployment) -> Option<(&Group, u32)> {
        let group = self.groups.get(&deployment.group?)?;
        let number = group.number_of(deployment)?;
        group.closed.is_none().then_some((group, number))
    }

    /// The scope.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn scope(&self, name: &Name) -> Result<&Scope, Rejection> {
        self.scopes.get(name).ok_or_else(|| {
            Rejection::new(Reason::NotFound, format!("there is no scope \"{name}\""))
        })
    }

    /// The release.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn release(&self, application: &Name, version: &Version) -> Result<&Release, Rejection> {
        let key = (application.clone(), version.clone());
        self.releases.get(&key).ok_or_else(|| {
            Rejection::new(
                Reason::NotFound,
                format!("application \"{application}\" has no release {version}"),
            )
        })
    }

    /// The active deployment of a scope.
    pub fn active_of(&self, scope: &Scope) -> Option<&Deployment> {
        scope.active.and_then(|id| self.deployments.get(&id))
    }

    /// The deployment under way in a scope.
    pub fn candidate_of(&self, scope: &Scope) -> Option<&Deployment> {
        scope.candidate.and_then(|id| self.deployments.get(&id))
    }

    /// Deployments of a scope of this name, ended ones too, oldest first.
    pub fn history_of(&self, scope: &Name) -> impl DoubleEndedIterator<Item = &Deployment> {
        self.history
            .range((scope.clone(), 0)..=(scope.clone(), u64::MAX))
            .filter_map(|(_, id)| self.deployments.get(id))
    }

    /// Names of the agents that a selector matches, in order.
    pub fn agents_matching(&self, selector: &LabelSelector) -> Vec<Name> {
        let matching = self.agents_where(selector).into_iter();
        matching.map(|(name, _)| name.clone()).collect()
    }

    /// Every agent that a scope may say something to: those that its selector, or that of its
    /// active or candidate deployment, matches, participants of these, and those that still hold
    /// a retired place. `desired` gives no item of the scope to any other.
    pub fn agents_of_scope(&self, name: &Name) -> BTreeSet<Name> {
        let Some(scope) = self.scopes.get(name) else {
            return BTreeSet::new();
        };
        let mut selectors = vec![&scope.spec.agents];
        let mut agents = BTreeSet::new();
        for deployment in self
            .active_of(scope)
            .into_iter()
            .chain(self.candidate_of(scope))
        {
            let selector = &deployment.origin.scope_spec.agents;
            if !selectors.contains(&selector) {
                selectors.push(selector);
            }
            agents.extend(deployment.participants.iter().cloned());
        }
        for retired in scope
            .retired
            .iter()
            .filter_map(|id| self.deployments.get(id))
        {
            agents.extend(retired.leftovers.iter().cloned());
        }
        for selector in selectors {
            agents.extend(self.agents_matching(selector));
        }
        agents.retain(|agent| self.agents.contains_key(agent));
        agents
    }
}
