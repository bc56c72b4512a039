//! Assets on their way into the built-in store: digest first, then the bytes over HTTP to any
//! coordinator that answers.

use std::convert::Infallible;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::Frame;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tokio::io::AsyncReadExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::connect::{Client, dial, unreachable};
use crate::errors::{Failure, Result};
use crate::output;
use crate::tls;

const CHUNK: usize = 256 * 1024;
/// Longest answer that is read.
const ANSWER_LIMIT: usize = 64 * 1024;
const ATTEMPTS: u32 = 3;

/// A file with its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// Where it lies.
    pub path: PathBuf,
    /// SHA-256 of all its bytes.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// Reads a file once for its digest.
///
/// # Errors
/// It cannot be read, is no file, or is empty.
pub async fn measure(path: &Path) -> Result<Asset> {
    let path_owned = path.to_owned();
    let hashing = tokio::task::spawn_blocking(move || -> std::io::Result<(Digest, u64)> {
        let mut file = std::fs::File::open(&path_owned)?;
        if file.metadata()?.is_dir() {
            return Err(std::io::Error::from(std::io::ErrorKind::IsADirectory));
        }
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let mut size = 0_u64;
        loop {
            let read = std::io::Read::read(&mut file, &mut buffer)?;
            if read == 0 {
                return Ok((Digest::from_bytes(hash.finalize().into()), size));
            }
            hash.update(&buffer[..read]);
            size += read as u64;
        }
    });
    let (digest, size) = match hashing.await {
        Ok(Ok(measured)) => measured,
        Ok(Err(error)) => return Err(Failure::file(Reason::InvalidRequest, path, "read", &error)),
        Err(error) => return Err(Failure::new(Reason::Internal, error.to_string())),
    };
    if size == 0 {
        return Err(Failure::new(
            Reason::InvalidRequest,
            format!("{} is empty", path.display()),
        )
        .hint("name the file that was built"));
    }
    Ok(Asset {
        path: path.to_owned(),
        digest,
        size,
    })
}

/// Sends a file to the first coordinator that takes it, telling how far it is.
///
/// # Errors
/// None takes it, or its bytes changed meanwhile.
pub async fn send(client: &Client, asset: &Asset, quiet: bool) -> Result<()> {
    let addresses = client.context().description.http.clone();
    let mut failures = Vec::new();
    for _ in 0..ATTEMPTS {
        failures.clear();
        for address in &addresses {
            match send_to(client, address, asset, quiet).await {
                Ok(()) => return Ok(()),
                Err(failure) if failure.is_transient() || failure.is(Reason::Unreachable) => {
                    failures.push((address.clone(), failure));
                }
                Err(failure) => return Err(failure),
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    Err(unreachable(failures, "http"))
}

async fn send_to(client: &Client, address: &str, asset: &Asset, quiet: bool) -> Result<()> {
    let lost = |error: &dyn std::fmt::Display| {
        Failure::new(
            Reason::Unreachable,
            format!("the upload broke off: {error}"),
        )
    };
    let stream = dial(address, tls::mutual(client.context(), b"http/1.1")?).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| lost(&error))?;
    let driver = tokio::spawn(connection);
    let file = tokio::fs::File::open(&asset.path)
        .await
        .map_err(|error| Failure::file(Reason::InvalidRequest, &asset.path, "read", &error))?;
    let body = StreamBody::new(ReceiverStream::new(chunks(file, asset, quiet)));
    let request = Request::put(format!("/v1/blobs/{}", asset.digest))
        .header("host", address)
        .header("content-type", "application/octet-stream")
        .header("content-length", asset.size)
        .body(body)
        .map_err(|error| lost(&error))?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| lost(&error))?;
    let status = answer.status();
    let text = Limited::new(answer.into_body(), ANSWER_LIMIT)
        .collect()
        .await
        .map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
    driver.abort();
    if status.is_success() {
        return Ok(());
    }
    Err(refusal(status, &text))
}

/// Reads the file in pieces and tells the progress on a terminal.
fn chunks(
    mut file: tokio::fs::File,
    asset: &Asset,
    quiet: bool,
) -> tokio::sync::mpsc::Receiver<std::result::Result<Frame<Bytes>, Infallible>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let total = asset.size;
    let name = asset
        .path
        .file_name()
        .map(|name| output::printable(&name.to_string_lossy()))
        .unwrap_or_default();
    let shown = !quiet && std::io::stderr().is_terminal();
    tokio::spawn(async move {
        let mut sent = 0_u64;
        let mut told = 101;
        loop {
            let mut buffer = vec![0; CHUNK];
            // A file that shrinks or cannot be read any more ends the body early; the store
            // refuses what is then incomplete.
            let read = file.read(&mut buffer).await.unwrap_or(0);
            if read == 0 {
                break;
            }
            buffer.truncate(read);
            sent += read as u64;
            if sender
                .send(Ok(Frame::data(Bytes::from(buffer))))
                .await
                .is_err()
            {
                break;
            }
            let percent = sent * 100 / total.max(1);
            if shown && percent != told {
                told = percent;
                write!(
                    std::io::stderr(),
                    "\r\u{1b}[Kuploading {name}: {percent} % of {}",
                    output::bytes(total)
                )
                .ok();
            }
        }
        if shown {
            write!(std::io::stderr(), "\r\u{1b}[K").ok();
        }
    });
    receiver
}

fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let told: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let field = |name: &str| {
        let value = told.as_ref()?;
        let inner = value
            .get("error")
            .filter(|inner| inner.is_object())
            .unwrap_or(value);
        inner.get(name)?.as_str().map(str::to_owned)
    };
    let by_code = field("code").and_then(|code| Reason::ALL.iter().find(|r| r.code() == code));
    let reason = by_code.copied().unwrap_or(match status {
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Reason::DigestMismatch,
        StatusCode::PAYLOAD_TOO_LARGE => Reason::TooLarge,
        StatusCode::UNAUTHORIZED => Reason::Unauthenticated,
        StatusCode::FORBIDDEN => Reason::PermissionDenied,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => Reason::Unreachable,
        _ => Reason::Internal,
    });
    let plain = output::printable(String::from_utf8_lossy(body).trim());
    let message = field("message").unwrap_or(plain);
    let failure = Failure::new(
        reason,
        if message.is_empty() {
            format!("the store refused the asset: {status}")
        } else {
            message
        },
    );
    match field("hint") {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_measured_and_wrong_ones_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        std::fs::write(&path, b"abc").unwrap();
        let asset = measure(&path).await.unwrap();
        assert_eq!(asset.size, 3);
        assert_eq!(asset.digest, Digest::of(b"abc"));
        let missing = measure(&folder.path().join("b")).await.unwrap_err();
        assert!(missing.message().ends_with("there is no such file"));
        let is_folder = measure(folder.path()).await.unwrap_err();
        assert!(
            is_folder.message().ends_with("it is a folder"),
            "{is_folder}"
        );
        std::fs::write(&path, b"").unwrap();
        assert!(
            measure(&path)
                .await
                .unwrap_err()
                .message()
                .ends_with("is empty")
        );
    }

    #[test]
    fn refusals_of_the_store_keep_their_code() {
        let failure = refusal(
            StatusCode::BAD_REQUEST,
            br#"{"code":"TG-1408","message":"too large","hint":"less"}"#,
        );
        assert_eq!(
            (failure.code(), failure.message()),
            ("TG-1408", "too large")
        );
        assert_eq!(refusal(StatusCode::BAD_REQUEST, b"no").code(), "TG-1004");
    }
}
