//! The proleptic Gregorian calendar on whole days since 1970-01-01.
//!
//! The two conversions are Howard Hinnant's closed forms (chrono-compatible low-level date
//! algorithms); they hold for every year that an `i64` of seconds can reach.

/// Year, month 1 to 12, day 1 to 31 of a day.
pub const fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// The day of a date; `month` 1 to 12, `day` from 1.
pub const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// 0 is Monday.
pub const fn weekday(days: i64) -> i64 {
    (days + 3).rem_euclid(7)
}

/// Days of a month.
pub const fn month_length(year: i64, month: i64) -> i64 {
    let (next_year, next_month) = if month == 12 {
        (year + 1, 1)
    } else {
        (year, month + 1)
    };
    days_from_civil(next_year, next_month, 1) - days_from_civil(year, month, 1)
}

/// Days of a year.
pub const fn year_length(year: i64) -> i64 {
    days_from_civil(year + 1, 1, 1) - days_from_civil(year, 1, 1)
}

/// The first day of week 1 of a year: the first week, beginning at `week_start`, with at least four
/// days in that year.
pub const fn first_week(year: i64, week_start: i64) -> i64 {
    week_of(days_from_civil(year, 1, 4), week_start)
}

/// The first day of the week that holds a day.
pub const fn week_of(days: i64, week_start: i64) -> i64 {
    days - (weekday(days) - week_start).rem_euclid(7)
}
