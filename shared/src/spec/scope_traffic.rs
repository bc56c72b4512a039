//! How requests reach the instances of a scope: protocol, TLS, stickiness, routing by a header.
//!
//! The fields stand in the scope's manifest; together they travel as [`ScopeTraffic`] to the agents,
//! whose proxies follow them.

use serde::{Deserialize, Serialize};

use super::{FieldErrors, check_variable};
use crate::time::Span;

/// Longest time for which a client stays with a version: browsers keep no cookie longer.
const LONGEST_TTL: Span = Span::from_secs(400 * 24 * 3_600);

/// What the proxy of a scope speaks with clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.0, HTTP/1.1 and HTTP/2: weights are shares of requests.
    #[default]
    Http,
    /// Bytes of any protocol: weights are shares of connections, and there are no statuses, so no
    /// rules on them.
    Tcp,
}

impl Protocol {
    /// Whether it is the one that is meant when nothing is said.
    pub const fn is_default(&self) -> bool {
        matches!(self, Self::Http)
    }
}

/// The proxy ends TLS; the values are parameters of the scope, both PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TlsSpec {
    /// Variable of the parameter that holds the certificate and its chain.
    pub certificate: String,
    /// Variable of the parameter that holds the private key.
    pub key: String,
}

/// A client stays with the version that served it first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StickySpec {
    /// Name of the cookie.
    pub cookie: String,
    /// For how long; 1 s to 400 days, default 1 h.
    #[serde(default = "one_hour")]
    pub ttl: Span,
}

const fn one_hour() -> Span {
    Span::from_mins(60)
}

/// Requests with this header go to the candidate, whatever its weight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct HeaderRoute {
    /// Name of the header; case does not matter.
    pub header: String,
    /// Its whole value.
    pub value: String,
}

/// Everything that a scope says about its traffic.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ScopeTraffic {
    /// What is spoken with clients.
    #[serde(skip_serializing_if = "Protocol::is_default")]
    pub protocol: Protocol,
    /// None: clients speak cleartext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// Instances are spoken to in HTTP/2 (prior knowledge) instead of HTTP/1.1.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub http2: bool,
    /// None: every request is spread anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<StickySpec>,
    /// None: weights alone decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<HeaderRoute>,
}

impl ScopeTraffic {
    /// Whether nothing but the ordinary is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with it. `worker`: the scope has no port.
    pub fn validate(&self, worker: bool) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let Self {
            protocol,
            tls,
            http2,
            sticky,
            route,
        } = self;
        let given = [
            ("protocol", *protocol != Protocol::Http, false),
            ("tls", tls.is_some(), false),
            ("http2", *http2, true),
            ("sticky", sticky.is_some(), true),
            ("route", route.is_some(), true),
        ];
        for (field, given, http_only) in given {
            if given && worker {
                errors.add(field, "a worker (port: none) has no proxy; leave it out");
            } else if given && http_only && *protocol == Protocol::Tcp {
                errors.add(field, "is for protocol: http; leave it out with tcp");
            }
        }
        if let Some(tls) = tls {
            for (field, variable) in [("certificate", &tls.certificate), ("key", &tls.key)] {
                if let Err(message) = check_variable(variable, "") {
                    errors.add(format!("tls.{field}"), message);
                }
            }
            errors.require(
                tls.certificate != tls.key,
                "tls.key",
                "want another parameter than tls.certificate",
            );
        }
        if let Some(sticky) = sticky {
            errors.require(
                is_token(&sticky.cookie),
                "sticky.cookie",
                format!(
                    "\"{}\" is not the name of a cookie: want 1 to 64 letters, digits, _ and -",
                    sticky.cookie
                ),
            );
            errors.require(
                (Span::from_secs(1)..=LONGEST_TTL).contains(&sticky.ttl),
                "sticky.ttl",
                "want 1s to 400d",
            );
        }
        if let Some(route) = route {
            errors.require(
                is_token(&route.header) && !RESERVED.contains(&&*route.header.to_ascii_lowercase()),
                "route.header",
                format!(
                    "\"{}\" is not a header to route by: want 1 to 64 letters, digits, _ and -, such as X-Canary",
                    route.header
                ),
            );
            let visible = |byte: u8| (b' '..=b'~').contains(&byte);
            errors.require(
                (1..=256).contains(&route.value.len())
                    && route.value.bytes().all(visible)
                    && route.value.trim() == route.value,
                "route.value",
                "want 1 to 256 visible ASCII characters",
            );
        }
        errors
    }
}

/// Headers that belong to one connection, or that every request has.
const RESERVED: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Letters, digits, `_` and `-`: a part of what RFC 9110 and RFC 6265 allow that nobody has to quote.
fn is_token(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(json: &str, worker: bool) -> Vec<String> {
        let spec: ScopeTraffic = serde_json::from_str(json).unwrap();
        let errors = spec.validate(worker).0.into_iter();
        errors.map(|e| e.field).collect()
    }

    #[test]
    fn what_is_left_out_is_ordinary_http() {
        let spec: ScopeTraffic = serde_json::from_str("{}").unwrap();
        assert!(spec.is_default() && spec.validate(true).0.is_empty());
        assert_eq!(serde_json::to_string(&spec).unwrap(), "{}");
    }

    #[test]
    fn each_field_says_what_it_wants() {
        let good = r#"{"tls": {"certificate": "CERT", "key": "KEY"}, "http2": true,
            "sticky": {"cookie": "tide"}, "route": {"header": "X-Canary", "value": "yes"}}"#;
        assert_eq!(errors(good, false), [""; 0]);
        assert_eq!(
            errors(good, true),
            ["tls", "http2", "sticky", "route"],
            "a worker has no proxy"
        );
        let tcp = good.replacen('{', r#"{"protocol": "tcp", "#, 1);
        assert_eq!(errors(&tcp, false), ["http2", "sticky", "route"]);
        let cases = [
            (
                r#"{"tls": {"certificate": "A B", "key": "K"}}"#,
                "tls.certificate",
            ),
            (r#"{"tls": {"certificate": "K", "key": "K"}}"#, "tls.key"),
            (r#"{"sticky": {"cookie": "a;b"}}"#, "sticky.cookie"),
            (r#"{"sticky": {"cookie": ""}}"#, "sticky.cookie"),
            (
                r#"{"sticky": {"cookie": "a", "ttl": "401d"}}"#,
                "sticky.ttl",
            ),
            (
                r#"{"route": {"header": "Host", "value": "x"}}"#,
                "route.header",
            ),
            (
                r#"{"route": {"header": "X: y", "value": "x"}}"#,
                "route.header",
            ),
            (r#"{"route": {"header": "X", "value": ""}}"#, "route.value"),
            (
                r#"{"route": {"header": "X", "value": "a\nb"}}"#,
                "route.value",
            ),
        ];
        for (json, field) in cases {
            assert_eq!(errors(json, false), [field], "{json}");
        }
        assert!(serde_json::from_str::<TlsSpec>(r#"{"certificate": "C"}"#).is_err());
    }
}
