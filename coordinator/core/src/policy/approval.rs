//! Approval: so many different people must grant before a deployment may start (product.md §5.1).
//!
//! Decisions count in order of time, and only before they expire. The first denial is final unless
//! every rule was satisfied before it. A deployment that returns to a finalized release is exempt.

use std::collections::BTreeSet;

use tidegate_shared::id::Name;
use tidegate_shared::spec::{ApprovalRule, Approver, OnTrue, PolicySpec, Role};
use tidegate_shared::time::Timestamp;

use super::expression::{Expression, Facts, Subject};
use super::{rules, subject};
use crate::command::Actor;
use crate::people::{self, Standing};
use crate::state::{Decision, Deployment, State};

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
        /// Grants so far.
        granted: u32,
        /// Who has to, in words; empty: any approver may.
        from: String,
        /// Who granted and is not among those who are asked any more.
        withdrawn: Vec<Name>,
    },
    /// Somebody denied, or a condition did.
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

/// What the rule of one policy asks for.
enum Asked {
    Nothing,
    People(u32),
    Denial,
}

/// Evaluates every enabled policy that matches.
pub fn answer(state: &State, deployment: &Deployment, now: Timestamp) -> Answer {
    if deployment.origin.fast {
        return Answer::Satisfied;
    }
    let mut rules = Vec::new();
    let mut facts = None;
    for (name, policy) in &state.policies {
        let Some(rule) = policy
            .spec
            .approval
            .as_ref()
            .filter(|_| policy.spec.enabled)
        else {
            continue;
        };
        let facts = facts.get_or_insert_with(|| subject::facts(state, deployment, now));
        if rules::skipped(state, deployment, &rule_name(name), now).is_some() {
            continue;
        }
        match asked(&policy.spec, rule, facts) {
            Ok(Asked::Nothing) => {}
            Ok(Asked::People(needed)) => rules.push((name, rule, needed)),
            Ok(Asked::Denial) => {
                return Answer::Denied {
                    why: format!("denied by policy {name}: {}", rule.condition),
                };
            }
            Err(why) => {
                return Answer::Broken {
                    why: format!("policy {name} cannot be evaluated: {why}"),
                };
            }
        }
    }
    let facts = facts.unwrap_or_default();
    decide(state, deployment, &rules, &facts, now)
}

/// What a skip calls the rule of a policy.
pub fn rule_name(policy: &Name) -> String {
    format!("{policy}/approval")
}

fn asked(policy: &PolicySpec, rule: &ApprovalRule, facts: &Facts) -> Result<Asked, String> {
    if !rules::matches(policy, facts)? {
        return Ok(Asked::Nothing);
    }
    let condition = Expression::compile(&rule.condition, Subject::Deployment)
        .map_err(|mistake| mistake.to_string())?;
    Ok(match (condition.holds(facts)?, rule.on_true) {
        (true, OnTrue::Deny) => Asked::Denial,
        (true, OnTrue::Approve) | (false, OnTrue::Require) => Asked::Nothing,
        (true, OnTrue::Require) | (false, OnTrue::Approve | OnTrue::Deny) => {
            Asked::People(rule.needed())
        }
    })
}

fn decide(
    state: &State,
    deployment: &Deployment,
    rules: &[(&Name, &ApprovalRule, u32)],
    facts: &Facts,
    now: Timestamp,
) -> Answer {
    let required = deployment.required.as_ref();
    let decisions = required.map_or(&[][..], |r| &r.decisions);
    let votes: Vec<Vote<'_>> = decisions.iter().filter_map(vote).collect();
    let requester = subject::requester(deployment);
    let standings = standings(state, decisions, facts);
    let mut open = Vec::new();
    for (_, rule, needed) in rules {
        let demand = Demand {
            required: *needed,
            not_requester: rule.not_requester,
            requester: requester.map_or("", Name::as_str),
            created_at: deployment.meta.created_at,
            expires_at: asked_from(state, deployment) + rule.expires,
        };
        let may = |user: &str| {
            let found = standings.iter().find(|(name, _)| name.as_str() == user);
            found.is_some_and(|(name, standing)| is_named(rule, name, standing))
        };
        match count(demand, &votes, may, now) {
            Outcome::Satisfied { .. } => {}
            Outcome::Denied { by } => {
                let why = denial(&by, decisions);
                return Answer::Denied { why };
            }
            Outcome::Pending { .. } | Outcome::Expired => open.push(*rule),
        }
    }
    let asking = rules.iter().filter(|(.., needed)| *needed > 0);
    let expiries = asking
        .clone()
        .map(|(_, rule, _)| asked_from(state, deployment) + rule.expires);
    let Some(expires_at) = expiries.min().filter(|_| !open.is_empty()) else {
        return Answer::Satisfied;
    };
    let named = |(name, standing): &(&Name, Standing), least: u32| {
        let mut rules = rules.iter().filter(|(.., needed)| *needed >= least);
        rules.any(|(_, rule, _)| is_named(rule, name, standing))
    };
    let granted = |name: &Name| {
        let mut votes = votes.iter().filter(|vote| vote.granted);
        votes.any(|vote| vote.user == name.as_str())
    };
    let who_granted = standings.iter().filter(|(name, _)| granted(name));
    let people: BTreeSet<&Name> = who_granted
        .clone()
        .filter(|who| named(who, 1))
        .map(|(name, _)| *name)
        .collect();
    let withdrawn: BTreeSet<&Name> = who_granted
        .filter(|who| people::in_force(state) && !named(who, 0))
        .map(|(name, _)| *name)
        .collect();
    Answer::Pending {
        withdrawn: withdrawn.into_iter().cloned().collect(),
        policies: asking
            .map(|(name, _, needed)| ((*name).clone(), *needed))
            .collect(),
        expires_at,
        granted: u32::try_from(people.len()).unwrap_or(u32::MAX),
        from: wanted(&open),
    }
}

/// Who denied it, and why, in one line.
fn denial(by: &str, decisions: &[Decision]) -> String {
    let decision = decisions.iter().find(|d| !d.granted);
    match decision.map_or("", |d| d.reason.as_str()) {
        "" => format!("denied by user:{by}"),
        reason => format!("denied by user:{by}: {reason}"),
    }
}

/// From when on people have time to decide: of a late member of a group from its planned start.
pub fn asked_from(state: &State, deployment: &Deployment) -> Timestamp {
    let made = deployment.meta.created_at;
    match state.membership(deployment) {
        Some((group, number)) => made.max(group.planned_start(number)),
        None => made,
    }
}

/// From whom grants are still missing, where not from just anybody.
fn wanted(open: &[&ApprovalRule]) -> String {
    let told = open
        .iter()
        .filter(|rule| !rule.from.is_everybody() || rule.not_requester);
    let told = told.map(|rule| match rule.not_requester {
        true => format!("{}, not who asked for it", rule.from),
        false => rule.from.to_string(),
    });
    told.collect::<BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
        .join("; ")
}

/// The person who decided.
fn by(decision: &Decision) -> Option<&Name> {
    match &decision.by {
        Actor::User(name) => Some(name),
        Actor::System | Actor::Agent(_) | Actor::Coordinator(_) | Actor::Token(_) => None,
    }
}

fn vote(decision: &Decision) -> Option<Vote<'_>> {
    by(decision).map(|name| Vote {
        user: name.as_str(),
        at: decision.at,
        granted: decision.granted,
        // What a deployment was made with never changes, and a retry takes over bound ones only.
        bound: true,
    })
}

/// What those who decided are by now, where the deployment goes.
fn standings<'a>(
    state: &State,
    decisions: &'a [Decision],
    facts: &Facts,
) -> Vec<(&'a Name, Standing)> {
    let people = decisions.iter().filter_map(by);
    people
        .map(|name| (name, people::standing(state, name, facts)))
        .collect()
}

/// Whether a rule names a person who has this standing.
fn is_named(rule: &ApprovalRule, user: &Name, standing: &Standing) -> bool {
    if rule.from.is_everybody() {
        return standing.roles.contains(&Role::Approver);
    }
    rule.from.0.iter().any(|approver| match approver {
        Approver::User(name) => name == user && standing.is_known,
        Approver::Team(team) => standing.teams.contains(team),
        Approver::Role(role) => standing.roles.contains(role),
    })
}

/// Whether one of the policies that a record asks by could let a person decide, whatever the
/// selectors of the person's roles say: structural, so that `apply` may ask it.
pub fn could_decide(state: &State, deployment: &Deployment, user: &Name) -> bool {
    is_asked(state, deployment, user, &people::possible(state, user))
}

/// Whether one of the policies that a record asks by lets a person decide: exact, for the front.
pub fn may_decide(state: &State, deployment: &Deployment, user: &Name, now: Timestamp) -> bool {
    let facts = subject::facts(state, deployment, now);
    let standing = people::standing(state, user, &facts);
    is_asked(state, deployment, user, &standing)
}

/// Policies that are gone ask any approver.
fn is_asked(state: &State, deployment: &Deployment, user: &Name, standing: &Standing) -> bool {
    let Some(required) = &deployment.required else {
        return false;
    };
    required.policies.iter().any(|(name, _)| {
        let policy = state.policies.get(name);
        match policy.and_then(|p| p.spec.approval.as_ref()) {
            Some(rule) => {
                let own = rule.not_requester && subject::requester(deployment) == Some(user);
                !own && is_named(rule, user, standing)
            }
            None => standing.roles.contains(&Role::Approver),
        }
    })
}

/// Whom a record asks, in one line: each policy with those whom it names.
pub fn asked_of(state: &State, deployment: &Deployment) -> String {
    let required = deployment.required.iter();
    let policies = required.flat_map(|required| &required.policies);
    let told = policies.map(|(name, needed)| {
        let policy = state.policies.get(name);
        let rule = policy.and_then(|p| p.spec.approval.as_ref());
        let from = rule.map(|rule| wanted(&[rule]));
        let from = from.filter(|from| !from.is_empty());
        let from = from.unwrap_or_else(|| format!("role:{}", Role::Approver));
        format!("policy {name} asks {needed} of {from}")
    });
    told.collect::<Vec<_>>().join("; ")
}

/// Whether people have no roles yet and the grants are enough by their number alone, which is what
/// `apply` counts there.
pub fn suffices_below_roles(
    state: &State,
    deployment: &Deployment,
    policies: &[(Name, u32)],
    expires_at: Timestamp,
) -> bool {
    let decisions = deployment.required.iter().flat_map(|r| &r.decisions);
    let grants = decisions.filter(|d| d.granted && d.at < expires_at).count();
    !people::in_force(state)
        && policies
            .iter()
            .all(|(_, needed)| grants >= *needed as usize)
}

/// Grants that the record asks for by a policy that is still in force, in one line: without them
/// `apply` refuses an approval, even if the policy was changed meanwhile and asks for less.
pub fn still_asked(state: &State, deployment: &Deployment, now: Timestamp) -> Option<String> {
    let required = deployment.required.as_ref()?;
    let in_time = required
        .decisions
        .iter()
        .filter(|decision| decision.granted && decision.at < required.expires_at);
    let people: BTreeSet<_> = in_time.map(|decision| &decision.by).collect();
    let mut asked = required.policies.iter().filter(|(name, needed)| {
        let policy = state.policies.get(name);
        let skipped = rules::skipped(state, deployment, &rule_name(name), now).is_some();
        let in_force = policy.is_some_and(|p| p.spec.enabled && p.spec.approval.is_some());
        let in_force = in_force && !skipped;
        in_force && people.len() < *needed as usize
    });
    let (name, needed) = asked.next()?;
    let granted = people.len();
    Some(format!(
        "approval by policy: {name} needs {needed}; {granted} granted"
    ))
}
