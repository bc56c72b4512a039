//! Assets that nobody needs any more, and those that somebody might.

use tidegate_shared::digest::Digest;
use tidegate_shared::error::Reason;
use tidegate_shared::spec::ReleaseStatus;
use tidegate_shared::time::Span;

use super::world::{World, create_release, name, set_status, stop, version};
use crate::collection::{needed, review, used};
use crate::command::{Command, ReviewReleases};

const KEEP: Span = Span::from_hours(24);

fn status(world: &World, release: &str) -> ReleaseStatus {
    let key = (name("shop"), version(release));
    world.state.releases[&key].status
}

/// Reviews as the leader does; the versions that went idle and that were collected.
fn look(world: &mut World) -> (Vec<String>, Vec<String>) {
    let Some(found) = review(&world.state, world.now, KEEP) else {
        return (Vec::new(), Vec::new());
    };
    let names = |list: &[(_, tidegate_shared::id::Version)]| {
        list.iter().map(|(_, v)| v.to_string()).collect::<Vec<_>>()
    };
    let told = (names(&found.idle), names(&found.collected));
    world.must(Command::ReviewReleases(found));
    told
}

fn blob(world: &World, release: &str) -> Digest {
    let key = (name("shop"), version(release));
    world.state.releases[&key].spec.assets[0].sha256
}

#[test]
fn what_a_scope_runs_or_could_return_to_is_never_collected() {
    let mut world = World::new();
    let first = world.deploy("1.0.0");
    world.finish(first);
    let second = world.deploy("2.0.0");
    world.finish(second);
    let (idle, collected) = look(&mut world);
    assert!(collected.is_empty());
    assert!(!idle.contains(&"1.0.0".to_owned()) && !idle.contains(&"2.0.0".to_owned()));
    world.wait(Span::from_hours(1_000));
    look(&mut world);
    for release in ["1.0.0", "2.0.0"] {
        assert_eq!(status(&world, release), ReleaseStatus::Ready, "{release}");
        assert!(needed(&world.state).contains(&blob(&world, release)));
    }
    // A late proposal of another time takes nothing that is in use.
    let late = ReviewReleases {
        idle: vec![(name("shop"), version("2.0.0"))],
        collected: vec![(name("shop"), version("1.0.0"))],
    };
    world.must(Command::ReviewReleases(late));
    assert_eq!(status(&world, "1.0.0"), ReleaseStatus::Ready);
    // A stopped scope can be started again with the last one.
    world.must(stop(false));
    assert!(used(&world.state).contains(&(name("shop"), version("2.0.0"))));
}

#[test]
fn what_is_long_out_of_use_goes_says_so_and_comes_back_with_an_upload() {
    let mut world = World::new();
    let (idle, collected) = look(&mut world);
    assert!(
        idle.contains(&"3.0.0".to_owned()) && collected.is_empty(),
        "{idle:?}"
    );
    world.wait(Span::from_millis(KEEP.millis() - 1_000));
    assert!(look(&mut world).1.is_empty());
    // A deployment in between begins the time anew.
    let id = world.deploy("1.0.0");
    world.act(id, crate::command::Verb::Cancel).unwrap();
    world.wait(Span::from_secs(2));
    let (idle, collected) = look(&mut world);
    assert!(idle.contains(&"1.0.0".to_owned()), "{idle:?}");
    assert!(collected.contains(&"3.0.0".to_owned()), "{collected:?}");
    assert_eq!(status(&world, "3.0.0"), ReleaseStatus::Collected);
    assert!(!needed(&world.state).contains(&blob(&world, "3.0.0")));
    let refused = world.deploy_to("web", "3.0.0").unwrap_err();
    assert_eq!(refused.reason, Reason::ReleaseCollected);
    assert!(
        refused.message.contains("create it again"),
        "{}",
        refused.message
    );
    let refused = world.refused(set_status("3.0.0", ReleaseStatus::Ready));
    assert!(refused.message.contains("create it again"));
    world.must(create_release("3.0.0"));
    assert_eq!(status(&world, "3.0.0"), ReleaseStatus::Ready);
    world.deploy("3.0.0");
}

#[test]
fn a_rejected_release_that_runs_keeps_its_asset() {
    let mut world = World::with_active();
    let active = world.scope().active.unwrap();
    let running = world.get(active).origin.version.to_string();
    world.must(set_status(&running, ReleaseStatus::Rejected));
    assert!(needed(&world.state).contains(&blob(&world, &running)));
    world.must(set_status("3.0.0", ReleaseStatus::Rejected));
    assert!(!needed(&world.state).contains(&blob(&world, "3.0.0")));
}
