//! Health checks of instances.

use serde::{Deserialize, Serialize};

use super::FieldErrors;
use crate::time::Span;

/// How an instance is found healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct HealthCheck {
    /// GET a path; exclusive with `tcp` and `exec`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// The port accepts a connection.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tcp: bool,
    /// A program exits with 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecProbe>,
    /// Between two checks; 100 ms to 1 h. Until the first success after a start they come sooner.
    pub interval: Span,
    /// Of one check; 10 ms to 5 min.
    pub timeout: Span,
    /// Successes in a row until healthy; 1 to 100.
    pub healthy_threshold: u32,
    /// Failures in a row until unhealthy; 1 to 100.
    pub unhealthy_threshold: u32,
    /// After the start, failures do not count yet.
    pub start_period: Span,
}

/// GET on the instance's own port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    /// Path and query, starting with a slash.
    pub path: String,
    /// The one status that counts as healthy; none: any 2xx.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// A text that the body must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_contains: Option<String>,
}

/// A program run in the instance's environment and folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ExecProbe {
    /// The program; relative: inside the release.
    pub command: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
}

/// The one probe of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe<'a> {
    /// GET a path.
    Http(&'a HttpProbe),
    /// Connect.
    Tcp,
    /// Run a program.
    Exec(&'a ExecProbe),
    /// The process runs.
    Alive,
}

impl Default for HealthCheck {
    /// The process runs, looked at every 5 s.
    fn default() -> Self {
        Self {
            http: None,
            tcp: false,
            exec: None,
            interval: Span::from_secs(5),
            timeout: Span::from_secs(2),
            healthy_threshold: 2,
            unhealthy_threshold: 3,
            start_period: Span::ZERO,
        }
    }
}

impl HealthCheck {
    /// The probe that was chosen; no choice: the process runs.
    pub fn probe(&self) -> Probe<'_> {
        match (&self.http, &self.exec) {
            (Some(http), _) => Probe::Http(http),
            (None, Some(exec)) => Probe::Exec(exec),
            (None, None) if self.tcp => Probe::Tcp,
            (None, None) => Probe::Alive,
        }
    }

    /// What is wrong with it.
    pub fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let kinds = usize::from(self.http.is_some())
            + usize::from(self.tcp)
            + usize::from(self.exec.is_some());
        errors.require(kinds <= 1, "http", "choose one of http, tcp and exec");
        if let Some(http) = &self.http {
            errors.require(
                http.path.starts_with('/'),
                "http.path",
                format!("\"{}\" must start with a slash", http.path),
            );
            errors.require(
                http.status
                    .is_none_or(|status| (100..=599).contains(&status)),
                "http.status",
                "want a status of 100 to 599",
            );
        }
        if let Some(exec) = &self.exec {
            errors.require(!exec.command.is_empty(), "exec.command", "is empty");
        }
        let within = |span: Span, low: u64, high: u64| (low..=high).contains(&span.millis());
        errors.require(
            within(self.interval, 100, 3_600_000),
            "interval",
            "want 100ms to 1h",
        );
        errors.require(
            within(self.timeout, 10, 300_000),
            "timeout",
            "want 10ms to 5m",
        );
        for (field, value) in [
            ("healthy_threshold", self.healthy_threshold),
            ("unhealthy_threshold", self.unhealthy_threshold),
        ] {
            errors.require((1..=100).contains(&value), field, "want 1 to 100");
        }
        errors
    }
}
