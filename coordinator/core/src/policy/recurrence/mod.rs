//! Recurrence rules of RFC 5545 on wall-clock time: when a window starts, before time zones.
//!
//! A rule is read by `parse`, and [`Recurrence::from`] walks its starts in order, from any instant
//! on, without counting up from DTSTART unless the rule has a COUNT. Local times are seconds since
//! 1970-01-01T00:00:00 of the wall clock, without an offset. DTSTART itself is a start only if the
//! rule matches it. Everything is bounded: a walk gives up after 400 years without a start, so a
//! rule that never matches ends.
//!
//! Not here: offsets and daylight saving (`zone`), durations (`window`).

mod calendar;
mod day;
mod parse;
mod walk;

pub use calendar::{civil, days_from_civil};
pub use parse::RuleError;
pub(in crate::policy) use parse::local_time;
pub use walk::Occurrences;

/// Seconds of the wall clock since 1970-01-01T00:00:00.
pub type Local = i64;

/// How often (FREQ).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Frequency {
    /// Every so many years.
    Yearly,
    /// Every so many months.
    Monthly,
    /// Every so many weeks.
    Weekly,
    /// Every so many days.
    Daily,
    /// Every so many hours.
    Hourly,
    /// Every so many minutes.
    Minutely,
    /// Every so many seconds.
    Secondly,
}

/// The last start that counts (UNTIL), itself included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Wall-clock time of the rule's time zone.
    Local(Local),
    /// An instant: seconds since the epoch, UTC.
    Utc(i64),
}

/// One entry of BYDAY: a weekday, and which one of its month or year.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NthDay {
    /// 0: every one; 1 is the first, -1 the last.
    pub nth: i32,
    /// 0 is Monday.
    pub weekday: i64,
}

/// A rule that was understood, with what DTSTART adds to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recurrence {
    pub(super) start: Local,
    pub(super) frequency: Frequency,
    pub(super) interval: i64,
    pub(super) count: Option<u64>,
    pub(super) until: Option<Until>,
    pub(super) months: Vec<i64>,
    pub(super) weeks: Vec<i64>,
    pub(super) year_days: Vec<i64>,
    pub(super) month_days: Vec<i64>,
    pub(super) weekdays: Vec<NthDay>,
    pub(super) hours: Vec<i64>,
    pub(super) minutes: Vec<i64>,
    pub(super) seconds: Vec<i64>,
    pub(super) positions: Vec<i64>,
    pub(super) week_start: i64,
}

impl Recurrence {
    /// Reads a rule such as `FREQ=WEEKLY;BYDAY=MO,TU;BYHOUR=9;BYMINUTE=0;BYSECOND=0`; what it leaves
    /// open comes from `start` (DTSTART).
    ///
    /// # Errors
    /// What is wrong, and at which character.
    pub fn parse(text: &str, start: Local) -> Result<Self, RuleError> {
        parse::parse(text, start)
    }

    /// Its starts at or after `from`, in order; UNTIL as an instant is left to the caller, who
    /// knows the time zone.
    pub fn from(&self, from: Local) -> Occurrences<'_> {
        Occurrences::new(self, from)
    }

    /// Whether it has an end of its own.
    pub const fn is_finite(&self) -> bool {
        self.count.is_some() || self.until.is_some()
    }

    /// Whether its starts depend on where it is counted from: an INTERVAL, or a COUNT.
    pub const fn needs_start(&self) -> bool {
        self.count.is_some() || self.interval > 1
    }

    /// The instant after which no start counts, if UNTIL is one.
    pub const fn until_utc(&self) -> Option<i64> {
        match self.until {
            Some(Until::Utc(until)) => Some(until),
            Some(Until::Local(_)) | None => None,
        }
    }
}

#[cfg(test)]
mod tests;
