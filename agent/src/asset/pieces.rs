//! One request over one connection, and the answer's body piece by piece.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::fetch::{Answer, Pieces};

/// Keeps a connection up while its answer is read.
pub struct Connection {
    _sender: SendRequest<Empty<Bytes>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Sends a request over a fresh connection.
///
/// # Errors
/// The connection's.
pub async fn ask(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<(Response<Incoming>, Connection), String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "the connection to a source ended");
        }
    });
    let answer = sender.send_request(request).await;
    let connection = Connection {
        _sender: sender,
        driver,
    };
    let response = answer.map_err(|error| error.to_string())?;
    Ok((response, connection))
}

/// The body of an answer.
pub struct HttpPieces {
    body: Incoming,
    _connection: Connection,
}

impl HttpPieces {
    /// Of a connection that stays up meanwhile.
    pub fn new(body: Incoming, connection: Connection) -> Self {
        Self {
            body,
            _connection: connection,
        }
    }
}

impl Pieces for HttpPieces {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, String>>> {
        Box::pin(async move {
            loop {
                match self.body.frame().await? {
                    Ok(frame) => {
                        if let Ok(data) = frame.into_data() {
                            return Some(Ok(data));
                        }
                    }
                    Err(error) => return Some(Err(error.to_string())),
                }
            }
        })
    }
}
