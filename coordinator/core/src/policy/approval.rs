//! Approval: so many different people must grant before a deployment may start (product.md §5.1).
//!
//! Decisions count in order of time, and only before they expire. The first denial is final unless
//! every rule was satisfied before it. A deployment that returns to a finalized release is exempt.

use std::collections::BTreeSet;

use tidegate_shared::id::Name;
use tidegate_shared::time::Timestamp;

use super::selector::{Selector, Subject};
use crate::state::{Deployment, Required, State};

/// What a rule asks, of one deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand<'a> {
    /// Grants of different people; 0: satisfied unless somebody denies.
    pub required: u32,
    /// Whether the person who asked for the deployment has no say.
    pub not_requester: bool,
    /// That person.
    pub requester: &'a str,
    /// When the deployment was created.
    pub created_at: Timestamp,
    /// Decisions from here on do not count.
    pub expires_at: Timestamp,
}

/// What somebody decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote<'a> {
    /// Who.
    pub user: &'a str,
    /// When.
    pub at: Timestamp,
    /// Granted, or denied.
    pub granted: bool,
    /// It was given for this very release, parameters and strategy. A denial counts anyway.
    pub bound: bool,
}

/// What the votes make of a demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Enough entitled people granted.
    Satisfied {
        /// When the last one that was needed did.
        at: Timestamp,
    },
    /// More have to.
    Pending {
        /// How many more.
        missing: u32,
    },
    /// Somebody entitled denied before it was satisfied.
    Denied {
        /// Who.
        by: String,
    },
    /// Nobody decided in time.
    Expired,
}

/// Counts the votes up to `now`, in order of time (those of one instant as they are listed).
pub fn count(
    demand: Demand<'_>,
    votes: &[Vote<'_>],
    entitled: impl Fn(&str) -> bool,
    now: Timestamp,
) -> Outcome {
    let mut counting: Vec<&Vote<'_>> = votes
        .iter()
        .filter(|vote| vote.at <= now && vote.at < demand.expires_at)
        .filter(|vote| entitled(vote.user))
        .filter(|vote| !(demand.not_requester && vote.user == demand.requester))
        .collect();
    counting.sort_by_key(|vote| vote.at);
    let mut people = BTreeSet::new();
    for vote in counting {
        if !vote.granted {
            return Outcome::Denied {
                by: vote.user.to_owned(),
            };
        }
        if vote.bound && demand.required > 0 {
            people.insert(vote.user);
        }
        if demand.required > 0 && people.len() >= demand.required as usize {
            return Outcome::Satisfied { at: vote.at };
        }
    }
    if demand.required == 0 {
        return Outcome::Satisfied {
            at: demand.created_at,
        };
    }
    if now >= demand.expires_at {
        return Outcome::Expired;
    }
    let granted = u32::try_from(people.len()).unwrap_or(u32::MAX);
    Outcome::Pending {
        missing: demand.required.saturating_sub(granted),
    }
}

/// What the approval rules say of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// No rule applies, or all are satisfied.
    Satisfied,
    /// People have to decide.
    Pending {
        /// Names of the policies with how many grants each needs, in order of name.
        policies: Vec<(Name, u32)>,
        /// Decisions at or after this do not count.
        expires_at: Timestamp,
        /// Grants that count so far.
        granted: u32,
    },
    /// Somebody denied.
    Denied {
        /// Who, and why.
        why: String,
    },
    /// A policy cannot be evaluated: it blocks.
    Broken {
        /// Which, and what is wrong with it.
        why: String,
    },
}

/// Evaluates every enabled policy that matches.
pub fn answer(state: &State, deployment: &Deployment) -> Answer {
    if deployment.origin.fast {
        return Answer::Satisfied;
    }
    let origin = &deployment.origin;
    let subject = Subject {
        application: &origin.application,
        environment: &origin.scope_spec.environment,
        scope: &origin.scope,
    };
    let mut policies = Vec::new();
    let mut expiries = Vec::new();
    for (name, policy) in &state.policies {
        let Some(rule) = policy
            .spec
            .approval
            .as_ref()
            .filter(|_| policy.spec.enabled)
        else {
            continue;
        };
        match Selector::parse(&policy.spec.selector) {
            Ok(selector) if selector.matches(subject) => {
                policies.push((name.clone(), rule.needed()));
                expiries.push(deployment.meta.created_at + rule.expires);
            }
            Ok(_) => {}
            Err(why) => {
                return Answer::Broken {
                    why: format!("policy {name} cannot be evaluated: {why}"),
                };
            }
        }
    }
    let Some(expires_at) = expiries.into_iter().min() else {
        return Answer::Satisfied;
    };
    decide(deployment.required.as_ref(), policies, expires_at)
}

/// Grants that the record asks for by a policy that is still in force, in one line: without them
/// `apply` refuses an approval, even if the policy was changed meanwhile and asks for less.
pub fn still_asked(state: &State, deployment: &Deployment) -> Option<String> {
    let required = deployment.required.as_ref()?;
    let in_time = required
        .decisions
        .iter()
        .filter(|decision| decision.granted && decision.at < required.expires_at);
    let people: BTreeSet<_> = in_time.map(|decision| &decision.by).collect();
    let mut asked = required.policies.iter().filter(|(name, needed)| {
        let policy = state.policies.get(name);
        let in_force = policy.is_some_and(|p| p.spec.enabled && p.spec.approval.is_some());
        in_force && people.len() < *needed as usize
    });
    let (name, needed) = asked.next()?;
    let granted = people.len();
    Some(format!(
        "approval by policy: {name} needs {needed}; {granted} granted"
    ))
}

fn decide(
    required: Option<&Required>,
    policies: Vec<(Name, u32)>,
    expires_at: Timestamp,
) -> Answer {
    let needed = policies.iter().map(|(_, needed)| *needed).max();
    let needed = needed.unwrap_or(0) as usize;
    let mut people = BTreeSet::new();
    for decision in required.map_or(&[][..], |required| &required.decisions) {
        if decision.at >= expires_at {
            continue;
        }
        if !decision.granted {
            let reason = match decision.reason.as_str() {
                "" => String::new(),
                reason => format!(": {reason}"),
            };
            return Answer::Denied {
                why: format!("denied by {}{reason}", decision.by),
            };
        }
        people.insert(&decision.by);
        if people.len() >= needed {
            return Answer::Satisfied;
        }
    }
    Answer::Pending {
        policies,
        expires_at,
        granted: u32::try_from(people.len()).unwrap_or(u32::MAX),
    }
}
