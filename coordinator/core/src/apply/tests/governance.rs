//! What people say over rules, what it makes stale, and what scopes remember of releases.

use tidegate_shared::error::Reason;
use tidegate_shared::spec::Kind;
use tidegate_shared::time::{Span, Timestamp};

use super::world::{World, name, names, one, user, verb_command, version};
use crate::command::{
    Action, Actor, Command, CreateFreeze, CreateSkip, Decide, GateEvidence, Named, RaiseLevel,
    Reply, ScopeName, UpdateMember, Verb,
};
use crate::policy::REFERENCES_LEVEL;
use crate::state::{Addresses, Status, Track};

fn freeze(world: &World, hours: u64, reason: &str) -> Command {
    Command::Freeze(CreateFreeze {
        selector: String::new(),
        reason: reason.to_owned(),
        until: world.state.at + Span::from_hours(hours),
        let_run: false,
    })
}

fn skip(rule: &str, reason: &str) -> CreateSkip {
    CreateSkip {
        rule: rule.to_owned(),
        application: None,
        version: None,
        scope: None,
        reason: reason.to_owned(),
        expires_at: None,
    }
}

fn named(reply: Reply) -> tidegate_shared::id::Name {
    match reply {
        Reply::Named(name) => name,
        other => panic!("{other:?}"),
    }
}

fn start(revision: u64, counts: bool) -> Action {
    Action::Start {
        participants: names(&["a1", "a2", "a3"]),
        gates: Some(GateEvidence {
            revision,
            counts,
            rules: Vec::new(),
            group: None,
        }),
    }
}

#[test]
fn a_start_that_was_decided_before_a_freeze_is_stale() {
    let mut world = World::with_active();
    let id = world.deploy("2.0.0");
    let seen = world.state.gates_revision;
    let order = freeze(&world, 1, "a drill");
    let frozen = named(world.must(order));
    let rejection = world.advance(id, start(seen, false)).unwrap_err();
    assert_eq!(rejection.reason, Reason::Stale);
    world.must(Command::Thaw(Named { name: frozen }));
    let seen = world.state.gates_revision;
    world.step(id, start(seen, false));
    assert_eq!(world.status(id), Status::Creating);
}

#[test]
fn of_two_starts_that_count_and_were_decided_together_one_is_stale() {
    let mut world = World::with_active();
    let one = world.deploy("2.0.0");
    let Reply::Deployments(ids) = world.deploy_to("api", "2.0.0").unwrap() else {
        panic!("nothing was made");
    };
    let seen = world.state.gates_revision;
    world.step(one, start(seen, true));
    let rejection = world.advance(ids[0], start(seen, true)).unwrap_err();
    assert_eq!(rejection.reason, Reason::Stale);
}

#[test]
fn wrong_orders_change_nothing() {
    let mut world = World::with_active();
    let policy = r#"{"cooldown": {"interval": "1h"}, "windows": [{"rrules": ["FREQ=DAILY"], "duration": "1h"}]}"#;
    let put = world.object("night", Kind::Policy, policy);
    world.must(put);
    let before = world.state.clone();
    let orders = [
        (freeze(&world, 1, " "), "reason"),
        (freeze(&world, 0, "x"), "for"),
        (freeze(&world, 24 * 400, "x"), "for"),
        (Command::CreateSkip(skip("night", "")), "reason"),
        (Command::CreateSkip(skip("day", "x")), "rule"),
        (Command::CreateSkip(skip("night/approval", "x")), "rule"),
        (Command::CreateSkip(skip("night/windows[1]", "x")), "rule"),
        (
            Command::CreateSkip(CreateSkip {
                version: Some(super::world::version("1.0.0")),
                ..skip("night", "x")
            }),
            "application",
        ),
        (
            Command::CreateSkip(CreateSkip {
                expires_at: Some(world.state.at),
                ..skip("night", "x")
            }),
            "expires",
        ),
    ];
    for (order, field) in orders {
        assert_eq!(world.refused(order).fields[0].field, field);
    }
    let nobody = world
        .run_as(Actor::System, freeze(&world, 1, "x"))
        .unwrap_err();
    assert_eq!(nobody.reason, Reason::PermissionDenied);
    for order in [
        Command::Thaw(Named {
            name: name("freeze-1"),
        }),
        Command::DeleteSkip(Named {
            name: name("skip-1"),
        }),
    ] {
        assert_eq!(world.refused(order).reason, Reason::NotFound);
    }
    assert_eq!(world.state.gates_revision, before.gates_revision);
    assert_eq!(world.state.skips, before.skips);
    for rule in [
        "night",
        "night/windows",
        "night/windows[0]",
        "night/cooldown",
    ] {
        named(world.must(Command::CreateSkip(skip(rule, "agreed"))));
    }
    assert_eq!(world.state.skips.len(), 4);
}

#[test]
fn orders_that_are_over_are_forgotten() {
    let mut world = World::with_active();
    let order = freeze(&world, 1, "first");
    world.must(order);
    world.wait(Span::from_hours(2));
    let order = freeze(&world, 3, "second");
    let second = named(world.must(order));
    assert_eq!(world.state.freezes.keys().collect::<Vec<_>>(), [&second]);
}

#[test]
fn scopes_remember_what_started_and_how_releases_fared() {
    let mut world = World::with_active();
    let track = |world: &World| world.state.tracks[&name("web")].clone();
    let id = world.deploy("2.0.0");
    let at = world.state.at;
    world.finish(id);
    let started = track(&world).started.unwrap();
    assert_eq!((started.version.as_str(), started.at), ("2.0.0", at));
    let versions: Vec<String> = track(&world)
        .finished
        .iter()
        .map(|finished| finished.version.to_string())
        .collect();
    assert_eq!(versions, ["1.0.0", "2.0.0"]);
    world.act(id, crate::command::Verb::Rollback).unwrap();
    let back = *world.scope().waiting.last().unwrap();
    world.finish(back);
    let fared: Vec<bool> = track(&world)
        .finished
        .iter()
        .map(|finished| finished.rolled_back_at.is_some())
        .collect();
    assert_eq!(fared, [false, true]);
    // A return is no newer release of anybody's.
    assert_eq!(track(&world).started.unwrap().version.as_str(), "2.0.0");
}

#[test]
fn only_those_who_are_asked_decide() {
    let mut world = World::with_active();
    let policy = r#"{"approval": {"required": 1, "from": "user:bob", "not_requester": true}}"#;
    let put = world.object("two", Kind::Policy, policy);
    world.must(put);
    let id = world.deploy("2.0.0");
    let ask = Action::RequireApproval {
        policies: vec![(name("two"), 1)],
        expires_at: world.state.at + Span::from_hours(72),
        withdrawn: Vec::new(),
    };
    world.step(id, ask);
    let decide = |granted| {
        Command::Decide(Decide {
            deployment: id,
            granted,
            reason: String::new(),
        })
    };
    for stranger in ["ann", "cho"] {
        let refusal = world.run_as(user(stranger), decide(false)).unwrap_err();
        assert_eq!(refusal.reason, Reason::PermissionDenied, "{stranger}");
    }
    assert_eq!(world.status(id), Status::CreatingApproval);
    world.run_as(user("bob"), decide(true)).unwrap();
    world.step(id, Action::ApprovalSatisfied);
    assert_eq!(world.status(id), Status::Pending);
}

#[test]
fn a_success_is_lost_by_going_back_from_its_release_alone() {
    let fared = |world: &World| -> Vec<(String, Option<Timestamp>)> {
        let track = &world.state.tracks[&name("web")];
        let finished = track.finished.iter();
        finished
            .map(|f| (f.version.to_string(), f.rolled_back_at))
            .collect()
    };
    let return_from = |world: &mut World, id| {
        let back = one(world.act(id, Verb::Rollback).unwrap());
        world.wait(Span::from_mins(1));
        world.finish(back);
        back
    };
    let mut world = World::new();
    let parameter = r#"{"variable": "COLOUR", "value": "blue", "target": {"application": "shop"}}"#;
    world.must(world.object("colour", Kind::Parameter, parameter));
    let first = world.deploy("1.0.0");
    world.finish(first);
    world.must(world.object("colour", Kind::Parameter, &parameter.replace("blue", "red")));
    let restart = Command::RestartScope(ScopeName { name: name("web") });
    let red = one(world.must(restart));
    world.finish(red);
    // Back to the other configuration of the same release: the release itself was good all the time,
    // and what soaks since its first success goes on.
    let since = world.state.tracks[&name("web")].finished[0].at;
    let blue = return_from(&mut world, red);
    assert_eq!(world.state.tracks[&name("web")].finished[0].at, since);
    assert_eq!(world.get(blue).origin.parameters["COLOUR"].value, "blue");
    assert_eq!(fared(&world), [("1.0.0".to_owned(), None)]);

    let second = world.deploy("2.0.0");
    world.finish(second);
    return_from(&mut world, second);
    let at = world.now;
    let lost = [("1.0.0".to_owned(), None), ("2.0.0".to_owned(), Some(at))];
    assert_eq!(fared(&world), lost);
    // A return to it is a success of its own; going back from another one leaves it and the time.
    world.wait(Span::from_hours(1));
    let third = world.deploy("3.0.0");
    world.finish(third);
    return_from(&mut world, third);
    assert_eq!(fared(&world)[1], lost[1]);
    assert_eq!(fared(&world)[2], ("3.0.0".to_owned(), Some(world.now)));
    let again = world.deploy("2.0.0");
    world.finish(again);
    let found = fared(&world);
    assert_eq!(found.last(), Some(&("2.0.0".to_owned(), None)));
    assert_eq!(found.len(), 3);
}

#[test]
fn the_first_time_that_a_release_was_left_stays() {
    let mut track = Track::default();
    let at = Timestamp::from_millis;
    let (one, two) = (version("1.0.0"), version("2.0.0"));
    track.finalized(&one, at(1), true);
    track.finalized(&two, at(2), true);
    track.went_back(&two, at(3));
    track.went_back(&two, at(4));
    track.went_back(&version("3.0.0"), at(5));
    let left: Vec<Option<Timestamp>> = track.finished.iter().map(|f| f.rolled_back_at).collect();
    assert_eq!(left, [None, Some(at(3))]);
}

/// What waits was planned to start after a freeze, so the freeze is remembered; older programs of the
/// cluster would forget it, so not before the level.
#[test]
fn a_freeze_that_ended_is_remembered_as_long_as_what_it_held_up_waits() {
    let mut world = World::with_active();
    let id = world.deploy("2.0.0");
    let thaw = |world: &mut World| {
        let order = freeze(world, 1, "a drill");
        let frozen = named(world.must(order));
        world.must(Command::Thaw(Named { name: frozen }));
        world.state.past_freezes.len()
    };
    assert_eq!(thaw(&mut world), 0);
    world.must(Command::UpdateMember(UpdateMember {
        node: 1,
        addresses: Addresses::default(),
        version: "next".to_owned(),
        level: REFERENCES_LEVEL,
    }));
    world.must(Command::RaiseLevel(RaiseLevel {
        level: REFERENCES_LEVEL,
    }));
    world.now = world.now + Span::from_mins(1);
    assert_eq!(thaw(&mut world), 1);
    assert_eq!(thaw(&mut world), 2);
    world.must(verb_command(id, Verb::Cancel));
    assert_eq!(thaw(&mut world), 0);
}
