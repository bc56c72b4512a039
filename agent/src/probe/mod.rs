//! Probes: one sample each, with a time limit, and no judgement. Thresholds are the core's.

pub mod exec;
pub mod http;
pub mod tcp;

use std::net::SocketAddr;

use tidegate_shared::spec::{HealthCheck, Probe};

use crate::executor::Launch;

/// Takes one sample of an instance's health check.
///
/// # Errors
/// Why it failed, in one line.
pub async fn sample(
    check: &HealthCheck,
    address: SocketAddr,
    launch: &Launch,
    instance_dir: &std::path::Path,
) -> Result<(), String> {
    let limit = check.timeout.to_std();
    let probe = async {
        match check.probe() {
            Probe::Http(http) => http::sample(http, address).await,
            Probe::Tcp => tcp::sample(address).await,
            Probe::Exec(exec) => exec::sample(exec, launch, instance_dir).await,
            // The end of a process is told by the executor, at once.
            Probe::Alive => Ok(()),
        }
    };
    tokio::time::timeout(limit, probe)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {}", check.timeout)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::conformance::launch;
    use tidegate_shared::spec::{ExecProbe, HttpProbe, RunSpec};
    use tidegate_shared::time::Span;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    async fn serve(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1_024];
                if stream.read(&mut request).await.is_ok() && !answer.is_empty() {
                    stream.write_all(answer.as_bytes()).await.ok();
                } else {
                    std::future::pending::<()>().await;
                }
            }
        });
        address
    }

    fn check(status: Option<u16>, body: Option<&str>) -> HealthCheck {
        HealthCheck {
            http: Some(HttpProbe {
                path: "/health".into(),
                status,
                body_contains: body.map(str::to_owned),
            }),
            timeout: Span::from_secs(5),
            ..HealthCheck::default()
        }
    }

    async fn take(check: &HealthCheck, address: SocketAddr) -> Result<(), String> {
        let dir = std::env::temp_dir();
        sample(check, address, &launch(0, &dir, RunSpec::default()), &dir).await
    }

    #[tokio::test]
    async fn http_looks_at_status_and_body() {
        let good = serve("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(take(&check(None, None), good).await, Ok(()));
        let bad = take(&check(Some(200), None), good).await.unwrap_err();
        assert!(bad.contains("204") && bad.contains("200"), "{bad}");
        let body = serve("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready").await;
        assert_eq!(take(&check(None, Some("ready")), body).await, Ok(()));
        let bad = take(&check(None, Some("steady")), body).await.unwrap_err();
        assert!(bad.contains("steady"), "{bad}");
        let broken = serve("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await;
        assert!(
            take(&check(None, None), broken)
                .await
                .unwrap_err()
                .contains("503")
        );
    }

    #[tokio::test]
    async fn silence_and_refusal_are_failures() {
        let silent = serve("").await;
        let quick = HealthCheck {
            timeout: Span::from_millis(50),
            ..check(None, None)
        };
        assert_eq!(
            take(&quick, silent).await.unwrap_err(),
            "no answer within 50ms"
        );
        let closed = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let tcp = HealthCheck {
            http: None,
            tcp: true,
            ..check(None, None)
        };
        assert!(take(&tcp, closed).await.unwrap_err().contains("refused"));
        assert_eq!(take(&tcp, silent).await, Ok(()));
    }

    #[tokio::test]
    async fn programs_are_judged_by_their_exit() {
        let address = "127.0.0.1:1".parse().unwrap();
        let run = |script: &str| HealthCheck {
            http: None,
            exec: Some(ExecProbe {
                command: "/bin/sh".into(),
                args: vec!["-c".into(), script.into()],
            }),
            ..check(None, None)
        };
        assert_eq!(take(&run("test \"$PORT\" = 20000"), address).await, Ok(()));
        let error = take(&run("echo no; exit 4"), address).await.unwrap_err();
        assert!(
            error.contains("exit status: 4") && error.contains("no"),
            "{error}"
        );
    }
}
