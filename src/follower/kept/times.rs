//! What the folders of [`kept`](super) are named after: the second in which a sync began to keep something.

use std::collections::BTreeSet;

use crate::sys::time::{SystemTime, UNIX_EPOCH};

/// More syncs than this within one second keep nothing.
const SYNCS_IN_A_SECOND_MAX: u32 = 99;

const SECONDS_OF_A_DAY: u64 = 86_400;

/// A name for a sync that begins now. After each second's first one they have a number.
pub(super) fn new_time(now: SystemTime, times: &BTreeSet<String>) -> Option<String> {
    let time = shown(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    let numbered = (2..=SYNCS_IN_A_SECOND_MAX).map(|number| format!("{time}-{number:02}"));
    std::iter::once(time.clone()).chain(numbered).find(|name| !times.contains(name))
}

/// Seconds since 1970, UTC, as `2026-11-26T21:30:00Z` without colons.
pub(in crate::follower) fn shown(seconds: u64) -> String {
    let (days, second) = (seconds / SECONDS_OF_A_DAY, seconds % SECONDS_OF_A_DAY);
    // The days of the civil calendar, in years that begin in March (H. Hinnant, "chrono-compatible low-level date algorithms").
    let (era, of_era) = ((days + 719_468) / 146_097, (days + 719_468) % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let (month, day) = ((5 * of_year + 2) / 153, of_year - (153 * ((5 * of_year + 2) / 153) + 2) / 5 + 1);
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + later;
    format!("{year:04}-{month:02}-{day:02}T{:02}{:02}{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// The other way; `None` if it is no such name.
pub(in crate::follower) fn seconds_of(name: &str) -> Option<u64> {
    let time = name.get(..18)?;
    if name.len() > 18 && !(name[18..].starts_with('-') && name[19..].bytes().all(|digit| digit.is_ascii_digit())) {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = time.get(from..to)?;
        digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse::<u64>().ok())?
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(13, 15)?, number(15, 17)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 59
    {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_era = (year % 400) * 365 + year % 400 / 4 - year % 400 / 100 + (153 * month + 2) / 5 + day - 1;
    let days = year / 400 * 146_097 + of_era - 719_468;
    let seconds = days * SECONDS_OF_A_DAY + hour * 3600 + minute * 60 + second;
    (shown(seconds) == time).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_named_in_order_and_read_again() {
        for (seconds, name) in
            [(0, "1970-01-01T000000Z"), (951_782_400, "2000-02-29T000000Z"), (1_795_728_600, "2026-11-26T213000Z")]
        {
            assert_eq!((shown(seconds).as_str(), seconds_of(name)), (name, Some(seconds)));
        }
        for other in
            ["2026-02-30T000000Z", "2026-11-26T213000", "incoming", "2026-11-26T213000Z-x", "2026-11-26T21300éZ"]
        {
            assert_eq!(seconds_of(other), None, "{other}");
        }
        let mut times = BTreeSet::new();
        let mut names = Vec::new();
        while let Some(name) = new_time(UNIX_EPOCH, &times) {
            assert_eq!(seconds_of(&name), Some(0));
            times.insert(name.clone());
            names.push(name);
        }
        assert!(names.is_sorted() && names.len() == 99, "two syncs in one second were one");
    }
}
