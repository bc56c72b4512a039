//! GET a path: status, and a text in the body where one is wanted.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper::header::{HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tidegate_shared::spec::HttpProbe;
use tokio::net::TcpStream;

/// Most of a body that is looked at: 1 MiB.
const BODY_LIMIT: usize = 1 << 20;

/// One sample.
///
/// # Errors
/// Why it is no success.
pub async fn sample(probe: &HttpProbe, address: SocketAddr) -> Result<(), String> {
    let path = &probe.path;
    let failed = |what: &dyn std::fmt::Display| format!("GET {path} on {address}: {what}");
    let stream = TcpStream::connect(address).await.map_err(|e| failed(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|e| failed(&e))?;
    let request = Request::get(path.as_str())
        .header(HOST, address.to_string())
        .header(USER_AGENT, "tidegate-health-check")
        .body(Empty::new())
        .map_err(|e| failed(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let status = response.status();
        match probe.status {
            Some(wanted) if status.as_u16() != wanted => {
                return Err(failed(&format!("answered {status}, wanted {wanted}")));
            }
            None if !status.is_success() => return Err(failed(&format!("answered {status}"))),
            Some(_) | None => {}
        }
        let Some(text) = &probe.body_contains else {
            return Ok(());
        };
        let body = Limited::new(response.into_body(), BODY_LIMIT);
        let body = body.collect().await.map_err(|e| failed(&e))?.to_bytes();
        let found = body
            .windows(text.len().max(1))
            .any(|part| part == text.as_bytes());
        if text.is_empty() || found {
            Ok(())
        } else {
            Err(failed(&format!("the body does not contain \"{text}\"")))
        }
    };
    // The connection moves only while it is polled, and ends with this sample.
    tokio::select! {
        result = exchange => result,
        ended = async { let ended = connection.await; std::future::pending::<()>().await; ended } => {
            ended.map_err(|e| failed(&e))
        }
    }
}
