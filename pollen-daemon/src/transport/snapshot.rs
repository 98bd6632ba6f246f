//! What the transport shows of itself. Owns the shapes for status and metrics; reads, changes nothing.
//! Invariant: numbers are as QUIC and the path socket count them, never estimated.

use std::net::SocketAddr;
use std::time::Duration;

use pollen_common::identity::NodeKey;
use pollen_common::mapping::Nats;
use pollen_common::node::LinkId;

use super::Inner;
use super::circuits::CircuitNumbers;
use super::drops::DropReason;
use super::path::address::VirtualAddr;
use super::punch::PunchNumbers;
use crate::datapath::DatapathNumbers;

/// What packets for a peer travel on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathKind {
    /// UDP straight to the peer.
    Direct,
    /// Through another node, which cannot read it.
    Relayed,
}

impl PathKind {
    /// As tables and metric labels say it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
        }
    }
}

/// The transport at one moment.
#[derive(Clone, Debug)]
pub struct MeshSnapshot {
    /// Where the UDP socket is bound.
    pub local: Option<SocketAddr>,
    /// Datagrams that one send can carry; 1 without segmentation offload.
    pub gso_segments: usize,
    /// Datagrams that one receive can bring; 1 without coalescing.
    pub gro_segments: usize,
    /// The socket's buffers, as the kernel counts them.
    pub receive_buffer_bytes: usize,
    pub send_buffer_bytes: usize,
    /// Sources that belong to a proved node.
    pub sources_bound: usize,
    /// One for each connection, oldest first.
    pub peers: Vec<PeerSnapshot>,
    pub circuits: CircuitNumbers,
    pub punches: PunchNumbers,
    pub datapath: DatapathNumbers,
    /// Every reason and how often it was the one.
    pub drops: Vec<(DropReason, u64)>,
}

/// One connection at one moment.
#[derive(Clone, Debug)]
pub struct PeerSnapshot {
    pub peer: NodeKey,
    pub link: LinkId,
    pub path: PathKind,
    /// The node that passes them on, where one does.
    pub via: Option<NodeKey>,
    /// Where its packets go; `None` while it has no route, or goes through another.
    pub remote: Option<SocketAddr>,
    /// What stands between it and others, where it said so.
    pub nats: Option<Nats>,
    /// Whether this node dialled.
    pub dialed: bool,
    pub age: Duration,
    pub rtt: Duration,
    /// Bytes of UDP payload.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// UDP datagrams.
    pub datagrams_in: u64,
    pub datagrams_out: u64,
    /// Packets of ours that QUIC took for lost.
    pub packets_lost: u64,
    /// The longest packet that QUIC sends.
    pub mtu: u16,
}

pub(super) fn snapshot(inner: &Inner) -> MeshSnapshot {
    let (gro_segments, gso_segments) = inner.path.offload();
    let (receive_buffer_bytes, send_buffer_bytes) = inner.path.buffers();
    let links = inner.links.all();
    let peers = links.iter().map(|link| {
        let via = inner.path.via(&link.peer);
        let via = via.and_then(|via| links.iter().map(|link| link.peer).find(|key| VirtualAddr::of(key) == via));
        let stats = link.connection.stats();
        PeerSnapshot {
            peer: link.peer,
            link: link.id,
            path: if via.is_some() { PathKind::Relayed } else { PathKind::Direct },
            via,
            remote: inner.path.route(&link.peer),
            nats: link.meeting.nats(),
            dialed: link.dialed,
            age: link.since.elapsed(),
            rtt: stats.path.rtt,
            bytes_in: stats.udp_rx.bytes,
            bytes_out: stats.udp_tx.bytes,
            datagrams_in: stats.udp_rx.datagrams,
            datagrams_out: stats.udp_tx.datagrams,
            packets_lost: stats.path.lost_packets,
            mtu: stats.path.current_mtu,
        }
    });
    MeshSnapshot {
        local: inner.path.bound_to().ok(),
        gso_segments,
        gro_segments,
        receive_buffer_bytes,
        send_buffer_bytes,
        sources_bound: inner.path.sources(),
        peers: peers.collect(),
        circuits: inner.circuits.numbers(inner.path.passed()),
        punches: inner.punches.numbers(),
        datapath: inner.path.datapath().numbers(),
        drops: inner.drops.all(),
    }
}
