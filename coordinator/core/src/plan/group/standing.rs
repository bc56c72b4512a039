//! Where a group stands at one look: everything that the turns of its members follow from, counted
//! once.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_shared::spec::{RolloutGate, RolloutOrder};
use tidegate_shared::time::{Span, Timestamp};

use super::kept::Kept;
use super::{order, passed};
use crate::group::open_time::{Openings, Stop};
use crate::group::schedule::{self, Pace, Started};
use crate::group::wave_name;
use crate::observed::Observed;
use crate::plan::planned::first_opening;
use crate::policy::clock::{Clock, clock};
use crate::policy::expression::{Expression, Subject};
use crate::policy::gradual_rollout::place;
use crate::policy::subject;
use crate::state::{Deployment, Group, GroupMember, State};

/// See the module.
#[derive(Debug)]
pub(crate) struct Standing<'a> {
    pub(crate) state: &'a State,
    pub(crate) observed: &'a Observed,
    pub(crate) now: Timestamp,
    pub(crate) group: &'a Group,
    /// The planner reads no reasons, and most members of a large group wait for the others.
    is_silent: bool,
    /// Closes every member's turn.
    stopped: Option<Closed>,
    /// Linear kinds: a member that started and has not passed the gate.
    blocker: Option<String>,
    /// The group's own pace first, then those of policies.
    paces: Vec<Paced>,
    /// When everything before each wave is done and baked; counted when it is asked for.
    settled: OnceCell<Vec<Option<Timestamp>>>,
}

/// A closed turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Closed {
    /// Why, in one line.
    pub(crate) why: String,
    /// When that changes by itself, or has to be looked at again.
    pub(crate) until: Option<Timestamp>,
    /// What is missing, and from whom; empty: time.
    pub(crate) needs: String,
}

impl Closed {
    fn new(why: impl Into<String>, needs: &str) -> Self {
        Self {
            why: why.into(),
            until: None,
            needs: needs.to_owned(),
        }
    }
}

/// A pace that some or all members keep.
#[derive(Debug, Clone)]
pub(crate) struct Paced {
    /// Name of the rule, as `production/gradual_rollout`; empty: the group's own.
    pub(crate) rule: String,
    pub(crate) pace: Pace,
    /// Positions by number of the member; none: all, by their position in the group.
    positions: Option<Arc<BTreeMap<u32, u64>>>,
    /// What `positions` were counted in, where that is not the group's order.
    pub(crate) order: Option<RolloutOrder>,
    /// How many it is about.
    pub(crate) members: u64,
    /// The one that started and stands furthest in the order.
    furthest: Option<Started>,
    /// The last start in time, and whose it was.
    latest: Option<(Timestamp, u32)>,
    /// The last one before it by another member.
    before: Option<Timestamp>,
}

impl Paced {
    fn new(rule: String, pace: Pace, group: &Group, positions: Option<BTreeMap<u32, u64>>) -> Self {
        let members = positions
            .as_ref()
            .map_or(group.members.len(), BTreeMap::len);
        let mut paced = Self {
            rule,
            pace,
            positions: positions.map(Arc::new),
            order: None,
            members: members as u64,
            furthest: None,
            latest: None,
            before: None,
        };
        for (number, member) in &group.members {
            if let Some(at) = member.started_at {
                paced.note(group, *number, at);
            }
        }
        paced
    }

    pub(crate) fn position(&self, group: &Group, number: u32) -> Option<u64> {
        match &self.positions {
            Some(positions) => positions.get(&number).copied(),
            None => group.members.get(&number)?.position.map(u64::from),
        }
    }

    /// Notes a start; the order in which starts are noted is of no matter.
    pub(super) fn note(&mut self, group: &Group, number: u32, at: Timestamp) {
        let Some(position) = self.position(group, number) else {
            return;
        };
        if self.furthest.is_none_or(|f| f.position <= position) {
            self.furthest = Some(Started { position, at });
        }
        match self.latest {
            Some((latest, of)) if latest > at => {
                if of != number {
                    self.before = self.before.max(Some(at));
                }
            }
            Some((latest, of)) => {
                if of != number {
                    self.before = Some(latest);
                }
                self.latest = Some((at, number));
            }
            None => self.latest = Some((at, number)),
        }
    }

    /// The last start of another member: what a start keeps its distance from.
    fn latest_other(&self, number: u32) -> Option<Timestamp> {
        match self.latest {
            Some((_, of)) if of == number => self.before,
            latest => latest.map(|(at, _)| at),
        }
    }

    /// One step of the pace: what any two starts are apart at least.
    fn step(&self) -> Span {
        self.pace.offset(self.members, 1)
    }

    /// The earliest instant at which a member could be due, were everything open all the time.
    fn not_before(&self, group: &Group, number: u32) -> Option<Timestamp> {
        let position = self.position(group, number)?;
        let member = group.members.get(&number)?;
        let offset = |position| self.pace.offset(self.members, position);
        let mut at = Timestamp::ZERO;
        if member.started_at.is_none() {
            at = group.meta.created_at + offset(position);
            if let Some(ahead) = self.furthest.filter(|f| f.position < position) {
                at = at.max(ahead.at + offset(position).saturating_sub(offset(ahead.position)));
            }
        }
        Some(
            self.latest_other(number)
                .map_or(at, |other| at.max(other + self.step())),
        )
    }

    /// When a member is due, with the windows and stops of its clock; `None` inside: never.
    fn due(
        &self,
        group: &Group,
        number: u32,
        base: Timestamp,
        open: Openings<'_>,
    ) -> Option<Option<Timestamp>> {
        let position = self.position(group, number)?;
        let member = group.members.get(&number)?;
        let planned = match member.started_at {
            // Another try of one that has started: its turn had come.
            Some(_) => open.reach(base, Span::ZERO),
            None => schedule::due(self.pace, self.members, position, base, self.furthest, open),
        };
        let apart = match self.latest_other(number) {
            Some(other) => open.reach(other, self.step()),
            None => planned,
        };
        Some(
            planned
                .zip(apart)
                .map(|(planned, apart)| planned.max(apart)),
        )
    }
}

impl<'a> Standing<'a> {
    pub(crate) fn new(
        state: &'a State,
        observed: &'a Observed,
        now: Timestamp,
        group: &'a Group,
    ) -> Self {
        let mut standing = Self::bare(state, observed, now, group);
        if standing.stopped.is_some() {
            return standing;
        }
        standing.paces = paces(state, group, now);
        if group.rollout.kind.is_linear() {
            standing.blocker = standing.first_blocker();
        }
        standing
    }

    /// The same from what was kept of the group since an earlier look.
    pub(crate) fn of(
        state: &'a State,
        observed: &'a Observed,
        now: Timestamp,
        group: &'a Group,
        kept: &Kept,
    ) -> Self {
        let mut standing = Self::bare(state, observed, now, group);
        if standing.stopped.is_none() {
            standing.paces = kept.paces().to_vec();
            standing.blocker = kept.first_blocker().cloned();
        }
        standing
    }

    /// Without its paces and its blocker.
    pub(crate) fn bare(
        state: &'a State,
        observed: &'a Observed,
        now: Timestamp,
        group: &'a Group,
    ) -> Self {
        Self {
            state,
            observed,
            now,
            group,
            is_silent: false,
            stopped: stopped(group),
            blocker: None,
            paces: Vec::new(),
            settled: OnceCell::new(),
        }
    }

    /// The same for somebody who reads no reasons.
    pub(crate) fn silent(self) -> Self {
        Self {
            is_silent: true,
            ..self
        }
    }

    fn told(&self, why: impl FnOnce() -> String) -> String {
        match self.is_silent {
            true => String::new(),
            false => why(),
        }
    }

    /// The first member in the order that started and has not passed the gate.
    fn first_blocker(&self) -> Option<String> {
        if self.group.rollout.gate == RolloutGate::None {
            return None;
        }
        let started = self.group.in_order();
        let mut started = started.filter(|(_, member)| member.started_at.is_some());
        started.find_map(|(_, member)| passed(self, member).err())
    }

    /// Notes that a member is to start at this look: others keep their distance.
    pub(crate) fn note_start(&mut self, number: u32) {
        for paced in &mut self.paces {
            paced.note(self.group, number, self.now);
        }
        let gated = self.group.rollout.gate != RolloutGate::None;
        if gated && self.group.rollout.kind.is_linear() {
            let scope = self.group.members.get(&number);
            let scope = scope.map_or(String::new(), |member| member.scope.to_string());
            self.blocker = Some(format!("{scope} starts"));
        }
    }

    /// Whether others have to keep a distance from the start of a member.
    pub(crate) fn is_paced(&self, number: u32) -> bool {
        let gated = self.group.rollout.gate != RolloutGate::None;
        (gated && self.group.rollout.kind.is_linear())
            || self
                .paces
                .iter()
                .any(|paced| paced.position(self.group, number).is_some())
    }

    /// What closes the turn of a member whatever its windows and approvals say: the group is stopped,
    /// its wave is not open, the gate is closed, or its time cannot have come.
    pub(crate) fn closed(&self, number: u32) -> Option<Closed> {
        if let Some(closed) = self.shut(number) {
            return Some(closed);
        }
        let times = self.paces.iter();
        let times = times.filter_map(|paced| Some((paced.not_before(self.group, number)?, paced)));
        let latest = times
            .filter(|(at, _)| *at > self.now)
            .max_by_key(|(at, _)| *at);
        latest.map(|(at, paced)| Closed {
            why: self.told(|| format!("{}: not before {at}", self.turn_of(paced, number))),
            until: Some(at),
            needs: String::new(),
        })
    }

    /// The same, time left aside.
    pub(crate) fn shut(&self, number: u32) -> Option<Closed> {
        if let Some(stopped) = &self.stopped {
            return Some(stopped.clone());
        }
        let member = self.group.members.get(&number)?;
        if let Some(wave) = member.wave.filter(|wave| *wave > self.group.open_wave) {
            let why = || {
                let (name, open) = (
                    wave_name(self.group, wave),
                    wave_name(self.group, self.group.open_wave),
                );
                format!("{name} waits until {open} is done and baked")
            };
            return Some(Closed::new(self.told(why), ""));
        }
        let blocker = self.blocker.as_ref()?;
        let why = || format!("gate {}: {blocker}", self.group.rollout.gate.as_str());
        Some(Closed::new(self.told(why), ""))
    }

    /// What stops the group as a whole.
    pub(crate) fn stopped(&self) -> Option<&Closed> {
        self.stopped.as_ref()
    }

    /// How people are told of a member's place in a pace.
    pub(crate) fn turn_of(&self, paced: &Paced, number: u32) -> String {
        let position = paced.position(self.group, number).unwrap_or_default();
        let which = match paced.rule.as_str() {
            "" => String::new(),
            rule => format!("policy {rule}: "),
        };
        let place = place(position, paced.members, paced.order.as_ref());
        format!("{which}{place}")
    }

    /// Paces that are about a member.
    pub(crate) fn paces_of(&self, number: u32) -> Vec<&Paced> {
        let about = |paced: &&Paced| paced.position(self.group, number).is_some();
        self.paces.iter().filter(about).collect()
    }

    /// The clock of a member.
    pub(crate) fn clock(&self, deployment: &Deployment) -> Clock {
        let mut found = clock(self.state, deployment, self.group.meta.created_at, self.now);
        found.stops.extend(self.group.stops.iter().map(|stop| Stop {
            from: stop.from,
            until: Some(stop.until),
        }));
        found
    }

    /// When a member is due by one pace; `None` inside: never as things stand, or not begun.
    pub(crate) fn due(
        &self,
        paced: &Paced,
        number: u32,
        clock: &Clock,
    ) -> Option<Option<Timestamp>> {
        let Some(base) = clock.base else {
            return Some(None);
        };
        let open = Openings {
            windows: &clock.windows,
            stops: &clock.stops,
        };
        paced.due(self.group, number, base, open)
    }

    /// When everything before a wave is done and baked; none: a member before it is not at an end.
    pub(crate) fn settled(&self, wave: u32) -> Option<Timestamp> {
        let settled = self
            .settled
            .get_or_init(|| super::waves::settled(self.group));
        settled.get(wave as usize).copied().flatten()
    }

    /// From when on a member that waits can expire; none: its turn has not come, and others have to
    /// end first. Unless it has to be `exact`, windows are asked only when it would expire without.
    pub(crate) fn planned(
        &self,
        number: u32,
        deployment: &Deployment,
        exact: bool,
    ) -> Option<Timestamp> {
        let member = self.group.members.get(&number)?;
        let mut planned = match member.wave {
            Some(wave) => {
                let opened = self.group.waves.get(wave as usize)?.opened_at;
                opened.or_else(|| self.settled(wave))?
            }
            None => self.group.planned_start(number),
        };
        let limit = deployment.origin.strategy.deadlines.pending;
        let is_near = exact || planned.max(deployment.clock_since) + limit <= self.now;
        if is_near && self.stopped.is_none() {
            let clock = self.clock(deployment);
            let since = (planned.max(deployment.clock_since), self.now);
            let opening = first_opening(self.state, deployment, &clock, since);
            planned = opening.map_or(planned, |opening| opening.max(planned));
            for paced in self.paces_of(number) {
                if let Some(Some(due)) = self.due(paced, number, &clock) {
                    planned = planned.max(due);
                }
            }
        }
        Some(planned)
    }
}

/// What stops a group as a whole.
fn stopped(group: &Group) -> Option<Closed> {
    if let Some(given) = &group.given {
        let why = format!("the group is taken back by {} since {}", given.by, given.at);
        return Some(Closed::new(why, "nobody: it is cancelled"));
    }
    if group.begun_at.is_none() {
        return Some(Closed::new("the rollout of the group begins", ""));
    }
    if let Some(paused) = &group.paused {
        let why = format!(
            "the group is paused by {} since {}",
            paused.by, paused.since
        );
        return Some(Closed::new(why, "`tidegate group resume`"));
    }
    if let Some(halted) = &group.halted {
        let why = format!("the group is halted ({}): {}", halted.kind, halted.message);
        return Some(Closed::new(why, "`tidegate group resume`, or a rollback"));
    }
    group.is_over_budget().then(|| {
        let why = format!(
            "the failure budget of the group is exceeded: {} failed",
            group.tally.failures
        );
        Closed::new(why, "`tidegate group resume`, or a rollback")
    })
}

/// The group's own pace, then those of policies.
pub(super) fn paces(state: &State, group: &Group, now: Timestamp) -> Vec<Paced> {
    let own = group.pace();
    let own = own.map(|pace| Paced::new(String::new(), pace, group, None));
    own.into_iter().chain(rules(state, group, now)).collect()
}

/// The paces that policies ask for, over the members that they match, in the rule's order or else the
/// group's.
fn rules(state: &State, group: &Group, now: Timestamp) -> Vec<Paced> {
    let asking = state.policies.iter().filter_map(|(name, policy)| {
        let rule = policy.spec.gradual_rollout.as_ref()?;
        policy.spec.enabled.then_some((name, policy, rule))
    });
    asking
        .map(|(name, policy, rule)| {
            let selector = Expression::compile(&policy.spec.selector, Subject::Deployment);
            let about = |member: &GroupMember| {
                let deployment = state.deployments.get(&member.deployment);
                // A selector that cannot be evaluated is about everybody: it holds back.
                deployment.is_some_and(|deployment| {
                    selector.as_ref().map_or(true, |selector| {
                        let facts = subject::facts(state, deployment, now);
                        selector.holds(&facts).unwrap_or(true)
                    })
                })
            };
            let members: Vec<_> = group.in_order().filter(|(_, m)| about(m)).collect();
            let counted = order::counted(state, group, rule.order.as_ref(), &members);
            let pace = Pace {
                kind: rule.kind,
                interval: rule.interval,
            };
            let named = format!("{name}/gradual_rollout");
            let positions = Some(counted.into_iter().zip(0..).collect());
            Paced {
                order: rule.order.clone(),
                ..Paced::new(named, pace, group, positions)
            }
        })
        .collect()
}
