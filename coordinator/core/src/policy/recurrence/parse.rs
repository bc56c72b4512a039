//! Reads a recurrence rule and says where it is wrong.

use super::calendar::{civil, days_from_civil, weekday};
use super::{Frequency, Local, NthDay, Recurrence, Until};

/// A text that is no recurrence rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("character {position}: {message}")]
pub struct RuleError {
    /// Where the part that is wrong begins, in characters from 1.
    pub position: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// The longest rule that is read, in bytes.
const LONGEST: usize = 1_024;
/// The most starts that a COUNT may ask for: they are counted one by one.
const MOST_STARTS: u64 = 100_000;

/// What the parts say, before DTSTART fills the gaps.
#[derive(Default)]
struct Parts {
    frequency: Option<Frequency>,
    interval: Option<i64>,
    count: Option<u64>,
    until: Option<Until>,
    months: Vec<i64>,
    weeks: Vec<i64>,
    year_days: Vec<i64>,
    month_days: Vec<i64>,
    weekdays: Vec<NthDay>,
    hours: Vec<i64>,
    minutes: Vec<i64>,
    seconds: Vec<i64>,
    positions: Vec<i64>,
    week_start: Option<i64>,
}

pub(super) fn parse(text: &str, start: Local) -> Result<Recurrence, RuleError> {
    let wrong = |position: usize, message: String| RuleError { position, message };
    if text.len() > LONGEST {
        return Err(wrong(1, format!("longer than {LONGEST} bytes")));
    }
    let mut parts = Parts::default();
    let mut seen = Vec::new();
    let body = text.strip_prefix("RRULE:").unwrap_or(text);
    let mut position = text.chars().count() - body.chars().count() + 1;
    for part in body.trim_end_matches(';').split(';') {
        let at = position;
        position += part.chars().count() + 1;
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| wrong(at, format!("\"{part}\" is no KEY=VALUE")))?;
        let (key, value) = (key.trim().to_ascii_uppercase(), value.trim());
        if seen.contains(&key) {
            return Err(wrong(at, format!("{key} stands twice")));
        }
        parts
            .read(&key, &value.to_ascii_uppercase())
            .map_err(|message| wrong(at, message))?;
        seen.push(key);
    }
    parts.check().map_err(|message| wrong(1, message))?;
    let frequency = parts
        .frequency
        .ok_or_else(|| wrong(1, "FREQ is missing".to_owned()))?;
    Ok(parts.complete(frequency, start))
}

impl Parts {
    fn read(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "FREQ" => self.frequency = Some(frequency(value)?),
            "INTERVAL" => self.interval = Some(number(key, value, 1, 10_000)?),
            "COUNT" => {
                let most = i64::try_from(MOST_STARTS).unwrap_or(i64::MAX);
                self.count = u64::try_from(number(key, value, 1, most)?).ok();
            }
            "UNTIL" => self.until = Some(until(value)?),
            "WKST" => self.week_start = Some(day_name(value)?),
            "BYMONTH" => self.months = numbers(key, value, 1, 12, false)?,
            "BYWEEKNO" => self.weeks = numbers(key, value, 1, 53, true)?,
            "BYYEARDAY" => self.year_days = numbers(key, value, 1, 366, true)?,
            "BYMONTHDAY" => self.month_days = numbers(key, value, 1, 31, true)?,
            "BYSETPOS" => self.positions = numbers(key, value, 1, 366, true)?,
            "BYHOUR" => self.hours = numbers(key, value, 0, 23, false)?,
            "BYMINUTE" => self.minutes = numbers(key, value, 0, 59, false)?,
            "BYSECOND" => self.seconds = numbers(key, value, 0, 59, false)?,
            "BYDAY" => {
                self.weekdays = value.split(',').map(nth_day).collect::<Result<_, _>>()?;
            }
            other => {
                return Err(format!(
                    "\"{other}\" is no part of a recurrence rule: want FREQ, INTERVAL, COUNT, UNTIL, WKST or BY…"
                ));
            }
        }
        Ok(())
    }

    /// What RFC 5545 forbids in combination.
    fn check(&self) -> Result<(), String> {
        let Some(frequency) = self.frequency else {
            return Err("FREQ is missing".to_owned());
        };
        let large = matches!(frequency, Frequency::Yearly | Frequency::Monthly);
        let counted = self.weekdays.iter().any(|day| day.nth != 0);
        if self.count.is_some() && self.until.is_some() {
            return Err("COUNT and UNTIL exclude each other".to_owned());
        }
        if counted && (!large || !self.weeks.is_empty()) {
            return Err("BYDAY counts days (as in 1MO) only with FREQ=MONTHLY or YEARLY and without BYWEEKNO".to_owned());
        }
        if !self.weeks.is_empty() && frequency != Frequency::Yearly {
            return Err("BYWEEKNO needs FREQ=YEARLY".to_owned());
        }
        if !self.year_days.is_empty()
            && matches!(
                frequency,
                Frequency::Monthly | Frequency::Weekly | Frequency::Daily
            )
        {
            return Err("BYYEARDAY does not go with FREQ=MONTHLY, WEEKLY or DAILY".to_owned());
        }
        if !self.month_days.is_empty() && frequency == Frequency::Weekly {
            return Err("BYMONTHDAY does not go with FREQ=WEEKLY".to_owned());
        }
        let any_other = !(self.months.is_empty()
            && self.weeks.is_empty()
            && self.year_days.is_empty()
            && self.month_days.is_empty()
            && self.weekdays.is_empty()
            && self.hours.is_empty()
            && self.minutes.is_empty()
            && self.seconds.is_empty());
        if !self.positions.is_empty() && !any_other {
            return Err("BYSETPOS needs another BY… to pick from".to_owned());
        }
        Ok(())
    }

    /// What the rule leaves open comes from DTSTART.
    fn complete(mut self, frequency: Frequency, start: Local) -> Recurrence {
        let (day, second) = (start.div_euclid(86_400), start.rem_euclid(86_400));
        let (_, month, month_day) = civil(day);
        let no_day = self.weeks.is_empty()
            && self.year_days.is_empty()
            && self.month_days.is_empty()
            && self.weekdays.is_empty();
        if no_day {
            match frequency {
                Frequency::Yearly => {
                    if self.months.is_empty() {
                        self.months.push(month);
                    }
                    self.month_days.push(month_day);
                }
                Frequency::Monthly => self.month_days.push(month_day),
                Frequency::Weekly => self.weekdays.push(NthDay {
                    nth: 0,
                    weekday: weekday(day),
                }),
                Frequency::Daily
                | Frequency::Hourly
                | Frequency::Minutely
                | Frequency::Secondly => {}
            }
        }
        let fill = |list: &mut Vec<i64>, finer: Frequency, value: i64| {
            if list.is_empty() && frequency < finer {
                list.push(value);
            }
            list.sort_unstable();
            list.dedup();
        };
        fill(&mut self.hours, Frequency::Hourly, second / 3_600);
        fill(&mut self.minutes, Frequency::Minutely, second % 3_600 / 60);
        fill(&mut self.seconds, Frequency::Secondly, second % 60);
        Recurrence {
            start,
            frequency,
            interval: self.interval.unwrap_or(1),
            count: self.count,
            until: self.until,
            months: self.months,
            weeks: self.weeks,
            year_days: self.year_days,
            month_days: self.month_days,
            weekdays: self.weekdays,
            hours: self.hours,
            minutes: self.minutes,
            seconds: self.seconds,
            positions: self.positions,
            week_start: self.week_start.unwrap_or(0),
        }
    }
}

fn frequency(value: &str) -> Result<Frequency, String> {
    Ok(match value {
        "YEARLY" => Frequency::Yearly,
        "MONTHLY" => Frequency::Monthly,
        "WEEKLY" => Frequency::Weekly,
        "DAILY" => Frequency::Daily,
        "HOURLY" => Frequency::Hourly,
        "MINUTELY" => Frequency::Minutely,
        "SECONDLY" => Frequency::Secondly,
        other => {
            return Err(format!(
                "\"{other}\" is no FREQ: want YEARLY, MONTHLY, WEEKLY, DAILY, HOURLY, MINUTELY or SECONDLY"
            ));
        }
    })
}

fn number(key: &str, text: &str, least: i64, most: i64) -> Result<i64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let plain =
        !digits.is_empty() && digits.len() <= 9 && digits.bytes().all(|b| b.is_ascii_digit());
    let value = plain.then(|| text.parse::<i64>().ok()).flatten();
    value
        .filter(|value| (least..=most).contains(value))
        .ok_or_else(|| format!("{key}={text}: want a whole number from {least} to {most}"))
}

fn numbers(
    key: &str,
    text: &str,
    least: i64,
    most: i64,
    from_end: bool,
) -> Result<Vec<i64>, String> {
    let one = |item: &str| {
        let item = item.trim();
        match item.strip_prefix('-').filter(|_| from_end) {
            Some(positive) => number(key, positive, least, most).map(|value| -value),
            None => number(key, item, least, most),
        }
    };
    text.split(',').map(one).collect()
}

fn day_name(text: &str) -> Result<i64, String> {
    let names = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"];
    (0_i64..)
        .zip(names)
        .find(|(_, name)| *name == text)
        .map(|(day, _)| day)
        .ok_or_else(|| format!("\"{text}\" is no day: want MO, TU, WE, TH, FR, SA or SU"))
}

fn nth_day(text: &str) -> Result<NthDay, String> {
    let text = text.trim();
    let letters = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-' || c == '+');
    let weekday = day_name(letters)?;
    let count = &text[..text.len() - letters.len()];
    let nth = match count {
        "" => 0,
        count => {
            let sign = if count.starts_with('-') { -1 } else { 1 };
            let digits = count.strip_prefix(['+', '-']).unwrap_or(count);
            sign * number("BYDAY", digits, 1, 53)?
        }
    };
    let nth = i32::try_from(nth).map_err(|error| error.to_string())?;
    Ok(NthDay { nth, weekday })
}

/// `20261231T235959` (wall clock) or `20261231T235959Z`.
fn until(text: &str) -> Result<Until, String> {
    let wrong = || {
        format!(
            "UNTIL={text}: want a date with a time, as 20261231T235959 (wall clock) or 20261231T235959Z"
        )
    };
    let (digits, utc) = match text.strip_suffix('Z') {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    let compact: String = digits.chars().filter(|c| *c != 'T').collect();
    if digits.len() != 15 || digits.as_bytes().get(8) != Some(&b'T') {
        return Err(wrong());
    }
    let seconds = from_digits(&compact).ok_or_else(wrong)?;
    Ok(if utc {
        Until::Utc(seconds)
    } else {
        Until::Local(seconds)
    })
}

/// `2026-01-05T09:00:00` as people write DTSTART; `20260105T090000` too.
pub(in crate::policy) fn local_time(text: &str) -> Option<Local> {
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    let known = matches!(
        shape.as_str(),
        "0000-00-00T00:00:00" | "0000-00-00 00:00:00" | "0000-00-00T00:00" | "00000000T000000"
    );
    let mut digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if digits.len() == 12 {
        digits.push_str("00");
    }
    known.then(|| from_digits(&digits)).flatten()
}

/// Fourteen digits: year, month, day, hour, minute, second.
fn from_digits(digits: &str) -> Option<Local> {
    if digits.len() != 14 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let at = |from: usize, to: usize| digits.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (at(0, 4)?, at(4, 6)?, at(6, 8)?);
    let (hour, minute, second) = (at(8, 10)?, at(10, 12)?, at(12, 14)?);
    if !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 || year < 1 {
        return None;
    }
    let days = days_from_civil(year, month, day);
    (day > 0 && civil(days) == (year, month, day))
        .then_some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}
