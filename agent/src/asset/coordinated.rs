//! The coordinators' own store, over mutual TLS.

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{HOST, RANGE};
use hyper::{Request, StatusCode};
use tokio::sync::watch;

use super::fetch::{Answer, Opened, Part};
use super::pieces::{self, HttpPieces};
use crate::session::Coordinators;
use crate::tls::Tls;

/// The coordinators' store.
pub struct Coordinated {
    /// The agent's certificate.
    pub tls: Tls,
    /// The coordinators as they are known now.
    pub coordinators: watch::Receiver<Coordinators>,
}

impl Coordinated {
    /// Their HTTP addresses. Agents begin at different ones, so that a rollout spreads over all.
    pub fn addresses(&self) -> Vec<String> {
        let mut addresses = self.coordinators.borrow().http.clone();
        if !addresses.is_empty() {
            let start = crate::jitter::below(addresses.len() as u64) as usize;
            addresses.rotate_left(start);
        }
        addresses
    }

    /// Opens an asset at one of them.
    pub fn open<'a>(&'a self, address: &'a str, part: Part<'a>) -> Answer<'a, Opened> {
        Box::pin(async move { self.get(address, part).await.unwrap_or_else(Opened::Failed) })
    }

    async fn get(&self, address: &str, part: Part<'_>) -> Result<Opened, String> {
        let Part { digest, from, .. } = part;
        let stream = self
            .tls
            .connect(address, b"http/1.1")
            .await
            .map_err(|e| e.to_string())?;
        let mut request = Request::get(format!("/v1/blobs/{digest}")).header(HOST, address);
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|e| e.to_string())?;
        let (response, connection) = pieces::ask(stream, request).await?;
        let from = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => from,
            StatusCode::NOT_FOUND => return Ok(Opened::Missing),
            other => return Err(format!("answered {other}")),
        };
        Ok(Opened::Body {
            from,
            size: None,
            version: None,
            body: Box::new(HttpPieces::new(response.into_body(), connection)),
        })
    }
}
