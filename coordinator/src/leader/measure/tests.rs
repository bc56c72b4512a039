//! Against a server of the test's own and against a real Prometheus.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tidegate_coordinator_core::verification::LeaderKind;
use tidegate_shared::measurement::Sample;
use tidegate_shared::spec::VerificationSpec;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::client::sample;

fn what(json: &str) -> LeaderKind {
    let json = format!(r#"{{"name": "a", {json}}}"#);
    let spec: VerificationSpec = serde_json::from_str(&json).unwrap();
    match (spec.http, spec.prometheus) {
        (Some(http), _) => LeaderKind::Http(http),
        (None, Some(query)) => LeaderKind::Prometheus(query),
        (None, None) => panic!("{json}"),
    }
}

fn query(address: &str, query: &str) -> LeaderKind {
    what(&format!(
        r#""prometheus": {{"address": "{address}", "query": "{query}", "timeout": "30s"}}"#
    ))
}

/// A server that answers every request alike.
async fn server(reply: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 4_096]).await.unwrap() > 0);
            stream.write_all(reply.as_bytes()).await.ok();
        }
    });
    address
}

async fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn addresses_bring_status_and_body() {
    let reply = "HTTP/1.1 302 Found\r\nlocation: /b\r\ncontent-length: 13\r\n\r\n{\"ready\":true}";
    let address = server(reply).await;
    let found = sample(&what(&format!(
        r#""http": {{"url": "http://{address}/a?b=c"}}"#
    )))
    .await;
    // A redirect is an answer and not followed.
    let Sample::Http { status, body, .. } = found else {
        panic!("{found:?}");
    };
    assert_eq!((status, body.as_str()), (302, "{\"ready\":true"));
    let nobody = free_address().await;
    let found = sample(&what(&format!(r#""http": {{"url": "http://{nobody}/"}}"#))).await;
    assert!(
        matches!(&found, Sample::Unanswered(why) if why.contains("refused")),
        "{found:?}"
    );
    // It speaks no TLS.
    let found = sample(&what(&format!(
        r#""http": {{"url": "https://{address}/"}}"#
    )))
    .await;
    assert!(
        matches!(&found, Sample::Unanswered(_) | Sample::NotMade(_)),
        "{found:?}"
    );
}

#[tokio::test]
async fn what_is_no_prometheus_says_nothing_about_the_version() {
    let nobody = free_address().await;
    let found = sample(&query(&format!("http://{nobody}"), "up")).await;
    let Sample::NotMade(why) = found else {
        panic!("{found:?}");
    };
    assert!(
        why.starts_with(&format!("prometheus at http://{nobody}: ")),
        "{why}"
    );
    assert!(why.contains("refused"), "{why}");
    let address = server("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
    let found = sample(&query(&format!("http://{address}"), "up")).await;
    assert!(
        matches!(&found, Sample::NotMade(why) if why.contains("not understood")),
        "{found:?}"
    );
}

/// A Prometheus of the test's own, which scrapes itself.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Prometheus {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = free_address().await;
        let config = dir.path().join("prometheus.yml");
        let text = format!(
            "global:\n  scrape_interval: 1s\nscrape_configs:\n- job_name: itself\n  static_configs:\n  - targets: ['{address}']\n"
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus does not start: `tests/run --prepare` installs it");
        Self {
            child,
            address,
            _dir: dir,
        }
    }

    /// The sample of a query, once `holds` of it.
    async fn until(&self, text: &str, holds: impl Fn(&Sample) -> bool) -> Sample {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let found = sample(&query(&format!("http://{}", self.address), text)).await;
            if holds(&found) {
                return found;
            }
            assert!(Instant::now() < deadline, "{text}: {found:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test]
async fn a_real_prometheus_answers_queries() {
    let prometheus = Prometheus::start().await;
    let up = |found: &Sample| *found == Sample::Values(vec![1.0]);
    prometheus.until("up{job='itself'}", up).await;
    prometheus.until("scalar(up)", up).await;
    let many = prometheus
        .until(
            "prometheus_http_requests_total",
            |found| matches!(found, Sample::Values(values) if values.len() > 1),
        )
        .await;
    assert!(matches!(many, Sample::Values(_)));
    // No series, and no number.
    let nothing = |found: &Sample| *found == Sample::Values(Vec::new());
    prometheus.until("nothing_of_that_name", nothing).await;
    prometheus
        .until("scalar(nothing_of_that_name)", nothing)
        .await;
    let found = prometheus
        .until("sum(rate(", |found| matches!(found, Sample::NotMade(_)))
        .await;
    let Sample::NotMade(why) = found else {
        unreachable!("it was asked for that");
    };
    assert!(why.contains("400") && why.contains("parse error"), "{why}");
    let found = prometheus
        .until("up[1m]", |found| matches!(found, Sample::NotMade(_)))
        .await;
    assert!(
        matches!(&found, Sample::NotMade(why) if why.contains("gives a matrix")),
        "{found:?}"
    );
}
