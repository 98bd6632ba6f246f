//! Which of the names there are somebody may have meant who misspelt one. Knows nothing of what is named.
//! Invariant: what is not near is never suggested: a wrong guess sends people further astray than none.

use pollen_common::names::NAME_BYTES_MAX;

/// One letter of so many may be wrong, and one in any case.
const LETTERS_PER_ERROR: usize = 4;

/// The name that is written most like `wanted`, if any is written much like it; the first of several.
pub(crate) fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // What is longer than any name is not one of them misspelt.
    if wanted.len() > NAME_BYTES_MAX {
        return None;
    }
    let wanted = wanted.to_ascii_lowercase();
    let errors_max = 1.max(wanted.chars().count() / LETTERS_PER_ERROR);
    let distances = names.into_iter().map(|name| (strsim::damerau_levenshtein(&wanted, name), name));
    // A name of one letter is near to every other.
    let near = distances.filter(|(errors, name)| *errors <= errors_max && *errors < name.len());
    near.min_by_key(|(errors, _)| *errors).map(|(_, name)| name)
}

/// `otherwise`, with the name that may have been meant before it.
pub(crate) fn or_meant<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>, otherwise: &str) -> String {
    nearest(wanted, names)
        .map_or_else(|| otherwise.to_owned(), |name| format!("did you mean `{name}`? else {otherwise}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_seen_through_and_another_word_is_not() {
        let names = ["api", "postgres", "web"];
        for (wanted, meant) in [
            ("postgers", Some("postgres")),
            ("Postgre", Some("postgres")),
            ("ap", Some("api")),
            ("wbe", Some("web")),
            ("mysql", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(nearest(wanted, names), meant, "{wanted}");
        }
        assert_eq!(nearest("b", ["a"]), None, "a letter for a letter");
        assert_eq!(nearest(&"a".repeat(1 << 20), names), None);
    }
}
