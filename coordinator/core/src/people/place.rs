//! Where something is about to happen, as selectors of role bindings see it.

use tidegate_shared::id::Name;
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{ParameterTarget, ScopeSpec};

use crate::policy::expression::Facts;
use crate::policy::subject;
use crate::state::State;

/// How much of an application or environment a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// A role in any of its scopes is enough.
    Any,
    /// All of its scopes are touched: the role is needed in each.
    Every,
}

/// Where something is about to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the cluster as such: only a role that holds everywhere counts.
    Cluster,
    /// Nowhere in particular: a role anywhere counts.
    Somewhere,
    /// In a scope.
    Scope(Name),
    /// In a scope as it would be.
    NewScope(Name, Labels, Box<ScopeSpec>),
    /// In the scopes of an application.
    Application(Name, Reach),
    /// In the scopes of an environment.
    Environment(Name, Reach),
    /// In every scope that a parameter's value reaches.
    Target(Box<ParameterTarget>),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cluster => f.write_str("the cluster"),
            Self::Somewhere => f.write_str("anything"),
            Self::Scope(name) | Self::NewScope(name, ..) => write!(f, "scope \"{name}\""),
            Self::Application(name, Reach::Any) => write!(f, "application \"{name}\""),
            Self::Application(name, Reach::Every) => {
                write!(f, "every scope of application \"{name}\"")
            }
            Self::Environment(name, Reach::Any) => write!(f, "environment \"{name}\""),
            Self::Environment(name, Reach::Every) => {
                write!(f, "every scope of environment \"{name}\"")
            }
            Self::Target(target) => match &target.scope {
                Some(scope) => write!(f, "scope \"{scope}\""),
                None => f.write_str("every scope that the parameter reaches"),
            },
        }
    }
}

/// What a role has to hold for.
pub(super) enum Facing {
    /// Everywhere only.
    Everywhere,
    /// Anywhere.
    Anywhere,
    /// In one of these at least.
    One(Vec<Facts>),
    /// In each of these; there is at least one.
    Each(Vec<Facts>),
}

/// What the place is, in the state. What is not there is left to `apply` to refuse.
pub(super) fn facing(state: &State, place: &Place) -> Facing {
    match place {
        Place::Cluster => Facing::Everywhere,
        Place::Somewhere => Facing::Anywhere,
        Place::Scope(name) => match state.scopes.get(name) {
            Some(scope) => Facing::Each(vec![subject::place(
                state,
                name,
                &scope.meta.labels,
                &scope.spec,
            )]),
            None => Facing::Anywhere,
        },
        Place::NewScope(name, labels, spec) => {
            let mut all = vec![subject::place(state, name, labels, spec)];
            // A scope may not be taken out of somebody else's hands by a change of its labels.
            all.extend(
                state
                    .scopes
                    .get(name)
                    .map(|scope| subject::place(state, name, &scope.meta.labels, &scope.spec)),
            );
            Facing::Each(all)
        }
        Place::Application(name, reach) => {
            let own = Facts {
                application: Some(subject::application(state, name)),
                ..Facts::default()
            };
            reaching(state, *reach, own, |spec| spec.application == *name)
        }
        Place::Environment(name, reach) => {
            let own = Facts {
                environment: Some(subject::environment(state, name)),
                ..Facts::default()
            };
            reaching(state, *reach, own, |spec| spec.environment == *name)
        }
        Place::Target(target) => {
            let own = Facts {
                application: target
                    .application
                    .as_ref()
                    .map(|name| subject::application(state, name)),
                environment: target
                    .environment
                    .as_ref()
                    .map(|name| subject::environment(state, name)),
                ..Facts::default()
            };
            let mut all = scopes(state, |name, spec| reaches(target, name, spec));
            // Scopes that are made later get the value too, but for a value of one scope alone.
            if target.scope.is_none() || all.is_empty() {
                all.push(own);
            }
            Facing::Each(all)
        }
    }
}

/// The scopes of something, and itself: with `Every` only if it has none.
fn reaching(
    state: &State,
    reach: Reach,
    own: Facts,
    belongs: impl Fn(&ScopeSpec) -> bool,
) -> Facing {
    let mut all = scopes(state, |_, spec| belongs(spec));
    match reach {
        Reach::Any => {
            all.push(own);
            Facing::One(all)
        }
        Reach::Every => {
            if all.is_empty() {
                all.push(own);
            }
            Facing::Each(all)
        }
    }
}

fn scopes(state: &State, belongs: impl Fn(&Name, &ScopeSpec) -> bool) -> Vec<Facts> {
    let scopes = state.scopes.iter();
    scopes
        .filter(|(name, scope)| belongs(name, &scope.spec))
        .map(|(name, scope)| subject::place(state, name, &scope.meta.labels, &scope.spec))
        .collect()
}

fn reaches(target: &ParameterTarget, name: &Name, spec: &ScopeSpec) -> bool {
    let fits = |wanted: &Option<Name>, found: &Name| wanted.as_ref().is_none_or(|w| w == found);
    fits(&target.scope, name)
        && fits(&target.application, &spec.application)
        && fits(&target.environment, &spec.environment)
        && target
            .dimensions
            .iter()
            .all(|(key, value)| spec.dimensions.get(key) == Some(value))
}
