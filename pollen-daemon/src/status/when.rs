//! Times as people read them. Owns the calendar arithmetic that showing a date takes; reads no clock.
//! Invariant: UTC always, so that two operators compare what they see.

use std::fmt;

use pollen_common::time::UnixMs;

/// A moment, shown as `2026-11-23 02:24:01Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(pub UnixMs);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.0 / 1000;
        let (year, month, day) = civil(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar. After Howard Hinnant,
/// "chrono-compatible low-level date algorithms": years are counted from March, so that the leap day comes last.
const fn civil(days: u64) -> (u64, u64, u64) {
    let from_0000_03_01 = days + 719_468;
    let era = from_0000_03_01 / 146_097;
    let day_of_era = from_0000_03_01 % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// A length of time in its two largest units: `3d 4h`, `12m 5s`, `340ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    ms: u64,
}

impl Span {
    #[must_use]
    pub const fn from_ms(ms: u64) -> Self {
        Self { ms }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ms < 1000 {
            return write!(f, "{}ms", self.ms);
        }
        let seconds = self.ms / 1000;
        let units =
            [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
        let first = units.iter().position(|(count, _)| *count > 0).unwrap_or(units.len() - 1);
        let (count, unit) = units[first];
        write!(f, "{count}{unit}")?;
        match units.get(first + 1) {
            Some((count, unit)) if *count > 0 => write!(f, " {count}{unit}"),
            _ => Ok(()),
        }
    }
}

/// A round-trip time: `84us`, `1.2ms`, `1.5s`.
#[must_use]
pub fn show_rtt(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..1_000_000 => format!("{}.{}ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{}s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

/// A number of bytes: `512B`, `1.5KiB`, `2.0GiB`.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let exponent = bytes.ilog2() / 10;
    let tenths = u128::from(bytes) * 10 / (1_u128 << (exponent * 10));
    let unit = usize::try_from(exponent - 1).ok().and_then(|i| units.get(i)).copied().unwrap_or("EiB");
    format!("{}.{}{unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, shown) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399, "2000-02-28 23:59:59Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_795_400_641, "2026-11-23 02:24:01Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(Moment(UnixMs(seconds * 1000)).to_string(), shown);
        }
    }

    #[test]
    fn spans_show_their_two_largest_units() {
        for (ms, shown) in
            [(0, "0ms"), (999, "999ms"), (1000, "1s"), (61_000, "1m 1s"), (3_600_000, "1h"), (90_061_000, "1d 1h")]
        {
            assert_eq!(Span::from_ms(ms).to_string(), shown);
        }
    }

    #[test]
    fn sizes_and_round_trips_keep_one_decimal() {
        let sizes = [0, 1023, 1024, 1536, 1 << 20, u64::MAX].map(show_bytes);
        assert_eq!(sizes, ["0B", "1023B", "1.0KiB", "1.5KiB", "1.0MiB", "15.9EiB"]);
        let rtts = [0, 999, 1_000, 1_250, 999_999, 1_500_000].map(show_rtt);
        assert_eq!(rtts, ["0us", "999us", "1.0ms", "1.2ms", "999.9ms", "1.5s"]);
    }
}
