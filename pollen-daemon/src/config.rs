//! What people set and the daemon remembers. Owns the settings' shape, and how flags override them; must
//! not know how a setting takes effect. Invariant: what is stored was valid when it was set.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use pollen_common::node::PATIENCE_DEFAULT;
use pollen_common::views::Name;
use serde::{Deserialize, Serialize};

use crate::datapath::Choice;

/// The UDP port when nobody chose one.
pub const PORT_DEFAULT: u16 = 60611;

/// The key of the settings in the store.
pub const SETTINGS_KEY: &str = "settings";
/// The key of the services' configuration in the store.
pub const SERVICES_KEY: &str = "services";

/// Addresses that a node may announce; the core refuses more.
pub const IPS_MAX: usize = 8;

/// Networks and interfaces that a node may exclude: more than a machine has tunnels.
pub const EXCLUDED_MAX: usize = 64;

mod excluded;
pub use excluded::Excluded;

/// What an operator may change while the daemon runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveSettings {
    /// What this node is called; as its host where absent.
    pub name: Option<Name>,
    /// Where `/metrics` listens; not at all where absent.
    pub http: Option<SocketAddr>,
    /// The filter of the logs, in the syntax of `tracing`: `info` where absent.
    pub log_level: Option<String>,
    /// How much memory seeds may have together, in MiB; a part of the machine's where absent.
    pub seed_memory_mib: Option<u32>,
    /// How long what is open with a silent peer waits, in seconds; the core's own where absent.
    pub stream_patience_s: Option<u32>,
    /// Whether packets of others are passed on; they are where absent.
    pub relay: Option<bool>,
    /// What carries circuits' frames; `auto` where absent.
    pub datapath: Option<Choice>,
}

/// A listening address as people write it: `:9090` for every interface.
#[must_use]
pub fn show_address(address: SocketAddr) -> String {
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) { format!(":{}", address.port()) } else { address.to_string() }
}

/// All settings, as the store keeps them. Absent means the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The node's name; the host's otherwise.
    pub name: Option<String>,
    /// UDP port of the mesh; [`PORT_DEFAULT`] otherwise. 0: any free port.
    pub port: Option<u16>,
    /// Announced instead of the interfaces' addresses, if not empty.
    pub ips: Vec<IpAddr>,
    /// Never announced, unless named.
    pub not_ips: Vec<Excluded>,
    /// Whether others should expect to reach this node from anywhere.
    pub public: bool,
    /// Where `/metrics` is served; nowhere otherwise.
    pub http: Option<SocketAddr>,
    /// What is logged, as a `tracing` filter; `info` otherwise.
    pub log_level: Option<String>,
    /// How much memory seeds may have together, in MiB; a part of the machine's otherwise.
    pub seed_memory_mib: Option<u32>,
    /// How long what is open with a silent peer waits, in seconds.
    pub stream_patience_s: Option<u32>,
    /// Whether packets of others are passed on; they are otherwise.
    pub relay: Option<bool>,
    /// What carries circuits' frames; `auto` otherwise.
    pub datapath: Option<Choice>,
}

/// What `pln up` was told; each overrides its setting and is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpOptions {
    pub name: Option<String>,
    pub port: Option<u16>,
    pub ips: Vec<IpAddr>,
    pub not_ips: Vec<Excluded>,
    pub public: bool,
    pub http: Option<SocketAddr>,
}

/// An option of `pln up` that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error("{0:?} cannot be a node's name: {1}")]
    Name(String, String),
    #[error("at most {IPS_MAX} addresses can be announced, and {EXCLUDED_MAX} excluded")]
    Ips,
}

impl Settings {
    /// These settings with what `options` says over them.
    ///
    /// # Errors
    /// [`OptionError`] for what cannot be.
    pub fn overridden(mut self, options: UpOptions) -> Result<Self, OptionError> {
        if let Some(name) = options.name {
            parse_name(&name)?;
            self.name = Some(name);
        }
        if options.ips.len() > IPS_MAX || options.not_ips.len() > EXCLUDED_MAX {
            return Err(OptionError::Ips);
        }
        // Said together, remembered together.
        if !options.ips.is_empty() || !options.not_ips.is_empty() {
            (self.ips, self.not_ips) = (options.ips, options.not_ips);
        }
        self.http = options.http.or(self.http);
        self.port = options.port.or(self.port);
        self.public |= options.public;
        Ok(self)
    }

    /// How long what is open with a silent peer waits.
    #[must_use]
    pub fn stream_patience(&self) -> Duration {
        self.stream_patience_s.map_or(PATIENCE_DEFAULT, |seconds| Duration::from_secs(seconds.into()))
    }

    /// Whether this node passes packets on for others.
    #[must_use]
    pub fn relays(&self) -> bool {
        self.relay.unwrap_or(true)
    }

    /// What carries circuits' frames.
    #[must_use]
    pub fn datapath(&self) -> Choice {
        self.datapath.unwrap_or_default()
    }

    /// What can be changed while the daemon runs.
    #[must_use]
    pub fn live(&self) -> LiveSettings {
        LiveSettings {
            name: self.name.as_deref().and_then(|name| parse_name(name).ok()),
            http: self.http,
            log_level: self.log_level.clone(),
            seed_memory_mib: self.seed_memory_mib,
            stream_patience_s: self.stream_patience_s,
            relay: self.relay,
            datapath: self.datapath,
        }
    }
}

/// A node's name, or why it is none.
///
/// # Errors
/// [`OptionError::Name`]
pub fn parse_name(name: &str) -> Result<Name, OptionError> {
    name.parse().map_err(|error| OptionError::Name(name.to_owned(), format!("{error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_override_and_absent_flags_leave_what_was_remembered() {
        let first = Settings::default()
            .overridden(UpOptions { port: Some(7), name: Some("atlas".into()), public: true, ..UpOptions::default() })
            .expect("valid");
        let second = first.clone().overridden(UpOptions { port: Some(8), ..UpOptions::default() }).expect("valid");
        assert_eq!(second, Settings { port: Some(8), ..first });
    }

    #[test]
    fn addresses_named_and_excluded_are_remembered_together() {
        let not = |text: &str| vec![text.parse::<Excluded>().expect("valid")];
        let excluding = UpOptions { not_ips: not("wg0"), ..UpOptions::default() };
        let first = Settings::default().overridden(excluding).expect("valid");
        assert_eq!(first.clone().overridden(UpOptions::default()).expect("valid"), first);
        let naming = UpOptions { ips: vec![[10, 0, 0, 1].into()], ..UpOptions::default() };
        assert!(first.overridden(naming).expect("valid").not_ips.is_empty());
    }

    #[test]
    fn settings_of_an_older_version_still_load() {
        let settings: Settings = serde_json::from_str(r#"{"port":9,"gone":true}"#).expect("unknown fields are ignored");
        assert_eq!(settings, Settings { port: Some(9), ..Settings::default() });
    }
}
