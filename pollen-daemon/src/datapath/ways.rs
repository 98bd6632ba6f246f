//! The way to a peer over Ethernet, as the kernel's own tables have it: asked of them, kept by nobody.
//! Knows routes, neighbours and interfaces; must not know who the peer is.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use pollen_common::abi::{Endpoint, Leg, Mac, NextHop};

use super::netlink::{Netlink, attribute, find, find_u32};

/// Messages and attributes of `linux/rtnetlink.h`, `linux/neighbour.h` and `linux/if_link.h`.
const GET_LINK: u16 = 18;
const GET_ROUTE: u16 = 26;
const GET_NEIGHBOUR: u16 = 30;
const ROUTE_BYTES: usize = 12;
const ROUTE_DESTINATION: u16 = 1;
const ROUTE_INTERFACE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;
const ROUTE_SOURCE: u16 = 7;
const ROUTE_VIA: u16 = 18;
const ROUTE_UNICAST: u8 = 1;
const NEIGHBOUR_BYTES: usize = 12;
const NEIGHBOUR_AT: u16 = 1;
const NEIGHBOUR_MAC: u16 = 2;
/// Reachable, stale, delay, probe, permanent: the address is one that answered.
const NEIGHBOUR_KNOWN: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x80;
const LINK_BYTES: usize = 16;
const LINK_MAC: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;
/// Of `linux/genetlink.h` and `linux/netdev.h`.
const GENERIC_CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const GET_DEVICE: u8 = 1;
const DEVICE_INTERFACE: u16 = 1;
const DEVICE_XDP: u16 = 3;
const GENERIC_BYTES: usize = 4;
/// What a device must do: run a program, redirect from it, and take what is redirected to it.
const XDP_NEEDED: u64 = 0b111;

/// The ends of a leg as packets have them, and how they leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub leg: Leg,
    pub next: NextHop,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// It is a device, and no pair, bridge or tunnel that the kernel made up.
    pub is_hardware: bool,
    /// Its driver runs XDP programs, and sends what they redirect.
    pub does_xdp: bool,
}

/// Who is asked.
pub struct Tables {
    route: Netlink,
    generic: Netlink,
    devices: Option<u16>,
}

impl Tables {
    /// # Errors
    /// Where the kernel or a sandbox does not let us ask.
    pub fn open() -> io::Result<Self> {
        let (route, generic) = (Netlink::open(libc::NETLINK_ROUTE)?, Netlink::open(libc::NETLINK_GENERIC)?);
        let request = [&[GET_FAMILY, 1, 0, 0][..], &attribute(FAMILY_NAME, b"netdev\0")].concat();
        // A kernel before 6.3 does not tell what its drivers do.
        let devices = generic.ask(GENERIC_CONTROL, &request).ok().and_then(|answer| {
            find(answer.get(GENERIC_BYTES..)?, FAMILY_ID)?.first_chunk().map(|id| u16::from_ne_bytes(*id))
        });
        Ok(Self { route, generic, devices })
    }

    /// How packets from port `port` of this node reach `to` now; nothing where that is not by a neighbour on Ethernet whose
    /// address is known.
    pub fn way(&self, to: SocketAddr, port: u16) -> Option<Way> {
        let ip = to.ip().to_canonical();
        let route = self.route(ip, scope(&to)).ok()?;
        let neighbour = self.neighbour(route.gateway, route.interface).ok()??;
        let (mac, mtu) = self.ethernet(route.interface).ok()??;
        let leg = Leg { remote: endpoint(ip, to.port()), local: endpoint(route.source, port) };
        Some(Way { leg, next: NextHop { interface: route.interface, mtu, source: mac, destination: neighbour } })
    }

    fn route(&self, to: IpAddr, scope: u32) -> io::Result<Route> {
        let bytes = octets(to);
        let bits = u8::try_from(bytes.len() * 8).unwrap_or(128);
        let mut request = vec![family(to), bits, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        request.extend(attribute(ROUTE_DESTINATION, &bytes));
        if scope != 0 {
            request.extend(attribute(ROUTE_INTERFACE, &scope.to_ne_bytes()));
        }
        let answer = self.route.ask(GET_ROUTE, &request)?;
        let (head, attributes) = answer.split_at_checked(ROUTE_BYTES).ok_or(io::ErrorKind::InvalidData)?;
        let address = |kind| find(attributes, kind).and_then(ip_of);
        // Behind its family, as a gateway may be of the other one.
        let via = find(attributes, ROUTE_VIA).and_then(|via| ip_of(via.get(2..)?));
        match (head[7], address(ROUTE_SOURCE), find_u32(attributes, ROUTE_INTERFACE)) {
            (ROUTE_UNICAST, Some(source), Some(interface)) => {
                Ok(Route { source, interface, gateway: address(ROUTE_GATEWAY).or(via).unwrap_or(to) })
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn neighbour(&self, at: IpAddr, interface: u32) -> io::Result<Option<Mac>> {
        let mut request = vec![family(at), 0, 0, 0];
        request.extend(interface.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(attribute(NEIGHBOUR_AT, &octets(at)));
        let answer = self.route.ask(GET_NEIGHBOUR, &request)?;
        let (head, attributes) = answer.split_at_checked(NEIGHBOUR_BYTES).ok_or(io::ErrorKind::InvalidData)?;
        let known = u16::from_ne_bytes([head[8], head[9]]) & NEIGHBOUR_KNOWN != 0;
        Ok(find(attributes, NEIGHBOUR_MAC).filter(|_| known).and_then(mac_of))
    }

    fn link(&self, interface: u32) -> io::Result<Vec<u8>> {
        let mut request = vec![0; 4];
        request.extend(interface.to_ne_bytes());
        request.extend([0; 8]);
        self.route.ask(GET_LINK, &request)
    }

    /// The interface's own address and its MTU, if it is one of Ethernet.
    fn ethernet(&self, interface: u32) -> io::Result<Option<(Mac, u32)>> {
        let answer = self.link(interface)?;
        let (head, attributes) = answer.split_at_checked(LINK_BYTES).ok_or(io::ErrorKind::InvalidData)?;
        let is_ethernet = u16::from_ne_bytes([head[2], head[3]]) == ETHERNET;
        let mac = find(attributes, LINK_MAC).and_then(mac_of);
        Ok(mac.zip(find_u32(attributes, LINK_MTU)).filter(|_| is_ethernet))
    }

    /// What is known of an interface; nothing if it is gone.
    pub fn interface(&self, index: u32) -> Option<Interface> {
        let answer = self.link(index).ok()?;
        let name = find(answer.get(LINK_BYTES..)?, LINK_NAME)?;
        let name = String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned();
        // Names come from the kernel: none has a slash.
        let is_hardware = std::fs::exists(format!("/sys/class/net/{name}/device")).unwrap_or(false);
        Some(Interface { index, name, is_hardware, does_xdp: self.does_xdp(index).unwrap_or(false) })
    }

    fn does_xdp(&self, index: u32) -> Option<bool> {
        let request = [&[GET_DEVICE, 1, 0, 0][..], &attribute(DEVICE_INTERFACE, &index.to_ne_bytes())].concat();
        let answer = self.generic.ask(self.devices?, &request).ok()?;
        let features = find(answer.get(GENERIC_BYTES..)?, DEVICE_XDP)?.first_chunk()?;
        Some(u64::from_ne_bytes(*features) & XDP_NEEDED == XDP_NEEDED)
    }
}

struct Route {
    source: IpAddr,
    interface: u32,
    gateway: IpAddr,
}

/// As packets have it.
pub fn endpoint(ip: IpAddr, port: u16) -> Endpoint {
    match ip {
        IpAddr::V4(v4) => Endpoint::v4(v4.octets(), port.to_be_bytes()),
        IpAddr::V6(v6) => Endpoint::v6(v6.octets(), port.to_be_bytes()),
    }
}

const fn scope(at: &SocketAddr) -> u32 {
    match at {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(v6) => v6.scope_id(),
    }
}

const fn family(ip: IpAddr) -> u8 {
    // `AF_INET` and `AF_INET6`, which are one byte here.
    match ip {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).into()))
}

fn mac_of(bytes: &[u8]) -> Option<Mac> {
    let [a, b, c, d, e, f] = <[u8; 6]>::try_from(bytes).ok()?;
    Some([u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_and_what_is_on_this_machine_has_no_way_over_ethernet() {
        let tables = Tables::open().unwrap();
        for to in ["127.0.0.1:9", "[::1]:9"] {
            assert_eq!(tables.way(to.parse().unwrap(), 1), None, "{to}");
        }
        let route = tables.route("127.0.0.1".parse().unwrap(), 0);
        assert!(route.is_err(), "it is local");
        let loopback = tables.interface(1).unwrap();
        assert_eq!((loopback.name.as_str(), loopback.is_hardware, loopback.does_xdp), ("lo", false, false));
        assert_eq!(tables.interface(u32::MAX >> 1), None);
    }
}
