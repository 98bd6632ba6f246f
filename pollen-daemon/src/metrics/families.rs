//! The metric families: their names, what they mean, and where in a reading their values are. Owns names and labels,
//! which are contract. Invariant: names and label values never come from a peer unbounded.

mod machines;
mod seeds;

use pollen_common::views::{Liveness, Protocol, View};
use prometheus::core::{AtomicF64, AtomicU64, GenericCounterVec, GenericGaugeVec};
use prometheus::process_collector::ProcessCollector;
use prometheus::{Opts, Registry, TextEncoder};

use crate::datapath::DatapathNumbers;
use crate::handle;
use crate::handle::Daemon;
use crate::http::refused::{Tallies, Tally};
use crate::status::{Code, Health, label};
use crate::status::{Numbers, PeerNumbers};

/// Peers with series of their own; `pln_peers_unlisted` counts the others. A Prometheus server is glad of it.
pub(super) const PEERS_LISTED_MAX: usize = 256;

type Result = prometheus::Result<()>;

/// The text of one scrape.
pub(super) fn text(daemon: &dyn Daemon, refused: &Tallies) -> prometheus::Result<String> {
    let scrape = Scrape { registry: Registry::new() };
    let numbers = daemon.numbers();
    process(&scrape, daemon)?;
    cluster(&scrape, daemon, &numbers)?;
    conditions(&scrape, daemon)?;
    machines::machines(&scrape, daemon)?;
    peers(&scrape, &daemon.view(), &numbers.peers)?;
    services(&scrape, &numbers)?;
    seeds::seeds(&scrape, &daemon.view(), &numbers.seeds)?;
    happenings(&scrape, &numbers)?;
    turned_away(&scrape, refused)?;
    TextEncoder::new().encode_to_string(&scrape.registry.gather())
}

/// What the kernel says of this process, under the names that every exporter gives it.
pub(super) fn process_text() -> prometheus::Result<String> {
    let registry = Registry::new();
    registry.register(Box::new(ProcessCollector::for_self()))?;
    TextEncoder::new().encode_to_string(&registry.gather())
}

/// One scrape under way. Families are made anew for each: what a departed peer counted must not linger.
struct Scrape {
    registry: Registry,
}

impl Scrape {
    fn gauge(&self, name: &str, help: &str, labels: &[&str], series: &[(&[&str], u64)]) -> Result {
        let family = GenericGaugeVec::<AtomicU64>::new(Opts::new(name, help), labels)?;
        series.iter().try_for_each(|(values, value)| {
            family.get_metric_with_label_values(values).map(|gauge| gauge.set(*value))
        })?;
        self.registry.register(Box::new(family))
    }

    fn gauge_seconds(&self, name: &str, help: &str, labels: &[&str], series: &[(&[&str], f64)]) -> Result {
        let family = GenericGaugeVec::<AtomicF64>::new(Opts::new(name, help), labels)?;
        series.iter().try_for_each(|(values, value)| {
            family.get_metric_with_label_values(values).map(|gauge| gauge.set(*value))
        })?;
        self.registry.register(Box::new(family))
    }

    fn counter(&self, name: &str, help: &str, labels: &[&str], series: &[(&[&str], u64)]) -> Result {
        let family = GenericCounterVec::<AtomicU64>::new(Opts::new(name, help), labels)?;
        series.iter().try_for_each(|(values, value)| {
            family.get_metric_with_label_values(values).map(|counter| counter.inc_by(*value))
        })?;
        self.registry.register(Box::new(family))
    }
}

fn process(scrape: &Scrape, daemon: &dyn Daemon) -> Result {
    let started = std::time::Duration::from_millis(daemon.about().started.0).as_secs_f64();
    scrape.gauge(
        "pln_build_info",
        "Always 1; the labels say what is running.",
        &["version", "commit"],
        &[(&[env!("CARGO_PKG_VERSION"), option_env!("PLN_COMMIT").unwrap_or("unknown")], 1)],
    )?;
    scrape.gauge_seconds(
        "pln_start_time_seconds",
        "When the daemon started, in seconds since 1970.",
        &[],
        &[(&[], started)],
    )
}

fn cluster(scrape: &Scrape, daemon: &dyn Daemon, numbers: &Numbers) -> Result {
    let view = daemon.view();
    let count = |of: fn(&Liveness) -> bool| count(view.nodes.values().filter(|node| of(&node.liveness)));
    scrape.gauge(
        "pln_nodes",
        "Members of the cluster by state, this node not counted.",
        &["state"],
        &[
            (&["online"], count(|l| matches!(l, Liveness::Online { .. }))),
            (&["offline"], count(|l| matches!(l, Liveness::Offline))),
        ],
    )?;
    let serving = |protocol| self::count(view.services.values().filter(move |service| service.speaks(protocol)));
    scrape.gauge(
        "pln_services",
        "Named services of the cluster by protocol.",
        &["protocol"],
        &[(&["tcp"], serving(Protocol::Tcp)), (&["udp"], serving(Protocol::Udp))],
    )?;
    let conflicts: usize = view.services.values().map(|service| service.conflicts.len()).sum();
    scrape.gauge("pln_name_conflicts", "Claims of a name that another claim won.", &[], &[(&[], as_u64(conflicts))])?;
    scrape.gauge(
        "pln_document_bytes",
        "Bytes of replicated entries that count toward quotas, over all authors.",
        &[],
        &[(&[], view.document_bytes)],
    )?;
    scrape.gauge(
        "pln_document_entries",
        "Replicated entries held, over all authors.",
        &[],
        &[(&[], view.document_entries)],
    )?;
    scrape.gauge(
        "pln_entries_refused",
        "Replicated entries that do not count, for their author may not say them.",
        &[],
        &[(&[], as_u64(view.refused.len()))],
    )?;
    relaying(scrape, numbers)?;
    let socket = &numbers.socket;
    scrape.gauge(
        "pln_socket_segments",
        "Datagrams that one system call can carry, by direction; 1 where the kernel does not join them.",
        &["direction"],
        &[(&["in"], as_u64(socket.gro_segments)), (&["out"], as_u64(socket.gso_segments))],
    )?;
    scrape.gauge(
        "pln_socket_buffer_bytes",
        "The UDP socket's buffers, as the kernel counts them, by direction.",
        &["direction"],
        &[(&["in"], as_u64(socket.receive_buffer_bytes)), (&["out"], as_u64(socket.send_buffer_bytes))],
    )?;
    scrape.gauge(
        "pln_sources_bound",
        "Source addresses that belong to a node which proved its key.",
        &[],
        &[(&[], as_u64(socket.sources_bound))],
    )?;
    let direct = as_u64(numbers.peers.iter().filter(|peer| peer.path == "direct").count());
    scrape.gauge(
        "pln_peers",
        "Peers with a connection, by how packets travel.",
        &["path"],
        &[(&["direct"], direct), (&["other"], as_u64(numbers.peers.len()) - direct)],
    )
}

fn relaying(scrape: &Scrape, numbers: &Numbers) -> Result {
    let circuits = &numbers.circuits;
    scrape.gauge(
        "pln_circuits",
        "Circuits by this node's part: `end` where it reaches a peer so, `hop` where it passes packets on for others.",
        &["part"],
        &[(&["end"], as_u64(circuits.ends)), (&["hop"], as_u64(circuits.hops))],
    )?;
    scrape.counter("pln_relayed_frames_total", "Frames passed on for others.", &[], &[(&[], circuits.frames)])?;
    scrape.counter(
        "pln_relayed_bytes_total",
        "Bytes of frames passed on for others.",
        &[],
        &[(&[], circuits.bytes)],
    )?;
    let punches = &numbers.punches;
    scrape.counter(
        "pln_punch_rounds_total",
        "Rounds in which a straight way to a relayed peer was looked for, by outcome.",
        &["outcome"],
        &[(&["opened"], punches.opened), (&["vain"], punches.rounds.saturating_sub(punches.opened))],
    )?;
    let DatapathNumbers { standing, seen } = &numbers.datapath;
    scrape.gauge(
        "pln_datapath_info",
        "Always 1; the label is the rung of the ladder that circuits' frames travel by.",
        &["rung"],
        &[(&[standing.rung.label()], 1)],
    )?;
    let frames: Vec<_> = seen.iter().map(|(reason, count)| ([reason.label()], count.frames)).collect();
    scrape.counter(
        "pln_datapath_frames_total",
        "Ethernet frames that the kernel's program saw, by what it made of them.",
        &["reason"],
        &slices(&frames),
    )
}

fn conditions(scrape: &Scrape, daemon: &dyn Daemon) -> Result {
    let health = handle::read(daemon, Health::of);
    let of = |code| count(health.conditions.iter().filter(|condition| condition.code == code));
    let series: Vec<([&str; 1], u64)> = Code::ALL.iter().map(|code| ([code.label()], of(*code))).collect();
    scrape.gauge(
        "pln_condition",
        "What is wrong with this node now, as `pln status` says it: how many of each kind; all 0 is HEALTHY.",
        &["code"],
        &slices(&series),
    )
}

fn peers(scrape: &Scrape, view: &View, peers: &[PeerNumbers]) -> Result {
    let mut peers: Vec<&PeerNumbers> = peers.iter().collect();
    peers.sort_by_key(|peer| peer.peer);
    let unlisted = peers.split_off(peers.len().min(PEERS_LISTED_MAX)).len();
    scrape.gauge(
        "pln_peers_unlisted",
        "Peers with a connection and no series of their own, of which there are at most 256.",
        &[],
        &[(&[], as_u64(unlisted))],
    )?;
    let keys: Vec<String> = peers.iter().map(|peer| peer.peer.to_string()).collect();
    let by_peer: Vec<[&str; 1]> = keys.iter().map(|key| [key.as_str()]).collect();
    let names: Vec<String> = peers.iter().map(|peer| name_of(view, peer)).collect();
    let infos: Vec<([&str; 2], u64)> = keys.iter().zip(&names).map(|(key, name)| ([key.as_str(), name], 1)).collect();
    scrape.gauge(
        "pln_peer_info",
        "Always 1; joins a peer's key to its name, empty where it has none.",
        &["peer", "name"],
        &slices(&infos),
    )?;
    let rtts: Vec<(&[&str], f64)> =
        by_peer.iter().zip(&peers).map(|(labels, peer)| (&labels[..], peer.rtt.as_secs_f64())).collect();
    scrape.gauge_seconds("pln_peer_rtt_seconds", "Smoothed round-trip time.", &["peer"], &rtts)?;
    let lost: Vec<(&[&str], u64)> = by_peer.iter().zip(&peers).map(|(labels, peer)| (&labels[..], peer.lost)).collect();
    scrape.counter("pln_peer_packets_lost_total", "Packets that QUIC held for lost.", &["peer"], &lost)?;

    let both: Vec<[[&str; 2]; 2]> = keys.iter().map(|key| [[key.as_str(), "in"], [key.as_str(), "out"]]).collect();
    let directed = |of: fn(&PeerNumbers) -> [u64; 2]| -> Vec<(&[&str], u64)> {
        both.iter()
            .zip(&peers)
            .flat_map(|(labels, peer)| labels.iter().zip(of(peer)).map(|(labels, value)| (&labels[..], value)))
            .collect()
    };
    scrape.counter(
        "pln_peer_bytes_total",
        "Bytes of UDP payload exchanged, by direction.",
        &["peer", "direction"],
        &directed(|peer| [peer.bytes_in, peer.bytes_out]),
    )?;
    scrape.counter(
        "pln_peer_datagrams_total",
        "UDP datagrams exchanged, by direction.",
        &["peer", "direction"],
        &directed(|peer| [peer.datagrams_in, peer.datagrams_out]),
    )
}

fn services(scrape: &Scrape, numbers: &Numbers) -> Result {
    let services = &numbers.services;
    scrape.gauge("pln_streams_open", "TCP streams open now.", &[], &[(&[], services.streams_open)])?;
    scrape.counter("pln_streams_total", "TCP streams opened.", &[], &[(&[], services.streams)])?;
    scrape.gauge("pln_sessions_open", "UDP sessions open now.", &[], &[(&[], services.sessions_open)])?;
    scrape.counter("pln_sessions_total", "UDP sessions opened.", &[], &[(&[], services.sessions)])?;
    scrape.counter(
        "pln_service_bytes_total",
        "Payload of services: `in` from the mesh to local sockets, `out` the other way.",
        &["direction"],
        &[(&["in"], services.bytes_in), (&["out"], services.bytes_out)],
    )?;
    let dropped: Vec<([&str; 1], u64)> = services.dropped.iter().map(|(reason, n)| ([reason.as_str()], *n)).collect();
    scrape.counter(
        "pln_service_datagrams_dropped_total",
        "UDP payloads of services that were dropped, and sessions given up for newer ones, by reason.",
        &["reason"],
        &slices(&dropped),
    )?;
    let refused: Vec<([&str; 1], u64)> = services.refused.iter().map(|(reason, n)| ([reason.as_str()], *n)).collect();
    scrape.counter("pln_refusals_total", "Callers of services turned away, by reason.", &["reason"], &slices(&refused))
}

fn happenings(scrape: &Scrape, numbers: &Numbers) -> Result {
    let dropped: Vec<([&str; 1], u64)> = numbers.dropped.iter().map(|(reason, n)| ([reason.as_str()], *n)).collect();
    scrape.counter(
        "pln_frames_dropped_total",
        "Incoming frames and datagrams that were dropped, by reason.",
        &["reason"],
        &slices(&dropped),
    )?;
    let events: Vec<([&str; 1], u64)> = label::EVENTS
        .iter()
        .map(|kind| ([label::event(*kind)], numbers.events.get(kind).copied().unwrap_or(0)))
        .collect();
    scrape.counter("pln_events_total", "Events of the timeline, by kind.", &["kind"], &slices(&events))
}

fn turned_away(scrape: &Scrape, refused: &Tallies) -> Result {
    let of = |listener, tally: &Tally| -> Vec<([&str; 2], u64)> {
        tally.counted().map(|(reason, n)| ([listener, reason.label()], n)).collect()
    };
    let series = [of("control", &refused.control), of("metrics", &refused.metrics)].concat();
    scrape.counter(
        "pln_http_refused_total",
        "Requests turned away before anything was asked of the daemon, by listener and reason.",
        &["listener", "reason"],
        &slices(&series),
    )
}

fn name_of(view: &View, peer: &PeerNumbers) -> String {
    let name = view.nodes.get(&peer.peer).and_then(|node| node.name.as_ref());
    name.map(ToString::to_string).unwrap_or_default()
}

fn slices<'a, const N: usize>(series: &'a [([&'a str; N], u64)]) -> Vec<(&'a [&'a str], u64)> {
    series.iter().map(|(labels, value)| (&labels[..], *value)).collect()
}

fn count<T>(items: impl Iterator<Item = T>) -> u64 {
    as_u64(items.count())
}

fn as_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
