//! Scopes: places where one application runs.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    AutoDeploy, FieldErrors, HeaderRoute, HealthCheck, Limits, Protocol, ScopeTraffic, StickySpec,
    TlsSpec, check_variable,
};
use crate::id::Name;
use crate::selector::{LabelSelector, check_label};

/// A place where one application runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ScopeSpec {
    /// The application that runs here; cannot be changed.
    pub application: Name,
    /// The environment that it belongs to.
    pub environment: Name,
    /// What kind of place.
    #[serde(default, rename = "type")]
    pub kind: ScopeType,
    /// Region, country, zone …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dimensions: BTreeMap<String, String>,
    /// Which asset of a release it takes; none: the release's only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asset: Option<Name>,
    /// Which agents act for it. The empty selector matches every agent.
    #[serde(default)]
    pub agents: LabelSelector,
    /// Instances of a version on each agent; 1 to 100. Acts at once on both versions.
    #[serde(default = "one")]
    pub instances_per_agent: u32,
    /// Listener of the proxy.
    pub port: Port,
    /// What is spoken there; default `http`.
    #[serde(default, skip_serializing_if = "Protocol::is_default")]
    pub protocol: Protocol,
    /// None: clients speak cleartext to the proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// Whether the proxy speaks HTTP/2 to the instances, as gRPC needs; clients always may.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub http2: bool,
    /// None: every request is spread anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<StickySpec>,
    /// None: weights alone decide which version gets a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<HeaderRoute>,
    /// None: the release's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Where the application's own metrics are; none: `/metrics` on the instance's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsSpec>,
    /// Restarts of an instance until it counts as failed; 0 to 1,000.
    #[serde(default = "five")]
    pub max_restarts: u32,
    /// Values of environment variables, above every other source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// What an instance may use, above what the asset says.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// New releases that it takes by itself; none: people deploy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_deploy: Option<AutoDeploy>,
}

/// Where an application exposes metrics of its own, in Prometheus' text format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MetricsSpec {
    /// The path; default `/metrics`.
    #[serde(default = "metrics_path")]
    pub path: String,
    /// Another port than the instance's `$PORT`, on the instance's address. All instances of a host
    /// share it, so it is for one instance per agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

fn metrics_path() -> String {
    "/metrics".to_owned()
}

impl Default for MetricsSpec {
    fn default() -> Self {
        Self {
            path: metrics_path(),
            port: None,
        }
    }
}

impl MetricsSpec {
    fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
        errors.require(
            self.path.starts_with('/') && self.path.bytes().all(plain) && self.path.len() <= 1_024,
            "path",
            "want a path such as /metrics",
        );
        errors.require(self.port != Some(0), "port", "want 1 to 65535");
        errors
    }
}

const fn one() -> u32 {
    1
}

const fn five() -> u32 {
    5
}

/// What kind of place a scope is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ScopeType {
    /// Processes on hosts, behind the agent's proxy.
    #[default]
    Hosts,
}

/// The listener of a scope's proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// A worker: no proxy.
    None,
    /// 1 to 65,535.
    Number(u16),
}

impl Port {
    /// The number, if it has one.
    pub const fn number(self) -> Option<u16> {
        match self {
            Self::None => None,
            Self::Number(number) => Some(number),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl Serialize for Port {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::Number(number) => serializer.serialize_u16(*number),
        }
    }
}

struct PortVisitor;

impl serde::de::Visitor<'_> for PortVisitor {
    type Value = Port;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port of 1 to 65535, or none")
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Port, E> {
        match u16::try_from(value) {
            Ok(number) if number > 0 => Ok(Port::Number(number)),
            Ok(_) | Err(_) => Err(E::custom(format!(
                "{value} is not a port: want 1 to 65535, or none"
            ))),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Port, E> {
        self.visit_u64(u64::try_from(value).unwrap_or(0))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Port, E> {
        if text == "none" {
            return Ok(Port::None);
        }
        self.visit_u64(text.parse().unwrap_or(0))
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PortVisitor)
    }
}

impl ScopeSpec {
    /// What it says about its traffic.
    pub fn traffic(&self) -> ScopeTraffic {
        ScopeTraffic {
            protocol: self.protocol,
            tls: self.tls.clone(),
            http2: self.http2,
            sticky: self.sticky.clone(),
            route: self.route.clone(),
        }
    }

    /// What is wrong with it.
    pub fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        errors.require(
            (1..=100).contains(&self.instances_per_agent),
            "instances_per_agent",
            "want 1 to 100",
        );
        errors.require(self.max_restarts <= 1_000, "max_restarts", "want 0 to 1000");
        for (key, value) in &self.dimensions {
            if let Err(message) = check_label(key, value) {
                errors.add("dimensions", message);
            }
        }
        for (variable, value) in &self.parameters {
            if let Err(message) = check_variable(variable, value) {
                errors.add("parameters", message);
            }
        }
        if let Some(check) = &self.health_check {
            errors.nest("health_check", check.validate());
        }
        errors.nest("limits", self.limits.validate());
        errors
            .0
            .extend(self.traffic().validate(self.port == Port::None).0);
        if let Some(auto) = &self.auto_deploy {
            for error in auto.validate().0 {
                errors.add("auto_deploy", error.message);
            }
        }
        if let Some(metrics) = &self.metrics {
            errors.nest("metrics", metrics.validate());
        }
        errors
    }
}
