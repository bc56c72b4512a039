//! What scopes, agents, deployments and parameters are found by, beside their keys.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use tidegate_shared::id::Name;
use tidegate_shared::selector::{LabelSelector, Labels};
use tidegate_shared::spec::{ParameterSpec, ParameterTarget, ScopeSpec};

use super::indexed::Listed;
use super::{Agent, Auto, Deployment, Object, Scope, ScopeStatus, State, Status};

/// What a scope is found by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScopeTerm {
    /// Something goes on there, waits, or is left over: all that the planner looks at.
    Unfinished,
    /// A deployment is under way there.
    UnderWay,
    /// Its application.
    Application(Name),
    /// Its environment.
    Environment(Name),
}

impl Scope {
    /// Whether its active version is on its way out.
    pub fn is_stopping(&self) -> bool {
        match self.status {
            ScopeStatus::Stopping => true,
            ScopeStatus::Creating
            | ScopeStatus::Ready
            | ScopeStatus::Stopped
            | ScopeStatus::Deleted => false,
        }
    }

    /// Whether something goes on here, waits, or is left over.
    pub fn is_unfinished(&self) -> bool {
        self.is_stopping()
            || self.candidate.is_some()
            || !self.waiting.is_empty()
            || !self.retired.is_empty()
    }
}

impl Listed for Scope {
    type Term = ScopeTerm;

    fn terms(&self) -> Vec<ScopeTerm> {
        let mut terms = vec![
            ScopeTerm::Application(self.spec.application.clone()),
            ScopeTerm::Environment(self.spec.environment.clone()),
        ];
        if self.is_unfinished() {
            terms.push(ScopeTerm::Unfinished);
        }
        if self.candidate.is_some() {
            terms.push(ScopeTerm::UnderWay);
        }
        terms
    }

    fn has_terms_of(&self, other: &Self) -> bool {
        self.is_unfinished() == other.is_unfinished()
            && self.candidate.is_some() == other.candidate.is_some()
            && self.spec.application == other.spec.application
            && self.spec.environment == other.spec.environment
    }
}

/// What a scope that takes releases by itself is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AutoTerm {
    /// It has something to look at.
    Due,
    /// It left out a release that rules refused.
    Refused,
}

impl Listed for Auto {
    type Term = AutoTerm;

    fn terms(&self) -> Vec<AutoTerm> {
        let due = self.due.then_some(AutoTerm::Due);
        let refused = self.refused.then_some(AutoTerm::Refused);
        due.into_iter().chain(refused).collect()
    }

    fn has_terms_of(&self, other: &Self) -> bool {
        self.due == other.due && self.refused == other.refused
    }
}

/// A label: what an agent is found by.
pub type Label = (String, String);

impl Listed for Agent {
    type Term = Label;

    fn terms(&self) -> Vec<Label> {
        let labels = self.meta.labels.iter();
        labels.map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    fn has_terms_of(&self, other: &Self) -> bool {
        self.meta.labels == other.meta.labels
    }
}

/// What a deployment is found by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlaceTerm {
    /// It failed: another try may follow.
    Failed,
    /// A participant, or one that may hold something of it still.
    Agent(Name),
    /// Keys of labels that the selector of its scope, as it was, asks for; in order.
    Keys(Vec<String>),
    /// These keys with values that it may match by: their hash, which costs nothing to compare and to
    /// clone. Others with the same one are found too.
    Labels(u64),
}

fn hashed(labels: &[Label]) -> PlaceTerm {
    let mut hasher = DefaultHasher::new();
    labels.hash(&mut hasher);
    PlaceTerm::Labels(hasher.finish())
}

/// A selector with more combinations of values is found by fewer of its keys.
const MOST_COMBINATIONS: usize = 64;

/// Every combination of labels by one of which an agent has to be found if the selector matches it.
fn combinations(selector: &LabelSelector) -> Vec<Vec<Label>> {
    let mut wanted: BTreeMap<&str, &[String]> = BTreeMap::new();
    for (key, values) in selector.wanted() {
        wanted.entry(key).or_insert(values);
    }
    let mut all = vec![Vec::new()];
    for (key, values) in wanted {
        if all.len().saturating_mul(values.len()) > MOST_COMBINATIONS {
            continue;
        }
        all = all
            .into_iter()
            .flat_map(|labels: Vec<Label>| {
                values.iter().map(move |value| {
                    let mut labels = labels.clone();
                    labels.push((key.to_owned(), value.clone()));
                    labels
                })
            })
            .collect();
    }
    all
}

impl Deployment {
    /// Whether some agent may be wished anything of it: it is or may be a scope's version, or
    /// something of it is left.
    fn has_places(&self) -> bool {
        match self.status {
            Status::CreatingApproval
            | Status::CreatingApprovalDenied
            | Status::Pending
            | Status::Cancelled
            | Status::RolledBack
            | Status::Failed
            | Status::Deleted => false,
            Status::Creating
            | Status::WaitingForInstances
            | Status::Running
            | Status::Finalizing
            | Status::Finalized
            | Status::Cancelling
            | Status::RollingBack
            | Status::Deleting => true,
        }
    }

    /// Whether the names of agents in its record count.
    fn has_agents(&self) -> bool {
        self.has_places() || !self.leftovers.is_empty()
    }
}

impl Listed for Deployment {
    type Term = PlaceTerm;

    fn terms(&self) -> Vec<PlaceTerm> {
        let mut terms = Vec::new();
        if self.status == Status::Failed {
            terms.push(PlaceTerm::Failed);
        }
        if self.has_agents() {
            let agents = self.participants.iter().chain(&self.leftovers);
            terms.extend(agents.cloned().map(PlaceTerm::Agent));
        }
        if self.has_places() {
            for labels in combinations(&self.origin.scope_spec.agents) {
                let keys = labels.iter().map(|(key, _)| key.clone());
                terms.push(PlaceTerm::Keys(keys.collect()));
                terms.push(hashed(&labels));
            }
        }
        terms
    }

    fn has_terms_of(&self, other: &Self) -> bool {
        fn selector(deployment: &Deployment) -> Option<&LabelSelector> {
            let spec = &deployment.origin.scope_spec;
            deployment.has_places().then_some(&spec.agents)
        }
        let failed = |d: &Self| d.status == Status::Failed;
        failed(self) == failed(other)
            && self.has_agents() == other.has_agents()
            && (!self.has_agents()
                || self.participants == other.participants && self.leftovers == other.leftovers)
            && selector(self) == selector(other)
    }
}

/// What a parameter is found by: a place that its target names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum TargetTerm {
    /// The narrowest place of the target: where the parameter counts, this one is.
    Narrowest(Place),
    /// Any of them.
    Named(Place),
}

/// A place that a target names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A scope.
    Scope(Name),
    /// A dimension with its value.
    Dimension(String, String),
    /// An environment.
    Environment(Name),
    /// An application.
    Application(Name),
    /// The target names nothing.
    Anywhere,
}

fn places(target: &ParameterTarget) -> Vec<Place> {
    let scope = target.scope.iter().cloned().map(Place::Scope);
    let dimensions = target.dimensions.iter();
    let dimensions = dimensions.map(|(key, value)| Place::Dimension(key.clone(), value.clone()));
    let environment = target.environment.iter().cloned().map(Place::Environment);
    let application = target.application.iter().cloned().map(Place::Application);
    let named = scope.chain(dimensions).chain(environment);
    named.chain(application).collect()
}

impl Listed for Object<ParameterSpec> {
    type Term = TargetTerm;

    fn terms(&self) -> Vec<TargetTerm> {
        let places = places(&self.spec.target);
        let narrowest = places.first().cloned().unwrap_or(Place::Anywhere);
        let mut terms = vec![TargetTerm::Narrowest(narrowest)];
        terms.extend(places.into_iter().map(TargetTerm::Named));
        terms
    }

    fn has_terms_of(&self, other: &Self) -> bool {
        self.spec.target == other.spec.target
    }
}

impl State {
    /// Scopes where something goes on, waits, or is left over, in order of name.
    pub fn unfinished_scopes(&self) -> impl DoubleEndedIterator<Item = (&Name, &Scope)> {
        self.scopes.rows_of(&ScopeTerm::Unfinished)
    }

    /// Scopes with a deployment that failed, as far as the state holds it; one may come twice.
    pub fn failed_scopes(&self) -> impl Iterator<Item = &Name> {
        let failed = self.deployments.rows_of(&PlaceTerm::Failed);
        failed.map(|(_, deployment)| &deployment.origin.scope)
    }

    /// The agents that a selector matches, in order of name.
    pub fn agents_where(&self, selector: &LabelSelector) -> Vec<(&Name, &Agent)> {
        let narrowest = selector
            .wanted()
            .map(|(key, values)| {
                let labels = values.iter().map(|value| (key.to_owned(), value.clone()));
                labels.collect::<BTreeSet<Label>>()
            })
            .min_by_key(|labels| -> usize {
                labels.iter().map(|label| self.agents.count_of(label)).sum()
            });
        let matches = |(_, agent): &(&Name, &Agent)| selector.matches(&agent.meta.labels);
        match narrowest {
            None => self.agents.iter().filter(matches).collect(),
            Some(labels) => {
                let found = labels.iter().flat_map(|label| self.agents.rows_of(label));
                let found: BTreeMap<&Name, &Agent> = found.filter(matches).collect();
                found.into_iter().collect()
            }
        }
    }

    /// Agents that act for a deployment, in order of name: participants that are in the cluster, and
    /// those that its scope's selector, as it was, matches now.
    pub fn agents_concerned(&self, deployment: &Deployment) -> Vec<(&Name, &Agent)> {
        let participants = deployment.participants.iter();
        let participants = participants.filter_map(|name| self.agents.get_key_value(name));
        let matching = self.agents_where(&deployment.origin.scope_spec.agents);
        let all: BTreeMap<&Name, &Agent> = participants.chain(matching).collect();
        all.into_iter().collect()
    }

    /// Every scope that may wish something of an agent, in order of name; others of no concern to it
    /// may stand there too.
    pub fn scopes_of_agent(&self, name: &Name, labels: &Labels) -> BTreeSet<&Name> {
        let mut terms = vec![PlaceTerm::Agent(name.clone())];
        let shapes = self.deployments.terms_from(&PlaceTerm::Keys(Vec::new()));
        for shape in shapes {
            let PlaceTerm::Keys(keys) = shape else {
                break;
            };
            let found = keys.iter().map(|key| {
                let value = labels.get(key)?;
                Some((key.clone(), value.clone()))
            });
            let found: Option<Vec<Label>> = found.collect();
            terms.extend(found.as_deref().map(hashed));
        }
        terms
            .iter()
            .flat_map(|term| self.deployments.rows_of(term))
            .map(|(_, deployment)| &deployment.origin.scope)
            .collect()
    }

    /// Parameters whose target may fit a scope, in order of name.
    pub fn parameters_near(
        &self,
        name: &Name,
        spec: &ScopeSpec,
    ) -> BTreeMap<&Name, &Object<ParameterSpec>> {
        let dimensions = spec.dimensions.iter();
        let dimensions = dimensions.map(|(k, v)| Place::Dimension(k.clone(), v.clone()));
        let places = [
            Place::Scope(name.clone()),
            Place::Environment(spec.environment.clone()),
            Place::Application(spec.application.clone()),
            Place::Anywhere,
        ];
        dimensions
            .chain(places)
            .map(TargetTerm::Narrowest)
            .flat_map(|term| self.parameters.rows_of(&term))
            .collect()
    }
}
