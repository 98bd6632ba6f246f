//! The settings an operator may change live: their keys, and how their values are written. Owns parsing and showing;
//! puts nothing in force. Invariant: a value that parses can be put in force or fails for reasons outside itself.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::control::failure::{Code, Failure};
use crate::control::handle::Settings;
use crate::logs;

/// A setting's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Where `/metrics` listens.
    Http,
    /// How much is logged.
    LogLevel,
}

impl Key {
    pub const ALL: [Self; 2] = [Self::Http, Self::LogLevel];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::LogLevel => "log-level",
        }
    }
}

impl FromStr for Key {
    type Err = Failure;
    fn from_str(s: &str) -> Result<Self, Failure> {
        Self::ALL.into_iter().find(|key| key.as_str() == s).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            Failure::new(Code::Usage, format!("there is no setting `{s}`")).hint(format!("known settings: {known}"))
        })
    }
}

/// `settings` with `key` set to `value`, or back at its default.
///
/// # Errors
/// `Usage` for a value that does not parse.
pub fn changed(mut settings: Settings, key: Key, value: Option<&str>) -> Result<Settings, Failure> {
    match key {
        Key::Http => settings.http = value.map(parse_address).transpose()?,
        Key::LogLevel => settings.log_level = value.map(parse_level).transpose()?,
    }
    Ok(settings)
}

/// A listening address: `:9090` or `9090` for every interface, or `ADDRESS:PORT`.
///
/// # Errors
/// `Usage` for anything else.
pub fn parse_address(s: &str) -> Result<SocketAddr, Failure> {
    let every = |port: &str| port.parse().ok().map(|port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
    let local = || s.strip_prefix("localhost:").and_then(|port| format!("127.0.0.1:{port}").parse().ok());
    every(s.strip_prefix(':').unwrap_or(s)).or_else(|| s.parse().ok()).or_else(local).ok_or_else(|| {
        Failure::new(Code::Usage, format!("`{s}` is no listening address"))
            .hint("write `:9090` for every interface, or `127.0.0.1:9090` for this machine alone")
    })
}

/// The inverse of [`parse_address`].
#[must_use]
pub fn show_address(address: SocketAddr) -> String {
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) { format!(":{}", address.port()) } else { address.to_string() }
}

/// The longest filter of logs, in bytes: more than anybody types, less than fills a line of `pln set`.
const LEVEL_BYTES_MAX: usize = 256;

fn parse_level(s: &str) -> Result<String, Failure> {
    let parses = logs::parse_level(s).is_ok();
    if s.is_empty() || s.len() > LEVEL_BYTES_MAX || !parses {
        return Err(Failure::new(Code::Usage, format!("`{s}` is no log level"))
            .hint("levels: error, warn, info, debug, trace, off; or by module: info,pollen_daemon::services=debug"));
    }
    Ok(s.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_they_were_written() {
        for (written, shown) in [
            (":9090", ":9090"),
            ("9090", ":9090"),
            ("127.0.0.1:9090", "127.0.0.1:9090"),
            ("localhost:1", "127.0.0.1:1"),
            ("[::1]:80", "[::1]:80"),
            ("0.0.0.0:80", "0.0.0.0:80"),
        ] {
            let address = parse_address(written).expect(written);
            assert_eq!(show_address(address), shown);
            assert_eq!(parse_address(shown), Ok(address));
        }
        for wrong in ["", ":", "65536", "host:9090", "1.2.3.4", ":-1", ":9090x"] {
            assert_eq!(parse_address(wrong).map_err(|f| f.code), Err(Code::Usage), "{wrong}");
        }
    }

    #[test]
    fn levels_are_checked_before_they_are_kept() {
        let set = |value| changed(Settings::default(), Key::LogLevel, Some(value));
        assert_eq!(set("debug").map(|s| s.log_level), Ok(Some("debug".into())));
        assert!(set("info,pollen_daemon=trace").is_ok());
        assert!(set("pollen_daemon::services=debug").is_ok());
        assert!(set("off").is_ok());
        for wrong in ["", "loud", "pollen_daemon", "info2,", "7"] {
            assert_eq!(set(wrong).map_err(|failure| failure.code), Err(Code::Usage), "{wrong}");
        }
        assert!(set("pollen=loud").is_err());
        assert!(set(&"a".repeat(LEVEL_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn an_unknown_key_names_those_there_are() {
        let failure = "htpp".parse::<Key>().unwrap_err();
        assert_eq!(failure.code, Code::Usage);
        assert_eq!(failure.hint.as_deref(), Some("known settings: http, log-level"));
    }
}
