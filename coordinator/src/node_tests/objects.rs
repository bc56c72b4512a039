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
    send(world, objects, Vec::new()).await
}

async fn send(
    world: &World,
    objects: Vec<pb::ApplyRequest>,
    deletions: Vec<pb::DeleteObjectRequest>,
) -> Result<Vec<One>, tonic::Status> {
    let request = pb::ApplyManyRequest { objects, deletions };
    let answer = ObjectsClient::new(world.people())
        .apply_many(request)
        .await?;
    let results = answer.into_inner().results.into_iter();
    Ok(results.map(|one| one.result.unwrap()).collect())
}

fn deletion(kind: &str, name: &str, dry_run: bool) -> pb::DeleteObjectRequest {
    pb::DeleteObjectRequest {
        request_id: id(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        dry_run,
        expected_revision: 0,
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn deletions_are_judged_one_after_another_and_behind_the_objects() {
    let world = World::new().await;
    let value = |target: &str| {
        let target = format!(r#"{{"application":"{target}"}}"#);
        format!(r#"{{"variable":"A","value":"1","target":{target}}}"#)
    };
    let objects = vec![
        object("application", "shop", "{}"),
        object("application", "web", "{}"),
        object("environment", "prod", r#"{"tier":3}"#),
        object("parameter", "color", &value("shop")),
        object("parameter", "size", &value("web")),
    ];
    apply_many(&world, objects).await.unwrap();
    let before = names(&world).await;

    // One is in use until the deletion before it, one by an object that the call itself makes.
    let more = |dry_run| pb::ApplyRequest {
        dry_run,
        ..object("parameter", "more", &value("web"))
    };
    let gone = |dry_run| {
        ["color", "size"]
            .map(|name| deletion("parameter", name, dry_run))
            .into_iter()
            .chain(["shop", "web"].map(|name| deletion("application", name, dry_run)))
            .chain([deletion("environment", "none", dry_run)])
            .collect::<Vec<_>>()
    };
    let told = |answers: &[One]| -> Vec<Result<Change, String>> {
        let each = answers.iter().map(|one| match one {
            One::Applied(applied) => Ok(applied.change()),
            One::Refusal(refusal) => Err(refusal.code.clone()),
        });
        each.collect()
    };
    let wanted = [
        Ok(Change::Created),
        Ok(Change::Deleted),
        Ok(Change::Deleted),
        Ok(Change::Deleted),
        Err("TG-1103".to_owned()),
        Err("TG-1101".to_owned()),
    ];
    let dry = send(&world, vec![more(true)], gone(true)).await.unwrap();
    assert_eq!(told(&dry), wanted);
    assert!(refusal(&dry[4]).message.contains("\"more\""), "{dry:?}");
    assert_eq!(names(&world).await, before, "a dry run wrote");
    let done = send(&world, vec![more(false)], gone(false)).await.unwrap();
    assert_eq!(told(&done), wanted);
    assert_eq!(names(&world).await, ["web", "prod", "more"]);

    let mut one = ObjectsClient::new(world.people());
    let refused = one.delete(deletion("application", "web", true)).await;
    assert_eq!(reason_of(&refused.unwrap_err()).as_deref(), Some("IN_USE"));
    one.delete(deletion("environment", "prod", true))
        .await
        .unwrap();
    assert_eq!(names(&world).await, ["web", "prod", "more"]);
    let mixed = vec![deletion("environment", "prod", true)];
    let error = send(&world, vec![more(false)], mixed).await.unwrap_err();
    let bad = error.get_details_bad_request().unwrap();
    assert_eq!(bad.field_violations[0].field, "deletions[0].dry_run");
}
