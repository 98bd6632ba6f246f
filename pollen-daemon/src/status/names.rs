//! The words of the cluster as JSON spells them, in requests, answers and documents.

use std::net::SocketAddr;

use pollen_common::roll::Tier;
use pollen_common::views::Protocol;
use serde::{Deserialize, Serialize};

use crate::services::Listener;

/// A protocol by its lower-case name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProtocolName {
    #[default]
    Tcp,
    Udp,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Tcp => Self::Tcp,
            ProtocolName::Udp => Self::Udp,
        }
    }
}

impl From<Protocol> for ProtocolName {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

/// A tier by its lower-case name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TierName {
    #[default]
    Leaf,
    Publisher,
    Admin,
}

impl From<TierName> for Tier {
    fn from(name: TierName) -> Self {
        match name {
            TierName::Leaf => Self::Leaf,
            TierName::Publisher => Self::Publisher,
            TierName::Admin => Self::Admin,
        }
    }
}

impl From<Tier> for TierName {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::Leaf => Self::Leaf,
            Tier::Publisher => Self::Publisher,
            Tier::Admin => Self::Admin,
        }
    }
}

/// A local listener to a service of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// A name, or the port of an unnamed service.
    pub service: String,
    /// The key of the provider that it is pinned to.
    pub provider: Option<String>,
    pub protocol: ProtocolName,
    /// The local port that it listens on, or would.
    pub local_port: u16,
    /// Where it listens, each as `address:port`.
    pub local: Vec<SocketAddr>,
    /// Why it does not listen, if so; it tries again.
    pub waiting: Option<String>,
}

impl From<&Listener> for Connection {
    fn from(listener: &Listener) -> Self {
        Self {
            service: listener.service.to_string(),
            provider: listener.provider.map(|key| key.to_string()),
            protocol: listener.protocol.into(),
            local_port: listener.local_port,
            local: listener.local.clone(),
            waiting: listener.waiting.clone(),
        }
    }
}
