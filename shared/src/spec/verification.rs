//! Checks that a rollout makes between its steps (and a group between its members): what is
//! measured, how often, and when the answer counts as good.
//!
//! Shape alone is checked here. The conditions are texts in CEL: the coordinators' core checks them
//! when they are written. How measurements become an answer is
//! [`verdict::check`](crate::verdict::check).

mod fields;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use fields::within;

use super::FieldErrors;
use super::moment::When;
use crate::id::Name;
use crate::time::Span;

/// Most checks of a strategy or of a rollout.
pub const MOST_CHECKS: usize = 16;

/// The placeholders of addresses, paths, header values and queries; also of a command's arguments,
/// which may use those of a `run` too.
pub const PLACEHOLDERS: [&str; 6] = [
    "APPLICATION",
    "RELEASE",
    "SCOPE",
    "ENVIRONMENT",
    "DEPLOYMENT",
    "SHORT",
];

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VerificationSpec {
    /// Unique among the checks beside it.
    pub name: Name,
    /// A request. Exactly one of `http`, `command` and `prometheus` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpMeasurement>,
    /// A program on the agents of the deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandMeasurement>,
    /// A query to a Prometheus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusMeasurement>,
    /// When it is made; default after every step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<When>,
    /// From the moment at which the step is reached to the first measurement; 0 to 24 h.
    #[serde(default, skip_serializing_if = "Span::is_zero")]
    pub initial_delay: Span,
    /// Between the starts of two measurements; 250 ms to 1 h, default 10 s.
    #[serde(default = "ten_seconds")]
    pub interval: Span,
    /// Measurements of a round; 1 to 1,000. None: as many as the answer needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// So many good ones in a row are a success; 1 to 1,000. None: the whole `count` has to be
    /// made, and without a `count` one is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_successes: Option<u32>,
    /// So many bad ones are borne; one more is a failure. 0 to 1,000.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failure_limit: u32,
    /// So many that say nothing are borne; one more makes the round inconclusive. 0 to 1,000.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub inconclusive_limit: u32,
    /// CEL over `result`: the measurement is good. See [`failure`](Self::failure).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub success: String,
    /// CEL over `result`: the measurement is bad. With one of the two alone, what it does not hold
    /// of is the other; with both, what neither holds of says nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub failure: String,
}

/// A request over HTTP: to a path of the new version's instances, made by their agents, or to an
/// address, made by the leading coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct HttpMeasurement {
    /// A path of every instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// An address, `http://` or `https://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Default `GET`.
    #[serde(default, skip_serializing_if = "HttpMethod::is_default")]
    pub method: HttpMethod,
    /// Sent along; at most 32. They can be seen by whoever can see the strategy.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// For the whole exchange; 10 ms to 5 min, default 5 s.
    #[serde(default = "five_seconds")]
    pub timeout: Span,
    /// Any other status is bad. None: without conditions every 2xx is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// Methods of a measurement; none has a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    /// Reads.
    #[default]
    Get,
    /// Reads the head alone.
    Head,
    /// Sends nothing, for hooks that are asked to act.
    Post,
}

impl HttpMethod {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
        }
    }

    /// The method of a word.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Get, Self::Head, Self::Post]
            .into_iter()
            .find(|method| method.as_str() == text)
    }

    #[allow(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde hands out references"
    )]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A program, run as hooks are: with the environment and in the folder of an instance of the new
/// version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CommandMeasurement {
    /// As in `run`.
    pub command: String,
    /// As in `run`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Then it is ended, which is bad; 10 ms to 1 h, default 1 min.
    #[serde(default = "one_minute")]
    pub timeout: Span,
    /// Where it runs.
    #[serde(default)]
    pub on: CommandPlace,
}

/// Where a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CommandPlace {
    /// Once on every agent that runs the new version.
    #[default]
    Agent,
}

/// A query, asked by the leading coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PrometheusMeasurement {
    /// Of the server, as `https://example.com:9090`.
    pub address: String,
    /// PromQL for an instant; its result is a number, or one per series.
    pub query: String,
    /// For the whole exchange; 10 ms to 5 min, default 10 s.
    #[serde(default = "ten_seconds")]
    pub timeout: Span,
    /// Sent along, for servers with tenants; at most 32. They can be seen by whoever can see the
    /// strategy.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// What a check measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measurement<'a> {
    /// A request to the instances, made on their agents.
    InstanceHttp(&'a HttpMeasurement),
    /// A program on the agents.
    Command(&'a CommandMeasurement),
    /// A request that the leader makes.
    LeaderHttp(&'a HttpMeasurement),
    /// A query that the leader asks.
    Prometheus(&'a PrometheusMeasurement),
}

impl Measurement<'_> {
    /// Whether agents make it.
    pub const fn is_on_agents(self) -> bool {
        match self {
            Self::InstanceHttp(_) | Self::Command(_) => true,
            Self::LeaderHttp(_) | Self::Prometheus(_) => false,
        }
    }

    /// The longest that one takes.
    pub const fn timeout(self) -> Span {
        match self {
            Self::InstanceHttp(http) | Self::LeaderHttp(http) => http.timeout,
            Self::Command(command) => command.timeout,
            Self::Prometheus(query) => query.timeout,
        }
    }

    /// The word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InstanceHttp(_) | Self::LeaderHttp(_) => "http",
            Self::Command(_) => "command",
            Self::Prometheus(_) => "prometheus",
        }
    }
}

const fn five_seconds() -> Span {
    Span::from_secs(5)
}

const fn ten_seconds() -> Span {
    Span::from_secs(10)
}

const fn one_minute() -> Span {
    Span::from_mins(1)
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands out references"
)]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl VerificationSpec {
    /// What it measures; none of a spec that does not `validate`.
    pub fn measurement(&self) -> Option<Measurement<'_>> {
        match (&self.http, &self.command, &self.prometheus) {
            (Some(http), None, None) if http.path.is_some() => {
                Some(Measurement::InstanceHttp(http))
            }
            (Some(http), None, None) => Some(Measurement::LeaderHttp(http)),
            (None, Some(command), None) => Some(Measurement::Command(command)),
            (None, None, Some(query)) => Some(Measurement::Prometheus(query)),
            (Some(_), ..) | (None, Some(_), Some(_)) | (None, None, None) => None,
        }
    }

    /// The longest time in which a round is decided if every measurement is made: every borne bad or
    /// empty one breaks a row just before its end.
    pub fn longest(&self) -> Span {
        let row = self.consecutive_successes.unwrap_or(1).max(1);
        let breaks = self
            .failure_limit
            .saturating_add(self.inconclusive_limit)
            .saturating_add(1);
        let most = row.saturating_mul(breaks);
        let most = self
            .count
            .map_or(most, |count| match self.consecutive_successes {
                Some(_) => count.min(most),
                None => count,
            });
        let timeout = self.measurement().map_or(Span::ZERO, Measurement::timeout);
        self.initial_delay + self.interval.max(timeout).times(u64::from(most)) + SLACK
    }

    /// What is wrong with it, its conditions aside.
    pub fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let kinds = [
            self.http.is_some(),
            self.command.is_some(),
            self.prometheus.is_some(),
        ];
        errors.require(
            kinds.into_iter().filter(|given| *given).count() == 1,
            "http",
            "want exactly one of http, command and prometheus",
        );
        if let Some(http) = &self.http {
            errors.nest("http", http.validate());
        }
        if let Some(command) = &self.command {
            errors.nest("command", command.validate());
        }
        if let Some(query) = &self.prometheus {
            errors.nest("prometheus", query.validate());
            errors.require(
                !self.success.trim().is_empty() || !self.failure.trim().is_empty(),
                "success",
                "say what of the query's result is good, such as result.value < 0.01",
            );
        }
        errors.require(
            within(self.interval, 250, 3_600_000),
            "interval",
            "want 250ms to 1h",
        );
        errors.require(
            self.initial_delay <= Span::from_hours(24),
            "initial_delay",
            "want at most 24h",
        );
        self.validate_limits(&mut errors);
        for (field, text) in [("success", &self.success), ("failure", &self.failure)] {
            errors.require(text.len() <= 2_000, field, "longer than 2000 bytes");
        }
        for (position, when) in self.when.iter().enumerate() {
            errors.require(
                !self.when[..position].contains(when),
                format!("when[{position}]"),
                format!("{when} is there twice"),
            );
        }
        errors
    }

    fn validate_limits(&self, errors: &mut FieldErrors) {
        let numbers = [
            ("count", self.count),
            ("consecutive_successes", self.consecutive_successes),
        ];
        for (field, number) in numbers {
            errors.require(
                number.is_none_or(|number| (1..=1_000).contains(&number)),
                field,
                "want 1 to 1000",
            );
        }
        let numbers = [
            ("failure_limit", self.failure_limit),
            ("inconclusive_limit", self.inconclusive_limit),
        ];
        for (field, number) in numbers {
            errors.require(number <= 1_000, field, "want 0 to 1000");
        }
        let (Some(count), row) = (self.count, self.consecutive_successes) else {
            return;
        };
        errors.require(
            row.is_none_or(|row| row <= count),
            "consecutive_successes",
            format!("never come in {count} measurements: want at most count"),
        );
        errors.require(
            row.is_some()
                || self.failure_limit.saturating_add(self.inconclusive_limit) < count.max(1),
            "failure_limit",
            format!(
                "with inconclusive_limit it bears all {count} measurements: want less than count"
            ),
        );
    }
}

/// What is added to the longest time of a check: reports take a moment.
const SLACK: Span = Span::from_secs(5);

/// What is wrong with a list of checks: each one, and its name among the others.
pub fn validate_checks(checks: &[VerificationSpec]) -> FieldErrors {
    let mut errors = FieldErrors::default();
    if checks.len() > MOST_CHECKS {
        errors.add("verification", format!("more than {MOST_CHECKS} checks"));
    }
    for (position, check) in checks.iter().enumerate() {
        let field = format!("verification[{position}]");
        errors.nest(&field, check.validate());
        errors.require(
            checks[..position]
                .iter()
                .all(|other| other.name != check.name),
            format!("{field}.name"),
            format!("\"{}\" is there twice", check.name),
        );
    }
    errors
}
