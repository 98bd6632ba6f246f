//! Sizes as people type them and read them. Owns their syntax. Invariant: a bare number is refused: of what?

/// A size in KiB: `64KiB`, `1MiB`, `2GiB`.
///
/// # Errors
/// A sentence for the person who typed it.
pub fn size_kib(s: &str) -> Result<u32, String> {
    let wrong = || format!("`{s}` is no size: write 64KiB, 1MiB or 2GiB");
    let digits = s.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let count: u32 = s[..digits].parse().map_err(|_| wrong())?;
    let unit_kib = match &s[digits..] {
        "KiB" => 1,
        "MiB" => 1024,
        "GiB" => 1024 * 1024,
        _ => return Err(wrong()),
    };
    count.checked_mul(unit_kib).ok_or_else(wrong)
}

/// A size in MiB, as [`size_kib`] reads it back.
#[must_use]
pub fn show_mib(mib: u32) -> String {
    if mib > 0 && mib.is_multiple_of(1024) { format!("{}GiB", mib / 1024) } else { format!("{mib}MiB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!([size_kib("64KiB"), size_kib("1MiB"), size_kib("2GiB")], [64, 1024, 2_097_152].map(Ok));
        for wrong in ["", "64", "64KB", "KiB", "5000GiB", "-1KiB"] {
            assert!(size_kib(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_read_back_as_they_are_shown() {
        for (mib, shown) in [(1, "1MiB"), (1024, "1GiB"), (1536, "1536MiB"), (4096, "4GiB")] {
            assert_eq!(show_mib(mib), shown);
            assert_eq!(size_kib(shown), Ok(mib * 1024));
        }
    }
}
