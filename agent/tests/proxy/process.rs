//! The process: its folder, its control socket, its start, its end.

use std::net::TcpListener as StdListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tidegate_agent::proxy::control::{ControlClient, REQUEST_LIMIT};
use tidegate_agent::proxy::table::{ControlRequest, ListenProblemKind, Table};
use tidegate_agent::traffic::TrafficProvider;
use tidegate_agent::traffic::proxy::ProxyTraffic;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::support::{
    Client, Proxy, SCOPE, Server, free_address, is_running, locked_by, program, route, signal,
    until,
};

#[tokio::test]
async fn a_killed_proxy_comes_back_with_its_table() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (blue, green) = (Server::start("blue").await, Server::start("green").await);
    proxy
        .hold(route(listen, &[(7_500, &[&blue]), (2_500, &[&green])]))
        .await;
    let before = proxy.traffic.ensure_running().await.expect("it runs");
    signal(before.pid, Signal::KILL);
    until("it is gone", || async { !is_running(before.pid) }).await;
    // Asking brings it back; nothing tells it the table again.
    let after = proxy
        .traffic
        .ensure_running()
        .await
        .expect("it starts again");
    assert_ne!(before.pid, after.pid);
    let held = proxy.traffic.observe().await.expect("it runs");
    assert_eq!(held.acknowledged_weight(SCOPE, "green"), Some(2_500));
    let mut client = Client::connect(listen).await;
    let mut hits = 0;
    for _ in 0..100 {
        hits += usize::from(client.id().await == "green");
    }
    assert_eq!(hits, 25);
}

#[tokio::test]
async fn it_outlives_the_group_that_started_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("p");
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg("\"$0\" proxy --dir \"$1\" --detach & wait")
        .arg(program())
        .arg(&dir);
    let mut shell = shell
        .process_group(0)
        .stdin(Stdio::null())
        .spawn()
        .expect("a shell");
    until("it answers", || async {
        ControlClient::connect(&dir).await.is_ok()
    })
    .await;
    let pid = locked_by(&dir).expect("its id");
    let group = Pid::from_raw(shell.id() as i32).expect("an id");
    kill_process_group(group, Signal::KILL).expect("the group lives");
    shell.wait().expect("the shell ended");
    let traffic = ProxyTraffic::with_program(dir.clone(), program());
    assert_eq!(traffic.ensure_running().await.expect("it runs").pid, pid);
    signal(pid, Signal::TERM);
    until("it ends", || async { !is_running(pid) }).await;
}

#[tokio::test]
async fn only_one_runs_in_a_folder() {
    let proxy = Proxy::start().await;
    let second = Command::new(program())
        .arg("proxy")
        .arg("--dir")
        .arg(proxy.dir())
        .output();
    let second = second.expect("it runs");
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr);
    let pid = locked_by(&proxy.dir()).expect("its id");
    assert!(
        text.contains(&format!("another proxy (pid {pid}) runs in")),
        "{text}"
    );
    assert_eq!(text.trim().lines().count(), 1, "{text}");
    proxy.traffic.observe().await.expect("the first goes on");
}

#[tokio::test]
async fn sigterm_finishes_what_is_open() {
    let (proxy, listen, blue) = (
        Proxy::start().await,
        free_address(),
        Server::start("blue").await,
    );
    proxy.hold(route(listen, &[(10_000, &[&blue])])).await;
    let mut slow = Client::connect(listen).await;
    let waiting = tokio::spawn(async move { slow.get("/wait").await });
    proxy.until_open("blue", 1).await;
    let pid = locked_by(&proxy.dir()).expect("its id");
    signal(pid, Signal::TERM);
    until("the listener is closed", || async {
        TcpStream::connect(listen).await.is_err()
    })
    .await;
    // Its successor may start while it finishes: folder and port are free.
    let next = until_other(&proxy, pid).await;
    assert!(is_running(pid));
    assert_eq!(Client::connect(listen).await.id().await, "blue");
    blue.let_go();
    let answer = waiting.await.expect("no panic").expect("an answer");
    assert_eq!(answer, (200, "blue".to_owned()));
    until("it ends", || async { !is_running(pid) }).await;
    assert!(is_running(next));
}

async fn until_other(proxy: &Proxy, pid: u32) -> u32 {
    loop {
        if let Ok(identity) = proxy.traffic.ensure_running().await
            && identity.pid != pid
        {
            return identity.pid;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_shutdown_request_ends_it_and_a_lost_connection_does_not() {
    let proxy = Proxy::start().await;
    let pid = locked_by(&proxy.dir()).expect("its id");
    for _ in 0..3 {
        drop(ControlClient::connect(&proxy.dir()).await.expect("it runs"));
    }
    assert_eq!(
        proxy.traffic.ensure_running().await.expect("it runs").pid,
        pid
    );
    proxy
        .traffic
        .shutdown(Duration::from_secs(5))
        .await
        .expect("it answers");
    until("it ends", || async { !is_running(pid) }).await;
    proxy
        .traffic
        .shutdown(Duration::from_secs(5))
        .await
        .expect("nothing to do");
}

#[tokio::test]
async fn a_taken_port_names_its_holder_and_is_had_later() {
    let (proxy, free, blue) = (
        Proxy::start().await,
        free_address(),
        Server::start("blue").await,
    );
    let holder = StdListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address");
    let good = route(free, &[(10_000, &[&blue])]);
    let mut bad = route(taken, &[(10_000, &[&blue])]);
    bad.scope = "other".to_owned();
    let table = Table {
        scopes: vec![bad, good],
    };
    let held = proxy
        .traffic
        .converge(table)
        .await
        .expect("the table is valid");
    let problem = held
        .scope("other")
        .and_then(|scope| scope.problem.clone())
        .expect("a problem");
    assert_eq!(problem.kind, ListenProblemKind::AddressInUse);
    let pid = std::process::id();
    let expected = format!(
        "scope other: cannot listen on {taken}: port {} on 127.0.0.1 is held by ",
        taken.port()
    );
    assert!(
        problem.message.starts_with(&expected),
        "{}",
        problem.message
    );
    assert!(
        problem.message.ends_with(&format!("(pid {pid})")),
        "{}",
        problem.message
    );
    assert_eq!(held.acknowledged_weight("other", "blue"), None);
    assert_eq!(Client::connect(free).await.id().await, "blue");
    drop(holder);
    until("the proxy has tried again", || async {
        let held = proxy.traffic.observe().await.expect("it runs");
        held.acknowledged_weight("other", "blue") == Some(10_000)
    })
    .await;
    assert_eq!(Client::connect(taken).await.id().await, "blue");
}

#[tokio::test]
async fn an_address_of_another_host_is_told_apart() {
    let (proxy, blue) = (Proxy::start().await, Server::start("blue").await);
    let elsewhere = "192.0.2.1:8080".parse().expect("an address");
    let table = Table {
        scopes: vec![route(elsewhere, &[(10_000, &[&blue])])],
    };
    let held = proxy
        .traffic
        .converge(table)
        .await
        .expect("the table is valid");
    let problem = held.scopes[0].problem.clone().expect("a problem");
    assert_eq!(problem.kind, ListenProblemKind::AddressNotHere);
    assert!(
        problem
            .message
            .contains("192.0.2.1 is not an address of this host")
    );
}

#[tokio::test]
async fn a_scope_keeps_its_old_listener_until_the_new_one_is_had() {
    let (proxy, old, blue) = (
        Proxy::start().await,
        free_address(),
        Server::start("blue").await,
    );
    proxy.hold(route(old, &[(10_000, &[&blue])])).await;
    let holder = StdListener::bind("127.0.0.1:0").expect("a port");
    let new = holder.local_addr().expect("an address");
    let table = Table {
        scopes: vec![route(new, &[(10_000, &[&blue])])],
    };
    let held = proxy
        .traffic
        .converge(table)
        .await
        .expect("the table is valid");
    assert_eq!(held.scopes[0].listen, Some(old));
    assert!(held.scopes[0].problem.is_some());
    assert_eq!(Client::connect(old).await.id().await, "blue");
}

#[tokio::test]
async fn malformed_control_messages_end_their_connection_only() {
    let (proxy, listen, blue) = (
        Proxy::start().await,
        free_address(),
        Server::start("blue").await,
    );
    proxy.hold(route(listen, &[(10_000, &[&blue])])).await;
    let socket = proxy.dir().join("control");
    let mode = std::fs::metadata(&socket)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let long = "x".repeat(REQUEST_LIMIT as usize + 10);
    let cases = [
        ("\n", "not a control message"),
        ("hello\n", "expected value"),
        ("{\"op\":\"explode\"}\n", "unknown variant `explode`"),
        ("{\"op\":\"converge\"}\n", "missing field `table`"),
        (
            "{\"op\":\"converge\",\"table\":{\"scopes\":[{\"scope\":\"a\"}]}}\n",
            "missing field `listen`",
        ),
        ("\u{0}\u{1}\u{7f}\n", "expected value"),
        (long.as_str(), "a line is longer than 4194304 bytes"),
    ];
    for (message, reason) in cases {
        let mut stream = UnixStream::connect(&socket).await.expect("it listens");
        // The proxy may close before it has read all of an oversized one.
        stream.write_all(message.as_bytes()).await.ok();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.ok();
        let reply = String::from_utf8_lossy(&reply).into_owned();
        assert!(
            reply.contains("\"reply\":\"malformed\"") && reply.contains(reason),
            "{reason}: {reply}"
        );
    }
    let mut cut = UnixStream::connect(&socket).await.expect("it listens");
    cut.write_all(b"{\"op\":").await.expect("sent");
    cut.shutdown().await.expect("half closed");
    let mut reply = String::new();
    cut.read_to_string(&mut reply).await.expect("a reply");
    assert!(reply.contains("the line is cut off"), "{reply}");
    assert_eq!(Client::connect(listen).await.id().await, "blue");
    let held = proxy
        .traffic
        .observe()
        .await
        .expect("the standing connection goes on");
    assert_eq!(held.acknowledged_weight(SCOPE, "blue"), Some(10_000));
}

#[tokio::test]
async fn a_long_folder_name_is_no_obstacle() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("d".repeat(100)).join("e".repeat(100));
    let traffic = ProxyTraffic::with_program(dir.clone(), program());
    let pid = traffic.ensure_running().await.expect("it starts").pid;
    let mut client = ControlClient::connect(&dir).await.expect("it runs");
    client
        .ask(&ControlRequest::Observe)
        .await
        .expect("it answers");
    signal(pid, Signal::TERM);
    until("it ends", || async { !is_running(pid) }).await;
}

#[tokio::test]
async fn a_proxy_that_cannot_start_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("written");
    let error = ProxyTraffic::with_program(file, program())
        .observe()
        .await
        .expect_err("no folder");
    assert!(
        error
            .to_string()
            .contains("the proxy cannot be reached: cannot start"),
        "{error}"
    );
    let dir = folder.path().join("p");
    std::fs::create_dir_all(dir.join("lock")).expect("made");
    let error = ProxyTraffic::with_program(dir, program())
        .observe()
        .await
        .expect_err("no lock");
    let error = error.to_string();
    assert!(
        error.contains("it ended at once") && error.contains("cannot use"),
        "{error}"
    );
}

#[tokio::test]
async fn a_table_that_cannot_be_stored_is_in_force_and_says_so() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let blue = Server::start("blue").await;
    let obstacle = proxy.dir().join("table.json.new");
    std::fs::create_dir(&obstacle).expect("made");
    let held = proxy.hold(route(listen, &[(10_000, &[&blue])])).await;
    assert!(held.persist_problem.is_some());
    assert_eq!(Client::connect(listen).await.id().await, "blue");
    std::fs::remove_dir(&obstacle).expect("removed");
    // The same table again: nothing changes but the file, which is there now.
    let held = proxy.hold(route(listen, &[(10_000, &[&blue])])).await;
    assert_eq!(held.persist_problem, None);
    assert!(proxy.dir().join("table.json").exists());
}
