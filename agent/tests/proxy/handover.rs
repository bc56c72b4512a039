//! One proxy takes over from another, under load, with long connections, and with either of them killed.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hyper::StatusCode;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use tidegate_agent::proxy::table::Held;
use tidegate_agent::traffic::TrafficProvider;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use crate::support::{
    Client, Proxy, SCOPE, Server, free_address, is_running, locked_by, program, request, route,
    signal, until,
};

/// Requests without a pause over kept and fresh connections; every one must succeed.
struct Load {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicU64>,
    workers: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(listen: SocketAddr) -> Self {
        let (stop, good) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let workers = (0..6).map(|number| {
            let (stop, good): (_, Arc<AtomicU64>) = (Arc::clone(&stop), Arc::clone(&good));
            tokio::spawn(async move {
                let mut kept: Option<Client> = None;
                while !stop.load(Ordering::SeqCst) {
                    // One that was told to go is made anew, as every client does.
                    let mut client = match kept.take().filter(|kept| !kept.sender.is_closed()) {
                        Some(kept) => kept,
                        None => Client::connect(listen).await,
                    };
                    let body = http_body_util::Empty::new();
                    let body = http_body_util::BodyExt::map_err(body, |never| match never {});
                    let request = request("GET", "/", http_body_util::BodyExt::boxed(body));
                    let answer = client.send(request).await.expect("an answer");
                    assert_eq!(answer.status(), StatusCode::OK);
                    let close = answer.headers().get("connection").is_some();
                    let body = http_body_util::BodyExt::collect(answer.into_body());
                    body.await.expect("a whole body");
                    good.fetch_add(1, Ordering::SeqCst);
                    if number % 2 == 0 && !close {
                        kept = Some(client);
                    }
                }
            })
        });
        let workers = workers.collect();
        Self {
            stop,
            good,
            workers,
        }
    }

    async fn more(&self, count: u64) {
        let wanted = self.good.load(Ordering::SeqCst) + count;
        until("more answers", || async {
            self.good.load(Ordering::SeqCst) >= wanted
                || self.workers.iter().any(JoinHandle::is_finished)
        })
        .await;
    }

    /// How many requests were answered; none failed.
    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for worker in self.workers {
            worker.await.expect("no request failed");
        }
        self.good.load(Ordering::SeqCst)
    }
}

fn counted(held: &Held) -> (u64, u64) {
    let version = held.scope(SCOPE).and_then(|scope| scope.version("blue"));
    let counters = version.expect("it is held").counters();
    (counters.requests, counters.since_ms)
}

#[tokio::test]
async fn proxies_replace_each_other_and_no_request_fails() {
    let (proxy, listen, blue) = (
        Proxy::start().await,
        free_address(),
        Server::start("blue").await,
    );
    let first = proxy.traffic.ensure_running().await.expect("it runs");
    let held = proxy.hold(route(listen, &[(10_000, &[&blue])])).await;
    let (_, since) = counted(&held);

    // A tunnel and a slow answer that began before the first replacement.
    let mut tunnel = TcpStream::connect(listen).await.expect("it listens");
    let ask =
        "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: capitals\r\n\r\n";
    tunnel.write_all(ask.as_bytes()).await.expect("sent");
    let mut tunnel = BufReader::new(tunnel);
    let mut line = String::new();
    while !line.ends_with("\r\n\r\n") {
        assert!(tunnel.read_line(&mut line).await.expect("a head") > 0);
    }
    assert!(line.starts_with("HTTP/1.1 101"), "{line}");
    let mut slow = Client::connect(listen).await;
    let slow = tokio::spawn(async move { slow.get("/wait").await });
    proxy.until_open("blue", 2).await;

    let load = Load::start(listen);
    let mut pids = vec![first.pid];
    for _ in 0..4 {
        load.more(200).await;
        let before = counted(&proxy.traffic.observe().await.expect("it runs"));
        let next = proxy.traffic.replace().await.expect("replaced");
        assert!(!pids.contains(&next.pid));
        pids.push(next.pid);
        assert_eq!(locked_by(&proxy.dir()), Some(next.pid));
        let held = proxy.traffic.observe().await.expect("it runs");
        let after = counted(&held);
        assert!(
            after.0 >= before.0 && after.1 == since,
            "{before:?} {after:?}"
        );
        // The tunnel and the slow answer are still with the first one, and that is told.
        assert!(
            held.draining.iter().any(|old| old.pid == first.pid),
            "{held:?}"
        );
    }
    load.more(200).await;
    let good = load.end().await;

    // What is open at the first proxy counts as open.
    proxy.until_open("blue", 2).await;
    tunnel.write_all(b"still here").await.expect("sent");
    let mut echo = [0; 10];
    tunnel.read_exact(&mut echo).await.expect("an echo");
    assert_eq!(&echo, b"STILL HERE");
    blue.let_go();
    let answer = slow.await.expect("no panic").expect("an answer");
    assert_eq!(answer, (200, "blue".to_owned()));
    drop(tunnel);
    until("all of them have ended", || async {
        let held = proxy.traffic.observe().await.expect("it runs");
        let gone = pids[..4].iter().all(|pid| !is_running(*pid));
        held.draining.is_empty() && gone
    })
    .await;
    // Every request stands in the counts once: those of the load, the tunnel and the slow one.
    let held = proxy.traffic.observe().await.expect("it runs");
    assert_eq!(counted(&held), (good + 2, since));
    assert_eq!(proxy.version("blue").await.open_requests, 0);
}

#[tokio::test]
async fn what_drains_follows_the_tables_of_its_successor() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (blue, green) = (Server::start("blue").await, Server::start("green").await);
    proxy
        .hold(route(listen, &[(10_000, &[&blue]), (0, &[&green])]))
        .await;
    let first = proxy.traffic.ensure_running().await.expect("it runs");
    let mut idle = Client::connect(listen).await;
    assert_eq!(idle.id().await, "blue");
    let mut slow = Client::connect(listen).await;
    let slow = tokio::spawn(async move { slow.get("/wait").await });
    proxy.until_open("blue", 1).await;
    let next = proxy.traffic.replace().await.expect("replaced");
    assert_ne!(first.pid, next.pid);
    proxy
        .hold(route(listen, &[(0, &[&blue]), (10_000, &[&green])]))
        .await;
    // This connection is the old proxy's; it hears of the weights, and that it shall go.
    let answers_green = || async {
        let held = proxy.traffic.observe().await.expect("it runs");
        held.acknowledged_weight(SCOPE, "green") == Some(10_000)
    };
    until("the new weights", answers_green).await;
    let (status, id) = idle.get("/").await.expect("an answer");
    assert_eq!(status, 200);
    if id != "green" {
        // The table was on its way; the next connection comes to the new proxy.
        assert_eq!(id, "blue");
    }
    until("it is told to go", || async { idle.sender.is_closed() }).await;
    assert_eq!(Client::connect(listen).await.id().await, "green");
    // The end of the drain time reaches it too.
    let mut closed = route(listen, &[(0, &[&blue]), (10_000, &[&green])]);
    closed.versions[0].close = true;
    proxy.hold(closed).await;
    assert!(
        slow.await
            .expect("no panic")
            .is_ok_and(|(status, _)| status == 502)
    );
    until("the old one ends", || async { !is_running(first.pid) }).await;
}

/// Says the words of a successor by hand: the lines that were heard in answer.
async fn play(dir: &std::path::Path, words: &[&str]) -> Vec<String> {
    let stream = UnixStream::connect(dir.join("control"))
        .await
        .expect("it runs");
    let mut stream = BufReader::new(stream);
    let mut heard = Vec::new();
    for word in words {
        stream.write_all(word.as_bytes()).await.expect("sent");
        stream.write_all(b"\n").await.expect("sent");
        let mut line = String::new();
        while line.trim().is_empty() {
            line.clear();
            assert!(stream.read_line(&mut line).await.expect("read") > 0);
        }
        heard.push(line);
    }
    heard
}

#[tokio::test]
async fn a_successor_that_dies_on_the_way_leaves_the_old_proxy_serving() {
    let (proxy, listen, blue) = (
        Proxy::start().await,
        free_address(),
        Server::start("blue").await,
    );
    proxy.hold(route(listen, &[(10_000, &[&blue])])).await;
    let pid = locked_by(&proxy.dir()).expect("its id");
    let load = Load::start(listen);
    let ask = "{\"op\":\"hand_over\",\"drain_ms\":1000}";
    let ready = "{\"say\":\"ready\"}";
    for words in [
        &[ask][..],
        &[ask, ready],
        &[ask, "nonsense"],
        &[ask, "{\"say\":\"serving\"}"],
    ] {
        // Heard lines mean that the old proxy is at that very point; then the connection ends.
        let stream = UnixStream::connect(proxy.dir().join("control"))
            .await
            .expect("it runs");
        let mut stream = BufReader::new(stream);
        for (number, word) in words.iter().enumerate() {
            stream
                .write_all(format!("{word}\n").as_bytes())
                .await
                .expect("sent");
            if number == 0 || *word == ready {
                let mut line = String::new();
                while line.trim().is_empty() {
                    line.clear();
                    assert!(stream.read_line(&mut line).await.expect("read") > 0);
                }
                assert!(line.contains("\"say\":"), "{line}");
            }
        }
        drop(stream);
        load.more(100).await;
        let running = proxy.traffic.ensure_running().await.expect("it answers");
        assert_eq!(running.pid, pid);
    }
    let held = proxy.hold(route(listen, &[(10_000, &[&blue])])).await;
    assert!(held.draining.is_empty());
    load.end().await;

    // After the last word it is the successor's, and when that is gone, the agent starts another one.
    let heard = play(&proxy.dir(), &[ask, ready, "{\"say\":\"serving\"}"]).await;
    assert!(heard[2].contains("released"), "{heard:?}");
    let next = proxy.traffic.ensure_running().await.expect("it starts");
    assert_ne!(next.pid, pid);
    assert_eq!(Client::connect(listen).await.id().await, "blue");
}

fn successor(proxy: &Proxy) -> Child {
    let mut command = Command::new(program());
    command.arg("proxy").arg("--dir").arg(proxy.dir());
    command.args(["--detach", "--take-over"]);
    let command = command.stdin(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("it starts")
}

#[tokio::test]
async fn either_is_killed_at_any_moment_and_exactly_one_serves() {
    let (proxy, listen, blue) = (
        Proxy::start().await,
        free_address(),
        Server::start("blue").await,
    );
    proxy.hold(route(listen, &[(10_000, &[&blue])])).await;
    for round in 0..16_u64 {
        let old = proxy.traffic.ensure_running().await.expect("it runs").pid;
        let mut new = successor(&proxy);
        // Moments spread over the whole hand-over; which ones they hit does not matter to the outcome.
        tokio::time::sleep(Duration::from_millis(round / 2 * 7)).await;
        let killed = if round % 2 == 0 { old } else { new.id() };
        signal(killed, Signal::KILL);
        if killed == new.id() {
            new.wait().expect("it ended");
        }
        until("one answers", || async {
            proxy
                .traffic
                .ensure_running()
                .await
                .is_ok_and(|running| running.pid != killed)
        })
        .await;
        assert_eq!(Client::connect(listen).await.id().await, "blue");
        let held = proxy.traffic.observe().await.expect("it runs");
        assert_eq!(held.acknowledged_weight(SCOPE, "blue"), Some(10_000));
        let serving = proxy.traffic.ensure_running().await.expect("it runs").pid;
        until("nobody else is left", || async {
            [old, new.id()]
                .iter()
                .all(|pid| *pid == serving || !is_running(*pid))
        })
        .await;
        assert_eq!(locked_by(&proxy.dir()), Some(serving));
        if serving != new.id() {
            new.kill().ok();
        }
        // Collects the one that ended; the one that serves is killed with the folder.
        new.try_wait().ok();
    }
}

#[tokio::test]
async fn one_that_takes_over_from_nobody_just_starts() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("p");
    let mut command = Command::new(program());
    command
        .arg("proxy")
        .arg("--dir")
        .arg(&dir)
        .arg("--take-over");
    let mut child = command.stdin(Stdio::null()).spawn().expect("it starts");
    until("it has the lock", || async {
        locked_by(&dir) == Some(child.id())
    })
    .await;
    signal(child.id(), Signal::TERM);
    let ended = tokio::task::spawn_blocking(move || child.wait());
    let ended = ended.await.expect("no panic").expect("a child");
    assert!(ended.success());
}

#[tokio::test]
async fn http2_clients_are_sent_away_without_losing_a_request() {
    let (proxy, listen, blue) = (
        Proxy::start().await,
        free_address(),
        Server::start("blue").await,
    );
    proxy.hold(route(listen, &[(10_000, &[&blue])])).await;
    let stream = TcpStream::connect(listen).await.expect("it listens");
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(stream))
            .await
            .expect("http2");
    let connection = tokio::spawn(connection);
    let get = || {
        hyper::Request::get(format!("http://{listen}/"))
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .expect("a request")
    };
    sender.ready().await.expect("open");
    let answer = sender.send_request(get()).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    drop(answer);
    proxy.traffic.replace().await.expect("replaced");
    // Requests go on until the old proxy's word to leave arrives, and none of them is lost.
    loop {
        if sender.ready().await.is_err() {
            break;
        }
        match sender.send_request(get()).await {
            Ok(answer) => assert_eq!(answer.status(), StatusCode::OK),
            Err(error) => {
                // Refused before anything was sent: the client asks over another connection.
                assert!(error.is_closed() || error.is_canceled(), "{error}");
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(sender);
    connection.await.expect("no panic").expect("a clean end");
}
