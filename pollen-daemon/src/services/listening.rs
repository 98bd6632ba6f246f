//! Which local ports somebody listens on, asked of the kernel (`NETLINK_SOCK_DIAG`, sock_diag(7)): a dump of the sockets
//! that wait for peers, which costs nothing for those that have one; and for UDP, where the server of one port is.
//! Must not know what is served.
//! Invariants: opens no connection to anyone's server, and sends it nothing; a server that is said to be bound is one
//! that [`Bound::server`] finds.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use pollen_common::views::Protocol;
use socket2::{Domain, Socket, Type};

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
/// Of `linux/netlink.h`.
const REQUEST: u16 = 1;
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
/// Servers at addresses other than the loopbacks, whose address is remembered: more than a node serves.
const REMEMBERED_MAX: usize = super::exports::EXPORTS_MAX;
/// It answers at once; a kernel that does not must not hold the asker.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// The ports on which a caller of a service finds somebody.
///
/// # Errors
/// Where the kernel does not tell: without the module, or in a sandbox.
pub(super) fn on_this_machine(protocol: Protocol) -> io::Result<BTreeSet<u16>> {
    let socket = open()?;
    let mut ports = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let of_family = dump(&socket, &request(family, protocol, REQUEST_DUMP, None, 0))?;
        let found = of_family.into_iter().filter(|at| match protocol {
            Protocol::Tcp => at.ip().is_unspecified() || at.ip().is_loopback(),
            Protocol::Udp => at.ip().is_unspecified() || is_dialled(&at.ip()),
        });
        ports.extend(found.map(|at| at.port()));
    }
    Ok(ports)
}

/// Where the UDP servers of this machine are.
#[derive(Debug, Default)]
pub(super) struct Bound(Mutex<Asker>);

#[derive(Debug, Default)]
struct Asker {
    socket: Option<Socket>,
    /// Where those were found that are at neither loopback.
    elsewhere: BTreeMap<u16, IpAddr>,
    /// Whether this kernel tells; found out once, with a socket of our own.
    tells: Option<bool>,
}

impl Bound {
    /// Where datagrams for the server at `port` go: to 127.0.0.1 or ::1, if one of them reaches it, else to the address
    /// that it is bound to; 127.0.0.1 where the kernel does not tell. Nothing where there is no server: UDP itself would
    /// tell only after the first datagram was lost.
    pub(super) fn server(&self, port: u16) -> Option<SocketAddr> {
        let mut asker = self.0.lock().expect("nothing panics while it holds this lock");
        asker.server(port).unwrap_or_else(|error| {
            tracing::debug!(%error, "the kernel does not say where a UDP server is");
            // An answer that comes late must not be taken for one to the next question.
            asker.socket = None;
            Some((Ipv4Addr::LOCALHOST, port).into())
        })
    }
}

impl Asker {
    fn server(&mut self, port: u16) -> io::Result<Option<SocketAddr>> {
        let loopbacks = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        if !self.tells() {
            return Ok(Some((loopbacks[0], port).into()));
        }
        for ip in loopbacks.into_iter().chain(self.elsewhere.get(&port).copied()) {
            if self.reaches((ip, port).into())? {
                return Ok(Some((ip, port).into()));
            }
        }
        let socket = self.socket()?;
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            found.extend(dump(socket, &request(family, Protocol::Udp, REQUEST_DUMP, None, port))?);
        }
        let found = found.into_iter().filter(|at| at.port() == port && is_dialled(&at.ip()));
        let Some(at) = found.min_by_key(|at| (!at.ip().is_loopback(), *at)) else { return Ok(None) };
        if self.elsewhere.len() >= REMEMBERED_MAX {
            self.elsewhere.clear();
        }
        self.elsewhere.insert(port, at.ip());
        Ok(Some(at))
    }

    /// Whether a datagram to `at` finds a socket: the same search that the kernel makes for one that arrives.
    fn reaches(&mut self, at: SocketAddr) -> io::Result<bool> {
        let family = if at.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = self.socket()?;
        socket.send(&request(family, Protocol::Udp, REQUEST, Some(at.ip()), at.port()))?;
        let mut room = [0; 1024];
        let read = io::Read::read(&mut &*socket, &mut room)?;
        let header = room[..read].first_chunk::<HEADER_BYTES>().ok_or(io::ErrorKind::InvalidData)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            BY_FAMILY => Ok(true),
            NLMSG_ERROR => {
                let code = room.get(HEADER_BYTES..HEADER_BYTES + 4).and_then(|bytes| bytes.first_chunk::<4>());
                match code.map(|bytes| -i32::from_ne_bytes(*bytes)) {
                    Some(libc::ENOENT) => Ok(false),
                    Some(code) => Err(io::Error::from_raw_os_error(code)),
                    None => Err(io::ErrorKind::InvalidData.into()),
                }
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// A kernel without the module says of every socket that there is none: of one that is there, too.
    fn tells(&mut self) -> bool {
        if let Some(tells) = self.tells {
            return tells;
        }
        let mut probe = || {
            let own = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            self.reaches(own.local_addr()?)
        };
        let tells = probe();
        if !matches!(tells, Ok(true)) {
            self.socket = None;
            tracing::warn!(?tells, "this kernel does not say where UDP servers are: they are taken to be on 127.0.0.1");
        }
        *self.tells.insert(matches!(tells, Ok(true)))
    }

    fn socket(&mut self) -> io::Result<&Socket> {
        if self.socket.is_none() {
            self.socket = Some(open()?);
        }
        Ok(self.socket.as_ref().expect("opened above"))
    }
}

/// Whether a socket that is bound to `ip` is dialled there. A link-local address is one of several machines.
fn is_dialled(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(ip.is_unspecified() || ip.is_multicast() || link_local)
}

fn open() -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::DGRAM,
        Some(socket2::Protocol::from(libc::NETLINK_SOCK_DIAG)),
    )?;
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    Ok(socket)
}

/// The addresses of all sockets that `request` asks for.
fn dump(socket: &Socket, request: &[u8]) -> io::Result<BTreeSet<SocketAddr>> {
    socket.send(request)?;
    let mut addresses = BTreeSet::new();
    let mut room = vec![0; ROOM_BYTES];
    for _ in 0..READS_MAX {
        let read = io::Read::read(&mut &*socket, &mut room)?;
        if take(&room[..read], &mut addresses)? {
            return Ok(addresses);
        }
    }
    Err(io::Error::other("too many sockets"))
}

/// Asks for the sockets of a family without a peer: in a dump those at `port`, or at any where it is 0; else the one that
/// gets what is sent to `to` and `port`.
fn request(family: libc::c_int, protocol: Protocol, flags: u16, to: Option<IpAddr>, port: u16) -> Vec<u8> {
    let (number, states) = match protocol {
        Protocol::Tcp => (libc::IPPROTO_TCP, LISTEN),
        Protocol::Udp => (libc::IPPROTO_UDP, CLOSE),
    };
    let mut request = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    let len = u32::try_from(HEADER_BYTES + REQUEST_BYTES).unwrap_or(u32::MAX);
    request.extend(len.to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // The sequence, and whose socket it is: the kernel knows.
    request.extend([0; 8]);
    let byte = |number: libc::c_int| u8::try_from(number).unwrap_or(0);
    request.extend([byte(family), byte(number), 0, 0]);
    request.extend(states.to_ne_bytes());
    // `inet_diag_sockid`: a dump looks at the source as the socket's own end. For one socket source and destination are
    // those of the datagram whose way is asked for, which comes from nowhere in particular.
    let (source, destination) = if to.is_some() { (0, port) } else { (port, 0) };
    request.extend(source.to_be_bytes());
    request.extend(destination.to_be_bytes());
    request.extend([0; 16]);
    let to = match to {
        Some(IpAddr::V4(v4)) => [&v4.octets()[..], &[0; 12]].concat(),
        Some(IpAddr::V6(v6)) => v6.octets().to_vec(),
        None => vec![0; 16],
    };
    request.extend(to);
    // Any interface, and whatever cookie the socket has.
    request.extend([0; 4]);
    request.extend([0xFF; 8]);
    request
}

/// Takes the addresses out of one read. Whether it was the last.
fn take(mut read: &[u8], addresses: &mut BTreeSet<SocketAddr>) -> io::Result<bool> {
    while let Some(header) = read.first_chunk::<HEADER_BYTES>() {
        let len = usize::try_from(u32::from_ne_bytes([header[0], header[1], header[2], header[3]])).unwrap_or(0);
        let body = read.get(HEADER_BYTES..len).ok_or(io::ErrorKind::InvalidData)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return Err(io::ErrorKind::Unsupported.into()),
            BY_FAMILY => addresses.extend(address(body)),
            _ => {}
        }
        // Messages begin at multiples of four.
        read = read.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// What a socket is bound to; an IPv4 address that is written as one of IPv6 is what it means.
fn address(body: &[u8]) -> Option<SocketAddr> {
    let body = body.first_chunk::<ANSWER_BYTES>()?;
    let source = body[8..24].first_chunk::<16>()?;
    let ip = if i32::from(body[0]) == libc::AF_INET {
        IpAddr::from(Ipv4Addr::new(source[0], source[1], source[2], source[3]))
    } else {
        IpAddr::from(Ipv6Addr::from(*source)).to_canonical()
    };
    Some((ip, u16::from_be_bytes([body[4], body[5]])).into())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn listened(protocol: Protocol, port: u16) -> bool {
        on_this_machine(protocol).expect("Linux tells").contains(&port)
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
        assert_eq!(address(&[]), None);
        assert!(take(&[], &mut ports).is_ok_and(|last| !last));
        let mut cut = vec![0; HEADER_BYTES];
        cut[0] = 0xFF;
        assert!(take(&cut, &mut ports).is_err());
        cut[..4].fill(0);
        assert!(take(&cut, &mut ports).is_err(), "a message shorter than its header would never end");
    }

    /// An address of this machine that is no loopback, if it has one.
    fn own_address() -> Option<IpAddr> {
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.connect("192.0.2.1:9").ok()?;
        socket.local_addr().ok().map(|at| at.ip())
    }

    #[test]
    fn a_udp_server_is_found_wherever_it_is_bound_and_what_is_sent_there_reaches_it() {
        let bound = Bound::default();
        let texts = ["127.0.0.1", "0.0.0.0", "::", "::1", "::ffff:0.0.0.0", "::ffff:127.0.0.1", "127.0.0.53"];
        let addresses = texts.iter().map(|text| text.parse().expect("an address"));
        for address in addresses.chain(own_address()) {
            let server = UdpSocket::bind((address, 0)).expect("an address of this machine");
            let port = server.local_addr().expect("bound").port();
            for _ in 0..2 {
                let at = bound.server(port).unwrap_or_else(|| panic!("{address}"));
                let client = UdpSocket::bind((at.ip(), 0)).expect("an address of this machine");
                client.send_to(b"hello", at).expect("sent");
                server.set_read_timeout(Some(ANSWER_MAX)).expect("a socket");
                let (length, from) = server.recv_from(&mut [0; 9]).unwrap_or_else(|error| panic!("{address}: {error}"));
                assert_eq!((length, from.port()), (5, client.local_addr().expect("bound").port()));
            }
            assert!(listened(Protocol::Udp, port), "{address}");
            drop(server);
            assert_eq!(bound.server(port), None, "{address}");
        }
    }

    #[test]
    fn a_client_of_the_port_number_is_no_server() {
        let peer = UdpSocket::bind("127.0.0.1:0").expect("loopback");
        let client = UdpSocket::bind("127.0.0.1:0").expect("loopback");
        client.connect(peer.local_addr().expect("bound")).expect("loopback");
        let port = client.local_addr().expect("bound").port();
        assert_eq!(Bound::default().server(port), None);
    }
}
