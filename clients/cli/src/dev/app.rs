//! The demo's application: a tiny HTTP server that tells its version and fails as many of its
//! requests as its release says. `/healthz` is always well: only real requests show the trouble.

use std::convert::Infallible;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use serde::{Deserialize, Serialize};
use tidegate_shared::error::Reason;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::errors::{Failure, Result};

/// Header that carries the version in every answer.
pub const VERSION_HEADER: &str = "x-demo-version";

/// A line is printed once per so many requests.
const TOLD_EVERY: u64 = 100;

/// What a release of the application says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// Told in every answer.
    pub version: String,
    /// Share of requests that are answered with 500: 0 to 1.
    pub error_rate: f64,
}

/// How the application is started.
#[derive(Debug, Args)]
pub struct DemoAppArgs {
    /// File with version and error rate.
    #[arg(long, value_name = "FILE")]
    release: PathBuf,
    /// Share of failing requests instead of the file's.
    #[arg(long, value_name = "SHARE", env = "DEMO_ERROR_RATE")]
    error_rate: Option<f64>,
    /// Port to listen on.
    #[arg(long, env = "PORT")]
    port: u16,
    /// Address to listen on.
    #[arg(long, env = "TIDEGATE_ADDRESS", default_value = "0.0.0.0")]
    host: String,
}

/// Serves until SIGTERM, then ends what is open.
///
/// # Errors
/// The file cannot be read, or the port is taken.
pub async fn run(args: DemoAppArgs) -> Result<()> {
    let text = std::fs::read(&args.release)
        .map_err(|error| Failure::file(Reason::MalformedFile, &args.release, "read", &error))?;
    let mut release: Release = serde_json::from_slice(&text).map_err(|error| {
        Failure::new(
            Reason::MalformedFile,
            format!("{}: {error}", args.release.display()),
        )
    })?;
    if let Some(error_rate) = args.error_rate {
        release.error_rate = error_rate;
    }
    let address = format!("{}:{}", args.host, args.port);
    let listener = TcpListener::bind(&address).await.map_err(|error| {
        Failure::new(
            Reason::AddressInUse,
            format!("cannot listen on {address}: {error}"),
        )
    })?;
    // For `tidegate logs`; an application whose output is closed still serves.
    writeln!(
        std::io::stdout(),
        "version {} listens on {address}",
        release.version
    )
    .ok();
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
    serve(listener, Arc::new(App::new(release)), async move {
        terminate.recv().await;
    })
    .await;
    Ok(())
}

/// The application: how many requests it had.
#[derive(Debug)]
struct App {
    release: Release,
    requests: AtomicU64,
}

impl App {
    const fn new(release: Release) -> Self {
        Self {
            release,
            requests: AtomicU64::new(0),
        }
    }

    /// Whether the n-th request fails: evenly spread, so that short windows show the true share.
    fn fails(&self, number: u64) -> bool {
        let due = |count: u64| (count as f64 * self.release.error_rate).floor();
        due(number + 1) > due(number)
    }

    /// A line for `tidegate logs` after the first request and after every hundredth.
    fn tell(&self, number: u64) {
        let count = number + 1;
        if count != 1 && !count.is_multiple_of(TOLD_EVERY) {
            return;
        }
        let failed = (count as f64 * self.release.error_rate).floor();
        let count = match count {
            1 => "first request".to_owned(),
            _ => format!("{count} requests"),
        };
        // An application whose output is closed still serves.
        writeln!(
            std::io::stdout(),
            "version {}: {count}, {failed} failed",
            self.release.version
        )
        .ok();
    }

    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        let version = &self.release.version;
        let (status, text) = if path == "/healthz" {
            (StatusCode::OK, "ok\n".to_owned())
        } else {
            let number = self.requests.fetch_add(1, Ordering::Relaxed);
            self.tell(number);
            if self.fails(number) {
                (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("version {version} failed\n"),
                )
            } else {
                (StatusCode::OK, format!("hello from version {version}\n"))
            }
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        if let Ok(value) = version.parse() {
            response.headers_mut().insert(VERSION_HEADER, value);
        }
        response
    }
}

async fn serve(listener: TcpListener, app: Arc<App>, stop: impl Future<Output = ()>) {
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, as a rule: let some come back.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let app = app.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = app.answer(request.uri().path());
            async move { Ok::<_, Infallible>(answer) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A client that goes away is no trouble of the application.
            connection.await.ok();
        });
    }
    graceful.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_fails_evenly() {
        let app = App::new(Release {
            version: "3".to_owned(),
            error_rate: 0.2,
        });
        let statuses: Vec<_> = (0..10).map(|_| app.answer("/").status().as_u16()).collect();
        assert_eq!(statuses, [200, 200, 200, 200, 500, 200, 200, 200, 200, 500]);
        let healthy = app.answer("/healthz");
        assert_eq!(healthy.status(), StatusCode::OK);
        assert_eq!(healthy.headers()[VERSION_HEADER], "3");
    }
}
