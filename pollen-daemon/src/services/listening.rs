//! Which local ports somebody listens on, asked of the kernel (`NETLINK_SOCK_DIAG`, sock_diag(7)): a dump of the sockets
//! that wait for peers, which costs nothing for those that have one. Must not know what is served.
//! Invariant: opens no connection to anyone's server.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use pollen_common::views::Protocol;
use socket2::{Domain, Socket, Type};

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
/// Of `linux/netlink.h`.
const REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_BYTES: usize = 16;
/// `inet_diag_req_v2` and `inet_diag_msg` of `linux/inet_diag.h`.
const REQUEST_BYTES: usize = 56;
const ANSWER_BYTES: usize = 72;
/// States of `net/tcp_states.h`, as bits: a TCP socket that listens; a UDP socket that has no peer.
const LISTEN: u32 = 1 << 10;
const CLOSE: u32 = 1 << 7;
/// The kernel fills at most 32 KiB at once.
const ROOM_BYTES: usize = 32 << 10;
/// Reads of one dump: some hundred sockets each. A machine with more listeners than that is left without an answer.
const READS_MAX: usize = 1024;
/// It answers at once; a kernel that does not must not hold the asker.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// The ports on which a connection to this machine's loopback finds somebody.
///
/// # Errors
/// Where the kernel does not tell: without the module, or in a sandbox.
pub(super) fn on_loopback(protocol: Protocol) -> io::Result<BTreeSet<u16>> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::DGRAM,
        Some(socket2::Protocol::from(libc::NETLINK_SOCK_DIAG)),
    )?;
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    let mut ports = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(&socket, family, protocol, &mut ports)?;
    }
    Ok(ports)
}

fn dump(socket: &Socket, family: libc::c_int, protocol: Protocol, ports: &mut BTreeSet<u16>) -> io::Result<()> {
    socket.send(&request(family, protocol))?;
    let mut room = vec![0; ROOM_BYTES];
    for _ in 0..READS_MAX {
        let read = io::Read::read(&mut &*socket, &mut room)?;
        if take(&room[..read], ports)? {
            return Ok(());
        }
    }
    Err(io::Error::other("too many sockets"))
}

fn request(family: libc::c_int, protocol: Protocol) -> Vec<u8> {
    let (number, states) = match protocol {
        Protocol::Tcp => (libc::IPPROTO_TCP, LISTEN),
        Protocol::Udp => (libc::IPPROTO_UDP, CLOSE),
    };
    let mut request = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    let len = u32::try_from(HEADER_BYTES + REQUEST_BYTES).unwrap_or(u32::MAX);
    request.extend(len.to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    request.extend(REQUEST_DUMP.to_ne_bytes());
    // The sequence, and whose socket it is: the kernel knows.
    request.extend([0; 8]);
    let byte = |number: libc::c_int| u8::try_from(number).unwrap_or(0);
    request.extend([byte(family), byte(number), 0, 0]);
    request.extend(states.to_ne_bytes());
    // Any socket.
    request.resize(HEADER_BYTES + REQUEST_BYTES, 0);
    request
}

/// Takes the ports out of one read. Whether it was the last.
fn take(mut read: &[u8], ports: &mut BTreeSet<u16>) -> io::Result<bool> {
    while let Some(header) = read.first_chunk::<HEADER_BYTES>() {
        let len = usize::try_from(u32::from_ne_bytes([header[0], header[1], header[2], header[3]])).unwrap_or(0);
        let body = read.get(HEADER_BYTES..len).ok_or(io::ErrorKind::InvalidData)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return Err(io::ErrorKind::Unsupported.into()),
            BY_FAMILY => ports.extend(reached_by_loopback(body)),
            _ => {}
        }
        // Messages begin at multiples of four.
        read = read.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The port of a socket that a connection to a loopback reaches.
fn reached_by_loopback(body: &[u8]) -> Option<u16> {
    let body = body.first_chunk::<ANSWER_BYTES>()?;
    let source = body[8..24].first_chunk::<16>()?;
    let address = if i32::from(body[0]) == libc::AF_INET {
        IpAddr::from(Ipv4Addr::new(source[0], source[1], source[2], source[3]))
    } else {
        IpAddr::from(Ipv6Addr::from(*source)).to_canonical()
    };
    (address.is_unspecified() || address.is_loopback()).then(|| u16::from_be_bytes([body[4], body[5]]))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn listened(protocol: Protocol, port: u16) -> bool {
        on_loopback(protocol).expect("Linux tells").contains(&port)
    }

    #[test]
    fn a_tcp_port_is_listened_on_for_as_long_as_a_server_listens_whatever_connections_there_are() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let server = TcpListener::bind(address).expect("a loopback");
            let port = server.local_addr().expect("bound").port();
            assert!(listened(Protocol::Tcp, port), "{address}");
            let client = TcpStream::connect(server.local_addr().expect("bound")).expect("it listens");
            let accepted = server.accept().expect("one came");
            drop(server);
            assert!(!listened(Protocol::Tcp, port), "{address}");
            drop((client, accepted));
        }
    }

    #[test]
    fn a_udp_port_is_listened_on_where_a_socket_without_a_peer_is_bound() {
        for address in ["127.0.0.1:0", "[::ffff:127.0.0.1]:0", "[::]:0"] {
            let server = UdpSocket::bind(address).expect("a loopback");
            let port = server.local_addr().expect("bound").port();
            assert!(listened(Protocol::Udp, port), "{address}");
            drop(server);
            assert!(!listened(Protocol::Udp, port), "{address}");
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic_and_a_cut_message_is_an_error() {
        let mut ports = BTreeSet::new();
        assert!(take(&[], &mut ports).is_ok_and(|last| !last));
        let mut cut = vec![0; HEADER_BYTES];
        cut[0] = 0xFF;
        assert!(take(&cut, &mut ports).is_err());
        cut[..4].fill(0);
        assert!(take(&cut, &mut ports).is_err(), "a message shorter than its header would never end");
    }
}
