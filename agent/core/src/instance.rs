//! The machine of one instance: start, health, exits, backoff, giving up.
//!
//! It judges samples and ends of processes; it neither probes nor starts anything. The planner asks
//! what it wants next, and [`Observed`](crate::observed::Observed) tells it what happened. Each
//! start has its own incarnation number, so that late news of an earlier process changes nothing.

use serde::{Deserialize, Serialize};
use tidegate_shared::assignment::{Counters, InstanceState};
use tidegate_shared::spec::HealthCheck;
use tidegate_shared::time::{Span, Timestamp};

/// Wait before the first restart; doubles with each one in a row.
pub const FIRST_BACKOFF: Span = Span::from_millis(500);
/// Longest wait before a restart.
pub const MAX_BACKOFF: Span = Span::from_secs(30);
/// An instance that was healthy for so long has its restarts forgiven.
pub const STABLE_AFTER: Span = Span::from_mins(5);
/// The first check comes so long after the start, or one interval if that is shorter. While no check
/// has succeeded, early ones follow at twice the distance each time, up to the interval.
pub const FIRST_CHECK: Span = Span::from_millis(250);

/// Where the process of an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not started yet, or stopped for good.
    Idle,
    /// The start was ordered.
    Launching,
    /// The process runs.
    Up {
        /// Since when.
        since: Timestamp,
    },
    /// It ended; the next start comes then.
    Backoff {
        /// Not before.
        until: Timestamp,
    },
    /// The restarts are used up, or it cannot be started at all.
    Failed {
        /// Since when.
        since: Timestamp,
    },
    /// The stop was ordered.
    Stopping,
}

/// The word of the checks about a process that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// No verdict yet.
    Unknown,
    /// Enough successes in a row.
    Healthy {
        /// Since when.
        since: Timestamp,
    },
    /// Enough failures in a row.
    Unhealthy,
}

/// What the machine needs of its assignment.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// Thresholds and intervals.
    pub check: &'a HealthCheck,
    /// Restarts until it counts as failed.
    pub max_restarts: u32,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Where its process is.
    pub phase: Phase,
    /// What the checks say.
    pub health: Health,
    /// Number of the present or latest start; 0: never started.
    pub incarnation: u32,
    /// Restarts since the place was made.
    pub restarts: u32,
    /// 0: none.
    pub pid: u32,
    /// Its own port; 0: none.
    pub port: u16,
    /// How its process last ended, with the last lines of its output.
    pub last_exit: Option<String>,
    /// Why the last check failed.
    pub last_failure: Option<String>,
    /// Start of the counters below and of `base`.
    pub stamp: Timestamp,
    /// Checks made since `stamp`.
    pub health_checks: u64,
    /// Of them failed.
    pub health_check_failures: u64,
    /// The data plane's counters at `stamp`, taken off what is reported.
    pub base: Counters,
    /// Stamp of the data plane's own counters, to see that they began again.
    pub plane_stamp: Timestamp,
    unstartable: bool,
    streak: u32,
    successes: u32,
    failures: u32,
    probing: bool,
    next_check: Timestamp,
    /// When the next check is due that counts whatever it says; any before it is an early one.
    next_ordinary: Timestamp,
    /// From an early check to the next.
    early: Span,
}

/// What is known of a process that was running before this agent started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// Its incarnation.
    pub incarnation: u32,
    /// Restarts so far.
    pub restarts: u32,
    /// Its process.
    pub pid: u32,
    /// Its port; 0: none.
    pub port: u16,
    /// Whether the data plane holds it healthy: adoption must not take traffic from it.
    pub healthy: bool,
}

impl Instance {
    /// One that was never started.
    pub fn new(now: Timestamp) -> Self {
        Self {
            phase: Phase::Idle,
            health: Health::Unknown,
            incarnation: 0,
            restarts: 0,
            pid: 0,
            port: 0,
            last_exit: None,
            last_failure: None,
            stamp: now,
            health_checks: 0,
            health_check_failures: 0,
            base: Counters::default(),
            plane_stamp: Timestamp::ZERO,
            unstartable: false,
            streak: 0,
            successes: 0,
            failures: 0,
            probing: false,
            next_check: Timestamp::ZERO,
            next_ordinary: Timestamp::ZERO,
            early: FIRST_CHECK,
        }
    }

    /// One whose process was found running.
    pub fn adopt(adopted: Adopted, now: Timestamp) -> Self {
        Self {
            phase: Phase::Up { since: now },
            health: if adopted.healthy {
                Health::Healthy { since: now }
            } else {
                Health::Unknown
            },
            incarnation: adopted.incarnation,
            restarts: adopted.restarts,
            pid: adopted.pid,
            port: adopted.port,
            next_check: now,
            next_ordinary: now,
            ..Self::new(now)
        }
    }

    /// One whose process was gone when the agent came back: it is started again as after an exit.
    pub fn lost(adopted: Adopted, settings: Settings<'_>, now: Timestamp) -> Self {
        let mut instance = Self::adopt(adopted, now);
        let how = "ended while the agent was away; its exit status is unknown".to_owned();
        instance.exited(instance.incarnation, how, settings, now);
        instance
    }

    /// The word for reports.
    pub const fn state(&self) -> InstanceState {
        match (self.phase, self.health) {
            (Phase::Idle | Phase::Launching, _) => InstanceState::Starting,
            (Phase::Up { .. }, Health::Unknown) => InstanceState::Starting,
            (Phase::Up { .. }, Health::Healthy { .. }) => InstanceState::Healthy,
            (Phase::Up { .. }, Health::Unhealthy) => InstanceState::Unhealthy,
            (Phase::Backoff { .. }, _) => InstanceState::Backoff,
            (Phase::Failed { .. }, _) => InstanceState::Failed,
            (Phase::Stopping, _) => InstanceState::Stopping,
        }
    }

    /// Whether it may get requests.
    pub const fn is_healthy(&self) -> bool {
        matches!(self.state(), InstanceState::Healthy)
    }

    /// Whether it failed because it cannot be started at all.
    pub const fn is_unstartable(&self) -> bool {
        self.unstartable
    }

    /// Whether a process of it may be there.
    pub const fn may_live(&self) -> bool {
        match self.phase {
            Phase::Launching | Phase::Up { .. } | Phase::Stopping => true,
            Phase::Idle | Phase::Backoff { .. } | Phase::Failed { .. } => false,
        }
    }

    /// When it should be started; none: not at all. `stubborn`: it is never given up, only tried
    /// more slowly.
    pub fn start_due(&self, stubborn: bool) -> Option<Timestamp> {
        match self.phase {
            Phase::Idle => Some(Timestamp::ZERO),
            Phase::Backoff { until } => Some(until),
            Phase::Failed { since } if stubborn => Some(since + MAX_BACKOFF.times(2)),
            Phase::Failed { .. } | Phase::Launching | Phase::Up { .. } | Phase::Stopping => None,
        }
    }

    /// When the next check is due; none: no process, or one is under way.
    pub const fn check_due(&self) -> Option<Timestamp> {
        match (self.phase, self.probing) {
            (Phase::Up { .. }, false) => Some(self.next_check),
            (Phase::Up { .. }, true)
            | (Phase::Idle | Phase::Launching, _)
            | (Phase::Backoff { .. } | Phase::Failed { .. } | Phase::Stopping, _) => None,
        }
    }

    /// The start was ordered.
    pub fn launching(&mut self) {
        if self.incarnation > 0 {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.incarnation = self.incarnation.saturating_add(1);
        self.phase = Phase::Launching;
        self.unstartable = false;
        self.forget_samples();
    }

    /// The process runs.
    pub fn started(
        &mut self,
        incarnation: u32,
        (pid, port): (u32, u16),
        settings: Settings<'_>,
        now: Timestamp,
    ) {
        if incarnation != self.incarnation || self.phase != Phase::Launching {
            return;
        }
        self.pid = pid;
        self.port = port;
        self.phase = Phase::Up { since: now };
        self.early = settings.check.interval.min(FIRST_CHECK);
        self.next_check = now + self.early;
        self.next_ordinary = self.next_check;
    }

    /// It cannot be started, and trying again will not help.
    pub fn unstartable(&mut self, incarnation: u32, why: String, now: Timestamp) {
        if incarnation == self.incarnation && self.phase == Phase::Launching {
            self.last_exit = Some(why);
            self.unstartable = true;
            self.phase = Phase::Failed { since: now };
        }
    }

    /// The process ended, or did not come up this time.
    pub fn exited(
        &mut self,
        incarnation: u32,
        how: String,
        settings: Settings<'_>,
        now: Timestamp,
    ) {
        if incarnation != self.incarnation {
            return;
        }
        let was_stopping = match self.phase {
            Phase::Idle | Phase::Backoff { .. } | Phase::Failed { .. } => return,
            Phase::Stopping => true,
            Phase::Launching | Phase::Up { .. } => false,
        };
        if let Health::Healthy { since } = self.health
            && now.since(since) >= STABLE_AFTER
        {
            self.streak = 0;
        }
        self.pid = 0;
        self.last_exit = Some(how);
        self.forget_samples();
        if was_stopping {
            self.phase = Phase::Idle;
        } else if self.streak >= settings.max_restarts {
            self.phase = Phase::Failed { since: now };
        } else {
            self.phase = Phase::Backoff {
                until: now + backoff(self.streak),
            };
            self.streak += 1;
        }
    }

    /// The stop was ordered.
    pub fn stopping(&mut self) {
        self.phase = Phase::Stopping;
        self.forget_samples();
    }

    /// The stop is complete.
    pub fn stopped(&mut self, incarnation: u32, how: Option<String>) {
        if incarnation == self.incarnation && self.phase == Phase::Stopping {
            self.phase = Phase::Idle;
            self.pid = 0;
            self.last_exit = how.or(self.last_exit.take());
        }
    }

    /// A check is under way.
    pub fn probing(&mut self) {
        self.probing = true;
    }

    /// A check brought a sample.
    pub fn probed(
        &mut self,
        incarnation: u32,
        sample: Result<(), String>,
        settings: Settings<'_>,
        now: Timestamp,
    ) {
        let Phase::Up { since } = self.phase else {
            return;
        };
        if incarnation != self.incarnation {
            return;
        }
        self.probing = false;
        let is_early = self.next_check < self.next_ordinary;
        match sample {
            // An early failure says that it is not up yet, no more: thresholds and counts are of
            // checks that are an interval apart, and so is a success from the one before it.
            Err(why) if is_early => self.last_failure = Some(why),
            Ok(()) => {
                self.next_ordinary = now + settings.check.interval;
                self.health_checks += 1;
                self.succeeded(settings.check, now);
            }
            Err(why) => {
                self.next_ordinary = now + settings.check.interval;
                self.health_checks += 1;
                self.failed(why, settings.check, since, now);
            }
        }
        self.next_check = self.after_check(settings.check.interval, now);
    }

    /// When the next check is due after one that ended now: early while none has succeeded since the
    /// start, so that an instance that begins to listen late does not wait a whole interval.
    fn after_check(&mut self, interval: Span, now: Timestamp) -> Timestamp {
        if self.health != Health::Unknown || self.successes > 0 {
            return self.next_ordinary;
        }
        let early = now + self.early;
        self.early = self.early.times(2).min(interval);
        early.min(self.next_ordinary)
    }

    fn succeeded(&mut self, check: &HealthCheck, now: Timestamp) {
        self.failures = 0;
        self.last_failure = None;
        self.successes = self.successes.saturating_add(1);
        match self.health {
            Health::Healthy { since } => {
                if now.since(since) >= STABLE_AFTER {
                    self.streak = 0;
                }
            }
            Health::Unknown | Health::Unhealthy => {
                if self.successes >= check.healthy_threshold {
                    self.health = Health::Healthy { since: now };
                }
            }
        }
    }

    fn failed(&mut self, why: String, check: &HealthCheck, since: Timestamp, now: Timestamp) {
        self.health_check_failures += 1;
        self.last_failure = Some(why);
        self.successes = 0;
        // The start period forgives a slow start, not a relapse.
        if self.health == Health::Unknown && now.since(since) < check.start_period {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= check.unhealthy_threshold {
            self.health = Health::Unhealthy;
        }
    }

    /// Begins the counters again, above what the data plane has counted so far.
    pub fn restamp(&mut self, stamp: Timestamp, plane_stamp: Timestamp, base: Counters) {
        self.stamp = stamp;
        self.plane_stamp = plane_stamp;
        self.base = base;
        self.health_checks = 0;
        self.health_check_failures = 0;
    }

    fn forget_samples(&mut self) {
        self.health = Health::Unknown;
        self.successes = 0;
        self.failures = 0;
        self.probing = false;
    }
}

/// The wait before a restart, after `earlier` restarts in a row.
pub fn backoff(earlier: u32) -> Span {
    FIRST_BACKOFF
        .times(1_u64.checked_shl(earlier.min(16)).unwrap_or(u64::MAX))
        .min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests;
