//! The protocol: streams, upgrades, old and new versions of HTTP, broken instances.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{Client, Proxy, Server, free_address, raw, request, route, until};

async fn one_version() -> (Proxy, std::net::SocketAddr, Server) {
    let (proxy, listen, blue) = (
        Proxy::start().await,
        free_address(),
        Server::start("blue").await,
    );
    proxy.hold(route(listen, &[(10_000, &[&blue])])).await;
    (proxy, listen, blue)
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let (proxy, listen, _blue) = one_version().await;
    let (pieces, stream) = mpsc::channel::<Result<Frame<Bytes>, hyper::Error>>(1);
    let body = StreamBody::new(ReceiverStream::new(stream)).boxed();
    let mut client = Client::connect(listen).await;
    pieces
        .send(Ok(Frame::data("one".into())))
        .await
        .expect("open");
    let mut answer = client
        .send(request("POST", "/echo", body))
        .await
        .expect("a head")
        .into_body();
    for piece in ["one", "two", "three"] {
        if piece != "one" {
            pieces
                .send(Ok(Frame::data(piece.into())))
                .await
                .expect("open");
        }
        // The next piece is sent only after this one came back: nothing waits for the end.
        let frame = answer.frame().await.expect("a frame").expect("no error");
        assert_eq!(frame.into_data().expect("data"), piece);
    }
    proxy.until_open("blue", 1).await;
    drop(pieces);
    assert!(answer.frame().await.is_none());
    proxy.until_open("blue", 0).await;
    let big = Bytes::from(vec![7; 3_000_000]);
    let body = Full::new(big.clone())
        .map_err(|never| match never {})
        .boxed();
    let answer = client
        .send(request("PUT", "/echo", body))
        .await
        .expect("a head");
    assert_eq!(answer.headers()["content-length"], "3000000");
    assert_eq!(
        answer
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes(),
        big
    );
}

#[tokio::test]
async fn a_changed_protocol_passes_through() {
    let (proxy, listen, _blue) = one_version().await;
    let mut stream = TcpStream::connect(listen).await.expect("it listens");
    let head =
        "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: capitals\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.expect("a head"));
    }
    let answer = String::from_utf8(answer)
        .expect("text")
        .to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(
        answer.contains("upgrade: capitals") && answer.contains("connection: upgrade"),
        "{answer}"
    );
    for word in ["tide", "gate"] {
        stream.write_all(word.as_bytes()).await.expect("sent");
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).await.expect("an echo");
        assert_eq!(echo, word.to_ascii_uppercase().as_bytes());
    }
    proxy.until_open("blue", 1).await;
    drop(stream);
    proxy.until_open("blue", 0).await;
    assert_eq!(
        proxy.version("blue").await.counters().responses,
        [1, 0, 0, 0, 0]
    );
}

#[tokio::test]
async fn close_cuts_a_changed_protocol_too() {
    let (proxy, listen, blue) = one_version().await;
    let mut stream = TcpStream::connect(listen).await.expect("it listens");
    let head =
        "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: capitals\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("sent");
    assert_eq!(stream.read_u8().await.expect("a head"), b'H');
    proxy.until_open("blue", 1).await;
    let mut table = route(listen, &[(0, &[&blue])]);
    table.versions[0].close = true;
    proxy.hold(table).await;
    proxy.until_open("blue", 0).await;
    let mut rest = Vec::new();
    // An end or a reset: both are a cut.
    stream.read_to_end(&mut rest).await.ok();
}

#[tokio::test]
async fn http_1_0_clients_and_instances_are_served() {
    let (proxy, listen, _blue) = one_version().await;
    let answer = raw(listen, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.0 200") && answer.ends_with("\r\n\r\nblue"),
        "{answer}"
    );

    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut table = route(listen, &[(10_000, &[&Server::start("old").await])]);
    table.versions[0].instances[0].address = socket.local_addr().expect("an address");
    proxy.hold(table).await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            let mut head = [0; 1024];
            let count = stream.read(&mut head).await.expect("a request");
            assert!(count > 0);
            stream
                .write_all(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
                .await
                .expect("sent");
        }
    });
    let mut client = Client::connect(listen).await;
    for _ in 0..3 {
        // The client's connection outlives those to the instance.
        assert_eq!(
            client.get("/").await.expect("an answer"),
            (200, "until the end".to_owned())
        );
    }
}

#[tokio::test]
async fn http_2_with_prior_knowledge_is_served() {
    let (_proxy, listen, _blue) = one_version().await;
    let stream = TcpStream::connect(listen).await.expect("it listens");
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("http/2");
    tokio::spawn(connection);
    let request = Request::builder()
        .uri("http://shop.test/headers")
        .body(Empty::<Bytes>::new());
    let response = sender
        .send_request(request.expect("a request"))
        .await
        .expect("an answer");
    assert_eq!(
        (response.status().as_u16(), response.version()),
        (200, Version::HTTP_2)
    );
    let bytes = response
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    for line in [
        "host: shop.test\n",
        "x-forwarded-for: 127.0.0.1\n",
        "x-forwarded-host: shop.test\n",
    ] {
        assert!(text.contains(line), "{text} lacks {line}");
    }
}

#[tokio::test]
async fn statuses_are_counted_by_class_and_heads_have_no_body() {
    let (proxy, listen, _blue) = one_version().await;
    let mut client = Client::connect(listen).await;
    for status in [204, 302, 304, 404, 404, 500, 503] {
        let answer = client
            .get(&format!("/status/{status}"))
            .await
            .expect("an answer");
        assert_eq!(answer.0, status);
    }
    let body = Empty::new().map_err(|never| match never {}).boxed();
    let head = client
        .send(request("HEAD", "/", body))
        .await
        .expect("an answer");
    assert_eq!(head.headers()["content-length"], "4");
    let version = proxy.version("blue").await;
    assert_eq!(version.counters().responses, [0, 2, 2, 2, 2]);
    assert_eq!(version.counters().failures, 0);
    assert!(version.first_error_at.is_some());
}

/// An instance that answers the first request of each connection and closes it at the second.
async fn closes_at_the_second(socket: TcpListener) {
    while let Ok((mut stream, _)) = socket.accept().await {
        tokio::spawn(async move {
            let mut head = [0; 4096];
            for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", ""] {
                if stream.read(&mut head).await.is_ok_and(|count| count > 0) {
                    stream
                        .write_all(answer.as_bytes())
                        .await
                        .expect("the proxy reads");
                }
            }
        });
    }
}

#[tokio::test]
async fn a_pooled_connection_that_ends_costs_no_repeatable_request() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut table = route(listen, &[(10_000, &[&Server::start("blue").await])]);
    table.versions[0].instances[0].address = socket.local_addr().expect("an address");
    tokio::spawn(closes_at_the_second(socket));
    proxy.hold(table).await;
    let mut client = Client::connect(listen).await;
    for _ in 0..10 {
        assert_eq!(
            client.get("/").await.expect("an answer"),
            (200, "ok".to_owned())
        );
    }
    let counters = proxy.version("blue").await.counters();
    assert_eq!((counters.requests, counters.errors()), (10, 0));
    let body = Full::new(Bytes::from("pay"))
        .map_err(|never| match never {})
        .boxed();
    let answer = client
        .send(request("POST", "/", body))
        .await
        .expect("an answer");
    assert_eq!(
        answer.status().as_u16(),
        502,
        "what may not be repeated is not repeated"
    );
    let counters = proxy.version("blue").await.counters();
    assert_eq!((counters.errors(), counters.failures), (1, 1));
}

#[tokio::test]
async fn an_instance_that_dies_in_the_middle_is_counted() {
    let (proxy, listen, blue) = one_version().await;
    let (mut client, mut other) = (Client::connect(listen).await, Client::connect(listen).await);
    let waiting = tokio::spawn(async move { client.get("/wait").await });
    let body = Empty::new().map_err(|never| match never {}).boxed();
    let mut half = other
        .send(request("GET", "/break", body))
        .await
        .expect("a head")
        .into_body();
    assert!(half.frame().await.expect("a frame").is_ok());
    until("both arrived", async || blue.served() == 2).await;
    blue.die().await;
    assert!(
        half.frame().await.expect("not the end").is_err(),
        "half a body is not a whole one"
    );
    let (status, text) = waiting.await.expect("no panic").expect("an answer");
    assert_eq!(status, 502);
    assert!(
        text.starts_with("tidegate: scope shop/eu: the instance of blue sent no answer"),
        "{text}"
    );
    let counters = proxy.version("blue").await.counters();
    assert_eq!(
        (counters.failures, counters.errors(), counters.aborted),
        (1, 1, 1)
    );
}

#[tokio::test]
async fn a_silent_instance_ends_in_504_and_an_impatient_client_is_counted() {
    let (proxy, listen, blue) = one_version().await;
    let mut table = route(listen, &[(10_000, &[&blue])]);
    table.response_timeout_ms = 50;
    proxy.hold(table).await;
    let (status, text) = Client::connect(listen)
        .await
        .get("/wait")
        .await
        .expect("an answer");
    assert_eq!(status, 504);
    assert!(text.contains("no answer within 50 ms"), "{text}");
    proxy.hold(route(listen, &[(10_000, &[&blue])])).await;
    let mut stream = TcpStream::connect(listen).await.expect("it listens");
    stream
        .write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("sent");
    proxy.until_open("blue", 1).await;
    drop(stream);
    proxy.until_open("blue", 0).await;
    let counters = proxy.version("blue").await.counters();
    assert_eq!(
        (counters.requests, counters.errors(), counters.abandoned),
        (2, 1, 1)
    );
}
