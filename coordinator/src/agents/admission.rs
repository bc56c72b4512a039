//! How often agents may connect and have their facts written, at this node.
//!
//! Sessions are admitted for the node as a whole, so that a fleet that comes back does not come
//! all at once, and for each agent, so that one that loops or means harm does not use up what the
//! others need. It says nothing about who may connect: the gate asked that before. [`super`]
//! calls it with the time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tidegate_shared::id::Name;

/// Sessions of one agent per second.
const OWN_PER_SECOND: u32 = 5;
/// Sessions of one agent at once, after a pause.
const OWN_BURST: u32 = 10;
/// Facts of one agent are proposed at most once in this time.
pub(super) const FACTS_EVERY: Duration = Duration::from_secs(10);
/// From so many agents on, those that were quiet for long are forgotten.
const MOST_REMEMBERED: usize = 16 * 1024;

/// Why a session may not begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crowded {
    /// This agent connects too often.
    Agent,
    /// All agents together do.
    Node,
}

/// Tokens that come back with time.
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn full(burst: u32, now: Instant) -> Self {
        Self {
            tokens: f64::from(burst),
            filled: now,
        }
    }

    fn fill(&mut self, per_second: u32, burst: u32, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        let filled = passed.mul_add(f64::from(per_second), self.tokens);
        self.tokens = filled.min(f64::from(burst));
        self.filled = now;
    }
}

struct Remembered {
    sessions: Bucket,
    /// When facts were proposed last.
    facts: Option<Instant>,
}

impl Remembered {
    fn is_quiet(&self, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at) >= FACTS_EVERY;
        since(self.sessions.filled) && self.facts.is_none_or(since)
    }
}

/// See the module's text.
pub(super) struct Admission {
    per_second: u32,
    all: Bucket,
    agents: HashMap<Name, Remembered>,
}

impl Admission {
    /// `per_second` new sessions of all agents are admitted, and as many at once after a pause.
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        Self {
            per_second,
            all: Bucket::full(per_second, now),
            agents: HashMap::new(),
        }
    }

    fn of(&mut self, name: &Name, now: Instant) -> &mut Remembered {
        if self.agents.len() >= MOST_REMEMBERED && !self.agents.contains_key(name) {
            self.agents.retain(|_, agent| !agent.is_quiet(now));
        }
        self.agents
            .entry(name.clone())
            .or_insert_with(|| Remembered {
                sessions: Bucket::full(OWN_BURST, now),
                facts: None,
            })
    }

    /// Lets a session of an agent begin now. One that is refused for itself takes nothing from
    /// the others.
    ///
    /// # Errors
    /// [`Crowded`].
    pub(super) fn admit(&mut self, name: &Name, now: Instant) -> Result<(), Crowded> {
        self.all.fill(self.per_second, self.per_second, now);
        let is_free = self.all.tokens >= 1.0;
        let own = &mut self.of(name, now).sessions;
        own.fill(OWN_PER_SECOND, OWN_BURST, now);
        if own.tokens < 1.0 {
            return Err(Crowded::Agent);
        }
        if !is_free {
            return Err(Crowded::Node);
        }
        own.tokens -= 1.0;
        self.all.tokens -= 1.0;
        Ok(())
    }

    /// Lets facts of an agent be proposed now, and then not again for [`FACTS_EVERY`].
    ///
    /// # Errors
    /// How long to wait before it is asked again.
    pub(super) fn admit_facts(&mut self, name: &Name, now: Instant) -> Result<(), Duration> {
        let last = &mut self.of(name, now).facts;
        let passed = last.map_or(FACTS_EVERY, |at| now.saturating_duration_since(at));
        let left = FACTS_EVERY.saturating_sub(passed);
        if !left.is_zero() {
            return Err(left);
        }
        *last = Some(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn count(admission: &mut Admission, name: &Name, now: Instant) -> usize {
        (0..1_000)
            .filter(|_| admission.admit(name, now).is_ok())
            .count()
    }

    #[test]
    fn all_agents_together_are_limited() {
        let now = Clock::system().instant();
        let mut admission = Admission::new(3, now);
        assert_eq!(count(&mut admission, &name("a"), now), 3);
        assert_eq!(admission.admit(&name("b"), now), Err(Crowded::Node));
        let later = now + Duration::from_secs(1);
        assert_eq!(count(&mut admission, &name("b"), later), 3);
    }

    #[test]
    fn an_agent_that_loops_leaves_room_for_the_others() {
        let now = Clock::system().instant();
        let mut admission = Admission::new(300, now);
        let looping = name("a");
        assert_eq!(count(&mut admission, &looping, now), OWN_BURST as usize);
        assert_eq!(admission.admit(&looping, now), Err(Crowded::Agent));
        let others = (0..290).filter(|i| admission.admit(&name(&format!("b{i}")), now).is_ok());
        assert_eq!(others.count(), 290);
        let later = now + Duration::from_secs(1);
        assert_eq!(
            count(&mut admission, &looping, later),
            OWN_PER_SECOND as usize
        );
    }

    #[test]
    fn facts_of_an_agent_have_to_wait_for_their_time() {
        let now = Clock::system().instant();
        let mut admission = Admission::new(300, now);
        let second = Duration::from_secs(1);
        assert_eq!(admission.admit_facts(&name("a"), now), Ok(()));
        let early = admission.admit_facts(&name("a"), now + second);
        assert_eq!(early, Err(FACTS_EVERY - second));
        assert_eq!(admission.admit_facts(&name("b"), now + second), Ok(()));
        let due = now + FACTS_EVERY;
        assert_eq!(admission.admit_facts(&name("a"), due), Ok(()));
        assert!(admission.admit_facts(&name("a"), due).is_err());
    }

    #[test]
    fn quiet_agents_are_forgotten_and_busy_ones_are_not() {
        let now = Clock::system().instant();
        let mut admission = Admission::new(100_000, now);
        for i in 0..MOST_REMEMBERED {
            admission.admit(&name(&format!("a{i}")), now).unwrap();
        }
        let later = now + FACTS_EVERY;
        admission.admit_facts(&name("a0"), later).unwrap();
        admission.admit(&name("b"), later).unwrap();
        assert_eq!(admission.agents.len(), 2);
        assert!(admission.admit_facts(&name("a0"), later).is_err());
    }
}
