//! The vectors of a format's description: one line each, its label and its bytes.

use alloc::string::String;
use alloc::vec::Vec;

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| alloc::format!("{byte:02x}")).collect()
}

/// Fails unless the vectors of `document` whose labels begin with `kind` are `expected`, all of them in their order.
pub(super) fn assert_described(document: &str, kind: &str, expected: &[(&str, Vec<u8>)]) {
    let described: Vec<(&str, String)> = document
        .lines()
        .filter_map(|line| line.strip_prefix("- `vector ")?.split_once("`: `"))
        .filter(|(label, _)| label.starts_with(kind))
        .map(|(label, rest)| (label, rest.split('`').next().unwrap_or_default().replace(' ', "")))
        .collect();
    let expected: Vec<(&str, String)> = expected.iter().map(|(label, bytes)| (*label, hex(bytes))).collect();
    assert!(!expected.is_empty());
    assert_eq!(described, expected, "what is described is what is sent");
}
