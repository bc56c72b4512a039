//! Environment progression: a release has to succeed in other environments first (product.md §5.4).
//!
//! k = ceil(scopes · percentage / 100), at least 1. The percentage is met at the k-th success that
//! still counts; the soak runs from there, the greatest age from the latest success. A success that
//! was rolled back does not count from then on.

use tidegate_shared::spec::{Matching, OnEmpty};
use tidegate_shared::time::{Span, Timestamp};

use super::Answer;

/// What has to be true of the environments before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Share of scopes that have to succeed, 1 to 100.
    pub percentage: u32,
    /// How long after that.
    pub soak: Span,
    /// How old the latest success may be.
    pub max_age: Option<Span>,
    /// All environments, or any of them.
    pub matching: Matching,
    /// What an environment without a scope of the application means.
    pub on_empty: OnEmpty,
}

/// One environment that the rule names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment<'a> {
    /// Its name, for people.
    pub name: &'a str,
    /// Scopes of the application in it.
    pub scopes: u64,
    /// Scopes in which the release was finalized; one each.
    pub successes: Vec<Success>,
}

/// The release was finalized in a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Success {
    /// When.
    pub at: Timestamp,
    /// When it was taken back, if it was.
    pub rolled_back_at: Option<Timestamp>,
}

/// Where one environment stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    satisfied_at: Option<Timestamp>,
    /// When it becomes satisfied by itself.
    until: Option<Timestamp>,
    /// When it stops being satisfied by itself.
    ends_at: Option<Timestamp>,
    why: String,
}

/// Whether the environments allow the start of a deployment that was created at `created_at`.
pub fn answer(
    demand: Demand,
    environments: &[Environment<'_>],
    created_at: Timestamp,
    now: Timestamp,
) -> Answer {
    let mut standings: Vec<Standing> = environments
        .iter()
        .map(|environment| standing(demand, environment, created_at, now))
        .collect();
    if standings.is_empty() {
        let nothing = Environment {
            name: "that the rule names",
            scopes: 0,
            successes: Vec::new(),
        };
        standings.push(standing(demand, &nothing, created_at, now));
    }
    let line = |wanted: bool| {
        let told = standings.iter();
        let told = told.filter(|s| s.satisfied_at.is_some() == wanted);
        told.map(|s| s.why.as_str()).collect::<Vec<_>>().join("; ")
    };
    let satisfied = |s: &Standing| s.satisfied_at;
    let (satisfied_at, until) = match demand.matching {
        Matching::All => {
            let times: Option<Vec<_>> = standings.iter().map(satisfied).collect();
            let satisfied_at = times.and_then(|times| times.into_iter().max());
            (satisfied_at, until_all(&standings))
        }
        Matching::Any => (
            standings.iter().filter_map(satisfied).min(),
            standings.iter().filter_map(|s| s.until).min(),
        ),
    };
    let Some(at) = satisfied_at else {
        return Answer::pending(line(false), until, "the release to succeed there");
    };
    let ends = standings.iter().filter(|s| s.satisfied_at.is_some());
    let ends = ends.map(|s| s.ends_at);
    let next = match demand.matching {
        Matching::All => ends.flatten().min(),
        Matching::Any => ends
            .collect::<Option<Vec<_>>>()
            .and_then(|e| e.into_iter().max()),
    };
    Answer::allowed(line(true))
        .satisfied_at(Some(at))
        .next_at(next)
}

/// When all hold at once by themselves: the latest of those that are missing, unless one that holds
/// is too old by then.
fn until_all(standings: &[Standing]) -> Option<Timestamp> {
    let missing = standings.iter().filter(|s| s.satisfied_at.is_none());
    let untils: Option<Vec<_>> = missing.map(|s| s.until).collect();
    let until = untils?.into_iter().max()?;
    let holds = |s: &Standing| s.ends_at.is_none_or(|end| until < end);
    standings.iter().all(holds).then_some(until)
}

fn standing(
    demand: Demand,
    environment: &Environment<'_>,
    created_at: Timestamp,
    now: Timestamp,
) -> Standing {
    let name = environment.name;
    if environment.scopes == 0 {
        let allowed = demand.on_empty == OnEmpty::Allow;
        return Standing {
            satisfied_at: allowed.then_some(created_at),
            until: None,
            ends_at: None,
            why: format!("environment {name} has no scope of the application"),
        };
    }
    let mut counting: Vec<Timestamp> = environment
        .successes
        .iter()
        .filter(|s| s.at <= now && s.rolled_back_at.is_none_or(|back| back > now))
        .map(|s| s.at)
        .collect();
    counting.sort_unstable();
    let needed = needed(environment.scopes, demand.percentage);
    let met = usize::try_from(needed - 1)
        .ok()
        .and_then(|index| counting.get(index));
    let progress = format!(
        "{} of {} scopes of environment {name} have it, {needed} are needed",
        counting.len(),
        environment.scopes
    );
    let (Some(met), Some(latest)) = (met, counting.last()) else {
        return Standing {
            satisfied_at: None,
            until: None,
            ends_at: None,
            why: progress,
        };
    };
    aged(demand, name, *met + demand.soak, *latest, progress, now)
}

/// An environment whose percentage is met: soak and age decide.
fn aged(
    demand: Demand,
    name: &str,
    soaked: Timestamp,
    latest: Timestamp,
    progress: String,
    now: Timestamp,
) -> Standing {
    // At its greatest age a success still counts.
    let too_old = demand
        .max_age
        .map(|age| latest + age + Span::from_millis(1));
    if too_old.is_some_and(|at| now >= at) {
        return Standing {
            satisfied_at: None,
            until: None,
            ends_at: None,
            why: format!("the latest success in environment {name}, at {latest}, is too old"),
        };
    }
    if now < soaked {
        let in_time = too_old.is_none_or(|at| soaked < at);
        return Standing {
            satisfied_at: None,
            until: in_time.then_some(soaked),
            ends_at: too_old,
            why: format!("{progress}, and it soaks there until {soaked}"),
        };
    }
    Standing {
        satisfied_at: Some(soaked),
        until: None,
        ends_at: too_old,
        why: progress,
    }
}

/// How many scopes have to succeed.
pub fn needed(scopes: u64, percentage: u32) -> u64 {
    let product = u128::from(scopes) * u128::from(percentage.min(100));
    u64::try_from(product.div_ceil(100))
        .unwrap_or(u64::MAX)
        .max(1)
}
