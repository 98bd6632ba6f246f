//! What the services of a node are, as its durable configuration holds it. Parsed once when it is read.

use std::net::IpAddr;

use pollen_common::identity::NodeKey;
use pollen_common::views::{Policy, Protocol, entries};
use pollen_common::wire::streams::service::Target;
use serde::{Deserialize, Serialize};

use super::exports::Export;
use super::imports::Import;
use super::server::Server;

/// Exports and imports, to be stored as JSON and given back at the next start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesConfig {
    #[serde(default)]
    pub exports: Vec<ExportConfig>,
    #[serde(default)]
    pub imports: Vec<ImportConfig>,
}

/// A protocol in its written form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProtocolConfig {
    Tcp,
    Udp,
}

/// An export in its written form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub protocol: ProtocolConfig,
    pub port: u16,
    #[serde(default)]
    pub shared: bool,
    /// `HOST:PORT` or `unix:PATH` where the server is not on this machine's loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Who may reach it where that is not everyone: the policy as it is published, in hexadecimal. An entry with a clause
    /// that is unknown here is left out whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

/// An import in its written form: `service` is a name, or the provider's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportConfig {
    pub service: String,
    /// The provider's key in hexadecimal, where the import is pinned to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    pub protocol: ProtocolConfig,
    /// Where it listens, where that is not this machine's loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<IpAddr>,
    pub local_port: u16,
}

/// An entry that says nothing this version understands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is not valid: {value}")]
pub struct ConfigError {
    what: &'static str,
    value: String,
}

impl From<Protocol> for ProtocolConfig {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

impl From<ProtocolConfig> for Protocol {
    fn from(protocol: ProtocolConfig) -> Self {
        match protocol {
            ProtocolConfig::Tcp => Self::Tcp,
            ProtocolConfig::Udp => Self::Udp,
        }
    }
}

/// A policy in its written form; none where it bounds nothing.
#[must_use]
pub fn policy_config(policy: &Policy) -> Option<String> {
    (!policy.is_open()).then(|| data_encoding::HEXLOWER.encode(&entries::policy_bytes(policy)))
}

impl From<&Export> for ExportConfig {
    fn from(export: &Export) -> Self {
        Self {
            name: export.name.as_ref().map(ToString::to_string),
            protocol: export.protocol.into(),
            port: export.port,
            shared: export.shared,
            server: (export.server != Server::Here).then(|| export.server.to_string()),
            policy: policy_config(&export.policy),
        }
    }
}

impl TryFrom<&ExportConfig> for Export {
    type Error = ConfigError;

    fn try_from(config: &ExportConfig) -> Result<Self, ConfigError> {
        let name = config.name.as_ref().map(|name| name.parse().map_err(|_| invalid("name", name))).transpose()?;
        if config.port == 0 {
            return Err(invalid("port", "0"));
        }
        let server =
            config.server.as_ref().map(|text| text.parse().map_err(|_| invalid("server", text))).transpose()?;
        let policy = config.policy.as_ref().map(|hex| {
            let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).ok();
            bytes.and_then(|bytes| entries::policy_in(&bytes).ok()).ok_or_else(|| invalid("policy", hex))
        });
        let policy = policy.transpose()?.unwrap_or_default();
        let (protocol, server) = (config.protocol.into(), server.unwrap_or_default());
        Ok(Self { name, protocol, port: config.port, shared: config.shared, server, policy })
    }
}

impl From<&Import> for ImportConfig {
    fn from(import: &Import) -> Self {
        Self {
            service: import.target.to_string(),
            provider: import.provider.map(|key| key.to_string()),
            protocol: import.protocol.into(),
            bind: import.bind,
            local_port: import.local_port,
        }
    }
}

impl TryFrom<&ImportConfig> for Import {
    type Error = ConfigError;

    fn try_from(config: &ImportConfig) -> Result<Self, ConfigError> {
        let target = match config.service.parse::<u16>() {
            Ok(port) => Target::Port(port),
            Err(_) => Target::Name(config.service.parse().map_err(|_| invalid("service", &config.service))?),
        };
        let provider = config
            .provider
            .as_ref()
            .map(|key| key.parse::<NodeKey>().map_err(|_| invalid("provider", key)))
            .transpose()?;
        if config.local_port == 0 {
            return Err(invalid("local_port", "0"));
        }
        let (protocol, bind, local_port) = (config.protocol.into(), config.bind, config.local_port);
        Ok(Self { target, provider, protocol, bind, local_port })
    }
}

fn invalid(what: &'static str, value: &str) -> ConfigError {
    ConfigError { what, value: value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_nonsense_is_an_error() {
        let import = Import {
            target: Target::Port(53),
            provider: Some(NodeKey([7; 32])),
            protocol: Protocol::Udp,
            bind: Some([10, 0, 0, 1].into()),
            local_port: 5353,
        };
        let export = Export {
            name: Some("api".parse().expect("a name")),
            protocol: Protocol::Tcp,
            port: 80,
            shared: true,
            server: "db.lan:5432".parse().expect("a server"),
            policy: Policy { peers: [NodeKey([7; 32])].into(), ..Policy::default() },
        };
        let config = ServicesConfig { exports: vec![(&export).into()], imports: vec![(&import).into()] };
        let text = serde_json::to_string(&config).expect("plain data");
        let read: ServicesConfig = serde_json::from_str(&text).expect("what was written");
        assert_eq!(Export::try_from(&read.exports[0]), Ok(export));
        for policy in ["", "a1", "a103f5", "zz"] {
            let bad = ExportConfig { policy: Some(policy.into()), ..read.exports[0].clone() };
            assert!(Export::try_from(&bad).is_err(), "never opened for what {policy} would have kept out");
        }
        assert_eq!(Import::try_from(&read.imports[0]), Ok(import.clone()));
        let bad = ImportConfig { provider: Some("zz".into()), ..(&import).into() };
        assert!(Import::try_from(&bad).is_err());
    }
}
