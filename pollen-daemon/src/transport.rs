//! Connections between nodes, whatever carries their packets. Owns the mesh thread, its endpoint and its links; knows
//! keys and addresses, not who may do what: the driver and the services judge that.
//! Invariant: at most one link with a peer at a time; its events come in order, from `LinkUp` to `LinkDown`.

mod circuits;
mod congestion;
mod dial;
mod drops;
mod endpoint;
mod link;
mod links;
pub mod path;
mod punch;
mod reset;
mod seek;
mod snapshot;
#[cfg(test)]
mod tests;
mod tls;

use pollen_common::wire::streams::{LENGTH_BYTES, OpeningError, StreamKind};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use pollen_common::identity::{NodeKey, SecretKey};
use pollen_common::mapping;
use pollen_common::node::{Input, LinkId};
use quinn::VarInt;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, watch};

pub use self::circuits::CircuitNumbers;
pub use self::dial::DialError;
pub use self::drops::{DropReason, Drops};
pub use self::punch::PunchNumbers;
pub use self::snapshot::{MeshSnapshot, PathKind, PeerSnapshot};

use self::circuits::Circuits;
use self::dial::Dials;
use self::links::Links;
use self::path::PathSocket;
use self::punch::Punches;
use self::reset::ResetKey;
use self::tls::Tls;
use crate::datapath::Datapath;

/// How long a connection outlives silence, for QUIC: longer than anybody may set the core's patience, which ends it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(25 * 60 * 60);
/// How long goodbyes may take when the endpoint closes.
const SHUTDOWN_BOUND: Duration = Duration::from_secs(1);

/// First byte of a QUIC datagram that is a probe of the core.
pub const CORE_DATAGRAM: u8 = 1;
/// First byte of a QUIC datagram that is a UDP service's payload.
pub const SERVICE_DATAGRAM: u8 = 2;

/// Codes of closed connections and reset streams (docs/protocol/path.md).
pub mod code {
    pub const CLOSED: u32 = 0;
    pub const DUPLICATE: u32 = 1;
    pub const UNKNOWN_KIND: u32 = 2;
    pub const TOO_SLOW: u32 = 3;
    pub const WRONG_KEY: u32 = 4;
    pub const SECOND_LINK: u32 = 5;
    pub const SHUTTING_DOWN: u32 = 6;
    pub const CREDIT: u32 = 7;
}

/// What a mesh is started with.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    pub secret: SecretKey,
    /// UDP port on all addresses, both families; 0 for any.
    pub port: u16,
    /// Silence after which a connection is given up.
    pub idle_timeout: Duration,
    /// Connections of peers that are no members and dialled us.
    pub strangers_max: usize,
    /// Whether others may dial this mesh. A joiner's is for asking alone: a member that remembers its key and dials it
    /// would get in the way.
    pub accepts: bool,
}

impl MeshConfig {
    /// With the time-outs and bounds that nodes use.
    #[must_use]
    pub fn new(secret: SecretKey, port: u16) -> Self {
        Self { secret, port, idle_timeout: IDLE_TIMEOUT, strangers_max: links::STRANGERS_MAX, accepts: true }
    }
}

/// What happens to links, for the driver: each is one input of the core.
#[derive(Clone, Debug)]
pub enum MeshEvent {
    /// A link is up: TLS has proved `peer`'s key, the ordered stream is open.
    LinkUp { link: LinkId, peer: NodeKey, dialed: bool, remote: Option<SocketAddr> },
    /// The next bytes of its ordered stream.
    LinkBytes { link: LinkId, bytes: Vec<u8> },
    /// All that was sent on the ordered stream has been taken by QUIC.
    LinkWritable { link: LinkId },
    /// A core probe.
    LinkDatagram { link: LinkId, bytes: Vec<u8> },
    /// It is gone; nothing of it follows.
    LinkDown { link: LinkId, reason: String },
    /// A dial of the driver came to nothing.
    DialFailed { peer: NodeKey, reason: String },
}

impl From<MeshEvent> for Input {
    fn from(event: MeshEvent) -> Self {
        match event {
            MeshEvent::LinkUp { link, peer, dialed, remote } => Self::LinkUp { link, peer, dialed, remote },
            MeshEvent::LinkBytes { link, bytes } => Self::LinkBytes { link, bytes },
            MeshEvent::LinkWritable { link } => Self::LinkWritable { link },
            MeshEvent::LinkDatagram { link, bytes } => Self::LinkDatagram { link, bytes },
            MeshEvent::LinkDown { link, reason } => Self::LinkDown { link, reason },
            MeshEvent::DialFailed { peer, reason } => Self::DialFailed { peer, reason },
        }
    }
}

/// Takes what connections carry beside their link. Called on the mesh thread: must not block.
pub trait StreamHandler: Send + Sync + 'static {
    /// `peer` opened a stream of any kind but [`StreamKind::Link`]; its first byte has been read. Whether
    /// the peer may is the handler's to judge.
    fn stream(
        &self,
        peer: NodeKey,
        connection: &quinn::Connection,
        kind: StreamKind,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    );

    /// A service's datagram, without its first byte.
    fn datagram(&self, peer: NodeKey, connection: &quinn::Connection, bytes: Bytes);

    /// The connection with this `stable_id` is gone, and whatever was kept for it can go.
    fn closed(&self, stable_id: usize);

    /// Whether `peer` is a member: asked when it connects, and again until it is. Strangers get a few streams and
    /// 4 MiB of memory, members thousands and 128 MiB.
    fn admitted(&self, peer: NodeKey) -> bool {
        let _ = peer;
        true
    }

    /// Where `peer` says that it is; of this node, where it is.
    fn addresses(&self, peer: &NodeKey) -> Vec<SocketAddr> {
        let _ = peer;
        Vec::new()
    }

    /// Whether a peer may be looked for at an address that it gives for itself.
    fn may_be_asked(&self, addr: &SocketAddr) -> bool {
        mapping::may_be_asked(addr)
    }

    /// Who could pass packets on to `peer`, to whom none can be sent.
    fn relays(&self, peer: &NodeKey) -> Vec<NodeKey> {
        let _ = peer;
        Vec::new()
    }
}

/// Opens a stream and says its kind.
///
/// # Errors
/// As the connection failed.
pub async fn open_stream(
    connection: &quinn::Connection,
    kind: StreamKind,
) -> io::Result<(quinn::SendStream, quinn::RecvStream)> {
    let (mut send, recv) = connection.open_bi().await?;
    send.write_all(&[kind as u8]).await?;
    Ok((send, recv))
}

/// What opens a stream, behind its kind and length: at most `max` bytes, for which nothing is allocated before.
///
/// # Errors
/// [`OpeningError::Malformed`]: it is longer, or the stream ended before it did.
pub(crate) async fn read_opening(recv: &mut quinn::RecvStream, max: usize) -> Result<Vec<u8>, OpeningError> {
    let mut length = [0; LENGTH_BYTES];
    recv.read_exact(&mut length).await.map_err(|_| OpeningError::Malformed)?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > max {
        return Err(OpeningError::Malformed);
    }
    let mut bytes = vec![0; length];
    recv.read_exact(&mut bytes).await.map_err(|_| OpeningError::Malformed)?;
    Ok(bytes)
}

/// A handle on the mesh of this node. Usable from any thread.
#[derive(Clone)]
pub struct Mesh(Arc<Inner>);

/// What the tasks of the mesh share.
struct Inner {
    key: NodeKey,
    tls: Tls,
    idle_timeout: Duration,
    path: Arc<PathSocket>,
    endpoint: quinn::Endpoint,
    links: Links,
    dials: Dials,
    circuits: Circuits,
    punches: Punches,
    drops: Arc<Drops>,
    events: mpsc::Sender<MeshEvent>,
    handler: Arc<dyn StreamHandler>,
    runtime: Handle,
    stop: watch::Sender<bool>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Mesh {
    /// Binds the port and starts the mesh thread. Events wait until `events` has room, and the links with them.
    ///
    /// # Errors
    /// From the kernel: the port is taken, no entropy, no thread.
    pub fn start(
        config: MeshConfig,
        events: mpsc::Sender<MeshEvent>,
        handler: Arc<dyn StreamHandler>,
    ) -> io::Result<Self> {
        let accepts = config.accepts;
        let tls = Tls::new(&config.secret).map_err(io::Error::other)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let mesh = {
            let _within = runtime.enter();
            Self::build(config, tls, events, handler, runtime.handle().clone())
        };
        let mesh = match mesh {
            Ok(mesh) => mesh,
            Err(error) => {
                // Dropping it here would panic if the caller is itself asynchronous.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let mut stopped = mesh.0.stop.subscribe();
        runtime.spawn(mesh.0.path.clone().flusher());
        runtime.spawn(mesh.0.path.clone().reflect());
        runtime.spawn(dial::accept(mesh.0.clone(), accepts));
        let thread = thread::Builder::new().name("mesh".into()).spawn(move || {
            // An error means that every handle is gone.
            let _ended = runtime.block_on(stopped.wait_for(|stop| *stop));
            runtime.shutdown_background();
        })?;
        *mesh.0.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(mesh)
    }

    fn build(
        config: MeshConfig,
        tls: Tls,
        events: mpsc::Sender<MeshEvent>,
        handler: Arc<dyn StreamHandler>,
        runtime: Handle,
    ) -> io::Result<Self> {
        let drops = Arc::new(Drops::default());
        let key = config.secret.public();
        let reset = ResetKey::of(&config.secret);
        let path = Arc::new(PathSocket::bind(config.secret, random()?, config.port, drops.clone())?);
        let endpoint = endpoint::endpoint(&tls, reset, path.clone(), config.idle_timeout)?;
        Ok(Self(Arc::new(Inner {
            key,
            tls,
            idle_timeout: config.idle_timeout,
            path,
            endpoint,
            links: Links::new(key, config.strangers_max),
            dials: Dials::default(),
            circuits: Circuits::default(),
            punches: Punches::default(),
            drops,
            events,
            handler,
            runtime,
            stop: watch::Sender::new(false),
            thread: Mutex::default(),
        })))
    }

    /// The rungs below the sockets.
    #[must_use]
    pub fn datapath(&self) -> &Datapath {
        self.0.path.datapath()
    }

    /// Dials for the driver: answered by `LinkUp` or `DialFailed`. Joins a dial of the same peer that is under way;
    /// nothing happens if there is a link already.
    pub fn dial(&self, peer: NodeKey, addrs: Vec<SocketAddr>) {
        let inner = self.0.clone();
        self.0.runtime.spawn(async move {
            if let Err(error) = dial::connect(&inner, peer, addrs).await {
                // Without a driver there is nobody to tell.
                let _no_driver = inner.events.send(MeshEvent::DialFailed { peer, reason: error.to_string() }).await;
            }
        });
    }

    /// The connection with `peer`, dialled if there is none. Ends within fifteen seconds.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn connect(&self, peer: NodeKey, addrs: Vec<SocketAddr>) -> Result<quinn::Connection, DialError> {
        dial::connect(&self.0, peer, addrs).await
    }

    /// The current connection with `peer`, if it answers.
    pub async fn connection(&self, peer: NodeKey) -> Option<quinn::Connection> {
        self.0.links.connection(&peer)
    }

    /// Appends to the link's ordered stream. Answered by `LinkWritable` when QUIC has taken it. A link whose peer lets
    /// 8 MiB wait is closed.
    pub fn send(&self, link: LinkId, bytes: Vec<u8>) {
        if let Some(link) = self.0.links.link(link) {
            link.send(bytes.into(), &self.0.drops);
        }
    }

    /// Sends one core probe, best effort.
    pub fn send_datagram(&self, link: LinkId, bytes: Vec<u8>) {
        if let Some(link) = self.0.links.link(link) {
            let datagram = [&[CORE_DATAGRAM], bytes.as_slice()].concat();
            // Best effort: the core's probes are repeated, and a lost connection shows as `LinkDown`.
            let _unsent = link.connection.send_datagram(datagram.into());
        }
    }

    /// The link's peer has fallen silent: nothing new goes to it, and it is looked for at `addrs` and where it was,
    /// until it is heard. Again with other addresses: it is looked for there instead.
    pub fn silent(&self, link: LinkId, addrs: Vec<SocketAddr>) {
        if let Some(link) = self.0.links.link(link) {
            let seeking = self.0.runtime.spawn(seek::run(self.0.clone(), link.clone(), addrs));
            link.fell_silent(seeking.abort_handle());
        }
    }

    /// The link's peer answers again.
    pub fn heard(&self, link: LinkId) {
        if let Some(link) = self.0.links.link(link) {
            link.answers();
            self.0.punches.heard(&link);
        }
    }

    /// Whether this node passes packets on for others; it does until told.
    pub fn set_relay(&self, relays: bool) {
        self.0.circuits.set_relay(relays);
    }

    /// Sends what waits, then closes, telling the peer `reason`. `LinkDown` follows, within two seconds.
    pub fn close(&self, link: LinkId, reason: String) {
        if let Some(link) = self.0.links.retire(link) {
            link.close(reason, &self.0.runtime);
        }
    }

    /// The runtime of the mesh thread, where connections live: pumps of their streams belong there.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// Where the UDP socket is bound.
    ///
    /// # Errors
    /// From the kernel.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.path.bound_to()
    }

    /// What is connected, and what was refused so far.
    #[must_use]
    pub fn snapshot(&self) -> MeshSnapshot {
        snapshot::snapshot(&self.0)
    }

    /// Closes every connection, telling the peers `reason`, and stops the mesh thread. Must not be called on it.
    pub async fn shutdown(&self, reason: &str) {
        self.0.endpoint.close(VarInt::from_u32(code::SHUTTING_DOWN), reason.as_bytes());
        // Whoever has not heard within the bound finds out by probes.
        let _late = tokio::time::timeout(SHUTDOWN_BOUND, self.0.endpoint.wait_idle()).await;
        self.stop().await;
    }

    /// Stops the thread as a crash would: without a word to anybody.
    pub(crate) async fn stop(&self) {
        self.0.stop.send_replace(true);
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic there has been reported by its hook.
            let _ended = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

/// Fresh random bytes.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}
