//! Web servers as sources: HTTP/1.1, over TLS with the system's roots and those of the
//! configuration, or plain: what comes is used only if its digest is right, so nobody on the way
//! can put in something else.
//!
//! A transfer is resumed with `Range`, and with `If-Range` where the server names its version, so
//! that a file that was replaced meanwhile is fetched anew. At most five redirects are followed.
//! Proxies are not asked, and no environment variable is read.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HOST, HeaderMap,
    HeaderName, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE, USER_AGENT,
};
use hyper::{Request, Response, StatusCode, Uri};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::fetch::{Answer, Opened, Part};
use super::pieces::{self, Connection, HttpPieces};
use crate::tls::{provider, root_cause};

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// For the TCP connection, and for the handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A client for web servers. Its roots are read at each connection: an update of the system's
/// counts at once.
#[derive(Debug, Clone, Default)]
pub struct Web {
    /// Roots that are trusted beside the system's.
    pub roots: Vec<CertificateDer<'static>>,
}

impl Web {
    /// Opens an address.
    pub fn open<'a>(&'a self, address: &'a str, part: Part<'a>) -> Answer<'a, Opened> {
        Box::pin(async move { self.get(address, part).await.unwrap_or_else(Opened::Failed) })
    }

    async fn get(&self, address: &str, part: Part<'_>) -> Result<Opened, String> {
        let mut address = address.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let (response, connection) = self.ask(&address, part).await?;
            if response.status().is_redirection() {
                let location = header(response.headers(), &LOCATION)
                    .ok_or_else(|| format!("answered {} to nowhere", response.status()))?;
                address = resolve(&address, location)?;
                continue;
            }
            return opened(response, connection, part);
        }
        Err(format!("redirects more than {MAX_REDIRECTS} times"))
    }

    async fn ask(
        &self,
        address: &str,
        part: Part<'_>,
    ) -> Result<(Response<hyper::body::Incoming>, Connection), String> {
        let uri: Uri = address
            .parse()
            .map_err(|_| format!("\"{address}\" is not an address"))?;
        let host = uri.host().ok_or("names no host")?;
        let authority = uri.authority().map_or(host, |authority| authority.as_str());
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::get(path)
            .header(HOST, authority)
            .header(
                USER_AGENT,
                concat!("tidegate-agent/", env!("CARGO_PKG_VERSION")),
            )
            .header(ACCEPT_ENCODING, "identity");
        if part.from > 0 {
            request = request.header(RANGE, format!("bytes={}-", part.from));
            if let Some(version) = part.version {
                request = request.header(IF_RANGE, version);
            }
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let connecting = TcpStream::connect((bare, port));
        let stream = tokio::time::timeout(CONNECT_LIMIT, connecting)
            .await
            .map_err(|_| "did not take the connection in 10 s".to_owned())?
            .map_err(|error| error.to_string())?;
        if !is_tls {
            return pieces::ask(stream, request).await;
        }
        let roots = self.roots.clone();
        let config = tokio::task::spawn_blocking(move || config(roots))
            .await
            .map_err(|error| error.to_string())??;
        let name = ServerName::try_from(bare.to_owned()).map_err(|error| error.to_string())?;
        let handshake = TlsConnector::from(config).connect(name, stream);
        let stream = tokio::time::timeout(CONNECT_LIMIT, handshake)
            .await
            .map_err(|_| "did not end the TLS handshake in 10 s".to_owned())?
            .map_err(|error| format!("TLS: {}", root_cause(&error)))?;
        pieces::ask(stream, request).await
    }
}

fn config(more: Vec<CertificateDer<'static>>) -> Result<Arc<ClientConfig>, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots.add_parsable_certificates(more);
    if roots.is_empty() {
        let why = found.errors.first().map(ToString::to_string);
        return Err(format!(
            "this host has no root certificates ({}); install ca-certificates, or set source_ca_file in agent.toml",
            why.unwrap_or_else(|| "none were found".to_owned())
        ));
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn opened(
    response: Response<hyper::body::Incoming>,
    connection: Connection,
    part: Part<'_>,
) -> Result<Opened, String> {
    let headers = response.headers();
    if header(headers, &CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err("answered with a content coding that was not asked for".to_owned());
    }
    let (from, size) = match response.status() {
        StatusCode::OK => {
            let length = header(headers, &CONTENT_LENGTH).and_then(|text| text.parse().ok());
            (0, length)
        }
        StatusCode::PARTIAL_CONTENT => {
            let told = header(headers, &CONTENT_RANGE).unwrap_or_default();
            let (from, size) = content_range(told)
                .ok_or_else(|| format!("answered with the range \"{}\"", told.escape_debug()))?;
            if from > part.from {
                return Err("answered with another part than was asked for".to_owned());
            }
            (from, size)
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(Opened::Missing),
        other => return Err(format!("answered {other}")),
    };
    // A weak tag does not speak for bytes (RFC 9110 §13.1.5).
    let strong = header(headers, &ETAG).filter(|tag| !tag.starts_with("W/"));
    let version = strong.or_else(|| header(headers, &LAST_MODIFIED));
    Ok(Opened::Body {
        from,
        size,
        version: version.map(str::to_owned),
        body: Box::new(HttpPieces::new(response.into_body(), connection)),
    })
}

/// First byte and size of the whole from `bytes FROM-TO/SIZE`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let from = range.split_once('-')?.0.parse().ok()?;
    match size {
        "*" => Some((from, None)),
        size => Some((from, Some(size.parse().ok()?))),
    }
}

/// Where a redirect leads, seen from the address that answered with it.
fn resolve(base: &str, location: &str) -> Result<String, String> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, rest) = base.split_once("://").ok_or("is no address")?;
    if let Some((other, _)) = location.split_once("://")
        && !other.contains(['/', '?'])
    {
        return match other {
            "http" | "https" => Ok(location.to_owned()),
            other => Err(format!("redirects to a {other}:// address")),
        };
    }
    let border = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(border);
    if let Some(other) = location.strip_prefix("//") {
        return Ok(format!("{scheme}://{other}"));
    }
    if location.starts_with('/') {
        return Ok(format!("{scheme}://{authority}{location}"));
    }
    let path = path.split('?').next().unwrap_or_default();
    let folder = path.rfind('/').map_or("", |slash| &path[..slash]);
    Ok(format!("{scheme}://{authority}{folder}/{location}"))
}
