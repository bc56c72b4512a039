//! Time zones: wall-clock time to instants and back.
//!
//! A wall-clock time that a zone skips (daylight saving begins) takes the offset that held before;
//! one that comes twice is the first (product.md §5.2).

use chrono::{DateTime, LocalResult, NaiveDateTime, Offset, TimeZone};
use chrono_tz::Tz;

use super::recurrence::Local;

/// A time zone of the IANA database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zone(Tz);

/// What a wall-clock time is in a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since the epoch, UTC.
    pub seconds: i64,
    /// The zone skips that time: the instant reads later on the wall clock.
    pub shifted: bool,
}

/// How far back a skipped time looks for the offset before; no zone ever skipped more than a day.
const STEP: i64 = 900;
const STEPS: i64 = 100;

impl Zone {
    /// UTC.
    pub const UTC: Self = Self(Tz::UTC);

    /// By its name, as `Europe/Berlin`.
    pub fn parse(name: &str) -> Option<Self> {
        name.parse().ok().map(Self)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// The wall clock at an instant (seconds, UTC).
    pub fn local(self, seconds: i64) -> Local {
        let offset = naive(seconds).map(|at| self.0.offset_from_utc_datetime(&at).fix());
        seconds + offset.map_or(0, |offset| i64::from(offset.local_minus_utc()))
    }

    /// The instant of a wall-clock time.
    pub fn instant(self, local: Local) -> Moment {
        if let Some((earliest, _)) = self.offsets(local) {
            return Moment {
                seconds: local - earliest,
                shifted: false,
            };
        }
        let before = (1..STEPS).find_map(|step| self.offsets(local - step * STEP));
        Moment {
            seconds: local - before.map_or(0, |(_, latest)| latest),
            shifted: true,
        }
    }

    /// Seconds east of UTC at a wall-clock time: at its first and at its last coming.
    fn offsets(self, local: Local) -> Option<(i64, i64)> {
        let found = self.0.offset_from_local_datetime(&naive(local)?);
        let east = |offset: chrono_tz::TzOffset| i64::from(offset.fix().local_minus_utc());
        match found {
            LocalResult::Single(one) => Some((east(one), east(one))),
            // The larger offset is the earlier instant.
            LocalResult::Ambiguous(one, other) => {
                Some((east(one).max(east(other)), east(one).min(east(other))))
            }
            LocalResult::None => None,
        }
    }
}

fn naive(seconds: i64) -> Option<NaiveDateTime> {
    DateTime::from_timestamp(seconds, 0).map(|at| at.naive_utc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::recurrence::local_time;

    fn at(zone: &str, local: &str) -> (String, bool) {
        let zone = Zone::parse(zone).unwrap();
        let instant = zone.instant(local_time(local).unwrap());
        let text = DateTime::from_timestamp(instant.seconds, 0).unwrap();
        (text.format("%FT%TZ").to_string(), instant.shifted)
    }

    #[test]
    fn a_skipped_time_takes_the_offset_before_and_a_doubled_one_is_the_first() {
        for (zone, local, instant, shifted) in [
            (
                "Europe/Berlin",
                "2026-03-29T01:59:59",
                "2026-03-29T00:59:59Z",
                false,
            ),
            (
                "Europe/Berlin",
                "2026-03-29T02:00:00",
                "2026-03-29T01:00:00Z",
                true,
            ),
            (
                "Europe/Berlin",
                "2026-03-29T02:30:00",
                "2026-03-29T01:30:00Z",
                true,
            ),
            (
                "Europe/Berlin",
                "2026-03-29T03:00:00",
                "2026-03-29T01:00:00Z",
                false,
            ),
            (
                "Europe/Berlin",
                "2026-10-25T02:30:00",
                "2026-10-25T00:30:00Z",
                false,
            ),
            (
                "Europe/Berlin",
                "2026-10-25T03:00:00",
                "2026-10-25T02:00:00Z",
                false,
            ),
            (
                "America/New_York",
                "2026-03-08T02:15:00",
                "2026-03-08T07:15:00Z",
                true,
            ),
            (
                "America/New_York",
                "2026-11-01T01:30:00",
                "2026-11-01T05:30:00Z",
                false,
            ),
            // Half an hour only.
            (
                "Australia/Lord_Howe",
                "2026-10-04T02:15:00",
                "2026-10-03T15:45:00Z",
                true,
            ),
            (
                "Australia/Lord_Howe",
                "2026-04-05T01:45:00",
                "2026-04-04T14:45:00Z",
                false,
            ),
            // A whole day: Samoa went over the date line.
            (
                "Pacific/Apia",
                "2011-12-30T12:00:00",
                "2011-12-30T22:00:00Z",
                true,
            ),
            (
                "Asia/Kolkata",
                "2026-06-01T00:00:00",
                "2026-05-31T18:30:00Z",
                false,
            ),
        ] {
            assert_eq!(
                at(zone, local),
                (instant.to_owned(), shifted),
                "{zone} {local}"
            );
        }
    }

    #[test]
    fn the_wall_clock_reads_back() {
        let zone = Zone::parse("America/Sao_Paulo").unwrap();
        let noon = local_time("2026-07-01T12:00:00").unwrap();
        assert_eq!(zone.local(zone.instant(noon).seconds), noon);
        assert!(Zone::parse("Europe/Atlantis").is_none());
    }
}
