//! What `pln status` and `pln inspect` say: a model made from one view and one reading of the counters, as JSON and as
//! tables. Owns the shapes, which are contract; asks nothing of the network.
//! Invariant: pure, so that what was shown can be reproduced from the same view.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pollen_common::identity::NodeKey;
use pollen_common::mapping::Nats;
use pollen_common::time::UnixMs;
use pollen_common::views::{Fallen, Liveness, NodeInfo, Provider, ServiceInfo, View};
use serde::{Deserialize, Serialize};

use crate::datapath::Standing;
use crate::services::Listener;
use crate::transport::{CircuitNumbers, PunchNumbers};

mod allow;
pub mod condition;
pub mod health;
pub mod inspect;
pub mod label;
mod names;
mod numbers;
pub mod plain;
#[cfg(test)]
pub(crate) mod sample;
pub mod seeds;
pub mod table;
#[cfg(test)]
mod tests;
pub mod troubles;
pub mod when;

pub use allow::AllowRow;
pub use condition::{Code, Condition};
pub use health::{Health, HealthState};
pub use names::{Connection, ProtocolName, TierName};
pub use numbers::{
    About, ContentNumbers, EngineNumbers, EngineStanding, HeldModule, Numbers, PeerNumbers, SeedNumbers, SocketNumbers,
};
pub use seeds::{Engine, SeedRow};
pub use troubles::Troubles;

/// What a status is made from: one consistent reading of a daemon.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    pub about: &'a About,
    pub view: &'a View,
    pub numbers: &'a Numbers,
    pub listeners: &'a [Listener],
    pub troubles: &'a Troubles,
    pub now: UnixMs,
}

/// `GET /v1/status`: this node, and the cluster as it sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub health: Health,
    pub me: Me,
    /// Every member, online or not; this node first, then by name and key.
    pub nodes: Vec<NodeRow>,
    /// Keys that were members and are none any more, in their order.
    #[serde(default)]
    pub fallen: Vec<FallenRow>,
    /// Named services by name, then unnamed ones by provider and port.
    pub services: Vec<ServiceRow>,
    /// Seeds by name.
    pub seeds: Vec<SeedRow>,
    /// What runs seeds on this node.
    pub engine: Engine,
    /// Local listeners of `pln connect`.
    pub connections: Vec<Connection>,
    pub document: Document,
    pub datapath: Datapath,
    #[serde(default)]
    pub circuits: Circuits,
    #[serde(default)]
    pub punching: Punching,
    pub socket: Socket,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Me {
    pub key: String,
    pub name: Option<String>,
    /// Absent where the node does not stand.
    pub tier: Option<TierName>,
    pub cluster: String,
    pub version: String,
    /// The UDP port.
    pub port: u16,
    /// Whether it was declared reachable by anyone.
    pub public: bool,
    pub dir: String,
    pub started_unix_ms: u64,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    pub key: String,
    pub name: Option<String>,
    pub tier: TierName,
    pub state: NodeState,
    /// The neighbour that the way to it starts with, where it is online and not adjacent.
    pub via: Option<String>,
    /// 0 for this node, 1 for a neighbour; absent when offline.
    pub hops: Option<u8>,
    /// The connection with it, where there is one.
    pub path: Option<PathRow>,
    /// What kind of translator stands before it, where that is known: of this node, and of peers with a connection.
    #[serde(default)]
    pub nat: Option<NatRow>,
    /// How many peers it has links with.
    pub links: usize,
    pub addrs: Vec<SocketAddr>,
    pub props: BTreeMap<String, String>,
    /// When its membership ends.
    pub expires_unix_ms: Option<u64>,
}

/// A key that was a member and is none any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FallenRow {
    pub key: String,
    /// `denied`; `retired`, which blames nobody; `expired`.
    pub why: String,
    /// Who denied or retired it; absent where that was the root.
    pub by: Option<NodeRef>,
    /// When its membership ended, if it expired.
    pub since_unix_ms: Option<u64>,
}

/// Whether a node is reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// This very node.
    Me,
    Online,
    Offline,
}

impl From<&Liveness> for NodeState {
    fn from(liveness: &Liveness) -> Self {
        match liveness {
            Liveness::Me => Self::Me,
            Liveness::Online { .. } => Self::Online,
            Liveness::Offline => Self::Offline,
        }
    }
}

/// A connection with a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRow {
    /// How packets travel at present: `direct`, or `relayed` by another node.
    pub kind: String,
    /// The key of the node that passes them on, where one does.
    #[serde(default)]
    pub via: Option<String>,
    pub remote: Option<SocketAddr>,
    /// Smoothed round-trip time, in microseconds.
    pub rtt_us: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Packets held for lost.
    pub lost: u64,
}

impl From<&PeerNumbers> for PathRow {
    fn from(peer: &PeerNumbers) -> Self {
        Self {
            kind: peer.path.clone(),
            via: peer.via.map(|via| via.to_string()),
            remote: peer.remote,
            rtt_us: u64::try_from(peer.rtt.as_micros()).unwrap_or(u64::MAX),
            bytes_in: peer.bytes_in,
            bytes_out: peer.bytes_out,
            lost: peer.lost,
        }
    }
}

/// What kind of address translator (NAT) stands between a node and others, in each family of addresses: `none`, `easy`
/// (one mapping for all: others can be told of it), `hard` (a mapping for each destination), or `unknown`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatRow {
    pub ipv4: String,
    pub ipv6: String,
}

impl From<Nats> for NatRow {
    fn from(Nats { v4, v6 }: Nats) -> Self {
        Self { ipv4: v4.label().into(), ipv6: v6.label().into() }
    }
}

/// Looking for a straight way to peers that are reached through a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Punching {
    /// Rounds since the start.
    pub rounds: u64,
    /// Those that found one.
    pub opened: u64,
}

impl From<PunchNumbers> for Punching {
    fn from(PunchNumbers { rounds, opened, .. }: PunchNumbers) -> Self {
        Self { rounds, opened }
    }
}

/// A service of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// Absent for a service that is reached by provider and port alone.
    pub name: Option<String>,
    /// What it was claimed for first; `providers` say what each speaks.
    pub protocol: ProtocolName,
    /// Whose name it is; the provider where there is no name.
    pub owner: NodeRef,
    pub shared: bool,
    pub providers: Vec<ProviderRow>,
    /// Claims of the same name that lost.
    pub conflicts: usize,
    /// This node's own listeners to it, each as `address:port`.
    pub local: Vec<SocketAddr>,
    /// Whom its owner lets reach it; absent where every member may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<AllowRow>,
}

/// A node by key, and by name where it has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRef {
    pub key: String,
    pub name: Option<String>,
}

/// Who answers for a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderRow {
    pub node: NodeRef,
    #[serde(default)]
    pub protocol: ProtocolName,
    pub port: u16,
    pub online: bool,
    /// Whom another provider than the owner lets reach it there, of those whom the owner lets; absent where all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<AllowRow>,
}

/// The replicated document, as held here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Bytes of entries that count toward quotas.
    pub bytes: u64,
    /// How many entries that is.
    pub entries: u64,
    /// Equal on nodes that hold equal content: roll, facts, live, state.
    pub roots: [String; 4],
    /// Entries that do not count, with the reason.
    pub refused: Vec<RefusedRow>,
}

/// An entry that does not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRow {
    pub author: NodeRef,
    pub entry: String,
    pub reason: String,
}

/// The UDP socket that all of the mesh's packets share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    pub local: Option<SocketAddr>,
    /// Datagrams that one send can carry; 1 without segmentation offload.
    pub gso_segments: usize,
    /// Datagrams that one receive can bring; 1 without coalescing.
    pub gro_segments: usize,
    pub receive_buffer_bytes: usize,
    pub send_buffer_bytes: usize,
}

impl From<&SocketNumbers> for Socket {
    fn from(socket: &SocketNumbers) -> Self {
        let SocketNumbers { local, gso_segments, gro_segments, receive_buffer_bytes, send_buffer_bytes, .. } = *socket;
        Self { local, gso_segments, gro_segments, receive_buffer_bytes, send_buffer_bytes }
    }
}

/// Packets of nodes that cannot reach each other, passed on by a third.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circuits {
    /// Whether this node passes any on (`pln set relay`).
    pub relays: bool,
    /// Circuits by which it reaches others, or is reached.
    pub ends: usize,
    /// Circuits of others that pass through it.
    pub hops: usize,
    /// Frames passed on for others since the start.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl From<CircuitNumbers> for Circuits {
    fn from(CircuitNumbers { relays, ends, hops, frames, bytes }: CircuitNumbers) -> Self {
        Self { relays, ends, hops, frames, bytes }
    }
}

/// How packets are moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datapath {
    /// The rung of the ladder in use: `xdp`, `xdp-generic`, `sockets`.
    pub rung: String,
    /// The interfaces that the kernel's program is on.
    #[serde(default)]
    pub interfaces: Vec<String>,
    /// Why it is not a higher one; empty on the highest.
    pub why_not_higher: String,
}

impl From<&Standing> for Datapath {
    fn from(Standing { rung, interfaces, why_not_higher, .. }: &Standing) -> Self {
        Self { rung: rung.label().into(), interfaces: interfaces.clone(), why_not_higher: why_not_higher.clone() }
    }
}

impl Status {
    /// What `reading` says.
    #[must_use]
    pub fn of(reading: Reading<'_>) -> Self {
        let Reading { view, numbers, listeners, .. } = reading;
        Self {
            health: Health::of(reading),
            me: me(reading),
            nodes: nodes(reading),
            fallen: fallen(view),
            services: services(view, listeners),
            seeds: seeds::rows(view),
            engine: Engine::from(&numbers.seeds),
            connections: listeners.iter().map(Connection::from).collect(),
            document: document(view),
            circuits: Circuits::from(numbers.circuits),
            punching: Punching::from(numbers.punches),
            socket: Socket::from(&numbers.socket),
            datapath: Datapath::from(&numbers.datapath.standing),
        }
    }
}

fn me(Reading { about, view, .. }: Reading<'_>) -> Me {
    let mine = view.nodes.get(&view.me);
    Me {
        key: view.me.to_string(),
        name: node_ref(view, view.me).name,
        tier: mine.map(|node| node.member.rights.tier.into()),
        cluster: view.cluster.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        port: about.port,
        public: about.public,
        dir: about.dir.display().to_string(),
        started_unix_ms: about.started.0,
    }
}

fn nodes(Reading { view, numbers, .. }: Reading<'_>) -> Vec<NodeRow> {
    let mut nodes: Vec<NodeRow> = view.nodes.values().map(|node| node_row(node, numbers)).collect();
    nodes.sort_by_cached_key(|row| (row.state != NodeState::Me, row.name.is_none(), row.name.clone(), row.key.clone()));
    nodes
}

fn fallen(view: &View) -> Vec<FallenRow> {
    let row = |(key, fallen): (&NodeKey, &Fallen)| {
        let (why, by, since) = match *fallen {
            Fallen::Denied { by } => ("denied", by, None),
            Fallen::Retired { by } => ("retired", by, None),
            Fallen::Expired { since } => ("expired", None, Some(since.0)),
        };
        let by = by.map(|by| node_ref(view, by));
        FallenRow { key: key.to_string(), why: why.into(), by, since_unix_ms: since }
    };
    view.fallen.iter().map(row).collect()
}

pub(crate) fn node_row(node: &NodeInfo, numbers: &Numbers) -> NodeRow {
    let connection = numbers.peers.iter().find(|peer| peer.peer == node.key);
    let nats = match node.liveness {
        Liveness::Me => Some(numbers.punches.nats),
        Liveness::Online { .. } | Liveness::Offline => connection.and_then(|peer| peer.nats),
    };
    let (via, hops) = match node.liveness {
        Liveness::Me => (None, Some(0)),
        Liveness::Online { via, hops } => ((via != node.key).then(|| via.to_string()), Some(hops)),
        Liveness::Offline => (None, None),
    };
    NodeRow {
        key: node.key.to_string(),
        name: node.name.as_ref().map(ToString::to_string),
        tier: node.member.rights.tier.into(),
        state: NodeState::from(&node.liveness),
        via,
        hops,
        path: connection.map(PathRow::from),
        nat: nats.map(NatRow::from),
        links: node.links.len(),
        addrs: node.addrs.clone(),
        props: node.member.rights.props.clone(),
        expires_unix_ms: node.member.rights.expires.map(|at| at.0),
    }
}

fn services(view: &View, listeners: &[Listener]) -> Vec<ServiceRow> {
    let named = view.services.values().map(|service| named_row(view, listeners, service));
    let unnamed = view.unnamed.iter().map(|provider| unnamed_row(view, listeners, provider));
    named.chain(unnamed).collect()
}

pub(crate) fn named_row(view: &View, listeners: &[Listener], service: &ServiceInfo) -> ServiceRow {
    ServiceRow {
        name: Some(service.name.to_string()),
        protocol: service.protocol.into(),
        owner: node_ref(view, service.owner),
        shared: service.shared,
        providers: service.providers.iter().map(|provider| named_provider(view, service, provider)).collect(),
        conflicts: service.conflicts.len(),
        local: listening(listeners, |l| l.service.is_name(&service.name)),
        allow: AllowRow::of(view, &service.policy),
    }
}

fn unnamed_row(view: &View, listeners: &[Listener], provider: &Provider) -> ServiceRow {
    ServiceRow {
        name: None,
        protocol: provider.protocol.into(),
        owner: node_ref(view, provider.node),
        shared: false,
        providers: vec![provider_row(view, provider)],
        conflicts: 0,
        local: listening(listeners, |l| {
            l.service.is_port(provider.port) && l.provider == Some(provider.node) && l.protocol == provider.protocol
        }),
        allow: AllowRow::of(view, &provider.policy),
    }
}

fn listening(listeners: &[Listener], of: impl Fn(&Listener) -> bool) -> Vec<SocketAddr> {
    listeners.iter().filter(|l| of(l)).flat_map(|l| l.local.iter().copied()).collect()
}

fn named_provider(view: &View, service: &ServiceInfo, provider: &Provider) -> ProviderRow {
    let own = (provider.node != service.owner).then(|| AllowRow::of(view, &provider.policy)).flatten();
    ProviderRow { allow: own, ..provider_row(view, provider) }
}

pub(crate) fn provider_row(view: &View, provider: &Provider) -> ProviderRow {
    ProviderRow {
        node: node_ref(view, provider.node),
        protocol: provider.protocol.into(),
        port: provider.port,
        online: view.nodes.get(&provider.node).is_some_and(|node| node.liveness.is_online()),
        allow: None,
    }
}

pub(crate) fn node_ref(view: &View, key: NodeKey) -> NodeRef {
    let name = view.nodes.get(&key).and_then(|node| node.name.as_ref()).map(ToString::to_string);
    NodeRef { key: key.to_string(), name }
}

fn document(view: &View) -> Document {
    Document {
        bytes: view.document_bytes,
        entries: view.document_entries,
        roots: view.roots.map(|root| root.to_string()),
        refused: view
            .refused
            .iter()
            .map(|entry| RefusedRow {
                author: node_ref(view, entry.author),
                entry: entry.key.clone(),
                reason: entry.reason.clone(),
            })
            .collect(),
    }
}
