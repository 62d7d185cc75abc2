//! Dates of the Gregorian calendar from milliseconds, in UTC: what an export shows and where a quota's period begins.
//! (The algorithm is Howard Hinnant's `civil_from_days` and its inverse.)

use crate::UnixMs;

pub(crate) const DAY_MS: i64 = 86_400_000;

/// Year, month (1 to 12) and day (1 to 31) of a count of days since 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

/// Days from 1970-01-01 to the first of a month.
fn days_to(year: i64, month: i64) -> i64 {
    let y = year - i64::from(month <= 2);
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

/// A time as text: `2026-11-23T11:17:09Z`.
pub fn iso(ms: UnixMs) -> String {
    let (year, month, day) = civil(ms.div_euclid(DAY_MS));
    let s = ms.rem_euclid(DAY_MS) / 1000;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// When the day that holds `ms` began, and when the next one does.
pub(crate) fn day(ms: UnixMs) -> (UnixMs, UnixMs) {
    let begin = ms.div_euclid(DAY_MS).saturating_mul(DAY_MS);
    (begin, begin.saturating_add(DAY_MS))
}

/// When the month that holds `ms` began, and when the next one does.
pub(crate) fn month(ms: UnixMs) -> (UnixMs, UnixMs) {
    let (year, month, _) = civil(ms.div_euclid(DAY_MS));
    let (y2, m2) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    (days_to(year, month).saturating_mul(DAY_MS), days_to(y2, m2).saturating_mul(DAY_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_795_432_629_123, "2026-11-23T11:17:09Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(iso(ms), text);
        }
        assert!(!iso(i64::MIN).is_empty() && !iso(i64::MAX).is_empty());
    }

    #[test]
    fn periods_meet() {
        let mut at = 0;
        for n in 0..5000 {
            let (begin, end) = month(at);
            assert_eq!(begin, at, "month {n}");
            assert_eq!(month(end - 1), (begin, end));
            assert!((28..=31).contains(&((end - begin) / DAY_MS)), "month {n}");
            at = end;
        }
        assert_eq!(day(DAY_MS * 3 + 5), (DAY_MS * 3, DAY_MS * 4));
        let (begin, end) = day(i64::MAX);
        assert!(begin <= end);
    }
}
