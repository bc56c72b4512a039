//! What holds of rules whatever their figures: every explained `until` is when the answer changes,
//! and answers that are final stay.

use proptest::prelude::*;
use tidegate_shared::spec::{Matching, OnEmpty};
use tidegate_shared::time::{Span, Timestamp};

use super::approval::{self, Outcome, Vote};
use super::freeze::Freeze;
use super::gradual_rollout::Turn;
use super::progression::{Environment, Success};
use super::skip::{Skip, Target};
use super::{Answer, Verdict, concurrency, cooldown, freeze, gradual_rollout, progression, skip};

/// The answer differs at `until` or `next_evaluation` for the first time.
fn changes_when_told(
    ask: impl Fn(Timestamp) -> Answer,
    now: Timestamp,
) -> Result<(), TestCaseError> {
    let answer = ask(now);
    let Some(at) = answer.next_evaluation else {
        let later = ask(now + Span::from_days(4_000));
        prop_assert_eq!(later.is_allowed(), answer.is_allowed(), "{:?}", answer);
        return Ok(());
    };
    prop_assert!(at > now, "{:?} at {}", answer, now);
    let before = ask(at - Span::from_millis(1));
    prop_assert_eq!(before.is_allowed(), answer.is_allowed(), "{:?}", answer);
    prop_assert_ne!(ask(at).is_allowed(), answer.is_allowed(), "{:?}", answer);
    if let Verdict::Pending { until, .. } = answer.verdict {
        prop_assert_eq!(until, Some(at));
    }
    Ok(())
}

const NOW: u64 = 1_000_000;

fn instant() -> impl Strategy<Value = Timestamp> {
    (0..=NOW).prop_map(Timestamp::from_millis)
}

fn success() -> impl Strategy<Value = Success> {
    (instant(), prop::option::weighted(0.2, instant()))
        .prop_map(|(at, rolled_back_at)| Success { at, rolled_back_at })
}

fn environment() -> impl Strategy<Value = Environment<'static>> {
    (0_u64..5, prop::collection::vec(success(), 0..5)).prop_map(|(scopes, successes)| {
        let most = usize::try_from(scopes).unwrap();
        Environment {
            name: "before",
            scopes,
            successes: successes.into_iter().take(most).collect(),
        }
    })
}

fn vote() -> impl Strategy<Value = Vote<'static>> {
    let people = prop::sample::select(vec!["ann", "ben", "cho", "dia"]);
    (
        people,
        0_u64..100,
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.8),
    )
        .prop_map(|(user, at, granted, bound)| Vote {
            user,
            at: Timestamp::from_millis(at),
            granted,
            bound,
        })
}

proptest! {
    #[test]
    fn a_cooldown_ends_when_it_says(interval in 0_u64..100_000, started in instant(), same: bool) {
        let previous = cooldown::Previous { release: "1.0.0", started_at: started };
        let candidate = if same { "1.0.0" } else { "2.0.0" };
        let ask = |now| cooldown::answer(Span::from_millis(interval), Some(previous), candidate, now);
        changes_when_told(ask, Timestamp::from_millis(NOW))?;
        prop_assert!(!same || ask(started).is_allowed());
        prop_assert!(cooldown::answer(Span::from_days(1), None, candidate, started).is_allowed());
    }

    #[test]
    fn a_progression_changes_when_it_says(
        environments in prop::collection::vec(environment(), 0..4),
        percentage in 1_u32..=100,
        soak in 0_u64..500_000,
        max_age in prop::option::of(1_u64..2_000_000),
        any: bool,
        allow: bool,
    ) {
        let demand = progression::Demand {
            percentage,
            soak: Span::from_millis(soak),
            max_age: max_age.map(Span::from_millis),
            matching: if any { Matching::Any } else { Matching::All },
            on_empty: if allow { OnEmpty::Allow } else { OnEmpty::Block },
        };
        let created = Timestamp::from_millis(5);
        let ask = |now| progression::answer(demand, &environments, created, now);
        let answer = ask(Timestamp::from_millis(NOW));
        if let Some(at) = answer.satisfied_at {
            prop_assert!(at <= Timestamp::from_millis(NOW));
        }
        // An answer of `any` that one environment gives up while another takes over stays the same.
        if !any {
            changes_when_told(ask, Timestamp::from_millis(NOW))?;
        }
    }

    #[test]
    fn k_is_the_least_number_that_reaches_the_percentage(scopes in 1_u64..5_000, percentage in 1_u32..=100) {
        let k = progression::needed(scopes, percentage);
        prop_assert!(k >= 1 && k <= scopes);
        prop_assert!(k * 100 >= scopes * u64::from(percentage));
        prop_assert!(k == 1 || (k - 1) * 100 < scopes * u64::from(percentage));
    }

    #[test]
    fn an_approval_is_final_once_it_is_satisfied_or_denied(
        votes in prop::collection::vec(vote(), 0..10),
        required in 1_u32..4,
        not_requester: bool,
        expires in 0_u64..120,
    ) {
        let demand = approval::Demand {
            required,
            not_requester,
            requester: "ann",
            created_at: Timestamp::ZERO,
            expires_at: Timestamp::from_millis(expires),
        };
        let entitled = |user: &str| user != "dia";
        let ask = |now| approval::count(demand, &votes, entitled, Timestamp::from_millis(now));
        let mut before: Option<Outcome> = None;
        for now in 0..130 {
            let outcome = ask(now);
            match &before {
                Some(Outcome::Pending { missing: earlier }) => match &outcome {
                    Outcome::Pending { missing } => prop_assert!(missing <= earlier),
                    Outcome::Expired => prop_assert_eq!(now, expires),
                    Outcome::Satisfied { at } => prop_assert_eq!(at.millis(), now),
                    Outcome::Denied { .. } => {}
                },
                Some(last) => prop_assert_eq!(last, &outcome),
                None => {}
            }
            if let Outcome::Satisfied { at } = &outcome {
                let people: std::collections::BTreeSet<&str> = votes
                    .iter()
                    .filter(|v| v.granted && v.bound && v.at <= *at && v.at < demand.expires_at)
                    .map(|v| v.user)
                    .filter(|user| entitled(user) && !(not_requester && *user == "ann"))
                    .collect();
                prop_assert!(people.len() >= required as usize);
            }
            before = Some(outcome);
        }
        // Those who have no say change nothing.
        let heard: Vec<Vote<'_>> = votes.iter().copied().filter(|v| entitled(v.user)).collect();
        prop_assert_eq!(approval::count(demand, &heard, |_| true, Timestamp::from_millis(130)), ask(130));
    }

    #[test]
    fn skips_and_freezes_end_when_they_say(at in instant(), span in 1_u64..100_000, now in instant()) {
        let skips = [Skip {
            rule: "night",
            application: None,
            version: None,
            scope: Some("web"),
            by: "ann",
            reason: "x",
            at,
            expires_at: Some(at + Span::from_millis(span)),
        }];
        let target = Target { rule: "night/windows[0]", application: "shop", version: "1.0.0", scope: "web" };
        let inside = at <= now && now < at + Span::from_millis(span);
        let answer = skip::answer(&skips, target, now);
        prop_assert_eq!(answer.is_some(), inside);
        if let Some(answer) = answer {
            prop_assert_eq!(answer.satisfied_at, Some(at));
            prop_assert!(skip::answer(&skips, target, answer.next_evaluation.unwrap()).is_none());
        }
        let other = Target { scope: "api", ..target };
        prop_assert!(skip::answer(&skips, other, now).is_none());
        let freezes = [Freeze { name: "freeze-1", by: "ann", reason: "x", until: at }];
        changes_when_told(|now| freeze::answer(&freezes, now), now)?;
    }

    #[test]
    fn a_turn_comes_when_it_says(due in instant(), now in instant()) {
        let turn = Turn { position: 2, members: 5, order: None, begun: true, due: Some(due) };
        changes_when_told(|now| gradual_rollout::answer(turn, now), now)?;
        let early = Turn { begun: false, ..turn };
        prop_assert!(!gradual_rollout::answer(early, now).is_allowed());
    }

    #[test]
    fn never_more_than_the_most_are_under_way(max in 1_u32..20, arrivals in prop::collection::vec(any::<bool>(), 0..100)) {
        let mut under_way = 0_u64;
        for starts in arrivals {
            if !starts {
                under_way = under_way.saturating_sub(1);
            } else if concurrency::answer(max, under_way).is_allowed() {
                under_way += 1;
            }
            prop_assert!(under_way <= u64::from(max));
        }
    }
}

#[test]
fn a_veto_is_satisfied_unless_somebody_entitled_denied() {
    let demand = approval::Demand {
        required: 0,
        not_requester: false,
        requester: "ann",
        created_at: Timestamp::from_millis(5),
        expires_at: Timestamp::from_millis(100),
    };
    let deny = |user, at| Vote {
        user,
        at: Timestamp::from_millis(at),
        granted: false,
        bound: false,
    };
    let satisfied = Outcome::Satisfied {
        at: Timestamp::from_millis(5),
    };
    for (votes, now, wanted) in [
        (vec![], 5, satisfied.clone()),
        (vec![], 500, satisfied.clone()),
        (vec![deny("ben", 10)], 9, satisfied.clone()),
        (vec![deny("ben", 100)], 200, satisfied.clone()),
        (vec![deny("dia", 10)], 20, satisfied),
        (
            vec![deny("ben", 10)],
            10,
            Outcome::Denied {
                by: "ben".to_owned(),
            },
        ),
    ] {
        let found = approval::count(
            demand,
            &votes,
            |user| user != "dia",
            Timestamp::from_millis(now),
        );
        assert_eq!(found, wanted, "{votes:?} at {now}");
    }
}

#[test]
fn a_skip_names_a_policy_a_kind_or_one_rule() {
    for (named, rule, covered) in [
        ("night", "night/windows[0]", true),
        ("night/windows", "night/windows[0]", true),
        ("night/windows[0]", "night/windows[0]", true),
        ("night/windows[1]", "night/windows[10]", false),
        ("night/windows[1]", "night/windows[0]", false),
        ("night", "nightly/approval", false),
        ("night/win", "night/windows[0]", false),
        ("night/approval", "night/cooldown", false),
    ] {
        assert_eq!(skip::covers(named, rule), covered, "{named} {rule}");
    }
}
