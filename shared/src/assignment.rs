//! What an agent should make true, and what it reports: the levels of the link (agent.md §1).
//!
//! Plain values; the shells convert them to and from the wire.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::id::{DeploymentId, Name, Version};
use crate::measurement::{CheckWish, ObservedCheck};
use crate::spec::{AssetKind, FileSpec, HealthCheck, Port, RunSpec, ScopeTraffic};
use crate::time::{Span, Timestamp};
use crate::verdict::histogram::Histogram;
use crate::weight::Weight;

/// Fences assignments: a lower one than the agent's highest never takes effect.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize,
)]
pub struct Generation {
    /// Raised by restore and force-new-cluster.
    pub epoch: u64,
    /// Index of the last log entry that changed this agent's assignments.
    pub index: u64,
}

/// The complete wish for one agent. Equal generation means equal content.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Assignments {
    /// See [`Generation`].
    pub generation: Generation,
    /// Ordered by scope, then deployment.
    pub items: Vec<Assignment>,
    /// Smallest interval of reports while a deployment concerns this agent; none: 10 s.
    pub report_interval: Option<Span>,
}

/// The wish for one version of one scope on one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The scope.
    pub scope: Name,
    /// The version's deployment: the key of the place.
    pub deployment: DeploymentId,
    /// Which part it plays.
    pub role: Role,
    /// Instances wanted.
    pub count: u32,
    /// The application.
    pub application: Name,
    /// The release.
    pub release: Version,
    /// What to fetch and unpack.
    pub asset: AssetWish,
    /// How to run it; `env` holds the plain parameters that are environment variables already.
    pub run: RunSpec,
    /// The other parameters: secrets and files, ordered by variable.
    #[serde(default)]
    pub parameters: Vec<ParameterWish>,
    /// Listener of the proxy.
    pub port: Port,
    /// How requests come in there.
    #[serde(default)]
    pub traffic: ScopeTraffic,
    /// How an instance is found healthy.
    pub health_check: HealthCheck,
    /// How far it should be.
    pub state: WishedState,
    /// Share of the scope's traffic on this agent.
    pub weight: Weight,
    /// The order invariant may be broken: the old one stops before the new one starts.
    pub may_interrupt: bool,
    /// Time for open requests when traffic leaves.
    pub drain: Span,
    /// Restarts until an instance counts as failed.
    pub max_restarts: u32,
    /// Releases of the scope that stay on disk.
    pub keep_releases: u32,
    /// Dead-man guard; carried, not active yet.
    pub guard: Option<Guard>,
    /// What to ask its instances for while a deployment is under way; none: no rule names a metric
    /// of the application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrape: Option<Scrape>,
    /// Checks to make now, of this version on this agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckWish>,
}

/// What to ask instances for on their `/metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrape {
    /// The path.
    pub path: String,
    /// None: the instance's own port.
    pub port: Option<u16>,
    /// Series that rules name, as selectors; at most 64.
    pub series: Vec<String>,
}

/// A parameter that is a secret or a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterWish {
    /// The environment variable: of the value, or of the file's path.
    pub variable: String,
    /// The value.
    pub content: ParameterContent,
    /// None: it is an environment variable.
    pub file: Option<FileSpec>,
}

/// The value of a parameter in an assignment. Secrets travel beside the assignments and never
/// stand in them, so that neither the ledger nor a log of assignments can hold one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterContent {
    /// Itself.
    Plain(String),
    /// Digest of the sealed value: another value has another one, and the value does not follow
    /// from it.
    Secret(Digest),
}

/// What to fetch and unpack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssetWish {
    /// Its name in the release.
    pub name: Name,
    /// What it is.
    pub kind: AssetKind,
    /// Checked before anything is unpacked.
    pub sha256: Digest,
    /// Bytes.
    pub size: u64,
    /// Places in the order in which they are tried, the coordinators' store after them; empty: the
    /// store alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
}

/// Which part a version plays in its scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The one that is final.
    Active,
    /// The one that is rolled out.
    Candidate,
    /// Neither any more; it has yet to go.
    Retired,
}

/// How far a version should be on an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WishedState {
    /// Fetched, verified, unpacked.
    Staged,
    /// `count` instances up.
    Running,
    /// Up, without traffic, open requests ending.
    Drained,
    /// Gone.
    Absent,
}

/// Dead-man guard (agent.md §2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// Without contact for so long.
    pub lost_after: Span,
    /// The rule that then decides, as JSON of the strategy's schema.
    pub rule: String,
}

/// The complete observed state of an agent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Report {
    /// The agent's start counter.
    pub start: u64,
    /// Raises with each report of a start.
    pub sequence: u64,
    /// Generation of the assignments that the places were reconciled against.
    pub applied: Generation,
    /// Every place that the agent holds anything of.
    pub places: Vec<ObservedPlace>,
    /// The host.
    pub host: HostMetrics,
    /// What the agent knows to be wrong with itself.
    pub complaints: Vec<String>,
    /// The agent's proxy, as it told of itself last; none: it has none, or has not answered yet.
    #[serde(default)]
    pub proxy: Option<ProxyReport>,
}

/// The proxy of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProxyReport {
    /// Its process.
    pub pid: u32,
    /// The version of its program.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// Client connections that are open.
    pub connections: u64,
    /// Proxies that it has replaced and that still finish what is open.
    pub draining: Vec<DrainingProxy>,
}

/// A proxy that was replaced and finishes what is open.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DrainingProxy {
    /// Its process.
    pub pid: u32,
    /// The version of its program.
    pub version: String,
    /// When it was replaced.
    pub since: Timestamp,
    /// When it cuts off what is still open.
    pub until: Timestamp,
    /// Requests and connections that are still open.
    pub open: u64,
}

/// One version of one scope as it is on an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObservedPlace {
    /// The scope.
    pub scope: Name,
    /// The version's deployment.
    pub deployment: DeploymentId,
    /// Fetched, verified, unpacked.
    pub staged: bool,
    /// Its instances.
    pub instances: Vec<ObservedInstance>,
    /// What the data plane acknowledges to hold; none: no data plane knows it. Workers report the
    /// weight that was wished.
    pub weight: Option<Weight>,
    /// Requests under way.
    pub open_requests: u64,
    /// Weight 0 acknowledged, and no open requests or the drain time over.
    pub drained: bool,
    /// An error that trying again will not cure.
    pub permanent_error: Option<PermanentError>,
    /// The last error that trying again may cure.
    pub transient_error: Option<String>,
    /// The latest measurements of the checks that are wished.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<ObservedCheck>,
}

/// An error that trying again will not cure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermanentError {
    /// Which.
    pub kind: PermanentErrorKind,
    /// One line for a person: what, where.
    pub message: String,
}

/// Kinds of errors that trying again will not cure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PermanentErrorKind {
    /// The bytes are not those of the release.
    DigestMismatch,
    /// No room for the release.
    DiskFull,
    /// Somebody else listens on the scope's port.
    PortTaken,
    /// An instance used up its restarts.
    MaxRestarts,
    /// The archive has links out of its tree, set-uid bits, absolute paths …
    UnsafeArchive,
    /// The command cannot be started at all.
    StartFailed,
    /// No coordinator has the asset.
    AssetMissing,
    /// The scope's TLS certificate and key cannot be used.
    BadCertificate,
}

impl PermanentErrorKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::DigestMismatch,
        Self::DiskFull,
        Self::PortTaken,
        Self::MaxRestarts,
        Self::UnsafeArchive,
        Self::StartFailed,
        Self::AssetMissing,
        Self::BadCertificate,
    ];

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DigestMismatch => "DIGEST_MISMATCH",
            Self::DiskFull => "DISK_FULL",
            Self::PortTaken => "PORT_TAKEN",
            Self::MaxRestarts => "MAX_RESTARTS",
            Self::UnsafeArchive => "UNSAFE_ARCHIVE",
            Self::StartFailed => "START_FAILED",
            Self::AssetMissing => "ASSET_MISSING",
            Self::BadCertificate => "BAD_CERTIFICATE",
        }
    }
}

/// One instance of a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObservedInstance {
    /// `tidegate-<scope>-<short>-<ordinal>`.
    pub id: String,
    /// 0 to `count` − 1.
    pub ordinal: u32,
    /// How it does.
    pub state: InstanceState,
    /// Since the place was made.
    pub restarts: u32,
    /// Its own port; 0: none.
    pub port: u16,
    /// 0: no process.
    pub pid: u32,
    /// Start of the counters; another stamp means that they began again.
    pub start_stamp: Timestamp,
    /// Cumulative since then.
    pub counters: Counters,
    /// How its process last ended, with the last lines of its output.
    pub last_exit: Option<String>,
    /// Basis points of one core.
    pub cpu_basis_points: u32,
    /// Resident bytes.
    pub memory_bytes: u64,
    /// The application's own metrics that rules name, as last told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub app: Vec<AppSample>,
}

/// A value that an application exposes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppSample {
    /// The selector; values of several series that fit it are added up.
    pub series: String,
    /// Upper edge of a histogram's bucket, as written; none: no bucket.
    pub edge: Option<String>,
    /// Finite. Counters are cumulative.
    pub value: f64,
}

/// How an instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Started, not found healthy yet.
    Starting,
    /// Up.
    Healthy,
    /// Its checks fail.
    Unhealthy,
    /// It ended; waiting to be started again.
    Backoff,
    /// Being stopped.
    Stopping,
    /// Its restarts are used up.
    Failed,
}

impl InstanceState {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Backoff => "backoff",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }
}

/// Cumulative counts of an instance; health checks are not among the requests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Answered requests.
    pub requests: u64,
    /// Of them 4xx.
    pub client_errors: u64,
    /// Of them 5xx, and requests that the instance never answered.
    pub server_errors: u64,
    /// Health checks made.
    pub health_checks: u64,
    /// Of them failed.
    pub health_check_failures: u64,
    /// Of answered requests.
    pub latency: Histogram,
    /// First 5xx.
    pub first_error: Option<Timestamp>,
    /// Raw connections (`protocol: tcp`).
    #[serde(default)]
    pub connections: u64,
    /// Bytes from clients: bodies, tunnels and raw connections.
    #[serde(default)]
    pub bytes_in: u64,
    /// Bytes to clients, likewise.
    #[serde(default)]
    pub bytes_out: u64,
}

/// The host as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostMetrics {
    /// Basis points of all cores.
    pub cpu_basis_points: u32,
    /// Bytes.
    pub memory_total: u64,
    /// Bytes.
    pub memory_used: u64,
    /// Bytes of the file system that holds the agent's folder.
    pub disk_total: u64,
    /// Bytes of it that are free to the agent.
    pub disk_available: u64,
}

/// Facts of a host, told at each connection: `os`, `arch`, `hostname`, `cores`, `memory` …
pub type Facts = BTreeMap<String, String>;
