//! Header fields between two connections: drops those that belong to one hop, adds where the request came
//! from. RFC 9110 §7.6.1. Pure; the forwarding calls it.

use hyper::header::{
    self, CONNECTION, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::uri::{Authority, Uri};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The protocol that a request or an answer wants to change to; `None` for an ordinary one. A change to
/// cleartext HTTP/2 is ignored, as the standard allows: the instance would take the connection away from
/// the proxy for every later request.
pub(super) fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let named = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    (named && !protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| protocol.clone())
}

/// The value of a cookie.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).into_iter();
    let pairs = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'));
    let mut pairs = pairs.filter_map(|pair| pair.trim().split_once('='));
    pairs
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value)
}

/// Removes what belongs to one connection only.
pub(super) fn strip_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            // Naming these would strip what routes and frames the message.
            .filter(|name| *name != HOST && *name != header::CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
        &TRANSFER_ENCODING,
        &UPGRADE,
        &HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
}

/// Makes the header fields of a request fit for an instance: hop fields dropped, `upgrade` put back, `Host`
/// taken from an absolute target, `X-Forwarded-*` set.
pub(super) fn prepare_request(
    headers: &mut HeaderMap,
    uri: &Uri,
    client: &HeaderValue,
    secure: bool,
    upgrade: Option<&HeaderValue>,
) {
    let trailers = headers.contains_key(TE)
        && tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    strip_hop(headers);
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    // The server side of the proxy answers "100 Continue" itself when the instance reads the body.
    headers.remove(EXPECT);
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
    if let Some(host) = uri.authority().and_then(host_of) {
        headers.insert(HOST, host);
    }
    if !headers.contains_key(HOST) {
        headers.insert(HOST, HeaderValue::from_static(""));
    }
    join(headers, &COOKIE, b"; ");
    append_forwarded_for(headers, client);
    if !headers.contains_key(&FORWARDED_PROTO) {
        let scheme = if secure { "https" } else { "http" };
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    if !headers.contains_key(&FORWARDED_HOST)
        && let Some(host) = headers.get(HOST).filter(|host| !host.is_empty()).cloned()
    {
        headers.insert(FORWARDED_HOST, host);
    }
}

/// The authority without user and password.
fn host_of(authority: &Authority) -> Option<HeaderValue> {
    let text = authority.as_str();
    let host = text.rsplit_once('@').map_or(text, |(_, host)| host);
    HeaderValue::from_str(host).ok()
}

fn append_forwarded_for(headers: &mut HeaderMap, client: &HeaderValue) {
    if !headers.contains_key(&FORWARDED_FOR) {
        headers.insert(FORWARDED_FOR, client.clone());
        return;
    }
    headers.append(FORWARDED_FOR, client.clone());
    join(headers, &FORWARDED_FOR, b", ");
}

/// Makes one line of a repeated field. (HTTP/2 may split cookies, HTTP/1.1 may not.)
fn join(headers: &mut HeaderMap, name: &HeaderName, separator: &[u8]) {
    if headers.get_all(name).iter().nth(1).is_none() {
        return;
    }
    let values: Vec<&[u8]> = headers
        .get_all(name)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    // Made of valid values and a valid separator, so it is valid.
    if let Ok(value) = HeaderValue::from_bytes(&values.join(separator)) {
        headers.insert(name.clone(), value);
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        headers
    }

    fn prepared(fields: &[(&str, &str)], uri: &str) -> HeaderMap {
        let mut headers = of(fields);
        let upgrade = wanted_upgrade(&headers);
        let client = HeaderValue::from_static("10.1.2.3");
        prepare_request(
            &mut headers,
            &uri.parse().expect("a uri"),
            &client,
            false,
            upgrade.as_ref(),
        );
        headers
    }

    #[test]
    fn hop_fields_stay_behind_with_those_that_connection_names() {
        let fields = [
            ("host", "shop"),
            ("connection", "close, X-Secret"),
            ("connection", "content-length"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("x-kept", "1"),
        ];
        let headers = prepared(&fields, "/");
        for gone in ["connection", "x-secret", "keep-alive", "transfer-encoding"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers["x-kept"], "1");
        assert_eq!(headers["content-length"], "3");
    }

    #[test]
    fn the_origin_of_the_request_is_told() {
        let headers = prepared(&[("host", "shop:8080")], "/");
        assert_eq!(headers["x-forwarded-for"], "10.1.2.3");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], "shop:8080");
        let earlier = [
            ("host", "inner"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "outer"),
        ];
        let headers = prepared(&earlier, "/");
        assert_eq!(headers["x-forwarded-for"], "1.1.1.1, 2.2.2.2, 10.1.2.3");
        assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "outer");
    }

    #[test]
    fn an_absolute_target_names_the_host() {
        let headers = prepared(
            &[("host", "wrong")],
            "http://me:secret@shop.example:81/path",
        );
        assert_eq!(headers["host"], "shop.example:81");
        assert_eq!(prepared(&[], "/")["host"], "");
        assert_eq!(
            prepared(&[("cookie", "a=1"), ("cookie", "b=2")], "/")["cookie"],
            "a=1; b=2"
        );
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let headers = of(&[("cookie", "a=1; tide=blue"), ("cookie", "b=2")]);
        assert_eq!(cookie(&headers, "tide"), Some("blue"));
        assert_eq!(cookie(&headers, "b"), Some("2"));
        assert_eq!(cookie(&headers, "id"), None);
    }

    #[test]
    fn upgrades_pass_but_not_to_cleartext_http2() {
        let headers = prepared(
            &[
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", "websocket"),
            ],
            "/",
        );
        assert_eq!(headers["connection"], "upgrade");
        assert_eq!(headers["upgrade"], "websocket");
        let settings = ("http2-settings", "AAMAAABkAAQ");
        let fields = [
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
            settings,
        ];
        let headers = prepared(&fields, "/");
        for gone in ["connection", "upgrade", "http2-settings"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
        assert_eq!(wanted_upgrade(&of(&[("upgrade", "websocket")])), None);
    }
}
