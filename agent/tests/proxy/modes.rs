//! What a scope may ask of its listener: raw connections, TLS, HTTP/2 to instances, stickiness, a header.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::Signal;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tidegate_agent::proxy::table::{
    HeaderRoute, InstanceRoute, ListenProblemKind, Protocol, ScopeRoute, StickySpec, TlsRoute,
    VersionRoute,
};
use tidegate_agent::traffic::TrafficProvider;
use tidegate_shared::time::Span;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{
    Client, Proxy, SCOPE, Server, free_address, is_running, locked_by, request, route, signal,
    until,
};

/// A server of a protocol that nobody else knows: says its id, then sends everything back.
struct Raw {
    id: String,
    address: SocketAddr,
    accept: AbortHandle,
}

impl Raw {
    async fn start(id: &str) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = socket.local_addr().expect("an address");
        let name = format!("{id:>8}");
        let accept = tokio::spawn(async move {
            while let Ok((mut stream, _)) = socket.accept().await {
                let name = name.clone();
                tokio::spawn(async move {
                    stream.write_all(name.as_bytes()).await.ok();
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await.ok();
                });
            }
        });
        Self {
            id: id.to_owned(),
            address,
            accept: accept.abort_handle(),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

fn raw_route(listen: SocketAddr, versions: &[(u16, &Raw)]) -> ScopeRoute {
    let mut route = route(listen, &[]);
    route.protocol = Protocol::Tcp;
    let versions = versions.iter().map(|(weight, server)| VersionRoute {
        deployment: server.id.clone(),
        weight: *weight,
        on_demand: false,
        draining: false,
        close: false,
        instances: vec![InstanceRoute {
            instance: server.id.clone(),
            address: server.address,
            healthy: true,
        }],
    });
    route.versions = versions.collect();
    route
}

/// Connects and reads who answers.
async fn raw_client(listen: SocketAddr) -> Option<(String, TcpStream)> {
    let mut stream = TcpStream::connect(listen).await.expect("it listens");
    let mut name = [0; 8];
    stream.read_exact(&mut name).await.ok()?;
    let name = String::from_utf8(name.to_vec()).expect("text");
    Some((name.trim().to_owned(), stream))
}

#[tokio::test]
async fn raw_connections_are_spread_counted_drained_and_cut() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (blue, green) = (Raw::start("blue").await, Raw::start("green").await);
    proxy
        .hold(raw_route(listen, &[(7_500, &blue), (2_500, &green)]))
        .await;
    let mut greens = 0;
    for _ in 0..40 {
        let (name, mut stream) = raw_client(listen).await.expect("taken");
        greens += usize::from(name == "green");
        // Bytes that are no HTTP at all.
        stream
            .write_all(&[0, 255, 13, 10, 13, 10])
            .await
            .expect("sent");
        let mut echo = [0; 6];
        stream.read_exact(&mut echo).await.expect("an echo");
        assert_eq!(echo, [0, 255, 13, 10, 13, 10]);
    }
    assert_eq!(greens, 10);
    proxy.until_open("blue", 0).await;
    proxy.until_open("green", 0).await;
    let counters = proxy.version("blue").await.counters();
    assert_eq!((counters.connections, counters.requests), (30, 0));
    assert_eq!((counters.bytes_in, counters.bytes_out), (30 * 6, 30 * 14));

    // An open one stays with its version when the weight goes, new ones go to the other.
    let mut blues = Vec::new();
    while blues.is_empty() {
        let (name, stream) = raw_client(listen).await.expect("taken");
        if name == "blue" {
            blues.push(stream);
        }
    }
    proxy
        .hold(raw_route(listen, &[(0, &blue), (10_000, &green)]))
        .await;
    for _ in 0..10 {
        assert_eq!(raw_client(listen).await.expect("taken").0, "green");
    }
    proxy.until_open("blue", 1).await;
    blues[0].write_all(b"on").await.expect("sent");
    let mut echo = [0; 2];
    blues[0].read_exact(&mut echo).await.expect("an echo");
    let mut closed = raw_route(listen, &[(0, &blue), (10_000, &green)]);
    closed.versions[0].close = true;
    proxy.hold(closed).await;
    assert!(matches!(blues[0].read(&mut echo).await, Ok(0) | Err(_)));
    proxy.until_open("blue", 0).await;
}

#[tokio::test]
async fn a_raw_connection_goes_past_an_instance_that_refuses_and_over_a_new_proxy() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (blue, mut dead) = (Raw::start("blue").await, Raw::start("dead").await);
    dead.address = free_address();
    let held = raw_route(listen, &[(5_000, &blue), (5_000, &dead)]);
    proxy.hold(held).await;
    for _ in 0..6 {
        assert_eq!(raw_client(listen).await.expect("taken").0, "blue");
    }
    assert!(proxy.version("dead").await.counters().connect_errors > 0);
    let (_, mut open) = raw_client(listen).await.expect("taken");
    let old = locked_by(&proxy.dir()).expect("its id");
    proxy.traffic.replace().await.expect("replaced");
    open.write_all(b"still").await.expect("sent");
    let mut echo = [0; 5];
    open.read_exact(&mut echo).await.expect("an echo");
    assert_eq!(raw_client(listen).await.expect("taken").0, "blue");
    drop(open);
    until("the old one ends", || async { !is_running(old) }).await;
    proxy
        .hold(raw_route(listen, &[(0, &blue), (0, &dead)]))
        .await;
    assert!(raw_client(listen).await.is_none(), "nobody to take it");
}

fn pair(name: &str) -> TlsRoute {
    let key = rcgen::KeyPair::generate().expect("a key");
    let made = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
    TlsRoute {
        certificate: made.self_signed(&key).expect("signed").pem(),
        key: key.serialize_pem(),
    }
}

/// Takes every certificate: the tests look at it themselves.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

async fn tls(listen: SocketAddr, protocols: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(listen).await.expect("it listens");
    let name = ServerName::try_from("shop.test").expect("a name");
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    let (_, connection) = stream.get_ref();
    let chain = connection.peer_certificates().expect("a certificate");
    chain[0].to_vec()
}

/// One request over a stream that is not used again.
async fn get_over(stream: TlsStream<TcpStream>, path: &str) -> (u16, String) {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("http");
    tokio::spawn(connection);
    let body = Empty::new().map_err(|never| match never {}).boxed();
    let answer = sender
        .send_request(request("GET", path, body))
        .await
        .expect("an answer");
    let status = answer.status().as_u16();
    let body = answer
        .into_body()
        .collect()
        .await
        .expect("whole")
        .to_bytes();
    (status, String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn tls_ends_at_the_proxy_and_a_new_certificate_drops_no_connection() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let blue = Server::start("blue").await;
    let secure = |pair: &TlsRoute, revision: &str| {
        let mut route = route(listen, &[(10_000, &[&blue])]);
        route.tls = Some(pair.clone());
        route.revision = revision.to_owned();
        route
    };
    let (first, second) = (pair("one.test"), pair("two.test"));
    let held = proxy.hold(secure(&first, "r1")).await;
    assert_eq!(held.scopes[0].revision, "r1");

    let kept = tls(listen, &["http/1.1"]).await.expect("agreed");
    let one = shown(&kept);
    let (mut kept, connection) = hyper::client::conn::http1::handshake(TokioIo::new(kept))
        .await
        .expect("http");
    tokio::spawn(connection);
    let ask = |path: &str| {
        request(
            "GET",
            path,
            Empty::new().map_err(|never| match never {}).boxed(),
        )
    };
    let answer = kept.send_request(ask("/headers")).await.expect("an answer");
    let text = answer
        .into_body()
        .collect()
        .await
        .expect("whole")
        .to_bytes();
    let text = String::from_utf8(text.to_vec()).expect("text");
    assert!(text.contains("x-forwarded-proto: https"), "{text}");
    // HTTP/2 is agreed on when the client offers it.
    let h2 = tls(listen, &["h2", "http/1.1"]).await.expect("agreed");
    assert_eq!(h2.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut h2, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(h2))
            .await
            .expect("http2");
    tokio::spawn(connection);
    let get = Request::get("https://shop.test/")
        .body(Empty::<Bytes>::new())
        .expect("a request");
    let answer = h2.send_request(get).await.expect("an answer");
    assert_eq!(
        (answer.status().as_u16(), answer.version()),
        (200, Version::HTTP_2)
    );

    // Cleartext is not served there.
    let mut clear = TcpStream::connect(listen).await.expect("it listens");
    clear
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("sent");
    let mut said = Vec::new();
    clear.read_to_end(&mut said).await.ok();
    assert!(
        !String::from_utf8_lossy(&said).contains("HTTP/1.1"),
        "{said:?}"
    );

    proxy.hold(secure(&second, "r2")).await;
    let fresh = tls(listen, &["http/1.1"]).await.expect("agreed");
    assert_ne!(shown(&fresh), one);
    assert_eq!(get_over(fresh, "/").await, (200, "blue".to_owned()));
    let answer = kept
        .send_request(ask("/"))
        .await
        .expect("the kept connection goes on");
    assert_eq!(answer.status().as_u16(), 200);

    // A pair that does not fit is refused, and the one before it goes on.
    let broken = TlsRoute {
        key: first.key.clone(),
        ..second.clone()
    };
    let table = tidegate_agent::proxy::table::Table {
        scopes: vec![secure(&broken, "r3")],
    };
    let held = proxy
        .traffic
        .converge(table)
        .await
        .expect("the table is valid");
    let problem = held.scopes[0].problem.clone().expect("a problem");
    assert_eq!(problem.kind, ListenProblemKind::Certificate);
    assert_eq!(held.scopes[0].revision, "");
    let still = tls(listen, &["http/1.1"]).await.expect("agreed");
    assert_eq!(get_over(still, "/").await.0, 200);
    proxy.hold(secure(&second, "r2")).await;

    // Over a hand-over too, and the key is on no disk.
    proxy.traffic.replace().await.expect("replaced");
    let next = tls(listen, &["http/1.1"]).await.expect("agreed");
    assert_eq!(get_over(next, "/").await, (200, "blue".to_owned()));
    let stored = std::fs::read_to_string(proxy.dir().join("table.json")).expect("a table");
    assert!(stored.contains("CERTIFICATE") && !stored.contains("PRIVATE KEY"));

    // Killed, it comes back without the key, says so, and serves when it is told again.
    let pid = locked_by(&proxy.dir()).expect("its id");
    signal(pid, Signal::KILL);
    until("it is gone", || async { !is_running(pid) }).await;
    let held = proxy.traffic.observe().await.expect("it starts");
    let problem = held.scopes[0].problem.clone().expect("a problem");
    assert_eq!(problem.kind, ListenProblemKind::Waiting);
    assert!(
        tls(listen, &["http/1.1"]).await.is_err(),
        "nobody is let in"
    );
    proxy.hold(secure(&second, "r2")).await;
    let again = tls(listen, &["http/1.1"]).await.expect("agreed");
    assert_eq!(get_over(again, "/").await.0, 200);
}

#[tokio::test]
async fn raw_connections_over_tls() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let blue = Raw::start("blue").await;
    let mut route = raw_route(listen, &[(10_000, &blue)]);
    route.tls = Some(pair("shop.test"));
    proxy.hold(route).await;
    let mut stream = tls(listen, &[]).await.expect("agreed");
    stream.write_all(b"ping").await.expect("sent");
    let mut said = [0; 12];
    stream.read_exact(&mut said).await.expect("read");
    assert_eq!(&said, b"    blueping");
}

/// An instance that speaks HTTP/2 alone, as a gRPC server does: streams the body back, then a status in
/// the trailers.
async fn grpc(id: &str) -> InstanceRoute {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = socket.local_addr().expect("an address");
    let name: HeaderValue = id.parse().expect("a value");
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            let name = name.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let name = name.clone();
                async move {
                    assert_eq!(request.version(), Version::HTTP_2);
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("0"));
                    let end = tokio_stream::once(Ok(Frame::trailers(trailers)));
                    let te = request.headers().get("te").cloned();
                    let host = request.uri().authority().map(ToString::to_string);
                    let back = request.into_body().into_data_stream();
                    let back = tokio_stream::StreamExt::map(back, |piece| piece.map(Frame::data));
                    let body = StreamBody::new(tokio_stream::StreamExt::chain(back, end));
                    let mut answer = Response::new(body);
                    answer.headers_mut().insert("x-id", name);
                    if let Some(te) = te {
                        answer.headers_mut().insert("x-te", te);
                    }
                    let host = host.unwrap_or_default().parse().expect("a value");
                    answer.headers_mut().insert("x-host", host);
                    Ok::<_, hyper::Error>(answer)
                }
            });
            tokio::spawn(async move {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                server
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .ok();
            });
        }
    });
    InstanceRoute {
        instance: id.to_owned(),
        address,
        healthy: true,
    }
}

#[tokio::test]
async fn grpc_passes_with_its_trailers_both_ways_streaming() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let instance = grpc("blue").await;
    let mut route = route(listen, &[]);
    route.http2 = true;
    route.versions = vec![VersionRoute {
        deployment: "blue".to_owned(),
        weight: 10_000,
        on_demand: false,
        draining: false,
        close: false,
        instances: vec![instance],
    }];
    proxy.hold(route).await;
    let stream = TcpStream::connect(listen).await.expect("it listens");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("http2");
    tokio::spawn(connection);
    let calls = (0..20).map(|number| {
        let mut sender = sender.clone();
        tokio::spawn(async move {
            let (pieces, stream) =
                tokio::sync::mpsc::channel::<Result<Frame<Bytes>, hyper::Error>>(1);
            let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(stream));
            let call = Request::post("http://shop.test/svc/Method")
                .header("te", "trailers")
                .header("content-type", "application/grpc")
                .body(body)
                .expect("a request");
            let answer = sender
                .send_request(call)
                .await
                .expect("a head before the end");
            assert_eq!(answer.headers()["x-id"], "blue");
            assert_eq!(answer.headers()["x-te"], "trailers");
            assert_eq!(answer.headers()["x-host"], "shop.test");
            let mut body = answer.into_body();
            for round in 0..3 {
                let piece = Bytes::from(format!("{number} {round}"));
                pieces
                    .send(Ok(Frame::data(piece.clone())))
                    .await
                    .expect("open");
                let frame = body.frame().await.expect("a frame").expect("no error");
                assert_eq!(frame.into_data().expect("data"), piece);
            }
            drop(pieces);
            let end = loop {
                let frame = body.frame().await.expect("trailers").expect("no error");
                if let Ok(trailers) = frame.into_trailers() {
                    break trailers;
                }
            };
            assert_eq!(end["grpc-status"], "0");
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("no panic");
    }
    proxy.until_open("blue", 0).await;
    let counters = proxy.version("blue").await.counters();
    assert_eq!((counters.requests, counters.errors()), (20, 0));
    assert!(counters.bytes_in >= 20 * 9 && counters.bytes_out == counters.bytes_in);
    // HTTP/1.1 clients reach it too.
    let mut client = Client::connect(listen).await;
    let body = Full::new(Bytes::from("abc"))
        .map_err(|never| match never {})
        .boxed();
    let answer = client
        .send(request("POST", "/", body))
        .await
        .expect("an answer");
    let whole = answer.into_body().collect().await.expect("whole");
    assert_eq!(whole.to_bytes(), "abc");
}

/// One request with a header; the id that answered and the cookie that was set.
async fn ask_with(client: &mut Client, header: &str, value: &str) -> (String, Option<String>) {
    let body = Empty::new().map_err(|never| match never {}).boxed();
    let mut request = request("GET", "/", body);
    if !header.is_empty() {
        let name: hyper::header::HeaderName = header.parse().expect("a name");
        request
            .headers_mut()
            .insert(name, value.parse().expect("a value"));
    }
    let answer = client.send(request).await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
    let cookie = answer.headers().get("set-cookie");
    let cookie = cookie.map(|value| value.to_str().expect("text").to_owned());
    let body = answer
        .into_body()
        .collect()
        .await
        .expect("whole")
        .to_bytes();
    (String::from_utf8(body.to_vec()).expect("text"), cookie)
}

#[tokio::test]
async fn a_sticky_client_stays_while_its_version_has_weight() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (blue, green) = (Server::start("blue").await, Server::start("green").await);
    let sticky = |blues: u16, healthy: bool| {
        let mut route = route(listen, &[(blues, &[&blue]), (10_000 - blues, &[&green])]);
        route.sticky = Some(StickySpec {
            cookie: "tide".to_owned(),
            ttl: Span::from_secs(90),
        });
        route.versions[0].instances[0].healthy = healthy;
        route
    };
    proxy.hold(sticky(5_000, true)).await;
    let mut client = Client::connect(listen).await;
    let mut seen = Vec::new();
    for _ in 0..10 {
        let (id, cookie) = ask_with(&mut client, "", "").await;
        let cookie = cookie.expect("a new client gets one");
        assert_eq!(
            cookie,
            format!("tide={id}; Max-Age=90; Path=/; HttpOnly; SameSite=Lax")
        );
        seen.push(id);
    }
    assert_eq!(
        seen.iter().filter(|id| *id == "blue").count(),
        5,
        "new clients by weight"
    );
    for weight in [5_000, 100, 9_900] {
        let held = proxy.hold(sticky(weight, true)).await;
        assert_eq!(held.acknowledged_weight(SCOPE, "blue"), Some(weight));
        for id in ["blue", "green"] {
            for _ in 0..10 {
                let pinned = ask_with(&mut client, "cookie", &format!("a=b; tide={id}")).await;
                assert_eq!(pinned, (id.to_owned(), None));
            }
        }
    }
    // A cookie of nobody, of a version without weight, of one that is not healthy: chosen anew.
    assert!(
        ask_with(&mut client, "cookie", "tide=ghost")
            .await
            .1
            .is_some()
    );
    proxy.hold(sticky(0, true)).await;
    let (id, cookie) = ask_with(&mut client, "cookie", "tide=blue").await;
    assert_eq!(id, "green");
    assert!(
        cookie
            .expect("told to stay there")
            .starts_with("tide=green;")
    );
    proxy.hold(sticky(5_000, false)).await;
    assert_eq!(
        ask_with(&mut client, "cookie", "tide=blue").await.0,
        "green"
    );
}

#[tokio::test]
async fn a_header_reaches_the_candidate_without_weight_until_it_drains() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (blue, green) = (Server::start("blue").await, Server::start("green").await);
    let canary = |on_demand: bool| {
        let mut route = route(listen, &[(10_000, &[&blue]), (0, &[&green])]);
        route.route = Some(HeaderRoute {
            header: "X-Canary".to_owned(),
            value: "yes".to_owned(),
        });
        route.versions[1].on_demand = on_demand;
        route
    };
    let held = proxy.hold(canary(true)).await;
    assert!(held.scopes[0].version("green").expect("held").on_demand);
    let mut client = Client::connect(listen).await;
    for _ in 0..5 {
        assert_eq!(ask_with(&mut client, "x-canary", "yes").await.0, "green");
        assert_eq!(ask_with(&mut client, "x-canary", "no").await.0, "blue");
        assert_eq!(ask_with(&mut client, "", "").await.0, "blue");
    }
    proxy.hold(canary(false)).await;
    for _ in 0..5 {
        assert_eq!(ask_with(&mut client, "x-canary", "yes").await.0, "blue");
    }
    assert_eq!(proxy.version("green").await.counters().requests, 5);
    // One that is not healthy is gone past.
    let mut sick = canary(true);
    sick.versions[1].instances[0].healthy = false;
    proxy.hold(sick).await;
    assert_eq!(ask_with(&mut client, "x-canary", "yes").await.0, "blue");
}
