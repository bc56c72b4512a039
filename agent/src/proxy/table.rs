//! The words of the proxy's control socket: the route table it is told, and what it holds and has counted.
//!
//! Plain values without behaviour beyond checking and adding up. Everything is a level: a table is the
//! complete wish, an answer is the complete state, so a lost or repeated message does no harm. Unknown
//! fields are ignored, because an agent may talk to a proxy of an older or newer build. The proxy, the
//! agent's traffic providers and the agent's reports use these types.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tidegate_shared::error::Reason;
pub use tidegate_shared::spec::{HeaderRoute, Protocol, StickySpec};
use tidegate_shared::verdict::histogram::Histogram;

/// All of a version's share, in basis points.
pub const FULL_WEIGHT: u16 = 10_000;

/// Most scopes in a table.
pub const MAX_SCOPES: usize = 1_024;
/// Most versions of one scope.
pub const MAX_VERSIONS: usize = 16;
/// Most instances of one version.
pub const MAX_INSTANCES: usize = 256;
/// Longest name of a scope, deployment or instance, in bytes.
pub const MAX_NAME: usize = 256;

/// How long an instance may stay silent before its request fails with 504, unless the scope says otherwise.
pub const RESPONSE_TIMEOUT_MS: u64 = 60_000;

/// Every listener and route that the proxy should hold: absolute, never a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// One route per scope; a scope that is not here is dropped.
    pub scopes: Vec<ScopeRoute>,
}

/// One scope: where it listens and who serves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopeRoute {
    /// The scope's name.
    pub scope: String,
    /// The address that clients connect to.
    pub listen: SocketAddr,
    /// What is spoken there.
    #[serde(default)]
    pub protocol: Protocol,
    /// Clients speak TLS; `None`: cleartext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsRoute>,
    /// Instances are spoken to in HTTP/2 with prior knowledge.
    #[serde(default)]
    pub http2: bool,
    /// Clients stay with the version that served them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<StickySpec>,
    /// Requests with this header go to the version that is `on_demand`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<HeaderRoute>,
    /// The agent's name for these settings; comes back in [`HeldScope`] once they are in force.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// How long an instance may stay silent before the client gets a 504, in milliseconds, ≥ 1.
    #[serde(default = "response_timeout_ms")]
    pub response_timeout_ms: u64,
    /// The versions, in any order.
    pub versions: Vec<VersionRoute>,
}

/// What a listener's clients are shown; both PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsRoute {
    /// The certificate with its chain.
    pub certificate: String,
    /// The private key; empty in a stored table, which does not hold it.
    pub key: String,
}

impl std::fmt::Debug for TlsRoute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsRoute(withheld)")
    }
}

/// One version of a scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRoute {
    /// The deployment that brought this version.
    pub deployment: String,
    /// Its share of the requests in basis points, 0…10,000. Shares count relative to the sum over the
    /// versions that have a healthy instance.
    pub weight: u16,
    /// True: it gets the requests that ask for it by the scope's `route`, whatever its weight.
    #[serde(default)]
    pub on_demand: bool,
    /// True: no new requests whatever the weight says; open ones go on.
    #[serde(default)]
    pub draining: bool,
    /// True: no new requests, and open ones are cut off at once (the end of the drain time).
    #[serde(default)]
    pub close: bool,
    /// Its instances.
    pub instances: Vec<InstanceRoute>,
}

/// One instance of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRoute {
    /// The instance's id, unique within its version.
    pub instance: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// False: it gets no new requests, open ones go on and its counters stay.
    #[serde(default = "healthy")]
    pub healthy: bool,
}

fn response_timeout_ms() -> u64 {
    RESPONSE_TIMEOUT_MS
}

fn healthy() -> bool {
    true
}

impl VersionRoute {
    /// Whether new requests may go to this version by its weight.
    #[must_use]
    pub fn takes_requests(&self) -> bool {
        self.weight > 0 && !self.draining && !self.close
    }

    /// Whether new requests may go to this version if they ask for it.
    #[must_use]
    pub fn takes_demands(&self) -> bool {
        self.on_demand && !self.draining && !self.close
    }
}

/// Why a table is refused. Nothing of a refused table is applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A list is longer than its limit.
    #[error("{place}: {count} {what}, the limit is {limit}")]
    TooMany {
        /// The scope or version, or "table".
        place: String,
        /// What is counted.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A name is empty, too long or has control characters.
    #[error(
        "{place}: the {what} name {name:?} must have 1 to {MAX_NAME} bytes and no control characters"
    )]
    BadName {
        /// The scope or version, or "table".
        place: String,
        /// What is named.
        what: &'static str,
        /// The name, cut to a length that can be shown.
        name: String,
    },
    /// A name stands there twice.
    #[error("{place}: the {what} {name:?} stands there twice")]
    Repeated {
        /// The scope or version, or "table".
        place: String,
        /// What is named.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A weight is above 10,000.
    #[error(
        "scope {scope:?}, deployment {deployment:?}: the weight {weight} is above 10000 basis points"
    )]
    BadWeight {
        /// The scope.
        scope: String,
        /// The deployment.
        deployment: String,
        /// The weight that was given.
        weight: u16,
    },
    /// An address cannot be listened on or connected to.
    #[error("scope {scope:?}: the address {address} of {what} {reason}")]
    BadAddress {
        /// The scope.
        scope: String,
        /// The listener, or the instance by name.
        what: String,
        /// The address that was given.
        address: SocketAddr,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The response timeout is zero.
    #[error("scope {scope:?}: response_timeout_ms must be at least 1")]
    BadTimeout {
        /// The scope.
        scope: String,
    },
}

impl Table {
    /// Itself without private keys, for the disk.
    pub(super) fn without_keys(&self) -> Self {
        let mut table = self.clone();
        for tls in table.scopes.iter_mut().filter_map(|s| s.tls.as_mut()) {
            tls.key.clear();
        }
        table
    }

    /// Checks the whole table.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn validate(&self) -> Result<(), TableError> {
        within("table", "scopes", self.scopes.len(), MAX_SCOPES)?;
        let mut names = BTreeSet::new();
        let mut listeners = BTreeSet::new();
        for scope in &self.scopes {
            fresh_name("table", "scope", &scope.scope, &mut names)?;
            if !listeners.insert(scope.listen) {
                return Err(TableError::BadAddress {
                    scope: scope.scope.clone(),
                    what: "its listener".into(),
                    address: scope.listen,
                    reason: "is the listener of another scope already",
                });
            }
            scope.validate()?;
        }
        Ok(())
    }
}

impl ScopeRoute {
    fn validate(&self) -> Result<(), TableError> {
        let place = format!("scope {:?}", self.scope);
        if self.listen.port() == 0 {
            return Err(self.bad_address("its listener", self.listen, "has port 0"));
        }
        if self.response_timeout_ms == 0 {
            return Err(TableError::BadTimeout {
                scope: self.scope.clone(),
            });
        }
        within(&place, "versions", self.versions.len(), MAX_VERSIONS)?;
        let mut deployments = BTreeSet::new();
        for version in &self.versions {
            fresh_name(&place, "deployment", &version.deployment, &mut deployments)?;
            if version.weight > FULL_WEIGHT {
                return Err(TableError::BadWeight {
                    scope: self.scope.clone(),
                    deployment: version.deployment.clone(),
                    weight: version.weight,
                });
            }
            let place = format!("{place}, deployment {:?}", version.deployment);
            within(&place, "instances", version.instances.len(), MAX_INSTANCES)?;
            let mut instances = BTreeSet::new();
            for instance in &version.instances {
                fresh_name(&place, "instance", &instance.instance, &mut instances)?;
                self.check_instance(instance)?;
            }
        }
        Ok(())
    }

    fn check_instance(&self, instance: &InstanceRoute) -> Result<(), TableError> {
        let what = format!("instance {:?}", instance.instance);
        if instance.address.port() == 0 {
            return Err(self.bad_address(&what, instance.address, "has port 0"));
        }
        if instance.address == self.listen {
            return Err(self.bad_address(&what, instance.address, "is the scope's own listener"));
        }
        Ok(())
    }

    fn bad_address(&self, what: &str, address: SocketAddr, reason: &'static str) -> TableError {
        TableError::BadAddress {
            scope: self.scope.clone(),
            what: what.to_owned(),
            address,
            reason,
        }
    }
}

fn within(place: &str, what: &'static str, count: usize, limit: usize) -> Result<(), TableError> {
    if count > limit {
        return Err(TableError::TooMany {
            place: place.to_owned(),
            what,
            count,
            limit,
        });
    }
    Ok(())
}

fn fresh_name<'a>(
    place: &str,
    what: &'static str,
    name: &'a str,
    seen: &mut BTreeSet<&'a str>,
) -> Result<(), TableError> {
    let place = place.to_owned();
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let name = name.chars().take(64).collect();
        return Err(TableError::BadName { place, what, name });
    }
    if !seen.insert(name) {
        return Err(TableError::Repeated {
            place,
            what,
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// What the data plane holds and has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Every scope of the accepted table, in the order of names.
    pub scopes: Vec<HeldScope>,
    /// Set when the accepted table could not be written to disk: it is in force, but a restart of the
    /// proxy would come back with an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist_problem: Option<String>,
    /// Who answers; `None` from a data plane that is no process of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProxyProcess>,
    /// Proxies that this one has replaced and that still finish their connections, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<DrainingProxy>,
    /// Why the running proxy could not be replaced by the agent's own version; set by the agent's side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_problem: Option<String>,
}

/// A running proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyProcess {
    /// Its process id.
    pub pid: u32,
    /// The version of its program.
    pub version: String,
    /// Which file of that version; empty from a build that does not tell.
    #[serde(default)]
    pub build: String,
    /// When it started, unix milliseconds.
    pub started_at: u64,
    /// Client connections that are open, not counting those that became tunnels.
    #[serde(default)]
    pub connections: u64,
}

/// A proxy that handed its sockets over and finishes what is open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainingProxy {
    /// Its process id.
    pub pid: u32,
    /// The version of its program.
    pub version: String,
    /// When it handed over, unix milliseconds.
    pub since: u64,
    /// When it cuts off what is still open, unix milliseconds.
    pub until: u64,
    /// Requests, tunnels and client connections that are still open.
    pub open: u64,
}

/// One scope as it is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldScope {
    /// The scope's name.
    pub scope: String,
    /// Where clients are served; `None` when no listener could be had, and then no weight is held.
    pub listen: Option<SocketAddr>,
    /// Why the wanted listener is not held. The proxy tries again each second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<ListenProblem>,
    /// The `revision` of the settings in force.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// Requests that were refused with 503 because no version had a healthy instance, since the proxy
    /// first saw the scope.
    #[serde(default)]
    pub unrouted: u64,
    /// The versions, in the order of deployment ids.
    pub versions: Vec<HeldVersion>,
}

/// Why a listener is not held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenProblem {
    /// The kind, for programs.
    pub kind: ListenProblemKind,
    /// One line for people: names the scope, the address and, when known, the holder.
    pub message: String,
}

/// The kinds of [`ListenProblem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenProblemKind {
    /// Another socket holds the port.
    AddressInUse,
    /// No interface of this host has the address.
    AddressNotHere,
    /// The port needs a right that the proxy does not have.
    NotPermitted,
    /// Certificate and key cannot be used.
    Certificate,
    /// Certificate or key have not been told yet: the stored table does not hold keys.
    Waiting,
    /// Anything else; the message carries the system's reason.
    Other,
}

impl ListenProblemKind {
    /// Its entry in the table of error codes.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::AddressInUse => Reason::AddressInUse,
            Self::AddressNotHere
            | Self::NotPermitted
            | Self::Certificate
            | Self::Waiting
            | Self::Other => Reason::Config,
        }
    }
}

/// One version as it is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldVersion {
    /// The deployment.
    pub deployment: String,
    /// The weight in force, basis points.
    pub weight: u16,
    /// It gets the requests that ask for it, whatever its weight.
    #[serde(default)]
    pub on_demand: bool,
    /// True when it gets no new requests whatever its weight.
    #[serde(default)]
    pub draining: bool,
    /// Requests (and upgraded connections) that are open now.
    pub open_requests: u64,
    /// When the first 5xx was answered, unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_error_at: Option<u64>,
    /// When the latest 5xx was answered, unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_at: Option<u64>,
    /// Its instances in the order of ids, those that left the table with open requests or counts too.
    pub instances: Vec<HeldInstance>,
}

/// One instance as it is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldInstance {
    /// The instance's id.
    pub instance: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// False when it left the table while its version stayed: counters go on, no new requests.
    pub listed: bool,
    /// As in the table; false when it is not listed.
    pub healthy: bool,
    /// Requests (and upgraded connections) that are open now.
    pub open_requests: u64,
    /// What was counted.
    pub counters: Counters,
}

/// Cumulative counts of one instance, or of a version as their sum.
///
/// Status, latency and `requests` are counted together when the head of the answer arrives, so
/// `requests` = sum of `responses` + `abandoned`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// When counting began, unix milliseconds: another value means that the counts began again at zero.
    pub since_ms: u64,
    /// Requests that ended in an answer or were given up by the client.
    pub requests: u64,
    /// Answers by class: 1xx, 2xx, 3xx, 4xx, 5xx. A request that the instance failed to answer counts
    /// as 5xx.
    pub responses: [u64; 5],
    /// Connections that the instance refused. Not errors by themselves: the request went to another
    /// instance; when the version had none left, one 5xx is counted beside it.
    pub connect_errors: u64,
    /// 5xx that the proxy made because the instance gave no answer (also in `responses[4]`).
    pub failures: u64,
    /// Answers that broke off after their head; not in `failures`.
    pub aborted: u64,
    /// Requests given up by the client, or cut off by `close`, before the head of the answer came.
    pub abandoned: u64,
    /// Microseconds from the request's head to the answer's head.
    pub latency_us: Histogram,
    /// Raw connections that an instance took (`protocol: tcp`); not requests.
    #[serde(default)]
    pub connections: u64,
    /// Bytes from clients: bodies of requests, tunnels, raw connections. A request's are counted at its
    /// end.
    #[serde(default)]
    pub bytes_in: u64,
    /// Bytes to clients: bodies of answers, tunnels, raw connections.
    #[serde(default)]
    pub bytes_out: u64,
}

impl Counters {
    /// Adds the counts of another instance; the stamp becomes the older one.
    pub fn merge(&mut self, other: &Self) {
        self.since_ms = match self.since_ms {
            0 => other.since_ms,
            since => since.min(other.since_ms),
        };
        self.requests += other.requests;
        for (sum, count) in self.responses.iter_mut().zip(other.responses) {
            *sum += count;
        }
        self.connect_errors += other.connect_errors;
        self.failures += other.failures;
        self.aborted += other.aborted;
        self.abandoned += other.abandoned;
        self.latency_us.merge(&other.latency_us);
        self.connections += other.connections;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
    }

    /// Answers of class 5xx.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.responses[4]
    }
}

impl HeldVersion {
    /// The sum over the instances.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for instance in &self.instances {
            sum.merge(&instance.counters);
        }
        sum
    }
}

impl HeldScope {
    /// The version of a deployment.
    #[must_use]
    pub fn version(&self, deployment: &str) -> Option<&HeldVersion> {
        self.versions
            .iter()
            .find(|version| version.deployment == deployment)
    }
}

impl Held {
    /// The scope of that name.
    #[must_use]
    pub fn scope(&self, scope: &str) -> Option<&HeldScope> {
        self.scopes.iter().find(|held| held.scope == scope)
    }

    /// The weight that is acknowledged for a deployment: 0 when it is draining or not there, `None` when
    /// the scope has no listener or is unknown, so that nothing is acknowledged.
    #[must_use]
    pub fn acknowledged_weight(&self, scope: &str, deployment: &str) -> Option<u16> {
        let scope = self.scope(scope)?;
        scope.listen?;
        Some(match scope.version(deployment) {
            Some(version) if !version.draining => version.weight,
            Some(_) | None => 0,
        })
    }
}

/// What a client of the control socket asks: one JSON object per line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ControlRequest {
    /// Who are you?
    Ping,
    /// What is held, what was counted?
    Observe,
    /// Hold this table.
    Converge {
        /// The complete table.
        table: Table,
    },
    /// Finish open requests for at most `grace_ms`, then exit.
    Shutdown {
        /// The longest wait in milliseconds.
        #[serde(default = "grace_ms")]
        grace_ms: u64,
    },
    /// Give the sockets to whoever asks and finish what is open, for at most `drain_ms`. From here on the
    /// connection speaks the words of the hand-over.
    HandOver {
        /// The longest wait in milliseconds.
        drain_ms: u64,
    },
}

fn grace_ms() -> u64 {
    super::GRACE.as_millis() as u64
}

/// What the proxy answers: one JSON object per line, in the order of the requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum ControlReply {
    /// To `ping`.
    Pong(ProxyProcess),
    /// To `observe` and `converge`.
    Held(Held),
    /// The table was refused as a whole; the connection stays.
    Refused {
        /// What is wrong and where.
        message: String,
    },
    /// The message could not be read; the connection ends.
    Malformed {
        /// What is wrong with it.
        message: String,
    },
    /// To `shutdown`.
    Stopping,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        serde_json::from_value(serde_json::json!({"scopes": [{
            "scope": "shop/eu", "listen": "127.0.0.1:8080",
            "versions": [{"deployment": "d1", "weight": 10000,
                "instances": [{"instance": "i1", "address": "127.0.0.1:9001"}]}]
        }]}))
        .expect("a table")
    }

    #[test]
    fn defaults_are_filled_in() {
        let table = table();
        assert_eq!(table.validate(), Ok(()));
        assert_eq!(table.scopes[0].response_timeout_ms, RESPONSE_TIMEOUT_MS);
        assert!(table.scopes[0].versions[0].instances[0].healthy);
        assert!(table.scopes[0].versions[0].takes_requests());
    }

    /// A rule of the table: what breaks it, and the words that the refusal must have.
    type Case = (fn(&mut Table), &'static str);

    #[test]
    fn every_rule_names_its_place() {
        let cases: [Case; 9] = [
            (|t| t.scopes[0].scope.clear(), "table: the scope name \"\""),
            (
                |t| t.scopes.push(t.scopes[0].clone()),
                "the scope \"shop/eu\" stands there twice",
            ),
            (
                |t| t.scopes[0].listen.set_port(0),
                "its listener has port 0",
            ),
            (
                |t| t.scopes[0].response_timeout_ms = 0,
                "response_timeout_ms must be at least 1",
            ),
            (
                |t| t.scopes[0].versions[0].weight = 10_001,
                "the weight 10001 is above 10000",
            ),
            (
                |t| {
                    let version = t.scopes[0].versions[0].clone();
                    t.scopes[0].versions.push(version);
                },
                "scope \"shop/eu\": the deployment \"d1\" stands there twice",
            ),
            (
                |t| t.scopes[0].versions[0].instances[0].address = t.scopes[0].listen,
                "is the scope's own listener",
            ),
            (
                |t| t.scopes[0].versions[0].instances[0].instance = "a\nb".into(),
                "deployment \"d1\": the instance name",
            ),
            (
                |t| {
                    let mut scope = t.scopes[0].clone();
                    scope.scope = "other".into();
                    t.scopes.push(scope);
                },
                "is the listener of another scope already",
            ),
        ];
        for (break_it, words) in cases {
            let mut table = table();
            break_it(&mut table);
            let error = table.validate().expect_err(words).to_string();
            assert!(error.contains(words), "{error} lacks {words}");
        }
    }
}
