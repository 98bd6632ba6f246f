//! Tail calls: another call, whose output shall stand in the place of a guest's own. Owns how an output looks that asks
//! for one, which counts only where the publisher said so: of any other guest an output is data, whoever wrote it.
//! Invariant: there, an output that means to be one and is not well-formed is an error, never handed to the caller as data.

use bytes::Bytes;
use data_encoding::BASE64;
use pollen_common::views::Name;
use serde::Deserialize;

use super::target::Uri;

/// What every such output contains, whatever the order of its fields.
const MARK: &str = "\"tail_call\"";
const KIND: &str = "tail_call";

/// The call that follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TailCall {
    pub name: Name,
    pub function: String,
    pub input: Bytes,
}

/// An output that means to be a tail call and is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its output is a broken tail call: {0}")]
pub(super) struct BrokenTail(String);

#[derive(Deserialize)]
struct Marker {
    kind: Option<serde_json::Value>,
    uri: Option<String>,
    input: Option<String>,
}

/// Just enough to tell whose `tail_call` it is: the marker's, or a value's somewhere inside ordinary output.
#[derive(Deserialize)]
struct Kind {
    kind: Option<serde_json::Value>,
}

/// The tail call that an output asks for, if it does.
pub(super) fn of_output(output: &[u8]) -> Result<Option<TailCall>, BrokenTail> {
    let opens = output.iter().find(|byte| !byte.is_ascii_whitespace());
    if opens != Some(&b'{') {
        return Ok(None);
    }
    let Some(text) = std::str::from_utf8(output).ok().filter(|text| text.contains(MARK)) else { return Ok(None) };
    let broken = |what: String| BrokenTail(what);
    match serde_json::from_str::<Kind>(text) {
        Ok(Kind { kind: Some(serde_json::Value::String(kind)) }) if kind == KIND => {}
        Ok(_) => return Ok(None),
        Err(error) => return Err(broken(error.to_string())),
    }
    let marker: Marker = serde_json::from_str(text).map_err(|error| broken(error.to_string()))?;
    debug_assert!(marker.kind.is_some(), "looked at above");
    let uri = marker.uri.ok_or_else(|| broken("it has no uri".into()))?;
    let input = BASE64.decode(marker.input.unwrap_or_default().as_bytes());
    let input = input.map_err(|error| broken(format!("its input is no base64: {error}")))?;
    to(&uri, input.into()).map(Some)
}

/// The tail call to a URI.
pub(super) fn to(uri: &str, input: Bytes) -> Result<TailCall, BrokenTail> {
    match uri.parse().map_err(|error: super::target::UriError| BrokenTail(error.to_string()))? {
        Uri::Seed { name, function } => Ok(TailCall { name, function, input }),
        Uri::Service(_) => Err(BrokenTail("it names a service, not a seed".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_in_any_order_of_fields_is_a_tail_call() {
        for text in [
            r#"{"kind":"tail_call","uri":"pln://seed/n/f","input":"aGk="}"#,
            r#" { "input": "aGk=", "uri": "pln://seed/n/f", "kind": "tail_call" } "#,
        ] {
            let tail = TailCall { name: "n".parse().expect("a name"), function: "f".into(), input: "hi".into() };
            assert_eq!(of_output(text.as_bytes()), Ok(Some(tail)), "{text}");
        }
    }

    #[test]
    fn other_outputs_stay_what_they_are() {
        for text in [
            "",
            "hi",
            "{}",
            r#"["tail_call"]"#,
            r#"{"kind":"other","x":"tail_call"}"#,
            r#"{"x":"tail_call"}"#,
            "{\"tail",
        ] {
            assert_eq!(of_output(text.as_bytes()), Ok(None), "{text}");
        }
        assert_eq!(of_output(b"{\"tail_call\" \xff"), Ok(None), "no text at all");
    }

    #[test]
    fn a_broken_marker_is_an_error() {
        for text in [
            r#"{"kind":"tail_call"}"#,
            r#"{"kind":"tail_call","uri":"pln://service/n"}"#,
            r#"{"kind":"tail_call","uri":"pln://seed/n/f","input":"?"}"#,
            r#"{"kind":"tail_call","uri":"pln://seed/n/f","input":7}"#,
            r#"{"kind":"tail_call","uri":"pln://seed/n/f""#,
        ] {
            assert!(of_output(text.as_bytes()).is_err(), "{text}");
        }
    }
}
