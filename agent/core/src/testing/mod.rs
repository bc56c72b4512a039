//! A whole agent without IO, under virtual time, for scenarios and property tests.
//!
//! [`AgentModel`] is the decisions of this crate over a [`FakeHost`]: it is given assignments,
//! performs its own plans on the host, and answers with reports as the real agent sends them.
//! What releases do is scripted per version ([`Behaviour`]); requests come by a rate per scope.
//! Nothing is random and nothing reads a clock: the same calls give the same reports.
//!
//! ```
//! use tidegate_agent_core::testing::{AgentModel, Behaviour};
//! use tidegate_shared::time::{Span, Timestamp};
//!
//! let mut agent = AgentModel::new(Timestamp::from_millis(1_000));
//! agent.host.behave("2.0.0", Behaviour { exits_after: Some(Span::from_secs(3)), ..Behaviour::default() });
//! // agent.assign(&assignments);
//! agent.advance(Timestamp::from_millis(60_000));
//! let report = agent.report().expect("the agent is up");
//! assert!(report.places.is_empty());
//! ```
//!
//! A driver of scenarios calls [`AgentModel::assign`] when assignments arrive,
//! [`AgentModel::advance`] to the next instant of its own agenda (or to
//! [`AgentModel::next_event`]), and [`AgentModel::report_due`] to see whether a report goes out.

mod host;
mod plane;

use std::collections::BTreeMap;

use tidegate_shared::assignment::{Assignment, Assignments, Report};
use tidegate_shared::time::{Span, Timestamp};

pub use host::{Behaviour, FakeHost, Staged};

use crate::desired::{Desired, DesiredError};
use crate::fence::{self, Verdict};
use crate::guard::LatchedGuards;
use crate::instance::{Instance, Settings};
use crate::observed::{Observed, Place, Staging};
use crate::place::PlaceKey;
use crate::plan::{Action, plan};
use crate::report;

/// More turns than this at one instant are a loop of the planner that never rests.
const MAX_TURNS: u32 = 1_000;

/// An agent and its host.
pub struct AgentModel {
    /// The host: scripts, load, faults.
    pub host: FakeHost,
    now: Timestamp,
    ledger: Ledger,
    mind: Option<Mind>,
    sequence: u64,
    last_report: Option<(Timestamp, Vec<String>)>,
    complaints: Vec<String>,
    #[cfg(test)]
    turns: Vec<tests::Turn>,
}

/// What survives the agent's process.
#[derive(Default)]
struct Ledger {
    start: u64,
    assignments: Option<Assignments>,
    places: BTreeMap<PlaceKey, Assignment>,
}

/// What does not.
struct Mind {
    desired: Desired,
    observed: Observed,
    wake_at: Option<Timestamp>,
}

impl AgentModel {
    /// An agent that starts at `now` on an empty host.
    pub fn new(now: Timestamp) -> Self {
        let mut model = Self {
            host: FakeHost::new(),
            now,
            ledger: Ledger::default(),
            mind: None,
            sequence: 0,
            last_report: None,
            complaints: Vec::new(),
            #[cfg(test)]
            turns: Vec::new(),
        };
        model.start();
        model
    }

    /// Its time.
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// What it knows; none while it is down.
    pub fn observed(&self) -> Option<&Observed> {
        self.mind.as_ref().map(|mind| &mind.observed)
    }

    /// Hands it assignments, through the fence; none while it is down.
    pub fn assign(&mut self, assignments: &Assignments) -> Option<Verdict> {
        let mind = self.mind.as_mut()?;
        let verdict = fence::judge(self.ledger.assignments.as_ref(), assignments);
        match verdict {
            Verdict::Accept => {
                match Desired::new(assignments, &LatchedGuards::default()) {
                    Ok(desired) => mind.desired = desired,
                    Err(error) => return self.complain(&error, verdict),
                }
                self.ledger.assignments = Some(assignments.clone());
                self.turns();
            }
            Verdict::Conflicting => {
                let generation = assignments.generation;
                self.complaints.push(format!(
                    "other assignments came with the same generation {}.{}",
                    generation.epoch, generation.index
                ));
            }
            Verdict::Repeated | Verdict::Older { .. } => {}
        }
        Some(verdict)
    }

    fn complain(&mut self, error: &DesiredError, verdict: Verdict) -> Option<Verdict> {
        self.complaints.push(error.to_string());
        Some(verdict)
    }

    /// Lets time pass up to `to`, with everything that happens on the way. A `to` in the past
    /// changes nothing.
    pub fn advance(&mut self, to: Timestamp) {
        self.turns();
        while let Some(next) = self.next_event()
            && next <= to
        {
            self.pass(next);
            self.turns();
        }
        if to > self.now {
            self.pass(to);
            self.turns();
        }
    }

    /// When something happens next by itself, requests aside.
    pub fn next_event(&self) -> Option<Timestamp> {
        let wake = self.mind.as_ref().and_then(|mind| mind.wake_at);
        let next = [wake, self.host.next_event()].into_iter().flatten().min();
        next.map(|at| at.max(self.now))
    }

    /// A report of this instant; none while the agent is down. Counts as sent.
    pub fn report(&mut self) -> Option<Report> {
        let mind = self.mind.as_ref()?;
        self.sequence += 1;
        let report = Report {
            start: self.ledger.start,
            sequence: self.sequence,
            applied: mind.desired.generation,
            places: report::places(&mind.observed, self.now),
            host: tidegate_shared::assignment::HostMetrics::default(),
            complaints: self.complaints.clone(),
            proxy: None,
        };
        let marks = report::landmarks(report.applied, &report.places);
        self.last_report = Some((self.now, marks));
        Some(report)
    }

    /// Whether the real agent would send a report now: something of note changed, or the interval
    /// since the last one is over.
    pub fn report_due(&self) -> bool {
        let Some(mind) = &self.mind else {
            return false;
        };
        let Some((at, marks)) = &self.last_report else {
            return true;
        };
        self.now.since(*at) >= report::interval(&mind.desired)
            || *marks
                != report::landmarks(
                    mind.desired.generation,
                    &report::places(&mind.observed, self.now),
                )
    }

    /// The longest time between two reports now; none while the agent is down.
    pub fn report_interval(&self) -> Option<Span> {
        let mind = self.mind.as_ref()?;
        Some(report::interval(&mind.desired))
    }

    /// Ends the agent's process as `kill -9` does. Applications and the data plane go on; what was
    /// being fetched is lost.
    pub fn kill(&mut self) {
        self.mind = None;
        self.host.agent_died();
    }

    /// Starts the agent's process again: it adopts what runs. Nothing changes if it is up.
    pub fn start(&mut self) {
        if self.mind.is_some() {
            return;
        }
        self.ledger.start = (self.ledger.start + 1).max(self.now.millis() / 1_000);
        self.sequence = 0;
        self.last_report = None;
        let desired = self
            .ledger
            .assignments
            .as_ref()
            .and_then(|held| Desired::new(held, &LatchedGuards::default()).ok());
        self.mind = Some(Mind {
            desired: desired.unwrap_or_default(),
            observed: self.recover(),
            wake_at: None,
        });
        self.turns();
    }

    /// Cuts the power and gives it back: processes and routes are gone, the disk is as it was.
    pub fn reboot(&mut self) {
        self.kill();
        self.host.power_cut();
        self.start();
    }

    fn recover(&self) -> Observed {
        let mut observed = Observed::default();
        for (key, item) in &self.ledger.places {
            let mut place = Place::new(item.clone());
            if self.host.has_release(&item.asset.sha256) {
                place.staging = Staging::Ready;
            }
            for (ordinal, adopted, alive) in self.host.records(key) {
                let settings = Settings {
                    check: &item.health_check,
                    max_restarts: item.max_restarts,
                };
                let instance = if alive {
                    Instance::adopt(adopted, self.now)
                } else {
                    Instance::lost(adopted, settings, self.now)
                };
                place.instances.insert(ordinal, instance);
            }
            observed.places.insert(key.clone(), place);
        }
        observed
    }

    fn pass(&mut self, to: Timestamp) {
        let events = self.host.pass(self.now, to);
        self.now = to;
        if let Some(mind) = &mut self.mind {
            for event in events {
                mind.observed.apply(event, to);
            }
        }
    }

    /// Turns of the loop until nothing more is due at this instant.
    fn turns(&mut self) {
        for _ in 0..MAX_TURNS {
            let Some(mind) = &mut self.mind else {
                return;
            };
            let traffic = crate::observed::Event::Traffic(self.host.traffic());
            mind.observed.apply(traffic, self.now);
            mind.observed.sync(&mind.desired, self.now);
            self.ledger.places = mind
                .observed
                .places
                .iter()
                .map(|(key, place)| (key.clone(), place.item.clone()))
                .collect();
            let planned = plan(&mind.desired, &mind.observed, self.now);
            mind.wake_at = planned.wake_at;
            #[cfg(test)]
            self.turns.push(tests::Turn {
                desired: mind.desired.clone(),
                observed: mind.observed.clone(),
                actions: planned.actions.clone(),
                now: self.now,
            });
            let idle = planned
                .actions
                .iter()
                .all(|action| self.host.ignores(action));
            for action in planned.actions {
                self.perform(&action);
            }
            let now = self.now;
            self.pass(now);
            if idle {
                return;
            }
        }
        assert!(
            self.mind.is_none(),
            "the planner does not come to rest at {}",
            self.now
        );
    }

    fn perform(&mut self, action: &Action) {
        let Some(mind) = &mut self.mind else {
            return;
        };
        mind.observed.begin(action);
        self.host.perform(action, &mind.observed, self.now);
    }
}

#[cfg(test)]
mod stories;
#[cfg(test)]
mod tests;
