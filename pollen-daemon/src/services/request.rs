//! The words in which services are asked for: a service of this node's own, a port to publish, a listener to open.
//! Shapes alone.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use pollen_common::identity::NodeKey;
use pollen_common::names::NameError;
use pollen_common::views::{Name, Policy, Protocol};

use super::Server;

/// A service of this node's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceRef {
    Name(Name),
    /// By local port. `unserve` removes whatever is published on it, named or not.
    Port(u16),
}

impl ServiceRef {
    #[must_use]
    pub fn is_name(&self, name: &Name) -> bool {
        matches!(self, Self::Name(own) if own == name)
    }

    #[must_use]
    pub fn is_port(&self, port: u16) -> bool {
        matches!(self, Self::Port(own) if *own == port)
    }
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Port(port) => port.fmt(f),
        }
    }
}

impl FromStr for ServiceRef {
    type Err = NameError;
    /// A lone decimal up to 65535 is a port, anything else a name.
    fn from_str(s: &str) -> Result<Self, NameError> {
        s.parse().map(Self::Port).or_else(|_| s.parse().map(Self::Name))
    }
}

/// A local port to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serve {
    pub port: u16,
    pub name: Option<Name>,
    pub protocol: Protocol,
    pub shared: bool,
    /// Where its server is.
    pub server: Server,
    /// Who may reach it; as it was where absent, and every member where it was not served.
    pub policy: Option<Policy>,
}

/// A local listener to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// A name, or with a provider its port.
    pub service: ServiceRef,
    /// A node name or a prefix of its hexadecimal key.
    pub provider: Option<String>,
    /// Where to listen; on this machine's loopback where absent.
    pub bind: Option<IpAddr>,
    /// The service's own port where absent; 0 for the listener there is, or any free port.
    pub local_port: Option<u16>,
}

/// Local listeners to close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disconnect {
    /// A service's name, or the listener's *local* port.
    pub service: ServiceRef,
    pub provider: Option<String>,
}

/// A local listener to a service of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// A name, or the port of an unnamed service.
    pub service: ServiceRef,
    /// The one provider it is pinned to.
    pub provider: Option<NodeKey>,
    pub protocol: Protocol,
    /// The port that it listens on, or would.
    pub local_port: u16,
    /// Where it listens; several where both loopback families do.
    pub local: Vec<SocketAddr>,
    /// Why it does not listen, if so; it tries again.
    pub waiting: Option<String>,
}
