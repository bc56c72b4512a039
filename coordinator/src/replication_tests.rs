//! Whole clusters in one process: real threads, real disks, real gRPC over loopback with mutual
//! TLS. The state machine is a small one of its own: these tests are about replication.

use std::sync::Arc;
use std::time::Duration;

use tidegate_coordinator_core::command::{Command, CreateToken, TokenKind};
use tidegate_coordinator_core::{Actor, Item, Reply};
use tidegate_shared::digest::Digest;
use tidegate_shared::id::TokenId;
use tidegate_shared::selector::Labels;
use tidegate_shared::time::Timestamp;
use tokio::sync::watch;

mod cluster;

use crate::clock::Clock;
use crate::entropy;
use crate::propose::ProposeError;
use crate::query::QueryError;
use crate::raft::driver::Proposed;
use crate::raft::peer_service::AskFuture;
use crate::raft::snapshot::{read_state, write_state};
use crate::raft::{Fate, MembershipChange, MembershipError, Role};
use crate::replication::{Replication, ReplicationConfig};
use crate::storage::data_dir::Peer;
use crate::storage::disk::FolderDisk;
use crate::storage::log::Membership;
use crate::storage::snapshot::SnapshotStore;
use crate::tls::Tls;
use cluster::{CLUSTER, TestCluster, WAIT, apply_with_past, item, write};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_leads_at_once_and_keeps_what_it_acknowledged() {
    let mut cluster = TestCluster::of(1).await;
    let one = cluster.write(1).await;
    cluster.kill(1).await;
    cluster.restart(1).await;
    assert!(cluster.reads(1, &one).await);
    let running = cluster.nodes.get_mut(&1).unwrap().running.take().unwrap();
    running.shutdown().await;
    cluster.restart(1).await;
    assert!(cluster.reads(1, &one).await);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_followers_write_is_forwarded_and_read_on_every_node() {
    let cluster = TestCluster::of(3).await;
    let follower = cluster.follower().await;
    let one = cluster.write(follower).await;
    for id in 1..=3 {
        assert!(cluster.reads(id, &one).await, "node {id}");
    }
    cluster.assert_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_killed_and_nothing_acknowledged_is_lost() {
    let mut cluster = TestCluster::of(3).await;
    let mut written = Vec::new();
    for round in 0..3 {
        let leader = cluster.leader().await;
        written.push(cluster.write(leader).await);
        cluster.kill(leader).await;
        let other = cluster.leader().await;
        assert_ne!(other, leader, "round {round}");
        written.push(cluster.write(other).await);
        cluster.restart(leader).await;
        for one in &written {
            assert!(cluster.reads(leader, one).await, "round {round}");
        }
    }
    cluster.assert_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_cluster_is_killed_and_comes_back() {
    let mut cluster = TestCluster::of(3).await;
    let one = cluster.write(2).await;
    for id in 1..=3 {
        cluster.kill(id).await;
    }
    for id in 1..=3 {
        cluster.restart(id).await;
    }
    for id in 1..=3 {
        assert!(cluster.reads(id, &one).await);
    }
    cluster.assert_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_follower_gets_a_snapshot() {
    let mut cluster = TestCluster::new();
    cluster.settings.snapshot_entries = 20;
    cluster.settings.keep_entries = 5;
    cluster.grow(3).await;
    let follower = cluster.follower().await;
    cluster.kill(follower).await;
    let leader = cluster.leader().await;
    let behind = cluster.node(leader).status.borrow().last_index;
    let mut last = write();
    while cluster.node(leader).status.borrow().compacted <= behind {
        last = cluster.write(leader).await;
    }
    let before = cluster.write(leader).await;
    cluster.restart(follower).await;
    assert!(cluster.reads(follower, &last).await);
    assert!(cluster.reads(follower, &before).await);
    // And it starts again from what it was sent.
    cluster.kill(follower).await;
    cluster.restart(follower).await;
    assert!(cluster.reads(follower, &before).await);
    cluster.assert_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_gets_a_snapshot_gets_the_past_that_the_state_lacks() {
    let mut cluster = TestCluster::new();
    cluster.state_machine = apply_with_past;
    cluster.settings.snapshot_entries = 50;
    cluster.settings.keep_entries = 5;
    cluster.grow(3).await;
    cluster.write(1).await;
    cluster.assert_whole_past().await;
    let follower = cluster.follower().await;
    cluster.kill(follower).await;
    let leader = cluster.leader().await;
    let behind = cluster.node(leader).status.borrow().last_index;
    while cluster.node(leader).status.borrow().compacted <= behind {
        cluster.write(leader).await;
    }
    cluster.restart(follower).await;
    let last = cluster.write(leader).await;
    assert!(cluster.reads(follower, &last).await);
    cluster.assert_whole_past().await;
    // A newcomer has nothing at all of it.
    cluster.grow(4).await;
    cluster.assert_whole_past().await;
    for id in 1..=4 {
        cluster.kill(id).await;
    }
    for id in 1..=4 {
        cluster.restart(id).await;
    }
    cluster.assert_whole_past().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_start_without_the_past_that_its_state_lacks() {
    let mut cluster = TestCluster::new();
    cluster.state_machine = apply_with_past;
    cluster.grow(1).await;
    cluster.kill(1).await;
    let dir = cluster.dir(1);
    std::fs::remove_file(dir.history()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = Tls::new(cluster.nodes[&1].material.subscribe(), "td");
    let config = ReplicationConfig::new(dir, tls, listener, String::new(), apply_with_past);
    let refused = Replication::start(config).err().unwrap().to_string();
    assert!(refused.contains("it is missing"), "{refused}");
    assert!(refused.contains("join it anew"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_is_handed_over_and_no_request_fails() {
    let cluster = TestCluster::of(3).await;
    let first = cluster.leader().await;
    let follower = cluster.follower().await;
    let (stop, stopped) = watch::channel(false);
    let writers: Vec<_> = [first, follower]
        .into_iter()
        .map(|id| {
            let proposer = cluster.node(id).proposer.clone();
            let stopped = stopped.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while !*stopped.borrow() {
                    proposer.propose(write()).await.unwrap().unwrap();
                    done += 1;
                }
                done
            })
        })
        .collect();
    for _ in 0..5 {
        let leader = cluster.leader().await;
        let moved = cluster.node(leader).transfer_leadership(None, WAIT).await;
        assert!(moved);
        assert_ne!(cluster.leader().await, leader);
    }
    for chosen in [1, 3, 2, 1] {
        let leader = cluster.leader().await;
        if leader != chosen {
            let node = cluster.node(leader);
            assert!(node.transfer_leadership(Some(chosen), WAIT).await);
        }
        assert_eq!(cluster.leader().await, chosen);
    }
    stop.send(true).unwrap();
    for writer in writers {
        assert!(writer.await.unwrap() > 0);
    }
    cluster.assert_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_proposals_at_once_from_every_node() {
    let cluster = TestCluster::of(3).await;
    cluster.leader().await;
    let before = cluster.node(1).query.linearizable().await.unwrap();
    let tasks: Vec<_> = (0..1000_u64)
        .map(|i| {
            let proposer = cluster.node(i % 3 + 1).proposer.clone();
            tokio::spawn(async move { proposer.propose(write()).await })
        })
        .collect();
    let mut revisions = std::collections::BTreeSet::new();
    for task in tasks {
        match task.await.unwrap().unwrap().unwrap() {
            Reply::Object { revision, .. } => assert!(revisions.insert(revision)),
            other => panic!("{other:?}"),
        }
    }
    let after = cluster.node(2).query.linearizable().await.unwrap();
    assert_eq!(after.state.last_revision - before.state.last_revision, 1000);
    assert!(
        after.index - before.index < 900,
        "commands that wait together share entries: {} entries",
        after.index - before.index
    );
    cluster.assert_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_one_entry_and_a_retry_is_done_once() {
    let cluster = TestCluster::of(3).await;
    let follower = cluster.follower().await;
    let proposer = &cluster.node(follower).proposer;
    let batch: Vec<Item> = (0..10).map(|_| write()).collect();
    let first = proposer.propose_batch(batch.clone()).await.unwrap();
    let again = proposer.propose_batch(batch).await.unwrap();
    assert_eq!(first, again);
    assert_eq!(first.len(), 10);
    cluster.assert_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_the_outcome_is_unknown_and_reads_say_so() {
    let mut cluster = TestCluster::new();
    cluster.propose_limit = Duration::from_secs(3);
    cluster.grow(3).await;
    let leader = cluster.leader().await;
    for id in 1..=3 {
        if id != leader {
            cluster.kill(id).await;
        }
    }
    let one = write();
    let (outcome, read) = tokio::join!(
        cluster.node(leader).proposer.propose(one.clone()),
        cluster.node(leader).query.linearizable()
    );
    assert_eq!(outcome.unwrap_err(), ProposeError::OutcomeUnknown);
    assert!(matches!(read.unwrap_err(), QueryError::NoLeader { .. }));
    let late = cluster.node(leader).proposer.propose(write()).await;
    assert_eq!(late.unwrap_err(), ProposeError::NoLeader);
    for id in 1..=3 {
        if id != leader {
            cluster.restart(id).await;
        }
    }
    // The retry is safe, whether the first attempt took effect or not.
    let outcome = cluster.node(leader).proposer.propose(one.clone()).await;
    outcome.unwrap().unwrap();
    assert!(cluster.reads(leader, &one).await);
    cluster.assert_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_wrong_clock_gives_the_lead_away() {
    let cluster = TestCluster::of(3).await;
    let leader = cluster.leader().await;
    cluster.nodes[&leader].clock.shift(60_000);
    cluster
        .until(leader, "gives the lead away", |s| {
            s.clock_skewed && s.leader.is_some_and(|l| l != leader)
        })
        .await;
    cluster.nodes[&leader].clock.shift(0);
    cluster
        .until(leader, "agrees again", |s| !s.clock_skewed)
        .await;
    cluster.assert_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_leaves_even_if_it_leads() {
    let mut cluster = TestCluster::of(3).await;
    let leader = cluster.leader().await;
    let members = cluster.node(leader).members.clone();
    let request = write().request;
    members
        .remove_member(Actor::System, request, leader, WAIT)
        .await
        .unwrap();
    let other = leader % 3 + 1;
    cluster
        .until(other, "goes on without it", |s| {
            !s.membership.contains(leader) && s.membership.voters.len() == 2
        })
        .await;
    cluster.kill(leader).await;
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    cluster.write(next).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_inside_a_joint_membership_leaves_it() {
    let mut cluster = TestCluster::of(1).await;
    cluster.kill(1).await;
    let dir = cluster.dir(1);
    let disk = Arc::new(FolderDisk::new(&dir.snapshots()).unwrap());
    let store = SnapshotStore::new(disk, CLUSTER);
    let file = store.usable(|e| panic!("{e}")).unwrap().remove(0);
    let state = read_state(&store, &file).unwrap();
    let joint = Membership {
        voters: vec![1],
        voters_outgoing: vec![1],
        ..Membership::default()
    };
    write_state(&store, file.head.mark, &joint, &state).unwrap();
    drop(dir);
    cluster.restart(1).await;
    cluster
        .until(1, "leaves the joint membership", |s| {
            s.role == Role::Leader && !s.membership.is_joint()
        })
        .await;
    cluster.write(1).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_change_of_the_membership_has_to_wait() {
    let cluster = TestCluster::of(1).await;
    cluster.leader().await;
    let raft = cluster.node(1).raft();
    let (first, second) = tokio::join!(
        raft.change(MembershipChange::AddLearner(7)),
        raft.change(MembershipChange::AddLearner(8))
    );
    first.unwrap();
    assert_eq!(second.unwrap_err(), MembershipError::Busy);
    let last = raft.change(MembershipChange::Remove(1)).await;
    assert!(matches!(
        last,
        Err(MembershipError::LastVoter(1) | MembershipError::Busy)
    ));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_disk_under_an_old_id_is_fatal_and_says_so() {
    let mut cluster = TestCluster::of(3).await;
    let follower = cluster.follower().await;
    cluster.write(follower).await;
    cluster.kill(follower).await;
    let dir = cluster.dir(follower);
    std::fs::remove_dir_all(dir.log()).unwrap();
    std::fs::remove_dir_all(dir.snapshots()).unwrap();
    drop(dir);
    cluster.restart(follower).await;
    let deadline = tokio::time::Instant::now() + WAIT;
    while cluster.fatal.lock().unwrap().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "nobody noticed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let message = cluster.fatal.lock().unwrap()[0].clone();
    assert!(message.contains("its disk lost data"), "{message}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_state_is_the_same_after_a_restart() {
    let mut cluster = TestCluster::new();
    cluster.state_machine = tidegate_coordinator_core::apply;
    cluster.settings.snapshot_entries = 10;
    cluster.grow(1).await;
    for number in 0..25_u8 {
        let token = item(Command::CreateToken(CreateToken {
            id: TokenId::new(entropy::ulid(u64::from(number)).unwrap()),
            kind: TokenKind::Agent,
            secret_hash: Digest::of(&[number]),
            labels: Labels::default(),
            expires_at: Timestamp::from_millis(u64::MAX / 2),
            uses: 1,
            name: None,
            roles: Vec::new(),
        }));
        // Refusals are outcomes too, and part of the state.
        let outcome = cluster.node(1).proposer.propose(token.clone()).await;
        let again = cluster.node(1).proposer.propose(token).await;
        assert_eq!(outcome.unwrap(), again.unwrap());
    }
    let before = cluster.node(1).query.linearizable().await.unwrap();
    assert!(!before.state.requests.is_empty());
    cluster.kill(1).await;
    cluster.restart(1).await;
    let after = cluster.node(1).query.linearizable().await.unwrap();
    assert_eq!(after.state, before.state);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_answered_sees_the_effect_on_the_node_that_was_asked() {
    let cluster = TestCluster::of(3).await;
    for id in [cluster.leader().await, cluster.follower().await] {
        let proposer = cluster.node(id).proposer.clone();
        for _ in 0..20 {
            let one = write();
            let key = one.request;
            let (outcomes, view) = proposer.propose_and_see(vec![one]).await.unwrap();
            assert!(outcomes[0].is_ok(), "{outcomes:?}");
            let view = view.expect("the leader tells where the effect is");
            assert!(view.state.requests.contains_key(&key), "node {id}");
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_answers_everybody_first() {
    let mut cluster = TestCluster::of(3).await;
    for _ in 0..2 {
        let leader = cluster.leader().await;
        let proposer = cluster.node(leader).proposer.clone();
        let writes: Vec<_> = (0..200)
            .map(|_| {
                let proposer = proposer.clone();
                tokio::spawn(async move { proposer.propose(write()).await })
            })
            .collect();
        let node = cluster.nodes.get_mut(&leader).unwrap().running.take();
        node.unwrap().shutdown().await;
        for write in writes {
            match write.await.unwrap() {
                Ok(outcome) => assert!(outcome.is_ok()),
                Err(error) => assert_eq!(error, ProposeError::ShuttingDown),
            }
        }
        cluster.restart(leader).await;
    }
    cluster.assert_equal().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raft_itself_takes_no_proposal_on_a_follower() {
    let cluster = TestCluster::of(3).await;
    let follower = cluster.follower().await;
    let nothing = Proposed {
        data: bytes::Bytes::new(),
        is_awaited: false,
    };
    let fate = cluster.node(follower).raft().propose(nothing);
    assert!(matches!(fate.await.unwrap(), Fate::NotLeader));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_members_of_this_cluster_are_heard() {
    use tidegate_proto::peer::v1::peer_client::PeerClient;
    use tidegate_proto::peer::v1::{AskRequest, Envelope};
    let cluster = TestCluster::of(1).await;
    let call = async |uri: &str, envelope: Envelope| {
        let (_material, receiver) = watch::channel(Arc::new(cluster.ca.issue(uri).unwrap()));
        let tls = Tls::new(receiver, "td");
        let expected = crate::tls::Expected::AnyCoordinator;
        let channel = tls.channel(&cluster.nodes[&1].address, expected).unwrap();
        let request = AskRequest {
            envelope: Some(envelope),
            ..AskRequest::default()
        };
        PeerClient::new(channel).ask(request).await.unwrap_err()
    };
    let good = Envelope {
        cluster_id: CLUSTER.to_owned(),
        from: 2,
        to: 1,
        clock_ms: Clock::system().wall_ms(),
        address: String::new(),
    };
    let node2 = "spiffe://td/coordinator/n2";
    let cases = [
        ("spiffe://td/agent/n2", good.clone(), "only coordinators"),
        (
            "spiffe://other/coordinator/n2",
            good.clone(),
            "only coordinators",
        ),
        (
            node2,
            Envelope {
                cluster_id: "01JD0000000000000000000000".to_owned(),
                ..good.clone()
            },
            "this node belongs to",
        ),
        (
            node2,
            Envelope {
                to: 9,
                ..good.clone()
            },
            "this is node 1",
        ),
        (
            node2,
            Envelope {
                from: 1,
                ..good.clone()
            },
            "cannot speak as node 1",
        ),
        // Raft may hear of newcomers first; what is asked for is given to members alone.
        (node2, good.clone(), "is not a member of the cluster"),
    ];
    for (uri, envelope, expected) in cases {
        let status = call(uri, envelope).await;
        assert!(status.message().contains(expected), "{uri}: {status}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_ask_each_other() {
    let cluster = TestCluster::of(3).await;
    cluster.node(2).asks.register(
        "echo",
        Arc::new(|from: Peer, payload: bytes::Bytes| -> AskFuture {
            Box::pin(async move {
                let mut answer = from.name.into_bytes();
                answer.extend_from_slice(&payload);
                Ok(answer.into())
            })
        }),
    );
    let peers = &cluster.node(1).peers;
    let answer = peers
        .ask(2, "echo", bytes::Bytes::from_static(b"!"), WAIT)
        .await
        .unwrap();
    assert_eq!(answer, "n1!");
    let error = peers
        .ask(3, "echo", bytes::Bytes::new(), WAIT)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("nobody here answers"), "{error}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_certificates_are_used_while_the_cluster_runs() {
    let mut cluster = TestCluster::of(3).await;
    for (id, node) in &cluster.nodes {
        let uri = format!("spiffe://td/coordinator/n{id}");
        node.material
            .send(Arc::new(cluster.ca.issue(&uri).unwrap()))
            .unwrap();
    }
    let follower = cluster.follower().await;
    cluster.kill(follower).await;
    cluster.restart(follower).await;
    let one = cluster.write(follower).await;
    for id in 1..=3 {
        assert!(cluster.reads(id, &one).await);
    }
    cluster.stop().await;
}
