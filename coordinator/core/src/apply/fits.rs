//! Whether a strategy fits the scope that a deployment goes to: what it measures and asks for has to
//! be there.

use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::spec::{Capacity, Port, Protocol, ScopeSpec, ScopeType, StrategySpec};

use crate::rejection::Rejection;

/// What about a strategy the scope cannot offer.
pub(super) fn check(spec: &StrategySpec, name: &Name, scope: &ScopeSpec) -> Result<(), Rejection> {
    check_rules(spec, name, scope)?;
    check_checks(spec, name, scope)?;
    check_capacity(spec, name, scope)
}

/// A worker has no port that its instances could be asked on.
fn check_checks(spec: &StrategySpec, name: &Name, scope: &ScopeSpec) -> Result<(), Rejection> {
    let mut asking = spec.verification.iter().flatten().filter(|check| {
        let http = check.http.as_ref();
        http.is_some_and(|http| http.path.is_some())
    });
    match (scope.port, asking.next()) {
        (Port::Number(_), _) | (Port::None, None) => Ok(()),
        (Port::None, Some(check)) => Err(Rejection::new(
            Reason::CheckNotOffered,
            format!(
                "scope \"{name}\" is a worker (port: none): check \"{}\" has no port to ask its instances on",
                check.name
            ),
        )),
    }
}

/// On hosts every agent runs `instances_per_agent` of a version, whatever its share.
fn check_capacity(spec: &StrategySpec, name: &Name, scope: &ScopeSpec) -> Result<(), Rejection> {
    match (spec.capacity.unwrap_or_default(), scope.kind) {
        (Capacity::Full, ScopeType::Hosts) => Ok(()),
        (Capacity::Proportional, ScopeType::Hosts) => Err(Rejection::new(
            Reason::CapacityNotOffered,
            format!(
                "scope \"{name}\" is of type hosts: capacity: proportional is for kubernetes scopes alone"
            ),
        )),
    }
}

/// Raw connections have no statuses and no times of answers that a rule could be judged by; a worker
/// has no port to ask for metrics unless its scope names one.
fn check_rules(spec: &StrategySpec, name: &Name, scope: &ScopeSpec) -> Result<(), Rejection> {
    let rules = spec.rollback.iter().flat_map(|rollback| &rollback.rules);
    let is_silent = scope.port == Port::None && scope.metrics.iter().all(|m| m.port.is_none());
    if let Some(rule) = rules
        .clone()
        .find(|r| is_silent && r.metric.app().is_some())
    {
        return Err(Rejection::new(
            Reason::NotOffered,
            format!(
                "scope \"{name}\" is a worker (port: none), so nobody knows where to read {}: set metrics.port of the scope, or leave the rule out",
                rule.metric
            ),
        ));
    }
    let mut blind = rules.filter(|rule| rule.metric.is_of_requests());
    match (scope.protocol, blind.next()) {
        (Protocol::Http, _) | (Protocol::Tcp, None) => Ok(()),
        (Protocol::Tcp, Some(rule)) => Err(Rejection::new(
            Reason::NotOffered,
            format!(
                "scope \"{name}\" speaks tcp, where a rule on {} has nothing to judge by: use system.* or http.healthcheck_*, or leave the rule out",
                rule.metric
            ),
        )),
    }
}
