//! Measurements of checks in a scenario: agents and the leader measure when it is due, and find
//! what the script says.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_coordinator_core::verification::{LeaderCheck, LeaderKind, leader_checks};
use tidegate_coordinator_core::{Observed, State};
use tidegate_shared::assignment::{Assignments, InstanceState, Report};
use tidegate_shared::id::{DeploymentId, Name, Version};
use tidegate_shared::measurement::{CheckKind, ObservedCheck, Sample};
use tidegate_shared::time::Timestamp;

/// What a script says of a check.
#[derive(Debug, Clone)]
pub struct Measure {
    version: Version,
    check: Name,
    found: Found,
    on: Option<Name>,
}

/// What is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Found {
    /// 200 with `{}`; exit status 0; the value 0.
    #[default]
    Good,
    /// 503; exit status 1; the value 1.
    Bad,
    /// Nothing that could be measured.
    Away,
}

impl Measure {
    /// Reads what follows `measure`.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (version, check, found, on) = match words.as_slice() {
            [version, check, found] => (version, check, found, None),
            [version, check, found, "on", on] => (version, check, found, Some(on)),
            _ => return Err("want `measure VERSION CHECK good|bad|away [on AGENT]`".to_owned()),
        };
        let name = |text: &str| Name::new(text).map_err(|error| error.to_string());
        Ok(Self {
            version: Version::new(*version).map_err(|error| error.to_string())?,
            check: name(check)?,
            found: match *found {
                "good" => Found::Good,
                "bad" => Found::Bad,
                "away" => Found::Away,
                other => return Err(format!("\"{other}\" is nothing that a check finds")),
            },
            on: on.map(|on| name(on)).transpose()?,
        })
    }
}

impl Found {
    fn sample(self, what: &str) -> Sample {
        match (self, what) {
            (Self::Away, _) => Sample::NotMade("nobody is there".to_owned()),
            (found, "command") => Sample::Command {
                exit_code: i32::from(found == Self::Bad),
                output: String::new(),
                cut: false,
            },
            (found, "values") => Sample::Values(vec![f64::from(u8::from(found == Self::Bad))]),
            (found, _) => Sample::Http {
                status: if found == Self::Bad { 503 } else { 200 },
                body: "{}".to_owned(),
                cut: false,
            },
        }
    }
}

type Key = (Option<Name>, DeploymentId, Name);

#[derive(Debug, Clone)]
struct Made {
    run: Timestamp,
    due: Timestamp,
    latest: Vec<ObservedCheck>,
}

/// Everything that is measured.
#[derive(Debug, Default)]
pub struct Checks {
    told: Vec<Measure>,
    made: BTreeMap<Key, Made>,
    sequence: u64,
}

impl Checks {
    /// From now on a check finds this.
    pub fn told(&mut self, measure: &Measure) {
        self.told.push(measure.clone());
    }

    fn found(&self, version: &Version, check: &Name, on: Option<&Name>) -> Found {
        let mut told = self.told.iter().rev();
        let fits = |m: &&Measure| {
            m.version == *version && m.check == *check && (m.on.is_none() || m.on.as_ref() == on)
        };
        told.find(fits).map_or_else(Found::default, |m| m.found)
    }

    /// The leader is another one, which has measured nothing.
    pub fn new_leader(&mut self) {
        self.made.retain(|(agent, ..), _| agent.is_some());
    }

    /// An agent makes what is due of what is wished, and tells the latest of each.
    pub fn measure(
        &mut self,
        agent: &Name,
        wished: &Assignments,
        report: &mut Report,
        now: Timestamp,
    ) {
        let mut kept: Vec<Key> = Vec::new();
        for item in &wished.items {
            let mut places = report.places.iter_mut();
            let Some(place) = places.find(|place| place.deployment == item.deployment) else {
                continue;
            };
            for wish in &item.checks {
                let key = (Some(agent.clone()), item.deployment, wish.name.clone());
                kept.push(key.clone());
                let before = self.made.remove(&key).filter(|made| made.run == wish.run);
                let mut made = before.unwrap_or_else(|| Made {
                    run: wish.run,
                    due: now + wish.initial_delay,
                    latest: Vec::new(),
                });
                let up = place.instances.iter();
                let up = up.filter(|instance| instance.state == InstanceState::Healthy);
                let instances: Vec<Option<u32>> = match &wish.what {
                    CheckKind::Http(_) => up.map(|instance| Some(instance.ordinal)).collect(),
                    CheckKind::Command(_) => up.take(1).map(|_| None).collect(),
                };
                if made.due <= now && !instances.is_empty() {
                    let what = match &wish.what {
                        CheckKind::Http(_) => "http",
                        CheckKind::Command(_) => "command",
                    };
                    let found = self.found(&item.release, &wish.name, Some(agent));
                    made.due = now + wish.interval;
                    made.latest.clear();
                    for instance in instances {
                        self.sequence += 1;
                        made.latest.push(ObservedCheck {
                            name: wish.name.clone(),
                            run: wish.run,
                            instance,
                            sequence: self.sequence,
                            sample: found.sample(what),
                        });
                    }
                }
                place.checks.extend(made.latest.iter().cloned());
                self.made.insert(key, made);
            }
        }
        self.made
            .retain(|key, _| key.0.as_ref() != Some(agent) || kept.contains(key));
    }

    /// The leader makes what is due of its own; the agents of the deployments that it measured.
    pub fn lead(
        &mut self,
        state: &State,
        observed: &mut Observed,
        now: Timestamp,
    ) -> BTreeSet<Name> {
        let mut agents = BTreeSet::new();
        let mut kept: Vec<Key> = Vec::new();
        for check in leader_checks(state) {
            let key = (None, check.deployment, check.name.clone());
            kept.push(key.clone());
            let before = self.made.remove(&key).filter(|made| made.run == check.run);
            let mut made = before.unwrap_or_else(|| Made {
                run: check.run,
                due: check.begins.max(now),
                latest: Vec::new(),
            });
            if made.due <= now {
                made.due = now + check.interval;
                self.ask(&check, state, observed, now);
                let measured = state.deployments.get(&check.deployment);
                agents.extend(measured.into_iter().flat_map(|d| d.participants.clone()));
            }
            self.made.insert(key, made);
        }
        self.made
            .retain(|key, _| key.0.is_some() || kept.contains(key));
        agents
    }

    fn ask(&mut self, check: &LeaderCheck, state: &State, observed: &mut Observed, now: Timestamp) {
        let Some(deployment) = state.deployments.get(&check.deployment) else {
            return;
        };
        let found = self.found(&deployment.origin.version, &check.name, None);
        let sample = match check.what {
            LeaderKind::Http(_) => found.sample("http"),
            LeaderKind::Prometheus(_) => found.sample("values"),
        };
        self.sequence += 1;
        let lanes = &mut observed.verification;
        let (id, name) = (check.deployment, &check.name);
        lanes.measured(state, id, name, check.run, self.sequence, &sample, now);
    }

    /// When something is due next.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        let due = self.made.values().map(|made| made.due);
        due.filter(|due| *due > now).min()
    }
}
