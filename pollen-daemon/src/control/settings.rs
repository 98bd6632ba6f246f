//! The settings an operator may change live: their keys, and how their values are written. Owns parsing and showing;
//! puts nothing in force. Invariant: a value that parses can be put in force or fails for reasons outside itself.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use pollen_common::views::Name;

use crate::config::LiveSettings;
use crate::control::duration::duration;
use crate::control::size::size_kib;
use crate::datapath::Choice;
use crate::http::failure::{Code, Failure};
use crate::logs;

/// A setting's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// What this node is called.
    Name,
    /// Where `/metrics` listens.
    Http,
    /// How much is logged.
    LogLevel,
    /// How much memory seeds have together.
    SeedMemory,
    /// How long what is open with a silent peer waits.
    StreamPatience,
    /// Whether packets of others are passed on.
    Relay,
    /// What passes them on.
    Datapath,
}

impl Key {
    pub const ALL: [Self; 7] =
        [Self::Name, Self::Http, Self::LogLevel, Self::SeedMemory, Self::StreamPatience, Self::Relay, Self::Datapath];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Http => "http",
            Self::LogLevel => "log-level",
            Self::SeedMemory => "seed-memory",
            Self::StreamPatience => "stream-patience",
            Self::Relay => "relay",
            Self::Datapath => "datapath",
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
pub fn changed(mut settings: LiveSettings, key: Key, value: Option<&str>) -> Result<LiveSettings, Failure> {
    match key {
        Key::Name => settings.name = value.map(parse_name).transpose()?,
        Key::Http => settings.http = value.map(parse_address).transpose()?,
        Key::LogLevel => settings.log_level = value.map(parse_level).transpose()?,
        Key::SeedMemory => settings.seed_memory_mib = value.map(parse_memory).transpose()?,
        Key::Relay => settings.relay = value.map(parse_switch).transpose()?,
        Key::Datapath => settings.datapath = value.map(parse_datapath).transpose()?,
        Key::StreamPatience => settings.stream_patience_s = value.map(parse_patience).transpose()?,
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

fn parse_name(s: &str) -> Result<Name, Failure> {
    s.parse().map_err(|error| Failure::new(Code::Usage, format!("`{s}` cannot be a node's name: {error}")))
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

/// The least that seeds may have together: two calls of the usual size that use all of it. A node that shall host none
/// is not told so by starving them.
const SEED_MEMORY_MIB_MIN: u32 = 16;

/// A size in whole MiB. Whether the machine has as much is for the one who puts it in force.
fn parse_memory(s: &str) -> Result<u32, Failure> {
    let usage = |message| Failure::new(Code::Usage, message);
    let kib = size_kib(s).map_err(usage)?;
    if kib % 1024 != 0 || kib / 1024 < SEED_MEMORY_MIB_MIN {
        return Err(usage(format!(
            "`{s}` cannot be the memory of seeds: at least {SEED_MEMORY_MIB_MIN}MiB, in whole MiB"
        )));
    }
    Ok(kib / 1024)
}

/// `on` or `off`.
fn parse_switch(s: &str) -> Result<bool, Failure> {
    match s {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(Failure::new(Code::Usage, format!("`{s}` is neither on nor off"))),
    }
}

fn parse_datapath(s: &str) -> Result<Choice, Failure> {
    s.parse().map_err(|error: String| Failure::new(Code::Usage, error))
}

/// The longest that anybody waits for a silent peer, a day: QUIC's own time-out is a little longer.
const STREAM_PATIENCE_MAX: Duration = Duration::from_secs(86_400);

/// Whole seconds, from one on.
fn parse_patience(s: &str) -> Result<u32, Failure> {
    let usage = |message| Failure::new(Code::Usage, message);
    let patience = duration(s).map_err(usage)?;
    let seconds = u32::try_from(patience.as_secs()).unwrap_or(u32::MAX);
    if patience > STREAM_PATIENCE_MAX || patience.subsec_nanos() != 0 || seconds == 0 {
        return Err(usage(format!("`{s}` cannot be waited for: whole seconds, at most 1d")));
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::show_address;

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
        let set = |value| changed(LiveSettings::default(), Key::LogLevel, Some(value));
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
    fn the_memory_of_seeds_has_a_unit_and_a_least() {
        let set = |value| changed(LiveSettings::default(), Key::SeedMemory, Some(value)).map(|s| s.seed_memory_mib);
        assert_eq!(set("4GiB"), Ok(Some(4096)));
        assert_eq!(set("16MiB"), Ok(Some(16)));
        for wrong in ["", "4", "0MiB", "15MiB", "16385KiB", "4GB", "9999999GiB"] {
            assert_eq!(set(wrong).map_err(|failure| failure.code), Err(Code::Usage), "{wrong}");
        }
        let back =
            changed(LiveSettings { seed_memory_mib: Some(16), ..LiveSettings::default() }, Key::SeedMemory, None);
        assert_eq!(back, Ok(LiveSettings::default()));
    }

    #[test]
    fn a_name_is_checked_and_folded() {
        let set =
            |value| changed(LiveSettings::default(), Key::Name, Some(value)).map(|s| s.name.map(|n| n.to_string()));
        assert_eq!(set("Atlas"), Ok(Some("atlas".into())));
        for wrong in ["", "8080", "a b", "-a", "\u{202e}a"] {
            assert_eq!(set(wrong).map_err(|failure| failure.code), Err(Code::Usage), "{wrong}");
        }
    }

    #[test]
    fn patience_is_of_whole_seconds_up_to_a_day() {
        let set =
            |value| changed(LiveSettings::default(), Key::StreamPatience, Some(value)).map(|s| s.stream_patience_s);
        assert_eq!((set("1s"), set("15m"), set("24h")), (Ok(Some(1)), Ok(Some(900)), Ok(Some(86_400))));
        for wrong in ["", "0s", "900", "1500ms", "25h", "-1s"] {
            assert_eq!(set(wrong).map_err(|failure| failure.code), Err(Code::Usage), "{wrong}");
        }
    }

    #[test]
    fn an_unknown_key_names_those_there_are() {
        let failure = "htpp".parse::<Key>().unwrap_err();
        assert_eq!(failure.code, Code::Usage);
        assert_eq!(
            failure.hint.as_deref(),
            Some("known settings: name, http, log-level, seed-memory, stream-patience, relay, datapath")
        );
    }
}
