//! Many objects in one call.

use super::*;
use tidegate_proto::control::v1::apply_response::Change;
use tidegate_proto::control::v1::apply_result::{Refusal, Result as One};
use tonic_types::StatusExt as _;

fn object(kind: &str, name: &str, spec: &str) -> pb::ApplyRequest {
    pb::ApplyRequest {
        request_id: id(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        spec: spec.to_owned(),
        ..pb::ApplyRequest::default()
    }
}

async fn apply_many(
    world: &World,
    objects: Vec<pb::ApplyRequest>,
) -> Result<Vec<One>, tonic::Status> {
    let request = pb::ApplyManyRequest { objects };
    let answer = ObjectsClient::new(world.people())
        .apply_many(request)
        .await?;
    let results = answer.into_inner().results.into_iter();
    Ok(results.map(|one| one.result.unwrap()).collect())
}

async fn names(world: &World) -> Vec<String> {
    let list = ObjectsClient::new(world.people())
        .list(pb::ListObjectsRequest::default())
        .await
        .unwrap();
    let objects = list.into_inner().objects.into_iter();
    objects
        .map(|object| object.metadata.unwrap().name)
        .collect()
}

fn change(one: &One) -> Option<Change> {
    match one {
        One::Applied(applied) => Some(applied.change()),
        One::Refusal(_) => None,
    }
}

fn refusal(one: &One) -> &Refusal {
    match one {
        One::Refusal(refusal) => refusal,
        One::Applied(applied) => panic!("it was applied: {applied:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_objects_is_judged_for_itself_and_in_order() {
    let world = World::new().await;
    let parameter = r#"{"variable":"A","value":"1","target":{"application":"shop"}}"#;
    let stranger = r#"{"variable":"A","value":"1","target":{"application":"stranger"}}"#;
    let objects = vec![
        object("application", "shop", "{}"),
        object("parameter", "refers", parameter),
        object("parameter", "lost", stranger),
        object("environment", "prod", r#"{"tier":3}"#),
    ];
    let first = apply_many(&world, objects.clone()).await.unwrap();
    let changes: Vec<_> = first.iter().map(change).collect();
    let created = Some(Change::Created);
    assert_eq!(changes, [created, created, None, created]);
    let refused = refusal(&first[2]);
    assert_eq!(refused.reason, "NOT_FOUND");
    assert!(refused.code.starts_with("TG-"), "{refused:?}");
    assert!(refused.message.contains("stranger"), "{refused:?}");
    assert_eq!(refused.fields[0].field, "target.application");
    assert_eq!(names(&world).await, ["shop", "prod", "refers"]);

    // The same requests again answer the same; new requests find nothing to change.
    assert_eq!(apply_many(&world, objects).await.unwrap(), first);
    let again = vec![object("application", "shop", "{}")];
    let again = apply_many(&world, again).await.unwrap();
    assert_eq!(change(&again[0]), Some(Change::Unchanged));
    let (One::Applied(before), One::Applied(after)) = (&first[0], &again[0]) else {
        panic!("{first:?} {again:?}");
    };
    assert_eq!(before.revision, after.revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_cannot_be_read_changes_nothing() {
    let world = World::new().await;
    let good = || object("application", "shop", "{}");
    let dry = pb::ApplyRequest {
        dry_run: true,
        ..good()
    };
    for (objects, field) in [
        (Vec::new(), "objects"),
        (vec![good(); 1_001], "objects"),
        (
            vec![good(), object("environment", "prod", r#"{"teir":3}"#)],
            "objects[1].spec",
        ),
        (vec![good(), object("thing", "x", "{}")], "objects[1].kind"),
        (vec![good(), dry], "objects[1].dry_run"),
    ] {
        let error = apply_many(&world, objects).await.unwrap_err();
        assert_eq!(
            reason_of(&error).as_deref(),
            Some("INVALID_FIELD"),
            "{error}"
        );
        let bad = error.get_details_bad_request().unwrap();
        assert_eq!(bad.field_violations[0].field, field, "{error}");
    }
    assert!(names(&world).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_sees_what_stands_before_it_in_the_call() {
    let world = World::new().await;
    let parameter = r#"{"variable":"A","value":"1","target":{"application":"shop"}}"#;
    let objects = [
        object("application", "shop", "{}"),
        object("parameter", "refers", parameter),
    ]
    .map(|object| pb::ApplyRequest {
        dry_run: true,
        ..object
    });
    let answers = apply_many(&world, objects.to_vec()).await.unwrap();
    let created = Some(Change::Created);
    assert_eq!(answers.iter().map(change).collect::<Vec<_>>(), [created; 2]);
    assert!(names(&world).await.is_empty());
}
