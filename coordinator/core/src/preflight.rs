//! What would stop a deployment, told before one is made: `tidegate scope check`.
//!
//! Pure. The state machine itself is asked, on a copy of the state, so that the answer cannot
//! differ from what a deployment would meet; then the agents are looked at. What only a host knows
//! (who holds a port, how much room is left) is asked by the shell and judged here. Decides nothing
//! and promises nothing: all of it may change before a deployment is made.

use serde::{Deserialize, Serialize};
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name, Version};
use tidegate_shared::spec::{
    AssetKind, AssetSpec, Limits, Port, ReleaseStatus, ScopeSpec, StrategySpec,
};
use tidegate_shared::time::Timestamp;

use crate::apply::apply;
use crate::command::{
    Actor, Command, CreateDeployments, Entry, Item, OnConflict, Outcome, Reply, RequestKey,
};
use crate::desired::scope_items;
use crate::observed::Observed;
use crate::plan::{GateAnswer, gates};
use crate::policy::guardrail;
use crate::rejection::Rejection;
use crate::state::{Scope, State};

/// An unpacked archive is taken to be so many times as large as the file.
const UNPACKED: u64 = 4;

/// Log index of the rehearsal: above every real one, with room behind it.
const REHEARSAL: u64 = u64::MAX / 2;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Good,
    /// A deployment would wait for it, or might fail by it.
    Warning,
    /// A deployment would be refused, or fail.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// `scope`, `release`, or the name of an agent.
    pub subject: String,
    /// What was found, in one line.
    pub message: String,
    /// The next step; empty if there is none.
    pub hint: String,
}

impl Finding {
    fn new(severity: Severity, subject: impl ToString, message: impl Into<String>) -> Self {
        Self {
            severity,
            subject: subject.to_string(),
            message: message.into(),
            hint: String::new(),
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

/// What is asked of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostQuestion {
    /// Of this agent.
    pub agent: Name,
    /// Whether the proxy could listen on this port; none: it does already, or need not.
    pub port: Option<u16>,
    /// Whether this asset is there already; none: no release to look for.
    pub asset: Option<AssetQuestion>,
    /// Whether an instance could be held to these.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
}

/// The asset that a host would need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssetQuestion {
    /// Its digest.
    pub digest: Digest,
    /// Bytes that it takes on disk while it is unpacked: the file and, by estimate, its content.
    pub room: u64,
}

/// What a host answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAnswer {
    /// Why the port cannot be had; none: it can, or was not asked for.
    pub port_trouble: Option<String>,
    /// The asset is there.
    pub is_staged: bool,
    /// Bytes left for releases; none: not known.
    pub room: Option<u64>,
    /// Why an instance cannot be held to the limits, empty: it can; none: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_trouble: Option<String>,
}

/// What is known without the hosts, and what to ask them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preflight {
    /// The release that was looked at; none: there is none that could be deployed.
    pub version: Option<Version>,
    /// In the order in which a deployment would meet them.
    pub findings: Vec<Finding>,
    /// For connected agents only.
    pub questions: Vec<HostQuestion>,
}

/// Looks at a scope as if `version` (none: the newest release that is ready) were deployed to it
/// now with `strategy` (none: the default).
///
/// # Errors
/// There is no such scope.
pub fn preflight(
    state: &State,
    observed: &Observed,
    now: Timestamp,
    name: &Name,
    version: Option<&Version>,
    strategy: Option<&Name>,
) -> Result<Preflight, Rejection> {
    let scope = state
        .scopes
        .get(name)
        .ok_or_else(|| Rejection::new(Reason::NotFound, format!("there is no scope \"{name}\"")))?;
    let version = version.cloned().or_else(|| newest_ready(state, scope));
    let mut findings = Vec::new();
    match &version {
        Some(version) => findings.extend(rehearse(state, now, scope, name, version, strategy)),
        None => {
            let application = &scope.spec.application;
            let line = format!("application \"{application}\" has no release that is ready");
            findings.push(
                Finding::new(Severity::Error, "release", line)
                    .hint("publish one with `tidegate release create`"),
            );
        }
    }
    let asset = version
        .as_ref()
        .and_then(|version| asset_of(state, &scope.spec, version));
    let mut questions = Vec::new();
    let mut matching = 0;
    for (agent, known) in &state.agents {
        if !scope.spec.agents.matches(&known.meta.labels) {
            continue;
        }
        matching += 1;
        if observed.is_lost(agent, now) {
            let line = "it is lost: nothing is heard of it";
            findings.push(
                Finding::new(Severity::Warning, agent, line)
                    .hint(format!("see `tidegate agent get {agent}`")),
            );
            continue;
        }
        let facts = &known.facts;
        findings.extend(platform(agent, facts.get("os"), facts.get("arch"), asset));
        let rival = rival(state, name, &scope.spec, agent);
        let has_rival = rival.is_some();
        findings.extend(rival);
        let is_served = !scope_items(state, name, agent).0.is_empty();
        questions.push(HostQuestion {
            agent: agent.clone(),
            port: match scope.spec.port {
                Port::Number(port) if !has_rival && !is_served => Some(port),
                Port::Number(_) | Port::None => None,
            },
            asset: asset.map(question_of),
            limits: asset.map_or_else(Limits::default, |asset| {
                scope.spec.limits.or(&asset.run.limits)
            }),
        });
    }
    findings.extend(count(scope, matching, state.agents.len()));
    Ok(Preflight {
        version,
        findings,
        questions,
    })
}

/// What a host's answer means; none: it gave no answer.
#[must_use]
pub fn judge(question: &HostQuestion, answer: Option<&HostAnswer>) -> Vec<Finding> {
    let agent = &question.agent;
    let Some(answer) = answer else {
        let line =
            "it is not connected, or did not answer in time: its port and disk are not known";
        return vec![
            Finding::new(Severity::Warning, agent, line)
                .hint(format!("see `tidegate agent get {agent}`")),
        ];
    };
    let mut findings = Vec::new();
    match (&answer.port_trouble, question.port) {
        (Some(trouble), _) => findings.push(
            Finding::new(Severity::Error, agent, trouble.clone())
                .hint("stop the other program, or give the scope another port"),
        ),
        (None, Some(port)) => {
            findings.push(Finding::new(
                Severity::Good,
                agent,
                format!("port {port} is free"),
            ));
        }
        (None, None) => {}
    }
    if let Some(asset) = question.asset {
        findings.push(match answer.room {
            _ if answer.is_staged => {
                Finding::new(Severity::Good, agent, "it has the release already")
            }
            Some(room) if room < asset.room => Finding::new(
                Severity::Error,
                agent,
                format!(
                    "the disk has room for {room} bytes; the release needs about {}",
                    asset.room
                ),
            )
            .hint("make room on the disk of the agent's folder"),
            Some(_) => Finding::new(Severity::Good, agent, "the disk has room for the release"),
            None => Finding::new(
                Severity::Warning,
                agent,
                "how much room the disk has is not known",
            ),
        });
    }
    findings.extend(limits(agent, &question.limits, answer));
    findings
}

/// Whether a host can hold an instance to its limits.
fn limits(agent: &Name, wanted: &Limits, answer: &HostAnswer) -> Option<Finding> {
    if wanted.is_empty() {
        return None;
    }
    Some(match answer.limit_trouble.as_deref() {
        Some("") => Finding::new(
            Severity::Good,
            agent,
            "instances can be held to their limits",
        ),
        Some(trouble) => Finding::new(Severity::Error, agent, trouble)
            .hint("an instance would not start there; see \"Limits\" in docs/guides/hooks.md"),
        None => Finding::new(
            Severity::Warning,
            agent,
            "whether instances can be held to their limits is not known",
        )
        .hint("upgrade the agent: an older one cannot say"),
    })
}

fn newest_ready(state: &State, scope: &Scope) -> Option<Version> {
    let of_application = state
        .releases
        .iter()
        .filter(|((application, _), _)| *application == scope.spec.application);
    of_application
        .filter(|(_, release)| release.status == ReleaseStatus::Ready)
        .max_by_key(|(_, release)| release.meta.created_at)
        .map(|((_, version), _)| version.clone())
}

fn asset_of<'a>(state: &'a State, spec: &ScopeSpec, version: &Version) -> Option<&'a AssetSpec> {
    let release = state
        .releases
        .get(&(spec.application.clone(), version.clone()))?;
    release.spec.asset_for(spec.asset.as_ref())
}

fn question_of(asset: &AssetSpec) -> AssetQuestion {
    let unpacked = if asset.kind == AssetKind::Binary {
        1
    } else {
        UNPACKED
    };
    AssetQuestion {
        digest: asset.sha256,
        room: asset.size.saturating_mul(1 + unpacked),
    }
}

/// The deployment that a command made, if it made one.
fn made(outcome: Option<&Outcome>) -> Result<Option<DeploymentId>, &Rejection> {
    match outcome {
        Some(Ok(Reply::Deployments(ids))) => Ok(ids.first().copied()),
        Some(Err(rejection)) => Err(rejection),
        Some(Ok(
            Reply::Done
            | Reply::Named(_)
            | Reply::Object { .. }
            | Reply::Group { .. }
            | Reply::GroupActed { .. }
            | Reply::Joined { .. },
        ))
        | None => Ok(None),
    }
}

/// Makes the deployment on a copy of the state and asks what would be in its way.
fn rehearse(
    state: &State,
    now: Timestamp,
    scope: &Scope,
    name: &Name,
    version: &Version,
    strategy: Option<&Name>,
) -> Vec<Finding> {
    let mut copy = state.clone();
    let command = Command::CreateDeployments(CreateDeployments {
        application: scope.spec.application.clone(),
        version: version.clone(),
        scopes: vec![name.clone()],
        strategy: strategy.cloned(),
        overrides: StrategySpec::default(),
        labels: Default::default(),
        on_conflict: OnConflict::Fail,
    });
    let item = Item {
        actor: Actor::System,
        request: RequestKey::Planner(Digest::of(b"rehearsal")),
        command: Box::new(command),
    };
    let entry = Entry {
        at: state.at,
        items: vec![item],
    };
    let applied = apply(&mut copy, REHEARSAL, &entry);
    let made = match made(applied.first().map(|applied| &applied.outcome)) {
        Ok(made) => made,
        Err(rejection) => {
            let line = format!("{} [{}]", rejection.message, rejection.reason.code());
            return vec![
                Finding::new(Severity::Error, "scope", line).hint(rejection.reason.hint()),
            ];
        }
    };
    let Some((scope, deployment)) = made.and_then(|id| {
        let deployment = copy.deployments.get(&id)?;
        Some((copy.scopes.get(name)?, deployment))
    }) else {
        return Vec::new();
    };
    let mut findings = vec![Finding::new(
        Severity::Good,
        "scope",
        format!("release {version} would be taken"),
    )];
    if let Err(refused) = guardrail::check_all(&copy, deployment, now.max(copy.at)) {
        // A warning: nobody asks here, and a guardrail may be about who does.
        let line = format!("{} [{}]", refused.message, refused.reason.code());
        let finding = Finding::new(Severity::Warning, "scope", line);
        return vec![finding.hint(refused.reason.hint())];
    }
    for gate in gates(&copy, now.max(copy.at), name, scope, deployment, None) {
        let severity = match gate.answer {
            // Whether agents match is told with their number.
            _ if gate.kind == "agents" => continue,
            GateAnswer::Allowed => continue,
            GateAnswer::Pending => Severity::Warning,
            GateAnswer::Denied => Severity::Error,
        };
        let line = format!("it would wait: {} ({})", gate.why, gate.kind);
        findings.push(Finding::new(severity, "scope", line));
    }
    findings
}

fn count(scope: &Scope, matching: usize, all: usize) -> Option<Finding> {
    let selector = scope.spec.agents.to_string();
    let selector = if selector.is_empty() {
        "every agent".to_owned()
    } else {
        format!("selector {selector}")
    };
    if matching > 0 {
        let line = format!("{matching} of {all} agents match ({selector})");
        return Some(Finding::new(Severity::Good, "scope", line));
    }
    let line = format!("no agent matches ({selector}); there are {all} in the cluster");
    Some(Finding::new(Severity::Error, "scope", line).hint(
        "join a host with `tidegate token create agent --labels …`, or change the scope's selector",
    ))
}

fn platform(
    agent: &Name,
    os: Option<&String>,
    arch: Option<&String>,
    asset: Option<&AssetSpec>,
) -> Option<Finding> {
    let asset = asset.filter(|asset| asset.platform != "any")?;
    let own = format!("{}/{}", os?, arch?);
    if asset.platform == own {
        return None;
    }
    let line = format!(
        "the host is {own}; asset \"{}\" is for {}",
        asset.name, asset.platform
    );
    Some(
        Finding::new(Severity::Error, agent, line)
            .hint("name another asset in the scope, or keep the scope to hosts of that platform"),
    )
}

/// Another scope that listens, or will, on the same port of the agent.
fn rival(state: &State, name: &Name, spec: &ScopeSpec, agent: &Name) -> Option<Finding> {
    let Port::Number(port) = spec.port else {
        return None;
    };
    let mut others = state.scopes.iter().filter(|(other, scope)| {
        *other != name
            && scope.spec.port == spec.port
            && !scope_items(state, other, agent).0.is_empty()
    });
    let (other, _) = others.next()?;
    let line = format!("port {port} is scope \"{other}\"'s there");
    Some(
        Finding::new(Severity::Error, agent, line)
            .hint("give the scopes different ports, or agents of their own"),
    )
}
