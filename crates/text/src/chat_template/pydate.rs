//! `strftime_now`: Python's date formatting in the C locale, of a time that is passed in.

use std::fmt::Write;

use minijinja::value::Object;

/// A civil date and time, without a zone: the caller's local time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime {
    year: i32,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Object for DateTime {}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

fn leap(year: i32) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn month_days(year: i32, month: u8) -> u8 {
    match month {
        2 => 28 + u8::from(leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl DateTime {
    /// A date and time; `None` where there is no such day or time. Years 1 to 9999.
    pub fn new(year: i32, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> Option<Self> {
        let date = (1..=9999).contains(&year) && (1..=12).contains(&month) && day >= 1;
        let valid = date && day <= month_days(year, month) && hour < 24 && minute < 60 && second < 60;
        valid.then_some(Self { year, month, day, hour, minute, second })
    }

    /// Reads `2024-07-26`, `2024-07-26T15:04`, `2024-07-26T15:04:05` (a space for the `T` too, and `Z`, a fraction or
    /// an offset behind it, which are not looked at: the text is taken as local time).
    pub fn parse(iso: &str) -> Option<Self> {
        let number = |range: std::ops::Range<usize>| -> Option<u32> {
            let digits = iso.get(range)?;
            if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
        };
        let byte = |i: usize| iso.as_bytes().get(i).copied();
        if byte(4) != Some(b'-') || byte(7) != Some(b'-') {
            return None;
        }
        let (mut hour, mut minute, mut second) = (0, 0, 0);
        if iso.len() > 10 {
            if !matches!(byte(10), Some(b'T' | b't' | b' ')) || byte(13) != Some(b':') {
                return None;
            }
            (hour, minute) = (number(11..13)?, number(14..16)?);
            let mut rest = 16;
            if byte(16) == Some(b':') {
                second = number(17..19)?;
                rest = 19;
            }
            if !matches!(byte(rest), None | Some(b'Z' | b'z' | b'.' | b'+' | b'-')) {
                return None;
            }
        }
        let (month, day) = (number(5..7)?, number(8..10)?);
        Self::new(number(0..4)? as i32, month as u8, day as u8, hour as u8, minute as u8, second as u8)
    }

    /// The UTC time of seconds since 1970.
    pub fn from_unix(seconds: i64) -> Option<Self> {
        let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400) as u32);
        // Days to civil, eras of 400 years from 0000-03-01 (Howard Hinnant, "chrono-compatible date algorithms").
        let z = days.checked_add(719_468)?;
        let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let day = (doy - (153 * mp + 2) / 5 + 1) as u8;
        let month = if mp < 10 { mp + 3 } else { mp - 9 } as u8;
        let year = i32::try_from(yoe + era * 400 + i64::from(month <= 2)).ok()?;
        Self::new(year, month, day, (time / 3600) as u8, (time / 60 % 60) as u8, (time % 60) as u8)
    }

    fn day_of_year(self) -> u32 {
        (1..self.month).map(|m| u32::from(month_days(self.year, m))).sum::<u32>() + u32::from(self.day)
    }

    /// 0 is Monday.
    fn weekday(self) -> usize {
        let y = self.year - 1;
        ((y + y / 4 - y / 100 + y / 400) as u32 + self.day_of_year() - 1) as usize % 7
    }

    /// Formats as Python does on Linux in the C locale, `%-d` and the like too.
    ///
    /// # Errors
    /// A directive that is not known here (`%Z`, `%z`, `%s`: there is no zone; `%c` and other rare ones), by name.
    pub fn strftime(self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next().unwrap_or('%');
            let mut flag = None;
            if matches!(directive, '-' | '_' | '0') {
                flag = Some(directive);
                directive = chars.next().unwrap_or('%');
            }
            self.directive(directive, flag, &mut out)?;
            if out.len() > 10_000 {
                return Err("strftime_now: the format is too long".into());
            }
        }
        Ok(out)
    }

    fn directive(self, directive: char, flag: Option<char>, out: &mut String) -> Result<(), String> {
        let mut number = |n: i64, width: usize, pad: char| {
            let pad = match flag {
                Some('-') => None,
                Some('_') => Some(' '),
                Some(_) => Some('0'),
                None => Some(pad),
            };
            let text = n.to_string();
            out.extend(
                pad.into_iter().flat_map(|p| std::iter::repeat_n(p, width.saturating_sub(text.len()))),
            );
            out.push_str(&text);
        };
        let hour12 = i64::from((self.hour + 11) % 12 + 1);
        let (month, weekday) = (MONTHS[usize::from(self.month) - 1], DAYS[self.weekday()]);
        match directive {
            'Y' => number(i64::from(self.year), 0, '0'),
            'y' => number(i64::from(self.year % 100), 2, '0'),
            'C' => number(i64::from(self.year / 100), 2, '0'),
            'm' => number(i64::from(self.month), 2, '0'),
            'd' => number(i64::from(self.day), 2, '0'),
            'e' => number(i64::from(self.day), 2, ' '),
            'H' => number(i64::from(self.hour), 2, '0'),
            'k' => number(i64::from(self.hour), 2, ' '),
            'I' => number(hour12, 2, '0'),
            'l' => number(hour12, 2, ' '),
            'M' => number(i64::from(self.minute), 2, '0'),
            'S' => number(i64::from(self.second), 2, '0'),
            'f' => number(0, 6, '0'),
            'j' => number(i64::from(self.day_of_year()), 3, '0'),
            'u' => number(self.weekday() as i64 + 1, 1, '0'),
            'w' => number((self.weekday() as i64 + 1) % 7, 1, '0'),
            'B' => out.push_str(month),
            'b' | 'h' => out.push_str(&month[..3]),
            'A' => out.push_str(weekday),
            'a' => out.push_str(&weekday[..3]),
            'p' => out.push_str(if self.hour < 12 { "AM" } else { "PM" }),
            'P' => out.push_str(if self.hour < 12 { "am" } else { "pm" }),
            'F' => out.push_str(&self.strftime("%Y-%m-%d")?),
            'T' | 'X' => out.push_str(&self.strftime("%H:%M:%S")?),
            'R' => out.push_str(&self.strftime("%H:%M")?),
            'r' => out.push_str(&self.strftime("%I:%M:%S %p")?),
            'D' | 'x' => out.push_str(&self.strftime("%m/%d/%y")?),
            'n' => out.push('\n'),
            't' => out.push('\t'),
            '%' => out.push('%'),
            other => {
                let mut what = String::new();
                let _ = write!(what, "strftime_now: the directive %{other} is not supported");
                return Err(what);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_python_formats() {
        let t = DateTime::parse("2024-07-05T15:04:09Z").unwrap();
        let all = t
            .strftime("%d %b %Y|%Y-%m-%d|%A, %B %-d|%e|%I:%M %p|%j|%y|%H:%M:%S|%a|%w %u|%F %T|%D|%%")
            .unwrap();
        let python = "05 Jul 2024|2024-07-05|Friday, July 5| 5|03:04 PM|187|24|15:04:09|Fri|5 5|2024-07-05 15:04:09|07/05/24|%";
        assert_eq!(all, python);
        assert!(t.strftime("%Q").unwrap_err().contains("%Q"));
    }

    #[test]
    fn dates() {
        assert_eq!(DateTime::from_unix(0), DateTime::parse("1970-01-01"));
        assert_eq!(DateTime::from_unix(1_709_210_096), DateTime::parse("2024-02-29 12:34:56"));
        assert_eq!(DateTime::from_unix(-1), DateTime::parse("1969-12-31T23:59:59.5+01:00"));
        assert_eq!(DateTime::from_unix(i64::MAX), None);
        for bad in [
            "",
            "2024",
            "2023-02-29",
            "2024-13-01",
            "2024-01-01T25:00",
            "2024-01-01x",
            "é024-01-01",
            "+024-01-01",
        ] {
            assert_eq!(DateTime::parse(bad), None, "{bad}");
        }
    }
}
