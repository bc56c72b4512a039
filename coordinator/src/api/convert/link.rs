//! The agents' link: reports in, assignments out. A report that does not make sense is refused
//! whole, with what is wrong in it.

use tidegate_proto::agent::v1 as pb;
use tidegate_shared::assignment::{
    AppSample, Assignment, Assignments, Counters, DrainingProxy, Facts, Generation, HostMetrics,
    InstanceState, ObservedInstance, ObservedPlace, ParameterContent, ParameterWish,
    PermanentError, PermanentErrorKind, ProxyReport, Report, Role, WishedState,
};
use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::secret::Secret;
use tidegate_shared::spec::{HealthCheck, Hook, Limits, Port, Probe, Protocol, ScopeTraffic};
use tidegate_shared::time::Timestamp;
use tidegate_shared::verdict::histogram::Histogram;
use tidegate_shared::weight::Weight;

/// Places that one report may hold.
const MOST_PLACES: usize = 1_000;
/// Instances that one place may hold.
const MOST_INSTANCES: usize = 100;
/// Replaced proxies of an agent that are kept.
const MOST_DRAINING: usize = 16;
/// Facts of an agent, and bytes of each.
const MOST_FACTS: usize = 64;
const FACT_BYTES: usize = 1_024;
/// Bytes of a message in a report that are kept.
const MESSAGE_BYTES: usize = 4_096;

/// What is wrong with a message of an agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Malformed {
    /// Where.
    pub field: String,
    /// What.
    pub message: String,
}

fn malformed(field: impl Into<String>, message: impl Into<String>) -> Malformed {
    Malformed {
        field: field.into(),
        message: message.into(),
    }
}

/// Facts of a host.
///
/// # Errors
/// Too many, or too long.
pub fn facts(found: impl IntoIterator<Item = (String, String)>) -> Result<Facts, Malformed> {
    let facts: Facts = found.into_iter().collect();
    if facts.len() > MOST_FACTS {
        return Err(malformed("facts", format!("more than {MOST_FACTS}")));
    }
    match facts
        .iter()
        .find(|(key, value)| key.len() > 63 || value.len() > FACT_BYTES)
    {
        Some((key, _)) => Err(malformed(format!("facts.{key}"), "is too long")),
        None => Ok(facts),
    }
}

fn generation(found: Option<pb::Generation>) -> Generation {
    found.map_or_else(Generation::default, |found| Generation {
        epoch: found.epoch,
        index: found.index,
    })
}

fn cut(mut text: String) -> String {
    if text.len() > MESSAGE_BYTES {
        let end = (0..=MESSAGE_BYTES)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or(0);
        text.truncate(end);
    }
    text
}

fn optional(text: String) -> Option<String> {
    (!text.is_empty()).then(|| cut(text))
}

/// A report.
///
/// # Errors
/// The first thing that makes no sense.
pub fn report(found: pb::Report) -> Result<Report, Malformed> {
    if found.places.len() > MOST_PLACES {
        return Err(malformed("places", format!("more than {MOST_PLACES}")));
    }
    let host = found.host.unwrap_or_default();
    let mut places = Vec::with_capacity(found.places.len());
    for (position, place) in found.places.into_iter().enumerate() {
        places.push(observed_place(place).map_err(|error| {
            malformed(format!("places[{position}].{}", error.field), error.message)
        })?);
    }
    Ok(Report {
        start: found.start,
        sequence: found.sequence,
        applied: generation(found.applied),
        places,
        host: HostMetrics {
            cpu_basis_points: host.cpu_basis_points,
            memory_total: host.memory_total,
            memory_used: host.memory_used,
            disk_total: host.disk_total,
            disk_available: host.disk_available,
        },
        complaints: found.complaints.into_iter().take(32).map(cut).collect(),
        proxy: found.proxy.map(proxy_report),
    })
}

fn proxy_report(found: pb::ProxyStatus) -> ProxyReport {
    let draining = found.draining.into_iter().take(MOST_DRAINING);
    let draining = draining.map(|old| DrainingProxy {
        pid: old.pid,
        version: cut(old.version),
        since: Timestamp::from_millis(old.since_ms),
        until: Timestamp::from_millis(old.until_ms),
        open: old.open,
    });
    ProxyReport {
        pid: found.pid,
        version: cut(found.version),
        started_at: Timestamp::from_millis(found.started_at_ms),
        connections: found.connections,
        draining: draining.collect(),
    }
}

fn observed_place(found: pb::ObservedPlace) -> Result<ObservedPlace, Malformed> {
    if found.instances.len() > MOST_INSTANCES {
        return Err(malformed(
            "instances",
            format!("more than {MOST_INSTANCES}"),
        ));
    }
    let mut instances = Vec::with_capacity(found.instances.len());
    for (position, instance) in found.instances.into_iter().enumerate() {
        instances.push(observed_instance(instance).map_err(|error| {
            malformed(
                format!("instances[{position}].{}", error.field),
                error.message,
            )
        })?);
    }
    let weight = match u64::try_from(found.weight) {
        Err(_) => None,
        Ok(points) => Some(
            Weight::from_basis_points(points)
                .map_err(|error| malformed("weight", error.to_string()))?,
        ),
    };
    let permanent_error = match found.permanent_error {
        None => None,
        Some(error) => Some(PermanentError {
            kind: PermanentErrorKind::ALL
                .into_iter()
                .find(|kind| kind.as_str() == error.kind)
                .ok_or_else(|| {
                    malformed(
                        "permanent_error",
                        format!("\"{}\" is not known", error.kind),
                    )
                })?,
            message: cut(error.message),
        }),
    };
    Ok(ObservedPlace {
        scope: Name::new(found.scope).map_err(|error| malformed("scope", error.message))?,
        deployment: deployment(&found.deployment)?,
        staged: found.staged,
        instances,
        weight,
        open_requests: found.open_requests,
        drained: found.drained,
        permanent_error,
        transient_error: optional(found.transient_error),
        checks: super::checks::observed(found.checks)
            .map_err(|message| malformed("checks", message))?,
    })
}

fn deployment(text: &str) -> Result<DeploymentId, Malformed> {
    text.parse()
        .map_err(|error: tidegate_shared::id::IdError| malformed("deployment", error.message))
}

fn observed_instance(found: pb::ObservedInstance) -> Result<ObservedInstance, Malformed> {
    let state = match found.state() {
        pb::InstanceState::Unspecified => return Err(malformed("state", "is missing")),
        pb::InstanceState::Starting => InstanceState::Starting,
        pb::InstanceState::Healthy => InstanceState::Healthy,
        pb::InstanceState::Unhealthy => InstanceState::Unhealthy,
        pb::InstanceState::Backoff => InstanceState::Backoff,
        pb::InstanceState::Stopping => InstanceState::Stopping,
        pb::InstanceState::Failed => InstanceState::Failed,
    };
    if found.instance.len() > 256 {
        return Err(malformed("instance", "is too long"));
    }
    Ok(ObservedInstance {
        id: found.instance,
        ordinal: found.ordinal,
        state,
        restarts: found.restarts,
        port: u16::try_from(found.port).map_err(|_| malformed("port", "is above 65535"))?,
        pid: found.pid,
        start_stamp: Timestamp::from_millis(found.start_stamp),
        counters: counters(found.counters.unwrap_or_default())?,
        last_exit: optional(found.last_exit),
        cpu_basis_points: found.cpu_basis_points,
        memory_bytes: found.memory_bytes,
        app: app_samples(found.app)?,
    })
}

/// Most samples of an instance, and bytes of a name in one.
const MOST_SAMPLES: usize = 1_024;
const LONGEST_NAME: usize = 8_192;

fn app_samples(found: Vec<pb::AppSample>) -> Result<Vec<AppSample>, Malformed> {
    let sound = |sample: &pb::AppSample| {
        sample.value.is_finite()
            && sample.series.len() <= LONGEST_NAME
            && sample.edge.len() <= LONGEST_NAME
    };
    if found.len() > MOST_SAMPLES || !found.iter().all(sound) {
        return Err(malformed(
            "app",
            "has too many samples, or one that is not sound",
        ));
    }
    let sample = |sample: pb::AppSample| AppSample {
        series: sample.series,
        edge: optional(sample.edge),
        value: sample.value,
    };
    Ok(found.into_iter().map(sample).collect())
}

fn counters(found: pb::Counters) -> Result<Counters, Malformed> {
    let latency = match found.latency {
        None => Histogram::default(),
        Some(histogram) => histogram_from(&histogram)?,
    };
    Ok(Counters {
        requests: found.requests,
        client_errors: found.client_errors,
        server_errors: found.server_errors,
        health_checks: found.health_checks,
        health_check_failures: found.health_check_failures,
        latency,
        first_error: (found.first_error_ms > 0)
            .then(|| Timestamp::from_millis(found.first_error_ms)),
        connections: found.connections,
        bytes_in: found.bytes_in,
        bytes_out: found.bytes_out,
    })
}

fn histogram_from(found: &pb::Histogram) -> Result<Histogram, Malformed> {
    let wrong = |message: String| malformed("counters.latency", message);
    if found.index.len() != found.count.len() {
        return Err(wrong("index and count differ in length".to_owned()));
    }
    let mut buckets = Vec::with_capacity(found.index.len());
    for (index, count) in found.index.iter().zip(&found.count) {
        let index = u16::try_from(*index).map_err(|_| wrong(format!("no bucket {index}")))?;
        buckets.push((index, *count));
    }
    Histogram::from_parts(found.sum_us, buckets).map_err(|error| wrong(error.to_string()))
}

fn scope_traffic(spec: &ScopeTraffic) -> pb::ScopeTraffic {
    pb::ScopeTraffic {
        protocol: match spec.protocol {
            Protocol::Http => "http".to_owned(),
            Protocol::Tcp => "tcp".to_owned(),
        },
        tls: spec.tls.as_ref().map(|tls| pb::ScopeTls {
            certificate: tls.certificate.clone(),
            key: tls.key.clone(),
        }),
        http2: spec.http2,
        sticky: spec.sticky.as_ref().map(|sticky| pb::ScopeSticky {
            cookie: sticky.cookie.clone(),
            ttl_ms: sticky.ttl.millis(),
        }),
        route: spec.route.as_ref().map(|route| pb::HeaderRoute {
            header: route.header.clone(),
            value: route.value.clone(),
        }),
    }
}

/// Opens a secret of an assignment for the agent that it goes to, by its variable.
pub type Opener<'a> = dyn Fn(&Assignment, &str) -> Option<Secret> + 'a;

/// The complete wish for an agent, with its secrets opened.
#[must_use]
pub fn assignments(wish: &Assignments, open: &Opener<'_>) -> pb::Assignments {
    pb::Assignments {
        generation: Some(pb::Generation {
            epoch: wish.generation.epoch,
            index: wish.generation.index,
        }),
        items: wish
            .items
            .iter()
            .map(|item| assignment(item, open))
            .collect(),
        report_interval_ms: wish.report_interval.map_or(0, |span| span.millis()),
    }
}

fn assignment(item: &Assignment, open: &Opener<'_>) -> pb::Assignment {
    let role = match item.role {
        Role::Active => pb::Role::Active,
        Role::Candidate => pb::Role::Candidate,
        Role::Retired => pb::Role::Retired,
    };
    let state = match item.state {
        WishedState::Staged => pb::WishedState::Staged,
        WishedState::Running => pb::WishedState::Running,
        WishedState::Drained => pb::WishedState::Drained,
        WishedState::Absent => pb::WishedState::Absent,
    };
    pb::Assignment {
        scope: item.scope.to_string(),
        deployment: item.deployment.to_string(),
        role: role.into(),
        count: item.count,
        application: item.application.to_string(),
        release: item.release.to_string(),
        asset: Some(pb::Asset {
            name: item.asset.name.to_string(),
            kind: item.asset.kind.as_str().to_owned(),
            sha256: item.asset.sha256.to_string(),
            size: item.asset.size,
            sources: sources(&item.asset.sources),
            file_name: item.asset.name.to_string(),
        }),
        run: Some(pb::Run {
            command: item.run.command.clone(),
            args: item.run.args.clone(),
            env: super::to_map(&item.run.env),
            before_start: hooks(&item.run.hooks.before_start),
            after_start: hooks(&item.run.hooks.after_start),
            before_stop: hooks(&item.run.hooks.before_stop),
            after_stop: hooks(&item.run.hooks.after_stop),
            limits: limits(&item.run.limits),
            notify: item.run.notify,
        }),
        port: match item.port {
            Port::None => 0,
            Port::Number(number) => u32::from(number),
        },
        traffic: (!item.traffic.is_default()).then(|| scope_traffic(&item.traffic)),
        health_check: Some(health_check(&item.health_check)),
        state: state.into(),
        weight: u32::from(item.weight.basis_points()),
        may_interrupt: item.may_interrupt,
        drain_ms: item.drain.millis(),
        max_restarts: item.max_restarts,
        keep_releases: item.keep_releases,
        guard: item.guard.as_ref().map(|guard| pb::Guard {
            lost_after_ms: guard.lost_after.millis(),
            rule: guard.rule.clone(),
        }),
        parameters: item
            .parameters
            .iter()
            .map(|wish| parameter(wish, open(item, &wish.variable)))
            .collect(),
        scrape: item.scrape.as_ref().map(|scrape| pb::Scrape {
            path: scrape.path.clone(),
            port: scrape.port.unwrap_or(0).into(),
            series: scrape.series.clone(),
        }),
        checks: item.checks.iter().map(super::checks::wish).collect(),
    }
}

fn parameter(wish: &ParameterWish, opened: Option<Secret>) -> pb::Parameter {
    use pb::parameter::Content;
    let content = match &wish.content {
        ParameterContent::Plain(text) => Content::Plain(text.clone()),
        ParameterContent::Secret(version) => Content::Secret(pb::SecretValue {
            version: version.to_string(),
            text: opened.map(|secret| secret.expose().to_owned()),
        }),
    };
    pb::Parameter {
        variable: wish.variable.clone(),
        content: Some(content),
        file: wish.file.as_ref().map(|file| pb::ParameterFile {
            path: file.path.clone(),
            mode: file.mode.bits(),
            owner: file.owner.clone().unwrap_or_default(),
            on_collision: file.on_collision.as_str().to_owned(),
        }),
    }
}

fn hooks(hooks: &[Hook]) -> Vec<pb::Hook> {
    hooks
        .iter()
        .map(|hook| pb::Hook {
            command: hook.command.clone(),
            args: hook.args.clone(),
            timeout_ms: hook.timeout.millis(),
        })
        .collect()
}

/// What an instance may use; none: whatever it wants.
pub fn limits(limits: &Limits) -> Option<pb::Limits> {
    (!limits.is_empty()).then(|| pb::Limits {
        memory_bytes: limits.memory.map_or(0, |bytes| bytes.0),
        cpu_basis_points: limits.cpu.map_or(0, |cores| cores.0),
        open_files: limits.open_files.unwrap_or(0),
        processes: limits.processes.unwrap_or(0),
    })
}

fn sources(places: &[String]) -> Vec<String> {
    let on_the_wire = |place: &String| match place.as_str() {
        "store" => "store:".to_owned(),
        address => address.to_owned(),
    };
    if places.is_empty() {
        return vec!["store:".to_owned()];
    }
    places.iter().map(on_the_wire).collect()
}

fn health_check(check: &HealthCheck) -> pb::HealthCheck {
    use pb::health_check::Kind;
    let kind = match check.probe() {
        Probe::Http(http) => Kind::Http(pb::HttpCheck {
            path: http.path.clone(),
            status: http.status.map_or(0, u32::from),
            body_contains: http.body_contains.clone().unwrap_or_default(),
        }),
        Probe::Tcp => Kind::Tcp(pb::TcpCheck {}),
        Probe::Exec(exec) => Kind::Exec(pb::ExecCheck {
            command: exec.command.clone(),
            args: exec.args.clone(),
        }),
        Probe::Alive => Kind::Alive(pb::Alive {}),
    };
    pb::HealthCheck {
        kind: Some(kind),
        interval_ms: check.interval.millis(),
        timeout_ms: check.timeout.millis(),
        healthy_threshold: check.healthy_threshold,
        unhealthy_threshold: check.unhealthy_threshold,
        start_period_ms: check.start_period.millis(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> pb::Report {
        pb::Report {
            start: 7,
            sequence: 3,
            applied: Some(pb::Generation { epoch: 0, index: 9 }),
            places: vec![pb::ObservedPlace {
                scope: "shop".to_owned(),
                deployment: "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(),
                staged: true,
                instances: vec![pb::ObservedInstance {
                    instance: "tidegate-shop-abcd1234-0".to_owned(),
                    state: pb::InstanceState::Healthy.into(),
                    port: 8_081,
                    counters: Some(pb::Counters {
                        requests: 10,
                        server_errors: 1,
                        latency: Some(pb::Histogram {
                            sum_us: 100,
                            index: vec![3, 5],
                            count: vec![4, 6],
                        }),
                        first_error_ms: 5,
                        ..pb::Counters::default()
                    }),
                    ..pb::ObservedInstance::default()
                }],
                weight: 2_500,
                ..pb::ObservedPlace::default()
            }],
            ..pb::Report::default()
        }
    }

    #[test]
    fn a_report_arrives_as_it_was_sent() {
        let report = report(good()).unwrap();
        assert_eq!(
            (report.start, report.sequence, report.applied.index),
            (7, 3, 9)
        );
        let place = &report.places[0];
        assert_eq!(place.weight.map(Weight::basis_points), Some(2_500));
        let instance = &place.instances[0];
        assert_eq!(instance.state, InstanceState::Healthy);
        assert_eq!(instance.counters.latency.count(), 10);
        assert_eq!(
            instance.counters.first_error,
            Some(Timestamp::from_millis(5))
        );
        let unknown = pb::ObservedPlace {
            weight: -1,
            ..good().places.remove(0)
        };
        assert_eq!(observed_place(unknown).unwrap().weight, None);
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        type Break = fn(&mut pb::Report);
        let table: [(Break, &str); 7] = [
            (|r| r.places[0].scope = "A b".into(), "places[0].scope"),
            (
                |r| r.places[0].deployment = "x".into(),
                "places[0].deployment",
            ),
            (|r| r.places[0].weight = 10_001, "places[0].weight"),
            (
                |r| r.places[0].instances[0].state = 0,
                "places[0].instances[0].state",
            ),
            (
                |r| r.places[0].instances[0].port = 70_000,
                "places[0].instances[0].port",
            ),
            (
                |r| {
                    let counters = r.places[0].instances[0].counters.as_mut();
                    counters.unwrap().latency.as_mut().unwrap().index.pop();
                },
                "places[0].instances[0].counters.latency",
            ),
            (|r| r.places = vec![r.places[0].clone(); 1_001], "places"),
        ];
        for (make_wrong, field) in table {
            let mut wrong = good();
            make_wrong(&mut wrong);
            assert_eq!(report(wrong).unwrap_err().field, field);
        }
    }
}
