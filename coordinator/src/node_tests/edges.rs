//! The outer edges of a node: what must not be believed, answered or kept, tried from outside.

use tidegate_proto::peer::v1::peer_client::PeerClient;
use tidegate_proto::peer::v1::{AskRequest, Envelope, ProposeRequest};
use tidegate_shared::id::RequestId;
use tidegate_shared::token::JoinToken;
use tonic::Request;

use super::*;
use crate::api::gate::RELAYED_FOR;
use crate::replica::View;

impl World {
    /// A certificate that the cluster's CA signed for any identity.
    fn forge(&self, uri: &str) -> Tls {
        let path = self.dir.path().join("a").join(setup::KEY_FILE);
        let key = ca::ClusterKey::read(&path).unwrap();
        let state = self.node.context().query.stale().state.clone();
        let authority = ca::Ca::open(&state.cluster.unwrap().ca, &key).unwrap();
        let (key, csr) = ca::key_and_request().unwrap();
        let subject = ca::Subject {
            identity: &crate::tls::SpiffeId::parse(uri).unwrap(),
            hosts: &[],
            life: tidegate_shared::time::Span::from_hours(1),
        };
        let now = self.node.context().now();
        let issued = authority.sign_request(&csr, &subject, now).unwrap();
        tls_of(&issued.chain, &key, &issued.roots)
    }

    fn peer(&self, tls: &Tls) -> Channel {
        let address = self.node.listen().peer.to_string();
        tls.channel(&address, Expected::AnyCoordinator).unwrap()
    }

    async fn join_raw(
        &self,
        token: &str,
        name: &str,
        csr: &[u8],
    ) -> Result<EnrollResponse, String> {
        let request = EnrollRequest {
            token: token.to_owned(),
            csr: csr.to_vec().into(),
            name: name.to_owned(),
            ..EnrollRequest::default()
        };
        let server = self.node.listen().enroll.to_string();
        enroll::request_enrolment(&server, request)
            .await
            .map_err(|error| error.code)
    }

    /// A second coordinator that has joined, and votes; it counts agents as lost after 2 s.
    async fn second(&self) -> Node {
        let free = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            Some(listener.local_addr().unwrap())
        };
        let join = JoinRequest {
            dir: self.dir.path().join("b"),
            name: Name::new("b").unwrap(),
            token: self.token("coordinator", &[], "").await,
            server: self.node.listen().enroll.to_string(),
            places: Places {
                control: free(),
                peer: free(),
                http: free(),
                enroll: free(),
                ..Places::default()
            },
        };
        setup::join(&join, &Clock::system()).await.unwrap();
        let file = join.dir.join(FILE_NAME);
        let config = std::fs::read_to_string(&file).unwrap();
        let hasty = config.replace("lost_after = \"30s\"", "lost_after = \"2s\"");
        assert_ne!(hasty, config);
        std::fs::write(&file, hasty).unwrap();
        let second = start(&join.dir).await;
        // One that still catches up has no vote and cannot take over.
        let mut raft = self.node.context().status.clone();
        let votes = raft.wait_for(|raft| raft.membership.voters.contains(&2));
        drop(tokio::time::timeout(DEADLINE, votes).await.unwrap());
        second
    }

    async fn remove_agent(&self, name: &str) {
        AgentsClient::new(self.people())
            .remove(pb::RemoveAgentRequest {
                request_id: id(),
                name: name.to_owned(),
            })
            .await
            .unwrap();
    }
}

fn for_admin<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let identity = "spiffe://example.com/user/admin".parse().unwrap();
    request.metadata_mut().insert(RELAYED_FOR, identity);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_speak_for_others_or_as_coordinators() {
    let world = World::new().await;
    let token = world.token("agent", &[], "").await;
    let (_, agent) = world.enroll(&token, "host-1").await.unwrap();
    // Signed by the right CA, but in no table.
    let stranger = world.forge("spiffe://example.com/coordinator/z");
    let elsewhere = world.forge("spiffe://elsewhere.com/coordinator/a");
    let nobody = world.forge("spiffe://example.com/user/nobody");
    for (who, tls) in [
        ("admin", &world.admin),
        ("agent", &agent),
        ("stranger", &stranger),
        ("elsewhere", &elsewhere),
        ("nobody", &nobody),
    ] {
        // In the name of the administrator, at both listeners.
        for channel in [world.channel(tls), world.peer(tls)] {
            let answer = ClusterClient::new(channel)
                .status(for_admin(pb::ClusterStatusRequest {}))
                .await;
            let refused = answer.err().unwrap_or_else(|| panic!("{who} was believed"));
            let reason = reason_of(&refused).unwrap();
            assert!(
                ["PERMISSION_DENIED", "REVOKED", "UNAUTHENTICATED"].contains(&reason.as_str()),
                "{who}: {refused:?}"
            );
        }
        // The cluster key, under every node id that might pass.
        for from in [0, 1, 2, 99] {
            let ask = AskRequest {
                envelope: Some(Envelope {
                    cluster_id: world.node.context().identity.cluster_id.clone(),
                    from,
                    to: 1,
                    clock_ms: Clock::system().wall_ms(),
                    address: "127.0.0.1:1".to_owned(),
                }),
                topic: enroll::KEY_TOPIC.to_owned(),
                payload: bytes::Bytes::new(),
            };
            let envelope = ask.envelope.clone();
            let answer = PeerClient::new(world.peer(tls)).ask(ask).await;
            let refused = answer.err().unwrap_or_else(|| panic!("{who} has the key"));
            assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{who}");
            // And commands in whatever name.
            let proposals = ProposeRequest {
                envelope,
                proposals: Vec::new(),
            };
            let answer = PeerClient::new(world.peer(tls)).propose(proposals).await;
            let refused = answer.err().unwrap_or_else(|| panic!("{who} proposes"));
            assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{who}");
        }
    }
    // Who is not in the state is refused also without tricks.
    for tls in [&stranger, &elsewhere, &nobody] {
        let me = ClusterClient::new(world.channel(tls))
            .who_am_i(pb::WhoAmIRequest {})
            .await;
        assert!(me.is_err());
    }
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_there_is_enrolment_and_nothing_else() {
    let world = World::new().await;
    let state = world.node.context().query.stale().state.clone();
    let root = ca::root_der(&state.cluster.unwrap().ca.certificate).unwrap();
    let fingerprint = Digest::of(&root);
    let listen = world.node.listen();
    for address in [listen.control, listen.peer, listen.http] {
        // The refusal comes with the handshake, or right behind it.
        let Ok(channel) = enroll::connect(&address.to_string(), fingerprint).await else {
            continue;
        };
        let refused = ClusterClient::new(channel)
            .who_am_i(pb::WhoAmIRequest {})
            .await
            .unwrap_err();
        assert_eq!(reason_of(&refused), None, "{address} answered: {refused:?}");
    }
    let open = enroll::connect(&listen.enroll.to_string(), fingerprint)
        .await
        .unwrap();
    let mut cluster = ClusterClient::new(open);
    let refused = cluster.who_am_i(pb::WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("UNAUTHENTICATED"));
    let refused = cluster
        .status(for_admin(pb::ClusterStatusRequest {}))
        .await
        .unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("PERMISSION_DENIED"));
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_counts_once_however_it_is_tried() {
    let world = World::new().await;
    // Two at once.
    let token = world.token("agent", &[], "").await;
    let (one, other) = tokio::join!(
        world.enroll(&token, "host-1"),
        world.enroll(&token, "host-2")
    );
    let codes: Vec<_> = [one.err(), other.err()]
        .into_iter()
        .flatten()
        .map(|error| error.code)
        .collect();
    assert_eq!(
        codes,
        ["TG-1305"],
        "one joins, the other is told that it is used up"
    );

    // A wrong secret gets no word into the log.
    let good: JoinToken = token.parse().unwrap();
    let wrong = JoinToken::new(good.id, [9; 32], good.fingerprint).reveal();
    let before = world
        .node
        .context()
        .read()
        .await
        .unwrap()
        .state
        .requests
        .len();
    let (_, csr) = ca::key_and_request().unwrap();
    let refused = world.join_raw(&wrong, "host-3", &csr).await.unwrap_err();
    assert_eq!(refused, "TG-1303");
    let after = world
        .node
        .context()
        .read()
        .await
        .unwrap()
        .state
        .requests
        .len();
    assert_eq!(before, after);

    // A repeated request is answered again, but brings nobody back.
    let token = world.token("agent", &[], "").await;
    let (_, csr) = ca::key_and_request().unwrap();
    assert!(world.join_raw(&token, "host-4", &csr).await.is_ok());
    assert!(world.join_raw(&token, "host-4", &csr).await.is_ok());
    world.remove_agent("host-4").await;
    let revoked = world.join_raw(&token, "host-4", &csr).await.unwrap_err();
    assert_eq!(revoked, tidegate_shared::error::Reason::Revoked.code());
    let fresh = world.token("agent", &[], "").await;
    world.enroll(&fresh, "host-4").await.unwrap();
    let revoked = world.join_raw(&token, "host-4", &csr).await.unwrap_err();
    assert_eq!(revoked, tidegate_shared::error::Reason::Revoked.code());
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_asked_for_again_is_the_same_and_works() {
    let world = World::new().await;
    let request = pb::CreateTokenRequest {
        request_id: id(),
        kind: "agent".to_owned(),
        ..pb::CreateTokenRequest::default()
    };
    let mut tokens = TokensClient::new(world.people());
    let first = tokens.create(request.clone()).await.unwrap().into_inner();
    let again = tokens.create(request.clone()).await.unwrap().into_inner();
    assert_eq!(first, again);
    let other = pb::CreateTokenRequest {
        uses: 2,
        ..request.clone()
    };
    let refused = tokens.create(other).await.unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("REQUEST_ID_REUSED"));
    world.enroll(&again.token, "host-1").await.unwrap();
    // Another person with the same request id gets no token of hers.
    let token = world.token("user", &[], "eve").await;
    let (_, eve) = world.enroll(&token, "eve").await.unwrap();
    let answer = TokensClient::new(world.channel(&eve)).create(request).await;
    assert!(answer.map_or(true, |answer| answer.into_inner().token != first.token));
    assert!(first.id.parse::<RequestId>().is_ok());
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_only_of_what_it_acts_for() {
    let world = World::new().await;
    world.objects().await;
    world.release("1.0.0", b"one").await;
    let token = world.token("agent", &[("role", "web")], "").await;
    let (_, tls) = world.enroll(&token, "host-1").await.unwrap();
    let session = tokio::spawn(agent(world.channel(&tls)));
    let deployment = world.deploy("1.0.0").await;
    let deployment = world.wait_for(&deployment.id, Wire::Finalized).await;

    let token = world.token("agent", &[("role", "other")], "").await;
    let (_, tls) = world.enroll(&token, "liar").await.unwrap();
    let (up, receiver) = mpsc::channel(4);
    let send = |kind: link::up::Kind| up.send(link::Up { kind: Some(kind) });
    let hello = link::up::Kind::Hello(link::Hello::default());
    send(hello).await.unwrap();
    let lie = |scope: &str, deployment: String| link::ObservedPlace {
        scope: scope.to_owned(),
        deployment,
        instances: vec![link::ObservedInstance {
            instance: "x".to_owned(),
            state: link::InstanceState::Failed.into(),
            counters: Some(link::Counters {
                requests: 1_000_000,
                server_errors: 1_000_000,
                ..link::Counters::default()
            }),
            ..link::ObservedInstance::default()
        }],
        ..link::ObservedPlace::default()
    };
    let report = link::Report {
        start: 1,
        sequence: 1,
        places: vec![
            lie("shop-prod", deployment.id.clone()),
            lie("shop-prod", id()),
        ],
        complaints: vec!["heard".to_owned()],
        ..link::Report::default()
    };
    send(link::up::Kind::Report(report)).await.unwrap();
    let _down = AgentLinkClient::new(world.channel(&tls))
        .session(ReceiverStream::new(receiver))
        .await
        .unwrap();
    let heard = async {
        loop {
            let found = AgentsClient::new(world.people())
                .get(pb::GetAgentRequest {
                    name: "liar".to_owned(),
                })
                .await
                .unwrap()
                .into_inner();
            if !found.complaints.is_empty() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(DEADLINE, heard).await.unwrap();
    assert!(found.places.is_empty(), "{found:?}");
    world.node.shutdown().await;
    assert_eq!(session.await.unwrap(), "SHUTTING_DOWN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_watch_ends_with_the_lead() {
    let world = World::new().await;
    world.objects().await;
    world.release("1.0.0", b"one").await;
    let second = world.second().await;
    let token = world.token("agent", &[("role", "web")], "").await;
    let (_, tls) = world.enroll(&token, "host-1").await.unwrap();
    let session = tokio::spawn(agent(world.channel(&tls)));
    let deployment = world.deploy("1.0.0").await;
    world.wait_for(&deployment.id, Wire::Finalized).await;
    // No agent is there any more: the second deployment stays as it is.
    world.remove_agent("host-1").await;
    session.await.unwrap();
    world.release("2.0.0", b"two").await;
    let deployment = world.deploy("2.0.0").await;
    let request = || {
        for_admin(pb::WatchDeploymentRequest {
            id: deployment.id.clone(),
            interval_ms: 100,
        })
    };
    let first = second.context().peers.channel(1).unwrap();
    let mut watch = DeploymentsClient::new(first.clone())
        .watch(request())
        .await
        .unwrap()
        .into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let moved = world.node.context().transfer(None, DEADLINE).await.unwrap();
    assert!(moved);
    let ends = |mut watch: tonic::Streaming<pb::Deployment>| async move {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return reason_of(&status),
            }
        }
    };
    let end = tokio::time::timeout(DEADLINE, ends(watch)).await.unwrap();
    assert_eq!(end.as_deref(), Some("NO_LEADER"));
    // Nor does one begin where nobody leads.
    let watch = DeploymentsClient::new(first)
        .watch(request())
        .await
        .unwrap()
        .into_inner();
    let end = tokio::time::timeout(DEADLINE, ends(watch)).await.unwrap();
    assert_eq!(end.as_deref(), Some("NO_LEADER"));
    second.shutdown().await;
    world.node.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_taken_out_hears_of_it() {
    let world = World::new().await;
    let second = world.second().await;
    let still_in = tokio::time::timeout(Duration::ZERO, second.removed()).await;
    assert!(still_in.is_err());
    ClusterClient::new(world.people())
        .remove_member(pb::RemoveMemberRequest {
            request_id: id(),
            node_id: 2,
        })
        .await
        .unwrap();
    tokio::time::timeout(DEADLINE, second.removed())
        .await
        .unwrap();
    second.shutdown().await;
    world.node.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_sent_away_from_a_coordinator_that_is_cut_off() {
    let world = World::new().await;
    let second = world.second().await;
    let token = world.token("agent", &[("role", "web")], "").await;
    let (_, tls) = world.enroll(&token, "host-1").await.unwrap();
    let address = second.listen().control.to_string();
    let channel = || tls.channel(&address, Expected::AnyCoordinator).unwrap();
    let session = tokio::spawn(agent(channel()));
    let mut views = second.context().query.views();
    let told = |view: &Arc<View>| {
        let agent = view.state.agents.get(&Name::new("host-1").unwrap());
        agent.is_some_and(|agent| agent.version == "test")
    };
    drop(
        tokio::time::timeout(DEADLINE, views.wait_for(told))
            .await
            .unwrap(),
    );
    world.node.kill().await;
    let end = tokio::time::timeout(DEADLINE, session).await.unwrap();
    assert_eq!(end.unwrap(), "NO_LEADER");
    second.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_whose_certificate_ran_out_comes_back_in() {
    let world = World::new().await;
    let request = setup::AdminRequest {
        dir: world.dir.path().join("a"),
        name: Name::new("admin").unwrap(),
        out: Some(world.dir.path().join("back")),
    };
    // The node runs all the while.
    let out = setup::admin(&request, &Clock::system()).unwrap();
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert!(read("context.toml").contains("user = \"admin\""));
    let fresh = tls_of(&read("cert.pem"), &read("key.pem"), &read("roots.pem"));
    let me = ClusterClient::new(world.channel(&fresh))
        .who_am_i(pb::WhoAmIRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(me.identity, "spiffe://example.com/user/admin");
    let nobody = setup::AdminRequest {
        name: Name::new("nobody").unwrap(),
        ..request.clone()
    };
    let refused = setup::admin(&nobody, &Clock::system()).unwrap_err();
    assert_eq!(refused.code, "TG-1101");
    assert!(refused.message.contains("known are: admin"), "{refused}");
    let empty = setup::AdminRequest {
        dir: world.dir.path().join("nowhere"),
        ..request
    };
    let refused = setup::admin(&empty, &Clock::system()).unwrap_err();
    assert_eq!(refused.code, "TG-1503", "{refused}");
    world.node.shutdown().await;
}
