//! Text from others, made harmless for a terminal. Invariant: only line feeds are left of all control characters.

use std::borrow::Cow;

/// `text` with every control character but the line feed replaced: escape sequences in a peer's words would otherwise
/// move the reader's cursor.
#[must_use]
pub fn plain(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c != '\n' && (c.is_control() || is_reordering(c));
    if text.chars().any(harmful) {
        text.chars().map(|c| if harmful(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
    } else {
        Cow::Borrowed(text)
    }
}

/// Characters that make what follows appear elsewhere (Unicode's bidirectional controls).
const fn is_reordering(c: char) -> bool {
    matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_survive() {
        assert_eq!(plain("a\x1b[2Jb\rc\u{9b}d\u{202e}e"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d\u{fffd}e");
        assert!(matches!(plain("häuser\nzwei"), Cow::Borrowed(_)));
    }
}
