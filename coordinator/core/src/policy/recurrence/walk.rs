//! The starts of a rule, one after another.

use std::collections::VecDeque;

use super::calendar::{civil, days_from_civil, month_length, week_of, year_length};
use super::{Frequency, Local, Recurrence, Until};

const DAY: i64 = 86_400;
/// Without a start for so long, a rule has none any more. The calendar repeats after 400 years.
const HORIZON_DAYS: i64 = 146_097;
/// The last year that is looked at.
const LAST_DAY: i64 = days_from_civil(9_999, 12, 31);

/// Walks the starts of a rule in order of wall-clock time.
#[derive(Debug, Clone)]
pub struct Occurrences<'a> {
    rule: &'a Recurrence,
    from: Local,
    /// The next period (year, month, week or day), counted from the one of DTSTART in periods.
    period: i64,
    /// Starts of the present period that are still to come.
    ready: VecDeque<Local>,
    /// How many starts COUNT still allows.
    left: Option<u64>,
    /// The day on which it gives up unless it finds a start.
    give_up: i64,
}

impl<'a> Occurrences<'a> {
    pub(super) fn new(rule: &'a Recurrence, from: Local) -> Self {
        let first_day = rule.start.max(from).div_euclid(DAY);
        // A COUNT has to be counted from DTSTART; everything else can be entered anywhere.
        let period = match rule.count {
            Some(_) => 0,
            None => {
                let period = rule.period_of(first_day);
                period - period.rem_euclid(rule.period_interval())
            }
        };
        let entered = match rule.count {
            Some(_) => rule.start.div_euclid(DAY),
            None => first_day,
        };
        Self {
            rule,
            from: from.max(rule.start),
            period,
            ready: VecDeque::new(),
            left: rule.count,
            give_up: entered.saturating_add(HORIZON_DAYS),
        }
    }

    /// Fills `ready` with the starts of the next period; false once there is none.
    fn fill(&mut self) -> bool {
        let (first, length) = self.rule.days_of(self.period);
        if first > self.give_up.min(LAST_DAY) {
            return false;
        }
        self.period = self.period.saturating_add(self.rule.period_interval());
        self.rule.starts_in(first, length, &mut self.ready);
        if self.ready.back().is_some() {
            self.give_up = first.saturating_add(length).saturating_add(HORIZON_DAYS);
        }
        true
    }
}

impl Iterator for Occurrences<'_> {
    type Item = Local;

    fn next(&mut self) -> Option<Local> {
        loop {
            let Some(start) = self.ready.pop_front() else {
                if !self.fill() {
                    return None;
                }
                continue;
            };
            if start < self.rule.start {
                continue;
            }
            if let Some(Until::Local(until)) = self.rule.until
                && start > until
            {
                return None;
            }
            if let Some(left) = &mut self.left {
                *left = left.checked_sub(1)?;
            }
            if start >= self.from {
                return Some(start);
            }
        }
    }
}

impl Recurrence {
    /// The period that a day is in, counted from the one of DTSTART.
    fn period_of(&self, day: i64) -> i64 {
        let start_day = self.start.div_euclid(DAY);
        let (year, month, _) = civil(day);
        let (start_year, start_month, _) = civil(start_day);
        match self.frequency {
            Frequency::Yearly => year - start_year,
            Frequency::Monthly => (year - start_year) * 12 + month - start_month,
            Frequency::Weekly => {
                (week_of(day, self.week_start) - week_of(start_day, self.week_start)) / 7
            }
            Frequency::Daily | Frequency::Hourly | Frequency::Minutely | Frequency::Secondly => {
                day - start_day
            }
        }
    }

    /// Every how many periods it is looked at; below a day, the interval is counted within.
    const fn period_interval(&self) -> i64 {
        match self.frequency {
            Frequency::Yearly | Frequency::Monthly | Frequency::Weekly | Frequency::Daily => {
                self.interval
            }
            Frequency::Hourly | Frequency::Minutely | Frequency::Secondly => 1,
        }
    }

    /// First day and number of days of a period.
    fn days_of(&self, period: i64) -> (i64, i64) {
        let start_day = self.start.div_euclid(DAY);
        let (year, month, _) = civil(start_day);
        match self.frequency {
            Frequency::Yearly => {
                let year = year.saturating_add(period).min(10_000);
                (days_from_civil(year, 1, 1), year_length(year))
            }
            Frequency::Monthly => {
                let months = (year * 12 + month - 1).saturating_add(period).min(120_000);
                let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
                (days_from_civil(year, month, 1), month_length(year, month))
            }
            Frequency::Weekly => {
                let week = week_of(start_day, self.week_start);
                (week.saturating_add(period.saturating_mul(7)), 7)
            }
            Frequency::Daily | Frequency::Hourly | Frequency::Minutely | Frequency::Secondly => {
                (start_day.saturating_add(period), 1)
            }
        }
    }

    fn starts_in(&self, first: i64, length: i64, into: &mut VecDeque<Local>) {
        let days = (first..first.saturating_add(length)).filter(|day| self.allows_day(*day));
        match self.frequency {
            Frequency::Yearly | Frequency::Monthly | Frequency::Weekly | Frequency::Daily => {
                let mut set = Vec::new();
                for day in days {
                    self.times(|second| set.push(day * DAY + second));
                }
                into.extend(self.chosen(&set));
            }
            Frequency::Hourly | Frequency::Minutely | Frequency::Secondly => {
                for day in days {
                    self.starts_within(day, into);
                }
            }
        }
    }

    /// Every combination of BYHOUR, BYMINUTE and BYSECOND, in order.
    fn times(&self, mut found: impl FnMut(i64)) {
        for hour in &self.hours {
            for minute in &self.minutes {
                for second in &self.seconds {
                    found(hour * 3_600 + minute * 60 + second);
                }
            }
        }
    }

    /// Below a day: every hour, minute or second that INTERVAL reaches from DTSTART is a period.
    fn starts_within(&self, day: i64, into: &mut VecDeque<Local>) {
        let length = match self.frequency {
            Frequency::Minutely => 60,
            Frequency::Secondly => 1,
            Frequency::Hourly
            | Frequency::Yearly
            | Frequency::Monthly
            | Frequency::Weekly
            | Frequency::Daily => 3_600,
        };
        let origin = self.start.div_euclid(length);
        let first = (day * DAY).div_euclid(length);
        let last = (day * DAY + DAY - 1).div_euclid(length);
        let skipped = (origin - first).rem_euclid(self.interval);
        let mut period = first.saturating_add(skipped);
        while period <= last {
            let second_of_day = period * length - day * DAY;
            let (hour, rest) = (second_of_day / 3_600, second_of_day % 3_600);
            let (minute, second) = (rest / 60, rest % 60);
            let among = |list: &[i64], value| list.is_empty() || list.contains(&value);
            let mut set = Vec::new();
            let mut add = |minute: i64, second: i64| {
                set.push(day * DAY + hour * 3_600 + minute * 60 + second);
            };
            if among(&self.hours, hour) {
                match length {
                    3_600 => {
                        for minute in &self.minutes {
                            self.seconds.iter().for_each(|second| add(*minute, *second));
                        }
                    }
                    60 if among(&self.minutes, minute) => {
                        self.seconds.iter().for_each(|second| add(minute, *second));
                    }
                    1 if among(&self.minutes, minute) && among(&self.seconds, second) => {
                        add(minute, second);
                    }
                    _ => {}
                }
            }
            into.extend(self.chosen(&set));
            period = period.saturating_add(self.interval);
        }
    }

    /// BYSETPOS picks from the set of one period.
    fn chosen(&self, set: &[Local]) -> Vec<Local> {
        if self.positions.is_empty() {
            return set.to_vec();
        }
        let length = i64::try_from(set.len()).unwrap_or(i64::MAX);
        let wanted = |index: usize| {
            let position = i64::try_from(index).unwrap_or(i64::MAX).saturating_add(1);
            self.positions.contains(&position) || self.positions.contains(&(position - length - 1))
        };
        let all = set.iter().enumerate();
        all.filter(|(index, _)| wanted(*index))
            .map(|(_, start)| *start)
            .collect()
    }
}
