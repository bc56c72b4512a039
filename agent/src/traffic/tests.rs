//! The conformance suite over the fake and over a proxy that runs in this process.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::conformance::{Subject, run};
use super::fake::FakeTraffic;
use super::proxy::ProxyTraffic;
use super::{TrafficError, TrafficProvider};
use crate::proxy::ProxyArgs;
use crate::proxy::control::ControlClient;
use crate::proxy::table::Table;

struct FakeWorld {
    fake: FakeTraffic,
    next_port: u16,
}

impl FakeWorld {
    fn address(&mut self) -> SocketAddr {
        self.next_port += 1;
        SocketAddr::from(([127, 0, 0, 1], self.next_port))
    }
}

impl Subject for FakeWorld {
    fn provider(&self) -> &dyn TrafficProvider {
        &self.fake
    }

    fn listener(&mut self) -> SocketAddr {
        self.address()
    }

    fn instance(&mut self, _id: &str) -> SocketAddr {
        self.address()
    }

    fn occupied(&mut self) -> SocketAddr {
        let address = self.address();
        self.fake.occupy(address);
        address
    }

    async fn request(&self, listen: SocketAddr) -> Option<String> {
        self.fake.request(listen, 200, 1_000)
    }
}

#[tokio::test]
async fn the_fake_conforms() {
    run(&mut FakeWorld {
        fake: FakeTraffic::default(),
        next_port: 10_000,
    })
    .await;
}

#[tokio::test]
async fn the_fake_can_be_made_to_fail() {
    let fake = FakeTraffic::default();
    fake.fail(Some("the disk is gone".into()));
    let error = fake.converge(Table::default()).await.expect_err("fails");
    assert!(matches!(error, TrafficError::Unreachable { .. }));
    assert!(error.to_string().contains("the disk is gone"));
    fake.fail(None);
    fake.converge(Table::default()).await.expect("mended");
}

struct ProxyWorld {
    provider: ProxyTraffic,
    instances: HashMap<String, SocketAddr>,
    occupied: Vec<StdListener>,
}

fn free_address() -> SocketAddr {
    let socket = StdListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("an address")
}

/// Answers every request on `socket` with `id`.
async fn serve(socket: TcpListener, id: String) {
    while let Ok((stream, _)) = socket.accept().await {
        let id = id.clone();
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream
                .read_line(&mut line)
                .await
                .is_ok_and(|count| count > 0)
            {
                if line.trim().is_empty() {
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{id}",
                        id.len()
                    );
                    stream
                        .write_all(answer.as_bytes())
                        .await
                        .expect("the proxy reads");
                }
                line.clear();
            }
        });
    }
}

impl Subject for ProxyWorld {
    fn provider(&self) -> &dyn TrafficProvider {
        &self.provider
    }

    fn listener(&mut self) -> SocketAddr {
        free_address()
    }

    fn instance(&mut self, id: &str) -> SocketAddr {
        *self.instances.entry(id.to_owned()).or_insert_with(|| {
            let socket = StdListener::bind("127.0.0.1:0").expect("a free port");
            socket.set_nonblocking(true).expect("nonblocking");
            let address = socket.local_addr().expect("an address");
            let socket = TcpListener::from_std(socket).expect("in the runtime");
            tokio::spawn(serve(socket, id.to_owned()));
            address
        })
    }

    fn occupied(&mut self) -> SocketAddr {
        let socket = StdListener::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("an address");
        self.occupied.push(socket);
        address
    }

    async fn request(&self, listen: SocketAddr) -> Option<String> {
        let mut stream = TcpStream::connect(listen).await.ok()?;
        let request = "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("p");
    let args = ProxyArgs {
        dir: dir.clone(),
        detach: false,
        threads: Some(2),
        take_over: false,
        background: false,
        drain: 1,
    };
    let proxy = tokio::spawn(crate::proxy::run(args));
    while ControlClient::connect(&dir).await.is_err() {
        assert!(!proxy.is_finished(), "the proxy ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let provider = ProxyTraffic::new(dir).expect("the program has a path");
    let mut world = ProxyWorld {
        provider,
        instances: HashMap::new(),
        occupied: Vec::new(),
    };
    run(&mut world).await;
    world
        .provider
        .shutdown(Duration::from_secs(5))
        .await
        .expect("it runs");
    proxy.await.expect("no panic").expect("a clean end");
}
