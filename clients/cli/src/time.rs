//! The only file of the command line that reads the wall clock, and how times are told to people.

use std::time::{SystemTime, UNIX_EPOCH};

use tidegate_shared::time::{Span, Timestamp};

/// Wall time in milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

/// `2026-01-02T03:04:05.678Z`; `-` for 0.
pub fn stamp(at_ms: u64) -> String {
    if at_ms == 0 {
        return "-".to_owned();
    }
    Timestamp::from_millis(at_ms).to_string()
}

/// The time of day in UTC, `03:04:05Z`; `-` for 0.
pub fn clock(at_ms: u64) -> String {
    if at_ms == 0 {
        return "-".to_owned();
    }
    let text = stamp(at_ms);
    text.get(11..19)
        .map_or_else(|| "-".to_owned(), |clock| format!("{clock}Z"))
}

/// How old something is, in whole seconds: `3m10s`, `0s`.
pub fn age(at_ms: u64, now_ms: u64) -> String {
    let millis = now_ms.saturating_sub(at_ms);
    match (at_ms, millis) {
        (0, _) => "-".to_owned(),
        (_, 0..1_000) => "0s".to_owned(),
        _ => rough(millis),
    }
}

/// The same text with each instant of it, `2026-01-02T03:04:05.678Z`, as people tell it:
/// `03:04:05Z (in 7s)`, and with the date where that is another day's.
pub fn told(text: &str, now_ms: u64) -> String {
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        match leading_stamp(rest) {
            Some((length, at_ms)) => {
                told.push_str(&instant(at_ms, now_ms));
                rest = &rest[length..];
            }
            None => {
                let mut characters = rest.chars();
                told.extend(characters.next());
                rest = characters.as_str();
            }
        }
    }
    told
}

/// One instant: when, and how far from now.
pub fn instant(at_ms: u64, now_ms: u64) -> String {
    /// Times of day that are further away are told with their date.
    const NEAR_MS: u64 = 12 * 3_600_000;
    if at_ms == 0 {
        return "-".to_owned();
    }
    let when = if at_ms.abs_diff(now_ms) < NEAR_MS {
        clock(at_ms)
    } else {
        let text = stamp(at_ms);
        format!(
            "{} {}Z",
            text.get(..10).unwrap_or_default(),
            text.get(11..16).unwrap_or_default()
        )
    };
    let how_far = if at_ms > now_ms {
        until(at_ms, now_ms)
    } else {
        ago(at_ms, now_ms)
    };
    format!("{when} ({how_far})")
}

/// A time in UTC as people write it, `2026-01-02` or `2026-01-02T03:04:05Z`, in milliseconds since
/// 1970; none: it is none.
pub fn parse_utc(text: &str) -> Option<u64> {
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        _ => text.to_owned(),
    };
    let (length, at_ms) = leading_stamp(&whole)?;
    (length == whole.len()).then_some(at_ms)
}

/// The instant that the text begins with, and how many bytes it takes.
fn leading_stamp(text: &str) -> Option<(usize, u64)> {
    const FORM: &[u8] = b"dddd-dd-ddTdd:dd:dd";
    let bytes = text.as_bytes();
    let fits = bytes.len() > FORM.len()
        && FORM.iter().zip(bytes).all(|(wanted, found)| match wanted {
            b'd' => found.is_ascii_digit(),
            other => other == found,
        });
    if !fits {
        return None;
    }
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (fraction, end) = match bytes[FORM.len()] {
        b'.' => (number(20..23)?, 23),
        _ => (0, 19),
    };
    if bytes.get(end) != Some(&b'Z') {
        return None;
    }
    let days = days_since_epoch(number(0..4)?, number(5..7)?, number(8..10)?)?;
    let seconds = number(11..13)? * 3_600 + number(14..16)? * 60 + number(17..19)?;
    Some((end + 1, (days * 86_400 + seconds) * 1_000 + fraction))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar; `None` before it or for no date.
fn days_since_epoch(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years that begin in March end with the leap day.
    let year = if month <= 2 {
        year.checked_sub(1)?
    } else {
        year
    };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    days.checked_sub(719_468)
}

/// A length of time in the two largest units that matter: `2h5m`, `3m10s`, `7s`, `400ms`.
pub fn rough(millis: u64) -> String {
    let rounded = match millis {
        0..1_000 => millis,
        1_000..60_000 => millis - millis % 1_000,
        60_000..3_600_000 => millis - millis % 1_000,
        3_600_000..86_400_000 => millis - millis % 60_000,
        _ => millis - millis % 3_600_000,
    };
    Span::from_millis(rounded).to_string()
}

/// How long ago something was: `3m10s ago`, `now`, `-` for 0.
pub fn ago(at_ms: u64, now_ms: u64) -> String {
    match (at_ms, now_ms.saturating_sub(at_ms)) {
        (0, _) => "-".to_owned(),
        (_, 0..1_000) => "now".to_owned(),
        (_, millis) => format!("{} ago", rough(millis)),
    }
}

/// How long until something is: `in 3m10s`, `due`, `-` for 0.
pub fn until(at_ms: u64, now_ms: u64) -> String {
    match (at_ms, at_ms.saturating_sub(now_ms)) {
        (0, _) => "-".to_owned(),
        (_, 0) => "due".to_owned(),
        // Rounded up: what is announced for in 1 s is not over before.
        (_, millis) => format!("in {}", rough(millis.div_ceil(1_000) * 1_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_two_units() {
        assert_eq!(rough(400), "400ms");
        assert_eq!(rough(7_900), "7s");
        assert_eq!(rough(190_400), "3m10s");
        assert_eq!(rough(7_530_000), "2h5m");
        assert_eq!(rough(90_000_000), "1d1h");
        assert_eq!(ago(0, 5), "-");
        assert_eq!(ago(5_000, 5_900), "now");
        assert_eq!(ago(5_000, 15_900), "10s ago");
        assert_eq!(until(5_000, 6_000), "due");
        assert_eq!(until(65_000, 5_000), "in 1m");
        assert_eq!(until(6_001, 5_000), "in 2s");
        assert_eq!(clock(1_700_000_000_123), "22:13:20Z");
        assert_eq!(age(5_000, 5_400), "0s");
    }

    #[test]
    fn instants_in_texts_are_told_as_distances() {
        let at = 1_700_000_000_123;
        for (at, length) in [(at, 24), (951_782_400_000, 24), (1_709_164_799_999, 24)] {
            assert_eq!(leading_stamp(&stamp(at)), Some((length, at)));
        }
        assert_eq!(
            told(&format!("the bake, until {}; über", stamp(at)), at - 7_000),
            "the bake, until 22:13:20Z (in 7s); über"
        );
        assert_eq!(
            told("since 2023-11-14T22:13:20Z.", at + 2_000),
            "since 22:13:20Z (2s ago)."
        );
        assert_eq!(
            told(&stamp(at + 259_200_000), at),
            "2023-11-17 22:13Z (in 3d)"
        );
        for text in [
            "2023-11-14T22:13",
            "2023-13-14T22:13:20Z",
            "2023-11-14T22:13:20",
        ] {
            assert_eq!(told(text, at), text);
        }
    }
}
