//! What is wrong with the fields of a measurement: paths, addresses, headers, programs, queries.

use std::collections::BTreeMap;

use super::{CommandMeasurement, HttpMeasurement, PLACEHOLDERS, PrometheusMeasurement};
use crate::spec::FieldErrors;
use crate::time::Span;

pub(super) fn within(span: Span, low: u64, high: u64) -> bool {
    (low..=high).contains(&span.millis())
}

impl HttpMeasurement {
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        match (&self.path, &self.url) {
            (Some(path), None) => {
                let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
                let sound = path.starts_with('/') && path.bytes().all(plain) && path.len() <= 1_024;
                errors.require(sound, "path", "want a path such as /health");
                check_placeholders(&mut errors, "path", path);
            }
            (None, Some(url)) => check_address(&mut errors, "url", url),
            (Some(_), Some(_)) | (None, None) => {
                errors.add(
                    "path",
                    "want path, of the instances, or url, of anything else",
                );
            }
        }
        check_headers(&mut errors, &self.headers);
        errors.require(
            within(self.timeout, 10, 300_000),
            "timeout",
            "want 10ms to 5m",
        );
        errors.require(
            self.status
                .is_none_or(|status| (100..=599).contains(&status)),
            "status",
            "want a status of 100 to 599",
        );
        errors
    }
}

impl CommandMeasurement {
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let nul = |text: &String| text.contains('\0');
        errors.require(
            !self.command.is_empty() && !nul(&self.command),
            "command",
            "is empty, or has a NUL in it",
        );
        errors.require(!self.args.iter().any(nul), "args", "one has a NUL in it");
        errors.require(self.args.len() <= 256, "args", "more than 256");
        let length: usize = self.args.iter().map(String::len).sum();
        errors.require(
            self.command.len() + length <= 32_768,
            "args",
            "longer than 32768 bytes with the command",
        );
        errors.require(
            within(self.timeout, 10, 3_600_000),
            "timeout",
            "want 10ms to 1h",
        );
        errors
    }
}

impl PrometheusMeasurement {
    pub(super) fn validate(&self) -> FieldErrors {
        let mut errors = FieldErrors::default();
        check_address(&mut errors, "address", &self.address);
        errors.require(
            !self.address.contains(['?', '#']),
            "address",
            "want the address of the server alone, such as http://example.com:9090",
        );
        errors.require(
            !self.query.trim().is_empty() && self.query.len() <= 8_192,
            "query",
            "is empty, or longer than 8192 bytes",
        );
        check_placeholders(&mut errors, "query", &self.query);
        check_headers(&mut errors, &self.headers);
        errors.require(
            within(self.timeout, 10, 300_000),
            "timeout",
            "want 10ms to 5m",
        );
        errors
    }
}

fn check_address(errors: &mut FieldErrors, field: &str, text: &str) {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    let Some(rest) = rest else {
        errors.add(
            field,
            "want an address that begins with http:// or https://",
        );
        return;
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        errors.add(
            field,
            "names a user: addresses are seen by everybody who sees the strategy",
        );
        return;
    }
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            errors.require(
                port.parse::<u16>().is_ok_and(|port| port > 0),
                field,
                format!("\"{}\" is no port", port.escape_debug()),
            );
            host
        }
        Some(_) | None => authority,
    };
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`|".contains(&byte);
    errors.require(
        !host.is_empty() && text.bytes().all(plain) && text.len() <= 2_048,
        field,
        "want an address such as https://shop.example.com/health",
    );
    check_placeholders(errors, field, text);
}

fn check_headers(errors: &mut FieldErrors, headers: &BTreeMap<String, String>) {
    errors.require(headers.len() <= 32, "headers", "more than 32");
    for (name, value) in headers {
        let field = format!("headers.{}", name.escape_debug());
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        errors.require(
            !name.is_empty() && name.len() <= 256 && name.bytes().all(token),
            field.as_str(),
            "is no name of a header",
        );
        let ours = ["host", "content-length", "transfer-encoding", "connection"];
        errors.require(
            name.eq_ignore_ascii_case("host")
                || !ours.iter().any(|own| name.eq_ignore_ascii_case(own)),
            field.as_str(),
            "is set by itself",
        );
        let visible = |byte: u8| (b' '..=b'~').contains(&byte);
        errors.require(
            value.len() <= 4_096 && value.bytes().all(visible),
            field.as_str(),
            "its value is too long, or not plain text",
        );
        check_placeholders(errors, &field, value);
    }
}

fn check_placeholders(errors: &mut FieldErrors, field: &str, text: &str) {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("${") {
        let name = after.split('}').next().unwrap_or_default();
        if !PLACEHOLDERS.contains(&name) {
            let known = PLACEHOLDERS.map(|name| format!("${{{name}}}")).join(", ");
            let shown: String = name.chars().take(40).collect();
            errors.add(
                field,
                format!(
                    "\"${{{}}}\" is not known: want one of {known}",
                    shown.escape_debug()
                ),
            );
            return;
        }
        rest = after;
    }
}
