//! Sessions of agents, on any node: who is connected here, what is asked of them.
//!
//! [`session`] runs one session; [`forward`] passes what the agents report on to the leader;
//! [`host_check`] asks hosts whether they could take a release. This
//! file holds the table of sessions (the newest of an agent wins), the asks that wait for their
//! answer, the limits of `admission` and the lease that sessions stamp.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_proto::agent::v1::{AnswerChunk, Ask, Down, ask, down};
use tidegate_shared::assignment::Report;
use tidegate_shared::error::Reason;
use tidegate_shared::id::Name;
use tidegate_shared::time::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use self::admission::{Admission, Crowded};
use crate::api::status;
use crate::clock::Clock;
use crate::entropy;

mod admission;
pub mod forward;
pub mod host_check;
pub mod session;

/// Messages that may wait for one agent.
pub(crate) const DOWN_QUEUE: usize = 32;
/// Chunks of answers that may wait for the one who asked.
const ANSWER_QUEUE: usize = 16;
/// Reports and news that may wait to be forwarded.
const HEARD_QUEUE: usize = 16 * 1024;

/// What a session heard of its agent.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Its session is open here, with a certificate that ends then.
    Opened(Name, Timestamp),
    /// Its session here ended, and no other one of it is here.
    Closed(Name),
    /// A report.
    Report(Name, Box<Report>),
}

/// The leader's word that it leads, as this node heard it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The leader's term.
    pub term: u64,
    /// Raised with each word.
    pub number: u64,
}

struct Entry {
    number: u64,
    down: mpsc::Sender<Result<Down, Status>>,
    over: CancellationToken,
}

struct Pending {
    agent: Name,
    answers: mpsc::Sender<Result<AnswerChunk, Status>>,
}

struct Inner {
    clock: Clock,
    entries: Mutex<BTreeMap<Name, Entry>>,
    numbers: std::sync::atomic::AtomicU64,
    asks: Mutex<HashMap<String, Pending>>,
    admission: Mutex<Admission>,
    heard: mpsc::Sender<Heard>,
    lease: watch::Sender<Option<Stamp>>,
}

/// The sessions at this node. Cheap to clone.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

/// The other end of [`Sessions`]: what is to be forwarded.
pub struct HeardQueue(mpsc::Receiver<Heard>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session that was let in.
pub(crate) struct Registered {
    sessions: Sessions,
    name: Name,
    number: u64,
    /// Cancelled when a newer session of the agent takes its place, and at its end.
    pub over: CancellationToken,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.over.cancel();
        let mut entries = lock(&self.sessions.0.entries);
        let is_own = entries
            .get(&self.name)
            .is_some_and(|entry| entry.number == self.number);
        if is_own {
            entries.remove(&self.name);
            drop(entries);
            self.sessions.tell(Heard::Closed(self.name.clone()));
        }
    }
}

impl Sessions {
    /// No sessions yet; `per_second` new ones are admitted.
    #[must_use]
    pub fn new(clock: Clock, per_second: u32) -> (Self, HeardQueue) {
        let (heard, queue) = mpsc::channel(HEARD_QUEUE);
        let admission = Admission::new(per_second, clock.instant());
        let inner = Inner {
            clock,
            entries: Mutex::default(),
            numbers: std::sync::atomic::AtomicU64::new(1),
            asks: Mutex::default(),
            admission: Mutex::new(admission),
            heard,
            lease: watch::channel(None).0,
        };
        (Self(Arc::new(inner)), HeardQueue(queue))
    }

    /// Names of the agents that are connected here.
    #[must_use]
    pub fn connected(&self) -> Vec<Name> {
        lock(&self.0.entries).keys().cloned().collect()
    }

    /// Lets one more session of an agent begin now.
    ///
    /// # Errors
    /// [`Crowded`].
    pub(crate) fn admit(&self, name: &Name) -> Result<(), Crowded> {
        let now = self.0.clock.instant();
        lock(&self.0.admission).admit(name, now)
    }

    /// Waits until facts of an agent may be proposed; false: its session was over before that.
    pub(crate) async fn facts_turn(&self, name: &Name, over: &CancellationToken) -> bool {
        loop {
            if over.is_cancelled() {
                return false;
            }
            let now = self.0.clock.instant();
            let Err(left) = lock(&self.0.admission).admit_facts(name, now) else {
                return true;
            };
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = over.cancelled() => {}
            }
        }
    }

    /// Enters a session; an older one of the same agent is told to end.
    pub(crate) fn register(
        &self,
        name: &Name,
        not_after: Timestamp,
        down: mpsc::Sender<Result<Down, Status>>,
    ) -> Registered {
        let number = self
            .0
            .numbers
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let over = CancellationToken::new();
        let entry = Entry {
            number,
            down,
            over: over.clone(),
        };
        if let Some(old) = lock(&self.0.entries).insert(name.clone(), entry) {
            old.over.cancel();
        }
        self.tell(Heard::Opened(name.clone(), not_after));
        Registered {
            sessions: self.clone(),
            name: name.clone(),
            number,
            over,
        }
    }

    /// Passes on what was heard. A full queue drops it: reports are levels, and who is connected is
    /// told again every few seconds.
    pub(crate) fn tell(&self, heard: Heard) {
        // A closed queue is a node that stops.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.0.heard.try_send(heard) {
            tracing::warn!("too much is heard from agents at once; some of it is dropped");
        }
    }

    /// Asks an agent something; the answer comes in chunks until it is over.
    ///
    /// # Errors
    /// The agent is not connected here, or does not listen.
    pub fn ask(
        &self,
        agent: &Name,
        kind: ask::Kind,
    ) -> Result<mpsc::Receiver<Result<AnswerChunk, Status>>, Status> {
        let id = entropy::ulid(self.0.clock.wall_ms())
            .map_err(|error| status::internal(&error))?
            .to_string();
        let down = lock(&self.0.entries)
            .get(agent)
            .map(|entry| entry.down.clone())
            .ok_or_else(|| {
                status::refusal(
                    Reason::AgentNotConnected,
                    format!("agent \"{agent}\" is not connected to this coordinator"),
                )
            })?;
        let (sender, receiver) = mpsc::channel(ANSWER_QUEUE);
        let mut asks = lock(&self.0.asks);
        asks.retain(|_, pending| !pending.answers.is_closed());
        asks.insert(
            id.clone(),
            Pending {
                agent: agent.clone(),
                answers: sender,
            },
        );
        drop(asks);
        let ask = Ask {
            id: id.clone(),
            kind: Some(kind),
        };
        let message = Down {
            kind: Some(down::Kind::Ask(ask)),
        };
        if down.try_send(Ok(message)).is_err() {
            lock(&self.0.asks).remove(&id);
            return Err(status::refusal(
                Reason::QueueFull,
                format!("agent \"{agent}\" does not keep up"),
            ));
        }
        // An agent that never answers must not keep the asker waiting.
        let sessions = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(15)).await;
            lock(&sessions.0.asks).remove(&id);
        });
        Ok(receiver)
    }

    /// Where the answer to an ask goes; each ask is answered once.
    pub(crate) fn answer_to(
        &self,
        id: &str,
        agent: &Name,
    ) -> Option<mpsc::Sender<Result<AnswerChunk, Status>>> {
        let mut asks = lock(&self.0.asks);
        if asks.get(id).is_some_and(|pending| pending.agent == *agent) {
            asks.remove(id).map(|pending| pending.answers)
        } else {
            None
        }
    }

    pub(crate) fn lease(&self) -> watch::Receiver<Option<Stamp>> {
        self.0.lease.subscribe()
    }

    pub(crate) fn stamp(&self, term: u64) {
        self.0.lease.send_modify(|stamp| {
            *stamp = Some(Stamp {
                term,
                number: stamp.map_or(0, |stamp| stamp.number) + 1,
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        Name::new("a").unwrap()
    }

    fn logs() -> ask::Kind {
        ask::Kind::Logs(tidegate_proto::agent::v1::LogsAsk::default())
    }

    #[tokio::test]
    async fn the_newer_session_wins_and_only_its_end_counts() {
        let (sessions, mut heard) = Sessions::new(Clock::system(), 10);
        let (down, _keep) = mpsc::channel(1);
        let old = sessions.register(&name(), Timestamp::ZERO, down.clone());
        let new = sessions.register(&name(), Timestamp::ZERO, down);
        assert!(old.over.is_cancelled());
        assert!(!new.over.is_cancelled());
        drop(old);
        assert_eq!(sessions.connected(), vec![name()]);
        drop(new);
        assert!(sessions.connected().is_empty());
        let mut closed = 0;
        while let Ok(one) = heard.0.try_recv() {
            closed += usize::from(matches!(one, Heard::Closed(_)));
        }
        assert_eq!(closed, 1);
    }

    #[tokio::test]
    async fn an_ask_is_answered_only_by_its_agent_and_once() {
        let (sessions, _heard) = Sessions::new(Clock::system(), 10);
        assert!(sessions.ask(&name(), logs()).is_err());
        let (down, mut messages) = mpsc::channel(1);
        let _session = sessions.register(&name(), Timestamp::ZERO, down);
        let _answers = sessions.ask(&name(), logs()).unwrap();
        let message = messages.recv().await.unwrap().unwrap();
        let Some(down::Kind::Ask(ask)) = message.kind else {
            panic!("{message:?}");
        };
        let other = Name::new("b").unwrap();
        assert!(sessions.answer_to(&ask.id, &other).is_none());
        assert!(sessions.answer_to(&ask.id, &name()).is_some());
        assert!(sessions.answer_to(&ask.id, &name()).is_none());
    }

    #[tokio::test]
    async fn facts_wait_no_longer_than_their_session_lives() {
        let (sessions, _heard) = Sessions::new(Clock::system(), 10);
        let (down, _keep) = mpsc::channel(1);
        let agent = name();
        let first = sessions.register(&agent, Timestamp::ZERO, down.clone());
        assert!(sessions.facts_turn(&agent, &first.over).await);
        let over = first.over.clone();
        let (turn, _newer) = tokio::join!(sessions.facts_turn(&agent, &over), async {
            sessions.register(&agent, Timestamp::ZERO, down.clone())
        });
        assert!(!turn, "the facts of a session that was replaced are old");
        let second = sessions.register(&agent, Timestamp::ZERO, down);
        let over = second.over.clone();
        let (turn, ()) = tokio::join!(sessions.facts_turn(&agent, &over), async {
            drop(second);
        });
        assert!(!turn);
    }
}
