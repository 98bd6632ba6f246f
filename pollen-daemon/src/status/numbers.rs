//! The numbers that `status` and `/metrics` show: of every part, as people read them. Shapes alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pollen_common::identity::NodeKey;
use pollen_common::mapping::Nats;
use pollen_common::node::EventKind;
use pollen_common::time::UnixMs;

use crate::datapath::DatapathNumbers;
use crate::services::ServiceNumbers;
use crate::transport::{CircuitNumbers, PunchNumbers};
use crate::workload::CallNumbers;

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

/// Counters and gauges. Counters count from the start of the daemon and never go down.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// One per peer with a connection.
    pub peers: Vec<PeerNumbers>,
    pub socket: SocketNumbers,
    pub circuits: CircuitNumbers,
    pub punches: PunchNumbers,
    pub datapath: DatapathNumbers,
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
    /// How packets travel at present: `direct`, `relayed`.
    pub path: String,
    /// The node that passes them on, where one does.
    pub via: Option<NodeKey>,
    /// Where they go.
    pub remote: Option<SocketAddr>,
    /// What stands between it and others, where it said so.
    pub nats: Option<Nats>,
    pub rtt: Duration,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub datagrams_in: u64,
    pub datagrams_out: u64,
    /// Packets that QUIC held for lost.
    pub lost: u64,
}

/// What this node knows of a module that is on its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldModule {
    /// SHA-256 of the module, in hexadecimal, for those who compare digests.
    pub sha256: String,
    /// The functions that can be called.
    pub functions: Vec<String>,
}

/// What runs guests, how many at a time, and why it does no better. Absent as long as nothing needed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStanding {
    /// `pooling`, `on_demand`, or `none` where guests cannot run here.
    pub allocator: String,
    /// How a used instance's memory is made new: `pagemap_scan`, `keep`, `decommit`.
    pub reset: String,
    /// Instances at a time.
    pub slots: u64,
    /// Why it is not better: a clause for people; empty where it is best.
    pub why_not_better: String,
}

/// Counters and gauges of seeds. Counters count from the start of the daemon.
#[derive(Clone, Debug, Default)]
pub struct SeedNumbers {
    pub calls: CallNumbers,
    pub engine: EngineNumbers,
    pub content: ContentNumbers,
    /// Modules that are hosted here, by their state: `starting`, `ready`, `stopping`.
    pub replicas: BTreeMap<String, u64>,
}

/// What the engine did.
#[derive(Clone, Debug, Default)]
pub struct EngineNumbers {
    pub standing: Option<EngineStanding>,
    /// Instances there are now.
    pub instances: u64,
    /// What running guests hold, in bytes.
    pub memory_bytes: u64,
    /// What idle slots keep for the next call, in bytes.
    pub kept_bytes: u64,
    /// Modules made ready, by how: `compiled`, `cached`; and `damaged` code that was on disk, and never run.
    pub compilations: BTreeMap<String, u64>,
}

/// What the content store holds and did.
#[derive(Clone, Debug, Default)]
pub struct ContentNumbers {
    pub modules: u64,
    pub bytes: u64,
    /// Modules fetched from others, by how that ended: `ok`, `failed`, `damaged`.
    pub fetched: BTreeMap<String, u64>,
}
