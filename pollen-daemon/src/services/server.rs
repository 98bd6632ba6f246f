//! Where the server behind an export is: at the export's port of this machine, at another address, or at a Unix socket.
//! Owns how that is written and how it is dialled; must not know who asks.
//! Invariant: an address that means something else on each machine, or every machine, is never dialled.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use pollen_common::views::{Name, Protocol};
use tokio::net::{TcpStream, UdpSocket, UnixStream};

/// How long a server elsewhere may take to accept: a lost packet is sent again twice by then.
const DIAL_MAX: Duration = Duration::from_secs(5);
/// `sun_path` of `linux/un.h`, without its end.
const PATH_BYTES_MAX: usize = 107;
/// The longest name in the domain name system.
const HOST_BYTES_MAX: usize = 253;
/// Ports for services that have none on this machine: above those of servers, below those that systems give to clients.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// The server behind an export.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    /// On this machine's loopback, at the export's port.
    #[default]
    Here,
    /// A container, another machine: looked up again for each connection.
    At { host: String, port: u16 },
    /// A stream socket of this machine.
    Unix(PathBuf),
}

/// What names no server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoServer(String);

impl Server {
    /// The port under which the mesh knows a service whose server has none on this machine: always the same for a name.
    /// Not the server's own: what a node served is taken up again by its port, on its loopback, where another server
    /// may stand.
    #[must_use]
    pub fn port_for(name: &Name) -> u16 {
        let hash = blake3::hash(name.as_str().as_bytes());
        let [low, high, ..] = *hash.as_bytes();
        PORTS.start + u16::from_le_bytes([low, high]) % (PORTS.end - PORTS.start)
    }

    /// Whether it can speak so.
    #[must_use]
    pub fn speaks(&self, protocol: Protocol) -> bool {
        protocol == Protocol::Tcp || !matches!(self, Self::Unix(_))
    }

    /// Where it is, as far as that is an address; at least one.
    pub(super) async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let found = tokio::time::timeout(DIAL_MAX, tokio::net::lookup_host((host, port))).await;
        let found: Vec<SocketAddr> =
            found.map_err(|_| io::ErrorKind::TimedOut)??.filter(|at| is_of_one_machine(&at.ip())).collect();
        if found.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("{host} is at no address of a server"),
            ));
        }
        Ok(found)
    }
}

/// A connection to any of `addresses`.
pub(super) async fn dial_tcp(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let tcp = tokio::time::timeout(DIAL_MAX, TcpStream::connect(addresses)).await;
    let tcp = tcp.map_err(|_| io::ErrorKind::TimedOut)??;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// A socket of its own for one session, after `note` was told of its address.
pub(super) async fn dial_udp(to: SocketAddr, note: impl FnOnce(SocketAddr)) -> io::Result<UdpSocket> {
    let ip = match to.ip() {
        // Of this machine, and so is whoever may answer.
        ip if ip.is_loopback() && ip.to_canonical() == ip => own_loopback(ip),
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((ip, 0)).await?;
    note(socket.local_addr()?);
    super::session::enlarge_buffers(&socket);
    socket.connect(to).await?;
    Ok(socket)
}

/// The loopback that clients of `ip` come from.
fn own_loopback(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { ip }
}

/// A Unix socket in the type of the pump, which asks nothing of a socket but what all stream sockets have: reading,
/// writing, ending a half, and errors. A reset arrives as an end, for these sockets have no other.
pub(super) async fn dial_unix(path: &Path) -> io::Result<TcpStream> {
    let unix = tokio::time::timeout(DIAL_MAX, UnixStream::connect(path)).await;
    let unix = unix.map_err(|_| io::ErrorKind::TimedOut)??.into_std()?;
    TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(unix)))
}

/// Neither everyone, nor whoever happens to be there, as the service of a cloud that gives out its machines' secrets.
fn is_of_one_machine(ip: &IpAddr) -> bool {
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(ip.is_unspecified() || ip.is_multicast() || link_local)
}

impl FromStr for Server {
    type Err = NoServer;

    fn from_str(text: &str) -> Result<Self, NoServer> {
        if let Some(path) = text.strip_prefix("unix:") {
            let fits = path.len() <= PATH_BYTES_MAX && !path.contains('\0');
            if !Path::new(path).is_absolute() || !fits {
                return Err(NoServer(format!(
                    "`{path}` is no path of a socket: it begins with / and has {PATH_BYTES_MAX} bytes at most"
                )));
            }
            return Ok(Self::Unix(path.into()));
        }
        let no = || NoServer(format!("`{text}` is no server: neither HOST:PORT nor unix:PATH"));
        let (host, port) = text.rsplit_once(':').ok_or_else(no)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(no)?;
        let bare = match host.strip_prefix('[') {
            Some(bracketed) => {
                bracketed.strip_suffix(']').filter(|ip| ip.parse::<Ipv6Addr>().is_ok()).ok_or_else(no)?
            }
            None => host,
        };
        if let Ok(ip) = bare.parse::<IpAddr>() {
            if !is_of_one_machine(&ip) {
                return Err(NoServer(format!("{ip} is no address of one server")));
            }
        } else if bare.is_empty()
            || bare.len() > HOST_BYTES_MAX
            || !bare.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        {
            return Err(no());
        }
        Ok(Self::At { host: bare.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("this machine"),
            Self::At { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::At { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_what_means_no_one_server_is_refused() {
        for text in ["db.lan:5432", "172.17.0.2:5432", "[fd00::2]:53", "unix:/run/docker.sock"] {
            assert_eq!(text.parse::<Server>().map(|server| server.to_string()), Ok(text.to_owned()));
        }
        for bad in [
            "",
            ":",
            "a:0",
            "a:x",
            "[a]:1",
            "[::1:1",
            "a b:1",
            "unix:",
            "unix:run/x",
            "0.0.0.0:80",
            "[::]:80",
            "224.0.0.1:80",
            "169.254.169.254:80",
            "[fe80::1]:80",
            "255.255.255.255:1",
            "[::ffff:169.254.169.254]:80",
        ] {
            assert!(bad.parse::<Server>().is_err(), "{bad}");
        }
        assert!(format!("unix:/{}", "x".repeat(PATH_BYTES_MAX)).parse::<Server>().is_err());
    }

    #[test]
    fn a_name_has_one_port_among_those_for_such() {
        let port = |name: &str| Server::port_for(&name.parse().expect("a name"));
        assert!(PORTS.contains(&port("db")) && port("db") == port("DB") && port("db") != port("web"));
    }
}
