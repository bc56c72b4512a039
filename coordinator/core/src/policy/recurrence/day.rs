//! Whether a rule allows a day: every BYxxx part that speaks of days.

use super::calendar::{civil, days_from_civil, first_week, month_length, weekday, year_length};
use super::{Frequency, Recurrence};

impl Recurrence {
    /// Whether every part that speaks of days allows this one.
    pub(super) fn allows_day(&self, days: i64) -> bool {
        let (year, month, day) = civil(days);
        self.allows_month(month)
            && allows(&self.month_days, day, day - month_length(year, month) - 1)
            && self.allows_year_day(days, year)
            && self.allows_week(days, year)
            && self.allows_weekday(days, year, month, day)
    }

    /// Whether BYMONTH allows a month.
    pub(super) fn allows_month(&self, month: i64) -> bool {
        self.months.is_empty() || self.months.contains(&month)
    }

    fn allows_year_day(&self, days: i64, year: i64) -> bool {
        if self.year_days.is_empty() {
            return true;
        }
        let position = days - days_from_civil(year, 1, 1) + 1;
        allows(&self.year_days, position, position - year_length(year) - 1)
    }

    fn allows_week(&self, days: i64, year: i64) -> bool {
        if self.weeks.is_empty() {
            return true;
        }
        // The first days of January may belong to the last week of the year before, the last ones
        // of December to week 1 of the next.
        let week_year = if days < first_week(year, self.week_start) {
            year - 1
        } else if days >= first_week(year + 1, self.week_start) {
            year + 1
        } else {
            year
        };
        let first = first_week(week_year, self.week_start);
        let weeks = (first_week(week_year + 1, self.week_start) - first) / 7;
        let week = (days - first) / 7 + 1;
        allows(&self.weeks, week, week - weeks - 1)
    }

    fn allows_weekday(&self, days: i64, year: i64, month: i64, day: i64) -> bool {
        if self.weekdays.is_empty() {
            return true;
        }
        let today = weekday(days);
        let by_month = self.frequency == Frequency::Monthly || !self.months.is_empty();
        let (position, length) = if by_month {
            (day, month_length(year, month))
        } else {
            (days - days_from_civil(year, 1, 1) + 1, year_length(year))
        };
        let nth = (position - 1) / 7 + 1;
        let nth_from_end = -((length - position) / 7 + 1);
        self.weekdays.iter().any(|wanted| {
            let from = i64::from(wanted.nth);
            wanted.weekday == today && (from == 0 || from == nth || from == nth_from_end)
        })
    }
}

/// Whether a list is empty or has a position, counted from the start or from the end.
fn allows(list: &[i64], from_start: i64, from_end: i64) -> bool {
    list.is_empty() || list.contains(&from_start) || list.contains(&from_end)
}
