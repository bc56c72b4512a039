//! One request to an instance.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{HOST, USER_AGENT};
use tidegate_shared::measurement::Sample;
use tidegate_shared::spec::HttpMeasurement;
use tokio::net::TcpStream;

use super::text;
use crate::asset::pieces;

/// One sample, with at most `limit` bytes of the body.
pub(super) async fn sample(wanted: &HttpMeasurement, address: SocketAddr, limit: usize) -> Sample {
    if address.port() == 0 {
        return Sample::NotMade("the instance has no port".to_owned());
    }
    let exchange = exchange(wanted, address, limit);
    match tokio::time::timeout(wanted.timeout.to_std(), exchange).await {
        Ok(Ok(sample)) => sample,
        Ok(Err(why)) => Sample::Unanswered(why),
        Err(_) => Sample::Unanswered(format!("no answer in {}", wanted.timeout)),
    }
}

async fn exchange(
    wanted: &HttpMeasurement,
    address: SocketAddr,
    limit: usize,
) -> Result<Sample, String> {
    let mut request = Request::builder()
        .method(wanted.method.as_str())
        .uri(wanted.path.as_deref().unwrap_or("/"))
        .header(USER_AGENT, "tidegate-verification");
    let named = |name: &str| {
        let mut names = wanted.headers.keys();
        names.any(|own| own.eq_ignore_ascii_case(name))
    };
    if !named(HOST.as_str()) {
        request = request.header(HOST, address.to_string());
    }
    for (name, value) in &wanted.headers {
        request = request.header(name, value);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("the request cannot be made: {error}"))?;
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    let (response, _connection) = pieces::ask(stream, request).await?;
    let status = response.status().as_u16();
    let (body, more) = read(response.into_body(), limit).await?;
    let (body, cut) = text(&body, limit);
    Ok(Sample::Http {
        status,
        body,
        cut: cut || more,
    })
}

/// The beginning of a body, and whether there was more.
async fn read(mut body: Incoming, limit: usize) -> Result<(Vec<u8>, bool), String> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        let Ok(data) = frame.into_data() else {
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
