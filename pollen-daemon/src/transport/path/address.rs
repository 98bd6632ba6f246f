//! The two kinds of address beneath QUIC. Owns how they are written and compared; knows no socket.
//! Invariant: one sender has one [`Source`] and one node one [`VirtualAddr`], because quinn compares addresses exactly.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use pollen_common::circuit::Label;
use pollen_common::identity::NodeKey;
use pollen_common::path_probe::virtual_ip;

/// quinn refuses port 0; the number itself means nothing.
const VIRTUAL_PORT: u16 = 1;
/// Where a circuit's label is written as an address: in the discard prefix, where no packet comes from.
const CIRCUITS_PREFIX: u8 = 0x01;

/// The address by which QUIC knows a node, whatever its packets travel on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualAddr(Ipv6Addr);

impl VirtualAddr {
    /// The one address of the node with `key`.
    #[must_use]
    pub fn of(key: &NodeKey) -> Self {
        Self(virtual_ip(key))
    }

    /// As quinn wants it.
    #[must_use]
    pub fn to_socket(self) -> SocketAddr {
        SocketAddr::V6(SocketAddrV6::new(self.0, VIRTUAL_PORT, 0, 0))
    }

    /// From what quinn gives back; `None` for an address that is not ours.
    #[must_use]
    pub fn from_socket(address: &SocketAddr) -> Option<Self> {
        match address {
            SocketAddr::V6(v6) if v6.port() == VIRTUAL_PORT => Some(Self(*v6.ip())),
            _ => None,
        }
    }
}

/// Where packets come from and go to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A UDP address.
    Udp(UdpSource),
    /// The other end of a circuit, by the label that this node made for it.
    Circuit(Label),
}

/// A UDP address: IPv4 in its mapped form, no flow label, a scope only where it matters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UdpSource(SocketAddrV6);

impl UdpSource {
    /// The address as the socket API wants it; an IPv4 socket takes no mapped addresses.
    #[must_use]
    pub fn to_socket(self, ipv4_only: bool) -> SocketAddr {
        if ipv4_only { self.shown() } else { SocketAddr::V6(self.0) }
    }

    /// The address as people write it.
    #[must_use]
    pub fn shown(self) -> SocketAddr {
        match self.0.ip().to_canonical() {
            IpAddr::V4(v4) => SocketAddr::from((v4, self.0.port())),
            IpAddr::V6(_) => SocketAddr::V6(self.0),
        }
    }

    fn is_usable(self) -> bool {
        let ip = self.0.ip().to_canonical();
        self.0.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
    }
}

impl Source {
    /// The UDP address, where it is one.
    #[must_use]
    pub const fn udp(self) -> Option<UdpSource> {
        match self {
            Self::Udp(udp) => Some(udp),
            Self::Circuit(_) => None,
        }
    }

    /// What a cookie is bound to: an address that no two sources share.
    #[must_use]
    pub fn as_v6(&self) -> SocketAddrV6 {
        match self {
            Self::Udp(UdpSource(address)) => *address,
            Self::Circuit(label) => {
                let [a, b, c, d] = label.0.to_be_bytes();
                let mut octets = [0; 16];
                octets[0] = CIRCUITS_PREFIX;
                octets[12..].copy_from_slice(&[a, b, c, d]);
                SocketAddrV6::new(octets.into(), 0, 0, 0)
            }
        }
    }

    /// Whether packets can be sent there at all.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.udp().is_none_or(UdpSource::is_usable)
    }
}

impl From<SocketAddr> for Source {
    fn from(address: SocketAddr) -> Self {
        Self::Udp(UdpSource(match address {
            SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0),
            SocketAddr::V6(v6) => {
                let scope = if v6.ip().is_unicast_link_local() { v6.scope_id() } else { 0 };
                SocketAddrV6::new(*v6.ip(), v6.port(), 0, scope)
            }
        }))
    }
}

impl fmt::Debug for UdpSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().fmt(f)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(udp) => udp.fmt(f),
            Self::Circuit(label) => label.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_sender_has_one_source_on_both_kinds_of_socket() {
        let plain: SocketAddr = "192.0.2.1:9".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:9".parse().unwrap();
        assert_eq!(Source::from(plain), Source::from(mapped));
        assert_eq!(Source::from(mapped).udp().unwrap().shown(), plain);
        assert_eq!(Source::from(mapped).udp().unwrap().to_socket(true), plain);
        assert_eq!(Source::from(plain).udp().unwrap().to_socket(false), mapped);
    }

    #[test]
    fn a_virtual_address_comes_back_from_quinn_and_no_other_does() {
        let address = VirtualAddr::of(&NodeKey([7; 32]));
        assert_eq!(VirtualAddr::from_socket(&address.to_socket()), Some(address));
        assert_eq!(VirtualAddr::from_socket(&"192.0.2.1:1".parse().unwrap()), None);
    }
}
