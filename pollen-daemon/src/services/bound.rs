//! Whether a server of this machine is there, as the kernel knows without the server noticing. Owns the question
//! (sock_diag(7), netlink); must not know what is served.
//! Invariant: nothing is connected to and nothing read: a server that takes one client must not get us for it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use pollen_common::views::Protocol;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// `SOCK_DIAG_BY_FAMILY`, `NLM_F_REQUEST | NLM_F_DUMP` and the types of the answers, of `linux/sock_diag.h` and
/// `linux/netlink.h`.
const BY_FAMILY: u16 = 20;
const REQUEST_ALL: u16 = 0x1 | 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `sizeof(struct nlmsghdr)` and `sizeof(struct inet_diag_req_v2)`.
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = 56;
/// Where `struct inet_diag_msg` has its local address.
const ADDRESS_AT: usize = 8;
/// What the kernel sends at once at most, as its own tools read it.
const ANSWER_BYTES_MAX: usize = 32 * 1024;
/// The kernel answers while it is asked; that it does not is no reason to wait.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(1);

/// The local addresses on which something listens at `port`, both families together.
///
/// # Errors
/// When the kernel does not tell: a sandbox without netlink, or a kernel without `inet_diag`.
pub(super) fn listening_at(protocol: Protocol, port: u16) -> io::Result<Vec<IpAddr>> {
    let mut found = of_family(AddressFamily::INET, protocol, port)?;
    found.extend(of_family(AddressFamily::INET6, protocol, port)?);
    Ok(found)
}

/// Whether whoever dials the loopback at `port` finds a server; so where the kernel does not tell.
pub(super) fn is_served_here(protocol: Protocol, port: u16) -> bool {
    listening_at(protocol, port).map_or(true, |found| found.iter().any(reached_by_loopback))
}

fn reached_by_loopback(address: &IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_unspecified() || address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST
}

fn of_family(family: AddressFamily, protocol: Protocol, port: u16) -> io::Result<Vec<IpAddr>> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(ANSWER_WAIT_MAX))?;
    rustix::net::sendto(
        &socket,
        &request(family, protocol, port),
        SendFlags::empty(),
        &netlink::SocketAddrNetlink::new(0, 0),
    )?;
    let mut found = Vec::new();
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let (_, length) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
        if read(&answer[..length.min(ANSWER_BYTES_MAX)], &mut found)? {
            return Ok(found);
        }
    }
}

fn request(family: AddressFamily, protocol: Protocol, port: u16) -> [u8; HEADER_BYTES + REQUEST_BYTES] {
    // A UDP socket that is bound and not connected is in the state that TCP calls closed.
    let (protocol, state) = match protocol {
        Protocol::Tcp => (6, 10),
        Protocol::Udp => (17, 7),
    };
    let mut bytes = [0; HEADER_BYTES + REQUEST_BYTES];
    let length = u32::try_from(bytes.len()).expect("a hundred bytes");
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_ALL.to_ne_bytes());
    let body = &mut bytes[HEADER_BYTES..];
    body[0] = u8::try_from(family.as_raw()).expect("families have small numbers");
    body[1] = protocol;
    body[4..8].copy_from_slice(&(1u32 << state).to_ne_bytes());
    body[8..10].copy_from_slice(&port.to_be_bytes());
    bytes
}

/// Takes the addresses of one answer; whether it was the last.
fn read(mut answer: &[u8], found: &mut Vec<IpAddr>) -> io::Result<bool> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    while let Some((header, rest)) = answer.split_first_chunk::<HEADER_BYTES>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = length.checked_sub(HEADER_BYTES).and_then(|length| rest.get(..length)).ok_or_else(malformed)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            DONE => return Ok(true),
            ERROR => {
                let code = body.first_chunk().copied().map_or(0, i32::from_ne_bytes);
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            _ => found.push(address(body).ok_or_else(malformed)?),
        }
        // Messages begin at multiples of four.
        answer = rest.get(body.len().next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn address(body: &[u8]) -> Option<IpAddr> {
    let at = body.get(ADDRESS_AT..)?;
    if u16::from(*body.first()?) == AddressFamily::INET.as_raw() {
        return Some(Ipv4Addr::from(*at.first_chunk::<4>()?).into());
    }
    Some(Ipv6Addr::from(*at.first_chunk::<16>()?).into())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn servers_are_seen_wherever_they_listen_and_gone_when_they_are_gone() {
        for (at, here) in
            [("127.0.0.1:0", true), ("0.0.0.0:0", true), ("[::1]:0", true), ("[::]:0", true), ("127.0.0.2:0", false)]
        {
            let tcp = TcpListener::bind(at).expect("free");
            let port = tcp.local_addr().expect("bound").port();
            assert_eq!(is_served_here(Protocol::Tcp, port), here, "{at}");
            drop(tcp);
            assert_eq!(listening_at(Protocol::Tcp, port).expect("the kernel tells"), Vec::<IpAddr>::new());
            let udp = UdpSocket::bind(at).expect("free");
            let address = udp.local_addr().expect("bound");
            assert_eq!(listening_at(Protocol::Udp, address.port()).expect("the kernel tells"), [address.ip()]);
        }
    }

    #[test]
    fn what_is_no_answer_is_an_error_or_says_nothing() {
        let mut found = Vec::new();
        assert!(matches!(read(&[], &mut found), Ok(false)));
        assert!(read(&[255; 64], &mut found).is_err());
        assert!(read(&[16, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &mut found).is_err(), "no body");
        assert!(found.is_empty());
    }
}
