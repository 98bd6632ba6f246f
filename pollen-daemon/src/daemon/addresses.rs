//! Where this machine can be reached: the addresses of its interfaces, and word when they change. Owns which of them
//! are worth telling; must not know who is told.

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

use crate::config::{Excluded, IPS_MAX};

/// How often addresses are read again even if the kernel said nothing: it drops messages when its queue is full.
const READ_AGAIN_EVERY: Duration = Duration::from_secs(30);

/// Changes come in bunches (an interface, its routes, the address after duplicate detection).
const SETTLE: Duration = Duration::from_millis(300);

/// Multicast groups of IPv4 and IPv6 address changes, `RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR` of `rtnetlink.h`.
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

/// The addresses to announce with `port`: `given` ones if any, else those of the interfaces but those that are `not` to
/// be told; loopback only where there is nothing else. Without `tunnels`, no address of a tunnel whose packets may run
/// through this node: its own packets would run through themselves.
#[must_use]
pub fn to_announce(given: &[IpAddr], not: &[Excluded], tunnels: bool, port: u16) -> Vec<SocketAddr> {
    let ips = if given.is_empty() {
        let all = interface_addresses().into_iter().filter(|(interface, ip)| {
            !not.iter().any(|not| not.covers(interface, ip)) && (tunnels || !is_tunnel(interface))
        });
        worth_telling(all.map(|(_, ip)| ip).collect())
    } else {
        given.to_vec()
    };
    ips.into_iter().take(IPS_MAX).map(|ip| SocketAddr::new(ip, port)).collect()
}

/// `ARPHRD_PPP` and `ARPHRD_NONE` of `linux/if_arp.h`: PPP, and what has no link layer, as WireGuard and every tun device.
const TUNNEL_TYPES: [&str; 2] = ["512", "65534"];

/// Whether the packets of an interface travel in others, by whatever program carries them.
fn is_tunnel(interface: &str) -> bool {
    // Names come from the kernel: none has a slash.
    let kind = std::fs::read_to_string(format!("/sys/class/net/{interface}/type"));
    kind.is_ok_and(|kind| TUNNEL_TYPES.contains(&kind.trim()))
}

fn worth_telling(all: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut told: Vec<IpAddr> = Vec::new();
    for ip in all.iter().filter(|ip| !ip.is_loopback()) {
        if !told.contains(ip) && !needs_scope(ip) {
            told.push(*ip);
        }
    }
    if told.is_empty() {
        told.extend(all.into_iter().filter(IpAddr::is_loopback));
    }
    // Where there are too many, those that more peers can use come first; the order of interfaces decides the rest.
    told.sort_by_key(|ip| match ip {
        IpAddr::V4(v4) if v4.is_private() => 1,
        IpAddr::V6(v6) if v6.is_unique_local() => 1,
        _ => 0,
    });
    told
}

/// Link-local addresses mean nothing without the interface, which differs on every machine.
fn needs_scope(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// All addresses of interfaces that are up, each with its interface, in the kernel's order; none if it does not tell.
fn interface_addresses() -> Vec<(String, IpAddr)> {
    let mut list = std::ptr::null_mut();
    // SAFETY: `list` is a valid place for the pointer that the call stores.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        tracing::warn!(error = %io::Error::last_os_error(), "the addresses of interfaces cannot be read");
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut next = list;
    // SAFETY: the list ends with a null pointer and its entries live until `freeifaddrs`, below.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        #[allow(clippy::cast_sign_loss)] // A bit mask that libc types as signed.
        let up = entry.ifa_flags & libc::IFF_UP as u32 != 0;
        if !up || entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: a non-null `ifa_addr` points to a socket address of the family that it names.
        let ip = unsafe { ip_of(entry.ifa_addr) };
        // SAFETY: `ifa_name` is a NUL-terminated string of the entry.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) };
        let ip = ip.filter(|_| !is_bridge_of_containers(name));
        found.extend(ip.map(|ip| (name.to_string_lossy().into_owned(), ip)));
    }
    // SAFETY: `list` came from `getifaddrs` and is not used again.
    unsafe { libc::freeifaddrs(list) };
    found
}

/// The same private addresses stand on every machine that runs containers: peers would reach themselves.
fn is_bridge_of_containers(name: &CStr) -> bool {
    let name = name.to_bytes();
    [&b"docker"[..], b"br-", b"virbr", b"cni", b"podman"].iter().any(|prefix| name.starts_with(prefix))
}

/// # Safety
/// `address` points to a whole socket address of the family that it names.
unsafe fn ip_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: every socket address starts with its family.
    match i32::from(unsafe { (*address).sa_family }) {
        libc::AF_INET => {
            // SAFETY: the family says that it is a `sockaddr_in`; it may be less aligned than the type.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes()).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for `sockaddr_in6`.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

/// Says when to read the addresses again.
#[derive(Debug)]
pub struct Changes {
    /// Absent where netlink is not to be had (a sandbox): then the interval alone serves.
    netlink: Option<AsyncFd<OwnedFd>>,
}

impl Changes {
    /// Listens to the kernel from now on. To be made inside a runtime.
    #[must_use]
    pub fn listen() -> Self {
        let netlink = open_netlink().map_err(|error| tracing::debug!(%error, "no netlink: addresses are polled")).ok();
        Self { netlink }
    }

    /// Returns when addresses may have changed.
    pub async fn next(&self) {
        let told = async {
            match &self.netlink {
                Some(netlink) => wait(netlink).await,
                None => std::future::pending().await,
            }
        };
        if tokio::time::timeout(READ_AGAIN_EVERY, told).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
        }
    }
}

fn open_netlink() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &rustix::net::netlink::SocketAddrNetlink::new(0, ADDRESS_GROUPS))?;
    // SAFETY: the descriptor is owned by the `AsyncFd` until it is dropped, and never changed.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Waits for a message and discards all there are: that something changed is all they are asked for.
async fn wait(netlink: &AsyncFd<OwnedFd>) {
    let mut scratch = [0; 4096];
    loop {
        let Ok(mut ready) = netlink.readable().await else { return std::future::pending().await };
        let mut heard = false;
        // An overrun queue says that messages were lost, which is a change as well.
        while match rustix::net::recv(netlink, &mut scratch[..], RecvFlags::empty()) {
            Ok((_, length)) => length > 0,
            Err(errno) => errno == rustix::io::Errno::NOBUFS,
        } {
            heard = true;
        }
        ready.clear_ready();
        if heard {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn addresses_that_others_can_use_are_told_public_ones_first() {
        let all =
            ips(&["127.0.0.1", "10.0.0.2", "fe80::1", "::1", "2001:db8::1", "169.254.1.1", "10.0.0.2", "fd00::1"]);
        assert_eq!(worth_telling(all), ips(&["2001:db8::1", "10.0.0.2", "fd00::1"]));
    }

    #[test]
    fn loopback_is_told_where_there_is_nothing_else() {
        assert_eq!(worth_telling(ips(&["127.0.0.1", "fe80::1", "::1"])), ips(&["127.0.0.1", "::1"]));
    }

    #[test]
    fn given_addresses_stand_as_they_are() {
        let told = to_announce(&ips(&["127.0.0.1"]), &["127.0.0.0/8".parse().expect("a network")], false, 7);
        assert_eq!(told, ["127.0.0.1:7".parse::<SocketAddr>().expect("an address")]);
    }

    #[test]
    fn what_is_excluded_is_not_told() {
        let of = |not: &str| to_announce(&[], &[not.parse().expect("a network or interface")], true, 7);
        // Nothing is left but what is told where there is nothing else, and that is excluded, too.
        let nothing = to_announce(&[], &["0.0.0.0/0", "::/0"].map(|not| not.parse().expect("a network")), true, 7);
        assert!(nothing.is_empty(), "{nothing:?}");
        assert!(of("0.0.0.0/0").iter().all(SocketAddr::is_ipv6));
        assert!(!is_tunnel("lo") && !is_tunnel("no-such-interface"));
    }

    #[test]
    fn this_machine_has_addresses() {
        assert!(!interface_addresses().is_empty(), "every machine has a loopback interface");
    }

    #[tokio::test]
    async fn netlink_is_listened_to() {
        Changes::listen().netlink.expect("tests run where netlink is allowed");
    }
}
