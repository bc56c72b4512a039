//! A proxy as a real process, instances as real servers, clients as real connections.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tidegate_agent::proxy::table::{
    Held, HeldVersion, InstanceRoute, Protocol, ScopeRoute, Table, VersionRoute,
};
use tidegate_agent::traffic::TrafficProvider;
use tidegate_agent::traffic::proxy::ProxyTraffic;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

pub const SCOPE: &str = "shop/eu";

pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_tidegate-agent"))
}

pub fn free_address() -> SocketAddr {
    let socket = StdListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("an address")
}

/// Waits until `condition` holds; a minute is a failure.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .is_ok(),
        "never: {what}"
    );
}

/// A proxy process in a folder of its own, killed at the end.
pub struct Proxy {
    folder: tempfile::TempDir,
    pub traffic: ProxyTraffic,
}

impl Proxy {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let traffic = ProxyTraffic::with_program(folder.path().join("p"), program());
        traffic.ensure_running().await.expect("it starts");
        Self { folder, traffic }
    }

    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("p")
    }

    pub async fn hold(&self, route: ScopeRoute) -> Held {
        let held = self
            .traffic
            .converge(Table {
                scopes: vec![route],
            })
            .await
            .expect("valid");
        assert_eq!(held.scopes[0].problem, None);
        held
    }

    pub async fn version(&self, deployment: &str) -> HeldVersion {
        let held = self.traffic.observe().await.expect("it runs");
        held.scope(SCOPE)
            .and_then(|scope| scope.version(deployment))
            .expect("it is held")
            .clone()
    }

    pub async fn until_open(&self, deployment: &str, open: u64) {
        until("open requests", || async {
            self.version(deployment).await.open_requests == open
        })
        .await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(pid) = locked_by(&self.dir()) {
            signal(pid, Signal::KILL);
        }
    }
}

/// The process id in the lock file of a folder.
pub fn locked_by(dir: &Path) -> Option<u32> {
    std::fs::read_to_string(dir.join("lock"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn pid(pid: u32) -> Pid {
    Pid::from_raw(pid as i32).expect("a process id")
}

pub fn signal(process: u32, signal: Signal) {
    // It may have ended by itself.
    kill_process(pid(process), signal).ok();
}

/// Whether a process runs; one that ended and was not waited for yet does not.
pub fn is_running(process: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let zombie = state
        .rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('Z'));
    test_kill_process(pid(process)).is_ok() && !zombie
}

/// A server that stands for an instance of a version.
///
/// `/` answers with its id, `/status/N` with that status, `/wait` when [`Server::let_go`] is called,
/// `/echo` with the request's body as it comes, `/headers` with the request's header fields, `/break` with half a
/// body and then nothing, `/upgrade` with a change of protocol and an echo in capital letters.
pub struct Server {
    pub id: String,
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accept: AbortHandle,
}

struct Shared {
    gate: Semaphore,
    served: AtomicU64,
    stopped: AtomicBool,
    connections: Mutex<Vec<AbortHandle>>,
}

type Body = BoxBody<Bytes, hyper::Error>;

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed()
}

impl Server {
    pub async fn start(id: &str) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = socket.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            gate: Semaphore::new(0),
            served: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let accept =
            tokio::spawn(accept(socket, id.to_owned(), Arc::clone(&shared))).abort_handle();
        Self {
            id: id.to_owned(),
            address,
            shared,
            accept,
        }
    }

    /// Lets one request to `/wait` go.
    pub fn let_go(&self) {
        self.shared.gate.add_permits(1);
    }

    pub fn served(&self) -> u64 {
        self.shared.served.load(Ordering::SeqCst)
    }

    /// Ends as a killed process does: no more connections, the open ones cut.
    pub async fn die(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.accept.abort();
        for connection in self.shared.connections.lock().expect("no panic").iter() {
            connection.abort();
        }
        until("the port is closed", || async {
            TcpStream::connect(self.address).await.is_err()
        })
        .await;
    }

    pub fn route(&self) -> InstanceRoute {
        InstanceRoute {
            instance: self.id.clone(),
            address: self.address,
            healthy: true,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn accept(socket: TcpListener, id: String, shared: Arc<Shared>) {
    while let Ok((stream, _)) = socket.accept().await {
        let (id, inner) = (id.clone(), Arc::clone(&shared));
        let task = tokio::spawn(async move {
            let service =
                service_fn(move |request| answer(id.clone(), Arc::clone(&inner), request));
            let server = hyper::server::conn::http1::Builder::new();
            // Broken by the test, mostly.
            server
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await
                .ok();
        });
        shared
            .connections
            .lock()
            .expect("no panic")
            .push(task.abort_handle());
    }
}

async fn answer(
    id: String,
    shared: Arc<Shared>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, hyper::Error> {
    shared.served.fetch_add(1, Ordering::SeqCst);
    let path = request.uri().path().to_owned();
    if let Some(code) = path.strip_prefix("/status/") {
        let mut response = Response::new(full(id));
        *response.status_mut() = code.parse().expect("a status");
        return Ok(response);
    }
    match path.as_str() {
        "/wait" => shared.gate.acquire().await.expect("open").forget(),
        "/echo" => return Ok(Response::new(request.into_body().boxed())),
        "/headers" => {
            let fields = request.headers().iter();
            let lines =
                fields.map(|(name, value)| format!("{name}: {}\n", value.to_str().expect("text")));
            return Ok(Response::new(full(lines.collect::<String>())));
        }
        "/break" => {
            let half = tokio_stream::iter([Ok(Frame::data(Bytes::from("half")))]);
            let half = tokio_stream::StreamExt::chain(half, tokio_stream::pending());
            let mut response = Response::new(BodyExt::boxed(StreamBody::new(half)));
            response.headers_mut().insert("content-length", 8.into());
            return Ok(response);
        }
        "/upgrade" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.expect("upgraded"));
                let mut bytes = [0; 64];
                while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                    let text = bytes[..count].to_ascii_uppercase();
                    stream.write_all(&text).await.expect("the proxy reads");
                }
            });
            let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            let response = response
                .header("connection", "upgrade")
                .header("upgrade", "capitals");
            return Ok(response.body(full("")).expect("a response"));
        }
        _ => {}
    }
    Ok(Response::new(full(id)))
}

/// The route of [`SCOPE`] with versions named by their first instance's id up to a dash.
pub fn route(listen: SocketAddr, versions: &[(u16, &[&Server])]) -> ScopeRoute {
    let versions = versions.iter().map(|(weight, servers)| VersionRoute {
        deployment: servers[0].id.split('-').next().expect("a name").to_owned(),
        weight: *weight,
        on_demand: false,
        draining: false,
        close: false,
        instances: servers.iter().map(|server| server.route()).collect(),
    });
    ScopeRoute {
        scope: SCOPE.to_owned(),
        listen,
        protocol: Protocol::Http,
        tls: None,
        http2: false,
        sticky: None,
        route: None,
        revision: String::new(),
        response_timeout_ms: 30_000,
        versions: versions.collect(),
    }
}

/// One keep-alive connection to the proxy.
pub struct Client {
    pub sender: http1::SendRequest<Body>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address)
            .await
            .expect("the proxy listens");
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("http");
        tokio::spawn(connection.with_upgrades());
        Self { sender }
    }

    pub async fn send(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    /// The status and the text of the answer to a GET.
    pub async fn get(&mut self, path: &str) -> Result<(u16, String), hyper::Error> {
        let body = Empty::new().map_err(|never| match never {}).boxed();
        let response = self.send(request("GET", path, body)).await?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8(bytes.to_vec()).expect("text")))
    }

    /// The id of the instance that answered; anything but 200 is a failure of the test.
    pub async fn id(&mut self) -> String {
        let (status, text) = self.get("/").await.expect("an answer");
        assert_eq!(status, 200, "{text}");
        text
    }
}

pub fn request(method: &str, path: &str, body: Body) -> Request<Body> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "shop.test");
    request.body(body).expect("a request")
}

/// Sends bytes and reads until the proxy closes.
pub async fn raw(address: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address)
        .await
        .expect("the proxy listens");
    stream.write_all(bytes.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("read");
    String::from_utf8(answer).expect("text")
}
