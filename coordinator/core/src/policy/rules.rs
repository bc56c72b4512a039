//! Every rule of every policy about one deployment, with its answer: what the planner obeys and
//! `explain` prints. Rules are asked one by one here; none of them knows of another.

use tidegate_shared::id::Name;
use tidegate_shared::spec::{
    ConcurrencyRule, DependencyRule, DependencyWhere, PolicySpec, ProgressionRule, WindowRule,
};
use tidegate_shared::time::{Span, Timestamp};

use super::expression::{Expression, Facts, Subject};
use super::progression::{Environment, Success};
use super::window::Window;
use super::{
    Answer, concurrency, cooldown, dependency, dependents, freeze, progression, release_selector,
    skip, subject,
};
use crate::state::{Deployment, Freeze, ScopeTerm, State};

/// What one rule answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Name of the rule, as `production/windows[0]`.
    pub rule: String,
    /// The kind of rule, in one word.
    pub kind: &'static str,
    /// What it says.
    pub answer: Answer,
}

/// One deployment that is asked about.
struct Case<'a> {
    state: &'a State,
    deployment: &'a Deployment,
    facts: Facts,
    now: Timestamp,
    told: Vec<Told>,
}

/// Every answer but those of approvals: freezes first, then policies in order of priority (highest
/// first) and name. A return is exempt from all but dependencies, which a person may force.
pub fn answers(state: &State, deployment: &Deployment, now: Timestamp) -> Vec<Told> {
    if state.policies.is_empty() && state.freezes.is_empty() {
        return Vec::new();
    }
    let mut case = Case {
        state,
        deployment,
        facts: subject::facts(state, deployment, now),
        now,
        told: Vec::new(),
    };
    let origin = &deployment.origin;
    if !origin.fast && !state.freezes.is_empty() {
        case.freezes();
    }
    let mut policies: Vec<_> = state
        .policies
        .iter()
        .filter(|(_, p)| p.spec.enabled)
        .collect();
    policies.sort_by_key(|(name, policy)| (-i64::from(policy.spec.priority), (*name).clone()));
    let by_person = !origin.forced && subject::requester(deployment).is_some();
    if origin.fast && by_person {
        let answer = dependents::answer(state, deployment, now);
        if !answer.is_allowed() {
            case.tell("dependents".to_owned(), "dependency", answer);
        }
    }
    for (name, policy) in policies {
        match matches(&policy.spec, &case.facts) {
            Ok(true) if origin.fast => {
                if by_person {
                    case.dependencies(name, &policy.spec.dependencies);
                }
            }
            Ok(true) => case.policy(name, &policy.spec),
            Ok(false) => {}
            Err(_) if origin.fast => {}
            Err(error) => {
                let answer = Answer::broken(format!("its selector: {error}"));
                case.tell(name.to_string(), "selector", answer);
            }
        }
    }
    case.told
}

/// Whether a policy is about a deployment.
///
/// # Errors
/// One line, if its selector cannot be evaluated.
pub fn matches(policy: &PolicySpec, facts: &Facts) -> Result<bool, String> {
    Expression::compile(&policy.selector, Subject::Deployment)
        .map_err(|mistake| mistake.to_string())?
        .holds(facts)
}

/// Skips that stand in the state, as rules see them.
pub fn skipped(
    state: &State,
    deployment: &Deployment,
    rule: &str,
    now: Timestamp,
) -> Option<Answer> {
    let skips: Vec<skip::Skip<'_>> = state
        .skips
        .values()
        .map(|skip| skip::Skip {
            rule: &skip.rule,
            application: skip.application.as_ref().map(Name::as_str),
            version: skip.version.as_ref().map(|version| version.as_str()),
            scope: skip.scope.as_ref().map(Name::as_str),
            by: match &skip.meta.created_by {
                crate::command::Actor::User(name) => name.as_str(),
                _ => "the cluster",
            },
            reason: &skip.reason,
            at: skip.meta.created_at,
            expires_at: skip.expires_at,
        })
        .collect();
    let origin = &deployment.origin;
    let target = skip::Target {
        rule,
        application: origin.application.as_str(),
        version: origin.version.as_str(),
        scope: origin.scope.as_str(),
    };
    skip::answer(&skips, target, now)
}

/// What a progression rule says of a deployment, a skip of it considered.
pub(super) fn progression_of(
    state: &State,
    deployment: &Deployment,
    (rule_name, rule): (&str, &ProgressionRule),
    now: Timestamp,
) -> Answer {
    let case = Case {
        state,
        deployment,
        facts: Facts::default(),
        now,
        told: Vec::new(),
    };
    skipped(state, deployment, rule_name, now)
        .unwrap_or_else(|| case.progression(rule).unwrap_or_else(Answer::broken))
}

/// How long since an instant freezes have held that stop a deployment under way, those that are over
/// too. Two at once count once.
pub fn frozen_for(
    state: &State,
    deployment: &Deployment,
    since: Timestamp,
    now: Timestamp,
) -> Span {
    let all = || state.freezes.values().chain(state.past_freezes.values());
    let after = |freeze: &&Freeze| freeze.until > since && !freeze.let_run;
    if deployment.origin.fast || !all().any(|freeze| after(&freeze)) {
        return Span::ZERO;
    }
    let facts = subject::facts(state, deployment, now);
    let about = |freeze: &&Freeze| {
        Expression::compile(&freeze.selector, Subject::Deployment)
            .map_err(|mistake| mistake.to_string())
            .and_then(|selector| selector.holds(&facts))
            .unwrap_or(true)
    };
    let holding = all().filter(|freeze| after(freeze) && about(freeze));
    let mut spans: Vec<(Timestamp, Timestamp)> = holding
        .map(|freeze| (freeze.meta.created_at.max(since), freeze.until.min(now)))
        .collect();
    spans.sort_unstable();
    let (mut sum, mut counted) = (Span::ZERO, since);
    for (from, until) in spans {
        sum = sum + until.since(from.max(counted));
        counted = counted.max(until);
    }
    sum
}

/// The freeze that stops a deployment under way at its next step, with its end.
pub fn frozen(
    state: &State,
    deployment: &Deployment,
    now: Timestamp,
) -> Option<(String, Timestamp)> {
    if state.freezes.is_empty() || deployment.origin.fast {
        return None;
    }
    let facts = subject::facts(state, deployment, now);
    let holding = state.freezes.iter().filter(|(_, freeze)| {
        let about = Expression::compile(&freeze.selector, Subject::Deployment)
            .map_err(|mistake| mistake.to_string())
            .and_then(|selector| selector.holds(&facts));
        now < freeze.until && !freeze.let_run && about.unwrap_or(true)
    });
    let (name, freeze) = holding.max_by_key(|(_, freeze)| freeze.until)?;
    let by = &freeze.meta.created_by;
    let why = format!("{name} by {by}: {}; until {}", freeze.reason, freeze.until);
    Some((why, freeze.until))
}

impl Case<'_> {
    fn tell(&mut self, rule: String, kind: &'static str, answer: Answer) {
        let skipped = skipped(self.state, self.deployment, &rule, self.now);
        self.told.push(Told {
            answer: skipped.unwrap_or(answer),
            rule,
            kind,
        });
    }

    fn freezes(&mut self) {
        let mut broken = None;
        let mut holding = Vec::new();
        for (name, found) in &self.state.freezes {
            let selector = Expression::compile(&found.selector, Subject::Deployment)
                .map_err(|mistake| mistake.to_string())
                .and_then(|selector| selector.holds(&self.facts));
            match selector {
                Ok(false) => continue,
                Ok(true) => {}
                Err(error) if self.now < found.until => {
                    broken = Some(Answer::broken(format!("freeze {name}: {error}")));
                }
                Err(_) => {}
            }
            holding.push((name, found));
        }
        let by = |freeze: &crate::state::Freeze| freeze.meta.created_by.to_string();
        let names: Vec<String> = holding.iter().map(|(_, found)| by(found)).collect();
        let freezes: Vec<freeze::Freeze<'_>> = holding
            .iter()
            .zip(&names)
            .map(|((name, found), by)| freeze::Freeze {
                name: name.as_str(),
                by,
                reason: &found.reason,
                until: found.until,
            })
            .collect();
        let answer = broken.unwrap_or_else(|| freeze::answer(&freezes, self.now));
        self.told.push(Told {
            rule: "freeze".to_owned(),
            kind: "freeze",
            answer,
        });
    }

    fn policy(&mut self, name: &Name, spec: &PolicySpec) {
        for (index, window) in spec.windows.iter().enumerate() {
            let answer = self.window(window);
            self.tell(format!("{name}/windows[{index}]"), "window", answer);
        }
        if let Some(rule) = &spec.cooldown {
            let origin = &self.deployment.origin;
            let track = self.state.tracks.get(&origin.scope);
            let previous = track.and_then(|track| track.started.as_ref());
            let previous = previous.map(|started| cooldown::Previous {
                release: started.version.as_str(),
                started_at: started.at,
            });
            let answer =
                cooldown::answer(rule.interval, previous, origin.version.as_str(), self.now);
            self.tell(format!("{name}/cooldown"), "cooldown", answer);
        }
        if let Some(rule) = &spec.progression {
            let answer = self.progression(rule).unwrap_or_else(Answer::broken);
            self.tell(format!("{name}/progression"), "progression", answer);
        }
        self.dependencies(name, &spec.dependencies);
        if let Some(rule) = &spec.release_selector {
            let answer = match release_selector::compile(rule) {
                Ok(condition) => release_selector::answer(&condition, &self.facts),
                Err(mistake) => Answer::broken(mistake.to_string()),
            };
            self.tell(
                format!("{name}/release_selector"),
                "release_selector",
                answer,
            );
        }
        if let Some(rule) = &spec.concurrency {
            let answer = self.concurrency(spec, rule).unwrap_or_else(Answer::broken);
            self.tell(format!("{name}/concurrency"), "concurrency", answer);
        }
    }

    fn window(&self, rule: &WindowRule) -> Answer {
        match Window::compile(rule) {
            Ok(window) => {
                let scope = self.state.scopes.get(&self.deployment.origin.scope);
                let first = scope.is_none_or(|s| s.active.is_none() && s.last_active.is_none());
                window.answer(self.now, first)
            }
            Err(mistakes) => {
                let told: Vec<String> = mistakes
                    .iter()
                    .map(|mistake| format!("{}: {mistake}", mistake.field))
                    .collect();
                Answer::broken(told.join("; "))
            }
        }
    }

    fn progression(&self, rule: &ProgressionRule) -> Result<Answer, String> {
        let after = Expression::compile(&rule.after, Subject::Environment)
            .map_err(|mistake| mistake.to_string())?;
        let mut names = Vec::new();
        for name in self.state.environments.keys() {
            let facts = Facts {
                environment: Some(subject::environment(self.state, name)),
                ..Facts::default()
            };
            if after.holds(&facts)? {
                names.push(name);
            }
        }
        let environments: Vec<Environment<'_>> = names
            .iter()
            .map(|name| self.environment(name, rule))
            .collect();
        let demand = progression::Demand {
            percentage: rule.min_success_percentage,
            soak: rule.soak,
            max_age: rule.max_age,
            matching: rule.matching,
            on_empty: rule.on_empty,
        };
        let created_at = self.deployment.meta.created_at;
        Ok(progression::answer(
            demand,
            &environments,
            created_at,
            self.now,
        ))
    }

    fn environment<'n>(&self, name: &'n Name, rule: &ProgressionRule) -> Environment<'n> {
        let origin = &self.deployment.origin;
        let mut found = Environment {
            name: name.as_str(),
            scopes: 0,
            successes: Vec::new(),
        };
        let application = ScopeTerm::Application(origin.application.clone());
        for (scope_name, scope) in self.state.scopes.rows_of(&application) {
            if scope.spec.environment != *name {
                continue;
            }
            found.scopes += 1;
            let track = self.state.tracks.get(scope_name);
            let finished = track.into_iter().flat_map(|track| &track.finished);
            let mut finished = finished.filter(|finished| {
                finished.version == origin.version
                    && (finished.verified || !rule.require_verification)
            });
            found
                .successes
                .extend(finished.next().map(|finished| Success {
                    at: finished.at,
                    rolled_back_at: finished.rolled_back_at,
                }));
        }
        found
    }

    fn dependencies(&mut self, name: &Name, rules: &[DependencyRule]) {
        for (index, rule) in rules.iter().enumerate() {
            // A selector may be about many applications, the one that the others need among them.
            let is_itself = rule.application == self.deployment.origin.application;
            let answer = match dependency::Requirement::parse(&rule.version) {
                _ if is_itself => {
                    Answer::allowed(format!("{} does not depend on itself", rule.application))
                }
                Ok(requirement) => dependency::answer(rule, &requirement, &self.places(rule)),
                Err(mistake) => Answer::broken(mistake.to_string()),
            };
            self.tell(
                format!("{name}/dependencies[{index}]"),
                "dependency",
                answer,
            );
        }
    }

    fn places(&self, rule: &DependencyRule) -> Vec<dependency::Place> {
        let here = &self.deployment.origin.scope_spec;
        let counts = |spec: &tidegate_shared::spec::ScopeSpec| match rule.place {
            DependencyWhere::Anywhere => true,
            DependencyWhere::Environment => spec.environment == here.environment,
            DependencyWhere::SameDimensions => {
                spec.environment == here.environment && spec.dimensions == here.dimensions
            }
        };
        let application = ScopeTerm::Application(rule.application.clone());
        let scopes = self.state.scopes.rows_of(&application);
        scopes
            .filter(|(_, scope)| counts(&scope.spec))
            .map(|(name, scope)| {
                let active = scope.active.and_then(|id| self.state.deployments.get(&id));
                dependency::Place {
                    scope: name.to_string(),
                    release: active.and_then(|active| {
                        subject::origin_facts(self.state, &active.origin, None, self.now).release
                    }),
                }
            })
            .collect()
    }

    fn concurrency(&self, policy: &PolicySpec, rule: &ConcurrencyRule) -> Result<Answer, String> {
        let mut under_way = 0_u64;
        for (_, scope) in self.state.scopes.rows_of(&ScopeTerm::UnderWay) {
            let candidate = scope.candidate.filter(|id| *id != self.deployment.id);
            let Some(other) = candidate.and_then(|id| self.state.deployments.get(&id)) else {
                continue;
            };
            if !other.status.is_end() {
                let facts = subject::facts(self.state, other, self.now);
                under_way += u64::from(matches(policy, &facts)?);
            }
        }
        Ok(concurrency::answer(rule.max, under_way))
    }
}
