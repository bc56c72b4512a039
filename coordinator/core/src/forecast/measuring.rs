//! Checks of strategies as they are made when every measurement is good: the first one after its
//! initial delay, then one at each interval, each taking no time.
//!
//! Who measures, how many good ones make a success and what follows is settled by `verification` and
//! the planner themselves.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_shared::id::{DeploymentId, Name};
use tidegate_shared::time::{Span, Timestamp};

use crate::deployment::checks;
use crate::observed::Observed;
use crate::plan::view::View;
use crate::state::State;
use crate::verification::makers;

/// Where a check is not written any more, which its deployment's own copy rules out.
const HOURLY: Span = Span::from_hours(1);

/// The checks that are being made.
#[derive(Debug, Default)]
pub(super) struct Measuring {
    /// Of the deployment that is under way in a scope: checks with their run and next measurement.
    under_way: BTreeMap<Name, (DeploymentId, Vec<Next>)>,
    due: BTreeSet<(Timestamp, Name)>,
}

#[derive(Debug, Clone)]
struct Next {
    check: Name,
    run: Timestamp,
    at: Timestamp,
}

impl Measuring {
    /// When the next measurement is due.
    pub(super) fn next_event(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Begins and ends what the rows of these scopes ask for, and measures what is due. Answers
    /// where anything was measured.
    pub(super) fn look(
        &mut self,
        state: &State,
        observed: &mut Observed,
        now: Timestamp,
        scopes: &BTreeSet<Name>,
    ) -> BTreeSet<Name> {
        for scope in scopes {
            self.ask(state, scope, now);
        }
        let mut measured = BTreeSet::new();
        while let Some((at, scope)) = self.due.pop_first() {
            if at > now {
                self.due.insert((at, scope));
                break;
            }
            self.measure(state, observed, now, &scope);
            measured.insert(scope);
        }
        measured
    }

    fn ask(&mut self, state: &State, scope: &Name, now: Timestamp) {
        let before = self.under_way.remove(scope);
        for next in before.iter().flat_map(|(_, all)| all) {
            self.due.remove(&(next.at, scope.clone()));
        }
        let candidate = state.scopes.get(scope).and_then(|found| found.candidate);
        let Some(found) = candidate.and_then(|id| state.deployments.get(&id)) else {
            return;
        };
        let same = |(id, _): &&(DeploymentId, Vec<Next>)| *id == found.id;
        let known = before.as_ref().filter(same);
        let known = known.map_or(&[][..], |(_, all)| all.as_slice());
        let all: Vec<Next> = checks::under_way(found)
            .map(|(moment, spec)| {
                let mut known = known.iter();
                let goes_on = known.find(|n| n.check == spec.name && n.run == moment.run);
                goes_on.cloned().unwrap_or_else(|| Next {
                    check: spec.name.clone(),
                    run: moment.run,
                    at: now.max(moment.since + spec.initial_delay),
                })
            })
            .collect();
        if !all.is_empty() {
            self.due
                .extend(all.iter().map(|next| (next.at, scope.clone())));
            self.under_way.insert(scope.clone(), (found.id, all));
        }
    }

    fn measure(&mut self, state: &State, observed: &mut Observed, now: Timestamp, name: &Name) {
        let Some((id, all)) = self.under_way.get_mut(name) else {
            return;
        };
        let (Some(scope), Some(found)) = (state.scopes.get(name), state.deployments.get(id)) else {
            return;
        };
        for next in all.iter_mut().filter(|next| next.at <= now) {
            let mut specs = found.origin.strategy.verification.iter();
            let spec = specs.find(|spec| spec.name == next.check);
            let interval = spec.map_or(HOURLY, |spec| spec.interval);
            next.at = next.at + interval.max(Span::from_millis(1));
            let what = spec.and_then(|spec| Some((spec, spec.measurement()?)));
            let Some((spec, what)) = what else {
                continue;
            };
            let asked = makers(&View::new(state, observed, now, scope, found), what);
            for maker in asked {
                let lanes = &mut observed.verification;
                lanes.take_as_good(found.id, spec, next.run, maker, now);
            }
        }
        let later = all.iter().map(|next| (next.at, name.clone()));
        self.due.extend(later);
    }
}
