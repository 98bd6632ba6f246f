//! What the control socket and the metrics need from a running daemon, as one trait that the daemon implements.
//! Owns the shapes that cross this seam; must not know how the daemon is wired, nor HTTP.
//! Invariant: every method is cheap and bounded; a request that waits does so in the future it returns.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::services::Server;
use futures_util::future::BoxFuture;
use pollen_common::identity::NodeKey;
use pollen_common::node::{Command, Event, EventKind, Refusal, Reply};
use pollen_common::time::UnixMs;
use pollen_common::views::name::NameError;
use pollen_common::views::{Name, Protocol, SeedVersion, View};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, watch};

use crate::datapath;
use crate::status::{Reading, Troubles};

mod seeds;
pub use seeds::{
    CallAnswer, CallFailure, CallNumbers, CallRequest, ContentNumbers, EngineNumbers, EngineStanding, HeldModule,
    Histogram, SeedNumbers, SeedProgress, SeedRef, SeedRequest, SeedStage, Seeded, Unseeded,
};

/// The answer of a request that may wait.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Refusal>>;

/// A running daemon, as its operator's tools see it.
pub trait Daemon: Send + Sync + 'static {
    /// The wall clock, in which dates are counted.
    fn now(&self) -> UnixMs {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
    /// Facts that do not change while it runs.
    fn about(&self) -> About;
    /// The node's present reading of the cluster.
    fn view(&self) -> Arc<View>;
    /// Counters and gauges of every part, for `status` and `/metrics`.
    fn numbers(&self) -> Numbers;
    /// What its parts say is wrong with them.
    fn troubles(&self) -> Troubles;
    /// Why `/metrics` is not served where the settings say, if so: the control server says it, and tries again.
    fn metrics_wait(&self, why: Option<String>);
    /// A request to the node: invites and statements signed elsewhere.
    fn command(&self, command: Command) -> Answer<'_, Reply>;
    /// The rules that decided what the view says of `subject`, a sentence each.
    fn why(&self, subject: Subject) -> Answer<'_, Vec<String>>;

    /// Publishes a local port. Idempotent; kept across restarts once answered. Answers with what its publisher should
    /// know of it, a sentence each.
    fn serve(&self, request: Serve) -> Answer<'_, Vec<String>>;
    /// Stops publishing; `NotFound` if this node does not.
    fn unserve(&self, request: ServiceRef) -> Answer<'_, ()>;
    /// Opens local listeners to a service of the mesh, one for each protocol that it speaks. Idempotent; kept across
    /// restarts once answered.
    fn connect(&self, request: Connect) -> Answer<'_, Vec<Listener>>;
    /// Closes local listeners; answers with those it closed, `NotFound` if there was none.
    fn disconnect(&self, request: Disconnect) -> Answer<'_, Vec<Listener>>;
    /// The local listeners there are, in the order of their ports.
    fn listeners(&self) -> Vec<Listener>;

    /// Publishes a seed, or a new version of one; answered once it is ready as widely as it was asked for, or it is known
    /// why not. Carried through whether or not anyone still reads `progress`.
    fn seed(&self, request: SeedRequest, progress: watch::Sender<SeedProgress>) -> Answer<'_, Seeded>;
    /// Stops publishing a seed, and waits until no node serves it, or it is known which may; `NotFound` if this node
    /// does not publish it.
    fn unseed(&self, name: Name) -> Answer<'_, Unseeded>;
    /// Calls a function of a seed, wherever in the mesh it runs. Given up when the future is dropped.
    fn call(&self, request: CallRequest) -> BoxFuture<'_, Result<CallAnswer, CallFailure>>;
    /// The runtime on which a connection that calls `seed` is served best, if it is not the control socket's own.
    fn seat_of_callers(&self, seed: &SeedRef) -> Option<Handle> {
        let _ = seed;
        None
    }
    /// What is known of a version's module; none if it is not on this node's disk.
    fn held(&self, version: SeedVersion) -> Answer<'_, Option<HeldModule>>;

    /// The timeline kept, oldest first, and what follows it without a gap.
    fn events(&self) -> (Vec<EventRecord>, broadcast::Receiver<EventRecord>);
    /// At most `lines` of the newest log lines, oldest first, and what follows them without a gap.
    fn logs(&self, lines: usize) -> (Vec<String>, broadcast::Receiver<String>);

    /// The settings in force.
    fn settings(&self) -> Settings;
    /// Makes settings durable and puts the log level in force. The control server itself moves the metrics listener,
    /// before it calls this.
    fn apply(&self, settings: Settings) -> Answer<'_, ()>;

    /// Starts an orderly end: streams drain for a bounded time, neighbours are told goodbye. Returns at once.
    fn shutdown(&self);
}

/// What `of` makes of one reading of `daemon`.
pub fn read<T>(daemon: &dyn Daemon, of: impl FnOnce(Reading<'_>) -> T) -> T {
    let (about, view, numbers, listeners) = (daemon.about(), daemon.view(), daemon.numbers(), daemon.listeners());
    let (datapath, troubles) = (datapath::standing(), daemon.troubles());
    of(Reading {
        about: &about,
        view: &view,
        numbers: &numbers,
        listeners: &listeners,
        troubles: &troubles,
        datapath: &datapath,
        now: daemon.now(),
    })
}

/// Facts about a running daemon.
#[derive(Clone, Debug)]
pub struct About {
    /// Its state directory.
    pub dir: PathBuf,
    /// The UDP port it is bound to.
    pub port: u16,
    /// When it started.
    pub started: UnixMs,
    /// Whether the operator declared it reachable by anyone (`--public`).
    pub public: bool,
}

/// What `why` asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Node(NodeKey),
    Service(Name),
    Seed(Name),
}

/// A service of this node's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceRef {
    Name(Name),
    /// By local port. `unserve` removes whatever is published on it, named or not.
    Port(u16),
}

impl ServiceRef {
    #[must_use]
    pub fn is_name(&self, name: &Name) -> bool {
        matches!(self, Self::Name(own) if own == name)
    }

    #[must_use]
    pub fn is_port(&self, port: u16) -> bool {
        matches!(self, Self::Port(own) if *own == port)
    }
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Port(port) => port.fmt(f),
        }
    }
}

impl FromStr for ServiceRef {
    type Err = NameError;
    /// A lone decimal up to 65535 is a port, anything else a name.
    fn from_str(s: &str) -> Result<Self, NameError> {
        s.parse().map(Self::Port).or_else(|_| s.parse().map(Self::Name))
    }
}

/// A local port to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serve {
    pub port: u16,
    pub name: Option<Name>,
    pub protocol: Protocol,
    pub shared: bool,
    /// Where its server is.
    pub server: Server,
}

/// A local listener to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// A name, or with a provider its port.
    pub service: ServiceRef,
    /// A node name or a prefix of its hexadecimal key.
    pub provider: Option<String>,
    /// Where to listen; on this machine's loopback where absent.
    pub bind: Option<IpAddr>,
    /// The service's own port where absent; 0 for the listener there is, or any free port.
    pub local_port: Option<u16>,
}

/// Local listeners to close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disconnect {
    /// A service's name, or the listener's *local* port.
    pub service: ServiceRef,
    pub provider: Option<String>,
}

/// A local listener to a service of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// A name, or the port of an unnamed service.
    pub service: ServiceRef,
    /// The one provider it is pinned to.
    pub provider: Option<NodeKey>,
    pub protocol: Protocol,
    /// The port that it listens on, or would.
    pub local_port: u16,
    /// Where it listens; several where both loopback families do.
    pub local: Vec<SocketAddr>,
    /// Why it does not listen, if so; it tries again.
    pub waiting: Option<String>,
}

/// An event with its place in the timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// Counts from 1 at each start of the daemon.
    pub seq: u64,
    pub at: UnixMs,
    pub event: Event,
}

/// What an operator may change while the daemon runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What this node is called; as its host where absent.
    pub name: Option<Name>,
    /// Where `/metrics` listens; not at all where absent.
    pub http: Option<SocketAddr>,
    /// The filter of the logs, in the syntax of `tracing`: `info` where absent.
    pub log_level: Option<String>,
    /// How much memory seeds may have together, in MiB; a part of the machine's where absent.
    pub seed_memory_mib: Option<u32>,
    /// How long what is open with a silent peer waits, in seconds; the core's own where absent.
    pub stream_patience_s: Option<u32>,
}

/// Counters and gauges. Counters count from the start of the daemon and never go down.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// One per peer with a connection.
    pub peers: Vec<PeerNumbers>,
    pub socket: SocketNumbers,
    /// Incoming frames and datagrams that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    pub services: ServiceNumbers,
    pub seeds: SeedNumbers,
    /// Events by kind.
    pub events: BTreeMap<EventKind, u64>,
}

/// The UDP socket that all of the mesh's packets share.
#[derive(Clone, Debug, Default)]
pub struct SocketNumbers {
    /// Where it is bound.
    pub local: Option<SocketAddr>,
    /// Datagrams that one send can carry; 1 without segmentation offload.
    pub gso_segments: usize,
    /// Datagrams that one receive can bring; 1 without coalescing.
    pub gro_segments: usize,
    /// As the kernel counts them.
    pub receive_buffer_bytes: usize,
    pub send_buffer_bytes: usize,
    /// Source addresses that belong to a node which proved its key.
    pub sources_bound: usize,
}

/// A connected peer.
#[derive(Clone, Debug)]
pub struct PeerNumbers {
    pub peer: NodeKey,
    /// How packets travel at present: `direct`.
    pub path: String,
    /// Where they go.
    pub remote: Option<SocketAddr>,
    pub rtt: Duration,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub datagrams_in: u64,
    pub datagrams_out: u64,
    /// Packets that QUIC held for lost.
    pub lost: u64,
}

/// What the services carry.
#[derive(Clone, Debug, Default)]
pub struct ServiceNumbers {
    /// TCP streams open now.
    pub streams_open: u64,
    pub streams: u64,
    /// UDP sessions open now.
    pub sessions_open: u64,
    pub sessions: u64,
    /// Payload from the mesh to local sockets.
    pub bytes_in: u64,
    /// Payload from local sockets to the mesh.
    pub bytes_out: u64,
    /// UDP payloads dropped and sessions given up for newer ones, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Callers turned away, by reason.
    pub refused: BTreeMap<String, u64>,
}
