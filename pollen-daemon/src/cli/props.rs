//! `--prop`: properties as people give them. Owns the three spellings. Invariant: properties are a flat map of strings;
//! what does not fit that is refused where it was typed.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::Value;

use crate::http::failure::{Code, Failure};

/// The most that is read from standard input, in bytes: a member's properties share 1 KiB with its other rights.
const STDIN_BYTES_MAX: u64 = 64 * 1024;

/// The properties of a member or an invite.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Props {
    /// Properties: k=v, a flat JSON object, or - for one on standard input
    #[arg(long = "prop", value_name = "K=V|JSON|-", num_args = 1..)]
    prop: Vec<String>,
}

impl Props {
    /// The properties themselves; reads `stdin` where `-` says so.
    pub(super) fn resolve(&self, mut stdin: impl Read) -> Result<BTreeMap<String, String>, Failure> {
        let mut props = BTreeMap::new();
        for given in &self.prop {
            let pairs = match given.as_str() {
                "-" => {
                    let mut text = String::new();
                    let read = (&mut stdin).take(STDIN_BYTES_MAX).read_to_string(&mut text);
                    read.map_err(|error| usage(format!("standard input cannot be read: {error}")))?;
                    object(&text)?
                }
                json if json.trim_start().starts_with('{') => object(json)?,
                pair => vec![self::pair(pair)?],
            };
            for (key, value) in pairs {
                if let Some(before) = props.insert(key.clone(), value) {
                    return Err(usage(format!("the property {key} is given twice, first as {before}")));
                }
            }
        }
        Ok(props)
    }
}

fn pair(given: &str) -> Result<(String, String), Failure> {
    match given.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => {
            Err(usage(format!("`{given}` is no property"))
                .hint("write --prop region=eu, or --prop '{\"region\":\"eu\"}'"))
        }
    }
}

fn object(json: &str) -> Result<Vec<(String, String)>, Failure> {
    let parsed: BTreeMap<String, Value> =
        serde_json::from_str(json).map_err(|error| usage(format!("the properties are no JSON object: {error}")))?;
    let flat = |(key, value)| match value {
        _ if String::is_empty(&key) => Err(usage("a property has no key".into())),
        Value::String(value) => Ok((key, value)),
        Value::Bool(_) | Value::Number(_) => Ok((key, value.to_string())),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            Err(usage(format!("the property {key} is not a plain value"))
                .hint("properties are flat: text, numbers, true, false"))
        }
    };
    parsed.into_iter().map(flat).collect()
}

fn usage(message: String) -> Failure {
    Failure::new(Code::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[&str], stdin: &str) -> Result<Vec<String>, String> {
        let props = Props { prop: given.iter().map(|s| (*s).to_owned()).collect() };
        let resolved = props.resolve(stdin.as_bytes()).map_err(|failure| failure.message)?;
        Ok(resolved.into_iter().map(|(key, value)| format!("{key}={value}")).collect())
    }

    #[test]
    fn three_spellings_mean_the_same() {
        let expected = Ok(vec!["gpu=true".to_owned(), "region=eu=west".to_owned()]);
        assert_eq!(read(&["gpu=true", "region=eu=west"], ""), expected);
        assert_eq!(read(&[r#"{"gpu": true, "region": "eu=west"}"#], ""), expected);
        assert_eq!(read(&["-", "gpu=true"], r#"{"region": "eu=west"}"#), expected);
    }

    #[test]
    fn what_is_no_flat_map_is_refused() {
        for wrong in ["", "=x", "region", r#"{"a": {"b": 1}}"#, r#"{"a": [1]}"#, r#"{"a": null}"#, "{", r#"{"": 1}"#] {
            assert!(read(&[wrong], "").is_err(), "{wrong}");
        }
        assert!(read(&["-"], "[]").is_err());
        assert!(read(&["a=1", "a=2"], "").is_err_and(|message| message.contains("twice")));
    }
}
