//! One request over HTTP/1.1, plain or over TLS with the system's roots (or those that
//! `SSL_CERT_FILE` names), and one query to a Prometheus. Redirects are not followed and proxies
//! not asked: what is measured is what was written.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderName, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tidegate_coordinator_core::verification::LeaderKind;
use tidegate_shared::measurement::{MOST_BYTES, Sample};
use tidegate_shared::spec::{HttpMeasurement, PrometheusMeasurement};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Largest answer to a query: 1 MiB.
const MOST_OF_A_RESULT: usize = 1 << 20;
/// Longest reason that is told.
const LONGEST_WHY: usize = 300;

/// What keeps a measurement from being one.
#[derive(Debug)]
enum Trouble {
    /// The other side gave no answer.
    NoAnswer(String),
    /// It could not be asked.
    NotAsked(String),
}

struct Answer {
    status: StatusCode,
    body: Vec<u8>,
    more: bool,
}

/// One sample.
pub(super) async fn sample(what: &LeaderKind) -> Sample {
    match what {
        LeaderKind::Http(wanted) => http(wanted).await,
        LeaderKind::Prometheus(wanted) => prometheus(wanted).await,
    }
}

async fn http(wanted: &HttpMeasurement) -> Sample {
    let url = wanted.url.as_deref().unwrap_or_default();
    let method = wanted.method.as_str();
    let asking = ask(method, url, &wanted.headers, Bytes::new(), MOST_BYTES);
    match tokio::time::timeout(wanted.timeout.to_std(), asking).await {
        Ok(Ok(answer)) => {
            let mut body = String::from_utf8_lossy(&answer.body).into_owned();
            let cut = answer.more || body.len() > MOST_BYTES;
            let mut end = body.len().min(MOST_BYTES);
            while !body.is_char_boundary(end) {
                end -= 1;
            }
            body.truncate(end);
            Sample::Http {
                status: answer.status.as_u16(),
                body,
                cut,
            }
        }
        Ok(Err(Trouble::NoAnswer(why))) => Sample::Unanswered(short(&why)),
        Ok(Err(Trouble::NotAsked(why))) => Sample::NotMade(short(&why)),
        Err(_) => Sample::Unanswered(format!("no answer in {}", wanted.timeout)),
    }
}

async fn prometheus(wanted: &PrometheusMeasurement) -> Sample {
    let url = format!("{}/api/v1/query", wanted.address.trim_end_matches('/'));
    let form = Bytes::from(format!("query={}", encoded(&wanted.query)));
    let mut headers = wanted.headers.clone();
    headers.insert(
        CONTENT_TYPE.to_string(),
        "application/x-www-form-urlencoded".to_owned(),
    );
    let asking = ask("POST", &url, &headers, form, MOST_OF_A_RESULT);
    let found = match tokio::time::timeout(wanted.timeout.to_std(), asking).await {
        Ok(Ok(answer)) => values(&answer),
        Ok(Err(Trouble::NoAnswer(why) | Trouble::NotAsked(why))) => Err(why),
        Err(_) => Err(format!("no answer in {}", wanted.timeout)),
    };
    match found {
        Ok(values) => Sample::Values(values),
        Err(why) => Sample::NotMade(short(&format!("prometheus at {}: {why}", wanted.address))),
    }
}

#[derive(Deserialize)]
struct Outcome {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: serde_json::Value,
}

#[derive(Deserialize)]
struct Series {
    value: (f64, String),
}

/// The numbers of a result: of a scalar one, of a vector one per series.
fn values(answer: &Answer) -> Result<Vec<f64>, String> {
    if answer.more {
        return Err("its answer is longer than 1 MiB".to_owned());
    }
    let outcome: Result<Outcome, _> = serde_json::from_slice(&answer.body);
    let outcome = match outcome {
        Ok(outcome) if outcome.status == "success" => outcome,
        Ok(outcome) => return Err(format!("answered {}: {}", answer.status, outcome.error)),
        Err(_) if answer.status != StatusCode::OK => {
            return Err(format!("answered {}", answer.status));
        }
        Err(error) => return Err(format!("its answer is not understood: {error}")),
    };
    let data = outcome.data.ok_or("its answer has no data")?;
    let misread = |error: serde_json::Error| format!("its answer is not understood: {error}");
    let texts: Vec<String> = match data.result_type.as_str() {
        "vector" => {
            let series: Vec<Series> = serde_json::from_value(data.result).map_err(misread)?;
            series.into_iter().map(|one| one.value.1).collect()
        }
        "scalar" => {
            let (_, value): (f64, String) = serde_json::from_value(data.result).map_err(misread)?;
            vec![value]
        }
        other => {
            return Err(format!(
                "the query gives a {other}; want one number per series, as rate(x[1m]) does"
            ));
        }
    };
    let number = |text: String| match text.as_str() {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        text => text
            .parse::<f64>()
            .map_err(|_| format!("\"{}\" is no number", text.escape_debug())),
    };
    let numbers: Result<Vec<f64>, String> = texts.into_iter().map(number).collect();
    Ok(numbers?.into_iter().filter(|n| !n.is_nan()).collect())
}

/// A text as the value of a form.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

async fn ask(
    method: &str,
    url: &str,
    headers: &BTreeMap<String, String>,
    body: Bytes,
    limit: usize,
) -> Result<Answer, Trouble> {
    let not_asked = |error: &dyn std::fmt::Display| Trouble::NotAsked(error.to_string());
    let uri: Uri = url
        .parse()
        .map_err(|e: http::uri::InvalidUri| not_asked(&e))?;
    let host = uri
        .host()
        .ok_or_else(|| Trouble::NotAsked(format!("\"{url}\" names no host")))?;
    let authority = uri.authority().map_or(host, |authority| authority.as_str());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")));
    let named = |name: &HeaderName| {
        let mut names = headers.keys();
        names.any(|own| own.eq_ignore_ascii_case(name.as_str()))
    };
    if !named(&HOST) {
        request = request.header(HOST, authority);
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(body)).map_err(|e| not_asked(&e))?;
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port))
        .await
        .map_err(|error| Trouble::NoAnswer(format!("{authority}: {error}")))?;
    if !is_tls {
        return exchange(stream, request, limit).await;
    }
    let config = tokio::task::spawn_blocking(tls)
        .await
        .map_err(|e| not_asked(&e))?
        .map_err(Trouble::NotAsked)?;
    let name = ServerName::try_from(bare.to_owned()).map_err(|e| not_asked(&e))?;
    let stream = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| Trouble::NoAnswer(format!("{authority}: TLS: {error}")))?;
    exchange(stream, request, limit).await
}

/// Read at each connection: an update of the system's roots counts at once.
fn tls() -> Result<Arc<ClientConfig>, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(
            "this coordinator has no root certificates; install ca-certificates".to_owned(),
        );
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<Answer, Trouble> {
    let no_answer = |error: hyper::Error| Trouble::NoAnswer(error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(no_answer)?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(no_answer)?;
        let status = response.status();
        let (body, more) = read(response.into_body(), limit).await.map_err(no_answer)?;
        Ok(Answer { status, body, more })
    };
    // The connection moves only while it is polled, and ends with this exchange.
    tokio::select! {
        answer = asking => answer,
        ended = async { let ended = connection.await; std::future::pending::<()>().await; ended } => {
            ended.map_err(no_answer)?;
            Err(Trouble::NoAnswer("the connection ended".to_owned()))
        }
    }
}

/// The beginning of a body, and whether there was more.
async fn read(mut body: Incoming, limit: usize) -> Result<(Vec<u8>, bool), hyper::Error> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        let room = limit - read.len();
        if data.len() > room {
            read.extend_from_slice(&data[..room]);
            return Ok((read, true));
        }
        read.extend_from_slice(&data);
    }
    Ok((read, false))
}

fn short(why: &str) -> String {
    match why.char_indices().nth(LONGEST_WHY) {
        Some((end, _)) => format!("{}…", &why[..end]),
        None => why.to_owned(),
    }
}
