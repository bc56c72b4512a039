//! What the state knows of a deployment, as expressions ask for it.

use tidegate_shared::spec::{ScopeSpec, Strategy, StrategyKind};
use tidegate_shared::time::Timestamp;

use super::expression::{
    ApplicationFacts, EnvironmentFacts, Facts, ReleaseFacts, ScopeFacts, StrategyFacts, UserFacts,
};
use crate::command::Actor;
use crate::people;
use crate::state::{Deployment, Origin, Release, Scope, State};
use tidegate_shared::id::{Name, Version};
use tidegate_shared::selector::Labels;

/// The person who asked for a deployment; none: it was made by itself.
pub fn requester(deployment: &Deployment) -> Option<&Name> {
    match &deployment.meta.created_by {
        Actor::User(name) => Some(name),
        Actor::System | Actor::Agent(_) | Actor::Coordinator(_) | Actor::Token(_) => None,
    }
}

/// Everything that is known of a deployment.
pub fn facts(state: &State, deployment: &Deployment, now: Timestamp) -> Facts {
    let user = requester(deployment);
    let mut facts = origin_facts(state, &deployment.origin, user, now);
    facts.strategy = Some(strategy(
        &deployment.origin.strategy,
        deployment.origin.strategy_name.as_ref(),
    ));
    facts
}

/// The same before the deployment is there.
pub fn origin_facts(state: &State, origin: &Origin, user: Option<&Name>, now: Timestamp) -> Facts {
    let place = (&origin.scope, &*origin.scope_spec);
    known(
        state,
        &origin.application,
        &origin.version,
        place,
        user,
        now,
    )
}

/// The same of a release that might go to a scope.
pub fn prospect(
    state: &State,
    name: &Name,
    scope: &Scope,
    version: &Version,
    user: Option<&Name>,
    now: Timestamp,
) -> Facts {
    let spec = &scope.spec;
    known(state, &spec.application, version, (name, spec), user, now)
}

fn known(
    state: &State,
    application: &Name,
    version: &Version,
    (name, spec): (&Name, &ScopeSpec),
    user: Option<&Name>,
    now: Timestamp,
) -> Facts {
    let key = (application.clone(), version.clone());
    let release = state.releases.get(&key).map(release);
    let mut facts = Facts {
        application: Some(self::application(state, application)),
        release: Some(
            release.map_or_else(ReleaseFacts::default, |facts| ReleaseFacts {
                name: version.to_string(),
                version: version.to_string(),
                ..facts
            }),
        ),
        scope: Some(scope(state, name, spec)),
        environment: Some(environment(state, &spec.environment)),
        user: None,
        strategy: None,
        now: Some(now),
    };
    facts.user = Some(person(state, user, &facts));
    facts
}

/// A scope with its application and environment: what selectors of role bindings see.
pub fn place(state: &State, name: &Name, labels: &Labels, spec: &ScopeSpec) -> Facts {
    Facts {
        application: Some(application(state, &spec.application)),
        environment: Some(environment(state, &spec.environment)),
        scope: Some(scope_facts(name, labels, spec)),
        ..Facts::default()
    }
}

/// What is known of an application.
pub fn application(state: &State, name: &Name) -> ApplicationFacts {
    let object = state.applications.get(name);
    ApplicationFacts {
        name: name.to_string(),
        labels: object
            .map(|object| object.meta.labels.clone())
            .unwrap_or_default(),
    }
}

/// What is known of a release, its version aside.
pub fn release(release: &Release) -> ReleaseFacts {
    ReleaseFacts {
        name: String::new(),
        version: String::new(),
        labels: release.meta.labels.clone(),
        notes: release.spec.notes.clone(),
        status: release.status.to_string(),
        digest: release.digest.to_string(),
    }
}

/// What is known of an environment.
pub fn environment(state: &State, name: &Name) -> EnvironmentFacts {
    let object = state.environments.get(name);
    EnvironmentFacts {
        name: name.to_string(),
        labels: object
            .map(|object| object.meta.labels.clone())
            .unwrap_or_default(),
        tier: object.map_or(0, |object| i64::from(object.spec.tier)),
    }
}

fn scope(state: &State, name: &Name, spec: &ScopeSpec) -> ScopeFacts {
    let labels: Labels = state
        .scopes
        .get(name)
        .map(|scope| scope.meta.labels.clone())
        .unwrap_or_default();
    scope_facts(name, &labels, spec)
}

fn scope_facts(name: &Name, labels: &Labels, spec: &ScopeSpec) -> ScopeFacts {
    let dimensions = spec.dimensions.iter();
    ScopeFacts {
        name: name.to_string(),
        labels: labels.clone(),
        r#type: word(&spec.kind),
        application: spec.application.to_string(),
        environment: spec.environment.to_string(),
        dimensions: dimensions.map(|(k, v)| (k.clone(), v.clone())).collect(),
        instances_per_agent: i64::from(spec.instances_per_agent),
    }
}

/// The word of an enum on the wire.
fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn person(state: &State, user: Option<&Name>, place: &Facts) -> UserFacts {
    let Some(user) = user else {
        return UserFacts::default();
    };
    let standing = people::standing(state, user, place);
    UserFacts {
        name: user.to_string(),
        teams: standing.teams.iter().map(Name::to_string).collect(),
        roles: standing
            .roles
            .iter()
            .map(|role| role.as_str().to_owned())
            .collect(),
    }
}

/// What is known of a strategy.
pub fn strategy(strategy: &Strategy, name: Option<&Name>) -> StrategyFacts {
    StrategyFacts {
        name: name.map_or(String::new(), Name::to_string),
        kind: match strategy.kind {
            StrategyKind::BlueGreen => "blue_green",
            StrategyKind::AllIn => "all_in",
            StrategyKind::Rolling => "rolling",
        }
        .to_owned(),
        steps: strategy
            .steps
            .iter()
            .map(|step| f64::from(step.weight.basis_points()) / 100.0)
            .collect(),
        rollback_rules: i64::try_from(strategy.rules.iter().filter(|rule| !rule.dry_run).count())
            .unwrap_or(i64::MAX),
        checks: i64::try_from(strategy.verification.len()).unwrap_or(i64::MAX),
        finalize: word(&strategy.finalize),
        bake: strategy.bake,
    }
}
