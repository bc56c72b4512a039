//! Wire messages ⇄ the shared vocabulary. The only place where both are known.
//!
//! Everything that comes in is checked here: a message that is not sound as a whole is refused as a
//! whole, with the field that is wrong.

use tidegate_proto::agent::v1 as wire;
use tidegate_shared::assignment::{
    AppSample, AssetWish, Assignment, Assignments, Counters, Generation, Guard, InstanceState,
    ObservedInstance, ObservedPlace, ParameterContent, ParameterWish, ProxyReport, Report, Role,
    Scrape, WishedState,
};
use tidegate_shared::id::{Name, Version};
use tidegate_shared::secret::Secret;
use tidegate_shared::spec::{
    AssetKind, Bytes, Cores, ExecProbe, FileSpec, HeaderRoute, HealthCheck, Hook, Hooks, HttpProbe,
    Limits, OnCollision, Port, Protocol, RunSpec, ScopeTraffic, StickySpec, TlsSpec, check_value,
    check_variable,
};
use tidegate_shared::time::Span;
use tidegate_shared::verdict::histogram::Histogram;
use tidegate_shared::weight::Weight;

use super::Secrets;

/// Most items in one message of assignments.
pub const MAX_ITEMS: usize = 1_024;
/// Most instances of a version on one agent.
pub const MAX_INSTANCES: u32 = 100;

/// Largest asset of the coordinators' store: 4 GiB.
pub const MAX_ASSET_BYTES: u64 = 4 << 30;

/// Most series that instances are asked for.
const MAX_SERIES: usize = 256;

/// Most places of an asset, and bytes of one.
const MAX_SOURCES: usize = 16;
const MAX_SOURCE: usize = 2_048;

/// A message that is not sound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Malformed {
    /// Where.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

pub(super) fn wrong(field: impl Into<String>, message: impl ToString) -> Malformed {
    Malformed {
        field: field.into(),
        message: message.to_string(),
    }
}

/// The wish, and apart from it the values of its secrets.
///
/// # Errors
/// The first field that is wrong.
pub fn assignments(mut from: wire::Assignments) -> Result<(Assignments, Secrets), Malformed> {
    let mut secrets = Secrets::new();
    for (position, item) in from.items.iter_mut().enumerate() {
        for parameter in &mut item.parameters {
            take_secret(parameter, &mut secrets)
                .map_err(|e| wrong(format!("items[{position}].{}", e.field), e.message))?;
        }
    }
    Ok((levels(from)?, secrets))
}

/// Moves a secret's value out of the message.
fn take_secret(parameter: &mut wire::Parameter, secrets: &mut Secrets) -> Result<(), Malformed> {
    use wire::parameter::Content;
    let Some(Content::Secret(value)) = &mut parameter.content else {
        return Ok(());
    };
    let version = value
        .version
        .parse()
        .map_err(|e| wrong("parameters.secret.version", e))?;
    // A coordinator that cannot open it sends none.
    if let Some(text) = value.text.take() {
        let value = Secret::new(text);
        check_value(&parameter.variable, value.expose())
            .map_err(|e| wrong("parameters.secret", e))?;
        secrets.insert(version, value);
    }
    Ok(())
}

fn levels(from: wire::Assignments) -> Result<Assignments, Malformed> {
    let generation = from
        .generation
        .ok_or_else(|| wrong("generation", "is missing"))?;
    if from.items.len() > MAX_ITEMS {
        return Err(wrong(
            "items",
            format!("{} items, the limit is {MAX_ITEMS}", from.items.len()),
        ));
    }
    let mut items = Vec::with_capacity(from.items.len());
    for (position, item) in from.items.into_iter().enumerate() {
        let item = assignment(item)
            .map_err(|e| wrong(format!("items[{position}].{}", e.field), e.message))?;
        items.push(item);
    }
    items.sort_by(|a, b| (&a.scope, a.deployment).cmp(&(&b.scope, b.deployment)));
    Ok(Assignments {
        generation: Generation {
            epoch: generation.epoch,
            index: generation.index,
        },
        items,
        report_interval: match from.report_interval_ms {
            0 => None,
            millis => Some(Span::from_millis(millis.max(100))),
        },
    })
}

fn assignment(from: wire::Assignment) -> Result<Assignment, Malformed> {
    let role = match from.role() {
        wire::Role::Active => Role::Active,
        wire::Role::Candidate => Role::Candidate,
        wire::Role::Retired => Role::Retired,
        wire::Role::Unspecified => return Err(wrong("role", "is not one that this agent knows")),
    };
    let state = match from.state() {
        wire::WishedState::Staged => WishedState::Staged,
        wire::WishedState::Running => WishedState::Running,
        wire::WishedState::Drained => WishedState::Drained,
        wire::WishedState::Absent => WishedState::Absent,
        wire::WishedState::Unspecified => {
            return Err(wrong("state", "is not one that this agent knows"));
        }
    };
    if from.count > MAX_INSTANCES {
        return Err(wrong(
            "count",
            format!("{} is more than {MAX_INSTANCES}", from.count),
        ));
    }
    let port = match u16::try_from(from.port) {
        Ok(0) => Port::None,
        Ok(port) => Port::Number(port),
        Err(_) => return Err(wrong("port", format!("{} is not a port", from.port))),
    };
    let run = from.run.ok_or_else(|| wrong("run", "is missing"))?;
    Ok(Assignment {
        scope: Name::new(from.scope).map_err(|e| wrong("scope", e))?,
        deployment: from
            .deployment
            .parse()
            .map_err(|e| wrong("deployment", e))?,
        role,
        count: from.count,
        application: Name::new(from.application).map_err(|e| wrong("application", e))?,
        release: Version::new(from.release).map_err(|e| wrong("release", e))?,
        asset: asset(from.asset.ok_or_else(|| wrong("asset", "is missing"))?)?,
        run: run_spec(run)?,
        parameters: from
            .parameters
            .into_iter()
            .map(parameter)
            .collect::<Result<_, _>>()?,
        port,
        traffic: scope_traffic(from.traffic.unwrap_or_default())?,
        health_check: match from.health_check {
            Some(check) => health_check(check)?,
            None => HealthCheck::default(),
        },
        state,
        weight: Weight::from_basis_points(u64::from(from.weight))
            .map_err(|e| wrong("weight", e))?,
        may_interrupt: from.may_interrupt,
        drain: Span::from_millis(from.drain_ms),
        max_restarts: from.max_restarts,
        keep_releases: from.keep_releases,
        guard: from.guard.map(|guard| Guard {
            lost_after: Span::from_millis(guard.lost_after_ms),
            rule: guard.rule,
        }),
        scrape: from.scrape.map(scrape).transpose()?,
        checks: super::checks::wishes(from.checks)?,
    })
}

fn scrape(from: wire::Scrape) -> Result<Scrape, Malformed> {
    let port = u16::try_from(from.port).map_err(|_| wrong("scrape.port", "is not a port"))?;
    if from.series.len() > MAX_SERIES || !from.path.starts_with('/') {
        return Err(wrong("scrape", "has too many series, or no path"));
    }
    Ok(Scrape {
        path: from.path,
        port: (port > 0).then_some(port),
        series: from.series,
    })
}

fn asset(from: wire::Asset) -> Result<AssetWish, Malformed> {
    let kind = match from.kind.as_str() {
        "archive" => AssetKind::Archive,
        "binary" => AssetKind::Binary,
        other => {
            let message = format!("this agent cannot run an asset of kind \"{other}\"");
            return Err(wrong("asset.kind", message));
        }
    };
    if from.size > MAX_ASSET_BYTES {
        return Err(wrong(
            "asset.size",
            format!("{} is more than 4 GiB", from.size),
        ));
    }
    Ok(AssetWish {
        name: Name::new(from.name).map_err(|e| wrong("asset.name", e))?,
        kind,
        sha256: from.sha256.parse().map_err(|e| wrong("asset.sha256", e))?,
        size: from.size,
        sources: sources(from.sources)?,
    })
}

/// Places that this agent does not know are kept: the fetch names them if no other has the asset.
fn sources(from: Vec<String>) -> Result<Vec<String>, Malformed> {
    if from.len() > MAX_SOURCES || from.iter().any(|place| place.len() > MAX_SOURCE) {
        return Err(wrong("asset.sources", "are too many or too long"));
    }
    Ok(match from.as_slice() {
        [only] if only == "store:" => Vec::new(),
        places => places
            .iter()
            .map(|place| match place.as_str() {
                "store:" => "store".to_owned(),
                address => address.to_owned(),
            })
            .collect(),
    })
}

fn scope_traffic(from: wire::ScopeTraffic) -> Result<ScopeTraffic, Malformed> {
    let traffic = ScopeTraffic {
        protocol: match from.protocol.as_str() {
            "" | "http" => Protocol::Http,
            "tcp" => Protocol::Tcp,
            other => {
                let message = format!("this agent does not speak \"{other}\"");
                return Err(wrong("traffic.protocol", message));
            }
        },
        tls: from.tls.map(|tls| TlsSpec {
            certificate: tls.certificate,
            key: tls.key,
        }),
        http2: from.http2,
        sticky: from.sticky.map(|sticky| StickySpec {
            cookie: sticky.cookie,
            ttl: Span::from_millis(sticky.ttl_ms),
        }),
        route: from.route.map(|route| HeaderRoute {
            header: route.header,
            value: route.value,
        }),
    };
    match traffic.validate(false).0.into_iter().next() {
        None => Ok(traffic),
        Some(error) => Err(wrong(format!("traffic.{}", error.field), error.message)),
    }
}

fn run_spec(from: wire::Run) -> Result<RunSpec, Malformed> {
    let nul = |text: &String| text.contains('\0');
    if from.command.is_empty() || nul(&from.command) || from.args.iter().any(nul) {
        return Err(wrong(
            "run",
            "the command is empty, or it or an argument has a NUL in it",
        ));
    }
    for (name, value) in &from.env {
        if name.is_empty() || name.contains(['=', '\0']) || nul(value) {
            return Err(wrong("run.env", format!("\"{name}\" cannot be set")));
        }
    }
    let run = RunSpec {
        command: from.command,
        args: from.args,
        env: from.env.into_iter().collect(),
        health_check: None,
        hooks: Hooks {
            before_start: hooks(from.before_start),
            after_start: hooks(from.after_start),
            before_stop: hooks(from.before_stop),
            after_stop: hooks(from.after_stop),
        },
        limits: from.limits.map(limits).unwrap_or_default(),
        notify: from.notify,
    };
    match run
        .validate()
        .0
        .into_iter()
        .find(|e| !e.field.starts_with("env"))
    {
        None => Ok(run),
        Some(error) => Err(wrong(format!("run.{}", error.field), error.message)),
    }
}

fn hooks(from: Vec<wire::Hook>) -> Vec<Hook> {
    from.into_iter()
        .map(|hook| Hook {
            command: hook.command,
            args: hook.args,
            timeout: Span::from_millis(hook.timeout_ms),
        })
        .collect()
}

/// What an instance may use.
pub fn limits(from: wire::Limits) -> Limits {
    let some = |number: u64| (number > 0).then_some(number);
    Limits {
        memory: some(from.memory_bytes).map(Bytes),
        cpu: (from.cpu_basis_points > 0).then_some(Cores(from.cpu_basis_points)),
        open_files: some(from.open_files),
        processes: some(from.processes),
    }
}

fn parameter(from: wire::Parameter) -> Result<ParameterWish, Malformed> {
    use wire::parameter::Content;
    let secret = matches!(from.content, Some(Content::Secret(_)));
    let content = match from.content {
        Some(Content::Plain(text)) => ParameterContent::Plain(text),
        Some(Content::Secret(value)) => ParameterContent::Secret(
            value
                .version
                .parse()
                .map_err(|e| wrong("parameters.secret.version", e))?,
        ),
        None => return Err(wrong("parameters.content", "is missing")),
    };
    check_variable(&from.variable, "").map_err(|e| wrong("parameters.variable", e))?;
    let file = match from.file {
        None => None,
        Some(file) => Some(file_spec(file, secret)?),
    };
    Ok(ParameterWish {
        variable: from.variable,
        content,
        file,
    })
}

/// The agent checks the path itself: it is the one who writes there.
fn file_spec(from: wire::ParameterFile, secret: bool) -> Result<FileSpec, Malformed> {
    let file = FileSpec {
        path: from.path,
        mode: format!("{:04o}", from.mode)
            .parse()
            .map_err(|e| wrong("parameters.file.mode", e))?,
        owner: Some(from.owner).filter(|owner| !owner.is_empty()),
        on_collision: OnCollision::parse(&from.on_collision)
            .ok_or_else(|| wrong("parameters.file.on_collision", "is not known"))?,
    };
    match file.validate(secret).0.into_iter().next() {
        None => Ok(file),
        Some(error) => Err(wrong(
            format!("parameters.file.{}", error.field),
            error.message,
        )),
    }
}

fn health_check(from: wire::HealthCheck) -> Result<HealthCheck, Malformed> {
    use wire::health_check::Kind;
    let mut check = HealthCheck {
        interval: Span::from_millis(from.interval_ms),
        timeout: Span::from_millis(from.timeout_ms),
        healthy_threshold: from.healthy_threshold,
        unhealthy_threshold: from.unhealthy_threshold,
        start_period: Span::from_millis(from.start_period_ms),
        ..HealthCheck::default()
    };
    match from.kind {
        Some(Kind::Http(http)) => {
            let status = u16::try_from(http.status)
                .map_err(|_| wrong("health_check.http.status", "is not a status"))?;
            check.http = Some(HttpProbe {
                path: http.path,
                status: (status > 0).then_some(status),
                body_contains: Some(http.body_contains).filter(|text| !text.is_empty()),
            });
        }
        Some(Kind::Tcp(_)) => check.tcp = true,
        Some(Kind::Exec(exec)) => {
            check.exec = Some(ExecProbe {
                command: exec.command,
                args: exec.args,
            });
        }
        Some(Kind::Alive(_)) | None => {}
    }
    match check.validate().0.into_iter().next() {
        None => Ok(check),
        Some(error) => Err(wrong(
            format!("health_check.{}", error.field),
            error.message,
        )),
    }
}

/// The report.
pub fn report(from: &Report) -> wire::Report {
    wire::Report {
        start: from.start,
        sequence: from.sequence,
        applied: Some(generation(from.applied)),
        places: from.places.iter().map(place).collect(),
        host: Some(wire::HostMetrics {
            cpu_basis_points: from.host.cpu_basis_points,
            memory_total: from.host.memory_total,
            memory_used: from.host.memory_used,
            disk_total: from.host.disk_total,
            disk_available: from.host.disk_available,
        }),
        complaints: from.complaints.clone(),
        proxy: from.proxy.as_ref().map(proxy_status),
    }
}

fn proxy_status(from: &ProxyReport) -> wire::ProxyStatus {
    let draining = from.draining.iter().map(|old| wire::DrainingProxy {
        pid: old.pid,
        version: old.version.clone(),
        since_ms: old.since.millis(),
        until_ms: old.until.millis(),
        open: old.open,
    });
    wire::ProxyStatus {
        pid: from.pid,
        version: from.version.clone(),
        started_at_ms: from.started_at.millis(),
        connections: from.connections,
        draining: draining.collect(),
    }
}

/// A generation.
pub const fn generation(from: Generation) -> wire::Generation {
    wire::Generation {
        epoch: from.epoch,
        index: from.index,
    }
}

fn place(from: &ObservedPlace) -> wire::ObservedPlace {
    wire::ObservedPlace {
        scope: from.scope.to_string(),
        deployment: from.deployment.to_string(),
        staged: from.staged,
        instances: from.instances.iter().map(instance).collect(),
        weight: from
            .weight
            .map_or(-1, |weight| i32::from(weight.basis_points())),
        open_requests: from.open_requests,
        drained: from.drained,
        permanent_error: from
            .permanent_error
            .as_ref()
            .map(|error| wire::PermanentError {
                kind: error.kind.as_str().to_owned(),
                message: error.message.clone(),
            }),
        transient_error: from.transient_error.clone().unwrap_or_default(),
        checks: from.checks.iter().map(super::checks::observed).collect(),
    }
}

fn instance(from: &ObservedInstance) -> wire::ObservedInstance {
    let state = match from.state {
        InstanceState::Starting => wire::InstanceState::Starting,
        InstanceState::Healthy => wire::InstanceState::Healthy,
        InstanceState::Unhealthy => wire::InstanceState::Unhealthy,
        InstanceState::Backoff => wire::InstanceState::Backoff,
        InstanceState::Stopping => wire::InstanceState::Stopping,
        InstanceState::Failed => wire::InstanceState::Failed,
    };
    wire::ObservedInstance {
        instance: from.id.clone(),
        ordinal: from.ordinal,
        state: state.into(),
        restarts: from.restarts,
        port: u32::from(from.port),
        pid: from.pid,
        start_stamp: from.start_stamp.millis(),
        counters: Some(counters(&from.counters)),
        last_exit: from.last_exit.clone().unwrap_or_default(),
        cpu_basis_points: from.cpu_basis_points,
        memory_bytes: from.memory_bytes,
        app: from.app.iter().map(app_sample).collect(),
    }
}

fn app_sample(from: &AppSample) -> wire::AppSample {
    wire::AppSample {
        series: from.series.clone(),
        edge: from.edge.clone().unwrap_or_default(),
        value: from.value,
    }
}

fn counters(from: &Counters) -> wire::Counters {
    wire::Counters {
        requests: from.requests,
        client_errors: from.client_errors,
        server_errors: from.server_errors,
        health_checks: from.health_checks,
        health_check_failures: from.health_check_failures,
        latency: Some(histogram(&from.latency)),
        first_error_ms: from.first_error.map_or(0, |at| at.millis()),
        connections: from.connections,
        bytes_in: from.bytes_in,
        bytes_out: from.bytes_out,
    }
}

fn histogram(from: &Histogram) -> wire::Histogram {
    let (index, count) = from.buckets().map(|(i, n)| (i32::from(i), n)).unzip();
    wire::Histogram {
        sum_us: from.sum(),
        index,
        count,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tidegate_shared::digest::Digest;

    pub fn good() -> wire::Assignments {
        wire::Assignments {
            generation: Some(wire::Generation { epoch: 1, index: 2 }),
            report_interval_ms: 1_000,
            items: vec![wire::Assignment {
                scope: "shop-eu".into(),
                deployment: "01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
                role: wire::Role::Candidate.into(),
                count: 2,
                application: "shop".into(),
                release: "1.0.0".into(),
                asset: Some(wire::Asset {
                    name: "shop".into(),
                    kind: "archive".into(),
                    sha256: Digest::ZERO.to_string(),
                    size: 5,
                    ..wire::Asset::default()
                }),
                run: Some(wire::Run {
                    command: "./shop".into(),
                    ..wire::Run::default()
                }),
                port: 8_080,
                health_check: Some(wire::HealthCheck {
                    kind: Some(wire::health_check::Kind::Tcp(wire::TcpCheck {})),
                    interval_ms: 1_000,
                    timeout_ms: 500,
                    healthy_threshold: 1,
                    unhealthy_threshold: 1,
                    start_period_ms: 0,
                }),
                state: wire::WishedState::Running.into(),
                weight: 500,
                drain_ms: 30_000,
                max_restarts: 5,
                keep_releases: 3,
                ..wire::Assignment::default()
            }],
        }
    }

    /// A secret file put into the message.
    fn file_of(message: &mut wire::Assignments) -> &mut wire::ParameterFile {
        message.items[0].parameters = vec![wire::Parameter {
            variable: "KEY".into(),
            content: Some(wire::parameter::Content::Secret(wire::SecretValue {
                version: Digest::ZERO.to_string(),
                text: Some("hush-hush".into()),
            })),
            file: Some(wire::ParameterFile {
                path: "tls/key.pem".into(),
                mode: 0o400,
                on_collision: "refuse".into(),
                ..wire::ParameterFile::default()
            }),
        }];
        message.items[0].parameters[0].file.as_mut().unwrap()
    }

    #[test]
    fn the_value_of_a_secret_travels_beside_the_wish() {
        let mut message = good();
        file_of(&mut message);
        assert!(!format!("{message:?}").contains("hush-hush"));
        let (wish, secrets) = assignments(message).unwrap();
        assert_eq!(secrets[&Digest::ZERO].expose(), "hush-hush");
        assert!(!format!("{wish:?} {secrets:?}").contains("hush-hush"));
        let item = &wish.items[0];
        assert_eq!(
            item.parameters[0].content,
            ParameterContent::Secret(Digest::ZERO)
        );
    }

    #[test]
    fn a_sound_message_becomes_the_wish() {
        let (wish, _) = assignments(good()).unwrap();
        assert_eq!(wish.items[0].weight.basis_points(), 500);
        assert_eq!(wish.items[0].port, Port::Number(8_080));
        assert!(wish.items[0].health_check.tcp);
        assert_eq!(wish.report_interval, Some(Span::from_secs(1)));
    }

    #[test]
    fn a_wrong_field_refuses_the_whole_and_is_named() {
        type Case = (fn(&mut wire::Assignments), &'static str);
        let cases: [Case; 17] = [
            (
                |a| file_of(a).path = "../../etc/cron.d/x".into(),
                "items[0].parameters.file.path: ",
            ),
            (
                |a| file_of(a).mode = 0o4755,
                "items[0].parameters.file.mode",
            ),
            (|a| file_of(a).mode = 0o644, "items[0].parameters.file.mode"),
            (
                |a| file_of(a).on_collision = "shrug".into(),
                "items[0].parameters.file.on_collision",
            ),
            (
                |a| {
                    file_of(a);
                    a.items[0].parameters[0].variable = "LD PRELOAD".into();
                },
                "items[0].parameters.variable",
            ),
            (
                |a| {
                    let hook = wire::Hook::default();
                    a.items[0].run.as_mut().unwrap().before_stop = vec![hook];
                },
                "items[0].run.hooks.before_stop[0].command",
            ),
            (|a| a.generation = None, "generation: is missing"),
            (|a| a.items[0].scope = "No Name".into(), "items[0].scope: "),
            (
                |a| a.items[0].deployment = "x".into(),
                "items[0].deployment: ",
            ),
            (|a| a.items[0].role = 77, "items[0].role: "),
            (|a| a.items[0].state = 0, "items[0].state: "),
            (|a| a.items[0].weight = 10_001, "items[0].weight: "),
            (|a| a.items[0].port = 70_000, "items[0].port: "),
            (|a| a.items[0].count = 101, "items[0].count: "),
            (|a| a.items[0].asset = None, "items[0].asset: is missing"),
            (
                |a| a.items[0].health_check.as_mut().unwrap().interval_ms = 0,
                "items[0].health_check.interval",
            ),
            (
                |a| a.items = vec![a.items[0].clone(); MAX_ITEMS + 1],
                "items: 1025 items, the limit is 1024",
            ),
        ];
        for (spoil, words) in cases {
            let mut message = good();
            spoil(&mut message);
            let error = assignments(message).unwrap_err().to_string();
            assert!(error.contains(words), "{error} lacks {words}");
        }
    }
}
