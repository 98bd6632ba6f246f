//! The kernel's UDP socket: how it is made and how it is written to. Owns its options; knows no peers.
//! Invariant: sending fails with `WouldBlock` alone; every other failure is counted, because quinn could not bear it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use quinn::udp::{Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::address::UdpSource;
use super::batch::{Datagrams, Send};
use crate::transport::drops::{DropReason, Drops};

/// What each socket buffer should hold: a stream window and what else is under way. Loss at LAN round trips is nothing
/// but a receive buffer that overflowed.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// The socket and what quinn-udp found out about it.
pub struct Udp {
    pub io: UdpSocket,
    pub state: UdpSocketState,
    /// Receive and send buffer as granted.
    pub buffers: (usize, usize),
    ipv4_only: bool,
}

impl Udp {
    /// Binds `port` on all addresses of both families, or of IPv4 where there is no IPv6.
    pub fn bind(port: u16) -> io::Result<Self> {
        match dual_stack(port) {
            Ok(socket) => Self::over(socket, false),
            Err(error) if is_missing_family(&error) => Self::over(ipv4(port)?, true),
            Err(error) => Err(error),
        }
    }

    fn over(socket: Socket, ipv4_only: bool) -> io::Result<Self> {
        let buffers = size_buffers(&socket)?;
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self { io: UdpSocket::from_std(socket.into())?, state, buffers, ipv4_only })
    }

    /// Sends one datagram past the batch, or counts why not: whoever waits for it asks again.
    pub fn send_datagram(&self, to: UdpSource, bytes: &[u8], drops: &Drops) {
        let datagram = Datagrams { to, segment: bytes.len(), bytes };
        if self.sender(drops).send(datagram).is_err() {
            drops.count(DropReason::SendError);
        }
    }

    /// For the batcher.
    pub fn sender<'a>(&'a self, drops: &'a Drops) -> Sender<'a> {
        Sender { udp: self, drops }
    }
}

/// The socket as the batcher sees it.
pub struct Sender<'a> {
    udp: &'a Udp,
    drops: &'a Drops,
}

impl Send for Sender<'_> {
    fn send(&mut self, datagrams: Datagrams<'_>) -> io::Result<()> {
        let udp = self.udp;
        let transmit = Transmit {
            destination: datagrams.to.to_socket(udp.ipv4_only),
            // Some paths lose what is marked, and nothing at all arrives; a queue is seen by its delay as well.
            ecn: None,
            contents: datagrams.bytes,
            segment_size: (datagrams.segment < datagrams.bytes.len()).then_some(datagrams.segment),
            src_ip: None,
        };
        match udp.io.try_io(Interest::WRITABLE, || udp.state.try_send((&udp.io).into(), &transmit)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(error) => {
                // One datagram too long for the interface is QUIC asking how long they may be.
                if error.raw_os_error() != Some(libc::EMSGSIZE) || transmit.segment_size.is_some() {
                    self.drops.count(DropReason::SendError);
                }
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn segments_max(&self) -> usize {
        self.udp.state.max_gso_segments()
    }
}

fn dual_stack(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

fn ipv4(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

/// IPv6 compiled out (no such family) or disabled by sysctl (no such address).
fn is_missing_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Asks past `net.core.rmem_max` first, which needs `CAP_NET_ADMIN`, then within it.
fn size_buffers(socket: &Socket) -> io::Result<(usize, usize)> {
    use rustix::net::sockopt;
    if sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER_BYTES).is_err() {
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    }
    if sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BUFFER_BYTES).is_err() {
        socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    }
    Ok((socket.recv_buffer_size()?, socket.send_buffer_size()?))
}

#[cfg(test)]
mod tests {
    use super::super::address::Source;
    use super::*;

    #[tokio::test]
    async fn both_kinds_of_socket_reach_an_ipv4_address_and_show_it_as_one_source() {
        let drops = Drops::default();
        for udp in [Udp::over(ipv4(0).unwrap(), true).unwrap(), Udp::bind(0).unwrap()] {
            let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            udp.io.writable().await.unwrap();
            udp.send_datagram(Source::from(other.local_addr().unwrap()).udp().unwrap(), b"there", &drops);
            let mut buffer = [0; 10];
            let (len, from) = other.recv_from(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..len], b"there");
            other.send_to(b"back", from).await.unwrap();
            let (_, seen) = udp.io.recv_from(&mut buffer).await.unwrap();
            assert_eq!(Source::from(seen).udp().unwrap().shown(), other.local_addr().unwrap());
        }
        assert_eq!(drops.of(DropReason::SendError), 0);
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_and_not_a_step_down_to_ipv4() {
        let first = Udp::bind(0).unwrap();
        let port = first.io.local_addr().unwrap().port();
        assert_eq!(Udp::bind(port).err().unwrap().kind(), io::ErrorKind::AddrInUse);
    }
}
