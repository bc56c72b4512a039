//! A forecast against what then happens, and what it tells beside the times.

mod large;
mod measurer;

use proptest::prelude::*;
use tidegate_shared::error::Reason;
use tidegate_shared::id::{DeploymentId, Name, Version};
use tidegate_shared::spec::{Kind, StrategySpec};
use tidegate_shared::time::{Span, Timestamp};

use self::measurer::Measurer;
use super::*;
use crate::command::{
    ActOnDeployment, CreateDeployments, CreateFreeze, Decide, OnConflict, SetReleaseStatus, Verb,
};
use crate::fixture::name;
use crate::plan::plan;
use crate::plan::tests::simulation::{Sim, scope_spec};

const STRATEGIES: [&str; 10] = [
    r#"{"bake":"50s","traffic":{"steps":[{"percent":10,"hold":"20s"},{"percent":50,"hold":"1m"},{"percent":100,"hold":"10s"}]}}"#,
    r#"{"bake":"5s","traffic":{"steps":[{"percent":10,"hold":"manual"},{"percent":100,"hold":"1s"}]},"finalize":"manual"}"#,
    r#"{"kind":"all_in","bake":"2s","bake_share":10}"#,
    r#"{"kind":"rolling","bake":"2s","batch":{"max_unavailable":3,"hold":"1s"}}"#,
    r#"{"kind":"rolling","bake":"2s","batch":{"max_unavailable":"30%","overlap":false,"hold":"1m"}}"#,
    r#"{"bake":"0s","traffic":{"steps":[{"percent":100,"hold":"manual"}]}}"#,
    r#"{"bake":"20s","traffic":{"steps":[{"percent":10,"hold":"5s"},{"percent":100,"hold":"30s"}]},"verification":[
        {"name":"smoke","http":{"path":"/"},"initial_delay":"4s","interval":"7s","consecutive_successes":3},
        {"name":"front","http":{"url":"https://shop.example.com/"},"when":["before_traffic"],"count":2,"interval":"3s"},
        {"name":"errors","prometheus":{"address":"http://p","query":"up"},"success":"result.value > 0.0","count":4,"interval":"20s","when":["last"]}]}"#,
    r#"{"kind":"rolling","bake":"2s","batch":{"max_unavailable":2,"hold":"3s"},"verification":[
        {"name":"schema","command":{"command":"./check"},"interval":"4s","count":3},
        {"name":"smoke","http":{"path":"/"},"interval":"1500ms","consecutive_successes":2,"when":[1,"last"]}]}"#,
    r#"{"bake":"5s","finalize":"manual","traffic":{"steps":[{"percent":20,"hold":"manual"},{"percent":100,"hold":"2s"}]},"verification":[
        {"name":"smoke","http":{"path":"/"},"interval":"2s","consecutive_successes":2,"when":["before_traffic",1]}]}"#,
    r#"{"kind":"all_in","bake":"0s","verification":[{"name":"smoke","http":{"path":"/"},"initial_delay":"1m","interval":"250ms","count":3}]}"#,
];

const POLICIES: [(&str, &str); 10] = [
    (
        "hours",
        r#"{"windows":[{"rrules":["FREQ=DAILY;BYHOUR=9;BYMINUTE=0;BYSECOND=0"],"duration":"1h"}]}"#,
    ),
    (
        "nights",
        r#"{"selector":"scope.name == 'api'","windows":[{"kind":"deny","rrules":["FREQ=DAILY;BYHOUR=22;BYMINUTE=0;BYSECOND=0"],"duration":"11h30m"}]}"#,
    ),
    ("slowly", r#"{"cooldown":{"interval":"2h"}}"#),
    ("eyes", r#"{"approval":{"required":2}}"#),
    ("one", r#"{"concurrency":{"max":1}}"#),
    (
        "later",
        r#"{"selector":"scope.name == 'job'","progression":{"after":"environment.name == 'staging'","soak":"3m"}}"#,
    ),
    (
        "gradual",
        r#"{"selector":"scope.name != 'web'","gradual_rollout":{"type":"linear","interval":"11m"}}"#,
    ),
    (
        "normal",
        r#"{"gradual_rollout":{"type":"linear_normalized","time_scale_interval":"1h"}}"#,
    ),
    (
        "two",
        r#"{"selector":"environment.name == 'production'","concurrency":{"max":2}}"#,
    ),
    (
        "good",
        r#"{"release_selector":{"condition":"release.version != '9'"},"retry":{"max":2,"initial":"10s"}}"#,
    ),
];

/// Midnight of the day on which everything begins.
const DAY: Timestamp = Timestamp::from_millis(40 * 86_400_000);

fn world(strategy: &str, instances: u32) -> Sim {
    let mut sim = Sim::new(strategy, instances, "8080");
    // Windows that say no start have theirs in the first week.
    sim.now = DAY + Span::from_mins(16);
    sim.observed.lost_after = Span::from_days(400);
    sim.put(Kind::Environment, "staging", "{}");
    sim.put(Kind::Scope, "api", &scope_spec(1, "8081"));
    let job = r#"{"application":"shop","environment":"production","agents":"","port":8082}"#;
    sim.put(Kind::Scope, "job", job);
    let test = r#"{"application":"shop","environment":"staging","agents":"","port":8083}"#;
    sim.put(Kind::Scope, "test", test);
    sim.put(Kind::Scope, "far", &scope_spec(1, "8084"));
    sim
}

fn wanted(version: &str, scopes: &[&str], on_conflict: OnConflict) -> Command {
    Command::CreateDeployments(CreateDeployments {
        application: name("shop"),
        version: Version::new(version).unwrap(),
        scopes: scopes.iter().map(|scope| name(scope)).collect(),
        strategy: Some(name("way")),
        overrides: StrategySpec::default(),
        labels: Default::default(),
        on_conflict,
    })
}

const ROLLOUTS: [&str; 9] = [
    r#"{"kind":"all_at_once"}"#,
    r#"{"kind":"linear","interval":"7m"}"#,
    r#"{"kind":"linear_normalized","interval":"1h","order":"name"}"#,
    r#"{"kind":"linear","interval":"3m","gate":"healthy","pinned":{"first":["job"]}}"#,
    r#"{"kind":"waves","order":"listed","waves":[{"name":"canary","count":1,"bake":"5m"},{"name":"half","percent":50}]}"#,
    r#"{"kind":"waves","waves":[{"name":"web","selector":"scope.name == 'web'","bake":"1m"},{"name":"rest","percent":100}]}"#,
    r#"{"kind":"linear","interval":"30s","gate":"verified","order":"name"}"#,
    r#"{"kind":"linear_normalized","interval":"10m","gate":"healthy","pinned":{"last":["web"]}}"#,
    r#"{"kind":"waves","gate":"verified","waves":[{"name":"canary","count":1},{"name":"most","percent":60,"bake":"5m"}]}"#,
];

/// The same as a group; 0: without one.
fn grouped(command: Command, rollout: usize) -> Command {
    match rollout.checked_sub(1) {
        None => command,
        Some(rollout) => grouped_as(command, ROLLOUTS[rollout]),
    }
}

fn grouped_as(command: Command, rollout: &str) -> Command {
    match command {
        Command::CreateDeployments(deployments) => {
            Command::CreateGroup(crate::command::CreateGroup {
                name: None,
                deployments,
                rollout: Some(serde_json::from_str(rollout).unwrap()),
            })
        }
        other => panic!("{other:?}"),
    }
}

fn question(sim: &Sim, command: Command, at: Timestamp) -> Question {
    Question {
        actor: Actor::User(name("ann")),
        command,
        at,
        now: sim.now,
        pace: Pace::default(),
    }
}

fn told(sim: &Sim, command: Command) -> Forecast {
    forecast(&sim.state, &[], &question(sim, command, sim.now), &|| true).unwrap()
}

fn remark<'a>(forecast: &'a Forecast, kind: &str) -> Option<&'a Remark> {
    forecast.remarks.iter().find(|remark| remark.kind == kind)
}

/// What happens to deployments, as it happens.
#[derive(Default)]
struct Watched {
    measurer: Measurer,
    last: Vec<(DeploymentId, Option<Deployment>)>,
    moments: Vec<(Name, Moment)>,
}

impl Watched {
    fn see(&mut self, sim: &Sim) {
        for (id, last) in &mut self.last {
            let Some(now) = sim.state.deployments.get(id) else {
                continue;
            };
            let scope = &now.origin.scope;
            let new = moments(last.as_ref(), now, sim.now);
            let new = new.into_iter().map(|moment| (scope.clone(), moment));
            self.moments.extend(new);
            *last = Some(now.clone());
        }
    }

    fn ended(&self, sim: &Sim) -> bool {
        let mut all = self.last.iter();
        all.all(|(id, _)| sim.state.deployments[id].status.is_end())
    }
}

/// Agents tell, people do what they are asked for, the planner's moves are applied; whether
/// anything happened.
fn round(sim: &mut Sim, watched: &mut Watched) -> bool {
    watched.measurer.report(sim);
    let mut moved = people(sim, watched);
    for item in plan(&sim.state, &sim.observed, sim.now).commands {
        moved |= sim.apply(item).is_ok();
        watched.see(sim);
    }
    moved
}

fn people(sim: &mut Sim, watched: &mut Watched) -> bool {
    let mut moved = false;
    for (id, _) in watched.last.clone() {
        let found = sim.state.deployments[&id].clone();
        if found.status == Status::CreatingApproval {
            for person in ["bob", "eve"] {
                let decide = Command::Decide(Decide {
                    deployment: id,
                    granted: true,
                    reason: String::new(),
                });
                moved |= sim.say_as(&name(person), decide).is_ok();
            }
            watched.see(sim);
        }
        let asks = crate::explain::explain(&sim.state, &sim.observed, sim.now, id).waiting_for;
        let verb = match asks.as_str() {
            text if text.contains("`promote`") => Verb::Promote,
            text if text.contains("`finalize`") => Verb::Finalize,
            _ => continue,
        };
        let event = MomentEvent::Person(verb.as_str());
        let at = sim.now;
        let moment = Moment { at, event };
        watched.moments.push((found.origin.scope.clone(), moment));
        let command = ActOnDeployment {
            deployment: id,
            verb,
            expected_revision: None,
            reason: String::new(),
        };
        sim.must(Command::ActOnDeployment(command));
        watched.see(sim);
        moved = true;
    }
    moved
}

/// Runs until an instant, or until everything that is watched has ended. Between the planner's own
/// instants it looks at others, `odd` after them, which must change nothing.
fn run(sim: &mut Sim, watched: &mut Watched, end: Timestamp, odd: Span) {
    let mut between = false;
    loop {
        let mut rounds = 0;
        while round(sim, watched) {
            rounds += 1;
            assert!(rounds < 500, "it comes to no rest");
        }
        if !watched.last.is_empty() && watched.ended(sim) {
            return;
        }
        let wake = plan(&sim.state, &sim.observed, sim.now).next_wakeup;
        let wake = crate::plan::sooner(wake, watched.measurer.next_event());
        if sim.now >= end {
            return;
        }
        between = !between;
        let odd = if between { sim.now + odd } else { end };
        let next = wake.unwrap_or(end).min(odd).min(end);
        sim.now = next.max(sim.now + Span::from_millis(1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 100, ..ProptestConfig::default() })]

    /// Without failures everything happens in the order and at the times of the plan.
    #[test]
    fn what_happens_is_what_was_planned(
        strategy in 0..STRATEGIES.len(),
        instances in 1_u32..4,
        policies in 0_u32..(1 << POLICIES.len()),
        established in any::<bool>(),
        busy in any::<bool>(),
        rollout in 0..=ROLLOUTS.len(),
        ahead in prop_oneof![Just(0_u64), 1..200_000_000_u64],
        odd in 5_000_u64..20_000,
    ) {
        let mut sim = world(STRATEGIES[strategy], instances);
        let odd = Span::from_millis(odd);
        let scopes = ["web", "api", "job", "test", "far"];
        if established {
            let made = sim.say(wanted("1", &scopes, OnConflict::Fail)).unwrap();
            let mut first = watch(made);
            let end = sim.now + Span::from_days(1);
            run(&mut sim, &mut first, end, odd);
        }
        for (position, (policy, spec)) in POLICIES.iter().enumerate() {
            if policies & (1 << position) > 0 {
                sim.put(Kind::Policy, policy, spec);
            }
        }
        if busy {
            // Another one is under way, which nobody promotes or finalizes; or it waits.
            sim.deploy(2, OnConflict::Fail).unwrap();
            while round(&mut sim, &mut Watched::default()) {}
        }
        let at = sim.now + Span::from_millis(ahead);
        let command = grouped(wanted("3", &scopes, OnConflict::Queue), rollout);
        let asked = question(&sim, command.clone(), at);
        let planned = forecast(&sim.state, &[], &asked, &|| true).unwrap();

        run(&mut sim, &mut Watched::default(), at, odd);
        sim.now = at;
        let made = sim.say(command).unwrap();
        let mut watched = watch(made);
        watched.see(&sim);
        run(&mut sim, &mut watched, at + HORIZON, odd);
        for member in &planned.members {
            let mine = watched.moments.iter().filter(|(scope, _)| *scope == member.scope);
            let happened: Vec<Moment> = mine.map(|(_, moment)| *moment).collect();
            prop_assert_eq!(&member.moments, &happened, "{}: {:?}", &member.scope, member);
        }
        let mut started: Vec<(Timestamp, &Name)> = Vec::new();
        for (scope, moment) in &watched.moments {
            if moment.event == MomentEvent::Status(Status::Creating) {
                started.push((moment.at, scope));
            }
        }
        let order: Vec<Timestamp> = planned.members.iter().filter_map(|m| m.starts_at).collect();
        let times: Vec<Timestamp> = started.iter().map(|(at, _)| *at).collect();
        prop_assert_eq!(order, times);
        prop_assert_eq!(planned.ends_at.is_some(), watched.ended(&sim));
    }
}

fn watch(made: crate::command::Reply) -> Watched {
    match made {
        crate::command::Reply::Deployments(ids)
        | crate::command::Reply::Group {
            deployments: ids, ..
        } => Watched {
            last: ids.into_iter().map(|id| (id, None)).collect(),
            ..Watched::default()
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn refusals_are_those_of_the_command() {
    let mut sim = world(STRATEGIES[2], 1);
    let refused = |sim: &Sim, command: Command| {
        let asked = question(sim, command, sim.now);
        forecast(&sim.state, &[], &asked, &|| true)
            .unwrap_err()
            .reason
    };
    let unknown = wanted("9", &["web"], OnConflict::Fail);
    assert_eq!(refused(&sim, unknown), Reason::NotFound);
    let policy = r#"{"guardrail":{"condition":"strategy.kind != 'all_in'"}}"#;
    sim.put(Kind::Policy, "careful", policy);
    let sudden = wanted("1", &["web"], OnConflict::Fail);
    assert_eq!(refused(&sim, sudden.clone()), Reason::Guardrail);
    sim.put(
        Kind::Policy,
        "careful",
        r#"{"guardrail":{"condition":"true"}}"#,
    );
    sim.say(sudden).unwrap();
    round(&mut sim, &mut Watched::default());
    let busy = wanted("2", &["web"], OnConflict::Fail);
    assert_eq!(refused(&sim, busy), Reason::Conflict);
}

#[test]
fn what_holds_up_and_what_is_assumed_is_told() {
    let mut sim = world(STRATEGIES[1], 1);
    sim.put(Kind::Policy, POLICIES[0].0, POLICIES[0].1);
    sim.put(
        Kind::Policy,
        "eyes",
        r#"{"approval":{"required":2,"expires":"1h"}}"#,
    );
    sim.must(Command::Freeze(CreateFreeze {
        selector: String::new(),
        reason: "a drill".to_owned(),
        until: sim.now + Span::from_hours(2),
        let_run: false,
    }));
    let told = told(&sim, wanted("1", &["web"], OnConflict::Fail));
    let member = &told.members[0];
    let opens = DAY + Span::from_hours(9);
    assert_eq!(member.starts_at, Some(opens));
    let kinds: Vec<&str> = member.waits.iter().map(|wait| wait.kind).collect();
    assert_eq!(kinds, ["freeze", "window"]);
    assert_eq!(member.waits[0].until, Some(sim.now + Span::from_hours(2)));
    assert_eq!(member.waits[1].until, Some(opens));
    assert_eq!(member.approval.as_ref().unwrap().at, sim.now);
    for kind in ["freeze", "approval_expires", "approval", "person", "ideal"] {
        assert!(remark(&told, kind).is_some(), "{kind}: {:?}", told.remarks);
    }
    assert!(remark(&told, "never_starts").is_none());
    assert!(remark(&told, "window_too_short").is_none());
}

#[test]
fn what_is_too_long_or_never_starts_is_told() {
    let slow = r#"{"bake":"50m","traffic":{"steps":[{"percent":100,"hold":"11m"}]}}"#;
    let mut sim = world(slow, 1);
    sim.put(Kind::Policy, POLICIES[0].0, POLICIES[0].1);
    let made = sim.say(wanted("1", &["web"], OnConflict::Fail)).unwrap();
    let end = sim.now + Span::from_days(1);
    run(&mut sim, &mut watch(made), end, Span::from_mins(30));
    let told_now = told(&sim, wanted("2", &["web"], OnConflict::Fail));
    let found = remark(&told_now, "window_too_short").unwrap();
    assert!(found.message.contains("10m after the start"), "{found:?}");
    sim.must(Command::SetReleaseStatus(SetReleaseStatus {
        application: name("shop"),
        version: Version::new("3").unwrap(),
        status: tidegate_shared::spec::ReleaseStatus::Paused,
        reason: "not yet".to_owned(),
        expected_revision: None,
    }));
    let never = r#"{"release_selector":{"condition":"release.labels.good == 'yes'"}}"#;
    sim.put(Kind::Policy, "good", never);
    let told = told(&sim, wanted("2", &["web"], OnConflict::Fail));
    let found = remark(&told, "never_starts").unwrap();
    assert!(found.message.contains("release_selector"), "{found:?}");
    assert_eq!(told.members[0].status, Status::Cancelled);
    assert_eq!(told.members[0].starts_at, None);
}

#[test]
fn hosts_that_take_their_time_move_what_follows() {
    let sim = world(STRATEGIES[2], 2);
    let mut asked = question(&sim, wanted("1", &["web"], OnConflict::Fail), sim.now);
    asked.pace = Pace {
        staging: Span::from_secs(30),
        startup: Span::from_secs(7),
    };
    let told = forecast(&sim.state, &[], &asked, &|| true).unwrap();
    let at = |status: Status| {
        let moments = told.members[0].moments.iter();
        let found = moments
            .clone()
            .find(|m| m.event == MomentEvent::Status(status));
        found.map(|moment| moment.at.since(sim.now))
    };
    assert_eq!(at(Status::Creating), Some(Span::ZERO));
    assert_eq!(at(Status::WaitingForInstances), Some(Span::from_secs(30)));
    assert_eq!(at(Status::Running), Some(Span::from_secs(37)));
    assert_eq!(told.ends_at, Some(sim.now + Span::from_secs(39)));
}
