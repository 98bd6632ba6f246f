//! The local listeners of `connect`. Owns the table, the sockets and the loops that accept from them.
//! Must not know how a provider is chosen or reached (see [`super::dial`]).
//! Invariant: an import that is in the table listens, or says why not and keeps trying; a client that no provider
//! takes sees a reset, never an empty answer.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pollen_common::identity::NodeKey;
use pollen_common::views::Protocol;
use pollen_common::wire::streams::service::Target;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::dial::{self, Client, Local, NoProvider, Opened, Way};
use super::live::{Owner, Slot};
use super::tally::Tally;
use super::{Shared, clients, pump, session};
use crate::services::{Listener, ServiceRef};

/// Local listeners of one node: each holds two sockets.
pub const IMPORTS_MAX: usize = 1024;
/// Connections that wait to be accepted: a thousand clients may come at once, and the system's default of 128 would
/// make most of them wait a second for their second attempt.
const BACKLOG: i32 = 4096;
/// How long to wait before trying a taken port again.
const REBIND_AFTER: Duration = Duration::from_secs(2);
/// How long to wait when the process is out of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Choices remembered for `why`.
const CHOICES_MAX: usize = 8;

/// A service of the mesh with a local port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub target: Target,
    /// Only this node may provide it.
    pub provider: Option<NodeKey>,
    pub protocol: Protocol,
    /// Where it listens; on both loopbacks where absent.
    pub bind: Option<IpAddr>,
    pub local_port: u16,
}

/// Whether a listener that is bound so is found on 127.0.0.1.
pub(super) fn covers_loopback(bind: Option<IpAddr>) -> bool {
    bind.is_none_or(|ip| ip.is_unspecified() && ip.is_ipv4() || ip == Ipv4Addr::LOCALHOST)
}

/// An import with its sockets, and what it has carried and decided.
#[derive(Debug)]
pub(super) struct Imported {
    pub import: Import,
    pub tally: Arc<Tally>,
    listening: Mutex<Listening>,
    choices: Mutex<VecDeque<String>>,
}

/// Whether an import listens.
#[derive(Clone, Debug)]
enum Listening {
    On(Vec<SocketAddr>),
    Waiting(String),
}

/// The table. Dropping a `stop` ends the loops of its import.
#[derive(Debug, Default)]
pub(super) struct Imports(Vec<(Arc<Imported>, Option<watch::Sender<()>>)>);

/// Bound, and not yet part of any runtime.
pub(super) enum Sockets {
    Tcp(Vec<std::net::TcpListener>),
    Udp(Vec<std::net::UdpSocket>),
}

impl Sockets {
    /// Binds a port of an address, else on both loopbacks; on ::1 where that is possible. Port 0 takes any that is free.
    pub(super) fn bind(protocol: Protocol, address: Option<IpAddr>, port: u16) -> io::Result<Self> {
        let first = address.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let mut sockets = vec![bind_one(protocol, SocketAddr::from((first, port)))?];
        if address.is_none() {
            let port = sockets[0].local_addr()?.as_socket().map_or(port, |addr| addr.port());
            sockets.extend(bind_one(protocol, SocketAddr::from((Ipv6Addr::LOCALHOST, port))).ok());
        }
        Ok(match protocol {
            Protocol::Tcp => Self::Tcp(sockets.into_iter().map(Into::into).collect()),
            Protocol::Udp => Self::Udp(sockets.into_iter().map(Into::into).collect()),
        })
    }

    fn addrs(&self) -> Vec<SocketAddr> {
        match self {
            Self::Tcp(sockets) => sockets.iter().filter_map(|s| s.local_addr().ok()).collect(),
            Self::Udp(sockets) => sockets.iter().filter_map(|s| s.local_addr().ok()).collect(),
        }
    }

    /// The port that was bound.
    pub(super) fn port(&self) -> u16 {
        self.addrs().first().map(SocketAddr::port).expect("the first socket is always there and bound")
    }
}

fn bind_one(protocol: Protocol, addr: SocketAddr) -> io::Result<socket2::Socket> {
    let kind = match protocol {
        Protocol::Tcp => socket2::Type::STREAM,
        Protocol::Udp => socket2::Type::DGRAM,
    };
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), kind, None)?;
    socket.set_nonblocking(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections of an earlier listener that are still closing must not hold the port.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&addr.into())?;
    match protocol {
        Protocol::Tcp => socket.listen(BACKLOG)?,
        Protocol::Udp => session::enlarge_buffers(&socket),
    }
    Ok(socket)
}

impl Imports {
    pub(super) fn find(
        &self,
        target: &Target,
        protocol: Protocol,
        provider: Option<NodeKey>,
        bind: Option<IpAddr>,
        local_port: Option<u16>,
    ) -> Option<&Arc<Imported>> {
        let same = |i: &Import| {
            i.target == *target
                && i.protocol == protocol
                && i.provider == provider
                && i.bind == bind
                // Any port asked for is whichever there is.
                && local_port.is_none_or(|port| port == i.local_port || port == 0)
        };
        self.iter().find(|imported| same(&imported.import))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Imported>> {
        self.0.iter().map(|(imported, _)| imported)
    }

    /// The listener, if any, that whoever dials 127.0.0.1 at `port` reaches.
    pub(super) fn on_loopback(&self, protocol: Protocol, port: u16) -> Option<&Import> {
        let there = |imported: &&Arc<Imported>| {
            let import = &imported.import;
            import.protocol == protocol
                && import.local_port == port
                && covers_loopback(import.bind)
                && imported.is_listening()
        };
        self.iter().find(there).map(|imported| &imported.import)
    }

    /// Whether whoever dials `at` reaches a listener of this node's.
    pub(super) fn is_at(&self, protocol: Protocol, at: SocketAddr) -> bool {
        self.iter().filter(|imported| imported.import.protocol == protocol).any(|imported| {
            let listening = imported.listener().local;
            listening
                .iter()
                .any(|own| own.port() == at.port() && (own.ip() == at.ip().to_canonical() || own.ip().is_unspecified()))
        })
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= IMPORTS_MAX
    }

    pub(super) fn push(&mut self, imported: Arc<Imported>, stop: watch::Sender<()>) {
        self.0.push((imported, Some(stop)));
    }

    /// Takes out all of which `condemned` is true; their listeners close, their open TCP streams go on.
    pub(super) fn remove(&mut self, mut condemned: impl FnMut(&Import) -> bool) -> Vec<Arc<Imported>> {
        let (gone, kept) =
            std::mem::take(&mut self.0).into_iter().partition(|(imported, _)| condemned(&imported.import));
        self.0 = kept;
        let gone: Vec<(Arc<Imported>, _)> = gone;
        gone.into_iter().map(|(imported, _)| imported).collect()
    }

    /// Closes all listeners, keeping the table.
    pub(super) fn close(&mut self) {
        for (_, stop) in &mut self.0 {
            *stop = None;
        }
    }
}

impl Imported {
    pub(super) fn new(import: Import) -> Arc<Self> {
        Arc::new(Self {
            import,
            tally: Arc::default(),
            listening: Mutex::new(Listening::Waiting("not started".into())),
            choices: Mutex::default(),
        })
    }

    pub(super) fn listening_on(&self, sockets: &Sockets) {
        self.set_listening(Listening::On(sockets.addrs()));
    }

    fn is_listening(&self) -> bool {
        matches!(*self.listening.lock().expect("nothing panics while it holds this lock"), Listening::On(_))
    }

    fn set_listening(&self, listening: Listening) {
        *self.listening.lock().expect("nothing panics while it holds this lock") = listening;
    }

    pub(super) fn listener(&self) -> Listener {
        let service = match &self.import.target {
            Target::Name(name) => ServiceRef::Name(name.clone()),
            Target::Port(port) => ServiceRef::Port(*port),
        };
        let (local, waiting) = match &*self.listening.lock().expect("nothing panics while it holds this lock") {
            Listening::On(addrs) => (addrs.clone(), None),
            Listening::Waiting(why) => (Vec::new(), Some(why.clone())),
        };
        let Import { provider, protocol, local_port, .. } = self.import;
        Listener { service, provider, protocol, local_port, local, waiting }
    }

    /// How it listens and how its last connections were placed, newest first, a sentence each.
    pub(super) fn why(&self) -> Vec<String> {
        let port = self.import.local_port;
        let state = match &*self.listening.lock().expect("nothing panics while it holds this lock") {
            Listening::On(_) => format!("local port {port} listens for {}", self.import.target),
            Listening::Waiting(why) => format!("local port {port} does not listen for {}: {why}", self.import.target),
        };
        let choices = self.choices.lock().expect("nothing panics while it holds this lock");
        let dropped = self.tally.dropped.load(Ordering::Relaxed);
        let dropped = (dropped > 0).then(|| {
            format!("local port {port}: datagrams dropped since the start, or sessions given up for newer: {dropped}")
        });
        std::iter::once(state)
            .chain(dropped)
            .chain(choices.iter().rev().map(|choice| format!("local port {port}: {choice}")))
            .collect()
    }

    fn remember(&self, choice: String) {
        let mut choices = self.choices.lock().expect("nothing panics while it holds this lock");
        // The same reason again and again says nothing new.
        if choices.back() == Some(&choice) {
            return;
        }
        if choices.len() >= CHOICES_MAX {
            choices.pop_front();
        }
        choices.push_back(choice);
    }

    pub(super) fn remember_result(&self, result: &Result<(Opened, Slot), NoProvider>) {
        self.remember(match result {
            Ok((opened, _)) => {
                let before = opened.failed.iter().map(|failed| format!("; before it, {failed}")).collect::<String>();
                format!("connection went to {}: {}{before}", opened.provider.short(), opened.reason)
            }
            Err(error) if self.import.protocol == Protocol::Udp => format!("datagrams dropped: {error}"),
            Err(error) => format!("connection reset: {error}"),
        });
    }
}

/// Listens until `stop` is dropped. `sockets` are those that `connect` has bound; at a start they are bound here, and
/// bound again for as long as the port is taken.
pub(super) async fn run(
    shared: Arc<Shared>,
    imported: Arc<Imported>,
    sockets: Option<Sockets>,
    mut stop: watch::Receiver<()>,
) {
    let mut sockets = sockets;
    let mut warned = false;
    let bound = loop {
        if let Some(sockets) = sockets.take() {
            break sockets;
        }
        match Sockets::bind(imported.import.protocol, imported.import.bind, imported.import.local_port) {
            Ok(bound) => sockets = Some(bound),
            Err(error) => {
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(port = imported.import.local_port, service = %imported.import.target, %error, "cannot listen; will try again");
                }
                imported.set_listening(Listening::Waiting(error.to_string()));
                tokio::select! {
                    () = tokio::time::sleep(REBIND_AFTER) => {}
                    _ = stop.changed() => return,
                }
            }
        }
    };
    imported.listening_on(&bound);
    let listen = async {
        match bound {
            Sockets::Tcp(listeners) => {
                let loops = listeners.into_iter().map(|listener| accept_tcp(&shared, &imported, listener));
                futures_util::future::join_all(loops).await;
            }
            Sockets::Udp(sockets) => {
                let loops = sockets.into_iter().map(|socket| clients::accept(&shared, &imported, socket));
                futures_util::future::join_all(loops).await;
            }
        }
    };
    tokio::select! {
        () = listen => {}
        // Nobody sends: the sender is dropped.
        _ = stop.changed() => {}
    }
    imported.set_listening(Listening::Waiting("closed".into()));
}

async fn accept_tcp(shared: &Arc<Shared>, imported: &Arc<Imported>, listener: std::net::TcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot watch a listener"),
    };
    let mut warned = false;
    loop {
        match listener.accept().await {
            Ok((tcp, client)) => {
                let hops = shared.passed_on.take(&client);
                drop(tokio::spawn(carry_tcp(Arc::clone(shared), Arc::clone(imported), tcp, hops)));
            }
            Err(error) => {
                // Twenty times a second would say no more.
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(%error, "cannot accept");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn carry_tcp(shared: Arc<Shared>, imported: Arc<Imported>, tcp: TcpStream, hops: u8) {
    // Fails only on a socket that is dead already, as the first read will say.
    let _ = tcp.set_nodelay(true);
    let result = open(&shared, &imported, Client { hops, session: None }).await;
    imported.remember_result(&result);
    let (opened, mut slot) = match result {
        Ok(opened) => opened,
        Err(error) => {
            tracing::debug!(service = %imported.import.target, %error, "client reset");
            return pump::reset_socket(tcp);
        }
    };
    let moved = &imported.tally.moved;
    let ended = match opened.way {
        Way::Mesh(carrier, flow) => pump::tunnel(tcp, carrier.send, carrier.recv, flow, moved, slot.cut()).await,
        Way::Local(Local::Tcp(server), _) => pump::relay(tcp, server, moved, slot.cut()).await,
        Way::Session(_) | Way::Local(Local::Udp(_), _) => unreachable!("a way has the protocol of its import"),
    };
    if let Err(broken) = ended {
        tracing::debug!(service = %imported.import.target, %broken, "stream broke");
    }
}

/// A way to a provider, with its place among the open.
pub(super) async fn open(
    shared: &Shared,
    imported: &Imported,
    client: Client<'_>,
) -> Result<(Opened, Slot), NoProvider> {
    let opened = dial::open(shared, &imported.import, client).await?;
    let import = &imported.import;
    let export = match &opened.way {
        Way::Local(_, export) => Some(export.clone()),
        Way::Mesh(..) | Way::Session(_) => None,
    };
    let asked = Some(import.target.clone());
    let owner = Owner { peer: opened.provider, protocol: import.protocol, asked, export: export.clone() };
    let activity = client.session.map(|session| Arc::clone(session.activity));
    let slot = shared.live.open(owner, activity).ok_or(NoProvider::Busy)?;
    // Withdrawing an export cuts those who reach it without the mesh, too; one that was withdrawn before the slot was
    // taken could not.
    if let Some(export) = export
        && !super::export_of(shared, &import.target, import.protocol).is_some_and(|now| now.export.is_same(&export))
    {
        return Err(NoProvider::None);
    }
    imported.tally.count_opened();
    shared.count_opened(imported.import.protocol);
    Ok((opened, slot))
}
