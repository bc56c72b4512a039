//! Whole nodes in one process, through the real clients and certificates: from `init` to a
//! deployment that is finalized by an agent's reports.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use tidegate_proto::agent::v1 as link;
use tidegate_proto::agent::v1::agent_link_client::AgentLinkClient;
use tidegate_proto::control::v1::agents_client::AgentsClient;
use tidegate_proto::control::v1::cluster_client::ClusterClient;
use tidegate_proto::control::v1::deployments_client::DeploymentsClient;
use tidegate_proto::control::v1::objects_client::ObjectsClient;
use tidegate_proto::control::v1::releases_client::ReleasesClient;
use tidegate_proto::control::v1::scopes_client::ScopesClient;
use tidegate_proto::control::v1::tokens_client::TokensClient;
use tidegate_proto::control::v1::{self as pb, deployment::Status as Wire};
use tidegate_proto::enroll::v1::{EnrollRequest, EnrollResponse};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::Name;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::ServiceExt;

use crate::api::status::reason_of;
use crate::ca;
use crate::clock::Clock;
use crate::config::{Config, FILE_NAME};
use crate::enroll;
use crate::node::Node;
use crate::raft::end_process;
use crate::setup::{self, Init, JoinRequest, Places};
use crate::tls::{Expected, Tls, TlsMaterial};

mod edges;
mod objects;
mod past;

const DEADLINE: Duration = Duration::from_secs(30);

fn places() -> Places {
    let any = || Some(([127, 0, 0, 1], 0).into());
    Places {
        control: any(),
        peer: any(),
        http: any(),
        enroll: any(),
        ..Places::default()
    }
}

async fn start(dir: &Path) -> Node {
    let environment = [(
        "TIDEGATE_COORDINATOR_RAFT_TICK".to_owned(),
        "10ms".to_owned(),
    )];
    let config = Config::load(&dir.join(FILE_NAME), environment).unwrap();
    let node = Node::start(config, Clock::system(), end_process())
        .await
        .unwrap();
    tokio::time::timeout(DEADLINE, node.ready()).await.unwrap();
    node
}

fn tls_of(chain: &str, key: &str, roots: &str) -> Tls {
    let material =
        TlsMaterial::from_pem(chain.as_bytes(), key.as_bytes(), roots.as_bytes()).unwrap();
    let (_sender, receiver) = watch::channel(Arc::new(material));
    Tls::new(receiver, "example.com")
}

/// A cluster of one, with its administrator's certificate.
struct World {
    dir: tempfile::TempDir,
    node: Node,
    admin: Tls,
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let init = Init {
            dir: dir.path().join("a"),
            name: Name::new("a").unwrap(),
            trust_domain: "example.com".to_owned(),
            places: places(),
            admin: Name::new("admin").unwrap(),
            admin_out: None,
        };
        let out = setup::init(&init, &Clock::system()).unwrap();
        let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        let context = read("context.toml");
        assert!(context.contains("name = \"example-com\""), "{context}");
        assert!(context.contains("user = \"admin\""), "{context}");
        let admin = tls_of(&read("cert.pem"), &read("key.pem"), &read("roots.pem"));
        let node = start(&init.dir).await;
        World { dir, node, admin }
    }

    fn channel(&self, tls: &Tls) -> Channel {
        let address = self.node.listen().control.to_string();
        tls.channel(&address, Expected::AnyCoordinator).unwrap()
    }

    fn people(&self) -> Channel {
        self.channel(&self.admin)
    }

    async fn http(&self, tls: &Tls, request: http::Request<Body>) -> (http::StatusCode, Vec<u8>) {
        let address = self.node.listen().http.to_string();
        let channel = tls.channel(&address, Expected::AnyCoordinator).unwrap();
        let response = channel.oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, body.to_vec())
    }

    async fn put(&self, tls: &Tls, digest: &Digest, bytes: &'static [u8]) -> http::StatusCode {
        let body = http_body_util::Full::from(bytes);
        let request = http::Request::put(format!("/v1/blobs/{digest}"))
            .body(Body::new(body))
            .unwrap();
        self.http(tls, request).await.0
    }

    async fn apply(&self, kind: &str, name: &str, spec: &str) -> pb::ApplyResponse {
        ObjectsClient::new(self.people())
            .apply(pb::ApplyRequest {
                request_id: id(),
                kind: kind.to_owned(),
                name: name.to_owned(),
                spec: spec.to_owned(),
                ..pb::ApplyRequest::default()
            })
            .await
            .unwrap()
            .into_inner()
    }

    async fn token(&self, kind: &str, labels: &[(&str, &str)], name: &str) -> String {
        TokensClient::new(self.people())
            .create(pb::CreateTokenRequest {
                request_id: id(),
                kind: kind.to_owned(),
                labels: labels
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
                name: name.to_owned(),
                ..pb::CreateTokenRequest::default()
            })
            .await
            .unwrap()
            .into_inner()
            .token
    }

    async fn enroll(
        &self,
        token: &str,
        name: &str,
    ) -> Result<(EnrollResponse, Tls), enroll::JoinError> {
        let (key, csr) = ca::key_and_request().unwrap();
        let answer = enroll::request_enrolment(
            &self.node.listen().enroll.to_string(),
            EnrollRequest {
                token: token.to_owned(),
                csr: csr.into(),
                name: name.to_owned(),
                ..EnrollRequest::default()
            },
        )
        .await?;
        let tls = tls_of(&answer.certificate_chain, &key, &answer.roots);
        Ok((answer, tls))
    }

    async fn release(&self, version: &str, bytes: &'static [u8]) -> pb::Release {
        let digest = Digest::of(bytes);
        let status = self.put(&self.admin, &digest, bytes).await;
        assert_eq!(status, http::StatusCode::CREATED);
        let spec = serde_json::json!({"assets": [{
            "name": "app", "kind": "binary", "sha256": digest.to_string(),
            "size": bytes.len(), "run": {"command": "app"},
        }]});
        ReleasesClient::new(self.people())
            .create(pb::CreateReleaseRequest {
                request_id: id(),
                application: "shop".to_owned(),
                version: version.to_owned(),
                spec: spec.to_string(),
                ..pb::CreateReleaseRequest::default()
            })
            .await
            .unwrap()
            .into_inner()
    }

    async fn deploy(&self, version: &str) -> pb::Deployment {
        DeploymentsClient::new(self.people())
            .create(pb::CreateDeploymentRequest {
                request_id: id(),
                application: "shop".to_owned(),
                version: version.to_owned(),
                scopes: vec!["shop-prod".to_owned()],
                strategy: "fast".to_owned(),
                ..pb::CreateDeploymentRequest::default()
            })
            .await
            .unwrap()
            .into_inner()
            .deployments
            .remove(0)
    }

    async fn wait_for(&self, deployment: &str, wanted: Wire) -> pb::Deployment {
        let mut client = DeploymentsClient::new(self.people());
        let wait = async {
            loop {
                let request = pb::GetDeploymentRequest {
                    id: deployment.to_owned(),
                };
                let found = client.get(request).await.unwrap().into_inner();
                if found.status() == wanted {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap()
    }

    async fn objects(&self) {
        self.apply("application", "shop", "{}").await;
        self.apply("environment", "prod", r#"{"tier": 1}"#).await;
        self.apply(
            "strategy",
            "fast",
            r#"{"kind": "blue_green", "bake": "0s", "drain": "0s",
                "traffic": {"steps": [{"percent": 50, "hold": "100ms"}, {"percent": 100, "hold": "100ms"}]}}"#,
        )
        .await;
        self.apply(
            "scope",
            "shop-prod",
            r#"{"application": "shop", "environment": "prod", "agents": "role=web", "port": 8080}"#,
        )
        .await;
    }
}

fn id() -> String {
    let now = Clock::system().wall_ms();
    crate::entropy::ulid(now).unwrap().to_string()
}

/// What an agent that does everything at once would report.
fn report(sequence: u64, wish: &link::Assignments) -> link::Report {
    let places = wish.items.iter().filter_map(|item| {
        let running = item.state == i32::from(link::WishedState::Running);
        let drained = item.state == i32::from(link::WishedState::Drained);
        if item.state == i32::from(link::WishedState::Absent) {
            return None;
        }
        let instances = (0..item.count).filter(|_| running || drained);
        Some(link::ObservedPlace {
            scope: item.scope.clone(),
            deployment: item.deployment.clone(),
            staged: true,
            instances: instances
                .map(|ordinal| link::ObservedInstance {
                    instance: format!("{}-{ordinal}", item.scope),
                    ordinal,
                    state: link::InstanceState::Healthy.into(),
                    start_stamp: 1,
                    ..link::ObservedInstance::default()
                })
                .collect(),
            weight: i32::try_from(item.weight).unwrap(),
            drained: item.weight == 0,
            ..link::ObservedPlace::default()
        })
    });
    link::Report {
        start: 1,
        sequence,
        applied: wish.generation,
        places: places.collect(),
        ..link::Report::default()
    }
}

/// One line of logs.
async fn answer(channel: Channel, ask: link::Ask) {
    let Some(link::ask::Kind::Logs(logs)) = ask.kind else {
        panic!("an ask without a question");
    };
    let chunk = link::AnswerChunk {
        ask_id: ask.id,
        lines: vec![link::LogLine {
            scope: logs.scope,
            text: "it works".to_owned(),
            ..link::LogLine::default()
        }],
        ..link::AnswerChunk::default()
    };
    AgentLinkClient::new(channel)
        .answer(tokio_stream::iter([chunk]))
        .await
        .unwrap();
}

/// Runs a scripted agent until its session is closed; the code of the end.
async fn agent(channel: Channel) -> String {
    let (up, receiver) = mpsc::channel(16);
    let send = |kind: link::up::Kind| up.send(link::Up { kind: Some(kind) });
    send(link::up::Kind::Hello(link::Hello {
        version: "test".to_owned(),
        facts: [("os".to_owned(), "linux".to_owned())].into(),
        start: 1,
        ..link::Hello::default()
    }))
    .await
    .unwrap();
    let mut down = AgentLinkClient::new(channel.clone())
        .session(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    let mut sequence = 0;
    while let Ok(Some(message)) = down.message().await {
        match message.kind {
            Some(link::down::Kind::Assignments(wish)) => {
                sequence += 1;
                send(link::up::Kind::Report(report(sequence, &wish)))
                    .await
                    .unwrap();
            }
            Some(link::down::Kind::Close(close)) => return close.code,
            Some(link::down::Kind::Ask(ask)) => answer(channel.clone(), ask).await,
            Some(link::down::Kind::Lease(_) | link::down::Kind::Coordinators(_)) | None => {}
        }
    }
    "the stream ended".to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_deployed_by_an_agent_that_joined() {
    let world = World::new().await;
    world.objects().await;
    assert_eq!(world.release("1.0.0", b"one").await.status, "ready");

    let token = world.token("agent", &[("role", "web")], "").await;
    let (answer, tls) = world.enroll(&token, "host-1").await.unwrap();
    assert_eq!(answer.name, "host-1");
    let used_up = world.enroll(&token, "host-2").await.err().unwrap();
    assert_eq!(used_up.code, "TG-1305", "{used_up}");

    let session = tokio::spawn(agent(world.channel(&tls)));
    let first = world.deploy("1.0.0").await;
    let first = world.wait_for(&first.id, Wire::Finalized).await;
    assert!(first.initial);
    assert_eq!(first.participants.len(), 1, "{first:?}");

    world.release("2.0.0", b"two").await;
    let second = world.deploy("2.0.0").await;
    let mut watch = DeploymentsClient::new(world.people())
        .watch(pb::WatchDeploymentRequest {
            id: second.short_id.clone(),
            interval_ms: 100,
        })
        .await
        .unwrap()
        .into_inner();
    let mut seen = Vec::new();
    while let Some(found) = watch.message().await.unwrap() {
        if seen.last() != Some(&found.status()) {
            seen.push(found.status());
        }
    }
    assert_eq!(seen.last(), Some(&Wire::Finalized), "{seen:?}");
    assert!(seen.contains(&Wire::Running), "{seen:?}");
    let second = world.wait_for(&second.id, Wire::Finalized).await;
    assert_eq!(second.replaces_version, "1.0.0");
    assert_eq!(second.outcome, "promoted");

    let view = ScopesClient::new(world.people())
        .view(pb::ScopeRequest {
            name: "shop-prod".to_owned(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(view.active.unwrap().version, "2.0.0");
    assert!(view.agents[0].connected);
    let events = ClusterClient::new(world.people())
        .events(pb::EventsRequest {
            limit: 1_000,
            ..pb::EventsRequest::default()
        })
        .await
        .unwrap()
        .into_inner()
        .events;
    for pair in events.windows(2) {
        assert_eq!(pair[0].hash, pair[1].previous_hash);
    }

    AgentsClient::new(world.people())
        .remove(pb::RemoveAgentRequest {
            request_id: id(),
            name: "host-1".to_owned(),
        })
        .await
        .unwrap();
    let end = tokio::time::timeout(DEADLINE, session).await.unwrap();
    assert_eq!(end.unwrap(), "AGENT_REMOVED");
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_checked_and_given_only_to_whom_they_are_assigned() {
    let world = World::new().await;
    world.objects().await;
    let right = Digest::of(b"hello world");
    let wrong = Digest::of(b"something else");
    let status = world.put(&world.admin, &wrong, b"hello world").await;
    assert_eq!(status, http::StatusCode::UNPROCESSABLE_ENTITY);
    let get = |digest: &Digest, range: &str| {
        http::Request::get(format!("/v1/blobs/{digest}"))
            .header(http::header::RANGE, range)
            .body(Body::empty())
            .unwrap()
    };
    let (status, body) = world.http(&world.admin, get(&wrong, "bytes=0-")).await;
    assert_eq!(status, http::StatusCode::NOT_FOUND);
    assert!(String::from_utf8_lossy(&body).contains("TG-1407"));

    world.release("1.0.0", b"hello world").await;
    let (status, body) = world.http(&world.admin, get(&right, "bytes=6-8")).await;
    assert_eq!(
        (status, body),
        (http::StatusCode::PARTIAL_CONTENT, b"wor".to_vec())
    );
    let (status, _) = world.http(&world.admin, get(&right, "bytes=99-")).await;
    assert_eq!(status, http::StatusCode::RANGE_NOT_SATISFIABLE);

    let token = world.token("agent", &[("role", "web")], "host-1").await;
    let (_, tls) = world.enroll(&token, "host-1").await.unwrap();
    let (status, _) = world.http(&tls, get(&right, "bytes=0-")).await;
    assert_eq!(status, http::StatusCode::FORBIDDEN);
    assert_eq!(
        world.put(&tls, &right, b"hello world").await,
        http::StatusCode::FORBIDDEN
    );
    let session = tokio::spawn(agent(world.channel(&tls)));
    let deployment = world.deploy("1.0.0").await;
    world.wait_for(&deployment.id, Wire::Finalized).await;
    let (status, body) = world.http(&tls, get(&right, "bytes=0-")).await;
    assert_eq!(
        (status, body),
        (http::StatusCode::PARTIAL_CONTENT, b"hello world".to_vec())
    );
    world.node.shutdown().await;
    assert_eq!(session.await.unwrap(), "SHUTTING_DOWN");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_with_its_reason() {
    type Change = fn(&mut pb::ApplyRequest);
    let world = World::new().await;
    let mut objects = ObjectsClient::new(world.people());
    let wrong = |change: Change| {
        let mut request = pb::ApplyRequest {
            request_id: id(),
            kind: "application".to_owned(),
            name: "shop".to_owned(),
            ..pb::ApplyRequest::default()
        };
        change(&mut request);
        request
    };
    let table: [(Change, &str); 5] = [
        (|r| r.request_id.clear(), "INVALID_FIELD"),
        (
            |r| r.request_id = "01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
            "TOO_OLD",
        ),
        (|r| r.kind = "thing".into(), "INVALID_FIELD"),
        (|r| r.spec = r#"{"x": 1}"#.into(), "INVALID_FIELD"),
        (|r| r.expected_revision = 99, "NOT_FOUND"),
    ];
    for (change, reason) in table {
        let status = objects.apply(wrong(change)).await.unwrap_err();
        assert_eq!(reason_of(&status).as_deref(), Some(reason), "{status}");
    }
    let dry = objects.apply(wrong(|r| r.dry_run = true)).await.unwrap();
    assert!(dry.into_inner().object.is_some());
    let get = pb::GetObjectRequest {
        kind: "application".to_owned(),
        name: "shop".to_owned(),
    };
    let status = objects.get(get).await.unwrap_err();
    assert_eq!(reason_of(&status).as_deref(), Some("NOT_FOUND"), "{status}");

    // An agent may not do what people do, and nobody gets in without a certificate.
    let token = world.token("agent", &[], "host-1").await;
    let (_, tls) = world.enroll(&token, "host-1").await.unwrap();
    let status = ObjectsClient::new(world.channel(&tls))
        .list(pb::ListObjectsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        reason_of(&status).as_deref(),
        Some("PERMISSION_DENIED"),
        "{status}"
    );
    let stranger = World::new().await;
    let status = ObjectsClient::new(world.channel(&stranger.admin))
        .list(pb::ListObjectsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason_of(&status), None, "{status}");
    let foreign = stranger.token("agent", &[], "").await;
    let refused = world.enroll(&foreign, "host-9").await.err().unwrap();
    assert_eq!(refused.code, "TG-1307", "{refused}");
    world.node.shutdown().await;
    stranger.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_coordinator_joins_and_answers_as_well() {
    let world = World::new().await;
    world.objects().await;
    let bytes: &[u8] = b"one";
    world.release("1.0.0", bytes).await;
    let join = JoinRequest {
        dir: world.dir.path().join("b"),
        name: Name::new("b").unwrap(),
        token: world.token("coordinator", &[], "").await,
        server: world.node.listen().enroll.to_string(),
        places: places(),
    };
    // Port 0 cannot be told to others before it is bound.
    let refused = setup::join(&join, &Clock::system()).await.unwrap_err();
    assert_eq!(refused.code, "TG-1001", "{refused}");
    let free = |_: ()| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let join = JoinRequest {
        places: Places {
            control: Some(free(())),
            peer: Some(free(())),
            http: Some(free(())),
            enroll: Some(free(())),
            ..Places::default()
        },
        ..join
    };
    assert_eq!(setup::join(&join, &Clock::system()).await.unwrap(), 2);
    let second = start(&join.dir).await;
    let own = second.context().clone();
    let wait = async {
        while own.blobs.size(&Digest::of(bytes)).await.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap();

    // An agent at the follower, people at the follower: all of it reaches the leader.
    let token = world.token("agent", &[("role", "web")], "").await;
    let (_, tls) = world.enroll(&token, "host-1").await.unwrap();
    let address = second.listen().control.to_string();
    let at_second = |tls: &Tls| tls.channel(&address, Expected::AnyCoordinator).unwrap();
    let session = tokio::spawn(agent(at_second(&tls)));
    let deployment = world.deploy("1.0.0").await;
    world.wait_for(&deployment.id, Wire::Finalized).await;
    let found = AgentsClient::new(at_second(&world.admin))
        .get(pb::GetAgentRequest {
            name: "host-1".to_owned(),
        })
        .await
        .unwrap()
        .into_inner();
    assert!(found.connected, "{found:?}");
    assert_eq!(found.coordinator, "b");
    assert_eq!(found.places.len(), 1);
    let status = ClusterClient::new(at_second(&world.admin))
        .status(pb::ClusterStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.members.len(), 2);
    assert_eq!(status.agents_connected, 1);

    // Logs: asked at one coordinator, told by an agent at the other.
    let mut lines = ScopesClient::new(world.people())
        .logs(pb::LogsRequest {
            scope: "shop-prod".to_owned(),
            ..pb::LogsRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    let line = lines.message().await.unwrap().unwrap();
    assert_eq!(
        (line.agent.as_str(), line.text.as_str()),
        ("host-1", "it works")
    );
    assert!(lines.message().await.unwrap().is_none());

    // A watch at the follower is told to the end.
    world.release("2.0.0", b"two").await;
    let deployment = world.deploy("2.0.0").await;
    let mut watch = DeploymentsClient::new(at_second(&world.admin))
        .watch(pb::WatchDeploymentRequest {
            id: deployment.id,
            interval_ms: 100,
        })
        .await
        .unwrap()
        .into_inner();
    let mut last = None;
    while let Some(found) = watch.message().await.unwrap() {
        last = Some(found.status());
    }
    assert_eq!(last, Some(Wire::Finalized));

    // The lead moves; what the new leader shows is whole again without a report being lost.
    let mut cluster = ClusterClient::new(at_second(&world.admin));
    let mut hand_over = async |to: u64| {
        let request = pb::TransferLeadershipRequest { to };
        let answer = cluster.transfer_leadership(request).await;
        answer.map(|status| status.into_inner().leader)
    };
    let unknown = hand_over(9).await.unwrap_err();
    assert!(unknown.message().ends_with("1 (a), 2 (b)"), "{unknown}");
    assert_eq!(hand_over(1).await.unwrap(), 1);
    assert_eq!(hand_over(2).await.unwrap(), 2);
    assert_eq!(hand_over(2).await.unwrap(), 2);
    let wait = async {
        loop {
            let found = AgentsClient::new(world.people())
                .get(pb::GetAgentRequest {
                    name: "host-1".to_owned(),
                })
                .await
                .unwrap()
                .into_inner();
            if found.connected && found.places.len() == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap();
    second.shutdown().await;
    assert_eq!(session.await.unwrap(), "SHUTTING_DOWN");
    world.node.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_renews_its_certificate_and_people_and_agents_renew_theirs() {
    let world = World::new().await;
    let World { dir, node, admin } = world;
    node.shutdown().await;
    let environment = [
        ("TIDEGATE_COORDINATOR_RAFT_TICK", "10ms"),
        ("TIDEGATE_COORDINATOR_CERTIFICATE_LIFE_COORDINATOR", "10s"),
    ];
    let environment = environment.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let path = dir.path().join("a");
    // The first certificate was made for 30 days: a short-lived one takes its place.
    let config = Config::load(&path.join(FILE_NAME), environment).unwrap();
    let cluster_key = ca::ClusterKey::read(&path.join(setup::KEY_FILE)).unwrap();
    let node = Node::start(config, Clock::system(), end_process())
        .await
        .unwrap();
    node.ready().await;
    let world = World { dir, node, admin };
    let state = world.node.context().query.stale().state.clone();
    let authority = ca::Ca::open(&state.cluster.unwrap().ca, &cluster_key).unwrap();
    let (key, csr) = ca::key_and_request().unwrap();
    let identity = crate::tls::SpiffeId::parse("spiffe://example.com/coordinator/a").unwrap();
    let now = tidegate_shared::time::Timestamp::from_millis(Clock::system().wall_ms());
    let subject = ca::Subject {
        identity: &identity,
        hosts: &[],
        life: tidegate_shared::time::Span::from_secs(10),
    };
    let issued = authority.sign_request(&csr, &subject, now).unwrap();
    let before = issued.not_after;
    setup::write_material(&path, &key, &issued.chain, &issued.roots).unwrap();
    let World { dir, node, admin } = world;
    let config = node.context().config.clone();
    node.shutdown().await;
    let node = Node::start(config, Clock::system(), end_process())
        .await
        .unwrap();
    node.ready().await;
    let wait = async {
        loop {
            let material = setup::read_material(&path).unwrap();
            let validity = ca::validity(&material.chain[0]).unwrap();
            if validity.not_after > before {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap();
    let world = World { dir, node, admin };

    let (key, csr) = ca::key_and_request().unwrap();
    let renewed = ClusterClient::new(world.people())
        .renew_certificate(pb::RenewCertificateRequest { csr: csr.into() })
        .await
        .unwrap()
        .into_inner();
    let fresh = tls_of(&renewed.certificate_chain, &key, &renewed.roots);
    let me = ClusterClient::new(world.channel(&fresh))
        .who_am_i(pb::WhoAmIRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(me.identity, "spiffe://example.com/user/admin");
    assert_eq!(me.certificate_not_after_ms, renewed.not_after_ms);
    let token = world.token("agent", &[], "").await;
    let (_, tls) = world.enroll(&token, "host-1").await.unwrap();
    let (_, csr) = ca::key_and_request().unwrap();
    let renewed = AgentLinkClient::new(world.channel(&tls))
        .renew(link::RenewRequest { csr: csr.into() })
        .await
        .unwrap()
        .into_inner();
    let leaf = ca::root_der(&renewed.certificate_chain).unwrap();
    let identity = crate::tls::SpiffeId::of_certificate(&leaf).unwrap();
    assert_eq!(identity.to_string(), "spiffe://example.com/agent/host-1");
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_logs_in_and_a_stranger_tool_finds_its_way() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let world = World::new().await;
    let token = world.token("user", &[], "eve").await;
    let refused = world.enroll(&token, "mallory").await.err().unwrap();
    assert!(!refused.message.is_empty());
    let (answer, tls) = world.enroll(&token, "eve").await.unwrap();
    assert!(answer.members.is_empty());
    assert_eq!(answer.coordinators.len(), 1);
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut stream = ServerReflectionClient::new(world.channel(&tls))
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let response = stream.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = response else {
        panic!("{response:?}");
    };
    let names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    assert!(names.contains(&"tidegate.control.v1.Deployments".to_owned()));
    let health = tonic_health::pb::health_client::HealthClient::new(world.channel(&tls))
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(health.status, 1);
    world.node.shutdown().await;
}
