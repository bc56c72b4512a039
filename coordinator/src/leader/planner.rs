//! The planner's loop: looks, proposes what is due, and sleeps until something changes.
//!
//! The agenda answers the same commands with the same request keys until they are applied, so what
//! is on its way is not proposed again. Woken by applied entries, by reports and by the agenda's own
//! next look; news within `GATHER` are looked at together. The time given to it is the log's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_coordinator_core::command::{Command, RaiseLevel};
use tidegate_coordinator_core::plan::Agenda;
use tidegate_coordinator_core::{Actor, Item, Observed, Outcome, RequestKey, State};
use tidegate_shared::error::Reason;
use tokio::sync::mpsc;

use super::measure::Measuring;
use crate::api::Context;
use crate::propose::ProposeError;
use crate::raft::Role;

/// Shortest time between two looks.
const GATHER: Duration = Duration::from_millis(20);
/// A command that was refused is not proposed again for so long.
const AFTER_REFUSAL: Duration = Duration::from_secs(1);
/// How often what nobody needs is dropped.
const TIDY_EVERY: Duration = Duration::from_secs(60);
/// Longest sleep: a clock that was set must not make it sleep for ever.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// How often some scopes are asked again for no reason, and how many.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
const SWEEP: usize = 500;
/// Commands in one entry.
const BATCH: usize = 256;

/// Plans whenever this node leads; until it stops.
pub async fn run(context: Arc<Context>) {
    let mut status = context.status.clone();
    loop {
        let leads = tokio::select! {
            found = status.wait_for(|status| status.role == Role::Leader) => found.is_ok(),
            () = context.stop.cancelled() => false,
        };
        if !leads {
            return;
        }
        lead(&context).await;
        context.live.end();
        if context.stop.is_cancelled() {
            return;
        }
    }
}

struct Done {
    keys: Vec<RequestKey>,
    outcomes: Result<Vec<Outcome>, ProposeError>,
}

struct Flight {
    keys: BTreeSet<RequestKey>,
    refused: BTreeMap<RequestKey, Instant>,
    done: mpsc::UnboundedSender<Done>,
}

/// One term of leading.
async fn lead(context: &Arc<Context>) {
    let mut status = context.status.clone();
    let mut views = context.query.views();
    // What was committed before has to be here first.
    let since = loop {
        if status.borrow_and_update().role != Role::Leader {
            return;
        }
        if let Some(now) = context.proposer.leader_now() {
            break now;
        }
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            changed = status.changed() => if changed.is_err() { return },
            () = context.stop.cancelled() => return,
        }
    };
    let mut observed = Observed::new(since);
    observed.lost_after = context.config.lost_after;
    context.live.begin(observed);
    tracing::info!(term = status.borrow().term, "this coordinator leads");
    let (done, mut finished) = mpsc::unbounded_channel();
    let mut flight = Flight {
        keys: BTreeSet::new(),
        refused: BTreeMap::new(),
        done,
    };
    let mut agenda = Agenda::default();
    let mut tidy = tokio::time::interval(TIDY_EVERY);
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let mut looked = context.clock.instant();
    let mut measuring = Measuring::default();
    loop {
        let sleep = look(context, &mut flight, &mut agenda);
        measuring.sync(context);
        let waited = context.clock.instant().saturating_duration_since(looked);
        if let Some(rest) = GATHER.checked_sub(waited) {
            tokio::time::sleep(rest).await;
        }
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            () = context.live.news() => {}
            Some(done) = finished.recv() => flight.land(context, done),
            () = tokio::time::sleep(sleep) => {}
            _ = tidy.tick() => tidy_up(context),
            _ = sweep.tick() => agenda.sweep(SWEEP),
            changed = status.changed() => {
                if changed.is_err() || status.borrow_and_update().role != Role::Leader {
                    tracing::info!("this coordinator does not lead any more");
                    return;
                }
            }
            () = context.stop.cancelled() => return,
        }
        views.mark_unchanged();
        while let Ok(done) = finished.try_recv() {
            flight.land(context, done);
        }
        looked = context.clock.instant();
    }
}

fn tidy_up(context: &Context) {
    let Some(now) = context.proposer.leader_now() else {
        return;
    };
    let view = context.query.stale();
    context.live.tidy(&view.state, now);
}

/// Proposes what is due; how long nothing changes by itself.
fn look(context: &Arc<Context>, flight: &mut Flight, agenda: &mut Agenda) -> Duration {
    let Some(now) = context.proposer.leader_now() else {
        return GATHER;
    };
    let view = context.query.stale();
    let looked = context
        .live
        .look(|observed, heard| agenda.look(&view.state, observed, heard, now));
    if looked.is_none() {
        return GATHER;
    }
    let next_wakeup = agenda.next_wakeup();
    context.live.set_next_wakeup(next_wakeup);
    let present = context.clock.instant();
    flight
        .refused
        .retain(|_, at| present.saturating_duration_since(*at) < AFTER_REFUSAL);
    let mut due: Vec<Item> = agenda
        .due()
        .filter(|item| flight.is_new(item.request))
        .cloned()
        .collect();
    due.extend(raise_level(&view.state).filter(|item| flight.is_new(item.request)));
    for batch in due.chunks(BATCH) {
        flight.send(context, batch.to_vec());
    }
    let sleep = match next_wakeup {
        Some(at) => at.since(now).to_std().max(Duration::from_millis(1)),
        None => LONGEST_SLEEP,
    };
    let soonest = flight
        .refused
        .values()
        .map(|at| AFTER_REFUSAL.saturating_sub(present.saturating_duration_since(*at)))
        .min()
        .unwrap_or(LONGEST_SLEEP);
    sleep.min(soonest).min(LONGEST_SLEEP)
}

/// Newer commands and fields may be used once every member understands them.
fn raise_level(state: &State) -> Option<Item> {
    let cluster = state.cluster.as_ref()?;
    let common = cluster.members.values().map(|member| member.level).min()?;
    if common <= cluster.level {
        return None;
    }
    let text = format!("raise level of {} to {common}", cluster.id);
    Some(Item {
        actor: Actor::System,
        request: RequestKey::Planner(tidegate_shared::digest::Digest::of(text.as_bytes())),
        command: Box::new(Command::RaiseLevel(RaiseLevel { level: common })),
    })
}

impl Flight {
    fn is_new(&self, key: RequestKey) -> bool {
        !self.keys.contains(&key) && !self.refused.contains_key(&key)
    }

    fn send(&mut self, context: &Arc<Context>, items: Vec<Item>) {
        let keys: Vec<RequestKey> = items.iter().map(|item| item.request).collect();
        self.keys.extend(keys.iter().copied());
        let (context, done) = (context.clone(), self.done.clone());
        tokio::spawn(async move {
            let outcomes = context.proposer.propose_batch(items).await;
            // The loop may have ended with the lead.
            done.send(Done { keys, outcomes }).ok();
        });
    }

    fn land(&mut self, context: &Context, done: Done) {
        for key in &done.keys {
            self.keys.remove(key);
        }
        let outcomes = match done.outcomes {
            Ok(outcomes) => outcomes,
            Err(error) => {
                tracing::debug!(%error, "what the planner proposed has no outcome");
                return;
            }
        };
        for (key, outcome) in done.keys.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) => {}
                // Something else changed the deployment first: the next plan sees it.
                Err(rejection) if rejection.reason == Reason::Stale => {}
                Err(rejection) => {
                    tracing::warn!(
                        code = rejection.reason.code(),
                        "the planner's command was refused: {rejection}"
                    );
                    self.refused.insert(key, context.clock.instant());
                }
            }
        }
    }
}
