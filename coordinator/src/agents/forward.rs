//! From the sessions here to the leader: reports, merged, and who is connected.
//!
//! Everything is a level: only the newest report of an agent is kept, what could not be sent is
//! sent with the next batch, and who is connected is told whole every few seconds. A new leader
//! gets the last report of every agent at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_shared::assignment::Report;
use tidegate_shared::id::Name;
use tidegate_shared::time::Timestamp;

use super::{Heard, HeardQueue};
use crate::api::Context;
use crate::raft::Role;
use crate::storage::codec;

/// The topic under which coordinators tell the leader of their agents.
pub const TOPIC: &str = "agents";

/// Reports gather for so long before they go to a leader elsewhere.
const GATHER: Duration = Duration::from_millis(50);
/// One batch may take so long.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// Reports in one batch.
const MOST_REPORTS: usize = 2_000;
/// Bytes of one message to the leader, well below what it takes.
const MESSAGE_BYTES: usize = 2 * 1024 * 1024;

/// What one coordinator tells the leader.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Agents whose session at the sender ended.
    pub closed: BTreeSet<Name>,
    /// Every agent that is connected to the sender, with the end of its certificate; none: not
    /// told this time.
    pub connected: Option<BTreeMap<Name, Timestamp>>,
    /// Reports.
    pub reports: BTreeMap<Name, Report>,
}

#[derive(Default)]
struct Gathered {
    /// Not sent yet.
    due: Batch,
    /// The last report of every agent that is connected here.
    last: BTreeMap<Name, Report>,
    connected: BTreeMap<Name, Timestamp>,
}

impl Gathered {
    fn take(&mut self, heard: Heard) {
        match heard {
            Heard::Opened(name, not_after) => {
                self.due.closed.remove(&name);
                self.connected.insert(name, not_after);
                self.due.connected = Some(self.connected.clone());
            }
            Heard::Closed(name) => {
                self.connected.remove(&name);
                self.last.remove(&name);
                self.due.closed.insert(name);
            }
            Heard::Report(name, report) => {
                self.last.insert(name.clone(), (*report).clone());
                self.due.reports.insert(name, *report);
            }
        }
    }

    /// A new leader knows nothing: everything is due again.
    fn all_again(&mut self) {
        self.due.connected = Some(self.connected.clone());
        self.due.reports = self.last.clone();
    }

    fn next_batch(&mut self) -> Option<Batch> {
        if self.due == Batch::default() {
            return None;
        }
        let mut batch = std::mem::take(&mut self.due);
        if batch.reports.len() > MOST_REPORTS
            && let Some(split) = batch.reports.keys().nth(MOST_REPORTS).cloned()
        {
            self.due.reports = batch.reports.split_off(&split);
        }
        Some(batch)
    }

    /// What could not be sent waits, unless something newer is there.
    fn give_back(&mut self, batch: Batch) {
        for (name, report) in batch.reports {
            self.due.reports.entry(name).or_insert(report);
        }
        for name in batch.closed {
            if !self.connected.contains_key(&name) {
                self.due.closed.insert(name);
            }
        }
        self.due.connected = Some(self.connected.clone());
    }
}

/// Forwards until the node stops.
pub async fn run(context: Arc<Context>, mut queue: HeardQueue) {
    let mut gathered = Gathered::default();
    let mut status = context.status.clone();
    let mut told = leader_of(&status.borrow());
    let period = (context.config.lost_after.to_std() / 10).clamp(GATHER, Duration::from_secs(2));
    let mut roll_call = tokio::time::interval(period);
    loop {
        tokio::select! {
            heard = queue.0.recv() => match heard {
                Some(heard) => gathered.take(heard),
                None => return,
            },
            _ = roll_call.tick() => gathered.due.connected = Some(gathered.connected.clone()),
            changed = status.changed() => if changed.is_err() { return },
            () = context.stop.cancelled() => return,
        }
        while let Ok(heard) = queue.0.try_recv() {
            gathered.take(heard);
        }
        let leader = leader_of(&status.borrow_and_update());
        if leader != told {
            told = leader;
            gathered.all_again();
        }
        let (Some((leader, _)), true) = (leader, gathered.due != Batch::default()) else {
            continue;
        };
        if leader == context.identity.node_id {
            while let Some(batch) = gathered.next_batch() {
                let Ok(own) = Name::new(context.identity.name.clone()) else {
                    return;
                };
                if !context.live.absorb(&context, &own, batch.clone()) {
                    // It leads but has not caught up yet: in a moment.
                    gathered.give_back(batch);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    break;
                }
            }
            continue;
        }
        if let Some(batch) = gathered.next_batch()
            && let Err(error) = send(&context, leader, &batch).await
        {
            tracing::debug!(leader, error, "reports wait: the leader was not reached");
            gathered.give_back(batch);
        }
        // More gathers meanwhile.
        tokio::time::sleep(GATHER).await;
    }
}

fn leader_of(status: &crate::raft::RaftStatus) -> Option<(u64, u64)> {
    let leader = match status.role {
        Role::Leader => Some(status.node_id),
        Role::Follower | Role::Candidate | Role::Learner => status.leader,
    };
    leader.map(|leader| (leader, status.term))
}

async fn send(context: &Context, leader: u64, batch: &Batch) -> Result<(), String> {
    for payload in messages(batch) {
        context
            .peers
            .ask(leader, TOPIC, payload, ASK_LIMIT)
            .await
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// A batch in as many messages as it takes. A report that is too large for one is left out: it must
/// not keep back what the other agents tell.
fn messages(batch: &Batch) -> Vec<Bytes> {
    let mut messages = Vec::new();
    let mut waiting = vec![batch.clone()];
    while let Some(mut batch) = waiting.pop() {
        if let Ok(bytes) = codec::encode(&batch)
            && bytes.len() <= MESSAGE_BYTES
        {
            messages.push(Bytes::from(bytes));
            continue;
        }
        let middle = batch.reports.keys().nth(batch.reports.len() / 2).cloned();
        let Some(middle) = middle else {
            tracing::error!("the list of connected agents is too long to be told");
            continue;
        };
        if batch.reports.len() == 1 {
            tracing::warn!(agent = %middle, "a report is too large and is not passed on");
            batch.reports.clear();
        } else {
            waiting.push(Batch {
                reports: batch.reports.split_off(&middle),
                ..Batch::default()
            });
        }
        waiting.push(batch);
    }
    messages
}

/// Proves every few seconds, by a read index, that there is a leader, and stamps it into the
/// sessions; until the node stops.
pub async fn stamp_leases(context: Arc<Context>) {
    let period = (context.config.lost_after.to_std() / 6)
        .clamp(Duration::from_millis(200), Duration::from_secs(5));
    let mut timer = tokio::time::interval(period);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = timer.tick() => {}
            () = context.stop.cancelled() => return,
        }
        if context.sessions.connected().is_empty() {
            continue;
        }
        match context.query.linearizable().await {
            Ok(_) => {
                let term = context.status.borrow().term;
                context.sessions.stamp(term);
            }
            Err(error) => tracing::debug!(%error, "no lease: nobody leads"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn report(sequence: u64) -> Box<Report> {
        Box::new(Report {
            sequence,
            ..Report::default()
        })
    }

    #[test]
    fn only_the_newest_report_of_an_agent_goes() {
        let mut gathered = Gathered::default();
        gathered.take(Heard::Opened(name("a"), Timestamp::ZERO));
        gathered.take(Heard::Report(name("a"), report(1)));
        gathered.take(Heard::Report(name("a"), report(2)));
        let batch = gathered.next_batch().unwrap();
        assert_eq!(batch.reports[&name("a")].sequence, 2);
        assert_eq!(
            batch.connected,
            Some(BTreeMap::from([(name("a"), Timestamp::ZERO)]))
        );
        assert_eq!(gathered.next_batch(), None);
        // It was not sent; a newer one came meanwhile.
        gathered.take(Heard::Report(name("a"), report(3)));
        gathered.give_back(batch);
        assert_eq!(
            gathered.next_batch().unwrap().reports[&name("a")].sequence,
            3
        );
    }

    #[test]
    fn a_large_batch_goes_in_parts_and_a_giant_report_not_at_all() {
        let large = |bytes: usize| Report {
            complaints: vec!["x".repeat(bytes)],
            ..Report::default()
        };
        let mut batch = Batch {
            closed: BTreeSet::from([name("gone")]),
            connected: Some(BTreeMap::from([(name("a0"), Timestamp::ZERO)])),
            ..Batch::default()
        };
        for number in 0..10 {
            let agent = name(&format!("a{number}"));
            batch.reports.insert(agent, large(MESSAGE_BYTES / 4));
        }
        batch
            .reports
            .insert(name("giant"), large(2 * MESSAGE_BYTES));
        let mut told = Batch::default();
        for message in messages(&batch) {
            assert!(message.len() <= MESSAGE_BYTES);
            let part: Batch = codec::decode(&message).unwrap();
            told.closed.extend(part.closed);
            told.connected = told.connected.or(part.connected);
            told.reports.extend(part.reports);
        }
        batch.reports.remove(&name("giant"));
        assert_eq!(told, batch);
        assert_eq!(messages(&Batch::default()).len(), 1);
    }

    #[test]
    fn a_new_leader_gets_everything_about_those_still_here() {
        let mut gathered = Gathered::default();
        for agent in ["a", "b"] {
            gathered.take(Heard::Opened(name(agent), Timestamp::ZERO));
            gathered.take(Heard::Report(name(agent), report(1)));
        }
        gathered.take(Heard::Closed(name("b")));
        gathered.next_batch().unwrap();
        gathered.all_again();
        let batch = gathered.next_batch().unwrap();
        assert_eq!(batch.reports.keys().collect::<Vec<_>>(), [&name("a")]);
    }
}
