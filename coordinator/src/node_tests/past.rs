//! What people see of deployments that have left the state: the same as before, but for verbs.

use super::*;
use tidegate_coordinator_core::archive::NEWEST_ENDED;

impl World {
    async fn act(
        &self,
        id_of: &str,
        verb: pb::act_request::Verb,
    ) -> Result<pb::Deployment, tonic::Status> {
        let request = pb::ActRequest {
            request_id: id(),
            id: id_of.to_owned(),
            verb: verb.into(),
            ..pb::ActRequest::default()
        };
        let answer = DeploymentsClient::new(self.people()).act(request).await;
        answer.map(tonic::Response::into_inner)
    }

    /// All pages of a list, small ones.
    async fn list(&self, scope: &str) -> Vec<String> {
        let mut client = DeploymentsClient::new(self.people());
        let mut found = Vec::new();
        let mut token = String::new();
        loop {
            let answer = client
                .list(pb::ListDeploymentsRequest {
                    scope: scope.to_owned(),
                    page: Some(pb::Page { size: 2, token }),
                    ..pb::ListDeploymentsRequest::default()
                })
                .await
                .unwrap()
                .into_inner();
            found.extend(answer.deployments.into_iter().map(|one| one.id));
            token = answer.next_page_token;
            if token.is_empty() {
                return found;
            }
        }
    }

    async fn history(&self, of: &str, scope: &str) -> (Vec<pb::Event>, Vec<String>) {
        let mut client = DeploymentsClient::new(self.people());
        let (mut events, mut deployments) = (Vec::new(), Vec::new());
        let mut token = String::new();
        loop {
            let answer = client
                .history(pb::HistoryRequest {
                    id: of.to_owned(),
                    scope: scope.to_owned(),
                    page: Some(pb::Page { size: 3, token }),
                })
                .await
                .unwrap()
                .into_inner();
            events.extend(answer.events);
            deployments.extend(answer.deployments.into_iter().map(|one| one.id));
            token = answer.next_page_token;
            if token.is_empty() {
                return (events, deployments);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_left_the_state_is_listed_shown_and_refuses_verbs() {
    let world = World::new().await;
    world.objects().await;
    world.release("1.0.0", b"one").await;
    let mut ids = Vec::new();
    for _ in 0..8 {
        let made = world.deploy("1.0.0").await;
        world
            .act(&made.id, pb::act_request::Verb::Cancel)
            .await
            .unwrap();
        ids.push(made.id);
    }
    let state = world.node.context().query.stale().state.clone();
    assert_eq!(state.deployments.len(), NEWEST_ENDED);
    assert!(state.events.is_empty());

    let newest_first: Vec<String> = ids.iter().rev().cloned().collect();
    // Ids of one millisecond are in no order of time.
    let mut by_id = newest_first.clone();
    by_id.sort();
    by_id.reverse();
    assert_eq!(world.list("").await, by_id);
    assert_eq!(world.list("shop-prod").await, by_id);
    assert!(world.list("elsewhere").await.is_empty());
    assert_eq!(world.history("", "shop-prod").await.1, newest_first);
    let view = ScopesClient::new(world.people())
        .view(pb::ScopeRequest {
            name: "shop-prod".to_owned(),
        })
        .await
        .unwrap()
        .into_inner();
    let recent: Vec<String> = view.recent.into_iter().map(|one| one.id).collect();
    assert_eq!(recent, newest_first);

    let first = &ids[0];
    let mut client = DeploymentsClient::new(world.people());
    let mut get = async |id: &str| {
        let request = pb::GetDeploymentRequest { id: id.to_owned() };
        client.get(request).await.map(tonic::Response::into_inner)
    };
    let shown = get(first).await.unwrap();
    assert_eq!(shown.status(), Wire::Cancelled);
    assert_eq!(get(&shown.short_id).await.unwrap(), shown);
    let (events, _) = world.history(&shown.short_id, "").await;
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["deployment_created", "deployment_cancelled"]);
    assert_eq!(
        reason_of(&get("0123abcd").await.unwrap_err()).unwrap(),
        "NOT_FOUND"
    );

    let refused = world
        .act(first, pb::act_request::Verb::Retry)
        .await
        .unwrap_err();
    assert_eq!(
        reason_of(&refused).as_deref(),
        Some("ARCHIVED"),
        "{refused:?}"
    );
    assert!(
        refused.message().contains("shop 1.0.0 to shop-prod"),
        "{refused:?}"
    );
    // One of the newest is tried again as ever.
    world
        .act(&ids[7], pb::act_request::Verb::Retry)
        .await
        .unwrap();

    let mut watch = client_watch(&world, first).await;
    let told = watch.message().await.unwrap().unwrap();
    assert_eq!(told.id, *first);
    assert!(watch.message().await.unwrap().is_none(), "it has ended");

    // The audit log page by page, from the first event on.
    let mut events: Vec<pb::Event> = Vec::new();
    loop {
        let last = events.last();
        let page = ClusterClient::new(world.people())
            .events(pb::EventsRequest {
                after_index: last.map_or(0, |event| event.index),
                after_ordinal: last.map_or(0, |event| event.ordinal),
                limit: 5,
            })
            .await
            .unwrap()
            .into_inner()
            .events;
        if page.is_empty() {
            break;
        }
        events.extend(page);
    }
    assert_eq!(events[0].kind, "cluster_initialised");
    assert!(
        events
            .windows(2)
            .all(|pair| pair[0].hash == pair[1].previous_hash)
    );
    let state = world.node.context().query.stale().state.clone();
    assert!(events.len() as u64 >= state.archive.unwrap().events - 5);
    world.node.shutdown().await;
}

async fn client_watch(world: &World, id: &str) -> tonic::Streaming<pb::Deployment> {
    DeploymentsClient::new(world.people())
        .watch(pb::WatchDeploymentRequest {
            id: id.to_owned(),
            ..pb::WatchDeploymentRequest::default()
        })
        .await
        .unwrap()
        .into_inner()
}
