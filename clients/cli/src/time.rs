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

/// The time of day in UTC, `03:04:05`; `-` for 0.
pub fn clock(at_ms: u64) -> String {
    if at_ms == 0 {
        return "-".to_owned();
    }
    stamp(at_ms).get(11..19).unwrap_or("-").to_owned()
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
        (_, millis) => format!("in {}", rough(millis)),
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
        assert_eq!(clock(1_700_000_000_123), "22:13:20");
    }
}
