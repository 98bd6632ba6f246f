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

/// Whether `text` is one line that shows as it is: what people type in to be shown has to be.
#[must_use]
pub fn is_plain(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || is_reordering(c))
}

/// Characters that make what follows appear elsewhere (Unicode's `Bidi_Control`).
const fn is_reordering(c: char) -> bool {
    matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_survive() {
        assert_eq!(plain("a\x1b[2Jb\rc\u{9b}d\u{202e}e"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d\u{fffd}e");
        assert!(matches!(plain("häuser\nzwei"), Cow::Borrowed(_)));
        assert!(
            is_plain("häuser, zwei") && ["a\nb", "a\u{200f}b", "\u{61c}", "\x1b"].iter().all(|text| !is_plain(text))
        );
    }
}
