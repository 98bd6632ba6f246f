//! Durations as people type them and are shown them. Owns the syntax. Invariant: a bare number is refused: of what?

use std::time::Duration;

/// The longest duration, a hundred years: beyond it a date does not fit everywhere it is shown.
const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// `90s`, `5m`, `24h`, `7d`, or several together: `1h30m`.
///
/// # Errors
/// A sentence for the person who typed it.
pub fn duration(s: &str) -> Result<Duration, String> {
    let wrong = || format!("`{s}` is no duration: write 30s, 5m, 24h, 7d or 1h30m");
    let mut total = Duration::ZERO;
    let mut rest = s;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let count: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
        let unit_ms = match &rest[digits..unit_end] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let part = count.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = &rest[unit_end..];
    }
    if total.is_zero() || total > DURATION_MAX { Err(wrong()) } else { Ok(total) }
}

/// Whole seconds in the form that [`duration`] reads, with the largest units first.
#[must_use]
pub fn show_seconds(mut seconds: u32) -> String {
    let mut shown = String::new();
    for (unit, size) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        if seconds >= size {
            shown += &format!("{}{unit}", seconds / size);
            seconds %= size;
        }
    }
    if shown.is_empty() { "0s".into() } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_as_the_same() {
        for (seconds, shown) in [(1, "1s"), (90, "1m30s"), (900, "15m"), (86_400, "1d"), (90_061, "1d1h1m1s")] {
            assert_eq!(show_seconds(seconds), shown);
            assert_eq!(duration(shown), Ok(Duration::from_secs(seconds.into())));
        }
    }

    #[test]
    fn durations_have_units_and_add_up() {
        let read = |s| duration(s).map(|d| d.as_millis()).ok();
        assert_eq!(
            [read("30s"), read("5m"), read("1h30m"), read("7d")],
            [30_000, 300_000, 5_400_000, 604_800_000].map(Some)
        );
        for wrong in
            ["", "5", "m", "5x", "0s", "-1s", "1.5h", "5 m", "99999999999d", "18446744073709551616s", "1hm", "٣s"]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
