//! Which releases a scope takes by itself (`auto_deploy`): what the planner decides, and what people
//! are told of it.
//!
//! Pure. A scope looks when something changed that it could care for (`apply` marks it), never at
//! every look of the planner, so the work goes with new releases. It wants its newest release that is
//! ready, that its condition holds for and that it has not had: a burst comes to the latest. As long
//! as rules about just that release hold it up, the next older one is wanted beside it, so that the
//! newest that passes goes first. Whatever is wanted is rehearsed with the state machine itself on a
//! copy of the state, guardrails included, before it is proposed.

use std::collections::BTreeSet;

use tidegate_shared::digest::Digest;
use tidegate_shared::id::{DeploymentId, Name, Version};
use tidegate_shared::spec::{AutoDeploy as Rule, ReleaseStatus, StrategySpec};
use tidegate_shared::time::Timestamp;

use crate::apply::apply;
use crate::command::{
    Actor, AutoDeploy, Command, CreateDeployments, Entry, Item, OnConflict, Reply, RequestKey,
};
use crate::plan::{Gate, GateAnswer, gates};
use crate::policy::expression::{Expression, Facts, ReleaseFacts, Subject};
use crate::policy::{guardrail, subject};
use crate::state::{Auto, AutoTerm, Release, Scope, ScopeStatus, State};

/// Log index of a rehearsal: above every real one.
const REHEARSAL: u64 = u64::MAX / 2;

/// Releases that are wanted beside each other at most.
const MOST_WANTED: usize = 4;

/// Releases that people are told of.
const TOLD: usize = 6;

/// What is found of one release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// Which.
    pub version: Version,
    /// What becomes of it.
    pub outlook: Outlook,
    /// Why, in one line.
    pub why: String,
}

/// What becomes of a release in a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// It is deployed by itself, now or when its gates open.
    Wanted,
    /// It is there, or on its way, already.
    Here,
    /// It is none of the scope's business.
    PassedOver,
    /// It would be deployed, but the deployment would be refused.
    Refused,
}

impl Outlook {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Here => "here",
            Self::PassedOver => "passed_over",
            Self::Refused => "refused",
        }
    }
}

/// What people are told of a scope that takes releases by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoView {
    /// The rule.
    pub rule: Rule,
    /// Releases made before are none of its business.
    pub since: Timestamp,
    /// Why it does not look at present; empty: it does.
    pub stands: String,
    /// The newest releases, newest first.
    pub looked: Vec<Looked>,
}

/// The commands that are due: one for each scope that has something to look at.
pub(crate) fn due(state: &State, now: Timestamp) -> Vec<Item> {
    let mut items = Vec::new();
    for (name, auto) in state.auto.rows_of(&AutoTerm::Due) {
        let Some(look) = Look::new(state, now, name, auto) else {
            continue;
        };
        if !stands(look.scope).is_empty() {
            continue;
        }
        let decision = look.decide();
        let text = format!("auto_deploy\n{name}\n{}", auto.revision);
        items.push(Item {
            actor: Actor::System,
            request: RequestKey::Planner(Digest::of(text.as_bytes())),
            command: Box::new(Command::AutoDeploy(AutoDeploy {
                scope: name.clone(),
                revision: auto.revision,
                ..decision
            })),
        });
    }
    items
}

/// What a scope makes of the newest releases; none: it takes none by itself.
pub fn view(state: &State, now: Timestamp, name: &Name) -> Option<AutoView> {
    let auto = state.auto.get(name)?;
    let look = Look::new(state, now, name, auto)?;
    Some(AutoView {
        rule: look.rule.clone(),
        since: auto.since,
        stands: stands(look.scope).to_owned(),
        looked: look.tell(),
    })
}

/// Why a scope takes nothing at present; empty: it does.
const fn stands(scope: &Scope) -> &'static str {
    match scope.status {
        ScopeStatus::Creating | ScopeStatus::Ready => "",
        ScopeStatus::Stopping => "the scope is stopping",
        ScopeStatus::Stopped => "the scope is stopped: it looks when it is started",
        ScopeStatus::Deleted => "the scope is deleted",
    }
}

/// A place in the order of releases: when it was made, and its version.
type Rank = (Timestamp, Version);

/// One scope that looks.
struct Look<'a> {
    state: &'a State,
    now: Timestamp,
    name: &'a Name,
    scope: &'a Scope,
    auto: &'a Auto,
    rule: &'a Rule,
    /// Of the application, newest first.
    releases: Vec<(&'a Version, &'a Release)>,
    /// Only newer ones are wanted: the newest that is here, or was, and was not rejected.
    floor: Option<Rank>,
    /// What is active was rejected: whatever went well before is wanted again.
    rejected: bool,
}

/// How a rehearsal ended.
enum Rehearsal {
    Refused(String),
    /// The first closed gate; none: it would start at once.
    Waits(Option<Gate>),
}

impl<'a> Look<'a> {
    fn new(state: &'a State, now: Timestamp, name: &'a Name, auto: &'a Auto) -> Option<Self> {
        let scope = state.scopes.get(name)?;
        let rule = scope.spec.auto_deploy.as_ref()?;
        let application = &scope.spec.application;
        let mut releases: Vec<_> = state
            .releases
            .iter()
            .filter(|((of, _), _)| of == application)
            .map(|((_, version), release)| (version, release))
            .collect();
        releases.sort_by_key(|(version, release)| {
            std::cmp::Reverse((release.meta.created_at, (*version).clone()))
        });
        let mut look = Self {
            state,
            now: now.max(state.at),
            name,
            scope,
            auto,
            rule,
            releases,
            floor: None,
            rejected: false,
        };
        let here = look.here();
        let known = here.iter().chain(&auto.tried);
        look.floor = known
            .filter_map(|version| {
                let release = look.release(version)?;
                let counts = release.status != ReleaseStatus::Rejected;
                counts.then(|| (release.meta.created_at, version.clone()))
            })
            .max();
        let active = state.active_of(scope);
        look.rejected = active.is_some_and(|active| {
            let release = look.release(&active.origin.version);
            release.is_some_and(|release| release.status == ReleaseStatus::Rejected)
        });
        Some(look)
    }

    fn release(&self, version: &Version) -> Option<&'a Release> {
        let mut all = self.releases.iter();
        all.find(|(known, _)| *known == version)
            .map(|(_, release)| *release)
    }

    /// Versions that run, roll out or wait here.
    fn here(&self) -> BTreeSet<Version> {
        let scope = self.scope;
        let ids = scope.active.iter().chain(&scope.candidate);
        ids.chain(&scope.waiting)
            .filter_map(|id| self.state.deployments.get(id))
            .map(|found| found.origin.version.clone())
            .collect()
    }

    /// Whether a release went well here before and was not left since.
    fn went_well(&self, version: &Version) -> bool {
        let track = self.state.tracks.get(self.name);
        track.is_some_and(|track| {
            let mut finished = track.finished.iter();
            finished.any(|f| f.version == *version && f.rolled_back_at.is_none())
        })
    }

    /// Why a release is not wanted here; nothing: it is.
    fn against(&self, version: &Version, release: &Release) -> Option<(Outlook, String)> {
        let passed = |why: String| Some((Outlook::PassedOver, why));
        if let Some(found) = self.found_here(version) {
            return Some((Outlook::Here, found));
        }
        match release.status {
            ReleaseStatus::Ready => {}
            ReleaseStatus::Building
            | ReleaseStatus::Paused
            | ReleaseStatus::Rejected
            | ReleaseStatus::Collected => return passed(format!("it is {}", release.status)),
        }
        let again = self.rejected && self.went_well(version);
        if !again {
            if self.auto.tried.contains(version) {
                let why = "it was deployed here before: `tidegate deploy` tries it again";
                return passed(why.to_owned());
            }
            if release.meta.created_at < self.auto.since {
                return passed(format!(
                    "it was made before {}, since when the scope takes releases by itself",
                    self.auto.since
                ));
            }
            let rank = (release.meta.created_at, version.clone());
            if let Some((_, newer)) = self.floor.as_ref().filter(|floor| rank <= **floor) {
                return passed(format!(
                    "it is older than {newer}, which the scope has or had"
                ));
            }
        }
        match self.holds(version, release) {
            Ok(true) => None,
            Ok(false) => passed("the condition does not hold for it".to_owned()),
            Err(error) => passed(format!("the condition cannot be evaluated: {error}")),
        }
    }

    fn found_here(&self, version: &Version) -> Option<String> {
        let scope = self.scope;
        let ids = scope.candidate.iter().chain(&scope.active);
        let found = ids
            .chain(scope.waiting.iter().rev())
            .filter_map(|id| self.state.deployments.get(id))
            .find(|found| found.origin.version == *version)?;
        Some(format!(
            "deployment {} of it is {}",
            found.short, found.status
        ))
    }

    fn holds(&self, version: &Version, release: &Release) -> Result<bool, String> {
        let condition = compile(self.rule).map_err(|mistake| mistake.to_string())?;
        let facts = ReleaseFacts {
            name: version.to_string(),
            version: version.to_string(),
            ..subject::release(release)
        };
        condition.holds(&Facts {
            release: Some(facts),
            ..Facts::default()
        })
    }

    fn rehearse(&self, version: &Version) -> Rehearsal {
        let mut copy = self.state.clone();
        let command = Command::CreateDeployments(CreateDeployments {
            application: self.scope.spec.application.clone(),
            version: version.clone(),
            scopes: vec![self.name.clone()],
            strategy: self.rule.strategy.clone(),
            overrides: StrategySpec::default(),
            labels: Default::default(),
            on_conflict: OnConflict::Queue,
        });
        let entry = Entry {
            at: self.now,
            items: vec![Item {
                actor: Actor::System,
                request: RequestKey::Planner(Digest::of(b"rehearsal of auto_deploy")),
                command: Box::new(command),
            }],
        };
        let outcomes = apply(&mut copy, REHEARSAL, &entry);
        let made = match outcomes.into_iter().next().map(|applied| applied.outcome) {
            Some(Ok(Reply::Deployments(ids))) => ids.first().copied(),
            Some(Err(rejection)) => {
                let code = rejection.reason.code();
                return Rehearsal::Refused(format!("{} [{code}]", rejection.message));
            }
            Some(Ok(_)) | None => None,
        };
        let found = made.and_then(|id| copy.deployments.get(&id));
        let (Some(found), Some(scope)) = (found, copy.scopes.get(self.name)) else {
            return Rehearsal::Refused("nothing would be made".to_owned());
        };
        if let Err(rejection) = guardrail::check_all(&copy, found, self.now) {
            let code = rejection.reason.code();
            return Rehearsal::Refused(format!("{} [{code}]", rejection.message));
        }
        let all = gates(&copy, self.now, self.name, scope, found, None);
        let closed = |gate: &Gate| gate.answer != GateAnswer::Allowed;
        // What is about this release alone comes first: it decides whether another is wanted.
        let own = all.iter().find(|gate| closed(gate) && is_own(gate));
        let first = own.or_else(|| all.iter().find(|gate| closed(gate)));
        Rehearsal::Waits(first.cloned())
    }

    fn decide(&self) -> AutoDeploy {
        let mut decision = AutoDeploy {
            scope: self.name.clone(),
            revision: 0,
            deploy: Vec::new(),
            supersede: Vec::new(),
            refused: false,
            looked: Vec::new(),
        };
        let mut free: Option<Rank> = None;
        for (version, release) in &self.releases {
            if decision.deploy.len() >= MOST_WANTED || self.is_below(version, release) {
                break;
            }
            if let Some((outlook, why)) = self.against(version, release) {
                if outlook != Outlook::Here {
                    decision.looked.push(format!("{version}: {why}"));
                }
                continue;
            }
            match self.rehearse(version) {
                Rehearsal::Refused(why) => {
                    decision.refused = true;
                    decision.looked.push(format!("{version}: refused: {why}"));
                }
                Rehearsal::Waits(gate) => {
                    decision.deploy.push((*version).clone());
                    let why = waits(gate.as_ref());
                    decision.looked.push(format!("{version}: deployed; {why}"));
                    if gate.is_none_or(|gate| !is_own(&gate)) {
                        free = Some((release.meta.created_at, (*version).clone()));
                        break;
                    }
                }
            }
        }
        decision.looked.truncate(TOLD);
        decision.deploy.reverse();
        decision.supersede = self.outdated(free);
        decision
    }

    /// Whether nothing from this release on down can be wanted.
    fn is_below(&self, version: &Version, release: &Release) -> bool {
        let rank = (release.meta.created_at, version.clone());
        let known = self.floor.as_ref().is_some_and(|floor| rank <= *floor);
        !self.rejected && (known || release.meta.created_at < self.auto.since)
    }

    /// Deployments that were made by themselves, still wait, and are older than one that only common
    /// gates hold up.
    fn outdated(&self, free: Option<Rank>) -> Vec<DeploymentId> {
        let Some(free) = free else {
            return Vec::new();
        };
        let waiting = self.scope.waiting.iter();
        waiting
            .filter(|id| {
                let Some(found) = self.state.deployments.get(*id) else {
                    return false;
                };
                let version = &found.origin.version;
                let release = self.release(version);
                let older =
                    release.is_none_or(|release| (release.meta.created_at, version.clone()) < free);
                found.origin.auto.is_some() && older
            })
            .copied()
            .collect()
    }

    /// The newest releases with what becomes of each.
    fn tell(&self) -> Vec<Looked> {
        let mut told = Vec::new();
        let mut settled = false;
        for (version, release) in self.releases.iter().take(TOLD) {
            let (outlook, why) = match self.against(version, release) {
                Some(found) => found,
                None if settled => {
                    let why = "a newer one is wanted".to_owned();
                    (Outlook::PassedOver, why)
                }
                None => match self.rehearse(version) {
                    Rehearsal::Refused(why) => (Outlook::Refused, why),
                    Rehearsal::Waits(gate) => {
                        settled = gate.as_ref().is_none_or(|gate| !is_own(gate));
                        (Outlook::Wanted, waits(gate.as_ref()))
                    }
                },
            };
            told.push(Looked {
                version: (*version).clone(),
                outlook,
                why,
            });
        }
        told
    }
}

fn waits(gate: Option<&Gate>) -> String {
    match gate {
        Some(gate) => format!("it waits: {}", gate.why),
        None => "nothing is in its way".to_owned(),
    }
}

/// Whether a gate is about the release alone, so that another one may pass.
fn is_own(gate: &Gate) -> bool {
    matches!(
        gate.kind,
        "approval" | "release_selector" | "progression" | "dependency"
    )
}

/// Reads the condition.
///
/// # Errors
/// The first mistake and where it stands.
pub fn compile(rule: &Rule) -> Result<Expression, crate::policy::Mistake> {
    Expression::compile(&rule.when, Subject::Release)
}

#[cfg(test)]
mod tests;
