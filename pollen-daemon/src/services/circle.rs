//! Services that lead back to themselves: a served port at which a listener of this node's own listens. Owns what is
//! dialled in place of a server, and how often a connection has been passed on so.
//! Invariant: no connection comes back to where it was; what this node cannot see, because the way leads over others,
//! ends after [`HOPS_MAX`] of them.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pollen_common::identity::NodeKey;
use pollen_common::views::Protocol;
use pollen_common::wire::streams::service::HOPS_MAX;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::Shared;
use super::exports::{self, Export, Exports};
use super::imports::Imports;
use super::server::{self, Server};

/// Connections on their way from this node's dialling to this node's accepting.
const PASSED_ON_MAX: usize = 4096;
/// How long that takes at most: the backlog of a listener is emptied faster.
const PASSED_ON_WITHIN: Duration = Duration::from_secs(10);

/// Why no server was reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("it leads back to itself: the port that is served is this node's own listener for it")]
    Circle,
    #[error("local server: {0}")]
    Local(#[from] io::Error),
}

/// Which clients of this node's listeners are connections that it passes on itself, and how often each was passed on.
#[derive(Debug, Default)]
pub(super) struct PassedOn(Mutex<BTreeMap<SocketAddr, (u8, Instant)>>);

/// The same for UDP, where a client may come again, for as long as its socket is there.
#[derive(Debug, Default)]
pub(super) struct PassedOnUdp(Mutex<BTreeMap<SocketAddr, u8>>);

impl PassedOnUdp {
    /// How often the payloads of `client` have been passed on.
    pub(super) fn of(&self, client: &SocketAddr) -> u8 {
        self.0.lock().expect("nothing panics while it holds this lock").get(client).copied().unwrap_or_default()
    }
}

/// A socket to a UDP server, known as one of this node's own for as long as it is there.
#[derive(Debug)]
pub(super) struct Dialled {
    pub socket: Arc<UdpSocket>,
    _known: Option<Known>,
}

#[derive(Debug)]
struct Known {
    passed_on: Arc<PassedOnUdp>,
    client: SocketAddr,
}

impl Drop for Known {
    fn drop(&mut self) {
        self.passed_on.0.lock().expect("nothing panics while it holds this lock").remove(&self.client);
    }
}

impl PassedOn {
    fn note(&self, client: SocketAddr, hops: u8) {
        let mut noted = self.0.lock().expect("nothing panics while it holds this lock");
        if noted.len() >= PASSED_ON_MAX {
            noted.retain(|_, (_, at)| at.elapsed() < PASSED_ON_WITHIN);
        }
        // Then one that is forgotten begins anew, and ends all the same: so many at once are refused.
        if noted.len() < PASSED_ON_MAX {
            noted.insert(client, (hops, Instant::now()));
        }
    }

    /// How often the connection of `client` has been passed on. To be asked once.
    pub(super) fn take(&self, client: &SocketAddr) -> u8 {
        let mut noted = self.0.lock().expect("nothing panics while it holds this lock");
        noted.remove(client).map_or(0, |(hops, _)| hops)
    }

    fn is_full(&self) -> bool {
        self.0.lock().expect("nothing panics while it holds this lock").len() >= PASSED_ON_MAX
    }
}

/// Whether a client of `export` would come back to it by listeners of this node alone.
pub(super) fn leads_back(exports: &Exports, imports: &Imports, me: NodeKey, export: &Export) -> bool {
    let mut passed = vec![export.clone()];
    loop {
        let last = passed.last().expect("it begins with one");
        if last.server != Server::Here {
            return false;
        }
        let Some(import) = imports.on_loopback(last.protocol, last.port) else { return false };
        if import.provider.is_some_and(|provider| provider != me) {
            return false;
        }
        let Some(next) = exports.find(&import.target, import.protocol) else { return false };
        if passed.iter().any(|before| before.is_same(&next.export)) {
            return true;
        }
        passed.push(next.export);
    }
}

/// A connection to the server behind `export`, for a client that was passed on `hops` times so far.
pub(super) async fn dial_tcp(shared: &Shared, export: &Export, hops: u8) -> Result<TcpStream, DialError> {
    match &export.server {
        Server::Here => {}
        Server::Unix(path) => return Ok(server::dial_unix(path).await?),
        Server::At { host, port } => {
            let addresses = Server::addresses(host, *port).await?;
            // By its port it would be seen how often it was passed on; by another address it is not.
            if addresses.iter().any(|at| shared.imports().is_at(Protocol::Tcp, *at)) {
                return Err(DialError::Circle);
            }
            return Ok(server::dial_tcp(&addresses).await?);
        }
    }
    if !goes_on(shared, export, hops)? {
        return Ok(exports::dial_tcp(export.port).await?);
    }
    // Bound before it connects, so that the listener cannot be quicker than the note.
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    shared.passed_on.note(socket.local_addr()?, hops + 1);
    let tcp = socket.connect((Ipv4Addr::LOCALHOST, export.port).into()).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// A socket of its own for one session with the server behind `export`, for a client that was passed on `hops` times.
pub(super) async fn dial_udp(shared: &Shared, export: &Export, hops: u8) -> Result<Dialled, DialError> {
    let at = match &export.server {
        Server::Here if goes_on(shared, export, hops)? => {
            let at = SocketAddr::from((Ipv4Addr::LOCALHOST, export.port));
            let mut known = None;
            // As many as there are sessions.
            let note = |client| {
                let passed_on = Arc::clone(&shared.passed_on_udp);
                passed_on.0.lock().expect("nothing panics while it holds this lock").insert(client, hops + 1);
                known = Some(Known { passed_on, client });
            };
            let socket = Arc::new(server::dial_udp(at, note).await?);
            return Ok(Dialled { socket, _known: known });
        }
        Server::Here => shared.bound.server(export.port).ok_or(io::ErrorKind::ConnectionRefused),
        Server::At { host, port } => {
            let addresses = Server::addresses(host, *port).await?;
            if addresses.iter().any(|at| shared.imports().is_at(Protocol::Udp, *at)) {
                return Err(DialError::Circle);
            }
            addresses.first().copied().ok_or(io::ErrorKind::AddrNotAvailable)
        }
        Server::Unix(_) => Err(io::ErrorKind::Unsupported),
    };
    let socket = Arc::new(server::dial_udp(at.map_err(io::Error::from)?, |_| ()).await?);
    Ok(Dialled { socket, _known: None })
}

/// Whether the server behind `export` is a listener of this node's own, to another service.
fn goes_on(shared: &Shared, export: &Export, hops: u8) -> Result<bool, DialError> {
    let me = shared.view.borrow().me;
    let own = {
        let (exports, imports) = (shared.exports(), shared.imports());
        if leads_back(&exports, &imports, me, export) {
            return Err(DialError::Circle);
        }
        imports.on_loopback(export.protocol, export.port).is_some()
    };
    if own && (hops >= HOPS_MAX || shared.passed_on.is_full()) {
        return Err(DialError::Circle);
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pollen_common::wire::streams::service::Target;

    use super::*;
    use crate::services::imports::{Import, Imported, Sockets};

    const ME: NodeKey = NodeKey([1; 32]);

    fn named(name: &str, port: u16) -> Export {
        Export {
            name: Some(name.parse().expect("a name")),
            protocol: Protocol::Tcp,
            port,
            shared: false,
            server: Server::Here,
            policy: pollen_common::views::Policy::default(),
        }
    }

    /// A listener for `name` at any free port, which it answers with.
    fn listen(imports: &mut Imports, name: &str, provider: Option<NodeKey>) -> u16 {
        let sockets = Sockets::bind(Protocol::Tcp, None, 0).expect("loopback");
        let import = Import {
            target: Target::Name(name.parse().expect("a name")),
            provider,
            protocol: Protocol::Tcp,
            bind: None,
            local_port: sockets.port(),
        };
        let imported = Imported::new(import);
        imported.listening_on(&sockets);
        imports.push(Arc::clone(&imported), tokio::sync::watch::channel(()).0);
        sockets.port()
    }

    #[test]
    fn what_comes_back_over_any_number_of_listeners_is_seen_and_what_goes_elsewhere_is_not() {
        let (mut exports, mut imports) = (Exports::default(), Imports::default());
        let own = listen(&mut imports, "own", None);
        exports.insert(named("own", own)).expect("room");
        assert!(leads_back(&exports, &imports, ME, &named("own", own)));

        let (there, back) = (listen(&mut imports, "b", Some(ME)), listen(&mut imports, "a", None));
        exports.insert(named("a", there)).expect("room");
        assert!(!leads_back(&exports, &imports, ME, &named("a", there)), "nobody serves b yet");
        exports.insert(named("b", back)).expect("room");
        assert!(leads_back(&exports, &imports, ME, &named("a", there)));

        let other = listen(&mut imports, "other", Some(NodeKey([2; 32])));
        exports.insert(named("other", other)).expect("room");
        assert!(!leads_back(&exports, &imports, ME, &named("other", other)), "another node's service, served on");
        assert!(!leads_back(&exports, &imports, ME, &named("plain", 1)));
    }

    #[test]
    fn a_client_is_known_once_and_others_never() {
        let passed_on = PassedOn::default();
        let client = SocketAddr::from(([127, 0, 0, 1], 7));
        passed_on.note(client, 3);
        assert_eq!((passed_on.take(&client), passed_on.take(&client)), (3, 0));
        let ports = u16::try_from(PASSED_ON_MAX).expect("few");
        for port in 0..ports + 9 {
            passed_on.note(SocketAddr::from(([127, 0, 0, 2], port)), 1);
        }
        assert!(passed_on.is_full());
    }
}
