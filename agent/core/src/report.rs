//! The report: the observed state in the words of the link.
//!
//! A level, complete each time. Host metrics and what the processes use are added by the shell,
//! which alone can measure them.

use tidegate_shared::assignment::{
    Counters, Generation, InstanceState, ObservedInstance, ObservedPlace, PermanentError,
    PermanentErrorKind,
};
use tidegate_shared::spec::Port;
use tidegate_shared::time::{Span, Timestamp};
use tidegate_shared::weight::Weight;

use crate::desired::Desired;
use crate::instance::{Instance, Phase};
use crate::observed::{HeldInstance, Observed, Place, Staging, Traffic};
use crate::place::{InstanceKey, PlaceKey};
use crate::plan::drained;

/// Between two reports when nothing concerns the agent.
pub const QUIET_INTERVAL: Span = Span::from_secs(10);
/// Longest time between two reports while a deployment concerns the agent.
pub const BUSY_INTERVAL: Span = Span::from_secs(1);

/// How long after a report the next one is due at the latest.
pub fn interval(desired: &Desired) -> Span {
    desired
        .report_interval
        .map_or(QUIET_INTERVAL, |wished| wished.min(BUSY_INTERVAL))
}

/// Every place as the report tells it.
pub fn places(observed: &Observed, now: Timestamp) -> Vec<ObservedPlace> {
    observed
        .places
        .iter()
        .map(|(key, place)| observed_place(observed, key, place, now))
        .collect()
}

/// What makes a report go out at once when it changes: staging, weights, drains, errors and the
/// states of instances; not counters.
pub fn landmarks(generation: Generation, places: &[ObservedPlace]) -> Vec<String> {
    let mut marks = vec![format!("{}.{}", generation.epoch, generation.index)];
    for place in places {
        let states: Vec<(u32, InstanceState, u32)> = place
            .instances
            .iter()
            .map(|i| (i.ordinal, i.state, i.restarts))
            .collect();
        marks.push(format!(
            "{} {} {} {:?} {} {:?} {states:?}",
            place.scope,
            place.deployment,
            place.staged,
            place.weight,
            place.drained,
            place.permanent_error,
        ));
    }
    marks
}

fn observed_place(
    observed: &Observed,
    key: &PlaceKey,
    place: &Place,
    now: Timestamp,
) -> ObservedPlace {
    let traffic = &observed.traffic;
    let version = traffic.version(key);
    let instances = place.instances.iter().map(|(ordinal, instance)| {
        let held = version.and_then(|v| v.instances.get(ordinal));
        observed_instance(key, *ordinal, instance, held)
    });
    ObservedPlace {
        scope: key.scope.clone(),
        deployment: key.deployment,
        staged: place.staging == Staging::Ready,
        instances: instances.collect(),
        weight: weight(traffic, key, place),
        open_requests: version.map_or(0, |held| held.open_requests),
        drained: drained(traffic, key, place, now),
        permanent_error: permanent_error(traffic, key, place),
        transient_error: transient_error(traffic, key, place),
        checks: Vec::new(),
    }
}

/// Workers report the wish; a scope that nobody listens for holds nothing.
fn weight(traffic: &Traffic, key: &PlaceKey, place: &Place) -> Option<Weight> {
    if place.item.port == Port::None {
        return Some(place.item.weight);
    }
    let scope = traffic.scope(&key.scope)?;
    if scope.problem.is_some() {
        return None;
    }
    traffic.weight(key)
}

fn permanent_error(traffic: &Traffic, key: &PlaceKey, place: &Place) -> Option<PermanentError> {
    if let Staging::Refused(error) = &place.staging {
        return Some(error.clone());
    }
    for (ordinal, instance) in &place.instances {
        if matches!(instance.phase, Phase::Failed { .. }) {
            return Some(failure(key, *ordinal, instance));
        }
    }
    let problem = traffic.scope(&key.scope)?.problem.as_ref()?;
    let concerned = traffic.version(key).is_some();
    let kind = problem.permanent.filter(|_| concerned)?;
    Some(PermanentError {
        kind,
        message: problem.message.clone(),
    })
}

fn failure(key: &PlaceKey, ordinal: u32, instance: &Instance) -> PermanentError {
    let id = InstanceKey {
        place: key.clone(),
        ordinal,
    }
    .id();
    let why = instance
        .last_exit
        .as_deref()
        .unwrap_or("no reason is known");
    if instance.is_unstartable() {
        return PermanentError {
            kind: PermanentErrorKind::StartFailed,
            message: format!("{id} cannot be started: {why}"),
        };
    }
    PermanentError {
        kind: PermanentErrorKind::MaxRestarts,
        message: format!(
            "{id} ended {} times; the last time: {why}",
            instance.incarnation
        ),
    }
}

fn transient_error(traffic: &Traffic, key: &PlaceKey, place: &Place) -> Option<String> {
    if let Staging::Missing { error, .. } = &place.staging
        && error.is_some()
    {
        return error.clone();
    }
    let listen = traffic
        .scope(&key.scope)
        .and_then(|scope| scope.problem.as_ref())
        .filter(|problem| problem.permanent.is_none());
    if let Some(problem) = listen {
        return Some(problem.message.clone());
    }
    let told = place.instances.iter().find_map(|(ordinal, instance)| {
        let why = instance.last_failure.as_deref()?;
        Some(format!("the check of instance {ordinal} fails: {why}"))
    });
    if told.is_none() && *traffic == Traffic::Unknown && place.item.port != Port::None {
        return Some("the proxy does not answer".to_owned());
    }
    told
}

fn observed_instance(
    key: &PlaceKey,
    ordinal: u32,
    instance: &Instance,
    held: Option<&HeldInstance>,
) -> ObservedInstance {
    let id = InstanceKey {
        place: key.clone(),
        ordinal,
    }
    .id();
    ObservedInstance {
        id,
        ordinal,
        state: instance.state(),
        restarts: instance.restarts,
        port: instance.port,
        pid: instance.pid,
        start_stamp: instance.stamp,
        counters: counters(instance, held),
        last_exit: instance.last_exit.clone(),
        cpu_basis_points: 0,
        memory_bytes: 0,
        app: Vec::new(),
    }
}

/// What was counted since the instance's stamp.
fn counters(instance: &Instance, held: Option<&HeldInstance>) -> Counters {
    let base = &instance.base;
    let nothing = Counters::default();
    let counted = held.map_or(&nothing, |held| &held.counters);
    Counters {
        requests: counted.requests.saturating_sub(base.requests),
        client_errors: counted.client_errors.saturating_sub(base.client_errors),
        server_errors: counted.server_errors.saturating_sub(base.server_errors),
        health_checks: instance.health_checks,
        health_check_failures: instance.health_check_failures,
        latency: counted
            .latency
            .since(&base.latency)
            .unwrap_or_else(|| counted.latency.clone()),
        first_error: counted.first_error,
        connections: counted.connections.saturating_sub(base.connections),
        bytes_in: counted.bytes_in.saturating_sub(base.bytes_in),
        bytes_out: counted.bytes_out.saturating_sub(base.bytes_out),
    }
}
