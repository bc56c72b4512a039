//! New deployments: by people, and linked ones (retry, return, start, restart).

use std::sync::Arc;

use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, GroupId, Name, Version};
use tidegate_shared::selector::Labels;
use tidegate_shared::spec::{
    AssetSpec, Port, ReleaseStatus, ScopeSpec, Strategy, StrategyKind, StrategySpec,
    validate_labels,
};

use super::auto;
use super::fits;
use super::lifecycle::{self, title};
use super::parameters;
use super::tx::Tx;
use crate::command::{Actor, CreateDeployments, OnConflict, Outcome, Reply};
use crate::rejection::Rejection;
use crate::state::{
    Deployment, EndCause, Link, LinkKind, Origin, Release, Required, ResolvedParameter, Scope,
    ScopeStatus, Status, Table,
};

/// What a new deployment is made of; the rest comes from its scope and release.
pub(super) struct Wanted {
    pub(super) scope: Name,
    pub(super) version: Version,
    pub(super) strategy_name: Option<Name>,
    pub(super) strategy: Arc<Strategy>,
    /// None: resolved now.
    pub(super) parameters: Option<Table<String, ResolvedParameter>>,
    pub(super) labels: Labels,
    pub(super) on_conflict: OnConflict,
    pub(super) fast: bool,
    pub(super) forced: bool,
    pub(super) link: Option<Link>,
    pub(super) required: Option<Required>,
    /// It makes itself: who made the release.
    pub(super) auto: Option<Actor>,
    /// The group that it is a member of.
    pub(super) group: Option<GroupId>,
    /// Tries by a rule before this one.
    pub(super) tries: u32,
    /// Who asked for it; none: who asks now.
    pub(super) by: Option<Actor>,
}

impl Wanted {
    /// The same release in the same scope with the same strategy as another deployment's.
    pub(super) fn again(of: &Deployment, kind: LinkKind) -> Self {
        let origin = &of.origin;
        Self {
            scope: origin.scope.clone(),
            version: origin.version.clone(),
            strategy_name: origin.strategy_name.clone(),
            strategy: origin.strategy.clone(),
            parameters: None,
            labels: of.meta.labels.clone(),
            on_conflict: OnConflict::Fail,
            fast: false,
            forced: false,
            link: Some(Link { kind, of: of.id }),
            required: None,
            auto: None,
            group: None,
            tries: 0,
            by: None,
        }
    }
}

/// One deployment per scope, all or none.
pub(super) fn create(tx: &mut Tx<'_>, command: &CreateDeployments) -> Outcome {
    create_all(tx, command, MOST_SCOPES, None).map(Reply::Deployments)
}

/// Scopes of one request that makes no group.
const MOST_SCOPES: usize = 1_000;

/// See [`create`]; as members of a group, if one is named.
pub(super) fn create_all(
    tx: &mut Tx<'_>,
    command: &CreateDeployments,
    most: usize,
    group: Option<GroupId>,
) -> Result<Vec<DeploymentId>, Rejection> {
    check_scopes(tx, command, most)?;
    validate_labels(&command.labels)
        .into_result()
        .map_err(|errors| Rejection::fields("deployment", errors))?;
    let release = tx.state.release(&command.application, &command.version)?;
    check_ready(release, &command.application, &command.version)?;
    if command.on_conflict == OnConflict::Fail {
        check_conflicts(tx, &command.scopes)?;
    }
    let base = named_strategy(tx, command.strategy.as_ref())?;
    let mut made = Vec::with_capacity(command.scopes.len());
    for name in &command.scopes {
        let spec = &tx.state.scope(name)?.spec;
        let strategy = strategy_for(&base, &command.overrides, name, spec)?;
        let wanted = Wanted {
            scope: name.clone(),
            version: command.version.clone(),
            strategy_name: command.strategy.clone(),
            strategy: Arc::new(strategy),
            parameters: None,
            labels: command.labels.clone(),
            on_conflict: command.on_conflict,
            fast: false,
            forced: false,
            link: None,
            required: None,
            auto: None,
            group,
            tries: 0,
            by: None,
        };
        made.push(make(tx, wanted)?);
    }
    Ok(made)
}

fn check_scopes(tx: &Tx<'_>, command: &CreateDeployments, most: usize) -> Result<(), Rejection> {
    let refuse = |message: String| Err(Rejection::new(Reason::InvalidRequest, message));
    if !(1..=most).contains(&command.scopes.len()) {
        let count = command.scopes.len();
        return refuse(format!("{count} scopes: want 1 to {most}"));
    }
    let mut seen = std::collections::BTreeSet::new();
    for name in &command.scopes {
        if !seen.insert(name) {
            return refuse(format!("scope \"{name}\" is named twice"));
        }
        let scope = tx.state.scope(name)?;
        if scope.spec.application != command.application {
            return refuse(format!(
                "scope \"{name}\" runs application \"{}\", not \"{}\"",
                scope.spec.application, command.application
            ));
        }
    }
    Ok(())
}

/// Whether a release may be deployed.
pub(super) fn check_ready(
    release: &Release,
    application: &Name,
    version: &Version,
) -> Result<(), Rejection> {
    let reason = match release.status {
        ReleaseStatus::Ready => return Ok(()),
        ReleaseStatus::Building | ReleaseStatus::Paused => Reason::ReleaseNotReady,
        ReleaseStatus::Rejected => Reason::ReleaseRejected,
        ReleaseStatus::Collected => Reason::ReleaseCollected,
    };
    let why = lifecycle::because(&release.reason);
    Err(Rejection::new(
        reason,
        format!("release {application} {version} is {}{why}", release.status),
    ))
}

/// Refuses if a deployment is under way in any of the scopes; names each.
pub(super) fn check_conflicts(tx: &Tx<'_>, scopes: &[Name]) -> Result<(), Rejection> {
    let mut conflicts = Vec::new();
    for name in scopes {
        if let Some(other) = tx.state.candidate_of(tx.state.scope(name)?) {
            let why = format!(
                "deployment {} of {} {} by {} is {} since {}",
                other.id,
                other.origin.application,
                other.origin.version,
                other.meta.created_by,
                other.status,
                other.status_since
            );
            conflicts.push((name.clone(), why));
        }
    }
    match conflicts.as_slice() {
        [] => Ok(()),
        [(name, why)] => {
            let message = format!("scope \"{name}\" is busy: {why}");
            Err(Rejection::new(Reason::Conflict, message))
        }
        several => {
            let message = format!("{} of {} scopes are busy", several.len(), scopes.len());
            Err(Rejection::of_scopes(Reason::Conflict, message, several))
        }
    }
}

pub(super) fn named_strategy(tx: &Tx<'_>, name: Option<&Name>) -> Result<StrategySpec, Rejection> {
    let Some(name) = name else {
        return Ok(StrategySpec::default());
    };
    let found = tx.state.strategies.get(name).map(|s| s.spec.clone());
    found
        .ok_or_else(|| Rejection::new(Reason::NotFound, format!("there is no strategy \"{name}\"")))
}

/// The strategy with its overrides, checked and resolved. A worker (`port: none`) has no traffic
/// to move: it takes `rolling`, by itself if no kind was said.
pub(super) fn strategy_for(
    base: &StrategySpec,
    overrides: &StrategySpec,
    name: &Name,
    scope: &ScopeSpec,
) -> Result<Strategy, Rejection> {
    let mut spec = base.overridden_by(overrides);
    if scope.port == Port::None {
        match spec.kind {
            Some(StrategyKind::Rolling) => {}
            None if spec.traffic.is_none() => spec.kind = Some(StrategyKind::Rolling),
            Some(StrategyKind::BlueGreen | StrategyKind::AllIn) | None => {
                return Err(Rejection::new(
                    Reason::NotOffered,
                    format!(
                        "scope \"{name}\" is a worker (port: none) without traffic to move: only a strategy of kind rolling fits"
                    ),
                ));
            }
        }
    }
    spec.validate()
        .into_result()
        .map_err(|errors| Rejection::fields("strategy", errors))?;
    fits::check(&spec, name, scope)?;
    Ok(spec.resolve())
}

/// The parameters that a scope's TLS is made of must be there when a deployment begins.
fn check_tls(
    name: &Name,
    spec: &ScopeSpec,
    parameters: &Table<String, ResolvedParameter>,
) -> Result<(), Rejection> {
    let Some(tls) = &spec.tls else {
        return Ok(());
    };
    for (field, variable) in [("certificate", &tls.certificate), ("key", &tls.key)] {
        if !parameters.contains_key(variable) {
            return Err(Rejection::new(
                Reason::InvalidRequest,
                format!(
                    "scope \"{name}\": tls.{field} names the parameter {variable}, which has no value here: make it with `tidegate parameter create`"
                ),
            ));
        }
    }
    Ok(())
}

/// Makes a deployment in `PENDING`. What else is under way has been looked at by the caller, except
/// that `supersede` acts here.
pub(super) fn make(tx: &mut Tx<'_>, wanted: Wanted) -> Result<DeploymentId, Rejection> {
    let mut scope = tx.state.scope(&wanted.scope)?.clone();
    if matches!(scope.status, ScopeStatus::Stopping | ScopeStatus::Deleted) {
        return Err(Rejection::new(
            Reason::ScopeStatus,
            format!(
                "scope \"{}\" is {}: wait until it is stopped",
                wanted.scope,
                scope.status.as_str()
            ),
        ));
    }
    let release = tx
        .state
        .release(&scope.spec.application, &wanted.version)?
        .clone();
    let origin = origin(tx, &scope, &release, &wanted)?;
    if wanted.on_conflict == OnConflict::Supersede
        && let Some(other) = tx.state.candidate_of(&scope).cloned()
        && other.status != Status::Finalizing
    {
        let message = format!("{} {} takes its place", origin.application, wanted.version);
        lifecycle::take_back(tx, other, EndCause::Superseded, "superseded", message)?;
        scope = tx.state.scope(&wanted.scope)?.clone();
    }
    if release.idle_since.is_some() {
        let key = (origin.application.clone(), origin.version.clone());
        let in_use = Release {
            idle_since: None,
            ..release
        };
        tx.state.releases.insert(key, in_use);
    }
    let id = tx.new_deployment_id(&wanted.scope);
    let deployment = record(tx, id, origin, &wanted);
    let by = match (&wanted.link, &wanted.auto) {
        (Some(link), _) => format!(" ({} {})", link_word(link.kind), link.of),
        (None, Some(author)) => format!(" (auto_deploy of the release of {author})"),
        (None, None) => String::new(),
    };
    let line = format!("{} was made by {}{by}", title(&deployment), tx.actor);
    tx.note_deployment("created", &deployment, line);
    scope.waiting.push(id);
    tx.state.short_ids.insert(deployment.short.clone(), id);
    tx.put_deployment(deployment);
    let made = tx.state.last_revision;
    tx.state.history.insert((wanted.scope.clone(), made), id);
    tx.put_scope(&wanted.scope, scope);
    auto::made(tx, &wanted.scope, &wanted.version);
    Ok(id)
}

const fn link_word(kind: LinkKind) -> &'static str {
    match kind {
        LinkKind::Retry => "a retry of",
        LinkKind::Rollback => "a return from",
        LinkKind::Start => "a start of",
        LinkKind::Restart => "a restart of",
    }
}

fn origin(
    tx: &Tx<'_>,
    scope: &Scope,
    release: &Release,
    wanted: &Wanted,
) -> Result<Origin, Rejection> {
    let spec = &scope.spec;
    let asset = asset_for(wanted, spec, release)?;
    let health_check = spec
        .health_check
        .clone()
        .or_else(|| asset.run.health_check.clone())
        .unwrap_or_default();
    let parameters = wanted
        .parameters
        .clone()
        .unwrap_or_else(|| parameters::resolve(&tx.state, &wanted.scope, spec, &release.spec));
    check_tls(&wanted.scope, spec, &parameters)?;
    parameters::check_files(&wanted.scope, &parameters)?;
    let origin = Origin {
        application: spec.application.clone(),
        version: wanted.version.clone(),
        release_digest: release.digest,
        scope: wanted.scope.clone(),
        scope_spec: spec.clone(),
        asset: Arc::new(asset),
        health_check: Arc::new(health_check),
        strategy_name: wanted.strategy_name.clone(),
        strategy: wanted.strategy.clone(),
        parameters,
        on_conflict: wanted.on_conflict,
        fast: wanted.fast,
        forced: wanted.forced,
        link: wanted.link.clone(),
        auto: wanted.auto.clone(),
    };
    // The one before it in this scope, and the one that the same command made in another.
    let active = tx.state.active_of(scope);
    let like = active.iter().map(|active| &active.origin).chain(tx.like());
    Ok(like.fold(origin, |origin, like| origin.sharing(like)))
}

/// The asset that the scope names, or the release's only one.
fn asset_for(wanted: &Wanted, spec: &ScopeSpec, release: &Release) -> Result<AssetSpec, Rejection> {
    let assets = &release.spec.assets;
    let found = release.spec.asset_for(spec.asset.as_ref());
    found.cloned().ok_or_else(|| {
        let names: Vec<&str> = assets.iter().map(|asset| asset.name.as_str()).collect();
        let takes = match &spec.asset {
            Some(name) => format!("takes asset \"{name}\""),
            None => "names no asset to take".to_owned(),
        };
        Rejection::new(
            Reason::NoMatchingAsset,
            format!(
                "scope \"{}\" {takes}; release {} has {}",
                wanted.scope,
                wanted.version,
                names.join(", ")
            ),
        )
    })
}

fn record(tx: &mut Tx<'_>, id: DeploymentId, origin: Origin, wanted: &Wanted) -> Deployment {
    let mut meta = tx.new_meta(wanted.labels.clone());
    if let Some(by) = &wanted.by {
        meta.created_by = by.clone();
    }
    Deployment {
        id,
        short: id.short(),
        meta,
        origin: tx.made_with(origin),
        status: Status::Pending,
        status_since: tx.at,
        replaces: None,
        participants: Vec::new(),
        lost: Vec::new(),
        required: wanted.required.clone(),
        clock_since: tx.at,
        counted_to: tx.at,
        fewest_outstanding: None,
        traffic: crate::state::Traffic::default(),
        paused: None,
        halted: None,
        drained: false,
        return_at_finalized: None,
        end_cause: None,
        reason: String::new(),
        message: String::new(),
        outcome: None,
        unverified: false,
        ended_at: None,
        durations: crate::state::Durations::default(),
        causes: Vec::new(),
        evidence: Vec::new(),
        leftovers: Vec::new(),
        promoted_full: false,
        checks: Vec::new(),
        group: wanted.group,
        tries: wanted.tries,
    }
}

/// A fast rollback to a finalized deployment's release, with the parameters that it had.
pub(super) fn return_to(
    tx: &mut Tx<'_>,
    from: &Deployment,
    target: DeploymentId,
    cause: EndCause,
) -> Result<DeploymentId, Rejection> {
    let target = tx.state.deployment(target)?.clone();
    let by_itself = match cause {
        EndCause::Cancel | EndCause::Rollback | EndCause::Superseded => false,
        EndCause::Rule
        | EndCause::Deadline
        | EndCause::Errors
        | EndCause::Rejected
        | EndCause::ScopeStopped => true,
    };
    fast(tx, from, &target, by_itself, OnConflict::Queue)
}

/// See [`return_to`]; `forced` lets it return to a rejected release.
pub(super) fn fast(
    tx: &mut Tx<'_>,
    from: &Deployment,
    target: &Deployment,
    forced: bool,
    on_conflict: OnConflict,
) -> Result<DeploymentId, Rejection> {
    let wanted = Wanted {
        parameters: Some(parameters::returning(&tx.state, &target.origin.parameters)),
        on_conflict,
        fast: true,
        forced,
        link: Some(Link {
            kind: LinkKind::Rollback,
            of: from.id,
        }),
        ..Wanted::again(target, LinkKind::Rollback)
    };
    make(tx, wanted)
}
