//! Open time: the clock of a rollout runs only while every window is open and nothing stops it
//! (product.md §5.5).

use std::iter::Peekable;

use tidegate_shared::time::{Span, Timestamp};

use crate::policy::window::{Cursor, Window};

/// So many edges without an open instant, and there is none that matters any more.
const MOST_EDGES: u32 = 50_000;
/// Nor is one looked for further ahead than that.
const HORIZON: Span = Span::from_days(30 * 366);

/// A span in which the clock stands: a freeze or a pause. No end: nobody knows it yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// From here on.
    pub from: Timestamp,
    /// The clock runs again here.
    pub until: Option<Timestamp>,
}

/// Everything that has to be open at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Openings<'a> {
    /// Windows; all have to be open.
    pub windows: &'a [Window],
    /// Freezes and pauses; none may hold.
    pub stops: &'a [Stop],
}

impl<'a> Openings<'a> {
    /// Open spans from an instant on, in order: from, and to unless it never closes again.
    pub fn spans(self, from: Timestamp) -> OpenSpans<'a> {
        OpenSpans {
            cursors: self.windows.iter().map(|w| w.cursor(from)).collect(),
            stops: self.stops,
            at: Some(from),
        }
    }

    /// The first open instant at which the open time since `from` reaches `open`; none: never.
    pub fn reach(self, from: Timestamp, open: Span) -> Option<Timestamp> {
        Walk::new(self, from).reach(open)
    }

    /// The open time between two instants.
    pub fn between(self, from: Timestamp, to: Timestamp) -> Span {
        let mut open = Span::ZERO;
        for (start, end) in self.spans(from) {
            if start >= to {
                break;
            }
            let end = end.map_or(to, |end| end.min(to));
            open = open + end.since(start);
        }
        open
    }
}

/// Open spans, one after another.
#[derive(Debug, Clone)]
pub struct OpenSpans<'a> {
    cursors: Vec<Cursor<'a>>,
    stops: &'a [Stop],
    /// Where the next one is looked for; none: there is none any more.
    at: Option<Timestamp>,
}

impl OpenSpans<'_> {
    /// Whether everything is open at `at`, and until when that is certain.
    fn state(&mut self, at: Timestamp) -> (bool, Option<Timestamp>) {
        let mut reopens = Some(at);
        let mut closes: Option<Timestamp> = None;
        let mut see = |open: bool, changes_at: Option<Timestamp>| match (open, changes_at) {
            (true, Some(change)) => {
                closes = Some(closes.map_or(change, |closes| closes.min(change)));
            }
            (true, None) => {}
            (false, change) => {
                reopens = reopens.and_then(|reopens| change.map(|c| c.max(reopens)));
            }
        };
        for cursor in &mut self.cursors {
            let state = cursor.state(at);
            see(state.open, state.changes_at);
        }
        for stop in self.stops {
            if at < stop.from {
                see(true, Some(stop.from));
            } else if stop.until.is_none_or(|until| at < until) {
                see(false, stop.until);
            }
        }
        if reopens == Some(at) {
            (true, closes)
        } else {
            (false, reopens)
        }
    }
}

impl Iterator for OpenSpans<'_> {
    type Item = (Timestamp, Option<Timestamp>);

    fn next(&mut self) -> Option<Self::Item> {
        let mut at = self.at?;
        let horizon = at + HORIZON;
        for _ in 0..MOST_EDGES {
            let (open, change) = self.state(at);
            if open {
                // Two edges that meet (one window closes as another edge passes) are told apart
                // by asking again at the edge.
                self.at = change;
                return Some((at, change));
            }
            match change.filter(|change| *change <= horizon) {
                Some(change) => at = change,
                None => break,
            }
        }
        self.at = None;
        None
    }
}

/// Goes forward over open time; asked for longer and longer spans from one start.
#[derive(Debug, Clone)]
pub struct Walk<'a> {
    spans: Peekable<OpenSpans<'a>>,
    /// Open time before the present span.
    before: Span,
}

impl<'a> Walk<'a> {
    /// Begins at an instant.
    pub fn new(openings: Openings<'a>, from: Timestamp) -> Self {
        Self {
            spans: openings.spans(from).peekable(),
            before: Span::ZERO,
        }
    }

    /// The first open instant at which the open time since the start reaches `open`, which is not
    /// less than what was asked before; none: never.
    pub fn reach(&mut self, open: Span) -> Option<Timestamp> {
        loop {
            let (start, end) = *self.spans.peek()?;
            let missing = open.saturating_sub(self.before);
            let length = end.map(|end| end.since(start));
            match length {
                // At its very end it is closed: the next open instant counts.
                Some(length) if missing >= length => {
                    self.before = self.before + length;
                    self.spans.next();
                }
                Some(_) | None => return Some(start + missing),
            }
        }
    }
}
