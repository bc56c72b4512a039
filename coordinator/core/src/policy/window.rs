//! Deployment windows: when deployments may start (product.md §5.2).
//!
//! A window is inside during [start, start + duration) of each start of its recurrence rules, in
//! elapsed time; several rules are a union, and spans that overlap or touch are one. An allow window
//! is open inside, a deny window outside. Who asks several windows at once uses `group::open_time`.

use std::iter::Peekable;

use tidegate_shared::spec::{FirstDeployment, WindowKind, WindowOutcome, WindowRule};
use tidegate_shared::time::{Span, Timestamp};

use super::recurrence::{Local, Occurrences, Recurrence, local_time};
use super::zone::Zone;
use super::{Answer, Mistake};

/// DTSTART of a rule that names none: a Monday.
const DEFAULT_START: &str = "1970-01-05T00:00:00";
/// Rules without an end of their own whose spans touch for so long never end: no rule that people
/// write has its first gap later.
const ENDLESS: Span = Span::from_days(12 * 366);

/// A window that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    kind: WindowKind,
    rules: Vec<Recurrence>,
    duration: Span,
    zone: Zone,
    outcome: WindowOutcome,
    first_deployment: FirstDeployment,
}

/// Whether deployments may start, and until when that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowState {
    /// They may.
    pub open: bool,
    /// The next instant at which that changes; none: never again.
    pub changes_at: Option<Timestamp>,
}

impl Window {
    /// Understands a window as it stands in a policy.
    ///
    /// # Errors
    /// The fields that are wrong, and where in them.
    pub fn compile(spec: &WindowRule) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let start = match local_time(spec.dtstart.as_deref().unwrap_or(DEFAULT_START)) {
            Some(start) => start,
            None => {
                let text = spec.dtstart.as_deref().unwrap_or_default();
                let message = format!(
                    "\"{text}\" is no date and time of the wall clock: want 2026-01-05T09:00:00"
                );
                mistakes.push(Mistake::new("dtstart", 1, message));
                0
            }
        };
        let zone = Zone::parse(&spec.time_zone).unwrap_or_else(|| {
            let message = format!(
                "\"{}\" is no time zone: want a name as Europe/Berlin or UTC",
                spec.time_zone
            );
            mistakes.push(Mistake::new("time_zone", 1, message));
            Zone::UTC
        });
        let mut rules = Vec::new();
        for (index, text) in spec.rrules.iter().enumerate() {
            let field = format!("rrules[{index}]");
            match Recurrence::parse(text, start) {
                Ok(rule) if rule.needs_start() && spec.dtstart.is_none() => {
                    let message = "INTERVAL and COUNT are counted from a start: give dtstart";
                    mistakes.push(Mistake::new(field, 1, message));
                }
                Ok(rule) if rule.from(start).next().is_none() => {
                    mistakes.push(Mistake::new(field, 1, "never starts"));
                }
                Ok(rule) => rules.push(rule),
                Err(error) => mistakes.push(Mistake::new(field, error.position, error.message)),
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self {
            kind: spec.kind,
            rules,
            duration: spec.duration,
            zone,
            outcome: spec.outcome,
            first_deployment: spec.first_deployment,
        })
    }

    /// Whether it is open at an instant, and when that changes.
    pub fn state(&self, at: Timestamp) -> WindowState {
        self.cursor(at).state(at)
    }

    /// Asks it at one instant after another.
    pub fn cursor(&self, from: Timestamp) -> Cursor<'_> {
        Cursor {
            kind: self.kind,
            spans: self.spans(from).peekable(),
        }
    }

    /// What it answers a deployment; `first`: nothing was ever deployed to its scope.
    pub fn answer(&self, now: Timestamp, first: bool) -> Answer {
        if first && self.first_deployment == FirstDeployment::Exempt {
            return Answer::allowed("a first deployment is exempt from this window");
        }
        let state = self.state(now);
        let word = match self.kind {
            WindowKind::Allow => "allow",
            WindowKind::Deny => "deny",
        };
        if state.open {
            let why = match state.changes_at {
                Some(at) => format!("the {word} window is open until {at}"),
                None => format!("the {word} window stays open"),
            };
            return Answer::allowed(why).next_at(state.changes_at);
        }
        match (self.outcome, state.changes_at) {
            (WindowOutcome::Deny, _) => Answer::denied(format!(
                "the {word} window is closed, and its outcome is deny"
            )),
            (WindowOutcome::Wait, Some(at)) => Answer::pending(
                format!("the {word} window is closed until {at}"),
                Some(at),
                "nobody: it opens by itself",
            ),
            (WindowOutcome::Wait, None) => Answer::pending(
                format!("the {word} window is closed and never opens again"),
                None,
                "an edit of the policy, or a skip",
            ),
        }
    }

    /// The spans inside, in order, that end after `from`.
    fn spans(&self, from: Timestamp) -> Spans<'_> {
        let from = to_i64(from.millis());
        let duration = to_i64(self.duration.millis());
        let starts = self.rules.iter();
        Spans {
            starts: starts
                .filter(|_| duration > 0)
                .map(|rule| Starts::new(rule, self.zone, from.saturating_sub(duration)).peekable())
                .collect(),
            duration,
            finite: self.rules.iter().all(Recurrence::is_finite),
        }
    }
}

fn to_i64(millis: u64) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}

fn to_timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// Answers at instants that never go back.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    kind: WindowKind,
    spans: Peekable<Spans<'a>>,
}

impl Cursor<'_> {
    /// Whether the window is open at `at`, which is not before the instants asked so far.
    pub fn state(&mut self, at: Timestamp) -> WindowState {
        let ended = |span: &(Timestamp, Option<Timestamp>)| span.1.is_some_and(|end| end <= at);
        while self.spans.next_if(ended).is_some() {}
        let (inside, changes_at) = match self.spans.peek() {
            Some((start, end)) if *start <= at => (true, *end),
            Some((start, _)) => (false, Some(*start)),
            None => (false, None),
        };
        WindowState {
            open: inside == (self.kind == WindowKind::Allow),
            changes_at,
        }
    }
}

/// Spans inside a window: start, and end unless it never ends.
#[derive(Debug, Clone)]
struct Spans<'a> {
    starts: Vec<Peekable<Starts<'a>>>,
    duration: i64,
    finite: bool,
}

impl Spans<'_> {
    /// The earliest start of all rules, if it is at or before `limit`.
    fn next_start(&mut self, limit: Option<i64>) -> Option<i64> {
        let heads = self.starts.iter_mut();
        let (start, rule) = heads
            .filter_map(|starts| starts.peek().copied().map(|start| (start, starts)))
            .min_by_key(|(start, _)| *start)?;
        if limit.is_some_and(|limit| start > limit) {
            return None;
        }
        rule.next();
        Some(start)
    }
}

impl Iterator for Spans<'_> {
    type Item = (Timestamp, Option<Timestamp>);

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.next_start(None)?;
        let mut end = start.saturating_add(self.duration);
        let endless = start.saturating_add(to_i64(ENDLESS.millis()));
        while let Some(further) = self.next_start(Some(end)) {
            end = further.saturating_add(self.duration);
            if !self.finite && end > endless.saturating_add(self.duration) {
                self.starts.clear();
                return Some((to_timestamp(start), None));
            }
        }
        Some((to_timestamp(start), Some(to_timestamp(end))))
    }
}

/// Instants (milliseconds) at which one rule starts, after a given one, in order.
#[derive(Debug, Clone)]
struct Starts<'a> {
    local: Peekable<Occurrences<'a>>,
    zone: Zone,
    after: i64,
    until: Option<i64>,
    /// Starts that the zone skips: they come later than their wall-clock time says, so others may
    /// come before them.
    shifted: std::collections::VecDeque<i64>,
}

impl<'a> Starts<'a> {
    fn new(rule: &'a Recurrence, zone: Zone, after: i64) -> Self {
        // No wall clock was ever a day off UTC; a skipped time is shifted by a day at most.
        let from: Local = after.div_euclid(1_000).saturating_sub(2 * 86_400);
        Self {
            local: rule.from(from).peekable(),
            zone,
            after,
            until: rule.until_utc().map(|until| until.saturating_mul(1_000)),
            shifted: std::collections::VecDeque::new(),
        }
    }

    /// The next start, whatever its time.
    fn any(&mut self) -> Option<i64> {
        while let Some(local) = self.local.peek() {
            let found = self.zone.instant(*local);
            let millis = found.seconds.saturating_mul(1_000);
            if self.shifted.front().is_some_and(|first| *first <= millis) {
                break;
            }
            self.local.next();
            if !found.shifted {
                return Some(millis);
            }
            self.shifted.push_back(millis);
        }
        self.shifted.pop_front()
    }
}

impl Iterator for Starts<'_> {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        loop {
            let start = self.any()?;
            if self.until.is_some_and(|until| start > until) {
                return None;
            }
            if start > self.after {
                return Some(start);
            }
        }
    }
}

#[cfg(test)]
mod tests;
